//! The enabled users, and what is known of all of them together: kept up to date one user at a time, so that a change costs
//! that user.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::User;
use crate::model::UserModel;
use crate::password::{Kind, Verifier};
use crate::tables::shared::Sharded;

/// See the file's header.
#[derive(Clone, Debug)]
pub(crate) struct Users {
    by_name: Sharded<Box<str>, Arc<User>>,
    /// How many hashes cost what.
    kinds: Arc<BTreeMap<Kind, usize>>,
    /// Users who may come with some client ids only.
    bound: usize,
    dummy_verifier: Verifier,
}

impl Users {
    /// The enabled ones of these.
    pub(crate) fn new(users: impl ExactSizeIterator<Item = UserModel>) -> Self {
        let mut all = Self {
            by_name: Sharded::with_capacity(users.len()),
            kinds: Arc::default(),
            bound: 0,
            dummy_verifier: Verifier::dummy(),
        };
        for user in users {
            all.set(user);
        }
        all.settle();
        all
    }

    #[inline]
    pub(crate) fn get(&self, name: &str) -> Option<&User> {
        self.by_name.get(name).map(|user| &**user)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &User> {
        self.by_name.iter().map(|(_, user)| &**user)
    }

    /// True exactly when some user may come with some client ids only.
    pub(crate) fn has_binding(&self) -> bool {
        self.bound > 0
    }

    /// See [`crate::Snapshot::dummy_verifier`].
    pub(crate) fn dummy_verifier(&self) -> &Verifier {
        &self.dummy_verifier
    }

    /// Puts a user in, or another one under the name. [`Self::settle`] must follow.
    pub(crate) fn set(&mut self, user: UserModel) {
        if !user.enabled {
            return self.remove(&user.name);
        }
        let user = User {
            name: user.name,
            verifier: user.verifier,
            groups: user.groups.into(),
            client_id: user.client_id,
        };
        self.replace(&user.name.clone(), Some(Arc::new(user)));
    }

    /// Takes a user out. [`Self::settle`] must follow.
    pub(crate) fn remove(&mut self, name: &str) {
        self.replace(name, None);
    }

    fn replace(&mut self, name: &str, user: Option<Arc<User>>) {
        let after = user.clone();
        let before = self
            .by_name
            .update(name.into(), |slot| std::mem::replace(slot, user));
        if let Some(user) = after {
            let kinds = Arc::make_mut(&mut self.kinds);
            *kinds.entry(user.verifier.kind()).or_default() += 1;
            self.bound += usize::from(user.client_id.is_some());
        }
        if let Some(user) = before {
            let (kinds, kind) = (Arc::make_mut(&mut self.kinds), user.verifier.kind());
            if let Some(count) = kinds.get_mut(&kind) {
                *count -= 1;
                if *count == 0 {
                    kinds.remove(&kind);
                }
            }
            self.bound -= usize::from(user.client_id.is_some());
        }
    }

    /// Ends a change: what most enabled users cost is what an unknown one costs; among equals, what costs most.
    pub(crate) fn settle(&mut self) {
        let most = self
            .kinds
            .iter()
            .max_by_key(|(kind, count)| (**count, **kind));
        self.dummy_verifier =
            most.map_or_else(Verifier::dummy, |(kind, _)| Verifier::dummy_of(*kind));
    }
}
