//! New connections: each gets a slot and a place in the node's counts, or is closed at once for a reason that is counted.
//!
//! Owns the earliest point at which load can be shed: nothing has been read from the client yet, nothing was allocated.

use std::net::IpAddr;

use sluice_policy::ListenerId;

use crate::clock::Time;
use crate::metrics::Counter;
use crate::node::{Address, Permit, Refused};
use crate::ring::{Event, ListenSlot, Ring, SocketId};
use crate::session::{Session, Side};

use super::leg::Leg;
use super::slots::Open;
use super::{Core, Turn};

impl<R: Ring> Core<R> {
    pub(super) fn accepted(
        &mut self,
        turn: Turn<'_>,
        listener: ListenSlot,
        socket: SocketId,
        peer: IpAddr,
    ) {
        self.counters.add(Counter::ConnectionsAccepted, 1);
        let listener = ListenerId(listener.0);
        match self.admit(turn, listener, peer) {
            Ok(permit) => self.open(turn, listener, socket, peer, permit),
            Err(reason) => self.turn_away(socket, reason),
        }
    }

    /// In order of what costs least to find out.
    fn admit(&self, turn: Turn<'_>, listener: ListenerId, peer: IpAddr) -> Result<Permit, Counter> {
        if self.drain.is_some() {
            return Err(Counter::RefusedDraining);
        }
        if self.lag.at(turn.now) > self.limits.loop_lag_max {
            return Err(Counter::RefusedLag);
        }
        if self.slots.is_full() {
            return Err(Counter::RefusedShard);
        }
        if self.budget.is_tight() {
            return Err(Counter::RefusedMemory);
        }
        let Some(row) = turn.snapshot.listener(listener) else {
            return Err(Counter::RefusedListenerGone);
        };
        self.table
            .admit(
                listener,
                row.limits.connections_max,
                Address::from(peer),
                row.limits.connections_per_address_max,
            )
            .map_err(|refused| match refused {
                Refused::Node => Counter::RefusedNode,
                Refused::Listener => Counter::RefusedListener,
                Refused::Address => Counter::RefusedAddress,
            })
    }

    fn open(
        &mut self,
        turn: Turn<'_>,
        listener: ListenerId,
        socket: SocketId,
        peer: IpAddr,
        permit: Permit,
    ) {
        let session = self
            .lent
            .with(turn, |context| Session::accepted(context, listener, peer));
        let open = Open {
            session: Some(session),
            down: Leg::connected(socket),
            up: Leg::none(),
            waiting: None,
            timer: Time(u64::MAX),
            opened: turn.now,
            permit: Some(permit),
            peer,
            listener,
            cell: None,
            kept_bytes: 0,
        };
        // `admit` has looked: there is a slot.
        if let Some(slot) = self.slots.insert(open) {
            self.set_owner(socket, slot, Side::Downstream);
            self.settle(turn, slot, None);
        }
    }

    fn turn_away(&mut self, socket: SocketId, reason: Counter) {
        self.counters.add(reason, 1);
        self.ring.close(socket);
    }

    /// What may come while there is no policy: nobody is let in.
    pub(super) fn refuse_event(&mut self, event: &Event) {
        if let Event::Accepted { socket, .. } = event {
            self.counters.add(Counter::ConnectionsAccepted, 1);
            self.turn_away(*socket, Counter::RefusedNoPolicy);
        }
    }
}
