//! Calls that were refused at the door: why, how often, and one log line for each as long as they are few.
//!
//! Answers say nothing about why; logs and counters do. Never holds a token.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};

use super::peer::Peer;

/// Security events written at once, at most; then one for each [`EVENT_EVERY`]. Whoever knocks all night fills no disk.
const EVENTS_MAX: u32 = 20;
const EVENT_EVERY: Duration = Duration::from_millis(500);

/// What a node hears whose join token does not work, whatever is wrong with it.
pub(crate) const JOIN_TOKEN_REFUSED: &str = "the join token is unknown, expired, revoked or used up; an operator makes \
     another with `sluicectl token join create`";

const REFUSED: &str = "sluice_control_refused_total";

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No `authorization`.
    NoToken,
    /// It is not one of ours by its look.
    Malformed,
    /// There is none with that id, or no such node.
    Unknown,
    /// The id is right and the secret is not.
    WrongSecret,
    /// It was revoked.
    Revoked,
    /// It has expired.
    Expired,
    /// Others could have listened.
    Plaintext,
    /// The role is not enough.
    Role,
}

impl Refusal {
    const ALL: [Self; 8] = [
        Self::NoToken,
        Self::Malformed,
        Self::Unknown,
        Self::WrongSecret,
        Self::Revoked,
        Self::Expired,
        Self::Plaintext,
        Self::Role,
    ];

    /// Label of the counter.
    fn name(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::WrongSecret => "wrong_secret",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Plaintext => "plaintext",
            Self::Role => "role",
        }
    }

    /// The answer. One text for all that is wrong with a token.
    fn status(self) -> Status {
        match self {
            Self::NoToken
            | Self::Malformed
            | Self::Unknown
            | Self::WrongSecret
            | Self::Revoked
            | Self::Expired => Status::unauthenticated(
                "a token that works is needed, in the metadata `authorization: Bearer <token>`",
            ),
            Self::Plaintext => Status::failed_precondition(
                "a token may not travel over plaintext beyond loopback, and this one should be replaced: \
                 others may have read it; use TLS (--tls-cert and --tls-key of the control plane)",
            ),
            Self::Role => Status::permission_denied("the token's role is not enough"),
        }
    }
}

/// The answer to a node that joins: its token stands in the message, not in the metadata.
pub(super) fn of_joining(answer: Status) -> Status {
    if answer.code() == Code::Unauthenticated {
        return Status::unauthenticated(JOIN_TOKEN_REFUSED);
    }
    answer
}

/// Counts and writes refusals.
pub(super) struct Refusals {
    events: Mutex<Option<Budget>>,
}

impl Refusals {
    /// None yet, and each reason is shown.
    pub(super) fn new() -> Self {
        for refusal in Refusal::ALL {
            metrics::counter!(REFUSED, "reason" => refusal.name()).increment(0);
        }
        Self {
            events: Mutex::default(),
        }
    }

    /// Counts, writes, and gives the answer. `who` is a name or a public id, never a token.
    pub(super) fn refuse(
        &self,
        refusal: Refusal,
        peer: Option<&Peer>,
        who: &str,
        request_id: &str,
    ) -> Status {
        metrics::counter!(REFUSED, "reason" => refusal.name()).increment(1);
        if let Some(left_off) = self.may_write(Instant::now()) {
            tracing::warn!(
                target: "sluice::security",
                reason = refusal.name(),
                peer = peer.map(|peer| tracing::field::display(peer.address)),
                who,
                request_id,
                left_off,
                "a call was refused"
            );
        }
        refusal.status()
    }

    /// How many events were left off before this one; `None`: this one is, too.
    fn may_write(&self, now: Instant) -> Option<u64> {
        // Nothing panics between lock and unlock.
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.get_or_insert_with(|| Budget::new(now)).take(now)
    }
}

/// A bucket of events.
struct Budget {
    left: u32,
    filled_at: Instant,
    left_off: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            left: EVENTS_MAX,
            filled_at: now,
            left_off: 0,
        }
    }

    fn take(&mut self, now: Instant) -> Option<u64> {
        let periods = now.duration_since(self.filled_at).as_millis() / EVENT_EVERY.as_millis();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        if self.left.saturating_add(periods) >= EVENTS_MAX {
            (self.left, self.filled_at) = (EVENTS_MAX, now);
        } else {
            self.left += periods;
            self.filled_at += EVENT_EVERY * periods;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.left_off))
            }
            None => {
                self.left_off += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_writes_few_lines() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        let written = (0..1000).filter(|_| budget.take(begin).is_some()).count();
        assert_eq!(written, EVENTS_MAX as usize);
        let later = begin + EVENT_EVERY;
        assert_eq!(budget.take(later), Some(980), "the next says how many");
        assert_eq!(budget.take(later), None);
        let much_later = begin + EVENT_EVERY * 1000;
        assert_eq!(budget.take(much_later), Some(1));
        assert_eq!(budget.left, EVENTS_MAX - 1, "no more than the bound");
    }

    #[test]
    fn answers_do_not_say_what_is_wrong_with_a_token() {
        let texts: Vec<_> = [
            Refusal::NoToken,
            Refusal::Malformed,
            Refusal::Unknown,
            Refusal::WrongSecret,
            Refusal::Revoked,
            Refusal::Expired,
        ]
        .map(|refusal| refusal.status().message().to_owned())
        .into();
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    }
}
