//! What a shard counts: plain single-writer cells, read by the control thread on a tick. Never a macro on the hot path.
//!
//! Labels are closed: a counter is a variant of [`Counter`] with a fixed name and fixed label values.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often each rule decided.
pub mod rules;

pub use rules::{RuleCount, RuleCounts};

/// Declares the counters once: variant, metric name, labels. The table is the documentation and the exporter's source.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal { $($label:literal : $value:literal),* };)*) => {
        /// Everything a shard counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter { $($(#[doc = $doc])+ $variant),* }

        impl Counter {
            /// All counters, in order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            /// Prometheus name.
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name),* } }
            /// What it counts, in words: the text above its line.
            fn own_help(self) -> &'static str { match self { $(Self::$variant => concat!($($doc),+).trim_ascii()),* } }
            /// True exactly when it counts connections that were closed at accept, for one reason.
            pub fn is_refusal(self) -> bool { self.name() == "sluice_connections_refused_total" }
            /// Fixed label values.
            pub fn labels(self) -> &'static [(&'static str, &'static str)] {
                match self { $(Self::$variant => &[$(($label, $value)),*]),* }
            }
        }
    };
}

counters! {
    /// Connections accepted.
    ConnectionsAccepted => "sluice_connections_accepted_total" {};
    /// PUBLISH packets from clients that were forwarded.
    PublishForwarded => "sluice_publish_total" { "direction": "up", "result": "forwarded" };
    /// PUBLISH packets from clients that policy refused.
    PublishDenied => "sluice_publish_total" { "direction": "up", "result": "denied" };
    /// PUBLISH packets from the upstream that were forwarded.
    DeliveryForwarded => "sluice_publish_total" { "direction": "down", "result": "forwarded" };
    /// PUBLISH packets from the upstream that policy refused.
    DeliveryDenied => "sluice_publish_total" { "direction": "down", "result": "denied" };
    /// CONNECT packets received.
    ConnectReceived => "sluice_connect_received_total" {};
    /// Client ids that were assigned because a rule or the balancing needs one.
    ClientIdAssigned => "sluice_client_ids_assigned_total" {};
    /// Wills refused at CONNECT.
    WillDenied => "sluice_wills_total" { "result": "denied" };
    /// Wills kept from being published: forbidden by then, or suppressed by a drain.
    WillSuppressed => "sluice_wills_total" { "result": "suppressed" };
    /// Messages of clients refused: no rule allows them.
    DeniedNotAuthorized => "sluice_publish_denied_total" { "reason": "not_authorized" };
    /// Messages of clients refused: RETAIN.
    DeniedRetain => "sluice_publish_denied_total" { "reason": "retain" };
    /// Messages of clients refused: QoS.
    DeniedQos => "sluice_publish_denied_total" { "reason": "qos" };
    /// Messages of clients refused: length.
    DeniedPayload => "sluice_publish_denied_total" { "reason": "payload" };
    /// Deliveries dropped because the client takes no packet of that length.
    DeliveryTooLarge => "sluice_publish_total" { "direction": "down", "result": "too_large" };
    /// Filters of SUBSCRIBE that went upstream.
    SubscribeForwarded => "sluice_subscribe_filters_total" { "result": "forwarded" };
    /// Filters of SUBSCRIBE that were refused.
    SubscribeDenied => "sluice_subscribe_filters_total" { "result": "denied" };
    /// Work done in shares of turns, in nodes of the rule tables: sessions admitted and judged again, filters judged and read.
    WorkNodes => "sluice_work_nodes_total" {};
    /// Times a session waited for a later turn to be admitted, or to be judged again after a reload.
    AdmissionWaited => "sluice_admission_waited_total" {};
    /// Filters of SUBSCRIBE that went upstream although policy leaves out some of what they deliver.
    SubscribeNarrowed => "sluice_subscribe_narrowed_total" {};
    /// Times a SUBSCRIBE or UNSUBSCRIBE waited because its session had used up its allowance of such work.
    SubscribePaused => "sluice_subscribe_paused_total" {};
    /// Messages, wills and filters whose QoS was lowered.
    QosLowered => "sluice_edits_total" { "edit": "qos_lowered" };
    /// Messages and wills whose RETAIN flag was cleared.
    RetainStripped => "sluice_edits_total" { "edit": "retain_stripped" };
    /// Acknowledgements sent by the proxy in the place of a peer.
    AcknowledgementsOwned => "sluice_acknowledgements_owned_total" {};
    /// Packets of brokers that broke a rule and were passed on as what they can only have meant.
    BrokerPacketsMended => "sluice_broker_faults_total" { "outcome": "mended" };
    /// Packets of brokers that broke a rule and were dropped, deliveries with their acknowledgement.
    BrokerPacketsDropped => "sluice_broker_faults_total" { "outcome": "dropped" };
    /// PINGREQ sent upstream because everything of the client was absorbed.
    PingsOriginated => "sluice_pings_originated_total" {};
    /// Decisions that a shadow rule would have made otherwise.
    ShadowConnect => "sluice_shadow_total" { "action": "connect" };
    /// As above.
    ShadowPublish => "sluice_shadow_total" { "action": "publish" };
    /// As above.
    ShadowSubscribe => "sluice_shadow_total" { "action": "subscribe" };
    /// As above.
    ShadowReceive => "sluice_shadow_total" { "action": "receive" };
    /// Sessions ended; the cause of that name.
    EndedClientDisconnect => "sluice_sessions_ended_total" { "cause": "client_disconnect" };
    /// Sessions ended; the cause of that name.
    EndedClientGone => "sluice_sessions_ended_total" { "cause": "client_gone" };
    /// Sessions ended; the cause of that name.
    EndedUpstreamGone => "sluice_sessions_ended_total" { "cause": "upstream_gone" };
    /// Sessions ended; the cause of that name.
    EndedUpstreamDisconnect => "sluice_sessions_ended_total" { "cause": "upstream_disconnect" };
    /// Sessions ended; the cause of that name.
    EndedUpstreamRefused => "sluice_sessions_ended_total" { "cause": "upstream_refused" };
    /// Sessions ended; the cause of that name.
    EndedUpstreamUnavailable => "sluice_sessions_ended_total" { "cause": "upstream_unavailable" };
    /// Sessions ended; the cause of that name.
    EndedUpstreamClosed => "sluice_sessions_ended_total" { "cause": "upstream_closed" };
    /// Sessions ended; the cause of that name.
    EndedUpstreamStalled => "sluice_sessions_ended_total" { "cause": "upstream_stalled" };
    /// Sessions ended; the cause of that name.
    EndedViolation => "sluice_sessions_ended_total" { "cause": "violation" };
    /// Sessions ended; the cause of that name.
    EndedUpstreamViolation => "sluice_sessions_ended_total" { "cause": "upstream_violation" };
    /// Sessions ended; the cause of that name.
    EndedUnauthenticated => "sluice_sessions_ended_total" { "cause": "unauthenticated" };
    /// Sessions ended; the cause of that name.
    EndedDenied => "sluice_sessions_ended_total" { "cause": "denied" };
    /// Sessions ended; the cause of that name.
    EndedRefused => "sluice_sessions_ended_total" { "cause": "refused" };
    /// Sessions ended; the cause of that name.
    EndedListenerGone => "sluice_sessions_ended_total" { "cause": "listener_gone" };
    /// Sessions ended; the cause of that name.
    EndedBusy => "sluice_sessions_ended_total" { "cause": "busy" };
    /// Sessions ended; the cause of that name.
    EndedConnectTimeout => "sluice_sessions_ended_total" { "cause": "connect_timeout" };
    /// Sessions ended; the cause of that name.
    EndedGaveWay => "sluice_sessions_ended_total" { "cause": "gave_way" };
    /// Sessions ended; the cause of that name.
    EndedPacketTimeout => "sluice_sessions_ended_total" { "cause": "packet_timeout" };
    /// Sessions ended; the cause of that name.
    EndedKeepAlive => "sluice_sessions_ended_total" { "cause": "keep_alive" };
    /// Sessions ended; the cause of that name.
    EndedWriteStall => "sluice_sessions_ended_total" { "cause": "write_stall" };
    /// Sessions ended; the cause of that name.
    EndedKicked => "sluice_sessions_ended_total" { "cause": "kicked" };
    /// Sessions ended; the cause of that name.
    EndedKeptOut => "sluice_sessions_ended_total" { "cause": "kept_out" };
    /// Sessions ended; the cause of that name.
    EndedDrained => "sluice_sessions_ended_total" { "cause": "drained" };
    /// Sessions ended; the cause of that name.
    EndedClientNoRoom => "sluice_sessions_ended_total" { "cause": "client_no_room" };
    /// Sessions ended; the cause of that name.
    EndedOverload => "sluice_sessions_ended_total" { "cause": "overload" };
    /// Connections closed at once: the shard drains.
    RefusedDraining => "sluice_connections_refused_total" { "reason": "draining" };
    /// Connections closed at once: turns take too long.
    RefusedLag => "sluice_connections_refused_total" { "reason": "loop_lag" };
    /// Connections closed at once: every slot of the shard is taken.
    RefusedShard => "sluice_connections_refused_total" { "reason": "shard_full" };
    /// Connections closed at once: the budget for backlogs is exhausted.
    RefusedMemory => "sluice_connections_refused_total" { "reason": "memory" };
    /// Connections closed at once: the current policy has no such listener.
    RefusedListenerGone => "sluice_connections_refused_total" { "reason": "listener_gone" };
    /// Connections closed at once: the limit of the node.
    RefusedNode => "sluice_connections_refused_total" { "reason": "node_full" };
    /// Connections closed at once: the limit of the listener.
    RefusedListener => "sluice_connections_refused_total" { "reason": "listener_full" };
    /// Connections closed at once: the limit of the address.
    RefusedAddress => "sluice_connections_refused_total" { "reason": "address_full" };
    /// Connections closed at once: the node's limit on those without a CONNECT is reached, and none may give way yet.
    RefusedStrangersNode => "sluice_connections_refused_total" { "reason": "strangers_node" };
    /// Connections closed at once: the same for the listener.
    RefusedStrangersListener => "sluice_connections_refused_total" { "reason": "strangers_listener" };
    /// Connections closed at once: the same for the address.
    RefusedStrangersAddress => "sluice_connections_refused_total" { "reason": "strangers_address" };
    /// Connections closed before their CONNECT came, to make room for another.
    StrangersGaveWay => "sluice_strangers_gave_way_total" {};
    /// Connections closed at once: there is no policy yet.
    RefusedNoPolicy => "sluice_connections_refused_total" { "reason": "no_policy" };
    /// Accepting failed: no descriptor, no memory, no slot.
    AcceptFailed => "sluice_accept_failed_total" {};
    /// Connections to upstreams begun.
    DialAttempts => "sluice_dial_total" { "result": "begun" };
    /// Connections to upstreams that failed or took too long.
    DialFailed => "sluice_dial_total" { "result": "failed" };
    /// Connections to upstreams not begun: no socket left on the shard.
    DialNoSocket => "sluice_dial_total" { "result": "no_socket" };
    /// CONNECTs that an endpoint gave no usable answer to, by reason.
    UnansweredSilent => "sluice_connect_unanswered_total" { "reason": "no_connack" };
    /// CONNECTs that an endpoint gave no usable answer to, by reason.
    UnansweredClosed => "sluice_connect_unanswered_total" { "reason": "closed_before_connack" };
    /// CONNECTs that an endpoint gave no usable answer to, by reason.
    UnansweredUnavailable => "sluice_connect_unanswered_total" { "reason": "unavailable" };
    /// CONNECTs that an endpoint gave no usable answer to, by reason.
    UnansweredBroken => "sluice_connect_unanswered_total" { "reason": "not_mqtt" };
    /// CONNECTs sent to a second endpoint because the first gave no usable answer.
    SecondChances => "sluice_connect_second_chances_total" { "result": "taken" };
    /// CONNECTs that could not be kept for a second endpoint: the shard's room for them was full.
    SecondChanceNoRoom => "sluice_connect_second_chances_total" { "result": "no_room" };
    /// Sessions sent to another endpoint than the one their client id belongs to.
    DialFailover => "sluice_dial_failover_total" {};
    /// Sessions sent to another endpoint than their client id belongs to, whose client wants MQTT state kept that may not be there.
    DialFailoverKept => "sluice_dial_failover_kept_total" {};
    /// Passwords not verified: too many at once, or the mailbox was full.
    AuthenticateRefused => "sluice_authenticate_refused_total" {};
    /// Answers about passwords that came after the session had ended.
    AuthenticateLate => "sluice_authenticate_late_total" {};
    /// Bytes from clients.
    ReceivedDownstream => "sluice_received_bytes_total" { "leg": "downstream" };
    /// Bytes from brokers.
    ReceivedUpstream => "sluice_received_bytes_total" { "leg": "upstream" };
    /// Bytes to clients.
    SentDownstream => "sluice_sent_bytes_total" { "leg": "downstream" };
    /// Bytes to brokers.
    SentUpstream => "sluice_sent_bytes_total" { "leg": "upstream" };
    /// Sends that a socket took only in part: a backlog began.
    SendShort => "sluice_backlogs_total" { "event": "begun" };
    /// Connections ended because the budget for backlogs was exceeded.
    BacklogShed => "sluice_backlogs_total" { "event": "shed" };
    /// Connections closed although they had not taken all they were owed.
    CloseUnflushed => "sluice_backlogs_total" { "event": "cut_off" };
}

/// One sentence for each name that several counters share, because a page of metrics has one HELP for each name.
const SHARED_HELP: &[(&str, &str)] = &[
    (
        "sluice_publish_total",
        "PUBLISH packets of clients (up) and of brokers (down), by what became of them.",
    ),
    (
        "sluice_wills_total",
        "Wills that were not let through, by whether that was at CONNECT or when the session ended.",
    ),
    (
        "sluice_publish_denied_total",
        "PUBLISH packets of clients that policy refused, by reason.",
    ),
    (
        "sluice_subscribe_filters_total",
        "Topic filters of SUBSCRIBE packets, by whether they went upstream.",
    ),
    (
        "sluice_edits_total",
        "Messages, wills and filters that policy let through with a change, by the change.",
    ),
    (
        "sluice_broker_faults_total",
        "Packets of brokers that broke a rule of MQTT without ending the session, by what became of them.",
    ),
    (
        "sluice_shadow_total",
        "Decisions that a shadow rule would have made otherwise, by action.",
    ),
    (
        "sluice_sessions_ended_total",
        "Sessions that ended, by cause.",
    ),
    (
        "sluice_connections_refused_total",
        "Client connections that were closed as soon as they were accepted, by reason.",
    ),
    (
        "sluice_dial_total",
        "Connections to upstream endpoints that were begun, failed, or found no free socket.",
    ),
    (
        "sluice_connect_unanswered_total",
        "CONNECT packets that an endpoint gave no usable answer to, by reason.",
    ),
    (
        "sluice_connect_second_chances_total",
        "CONNECT packets that went to a second endpoint after the first gave no usable answer, or could not be kept for one.",
    ),
    (
        "sluice_backlogs_total",
        "Backlogs of bytes that a socket did not take, by whether one began, was shed, or was cut off by a close.",
    ),
    (
        "sluice_received_bytes_total",
        "Bytes of MQTT received from clients (downstream) and from brokers (upstream).",
    ),
    (
        "sluice_sent_bytes_total",
        "Bytes of MQTT handed to the sockets of clients (downstream) and of brokers (upstream).",
    ),
];

impl Counter {
    /// What the counters of this name count, in one sentence.
    pub fn help(self) -> &'static str {
        let shared = SHARED_HELP.iter().find(|(name, _)| *name == self.name());
        shared.map_or_else(|| self.own_help(), |(_, help)| help)
    }
}

/// One shard's counters. Written by that shard only, so an addition is a load and a store.
pub struct Counters {
    cells: [AtomicU64; Counter::ALL.len()],
    /// Longest turn since somebody took it.
    turn_max_micros: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            cells: [const { AtomicU64::new(0) }; Counter::ALL.len()],
            turn_max_micros: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// Adds `n`. Only the owning shard may call this.
    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        if let Some(cell) = self.cells.get(counter as usize) {
            cell.store(
                cell.load(Ordering::Relaxed).wrapping_add(n),
                Ordering::Relaxed,
            );
        }
    }

    /// A turn of the event loop took so long. Only the owning shard may call this.
    #[inline]
    pub fn took_turn(&self, micros: u64) {
        // One that is taken in between is told twice; none is lost.
        if micros > self.turn_max_micros.load(Ordering::Relaxed) {
            self.turn_max_micros.store(micros, Ordering::Relaxed);
        }
    }

    /// The longest turn since the last call, in microseconds. For one reader.
    pub fn take_turn_max(&self) -> u64 {
        self.turn_max_micros.swap(0, Ordering::Relaxed)
    }

    /// The value, from any thread.
    pub fn read(&self, counter: Counter) -> u64 {
        self.cells
            .get(counter as usize)
            .map_or(0, |cell| cell.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_counters_share_have_one_sentence_for_all_of_them() {
        let with = |name: &str| {
            Counter::ALL
                .iter()
                .filter(|counter| counter.name() == name)
                .count()
        };
        for &counter in Counter::ALL {
            let name = counter.name();
            let has_own = SHARED_HELP
                .iter()
                .filter(|(shared, _)| *shared == name)
                .count();
            assert_eq!(
                has_own,
                usize::from(with(name) > 1),
                "{name} in SHARED_HELP"
            );
        }
        for (name, _) in SHARED_HELP {
            assert!(with(name) > 1, "{name} is no name of several counters");
        }
    }

    #[test]
    fn the_longest_turn_is_that_since_it_was_taken_last() {
        let counters = Counters::default();
        assert_eq!(counters.take_turn_max(), 0);
        for micros in [3, 40, 5] {
            counters.took_turn(micros);
        }
        assert_eq!(counters.take_turn_max(), 40, "not faded, not the last");
        counters.took_turn(5);
        assert_eq!(counters.take_turn_max(), 5, "begun anew");
        assert_eq!(counters.take_turn_max(), 0);
    }
}
