//! What operators ask, by the admin server or through the control plane: how the node is, which sessions there are, end
//! these, take no more, take some again.
//!
//! Every question waits for the shards in a list of its own, bounded in length and in time. An answer that nobody waits
//! for is dropped.

use super::*;
use crate::node::{KEEP_OUT_MAX, NotKeptOut};

/// Shards are asked so often for one page of sessions, each time for a part of their slots.
const LIST_QUESTIONS_MAX: u32 = 64;
/// Longest search for the sessions of a kick.
const KICK_WAIT: Duration = Duration::from_secs(30);
/// Kicks and lists in work; one more is told to come back.
const WAITING_MAX: usize = 256;
/// A drain that takes longer is answered with what was ended so far: those who ask give up after 5 s, and look at the
/// node's sessions from then on.
const DRAIN_ANSWER: Duration = Duration::from_secs(2);

/// What became of a kick or a drain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Sessions ended so far.
    pub sessions: u64,
    /// Why it was not done, in one line; empty: it was.
    pub error: String,
}

/// A list of sessions on its way.
pub(super) struct Listing {
    /// The question a shard is answering.
    request: u64,
    /// Where that question began.
    at: SessionCursor,
    limit: u32,
    filter: SessionFilter,
    questions: u32,
    until: Time,
    page: SessionPage,
    reply: oneshot::Sender<SessionPage>,
}

/// A kick on its way.
pub(super) struct Kicking {
    request: u64,
    until: Time,
    /// By shard.
    has_answered: Vec<bool>,
    sessions: u64,
    reply: oneshot::Sender<Ended>,
}

/// Drained by the control plane; the process stays.
#[derive(Default)]
pub(super) struct Rest {
    /// By shard: how it went.
    outcomes: Vec<Option<DrainOutcome>>,
    /// The reports that were asked for just before it began, and by shard what they said.
    report: u64,
    sessions: Vec<Option<u32>>,
    until: Time,
    /// Who waits for the end of it, and until when.
    waiting: Vec<(Time, oneshot::Sender<Ended>)>,
}

impl Control {
    // ---- questions

    pub(super) fn obey(&mut self, command: Command) {
        let until = clock::monotonic().after(REPORT_WAIT);
        match command {
            Command::Observe {
                fresh: false,
                reply,
            } => {
                let _ = reply.send(self.observed()); // who asked may have gone
            }
            Command::Observe { fresh: true, reply } => {
                let number = self.ask_for_reports();
                self.waiting_for_reports.push((number, until, reply));
            }
            Command::Sessions {
                at,
                limit,
                filter,
                reply,
            } => self.go_on_listing(Listing {
                request: 0,
                at,
                limit: limit.max(1),
                filter,
                questions: 0,
                until,
                page: SessionPage::default(),
                reply,
            }),
            Command::Denials {
                after,
                limit,
                filter,
                reply,
            } => self.ask_for_denials(after, limit, &filter, reply),
            Command::Kick {
                who,
                keep_out,
                reply,
            } => self.kick(&who, keep_out, reply),
            Command::Drain { within, reply } => self.rest(within, reply),
            Command::LogDecisions { wanted, reply } => {
                self.switch_decisions(wanted);
                let _ = reply.send(self.decisions.view()); // as above
            }
            Command::Rules { reply } => {
                let _ = reply.send(self.tallies.view()); // as above
            }
            Command::ServeAgain { reply } => {
                let _ = reply.send(self.serve_again());
            }
        }
    }

    // ---- sessions

    /// Asks the next shard, or answers when the page is full, at its end, or has cost enough.
    fn go_on_listing(&mut self, mut listing: Listing) {
        let mut at = Some(listing.at);
        while let Some(cursor) = at {
            let found = u32::try_from(listing.page.sessions.len()).unwrap_or(u32::MAX);
            let left = listing.limit.saturating_sub(found);
            let is_full = left == 0 || listing.questions >= LIST_QUESTIONS_MAX;
            if is_full || self.waiting_for_lists.len() >= WAITING_MAX {
                break;
            }
            self.report_number += 1;
            listing.request = self.report_number;
            listing.at = cursor;
            listing.questions += 1;
            let question = ToShard::List {
                request: listing.request,
                from: cursor.slot,
                limit: left,
                filter: listing.filter.clone(),
            };
            if self.ask_for_sessions(cursor.shard, question) {
                self.waiting_for_lists.push(listing);
                return;
            }
            at = self.shard_after(cursor.shard);
        }
        listing.page.next = at;
        let _ = listing.reply.send(listing.page); // who asked may have gone
    }

    /// False for a shard that is gone: it has no sessions, and nobody there would answer.
    fn ask_for_sessions(&self, shard: u16, question: ToShard) -> bool {
        let shard = usize::from(shard);
        let is_gone = |shard: &Shard| shard.drained.is_some() || shard.has_ended;
        let Some(link) = self.links.get(shard) else {
            return false;
        };
        !self.shards.get(shard).is_some_and(is_gone) && link.send(question).is_ok()
    }

    fn shard_after(&self, shard: u16) -> Option<SessionCursor> {
        let shard = shard.saturating_add(1);
        (usize::from(shard) < self.links.len()).then_some(SessionCursor { shard, slot: 0 })
    }

    pub(super) fn listed(
        &mut self,
        shard: ShardId,
        request: u64,
        sessions: Vec<SessionInfo>,
        next: Option<u32>,
    ) {
        let mut lists = self.waiting_for_lists.iter();
        let Some(index) = lists.position(|listing| listing.request == request) else {
            return;
        };
        let mut listing = self.waiting_for_lists.swap_remove(index);
        for info in sessions {
            let name = self.listener_name(info.listener);
            listing.page.sessions.push((shard.0, info, name));
        }
        let next = match next {
            Some(slot) => Some(SessionCursor {
                shard: shard.0,
                slot,
            }),
            None => self.shard_after(shard.0),
        };
        match next {
            Some(next) => {
                listing.at = next;
                self.go_on_listing(listing);
            }
            None => {
                let _ = listing.reply.send(listing.page);
            }
        }
    }

    /// What was found so far is an answer; nothing at all is none, and its asker learns that nobody answers.
    fn answer_late_lists(&mut self, now: Time) {
        for mut listing in self
            .waiting_for_lists
            .extract_if(.., |one| now >= one.until)
        {
            if !listing.page.sessions.is_empty() {
                listing.page.next = Some(listing.at);
                let _ = listing.reply.send(listing.page);
            }
        }
    }

    // ---- kick

    fn kick(&mut self, who: &KickWho, keep_out: Option<Duration>, reply: oneshot::Sender<Ended>) {
        if self.waiting_for_kicks.len() >= WAITING_MAX {
            let _ = reply.send(Ended::not_done(
                "the node is busy with other kicks; ask again",
            ));
            return;
        }
        let kept_out = keep_out.map_or(Ok(()), |time| self.keep_out(who, time));
        if let Err(why) = kept_out {
            let _ = reply.send(Ended::not_done(&why.to_string()));
            return;
        }
        self.report_number += 1;
        let request = self.report_number;
        let asked = self.links.iter().zip(&self.shards).map(|(link, shard)| {
            let who = who.clone();
            // One that is over has no sessions; one that takes nothing shows by its silence.
            shard.has_ended || {
                let _ = link.send(ToShard::Kick { request, who });
                false
            }
        });
        let has_answered = asked.collect();
        self.waiting_for_kicks.push(Kicking {
            request,
            until: clock::monotonic().after(KICK_WAIT),
            has_answered,
            sessions: 0,
            reply,
        });
    }

    /// Changes the list, and gives it to every shard before it looks for sessions: who comes back meanwhile is found by one or
    /// the other.
    fn keep_out(&mut self, who: &KickWho, time: Duration) -> Result<(), NotKeptOut> {
        let now = clock::monotonic();
        if time.is_zero() {
            self.kept_out.remove(who);
        } else {
            let until = now.after(time.min(KEEP_OUT_MAX));
            self.kept_out.add(who, until, now)?;
        }
        let kept_out = Arc::new(self.kept_out.clone());
        for link in self.links.iter() {
            // A stuck shard shows by its silence.
            let _ = link.send(ToShard::KeptOut(Arc::clone(&kept_out)));
        }
        Ok(())
    }

    pub(super) fn kicked(&mut self, shard: ShardId, request: u64, sessions: u32) {
        let mut kicks = self.waiting_for_kicks.iter_mut();
        let Some(kick) = kicks.find(|kick| kick.request == request) else {
            return;
        };
        if let Some(has_answered) = kick.has_answered.get_mut(usize::from(shard.0)) {
            *has_answered = true;
            kick.sessions += u64::from(sessions);
        }
        self.answer_late_kicks(clock::monotonic());
    }

    fn answer_late_kicks(&mut self, now: Time) {
        let is_over =
            |kick: &mut Kicking| now >= kick.until || kick.has_answered.iter().all(|yes| *yes);
        for kick in self.waiting_for_kicks.extract_if(.., is_over) {
            let silent = kick.has_answered.iter().filter(|yes| !**yes).count();
            tracing::info!(sessions = kick.sessions, "sessions ended by an operator");
            let error = match silent {
                0 => String::new(),
                _ => format!("{silent} shards did not answer in time"),
            };
            let _ = kick.reply.send(Ended {
                sessions: kick.sessions,
                error,
            });
        }
    }

    // ---- drain, and back into service

    fn rest(&mut self, within: Option<Duration>, reply: oneshot::Sender<Ended>) {
        if self.drain.is_some() {
            let _ = reply.send(Ended::not_done("the process is ending"));
            return;
        }
        let within = within.unwrap_or(self.drain_time).min(REST_MAX);
        let now = clock::monotonic();
        let until = now.after(within).after(DRAIN_GRACE);
        let reply = (now.after(DRAIN_ANSWER), reply);
        match &mut self.rest {
            Some(rest) if rest.waiting.len() < WAITING_MAX => rest.waiting.push(reply),
            Some(_) => return, // its asker learns that nobody answers
            None => self.begin_rest(within, until, reply),
        }
        self.answer_late_drain(now);
    }

    fn begin_rest(
        &mut self,
        within: Duration,
        until: Time,
        waiting: (Time, oneshot::Sender<Ended>),
    ) {
        tracing::info!(time = ?within, "drained by the control plane: no new connections, open sessions end, the process stays");
        self.apply.stop_accepting();
        self.rest = Some(Rest {
            outcomes: vec![None; self.shards.len()],
            report: self.ask_for_reports(),
            sessions: vec![None; self.shards.len()],
            until,
            waiting: vec![waiting],
        });
        for link in self.links.iter() {
            let then = AfterDrain::Stay;
            let _ = link.send(ToShard::Drain { within, then }); // a stuck shard shows by its silence
        }
    }

    /// A shard has no sessions any more.
    pub(super) fn rested(&mut self, shard: ShardId, outcome: DrainOutcome) {
        if let Some(rest) = &mut self.rest
            && let Some(one) = rest.outcomes.get_mut(usize::from(shard.0))
        {
            *one = Some(outcome);
        }
        self.answer_late_drain(clock::monotonic());
    }

    fn answer_late_drain(&mut self, now: Time) {
        let Some(rest) = &mut self.rest else {
            return;
        };
        let silent = rest.outcomes.iter().filter(|one| one.is_none()).count();
        if silent > 0 && now < rest.until {
            rest.tell_progress(now, &self.shards);
            return;
        }
        let error = match silent {
            0 => String::new(),
            _ => format!("{silent} shards still have sessions"),
        };
        rest.answer(&error);
    }

    fn serve_again(&mut self) -> Ended {
        if self.drain.is_some() {
            return Ended::not_done("the process is ending");
        }
        let Some(mut rest) = self.rest.take() else {
            return Ended::default(); // it serves
        };
        if let Err(error) = self.apply.accept_again() {
            tracing::error!(%error, "the node cannot go back into service");
            self.rest = Some(rest);
            return Ended::not_done(&error);
        }
        tracing::info!("back in service");
        rest.answer("the node was put back into service before the drain was over");
        Ended::default()
    }

    // ---- how the node is

    pub(super) fn ask_for_reports(&mut self) -> u64 {
        self.report_number += 1;
        let request = self.report_number;
        for link in self.links.iter() {
            // A stuck shard shows by its silence.
            let _ = link.send(ToShard::Report { request });
        }
        request
    }

    pub(super) fn reported(
        &mut self,
        shard: ShardId,
        request: u64,
        latency: Box<hdrhistogram::Histogram<u64>>,
        gauges: ShardGauges,
    ) {
        let now = clock::monotonic();
        if let Some(shard) = self.shards.get_mut(usize::from(shard.0)) {
            shard.gauges = gauges;
            shard.latency = Some(latency);
            shard.answered_at = now;
            shard.answered_report = shard.answered_report.max(request);
        }
        if let Some(rest) = &mut self.rest
            && request >= rest.report
            && let Some(began_with) = rest.sessions.get_mut(usize::from(shard.0))
        {
            began_with.get_or_insert(gauges.sessions);
        }
        self.answer_late_questions();
    }

    /// Answers those whose reports are complete or who have waited long enough; drops list questions nobody answers.
    pub(super) fn answer_late_questions(&mut self) {
        let now = clock::monotonic();
        self.answer_late_lists(now);
        self.answer_late_kicks(now);
        self.answer_late_denials(now);
        self.answer_late_drain(now);
        let answered = self.shards.iter().map(|shard| shard.answered_report).min();
        let answered = answered.unwrap_or(u64::MAX);
        let waiting = std::mem::take(&mut self.waiting_for_reports);
        for (number, until, reply) in waiting {
            if number <= answered || now >= until {
                let _ = reply.send(self.observed());
            } else {
                self.waiting_for_reports.push((number, until, reply));
            }
        }
    }

    fn observed(&self) -> Observed {
        let now = clock::monotonic();
        let policy = self.apply.status().clone();
        let shards: Vec<ShardView> = self
            .shards
            .iter()
            .zip(0_u16..)
            .map(|(shard, number)| {
                let generation = policy.shards.get(usize::from(number)).copied().flatten();
                let silent_for = now.since(shard.answered_at);
                ShardView::new(number, shard.engine, generation, &shard.gauges, silent_for)
            })
            .collect();
        let deaf: Vec<String> = self
            .deaf
            .iter()
            .map(|(.., reason)| reason.clone())
            .collect();
        let delivered_for = now.since(self.delivered_at);
        let draining = self.drain.is_some() || self.rest.is_some();
        let mut not_ready = observe::not_ready(&policy, &shards, draining, delivered_for, &deaf);
        let endpoints = self.endpoints();
        let degraded = endpoints::degraded(&endpoints);
        if self.needs_upstreams {
            let down = degraded.iter().filter(|degraded| degraded.is_down);
            not_ready.extend(down.map(|degraded| degraded.line.clone()));
        }
        let listeners = self.apply.listening();
        Observed {
            policy,
            connections: observe::crowd(&self.table),
            connections_by_listener: self.crowds(),
            strangers_per_address_max: self.table.strangers_per_address_max(),
            listeners,
            shards,
            endpoints,
            auth: self.pool.gauges(),
            latency: self.latency(),
            counters: self
                .shards
                .iter()
                .map(|shard| Arc::clone(&shard.counters))
                .collect(),
            decision_log: self.decisions.view(),
            is_draining: draining,
            kept_out: observe::kept_out(&self.kept_out, now),
            fleet: self.fleet.as_ref().map(fleet::Shared::view),
            not_ready,
            degraded: degraded.into_iter().map(|degraded| degraded.line).collect(),
        }
    }

    /// Of each listener of the policy in force.
    fn crowds(&self) -> Vec<(Box<str>, observe::Crowd)> {
        let snapshot = self.apply.snapshot();
        let rows = snapshot.iter().flat_map(|snapshot| snapshot.listeners());
        rows.map(|row| (row.name.clone(), observe::crowd_of(&self.table, row)))
            .collect()
    }

    fn latency(&self) -> Option<hdrhistogram::Histogram<u64>> {
        let mut reported = self
            .shards
            .iter()
            .filter_map(|shard| shard.latency.as_deref());
        let mut sum = reported.next()?.clone();
        for histogram in reported {
            // All shards make theirs with the same bounds, so adding cannot fail; if it did, its part is left out.
            let _ = sum.add(histogram);
        }
        Some(sum)
    }

    pub(super) fn listener_name(&self, id: ListenerId) -> Box<str> {
        let snapshot = self.apply.snapshot();
        let name = snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.listener(id))
            .map(|listener| listener.name.clone());
        name.unwrap_or_else(|| format!("#{}", id.0).into())
    }
}

impl Rest {
    /// True exactly when somebody wants to know how far it is.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Answers those who have waited long enough: the order is being carried out.
    fn tell_progress(&mut self, now: Time, shards: &[Shard]) {
        let by_shard = self.outcomes.iter().zip(&self.sessions).zip(shards);
        let ended = by_shard.map(|((outcome, began_with), shard)| match outcome {
            Some(outcome) => outcome.sessions,
            None => began_with.map_or(0, |sessions| sessions.saturating_sub(shard.gauges.sessions)),
        });
        let sessions = ended.map(u64::from).sum();
        for (_, reply) in self.waiting.extract_if(.., |(until, _)| now >= *until) {
            let error = String::new();
            let _ = reply.send(Ended { sessions, error }); // who asked may have gone
        }
    }

    /// Answers all who wait, with the sessions ended so far.
    fn answer(&mut self, error: &str) {
        let ended = self.outcomes.iter().flatten();
        let sessions = ended.map(|outcome| u64::from(outcome.sessions)).sum();
        for (_, reply) in self.waiting.drain(..) {
            let error = error.to_owned();
            let _ = reply.send(Ended { sessions, error }); // who asked may have gone
        }
    }
}

impl Ended {
    fn not_done(error: &str) -> Self {
        Self {
            sessions: 0,
            error: error.to_owned(),
        }
    }
}
