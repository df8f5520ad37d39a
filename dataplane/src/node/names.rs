//! User names that may be shown. What a client names as its user may be a token or a password, so a name that was not
//! verified is shown only when it is that of a user in force; of any other the length is, and a mark that is the same for
//! the same name, and that only this process can make.

use std::hash::{BuildHasher, RandomState};

use sluice_policy::Snapshot;

use crate::session::User;

/// Makes the marks. Random, and kept nowhere.
#[derive(Clone, Debug, Default)]
pub struct NameKey(RandomState);

/// A user as it may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShownUser<T> {
    /// None was named.
    Nobody,
    /// The name was verified.
    Verified(T),
    /// A user in force has that name; that it was this one is only claimed.
    Claimed(T),
    /// No user in force has the name.
    Hidden {
        /// Its length.
        bytes: u32,
        /// See [`NameKey`].
        mark: u64,
    },
}

impl NameKey {
    /// What of a user may be shown.
    pub fn shown<'a>(&self, snapshot: Option<&Snapshot>, user: User<'a>) -> ShownUser<&'a str> {
        match user {
            User::Nobody => ShownUser::Nobody,
            User::Verified(name) => ShownUser::Verified(name),
            User::Claimed(name)
                if snapshot.is_some_and(|snapshot| snapshot.user(name).is_some()) =>
            {
                ShownUser::Claimed(name)
            }
            User::Claimed(name) => ShownUser::Hidden {
                bytes: u32::try_from(name.len()).unwrap_or(u32::MAX),
                mark: self.mark(name),
            },
        }
    }

    /// The mark of a name.
    pub fn mark(&self, name: &str) -> u64 {
        self.0.hash_one(name)
    }
}

impl<T> ShownUser<T> {
    /// The same with another kind of text.
    pub fn map<U>(self, text: impl FnOnce(T) -> U) -> ShownUser<U> {
        match self {
            Self::Nobody => ShownUser::Nobody,
            Self::Verified(name) => ShownUser::Verified(text(name)),
            Self::Claimed(name) => ShownUser::Claimed(text(name)),
            Self::Hidden { bytes, mark } => ShownUser::Hidden { bytes, mark },
        }
    }
}

impl<T: std::fmt::Display> std::fmt::Display for ShownUser<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nobody => Ok(()),
            Self::Verified(name) => name.fmt(f),
            Self::Claimed(name) => write!(f, "{name} (not verified)"),
            Self::Hidden { bytes, mark } => {
                write!(f, "(not shown: {bytes} bytes, mark {mark:016x})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_policy::Generation;

    use super::*;

    #[test]
    fn a_name_that_is_no_row_is_not_shown() {
        let document = "
listeners: [{name: mqtt, address: '127.0.0.1:0', upstream: broker}]
upstreams: [{name: broker, endpoints: ['tcp://127.0.0.1:1']}]
users: [{name: alice, networks: [127.0.0.1/32]}, {name: bob, networks: [127.0.0.1/32], enabled: false}]
";
        let snapshot = sluice_policy::compile(document, "test", Generation(1), None)
            .unwrap_or_else(|errors| panic!("{errors}"));
        let key = NameKey::default();
        let shown = |user| key.shown(Some(&snapshot), user);
        assert_eq!(shown(User::Nobody), ShownUser::Nobody);
        assert_eq!(shown(User::Verified("gone")), ShownUser::Verified("gone"));
        assert_eq!(shown(User::Claimed("alice")), ShownUser::Claimed("alice"));
        for secret in ["eyJhbGciOi.token", "bob"] {
            let hidden = shown(User::Claimed(secret));
            assert!(
                matches!(hidden, ShownUser::Hidden { bytes, mark } if bytes as usize == secret.len() && mark == key.mark(secret)),
                "{hidden:?}"
            );
            let other = NameKey::default().shown(Some(&snapshot), User::Claimed(secret));
            assert_ne!(hidden, other, "another process makes another mark");
        }
    }
}
