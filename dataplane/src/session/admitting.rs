//! What a session is to the policy: asked at CONNECT, when the broker names the client, and by every new generation; in shares
//! of a turn's work, because the answer may take long.
//!
//! Owns a session that waits for the answer. After CONNECT all that it does would ask the tables, and those of an older
//! generation, or of another name, judge it no more. So nothing is taken up meanwhile: what comes from either side is held
//! (`waiting.rs`), and what the shard tells is done when the answer is there. Payload of a message that was judged goes on.

use sluice_policy::{Generation, HalfAdmitted, Refusal, Refused, Who};
use sluice_wire::mqtt::{self, Connack, Packet, PacketKind, decode, encode_connack};

use super::lane::Route;
use super::{Cause, Context, Dialled, Identity, Output, Phase, Session, Side};
use crate::metrics::Counter;

/// See the file's header.
#[derive(Default)]
pub(super) struct Admitting {
    /// That is asked.
    generation: Generation,
    half: Option<Box<HalfAdmitted>>,
    /// What is done when the answer is there.
    then: Then,
}

/// What the shard, or the broker, said meanwhile.
#[derive(Default)]
struct Then {
    end: Option<Cause>,
    dialled: Option<Dialled>,
    /// The CONNACK that names the client; empty when it is not waited for.
    connack: Box<[u8]>,
}

impl Admitting {
    pub(super) fn heap_bytes(&self) -> usize {
        let half = self.half.as_deref();
        let half = half.map_or(0, |half| size_of::<HalfAdmitted>() + half.heap_bytes());
        size_of::<Self>() + half + self.then.connack.len()
    }
}

impl Session {
    /// True exactly when a session that was admitted waits for an answer.
    pub(super) fn is_admitting(&self) -> bool {
        let waits = |rare: &super::Rare| rare.admitting.is_some();
        self.rare.as_deref().is_some_and(waits) && self.is_judged()
    }

    /// Asks the connect rules of the snapshot at hand, and takes over its classes. `None` when that is gone on with in a
    /// later turn.
    pub(super) fn admit(&mut self, context: &mut Context<'_>) -> Option<Result<(), Refusal>> {
        let generation = context.snapshot.generation();
        let waiting = self.rare.as_mut().and_then(|rare| rare.admitting.as_mut());
        let waiting = waiting.filter(|admitting| admitting.generation == generation);
        let mut half = waiting.and_then(|admitting| admitting.half.take());
        let who = Who {
            listener: self.listener,
            address: self.peer,
            version: self.version,
            client_id: self.identity.client_id(),
            username: self.identity.username(),
        };
        let admitted = if self.is_proven_by_address && needs_password(context, who.username) {
            Some(Err(Refused::from(Refusal::Credentials)))
        } else if context.effort.is_used_up() {
            None
        } else {
            let snapshot = context.snapshot;
            snapshot.admit_within(&who, context.effort, &mut half)
        };
        let Some(admitted) = admitted else {
            let admitting = self.rare().admitting.get_or_insert_with(|| {
                context.counters.add(Counter::AdmissionWaited, 1);
                Box::default()
            });
            admitting.generation = generation;
            admitting.half = half;
            self.leave_work(context);
            return None;
        };
        let admission = match admitted {
            Ok(admission) => admission,
            Err(refused) => {
                self.note_refused(context, refused, None);
                return Some(Err(refused.refusal));
            }
        };
        self.note_admitted(context, &admission);
        self.rights.replace(admission.classes);
        self.generation = generation;
        Some(Ok(()))
    }

    /// The session waits for the answer no more.
    pub(super) fn end_admitting(&mut self) -> Option<Box<Admitting>> {
        self.rare.as_mut()?.admitting.take()
    }

    /// Another generation, or the name that the broker gave the client, judges a session that is under way. When there is an
    /// answer, what had to wait for it is done.
    pub(super) fn admit_again(&mut self, context: &mut Context<'_>) {
        let Some(admitted) = self.admit(context) else {
            return;
        };
        let waited = self.end_admitting();
        if let Err(refusal) = admitted {
            return self.refuse_admission(context, refusal);
        }
        // A will that has not gone upstream yet is stopped; a later one is looked at when the session ends.
        if self.phase == Phase::Dialling {
            self.admit_kept_will(context);
        }
        if let Some(waited) = waited {
            self.catch_up(context, &waited.then);
        }
    }

    fn catch_up(&mut self, context: &mut Context<'_>, then: &Then) {
        if let Some(cause) = then.end {
            self.finish(context, cause);
        }
        if let Some(dialled) = then.dialled {
            self.dialled(context, dialled);
        }
        if !then.connack.is_empty() && self.phase == Phase::Connack {
            self.go_on_with_connack(context, &then.connack);
        }
        self.take_up_held(context);
    }

    /// The broker calls the client by the name that stands in its identity now.
    pub(super) fn named(&mut self, context: &mut Context<'_>, connack: &Connack<'_>) -> Route {
        match self.admit(context) {
            Some(Ok(())) => self.welcome(context, connack),
            Some(Err(refusal)) => {
                self.refuse_admission(context, refusal);
                Route::Absorb
            }
            None => {
                let mut packet = Vec::new();
                if encode_connack(self.version, connack, &[], &mut packet).is_err() {
                    // It was decoded a moment ago.
                    self.end(context, Cause::Overload);
                } else if let Some(admitting) = self.rare().admitting.as_mut() {
                    admitting.then.connack = packet.into();
                }
                Route::Absorb
            }
        }
    }

    fn go_on_with_connack(&mut self, context: &mut Context<'_>, packet: &[u8]) {
        match decode(self.version, mqtt::Side::Server, packet) {
            Ok(Packet::Connack(connack)) => {
                let route = self.welcome(context, &connack);
                self.pass_copy(context, route, packet);
                self.went_on(context, Side::Upstream, PacketKind::Connack);
            }
            // It was encoded here.
            Ok(_) | Err(_) => self.end(context, Cause::Overload),
        }
    }

    /// Keeps the answer to a dial until there is one on the session. False: there is no need to.
    pub(super) fn is_dialled_later(&mut self, dialled: Dialled) -> bool {
        let Some(then) = self.then() else {
            return false;
        };
        then.dialled = Some(dialled);
        true
    }

    /// The same for an end: the will is to be judged by the answer. Only where memory is short there is no waiting, and a will
    /// that nothing has judged is not published.
    pub(super) fn ends_later(&mut self, cause: Cause) -> bool {
        if cause == Cause::Overload {
            return false;
        }
        let Some(then) = self.then() else {
            return false;
        };
        then.end = then.end.or(Some(cause));
        true
    }

    fn then(&mut self) -> Option<&mut Then> {
        if !self.is_judged() {
            return None;
        }
        let admitting = self.rare.as_mut()?.admitting.as_mut()?;
        Some(&mut admitting.then)
    }

    /// Asks for a share of a later turn; once until it comes.
    pub(super) fn leave_work(&mut self, context: &mut Context<'_>) {
        let rare = self.rare();
        if !std::mem::replace(&mut rare.is_queued, true) {
            context.out.list.push(Output::Later);
        }
    }

    /// Takes the name that the broker gave the client.
    pub(super) fn take_name(&mut self, client_id: &str) {
        self.identity = Identity::new(client_id, self.identity.username());
    }
}

/// True exactly when the user has got a password.
fn needs_password(context: &Context<'_>, username: Option<&str>) -> bool {
    let user = username.and_then(|name| context.snapshot.user(name));
    user.is_some_and(|user| user.verifier.is_some())
}
