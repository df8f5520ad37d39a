//! New connections: each gets a slot and a place in the node's counts, or is closed at once for a reason that is counted.
//!
//! Owns the earliest point at which load can be shed: nothing has been read from the client yet, nothing was allocated.
//! Where a limit is reached, a connection that has said nothing for a while gives its place to the newcomer; see
//! `strangers.rs`.

use std::net::SocketAddr;

use sluice_policy::ListenerId;

use crate::clock::Time;
use crate::metrics::Counter;
use crate::node::{Address, Permit, Refused, Scope};
use crate::ring::{Event, KeepAlive, ListenSlot, Ring, SocketId};
use crate::session::{Session, Side};

use super::leg::Leg;
use super::slots::Open;
use super::strangers::Among;
use super::{Core, Turn};

impl<R: Ring> Core<R> {
    pub(super) fn accepted(
        &mut self,
        turn: Turn<'_>,
        listener: ListenSlot,
        socket: SocketId,
        peer: SocketAddr,
    ) {
        self.counters.add(Counter::ConnectionsAccepted, 1);
        let listener = ListenerId(listener.0);
        match self.admit(turn, listener, peer) {
            Ok(permit) => self.open(turn, listener, socket, peer, permit),
            Err(reason) => self.turn_away(socket, peer, reason),
        }
    }

    /// In order of what costs least to find out. A stranger gives way only to a newcomer that then gets in.
    fn admit(
        &mut self,
        turn: Turn<'_>,
        listener: ListenerId,
        peer: SocketAddr,
    ) -> Result<Permit, Counter> {
        if self.drain.is_some() {
            return Err(Counter::RefusedDraining);
        }
        if self.lag.at(turn.now) > self.limits.turn_time_max {
            return Err(Counter::RefusedLag);
        }
        if self.budget.is_tight() {
            return Err(Counter::RefusedMemory);
        }
        let Some(row) = turn.snapshot.listener(listener) else {
            return Err(Counter::RefusedListenerGone);
        };
        let limits = (
            row.limits.connections_max,
            row.limits.connections_per_address_max,
        );
        let address = Address::from(peer.ip());
        let permit = self
            .take_place(listener, address, limits)
            .or_else(|refused| {
                if self.give_way(turn, among(refused, listener, address)) {
                    self.take_place(listener, address, limits)
                } else {
                    Err(refused)
                }
            })
            .map_err(counter)?;
        // The slot comes last: it may be free by now.
        if self.slots.is_full() && !self.give_way(turn, Among::All) {
            self.table.release(permit);
            return Err(Counter::RefusedShard);
        }
        Ok(permit)
    }

    fn take_place(
        &self,
        listener: ListenerId,
        address: Address,
        (of_listener, of_address): (u32, u32),
    ) -> Result<Permit, Refused> {
        self.table.admit(listener, of_listener, address, of_address)
    }

    fn open(
        &mut self,
        turn: Turn<'_>,
        listener: ListenerId,
        socket: SocketId,
        peer: SocketAddr,
        permit: Permit,
    ) {
        if let Some(row) = turn.snapshot.listener(listener)
            && let Some(keep_alive) =
                KeepAlive::new(row.limits.tcp_keep_alive, row.limits.write_stall_timeout)
        {
            self.ring.keep_alive(socket, keep_alive);
        }
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
            peer: peer.ip(),
            listener,
            cell: None,
            kept_bytes: 0,
        };
        // `admit` has looked: there is a slot.
        if let Some(slot) = self.slots.insert(open) {
            self.estrange(slot);
            self.set_owner(socket, slot, Side::Downstream);
            self.settle(turn, slot, None);
        }
    }

    fn turn_away(&mut self, socket: SocketId, peer: SocketAddr, reason: Counter) {
        self.counters.add(reason, 1);
        self.notices.turned_away(reason, Address::from(peer.ip()));
        self.ring.close(socket);
    }

    /// What may come while there is no policy: nobody is let in.
    pub(super) fn refuse_event(&mut self, event: &Event) {
        if let Event::Accepted { socket, peer, .. } = event {
            self.counters.add(Counter::ConnectionsAccepted, 1);
            self.turn_away(*socket, *peer, Counter::RefusedNoPolicy);
        }
    }
}

/// Whose strangers are asked to give way: those that hold what the newcomer needs.
fn among(refused: Refused, listener: ListenerId, address: Address) -> Among {
    match refused {
        Refused::Connections(Scope::Node) | Refused::Strangers(Scope::Node) => Among::All,
        Refused::Connections(Scope::Listener) | Refused::Strangers(Scope::Listener) => {
            Among::Listener(listener)
        }
        Refused::Connections(Scope::Address) | Refused::Strangers(Scope::Address) => {
            Among::Address(address)
        }
    }
}

fn counter(refused: Refused) -> Counter {
    match refused {
        Refused::Connections(Scope::Node) => Counter::RefusedNode,
        Refused::Connections(Scope::Listener) => Counter::RefusedListener,
        Refused::Connections(Scope::Address) => Counter::RefusedAddress,
        Refused::Strangers(Scope::Node) => Counter::RefusedStrangersNode,
        Refused::Strangers(Scope::Listener) => Counter::RefusedStrangersListener,
        Refused::Strangers(Scope::Address) => Counter::RefusedStrangersAddress,
    }
}
