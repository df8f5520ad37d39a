//! CONNACK: what the broker says about the session, with the limits of our hop.
//!
//! Owns the moment a session opens. A refusal of the broker is passed on as it is; a success is passed on with limits
//! that are the lower of the broker's and ours, and untouched when ours are not lower.

use sluice_wire::mqtt::{Connack, Property, PropertyEdit, PropertyId, Version, encode_connack};

use super::chance::Chance;
use super::lane::Route;
use super::{Cause, Context, Output, Phase, Session, Side, Unanswered, connect};

impl Session {
    /// CONNACK came.
    pub(super) fn connack(&mut self, context: &mut Context<'_>, connack: &Connack<'_>) -> Route {
        let unavailable = Unanswered::of_code(self.version, connack.code);
        if let Some(why) = unavailable {
            if self.goes_elsewhere(context, why) {
                return Route::Absorb;
            }
            self.leave_broker(context, why, false);
            return Route::Last(Cause::UpstreamRefused);
        }
        context.out.list.push(Output::Answered);
        self.end_chance();
        if connack.code != 0 {
            return Route::Last(Cause::UpstreamRefused);
        }
        if self.version != Version::V5 {
            return Route::Forward;
        }
        if let Some(client_id) = connack
            .properties
            .text(PropertyId::AssignedClientIdentifier)
        {
            self.take_name(client_id);
            return self.named(context, connack);
        }
        self.welcome(context, connack)
    }

    /// A success of version 5, with the limits of our hop.
    pub(super) fn welcome(&mut self, context: &mut Context<'_>, connack: &Connack<'_>) -> Route {
        let limits = self.connack_limits(context, connack);
        self.apply_limits(&limits);
        let mut edits = limits.edits();
        // Ours goes upstream as if it were the client's own, so the broker does not tell.
        let assigned = self
            .assigned_client_id
            .then(|| self.identity.client_id().to_owned());
        if let Some(client_id) = &assigned {
            edits.push(PropertyEdit::Set(Property::Text(
                PropertyId::AssignedClientIdentifier,
                client_id,
            )));
        }
        if edits.is_empty() {
            return Route::Forward;
        }
        if self.encode_to(context, Side::Downstream, |version, buffer| {
            encode_connack(version, connack, &edits, buffer)
        }) {
            Route::Replaced
        } else {
            Route::Absorb
        }
    }

    /// The limits of the client's hop: what the broker said, what we say.
    fn connack_limits(&self, context: &Context<'_>, connack: &Connack<'_>) -> HopLimits {
        let number = |id| connack.properties.number(id);
        let ours = context
            .snapshot
            .listener(self.listener)
            .map(|row| &row.limits);
        let keep_alive_max = ours.map_or(0, |limits| limits.keep_alive_secs_max);
        let server_keep_alive =
            number(PropertyId::ServerKeepAlive).map(|secs| u16::try_from(secs).unwrap_or(u16::MAX));
        let asked = server_keep_alive.unwrap_or(self.timers.keep_alive_secs());
        HopLimits {
            packet: Limit {
                theirs: number(PropertyId::MaximumPacketSize).unwrap_or(connect::PACKET_BYTES_MAX),
                ours: self.packet_bytes_max,
            },
            receive: Limit {
                theirs: number(PropertyId::ReceiveMaximum).unwrap_or(65_535),
                ours: u32::from(self.receive_max),
            },
            aliases: Limit {
                theirs: number(PropertyId::TopicAliasMaximum).unwrap_or(0),
                ours: ours.map_or(0, |limits| u32::from(limits.topic_alias_max)),
            },
            keep_alive_told: asked,
            keep_alive: connect::lower_keep_alive(self.version, asked, keep_alive_max),
        }
    }

    fn apply_limits(&mut self, limits: &HopLimits) {
        self.upward_bytes_max = limits.packet.lower();
        self.alias_max_up = u16::try_from(limits.aliases.lower()).unwrap_or(u16::MAX);
        self.timers.set_keep_alive(limits.keep_alive);
    }

    /// CONNACK said yes and was passed on.
    pub(super) fn opened(&mut self, context: &mut Context<'_>) {
        self.phase = Phase::Open;
        if let Some(rare) = self.rare.as_mut() {
            rare.chance = Chance::None;
        }
        self.timers.opened(context.now);
        self.down
            .set_packet_bytes_max(self.packet_bytes_max.min(self.upward_bytes_max));
    }
}

/// One limit as either end sees it.
#[derive(Clone, Copy)]
struct Limit {
    theirs: u32,
    ours: u32,
}

impl Limit {
    fn lower(self) -> u32 {
        self.theirs.min(self.ours)
    }

    fn is_ours_lower(self) -> bool {
        self.ours < self.theirs
    }
}

struct HopLimits {
    packet: Limit,
    receive: Limit,
    aliases: Limit,
    /// What the client goes by if CONNACK is not changed.
    keep_alive_told: u16,
    /// What it is to go by.
    keep_alive: u16,
}

impl HopLimits {
    /// What must be said otherwise than the broker said it.
    fn edits<'a>(&self) -> Vec<PropertyEdit<'a>> {
        let set = |id, number| PropertyEdit::Set(Property::Number(id, number));
        let mut edits = Vec::new();
        for (limit, id) in [
            (self.receive, PropertyId::ReceiveMaximum),
            (self.packet, PropertyId::MaximumPacketSize),
            (self.aliases, PropertyId::TopicAliasMaximum),
        ] {
            if limit.is_ours_lower() {
                edits.push(set(id, limit.ours));
            }
        }
        if self.keep_alive != self.keep_alive_told {
            edits.push(set(PropertyId::ServerKeepAlive, u32::from(self.keep_alive)));
        }
        edits
    }
}
