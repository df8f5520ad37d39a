//! What is asked of a shard's recent refusals, and what it answers.

use std::net::{IpAddr, SocketAddr};

use sluice_wire::mqtt::QoS;

use crate::clock::Time;
use crate::node::names::{NameKey, ShownUser};
use crate::session::{Act, Reason, ReasonKind};

/// Which refusals, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenialQuery {
    /// Only what came behind this one; `None`: the newest there are.
    pub after: Option<u64>,
    /// At most.
    pub limit: u32,
    /// Which.
    pub filter: DenialFilter,
}

/// Which refusals are listed: those that match all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenialFilter {
    /// Of this user, verified or claimed. A name that is not shown is found too.
    pub user: Option<Box<str>>,
    /// Of this client id.
    pub client_id: Option<Box<str>>,
    /// From this address.
    pub address: Option<IpAddr>,
    /// For a reason of this name, or of this kind.
    pub reason: Option<Box<str>>,
}

/// What was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenialList {
    /// In order of time.
    pub lines: Vec<DenialLine>,
    /// What to ask for next, to hear only of what is new.
    pub next: u64,
    /// Older ones that match and found no room in the answer.
    pub left_off: u64,
    /// Refusals that were dropped to make room for others before they expired; with `after`, only those behind it.
    pub lost: u64,
}

/// One refusal. All text is safe to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenialLine {
    /// When.
    pub at: Time,
    /// Where the client came from.
    pub peer: SocketAddr,
    /// Name of the listener.
    pub listener: Box<str>,
    /// Empty when not known.
    pub client_id: Box<str>,
    /// Its user.
    pub user: ShownUser<Box<str>>,
    /// What it wanted.
    pub act: Act,
    /// Topic name or filter; empty where there is none.
    pub topic: Box<str>,
    /// Of a message or filter.
    pub qos: Option<QoS>,
    /// Of a message.
    pub retain: bool,
    /// Of a message.
    pub payload_bytes: Option<u32>,
    /// Why it was refused.
    pub reason: Reason,
    /// The clause of the protocol that was broken; empty when none was.
    pub clause: &'static str,
    /// The rule that denied it; empty when none did.
    pub rule: Box<str>,
}

impl DenialFilter {
    /// The filter, unless there is no such reason: then nothing would ever be found. The error names all there are.
    pub fn checked(self) -> Result<Self, String> {
        let kinds = || ReasonKind::ALL.into_iter().map(ReasonKind::name);
        let Some(wanted) = &self.reason else {
            return Ok(self);
        };
        if kinds().chain(Reason::names()).any(|name| name == &**wanted) {
            return Ok(self);
        }
        let kinds: Vec<&str> = kinds().collect();
        let names: Vec<&str> = Reason::names().collect();
        Err(format!(
            "no such reason; kinds of reasons: {}; reasons: {}",
            kinds.join(", "),
            names.join(", ")
        ))
    }

    pub(super) fn takes_reason(&self, reason: Reason) -> bool {
        self.reason
            .as_deref()
            .is_none_or(|wanted| wanted == reason.name() || wanted == reason.kind().name())
    }

    pub(super) fn takes_address(&self, address: IpAddr) -> bool {
        self.address
            .is_none_or(|wanted| wanted.to_canonical() == address)
    }

    pub(super) fn takes_client_id(&self, client_id: &str, is_cut: bool) -> bool {
        self.client_id
            .as_deref()
            .is_none_or(|wanted| is_meant(wanted, client_id, is_cut))
    }

    pub(super) fn takes_user(&self, key: &NameKey, user: ShownUser<&str>, is_cut: bool) -> bool {
        let Some(wanted) = self.user.as_deref() else {
            return true;
        };
        match user {
            ShownUser::Nobody => false,
            ShownUser::Verified(name) | ShownUser::Claimed(name) => is_meant(wanted, name, is_cut),
            ShownUser::Hidden { mark, .. } => mark == key.mark(wanted),
        }
    }
}

/// What was cut off cannot be compared.
fn is_meant(wanted: &str, kept: &str, is_cut: bool) -> bool {
    wanted == kept || (is_cut && wanted.starts_with(kept))
}
