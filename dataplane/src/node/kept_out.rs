//! Clients that an operator keeps out for a time, by client id or verified user.
//!
//! Owns the list and its bounds. The control thread changes it and gives every shard the new one; a shard asks it once for each
//! CONNECT that was admitted. It is in memory only: a restart forgets it. About 1 MiB at most, shared by all shards.

use std::time::Duration;

use hashbrown::HashMap;

use super::message::KickWho;
use crate::clock::Time;

/// Entries at once.
pub const ENTRIES_MAX: usize = 1_000;
/// Longest client id or user name that can be kept out.
pub const NAME_BYTES_MAX: usize = 1_024;
/// Longest time.
pub const TIME_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Why a client cannot be kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKeptOut {
    /// The list is full.
    #[error(
        "{ENTRIES_MAX} client ids and users are kept out already; let one in again (--keep-out 0s), or remove the user from the policy"
    )]
    Full,
    /// The name is long.
    #[error("a name of more than {NAME_BYTES_MAX} bytes cannot be kept out")]
    TooLong,
}

/// See the module documentation.
#[derive(Clone, Debug, Default)]
pub struct KeptOut {
    client_ids: Names,
    usernames: Names,
}

type Names = HashMap<Box<str>, Time, foldhash::fast::RandomState>;

impl KeptOut {
    /// Keeps out until then; a name that is there has its time changed. What has expired makes room.
    pub fn add(&mut self, who: &KickWho, until: Time, now: Time) -> Result<(), NotKeptOut> {
        self.client_ids.retain(|_, until| *until > now);
        self.usernames.retain(|_, until| *until > now);
        let is_full = self.client_ids.len() + self.usernames.len() >= ENTRIES_MAX;
        let (names, name) = self.of(who);
        if name.len() > NAME_BYTES_MAX {
            return Err(NotKeptOut::TooLong);
        }
        if is_full && !names.contains_key(name) {
            return Err(NotKeptOut::Full);
        }
        names.insert(name.into(), until);
        Ok(())
    }

    /// Lets in again.
    pub fn remove(&mut self, who: &KickWho) {
        let (names, name) = self.of(who);
        names.remove(name);
    }

    /// True exactly when this client may not come in at this time.
    pub fn is_out(&self, client_id: &str, username: Option<&str>, now: Time) -> bool {
        let is_in = |names: &Names, name: &str| names.get(name).is_some_and(|until| *until > now);
        is_in(&self.client_ids, client_id)
            || username.is_some_and(|name| is_in(&self.usernames, name))
    }

    /// Who is kept out, and for how long yet; in order of kind and name.
    pub fn list(&self, now: Time) -> Vec<(KickWho, Duration)> {
        let left = |until: &Time| (*until > now).then(|| until.since(now));
        let client_ids = self
            .client_ids
            .iter()
            .filter_map(|(name, until)| Some((KickWho::ClientId(name.clone()), left(until)?)));
        let usernames = self
            .usernames
            .iter()
            .filter_map(|(name, until)| Some((KickWho::Username(name.clone()), left(until)?)));
        let mut all: Vec<_> = client_ids.chain(usernames).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    fn of<'a>(&mut self, who: &'a KickWho) -> (&mut Names, &'a str) {
        match who {
            KickWho::ClientId(name) => (&mut self.client_ids, name),
            KickWho::Username(name) => (&mut self.usernames, name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Time {
        Time::default().after(Duration::from_secs(secs))
    }

    #[test]
    fn names_are_kept_out_by_kind_until_their_time() {
        let mut out = KeptOut::default();
        out.add(&KickWho::ClientId("c".into()), at(10), at(0))
            .expect("room");
        out.add(&KickWho::Username("u".into()), at(20), at(0))
            .expect("room");
        for (client_id, username, now, expected) in [
            ("c", None, 9, true),
            ("c", None, 10, false),
            ("c", Some("u"), 15, true),
            ("x", Some("u"), 20, false),
            ("u", Some("c"), 0, false),
            ("u", None, 0, false),
        ] {
            assert_eq!(
                out.is_out(client_id, username, at(now)),
                expected,
                "{client_id} {username:?} {now}"
            );
        }
        out.add(&KickWho::Username("u".into()), at(30), at(15))
            .expect("a longer time");
        let left = Duration::from_secs(5);
        assert_eq!(out.list(at(25)), [(KickWho::Username("u".into()), left)]);
        out.remove(&KickWho::Username("u".into()));
        assert_eq!(out.list(at(0)), []);
    }

    #[test]
    fn the_list_is_bounded_and_what_expired_makes_room() {
        let mut out = KeptOut::default();
        let name = |number: usize| KickWho::ClientId(format!("c{number}").into());
        for number in 0..ENTRIES_MAX {
            out.add(&name(number), at(10), at(0)).expect("room");
        }
        let one_more = KickWho::Username("u".into());
        assert_eq!(out.add(&one_more, at(10), at(9)), Err(NotKeptOut::Full));
        out.add(&name(3), at(11), at(9)).expect("it has its place");
        out.add(&one_more, at(20), at(10))
            .expect("the others have expired");
        assert_eq!(out.list(at(10)).len(), 2);
        let long = KickWho::ClientId("x".repeat(NAME_BYTES_MAX + 1).into());
        assert_eq!(out.add(&long, at(20), at(10)), Err(NotKeptOut::TooLong));
    }
}
