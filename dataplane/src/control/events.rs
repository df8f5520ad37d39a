//! What the control thread does about each thing that happens: one function each, called by the loop of
//! [`Control::run`].
//!
//! Nothing here waits: what takes long was sent to another thread or task and comes back as an event of its own.

use super::endpoints::{self, EndpointView};
use super::listeners::Listening;
use super::rules::Carried;
use super::*;
use crate::logging;
use crate::metrics::RuleCounts;

impl Control {
    /// Mail from the shards, a batch of each; the bell is rung again when some is left.
    pub(super) fn take_mail(&mut self) {
        let mut is_left = false;
        for index in 0..self.inboxes.len() {
            for taken in 0..MAIL_BATCH {
                let Some(message) = self.inboxes.get(index).and_then(Inbox::take) else {
                    break;
                };
                is_left |= taken + 1 == MAIL_BATCH;
                self.take_message(message);
            }
        }
        if is_left {
            self.mail.wake();
        }
    }

    fn take_message(&mut self, message: ToControl) {
        match message {
            ToControl::Authenticate {
                shard,
                session,
                peer,
                mut credentials,
            } => {
                let check = auth::Check {
                    user: std::mem::take(&mut credentials.username),
                    secret: Zeroizing::new(std::mem::take(&mut credentials.password)),
                    verifier: credentials.verifier.take(),
                };
                self.pool.submit(peer, Origin { shard, session }, check);
            }
            ToControl::Acknowledged { shard, generation } => {
                let is_active = self.apply.acknowledged(shard, generation);
                drop_apart(self.apply.take_outlived());
                let _ = self // nobody listens without a control plane
                    .acknowledged
                    .send(self.apply.status().shards.clone());
                if is_active {
                    let active = self.apply.status().active.as_ref();
                    let fleet_generation = active.and_then(|stage| stage.fleet_generation);
                    tracing::info!(
                        generation = generation.0,
                        fleet_generation,
                        "policy is active on every shard"
                    );
                    let status = format!("generation {} is active", generation.0);
                    self.notifier.tell(State::Ready, &status);
                }
            }
            ToControl::Counting {
                shard,
                generation,
                counts,
            } => {
                let carried = self.tallies.counting(shard, generation, counts);
                self.carry(carried);
            }
            ToControl::ListenFailed {
                shard,
                listener,
                error,
            } => {
                let name = self.listener_name(listener);
                tracing::error!(shard = shard.0, listener = %name, %error, "a shard cannot accept on its socket");
                let reason = format!(
                    "shard {} cannot accept on listener `{name}`: {error}",
                    shard.0
                );
                self.deaf.push((shard, listener, reason));
            }
            ToControl::Kicked {
                shard,
                request,
                sessions,
            } => self.kicked(shard, request, sessions),
            ToControl::Listed {
                shard,
                request,
                sessions,
                next,
            } => self.listed(shard, request, sessions, next),
            ToControl::Denials {
                shard,
                request,
                list,
            } => self.denials_listed(shard, request, list),
            ToControl::Reported {
                shard,
                request,
                latency,
                gauges,
            } => self.reported(shard, request, latency, gauges),
            ToControl::Decisions { shard, batch } => logging::decisions(shard.0, &batch),
            ToControl::Notices { shard, batch } => {
                logging::notices(shard.0, &batch);
                self.crowding.add(&batch.turned_away);
            }
            ToControl::Drained { shard, outcome } => {
                tracing::info!(
                    shard = shard.0,
                    sessions = outcome.sessions,
                    cut_off = outcome.cut_off,
                    "shard is drained"
                );
                if self.drain.is_none() {
                    self.rested(shard, outcome);
                } else if let Some(shard) = self.shards.get_mut(usize::from(shard.0)) {
                    shard.drained = Some(outcome);
                }
            }
        }
    }

    /// The housekeeping of every [`TICK`].
    pub(super) fn tick(&mut self) -> Option<End> {
        self.ticks += 1;
        self.table.set_logs_ended(logging::wants_ended());
        for link in self.links.iter() {
            link.flush();
        }
        self.pool.expire();
        if let Some(seen) = self.crowding.take(clock::monotonic()) {
            crowding::tell(&seen);
        }
        if let Some(seen) = self.pool.guessing() {
            auth::tell(&seen);
        }
        if self.ticks.is_multiple_of(TICKS_PER_PURGE) {
            self.pool.purge();
        }
        let is_beat = self.ticks.is_multiple_of(TICKS_PER_HEARTBEAT);
        if is_beat || self.rest.as_ref().is_some_and(Rest::is_waited_for) {
            self.ask_for_reports();
        }
        if is_beat {
            self.tell_outages();
        }
        let lookup_every = if self.resolved.is_incomplete() {
            TICKS_PER_LOOKUP_INCOMPLETE
        } else {
            TICKS_PER_LOOKUP
        };
        if self.ticks.is_multiple_of(lookup_every) {
            self.begin_lookup();
        }
        self.begin_compiling();
        self.answer_late_questions();
        self.end_decisions(clock::monotonic());
        match &self.drain {
            Some(drain) if clock::monotonic() >= drain.deadline => {
                tracing::warn!("the drain took longer than its time; ending");
                Some(End::Drained)
            }
            Some(_) | None => None,
        }
    }

    /// The endpoints of the snapshot in force; empty without one.
    pub(super) fn endpoints(&self) -> Vec<EndpointView> {
        self.apply
            .snapshot()
            .map(|snapshot| {
                let missing = self.resolved.missing(&snapshot);
                endpoints::endpoints(&snapshot, self.apply.directory(), &self.table, &missing)
            })
            .unwrap_or_default()
    }

    fn tell_outages(&mut self) {
        let endpoints = self.endpoints();
        outages::tell(&self.outages.changes(&endpoints));
    }

    // ---- policy

    pub(super) fn take_offer(&mut self, offer: Offer) {
        self.next_offer = Some(offer);
        self.begin_compiling();
    }

    /// Compiles the next offer, unless one is at work already, replaced snapshots pile up, or we are leaving.
    pub(super) fn begin_compiling(&mut self) {
        let has_room = self.apply.has_room() && self.tallies.has_room();
        if self.is_compiling || self.drain.is_some() || !has_room {
            return;
        }
        let Some(offer) = self.next_offer.take() else {
            return;
        };
        self.is_compiling = true;
        let source = offer.source();
        let fleet_generation = offer.fleet_generation();
        let generation = self.apply.desire(&source, fleet_generation);
        tracing::info!(
            generation = generation.0,
            fleet_generation,
            source,
            "compiling policy"
        );
        let (work, reply) = offer.into_parts();
        let previous = self.apply.snapshot();
        let known = self.resolved.clone();
        let done = self.attempts.0.clone();
        tokio::spawn(async move {
            let result = attempt(work, generation, previous, known).await;
            let attempt = Attempt {
                generation,
                result,
                reply,
            };
            // Fails only when the control thread is ending.
            let _ = done.send(attempt).await;
        });
    }

    pub(super) fn finish_attempt(&mut self, attempt: Attempt) {
        self.is_compiling = false;
        let generation = attempt.generation;
        if self.drain.is_some() {
            return; // nothing new is begun while leaving
        }
        let refused = match attempt.result {
            Ok((compiled, resolved)) => {
                self.apply.compiled(generation, &compiled.digest);
                self.deliver(compiled, resolved).err().map(Refusal::machine)
            }
            Err(refusal) => Some(refusal),
        };
        let outcome = match refused {
            Some(refusal) => {
                self.refuse(generation, refusal.lines.clone());
                Err(refusal)
            }
            None => {
                tracing::info!(
                    generation = generation.0,
                    "policy is delivered to the shards"
                );
                Ok(generation)
            }
        };
        if let Some(reply) = attempt.reply {
            let _ = reply.send(outcome); // who asked may have gone
        }
        self.begin_compiling();
    }

    fn deliver(&mut self, compiled: Compiled, resolved: Resolved) -> Result<(), String> {
        let Compiled {
            snapshot, warnings, ..
        } = compiled;
        let located = resolved.locate(&snapshot);
        let directory = Directory::build(self.apply.directory(), &self.table, located)
            .map_err(|error| error.to_string())?;
        let before = self.apply.listening();
        self.apply.deliver(Arc::clone(&snapshot), directory)?;
        let after = self.apply.listening();
        // A socket that was opened anew has not failed yet; one that is gone cannot any more.
        self.deaf.retain(|(_, id, _)| {
            let of = |list: &[Listening]| list.iter().find(|open| open.id() == *id).cloned();
            of(&after).is_some() && of(&before) == of(&after)
        });
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.delivered_at = clock::monotonic();
        let delivered = self.apply.status().delivered.as_ref();
        let fleet_generation = delivered.and_then(|stage| stage.fleet_generation);
        self.tallies.delivered(
            Arc::clone(&snapshot),
            fleet_generation,
            clock::unix_millis(),
        );
        self.dummy.follow(&snapshot);
        self.resolved = resolved;
        self.health.follow(&snapshot, self.apply.directory());
        Ok(())
    }

    // ---- counts of rules

    fn carry(&self, carried: Option<Carried>) {
        let Some(carried) = carried else {
            return;
        };
        let done = self.carried.0.clone();
        // Its end comes back as an event.
        drop(tokio::task::spawn_blocking(move || {
            priority::lower();
            // Fails only when the control thread is ending.
            let _ = done.blocking_send(carried.carry());
        }));
    }

    pub(super) fn finish_carrying(&mut self, counts: RuleCounts, to: Generation) {
        let (outlived, next) = self.tallies.carried(counts, to);
        if !outlived.is_empty() {
            // Not waited for.
            drop(tokio::task::spawn_blocking(move || {
                priority::lower();
                drop(outlived);
            }));
        }
        self.carry(next);
        self.begin_compiling();
    }

    fn refuse(&mut self, generation: Generation, errors: Vec<String>) {
        for error in &errors {
            tracing::error!(generation = generation.0, "{error}");
        }
        let active = self
            .apply
            .status()
            .delivered
            .as_ref()
            .map(|stage| stage.generation);
        let (said, status) = match active {
            Some(_) => (
                "policy is refused; what was in force stays",
                "the new policy was refused; the old one stays",
            ),
            None => (
                "policy is refused and none is in force: every device is refused",
                "the policy was refused and none is in force",
            ),
        };
        tracing::error!(
            generation = generation.0,
            errors = errors.len(),
            in_force = active,
            "{said}"
        );
        self.apply.reject(generation, errors);
        self.notifier.tell(State::Ready, status);
    }

    // ---- names

    fn begin_lookup(&mut self) {
        let Some(snapshot) = self.apply.snapshot() else {
            return;
        };
        let names = resolve::names(&snapshot);
        if self.is_looking_up || self.is_compiling || names.is_empty() {
            return;
        }
        self.is_looking_up = true;
        let known = self.resolved.clone();
        let done = self.lookups.0.clone();
        tokio::spawn(async move {
            let _ = done.send(resolve::resolve(names, known).await).await;
        });
    }

    pub(super) fn finish_lookup(&mut self, resolved: Resolved) {
        self.is_looking_up = false;
        let Some(snapshot) = self.apply.snapshot() else {
            return;
        };
        // A policy that arrived meanwhile has resolved its names itself.
        if resolved == self.resolved || resolve::names(&snapshot) != resolved.names() {
            return;
        }
        let located = resolved.locate(&snapshot);
        match Directory::build(self.apply.directory(), &self.table, located) {
            Ok(directory) => {
                tracing::info!("upstream addresses have changed");
                self.resolved = resolved;
                self.apply.send_directory(directory);
                self.health.follow(&snapshot, self.apply.directory());
            }
            Err(error) => tracing::error!(%error, "new upstream addresses cannot be used"),
        }
    }

    // ---- the end

    pub(super) fn signalled(&mut self, signal: i32) -> Option<End> {
        if signal == compile::SIGHUP {
            self.reload();
            return None;
        }
        if self.drain.is_some() {
            tracing::warn!(signal, "second signal: ending at once");
            return Some(End::Cut(signal));
        }
        tracing::info!(signal, time = ?self.drain_time, "draining: no new connections, open sessions end");
        self.drain = Some(Drain {
            signal,
            deadline: clock::monotonic().after(self.drain_time).after(DRAIN_GRACE),
        });
        self.notifier.tell(State::Stopping, "draining");
        for link in self.links.iter() {
            let _ = link.send(ToShard::Drain {
                within: self.drain_time,
                then: AfterDrain::End,
            });
        }
        None
    }

    fn reload(&mut self) {
        let Some(path) = self.policy_file.clone() else {
            tracing::warn!(
                "SIGHUP, but no --policy file to read again; a control plane is not asked, it sends"
            );
            return;
        };
        self.notifier
            .tell(State::Reloading, "reading the policy again");
        self.take_offer(Offer::File(path));
    }

    pub(super) fn shard_ended(&mut self, exit: ShardExit) -> Option<End> {
        let number = exit.shard.0;
        if let Some(shard) = self.shards.get_mut(usize::from(number)) {
            shard.has_ended = true;
        }
        match exit.result {
            Ok(()) if self.drain.is_some() => None,
            Ok(()) => Some(End::ShardFailed(format!(
                "shard {number} ended without being asked"
            ))),
            Err(error) => Some(End::ShardFailed(format!("shard {number} failed: {error}"))),
        }
    }

    /// The drain is over when every shard has said so, and its thread is gone (rings closed, ports free).
    pub(super) fn drained(&self) -> Option<End> {
        let drain = self.drain.as_ref()?;
        let all = self.shards.iter().all(|shard| shard.has_ended);
        if all {
            let cut_off: u32 = self
                .shards
                .iter()
                .filter_map(|shard| shard.drained)
                .map(|o| o.cut_off)
                .sum();
            tracing::info!(signal = drain.signal, cut_off, "drained");
        }
        all.then_some(End::Drained)
    }
}

impl Shard {
    pub(super) fn new(engine: &'static str, counters: Arc<Counters>, now: Time) -> Self {
        Self {
            engine,
            counters,
            gauges: ShardGauges::default(),
            latency: None,
            answered_at: now,
            answered_report: 0,
            drained: None,
            has_ended: false,
        }
    }
}

pub(super) fn answer_password(
    links: &[Link],
    origin: &Origin,
    outcome: crate::session::AuthOutcome,
) {
    if let Some(link) = links.get(usize::from(origin.shard.0)) {
        let session = origin.session;
        // A shard that is gone has no session that waits.
        let _ = link.send(ToShard::Authenticated { session, outcome });
    }
}

/// Drops snapshots on a thread that is in no one's way.
fn drop_apart(snapshots: Vec<Arc<Snapshot>>) {
    if snapshots.is_empty() {
        return;
    }
    // Not waited for.
    drop(tokio::task::spawn_blocking(move || {
        priority::lower();
        drop(snapshots);
    }));
}

/// Compiles on another thread, then resolves the names that have no address yet.
async fn attempt(
    work: Work,
    generation: Generation,
    previous: Option<Arc<Snapshot>>,
    known: Resolved,
) -> Result<(Compiled, Resolved), Refusal> {
    let work = move || compile::compile(work, generation, previous.as_deref());
    let compiled = tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            let line = format!("the compiler failed: {error}");
            Err(Refusal::machine(line))
        })?;
    let names = resolve::names(&compiled.snapshot);
    let resolved = resolve::complete(names, known).await;
    Ok((compiled, resolved))
}
