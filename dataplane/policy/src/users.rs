//! The enabled users, and what is known of all of them together: kept up to date one user at a time, so that a change costs
//! that user.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Password, UserModel};
use crate::password::{HashError, Kind, Verifier};
use crate::tables::shared::Sharded;
use crate::{User, document};

/// How many users a warning names.
const NAMED_MAX: usize = 20;

/// See the file's header.
#[derive(Clone, Debug)]
pub(crate) struct Users {
    by_name: Sharded<Box<str>, Arc<User>>,
    /// How many hashes cost what.
    kinds: Arc<BTreeMap<Kind, usize>>,
    /// Users who may come with some client ids only.
    bound: usize,
    /// Users whom their address alone lets in.
    without_password: usize,
    /// Enabled ones who are not there, because what is stored as their password hash is none.
    locked_out: Arc<LockedOut>,
    dummy_verifier: Verifier,
}

impl Users {
    /// The enabled ones of these.
    pub(crate) fn new(users: impl Iterator<Item = UserModel>) -> Self {
        let mut all = Self {
            by_name: Sharded::with_capacity(users.size_hint().1.unwrap_or(0)),
            kinds: Arc::default(),
            bound: 0,
            without_password: 0,
            locked_out: Arc::default(),
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

    /// Users whose stored hashes are none.
    pub(crate) fn locked_out(&self) -> &LockedOut {
        &self.locked_out
    }

    /// That there are users without a password, and who. Looks at all users when there is one.
    pub(crate) fn password_warning(&self) -> Option<String> {
        if self.without_password == 0 {
            return None;
        }
        let without = self.iter().filter(|user| user.verifier.is_none());
        let mut names: Vec<&str> = without.map(|user| &*user.name).collect();
        names.sort_unstable();
        let more = names.len().saturating_sub(NAMED_MAX);
        let named = names.iter().take(NAMED_MAX);
        let named: Vec<String> = named
            .map(|name| format!("`{}`", document::shown(name)))
            .collect();
        let more = match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "without a password, by their address (`networks`) alone, come in: {}{more}",
            named.join(", ")
        ))
    }

    /// Puts a user in, or another one under the name. [`Self::settle`] must follow.
    pub(crate) fn set(&mut self, user: UserModel) {
        if !user.enabled {
            return self.remove(&user.name);
        }
        let verifier = match user.password {
            Password::Hash(verifier) => Some(verifier),
            Password::Absent => None,
            Password::Broken { error, .. } => {
                self.remove(&user.name);
                Arc::make_mut(&mut self.locked_out).note(user.name, error);
                return;
            }
        };
        let user = User {
            name: user.name,
            verifier,
            groups: user.groups.into(),
            client_id: user.client_id,
            networks: user.networks,
        };
        self.replace(&user.name.clone(), Some(Arc::new(user)));
    }

    /// Takes a user out. [`Self::settle`] must follow.
    pub(crate) fn remove(&mut self, name: &str) {
        self.replace(name, None);
    }

    fn replace(&mut self, name: &str, user: Option<Arc<User>>) {
        if self.locked_out.by_name.contains_key(name) {
            Arc::make_mut(&mut self.locked_out).by_name.remove(name);
        }
        let after = user.clone();
        let before = self
            .by_name
            .update(name.into(), |slot| std::mem::replace(slot, user));
        if let Some(user) = after {
            match &user.verifier {
                Some(verifier) => {
                    let kinds = Arc::make_mut(&mut self.kinds);
                    *kinds.entry(verifier.kind()).or_default() += 1;
                }
                None => self.without_password += 1,
            }
            self.bound += usize::from(user.client_id.is_some());
        }
        if let Some(user) = before {
            match &user.verifier {
                Some(verifier) => self.forget_kind(verifier.kind()),
                None => self.without_password -= 1,
            }
            self.bound -= usize::from(user.client_id.is_some());
        }
    }

    fn forget_kind(&mut self, kind: Kind) {
        let kinds = Arc::make_mut(&mut self.kinds);
        if let Some(count) = kinds.get_mut(&kind) {
            *count -= 1;
            if *count == 0 {
                kinds.remove(&kind);
            }
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

/// Users who cannot log in because of what is stored as their password hash.
#[derive(Clone, Debug, Default)]
pub struct LockedOut {
    by_name: BTreeMap<Box<str>, HashError>,
}

impl LockedOut {
    pub(crate) fn note(&mut self, name: Box<str>, error: HashError) {
        self.by_name.insert(name, error);
    }

    pub(crate) fn why(&self, name: &str) -> Option<&HashError> {
        self.by_name.get(name)
    }

    /// A sentence for each, in the order of their names; for many, the rest is only counted.
    pub fn warnings(&self) -> Vec<String> {
        let named = self.by_name.iter().take(NAMED_MAX);
        let mut warnings: Vec<String> = named
            .map(|(name, error)| {
                let name = document::shown(name);
                format!(
                    "user `{name}` cannot log in: the stored `password_hash` cannot be used: {error}"
                )
            })
            .collect();
        let more = self.by_name.len() - warnings.len();
        if more > 0 {
            warnings.push(format!("{more} more users cannot log in for such reasons"));
        }
        warnings
    }
}
