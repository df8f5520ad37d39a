//! Who a session is: its client id, and the user name that was verified.
//!
//! Owns both texts, in one allocation. Says nothing about what they may do.

use sluice_policy::Vars;

/// Client id and verified user name in one allocation.
#[derive(Default)]
pub(super) struct Identity {
    text: Box<str>,
    client_id_bytes: u16,
    has_username: bool,
}

impl Identity {
    pub(super) fn new(client_id: &str, username: Option<&str>) -> Self {
        let mut text = String::with_capacity(client_id.len() + username.map_or(0, str::len));
        text.push_str(client_id);
        text.push_str(username.unwrap_or_default());
        Self {
            text: text.into_boxed_str(),
            // An MQTT string is at most 65,535 bytes long.
            client_id_bytes: u16::try_from(client_id.len()).unwrap_or(u16::MAX),
            has_username: username.is_some(),
        }
    }

    /// Heap behind it.
    pub(super) fn heap_bytes(&self) -> usize {
        self.text.len()
    }

    fn split(&self) -> (&str, &str) {
        self.text
            .split_at_checked(usize::from(self.client_id_bytes))
            .unwrap_or_default()
    }

    pub(super) fn client_id(&self) -> &str {
        self.split().0
    }

    pub(super) fn username(&self) -> Option<&str> {
        self.has_username.then(|| self.split().1)
    }

    pub(super) fn vars(&self) -> Vars<'_> {
        let (client_id, username) = self.split();
        Vars {
            client_id,
            username,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_splits_where_it_was_joined() {
        let both = Identity::new("dévice", Some("üser"));
        assert_eq!(both.client_id(), "dévice");
        assert_eq!(both.username(), Some("üser"));
        let anonymous = Identity::new("", None);
        assert_eq!(anonymous.client_id(), "");
        assert_eq!(anonymous.username(), None);
        assert_eq!(Identity::new("", Some("")).username(), Some(""));
    }
}
