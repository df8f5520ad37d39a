//! Recent refusals in the words of the contract.
//!
//! Pure: what is known comes in, a message goes out.

use std::net::IpAddr;

use sluice_proto::v1;
use sluice_proto::v1::denial::UserKind;

use super::agent::Output;
use crate::control::DenialPage;
use crate::node::{DenialFilter, DenialLine, ShownUser};

/// What the control plane asks.
pub(super) fn question(list: v1::ListDenials) -> Output {
    Output::ListDenials {
        request: list.request,
        after: list.after.clone(),
        limit: list.limit,
        filter: filter(list),
    }
}

fn filter(list: v1::ListDenials) -> Result<DenialFilter, String> {
    let address = list.address.as_deref().map(str::parse::<IpAddr>);
    let address = address.transpose();
    DenialFilter {
        user: list.user.map(Into::into),
        client_id: list.client_id.map(Into::into),
        address: address.map_err(|_| "`address` is no IP address".to_owned())?,
        reason: list.reason.map(Into::into),
    }
    .checked()
}

/// What is answered.
pub(super) fn page(request: u64, page: &DenialPage) -> v1::DenialPage {
    v1::DenialPage {
        request,
        denials: page
            .lines
            .iter()
            .map(|(shard, unix_ms, line)| denial(*shard, *unix_ms, line))
            .collect(),
        next: page.next.to_string(),
        left_off: page.left_off,
        lost: page.lost,
        error: page.error.clone(),
    }
}

/// The same, when there is none.
pub(super) fn no_page(request: u64, error: &str) -> v1::DenialPage {
    v1::DenialPage {
        request,
        error: error.into(),
        ..v1::DenialPage::default()
    }
}

fn denial(shard: u16, unix_ms: u64, line: &DenialLine) -> v1::Denial {
    let (kind, user, (user_bytes, user_mark)) = match &line.user {
        ShownUser::Nobody => (UserKind::Nobody, "", (0, 0)),
        ShownUser::Verified(name) => (UserKind::Verified, &**name, (0, 0)),
        ShownUser::Claimed(name) => (UserKind::Claimed, &**name, (0, 0)),
        ShownUser::Hidden { bytes, mark } => (UserKind::Hidden, "", (*bytes, *mark)),
    };
    v1::Denial {
        unix_ms,
        peer: line.peer.to_string(),
        listener: line.listener.as_ref().into(),
        client_id: line.client_id.as_ref().into(),
        user_kind: kind.into(),
        user: user.into(),
        user_bytes,
        user_mark,
        action: line.act.name().into(),
        topic: line.topic.as_ref().into(),
        qos: line.qos.map(|qos| u32::from(qos.bits())),
        retain: line.retain,
        payload_bytes: line.payload_bytes,
        reason: line.reason.name().into(),
        rule: line.rule.as_ref().into(),
        clause: line.clause.into(),
        shard: shard.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use sluice_proto::Message;
    use sluice_wire::mqtt::QoS;

    use super::*;
    use crate::clock::Time;
    use crate::control::DENIALS_MAX;
    use crate::session::{Act, Reason};

    fn line(user: ShownUser<&str>, text: &str) -> DenialLine {
        DenialLine {
            at: Time(0),
            peer: SocketAddr::from(([192, 0, 2, 7], 4711)),
            listener: text.into(),
            client_id: text.into(),
            user: user.map(Into::into),
            act: Act::Publish,
            topic: text.into(),
            qos: Some(QoS::AtLeastOnce),
            retain: true,
            payload_bytes: Some(7),
            reason: Reason::DeniedByRule,
            clause: "",
            rule: text.into(),
        }
    }

    #[test]
    fn a_name_that_is_not_shown_is_not_sent() {
        for (user, kind, name, mark) in [
            (ShownUser::Nobody, UserKind::Nobody, "", 0),
            (ShownUser::Verified("a"), UserKind::Verified, "a", 0),
            (ShownUser::Claimed("a"), UserKind::Claimed, "a", 0),
            (
                ShownUser::Hidden { bytes: 9, mark: 5 },
                UserKind::Hidden,
                "",
                5,
            ),
        ] {
            let told = denial(3, 1000, &line(user, "x"));
            assert_eq!(
                (told.user_kind(), &*told.user, told.user_mark),
                (kind, name, mark)
            );
            assert_eq!((&*told.peer, told.shard), ("192.0.2.7:4711", 3));
            assert_eq!(
                (&*told.reason, &*told.action),
                ("denied_by_rule", "publish")
            );
            assert_eq!((told.qos, told.payload_bytes), (Some(1), Some(7)));
        }
    }

    /// The control plane takes messages of 4 MiB.
    #[test]
    fn the_longest_answer_fits_into_a_message() {
        // The longest escape of what has one byte, in 256 of them: nothing that is kept is longer.
        let text = "\\u{1f}".repeat(256);
        let lines = (0..2 * DENIALS_MAX)
            .map(|_| (0, 0, line(ShownUser::Claimed(&text), &text)))
            .collect();
        let all = DenialPage {
            lines,
            ..DenialPage::default()
        };
        let half = DenialPage {
            lines: all.lines[..DENIALS_MAX as usize].to_vec(),
            ..DenialPage::default()
        };
        assert!(page(1, &half).encoded_len() < 4 << 20);
    }

    #[test]
    fn an_address_or_a_reason_that_is_none_is_refused() {
        for (address, reason, is_good) in [
            ("10.0.0.3", "no_rule", true),
            ("::1", "credentials", true),
            ("10.0.0.300", "no_rule", false),
            ("10.0.0.3", "norule", false),
        ] {
            let list = v1::ListDenials {
                address: Some(address.into()),
                reason: Some(reason.into()),
                ..v1::ListDenials::default()
            };
            assert_eq!(filter(list).is_ok(), is_good, "{address} {reason}");
        }
    }
}
