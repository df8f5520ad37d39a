//! New connections: each gets a slot and a place in the node's counts, or is closed at once for a reason that is counted.
//!
//! Owns the earliest point at which load can be shed: nothing has been read from the client yet, nothing was allocated.
//! Where a limit is reached, a connection that has said nothing for a while gives its place to the newcomer; see
//! `strangers.rs`.

use std::net::SocketAddr;

use sluice_policy::ListenerId;

use crate::clock::Time;
use crate::metrics::Counter;
use crate::node::{Address, Permit, Refused, Scope, Table};
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
            Err(reason) => {
                let from = (listener, peer);
                self.note_turned_away(turn.now, Some(turn.snapshot), from, reason);
                self.turn_away(socket, peer, reason);
            }
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
        let newcomer = Newcomer {
            listener,
            listener_max: row.limits.connections_max,
            address: Address::from(peer.ip()),
            address_max: row.limits.connections_per_address_max,
        };
        let permit = newcomer
            .take_place(&self.table)
            .or_else(|refused| match newcomer.among(&self.table) {
                Some(among) if self.give_way(turn, among) => newcomer.take_place(&self.table),
                Some(_) | None => Err(refused),
            })
            .map_err(counter)?;
        // The slot comes last: it may be free by now.
        if self.slots.is_full() && !self.give_way(turn, Among::All) {
            self.table.release(permit);
            return Err(Counter::RefusedShard);
        }
        Ok(permit)
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
        if let Event::Accepted {
            listener,
            socket,
            peer,
        } = event
        {
            self.counters.add(Counter::ConnectionsAccepted, 1);
            let (now, reason) = (self.ring.now(), Counter::RefusedNoPolicy);
            self.note_turned_away(now, None, (ListenerId(listener.0), *peer), reason);
            self.turn_away(*socket, *peer, reason);
        }
    }
}

/// A connection that wants a place, and the limits of its listener.
struct Newcomer {
    listener: ListenerId,
    listener_max: u32,
    address: Address,
    address_max: u32,
}

impl Newcomer {
    fn take_place(&self, table: &Table) -> Result<Permit, Refused> {
        table.admit(
            self.listener,
            self.listener_max,
            self.address,
            self.address_max,
        )
    }

    /// Whose strangers are asked to give way: those that hold all that it needs; `None` when no one does.
    fn among(&self, table: &Table) -> Option<Among> {
        let leaver = table.who_makes_room(
            self.listener,
            self.listener_max,
            self.address,
            self.address_max,
        )?;
        Some(match (leaver.is_on_listener, leaver.is_of_address) {
            (false, false) => Among::All,
            (true, false) => Among::Listener(self.listener),
            (false, true) => Among::Address(self.address),
            (true, true) => Among::AddressOn(self.listener, self.address),
        })
    }
}

fn counter(refused: Refused) -> Counter {
    match refused {
        Refused::Connections(Scope::Node) => Counter::RefusedNode,
        Refused::Connections(Scope::Listener) => Counter::RefusedListener,
        Refused::Connections(Scope::Address | Scope::AddressOnNode) => Counter::RefusedAddress,
        Refused::Strangers(Scope::Node) => Counter::RefusedStrangersNode,
        Refused::Strangers(Scope::Listener) => Counter::RefusedStrangersListener,
        Refused::Strangers(Scope::Address | Scope::AddressOnNode) => {
            Counter::RefusedStrangersAddress
        }
    }
}
