//! Who may come with any client id. A broker knows a client by its id alone: whoever comes with the id of another client
//! ends its connection and gets its MQTT session, queued messages included [MQTT-3.1.4-3].

use super::Few;
use crate::Snapshot;

/// Users, and clients without a user name, whose ids are not bound; where there is someone to take a session from.
pub(super) fn review(snapshot: &Snapshot) -> Vec<String> {
    let listeners = snapshot.listeners();
    let takes_users = listeners.iter().any(|listener| !listener.ignores_usernames);
    let users = if takes_users { snapshot.users.len() } else { 0 };
    let anonymous = listeners.iter().filter(|listener| listener.anonymous);
    // Clients without a name are as many as want to be.
    let is_alone = users < 2 && anonymous.clone().next().is_none();
    if is_alone {
        return Vec::new();
    }
    let mut warnings = Vec::new();
    let mut unbound: Vec<&str> = snapshot
        .users
        .iter()
        .filter(|user| takes_users && user.client_id.is_none())
        .map(|user| &*user.name)
        .collect();
    unbound.sort_unstable();
    let mut few = Few::default();
    unbound.iter().for_each(|name| few.add(name, String::new));
    if few.count > 0 {
        warnings.push(format!(
            "{} of {users} users may come with any client id, so each of them can take over the session of any other \
             client; bind them with `client_id: ${{username}}` or a `client_id_pattern`: {}",
            few.count,
            few.text()
        ));
    }
    let mut few = Few::default();
    for listener in anonymous.filter(|listener| listener.client_id_pattern.is_none()) {
        few.add(&listener.name, String::new);
    }
    if few.count > 0 {
        warnings.push(format!(
            "clients without a user name may come with any client id, so each of them can take over the session of any \
             other client; give these listeners a `client_id.pattern`: {}",
            few.text()
        ));
    }
    warnings
}
