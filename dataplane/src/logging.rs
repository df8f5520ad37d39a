//! The log: lines on standard error, as text or JSON, with a level that can be changed at run time.
//!
//! Owns the subscriber and its filter. It never sees a payload or a secret: callers log names and numbers. Shards do
//! not log packets; what they report arrives here through the control thread.

use std::io::IsTerminal;
use std::sync::Arc;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

use crate::config::LogFormat;
use crate::node::{DecisionBatch, EndedLine, NoticeBatch, ShownUser};

/// Longest filter accepted at run time; a filter is a handful of `target=level` pairs.
const FILTER_BYTES_MAX: usize = 1024;

/// Changes what is logged while the process runs. Cheap to clone.
#[derive(Clone)]
pub struct LogControl {
    filter: Arc<reload::Handle<EnvFilter, Registry>>,
}

/// A filter that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadFilter {
    /// It does not parse; the text says why.
    #[error(
        "not a log filter: {0}. Expected a level (error, warn, info, debug, trace, off) or pairs like `info,sluice::decision=off`"
    )]
    Syntax(String),
    /// Longer than any sensible filter.
    #[error("log filter longer than {FILTER_BYTES_MAX} bytes")]
    TooLong,
    /// The subscriber is gone (only in tests).
    #[error("the log cannot be changed in this process")]
    Gone,
}

/// Installs the process-wide log. Fails on a bad filter, or when another log is installed already.
pub fn install(format: LogFormat, filter: &str) -> anyhow::Result<LogControl> {
    let (control, layer) = reloadable(filter)?;
    let registry = tracing_subscriber::registry().with(layer);
    match format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
            registry.with(lines).try_init()?;
        }
        LogFormat::Json => {
            let lines = fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .with_writer(std::io::stderr);
            registry.with(lines).try_init()?;
        }
    }
    Ok(control)
}

/// Writes sampled decisions. The only lines with topics and client ids; off unless sampling is on.
pub fn decisions(shard: u16, batch: &DecisionBatch) {
    for line in &batch.lines {
        let user = (line.user != ShownUser::Nobody).then_some(&line.user);
        tracing::info!(
            target: "sluice::decision",
            shard,
            generation = line.generation,
            action = ?line.act,
            peer = %line.peer,
            listener = &*line.listener,
            client_id = &*line.client_id,
            username = user.map(tracing::field::display),
            topic = &*line.topic,
            qos = line.qos.map(|qos| qos.bits()),
            retain = line.retain,
            payload_bytes = line.payload_bytes,
            decision = if line.refused.is_none() { "allow" } else { "deny" },
            reason = line.reason(),
            clause = line.broken(),
            rule = line.rule.as_deref().unwrap_or("(default)"),
            shadow = line.shadow.as_deref(),
        );
    }
    if batch.left_off > 0 {
        tracing::info!(target: "sluice::decision", shard, left_off = batch.left_off, "sampled decisions found no room");
    }
}

/// True exactly when the filter in force shows how sessions end (`sluice::session=debug`).
pub fn wants_ended() -> bool {
    tracing::enabled!(target: "sluice::session", tracing::Level::DEBUG)
}

/// Writes what a shard tells of single sessions.
pub fn notices(shard: u16, batch: &NoticeBatch) {
    for line in &batch.ended {
        ended(shard, line);
    }
    if batch.ended_left_off > 0 {
        tracing::debug!(target: "sluice::session", shard, left_off = batch.ended_left_off, "ended sessions found no room");
    }
    for line in &batch.failovers {
        tracing::warn!(
            target: "sluice::session",
            shard,
            client_id = &*line.client_id,
            upstream = &*line.upstream,
            endpoint = &*line.endpoint,
            "a client with a kept session is sent to another endpoint than its own; its session may not be there"
        );
    }
    if batch.failovers_left_off > 0 {
        tracing::warn!(
            target: "sluice::session",
            shard,
            left_off = batch.failovers_left_off,
            "more kept sessions were sent to another endpoint than their own"
        );
    }
    faults(shard, batch);
    others(shard, batch);
}

fn faults(shard: u16, batch: &NoticeBatch) {
    for line in &batch.faults {
        tracing::warn!(
            target: "sluice::session",
            shard,
            violation = line.violation.name(),
            clause = line.clause,
            client_id = &*line.client_id,
            upstream = &*line.upstream,
            "{}",
            if line.has_ended {
                "the broker broke the protocol; its session was ended"
            } else {
                "the broker broke the protocol; the packet was mended or dropped and the session goes on"
            }
        );
    }
    if batch.faults_left_off > 0 {
        tracing::warn!(
            target: "sluice::session",
            shard,
            left_off = batch.faults_left_off,
            "brokers broke the protocol more often than is told here"
        );
    }
}

fn others(shard: u16, batch: &NoticeBatch) {
    for line in &batch.others.lines {
        tracing::warn!(
            target: "sluice::session",
            shard,
            peer = %line.peer,
            listener = &*line.listener,
            protocol = line.protocol,
            "a client was refused: its first bytes are not MQTT but those of another protocol"
        );
    }
    if batch.others.left_off > 0 {
        tracing::warn!(
            target: "sluice::session",
            shard,
            left_off = batch.others.left_off,
            "more clients do not speak MQTT than are told of here"
        );
    }
    for line in &batch.too_large.lines {
        tracing::warn!(
            target: "sluice::session",
            shard,
            client_id = &*line.client_id,
            listener = &*line.listener,
            packet_bytes = line.packet_bytes,
            packet_bytes_max = line.packet_bytes_max,
            "a message for a client was dropped: it is longer than the client, or `packet_bytes_max` of the listener, allows"
        );
    }
    if batch.too_large.left_off > 0 {
        tracing::warn!(
            target: "sluice::session",
            shard,
            left_off = batch.too_large.left_off,
            "more messages were dropped because of their length than are told of here"
        );
    }
}

fn ended(shard: u16, line: &EndedLine) {
    let violation = line.cause.violation();
    tracing::debug!(
        target: "sluice::session",
        shard,
        cause = line.cause.name(),
        violation = violation.map(|violation| violation.name()),
        clause = violation.map(|_| line.clause),
        client_id = &*line.client_id,
        peer = %line.peer,
        listener = &*line.listener,
        open_for_ms = u64::try_from(line.open_for.as_millis()).unwrap_or(u64::MAX),
        "session ended"
    );
}

impl LogControl {
    /// Replaces the filter in one step; on an error the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), BadFilter> {
        self.filter
            .reload(parse(filter)?)
            .map_err(|_| BadFilter::Gone)
    }

    /// The filter in force.
    pub fn current(&self) -> String {
        self.filter
            .with_current(ToString::to_string)
            .unwrap_or_default()
    }

    /// A control whose subscriber is not installed, for tests of what is built on it.
    #[cfg(test)]
    pub fn detached() -> (Self, reload::Layer<EnvFilter, Registry>) {
        reloadable("info").expect("a plain level parses")
    }
}

fn reloadable(filter: &str) -> Result<(LogControl, reload::Layer<EnvFilter, Registry>), BadFilter> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let control = LogControl {
        filter: Arc::new(handle),
    };
    Ok((control, layer))
}

/// Strict where the library is lenient: an unknown level or an empty filter is an error, not silence.
fn parse(filter: &str) -> Result<EnvFilter, BadFilter> {
    if filter.len() > FILTER_BYTES_MAX {
        return Err(BadFilter::TooLong);
    }
    if filter.trim().is_empty() {
        return Err(BadFilter::Syntax("it is empty".into()));
    }
    for directive in filter.split(',') {
        check_directive(directive.trim())?;
    }
    EnvFilter::try_new(filter).map_err(|error| BadFilter::Syntax(error.to_string()))
}

/// The library reads a bare word that is no level as the name of a target and turns that one on: a typing error
/// (`inof`) would silence everything else.
fn check_directive(directive: &str) -> Result<(), BadFilter> {
    let level = match directive.rsplit_once('=') {
        Some((_, level)) => level,
        None => directive,
    };
    let known = ["off", "error", "warn", "info", "debug", "trace"];
    if known.iter().any(|name| level.eq_ignore_ascii_case(name)) {
        Ok(())
    } else {
        Err(BadFilter::Syntax(format!("`{directive}` has no level")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_or_pairs_and_nothing_else() {
        for (filter, good) in [
            ("info", true),
            ("INFO", true),
            ("off", true),
            ("info,sluice::decision=off", true),
            ("warn,sluice_dataplane::control=debug", true),
            ("inof", false),
            ("", false),
            ("  ", false),
            ("info,", false),
            ("sluice=loud", false),
            ("sluice", false),
            (&"info,".repeat(400), false),
        ] {
            assert_eq!(parse(filter).is_ok(), good, "{filter:?}");
        }
    }

    #[test]
    fn a_bad_filter_leaves_the_old_one_in_force() {
        let (control, _layer) = LogControl::detached();
        assert_eq!(control.current(), "info");
        assert!(control.set("inof").is_err());
        assert_eq!(control.current(), "info");
        assert!(control.set("debug").is_ok());
        assert_eq!(control.current(), "debug");
    }
}
