//! Reason Strings: the words of a refusal, for clients of version 5 whose listener gives them.
//!
//! Owns every text, and which of them a client may read. `short` says no more than the reason code does to one who knows it:
//! never whether a rule or its absence refused, nor whether it was the user name or the password. `rule` names the rule,
//! once the session is open. A client that wants no problem information hears them in CONNACK and DISCONNECT only
//! [MQTT-3.1.2-29], and none hears one that makes a packet longer than it takes [MQTT-3.2.2-19] [MQTT-3.4.2-2]
//! [MQTT-3.5.2-2] [MQTT-3.9.2-1] [MQTT-3.14.2-3].
//!
//! Nothing of this runs for a packet that passes, and where it is off a refusal costs one look at the listener.

use std::borrow::Cow;
use std::fmt::Write as _;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use sluice_policy::{Denial, Generation, ReasonStrings, RuleId};
use sluice_wire::mqtt::{
    Ack, Packet, PacketId, PacketKind, Properties, PropertiesBuf, Property, PropertyId, ReasonCode,
    Suback, TooLong, Version, encode,
};

use super::judging::Judged;
use super::{Cause, Context, Phase, Session};

/// What is shown of a rule's name at most, in bytes. Documents allow no more; what an earlier version stored may be longer.
const NAME_BYTES_MAX: usize = 128;
/// Filters of one SUBSCRIBE that are spoken of one by one.
const FILTERS_MAX: usize = 3;

/// Why a message or a filter was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Why {
    what: Refused,
    by: By,
}

/// Who refused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Of the session's generation.
    Rule(RuleId),
    /// No rule matches.
    Default,
    /// No rule was asked, or it is not known any more which one it was.
    Unknown,
}

/// What was wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// By policy.
    Denied(Denial),
    /// The broker does not take a packet of that length.
    TooLarge,
    /// A filter that is none.
    Malformed,
    /// One of too many filters.
    TooMany,
}

impl Why {
    pub(super) fn denied(denial: Denial, rule: Option<RuleId>) -> Self {
        Self {
            what: Refused::Denied(denial),
            by: rule.map_or(By::Default, By::Rule),
        }
    }

    /// No rule was asked.
    pub(super) fn alone(what: Refused) -> Self {
        Self {
            what,
            by: By::Unknown,
        }
    }

    fn text(self, context: &Context<'_>, mode: ReasonStrings) -> Option<Cow<'static, str>> {
        match mode {
            ReasonStrings::Off => None,
            ReasonStrings::Short => Some(self.short().into()),
            ReasonStrings::Rule => Some(self.with_rule(context)),
        }
    }

    fn short(self) -> &'static str {
        match self.what {
            Refused::Denied(Denial::NotAuthorized | Denial::TooComplex) => "not authorized",
            Refused::Denied(Denial::RetainRefused) => "retained messages are not allowed here",
            Refused::Denied(Denial::QosRefused) => "this QoS is not allowed here",
            Refused::Denied(Denial::PayloadTooLarge) => "the payload is too large",
            Refused::TooLarge => "the packet is longer than the broker takes",
            Refused::Malformed => "the topic filter is not valid",
            Refused::TooMany => "too many topic filters in one packet",
        }
    }

    /// The same with the rule's name, or that there is none.
    fn with_rule(self, context: &Context<'_>) -> Cow<'static, str> {
        let Refused::Denied(denial) = self.what else {
            return self.short().into();
        };
        if denial == Denial::TooComplex {
            return "too many rules match to judge it".into();
        }
        let name = match self.by {
            By::Rule(rule) => shown(context.snapshot.rule_name(rule)),
            By::Default if denial == Denial::NotAuthorized => return "no rule allows it".into(),
            By::Default | By::Unknown => return self.short().into(),
        };
        match denial {
            Denial::NotAuthorized | Denial::TooComplex => format!("denied by rule `{name}`"),
            Denial::RetainRefused => format!("rule `{name}` allows no retained messages"),
            Denial::QosRefused => format!("rule `{name}` does not allow this QoS"),
            Denial::PayloadTooLarge => format!("the payload is larger than rule `{name}` allows"),
        }
        .into()
    }
}

/// A name as a client may be shown it: without control characters, and of bounded length.
fn shown(name: &str) -> String {
    let cut = name.floor_char_boundary(NAME_BYTES_MAX);
    let (kept, rest) = name.split_at_checked(cut).unwrap_or((name, ""));
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut text: String = kept
        .chars()
        .map(|c| if is_hidden(c) { '\u{fffd}' } else { c })
        .collect();
    if !rest.is_empty() {
        text.push_str("...");
    }
    text
}

/// Why filters of one SUBSCRIBE were refused: as many different reasons as are told. Empty where none is.
#[derive(Default)]
pub(super) struct FilterReasons {
    /// The number of the first filter with each reason, counted from 1.
    first: Vec<(usize, Why)>,
    /// A further one was not noted.
    has_more: bool,
}

impl FilterReasons {
    pub(super) fn heap_bytes(&self) -> usize {
        self.first.capacity() * size_of::<(usize, Why)>()
    }

    fn note(&mut self, number: usize, why: Why) {
        if self.first.iter().any(|(_, known)| *known == why) {
            return;
        }
        if self.first.len() < FILTERS_MAX {
            self.first.push((number, why));
        } else {
            self.has_more = true;
        }
    }
}

/// Why the messages were refused whose answers wait for their turn.
#[derive(Default)]
pub(super) struct Waiting {
    by_id: HashMap<PacketId, Why, FixedState>,
    /// Whose rules are named.
    generation: Generation,
}

impl Waiting {
    pub(super) fn heap_bytes(&self) -> usize {
        self.by_id.capacity() * (size_of::<(PacketId, Why)>() + 1)
    }

    fn put(&mut self, generation: Generation, packet_id: PacketId, why: Why) {
        if self.generation != generation {
            // Numbers of rules mean nothing in another generation.
            for why in self.by_id.values_mut() {
                why.by = By::Unknown;
            }
            self.generation = generation;
        }
        self.by_id.insert(packet_id, why);
    }

    fn take(&mut self, generation: Generation, packet_id: PacketId) -> Option<Why> {
        let why = self.by_id.remove(&packet_id)?;
        let is_current = self.generation == generation;
        Some(if is_current {
            why
        } else {
            Why::alone(why.what)
        })
    }
}

impl Session {
    fn reason_strings(&self, context: &Context<'_>) -> ReasonStrings {
        let listener = context.snapshot.listener(self.listener);
        match (self.version, listener) {
            (Version::V5, Some(listener)) => listener.reason_strings,
            (Version::V31 | Version::V311 | Version::V5, _) => ReasonStrings::Off,
        }
    }

    /// Which the client hears in packets other than CONNACK and DISCONNECT.
    fn problem_information(&self, context: &Context<'_>) -> ReasonStrings {
        if self.wants_problems {
            self.reason_strings(context)
        } else {
            ReasonStrings::Off
        }
    }

    /// PUBACK or PUBREC that refuses a message, with its reason; `None` when that is not told.
    pub(super) fn refusal_saying(
        &self,
        context: &Context<'_>,
        kind: PacketKind,
        packet_id: PacketId,
        code: u8,
        why: Why,
    ) -> Option<Vec<u8>> {
        let text = why.text(context, self.problem_information(context))?;
        self.fitting(Properties::EMPTY, &text, |properties, out| {
            let ack = Ack {
                packet_id,
                code,
                properties,
            };
            let packet = if kind == PacketKind::Pubrec {
                Packet::Pubrec(ack)
            } else {
                Packet::Puback(ack)
            };
            encode(self.version, &packet, out)
        })
    }

    /// The answer to a refused message must wait: why it was refused is kept until then.
    pub(super) fn keep_reason(&mut self, context: &Context<'_>, packet_id: PacketId, why: Why) {
        if self.problem_information(context) != ReasonStrings::Off {
            let generation = self.generation;
            let reasons = self.rare().reasons.get_or_insert_default();
            reasons.put(generation, packet_id, why);
        }
    }

    /// What was kept for the message with this identifier. The memory goes with the last one.
    pub(super) fn take_reason(&mut self, packet_id: PacketId) -> Option<Why> {
        let reasons = &mut self.rare.as_mut()?.reasons;
        let why = reasons.as_mut()?.take(self.generation, packet_id);
        reasons.take_if(|reasons| reasons.by_id.is_empty());
        why
    }

    /// Notes why the filter behind those that were judged is refused.
    pub(super) fn note_filter(&self, context: &Context<'_>, judged: &mut Judged, why: Why) {
        if self.problem_information(context) != ReasonStrings::Off {
            judged.reasons.note(judged.codes.len() + 1, why);
        }
    }

    /// What is said of all refused filters of a SUBSCRIBE together: the reason when it is the same for all, else which filter
    /// was refused first for each. Their codes say the rest.
    pub(super) fn filters_text(
        &self,
        context: &Context<'_>,
        reasons: &FilterReasons,
    ) -> Option<Box<str>> {
        let mode = self.problem_information(context);
        let mut texts: Vec<(usize, Cow<'static, str>)> = Vec::new();
        for (number, why) in &reasons.first {
            let text = why.text(context, mode)?;
            if !texts.iter().any(|(_, known)| *known == text) {
                texts.push((*number, text));
            }
        }
        match texts.as_slice() {
            [] => None,
            [(_, text)] if !reasons.has_more => Some(text.as_ref().into()),
            texts => {
                let mut all = String::new();
                for (number, text) in texts {
                    let separator = if all.is_empty() { "" } else { "; " };
                    // Writing to a string cannot fail.
                    let _ = write!(all, "{separator}filter {number}: {text}");
                }
                if reasons.has_more {
                    all.push_str("; and others");
                }
                Some(all.into())
            }
        }
    }

    /// SUBACK with a Reason String of ours in the place of the broker's; `None` when the client does not take it.
    pub(super) fn suback_saying(&self, suback: &Suback<'_>, text: &str) -> Option<Vec<u8>> {
        self.fitting(suback.properties, text, |properties, out| {
            let suback = Suback {
                properties,
                ..suback.clone()
            };
            encode(self.version, &Packet::Suback(suback), out)
        })
    }

    /// What the client hears besides the code when its session ends. A rule is named only in a session that is open.
    pub(super) fn end_text(
        &self,
        context: &Context<'_>,
        cause: Cause,
        code: ReasonCode,
        why: Option<Why>,
    ) -> Option<Cow<'static, str>> {
        let mode = match self.reason_strings(context) {
            ReasonStrings::Rule if self.phase != Phase::Open => ReasonStrings::Short,
            mode @ (ReasonStrings::Off | ReasonStrings::Short | ReasonStrings::Rule) => mode,
        };
        match (mode, why) {
            (ReasonStrings::Off, _) => None,
            (_, Some(why)) => why.text(context, mode),
            (_, None) => Some(words_of_end(cause, code)),
        }
    }

    /// A packet with this Reason String, written by `write`; `None` when the client takes none of that length.
    pub(super) fn fitting(
        &self,
        properties: Properties<'_>,
        text: &str,
        write: impl FnOnce(Properties<'_>, &mut Vec<u8>) -> Result<(), TooLong>,
    ) -> Option<Vec<u8>> {
        let mut list = PropertiesBuf::new();
        let others = properties.iter();
        for property in others.filter(|property| property.id() != PropertyId::ReasonString) {
            list.push(property).ok()?;
        }
        list.push(Property::Text(PropertyId::ReasonString, text))
            .ok()?;
        let mut packet = Vec::new();
        write(list.view(), &mut packet).ok()?;
        self.is_taken(packet.len()).then_some(packet)
    }
}

/// Why a session ended, where no message was to blame. It never says whether it was the name or the password, or a rule or
/// none.
fn words_of_end(cause: Cause, code: ReasonCode) -> Cow<'static, str> {
    let words = match (cause, code) {
        (Cause::Violation(violation), _) => {
            let clause = violation.clause(Version::V5);
            return format!("{} [{clause}]", violation.name()).into();
        }
        (_, ReasonCode::RetainNotSupported) => "retained messages are not allowed here",
        (_, ReasonCode::QosNotSupported) => "this QoS is not allowed here",
        (_, ReasonCode::ReceiveMaximumExceeded) => "more messages in flight than were allowed",
        (_, ReasonCode::ClientIdentifierNotValid) => "the client identifier is not valid here",
        (_, ReasonCode::UnsupportedProtocolVersion) => "this protocol version is not accepted here",
        (_, ReasonCode::BadAuthenticationMethod) => "enhanced authentication is not available here",
        (_, ReasonCode::BadUserNameOrPassword) => "the user name or the password is wrong",
        (Cause::Denied, ReasonCode::PacketTooLarge) => "the payload is too large",
        (Cause::Denied | Cause::Refused | Cause::Unauthenticated, _) => "not authorized",
        (Cause::UpstreamGone | Cause::UpstreamClosed, _) => "the broker closed the connection",
        (Cause::UpstreamUnavailable | Cause::UpstreamRefused, _) => "the broker is not available",
        (Cause::UpstreamStalled, _) => "the broker does not answer in time",
        (Cause::UpstreamViolation(_), _) => "the broker broke the protocol",
        (Cause::ListenerGone, _) => "this listener is closed",
        (Cause::Busy, _) => "the server is busy",
        (Cause::ConnectTimeout | Cause::PacketTimeout, _) => "a packet did not end in time",
        (Cause::KeepAlive, _) => "nothing was heard within the keep alive",
        (Cause::Kicked, _) => "ended by an operator",
        (Cause::KeptOut, _) => "an operator keeps this client out for now",
        (Cause::Drained, _) => "the server is shutting down",
        (Cause::ClientNoRoom, _) => "a packet is longer than the client takes",
        (Cause::GaveWay | Cause::WriteStall | Cause::Overload, _) => {
            "a limit of the server was reached"
        }
        (Cause::ClientDisconnect | Cause::ClientGone | Cause::UpstreamDisconnect, _) => {
            "the session is over"
        }
    };
    words.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_what_a_terminal_would_act_on() {
        assert_eq!(shown("no secrets"), "no secrets");
        assert_eq!(
            shown("a\u{1b}[2Jb\u{202e}c\0"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}"
        );
        let long = "\u{e4}".repeat(100);
        assert_eq!(shown(&long), format!("{}...", "\u{e4}".repeat(64)));
    }

    #[test]
    fn a_rule_of_another_generation_is_not_named() {
        let rule = |number| Why {
            what: Refused::Denied(Denial::NotAuthorized),
            by: By::Rule(RuleId(number)),
        };
        let nameless = Why::alone(Refused::Denied(Denial::NotAuthorized));
        let id = |number| PacketId::new(number).unwrap();
        let mut waiting = Waiting::default();
        let (old, new) = (Generation(1), Generation(2));
        waiting.put(old, id(1), rule(5));
        waiting.put(old, id(2), rule(5));
        assert_eq!(waiting.take(old, id(1)), Some(rule(5)));
        waiting.put(new, id(3), rule(7));
        assert_eq!(waiting.take(new, id(2)), Some(nameless));
        assert_eq!(waiting.take(new, id(3)), Some(rule(7)));
        assert_eq!(waiting.take(new, id(3)), None);
        waiting.put(new, id(4), rule(7));
        assert_eq!(waiting.take(Generation(3), id(4)), Some(nameless));
    }
}
