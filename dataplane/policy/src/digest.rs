//! The digest of a model: the same for two documents that say the same, however they are written.
//!
//! Every value is written with its length or a tag before it, so no two models share a writing; rows of a kind are taken
//! in the order of their names, and rules carry their order keys, so the order of a file counts only where it decides.

use std::time::Duration;

use crate::Endpoint;
use crate::filter::TopicFilter;
use crate::model::{
    Cidr, ClientIdBinding, ListenerModel, Model, Password, RuleModel, UpstreamModel, UserModel,
    VersionSet, WhoPart,
};
use crate::problem::Problems;

/// Hex of the digest; `None` when it is cancelled.
pub(crate) fn digest(model: &Model, problems: &Problems) -> Option<Box<str>> {
    let mut out = Writer(blake3::Hasher::new_derive_key("sluice policy rows 1"));
    out.tag(model.default as u8);
    out.tag(model.on_deny as u8);
    out.tag(u8::from(model.narrow));
    let is_wanted = || !problems.is_cancelled();
    rows(
        &mut out,
        &model.listeners,
        |row| &row.name,
        listener,
        is_wanted,
    )?;
    rows(
        &mut out,
        &model.upstreams,
        |row| &row.name,
        upstream,
        is_wanted,
    )?;
    rows(
        &mut out,
        &model.groups,
        |name| name,
        |out, name| out.text(name),
        is_wanted,
    )?;
    rows(&mut out, &model.users, |row| &row.name, user, is_wanted)?;
    rows(&mut out, &model.rules, RuleModel::name, rule, is_wanted)?;
    Some(out.0.finalize().to_hex().as_str().into())
}

struct Writer(blake3::Hasher);

impl Writer {
    fn tag(&mut self, value: u8) {
        self.0.update(&[value]);
    }

    fn number(&mut self, value: u64) {
        self.0.update(&value.to_le_bytes());
    }

    fn count(&mut self, value: usize) {
        self.number(value as u64);
    }

    fn text(&mut self, value: &str) {
        self.count(value.len());
        self.0.update(value.as_bytes());
    }

    fn time(&mut self, value: Duration) {
        self.0.update(&value.as_nanos().to_le_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.tag(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn texts(&mut self, values: &[Box<str>]) {
        self.count(values.len());
        values.iter().for_each(|value| self.text(value));
    }
}

fn rows<T>(
    out: &mut Writer,
    rows: &[T],
    name: impl Fn(&T) -> &str,
    write: impl Fn(&mut Writer, &T),
    is_wanted: impl Fn() -> bool,
) -> Option<()> {
    let mut sorted: Vec<&T> = rows.iter().collect();
    sorted.sort_by(|a, b| name(a).cmp(name(b)));
    out.count(sorted.len());
    for row in sorted {
        is_wanted().then(|| write(out, row))?;
    }
    Some(())
}

fn listener(out: &mut Writer, row: &ListenerModel) {
    out.text(&row.name);
    out.text(&row.address.to_string());
    out.text(&row.upstream);
    versions(out, row.versions);
    out.option(row.anonymous_group.as_deref(), Writer::text);
    out.option(row.client_id_pattern.as_ref(), |out, pattern| {
        out.text(&pattern.text)
    });
    out.number(row.client_id_bytes_max.into());
    out.tag(u8::from(row.upstream_auth_pass));
    out.tag(u8::from(row.drain_publishes_wills));
    out.tag(u8::from(row.ignores_usernames));
    out.tag(row.reason_strings as u8);
    let limits = &row.limits;
    out.number(limits.connections_max.into());
    out.number(limits.connections_per_address_max.into());
    out.number(limits.packet_bytes_max.into());
    out.number(limits.connect_bytes_max.into());
    out.number(limits.topic_alias_max.into());
    out.number(limits.receive_max.into());
    out.number(limits.keep_alive_secs_max.into());
    out.time(limits.connect_timeout);
    out.time(limits.packet_timeout);
    out.time(limits.write_stall_timeout);
    out.number(limits.backlog_bytes_high.into());
    out.number(limits.backlog_bytes_low.into());
    out.time(limits.latency_budget);
    out.time(limits.tcp_keep_alive);
}

fn upstream(out: &mut Writer, row: &UpstreamModel) {
    out.text(&row.name);
    out.count(row.endpoints.len());
    for endpoint in &row.endpoints {
        match endpoint {
            Endpoint::Tcp { host, port } => {
                out.tag(1);
                out.text(host);
                out.number((*port).into());
            }
            Endpoint::Unix { path } => {
                out.tag(2);
                out.text(path);
            }
        }
    }
    out.tag(row.balance as u8);
    out.time(row.dial_timeout);
    out.tag(row.dial_attempts_max);
    out.time(row.dial_backoff);
    out.number(row.breaker_failures.into());
    out.time(row.breaker_open);
    out.option(row.health_interval, Writer::time);
    out.time(row.tcp_keep_alive);
    out.time(row.connack_timeout);
}

fn user(out: &mut Writer, row: &UserModel) {
    out.text(&row.name);
    let digest = match &row.password {
        Password::Hash(verifier) => verifier.digest(),
        Password::Broken { digest, .. } => *digest,
        Password::Absent => [0; 32],
    };
    out.0.update(&digest);
    out.option(row.networks.as_deref(), blocks);
    out.texts(&row.groups);
    out.option(row.client_id.as_ref(), |out, binding| match binding {
        ClientIdBinding::Exactly(value) => {
            out.tag(1);
            out.text(value);
        }
        ClientIdBinding::Matching(pattern) => {
            out.tag(2);
            out.text(&pattern.text);
        }
    });
    out.tag(u8::from(row.enabled));
}

fn rule(out: &mut Writer, row: &RuleModel) {
    out.text(row.name());
    out.0.update(&row.priority.to_le_bytes());
    out.0.update(&row.order.to_le_bytes());
    who(out, &row.who);
    let actions = row.actions;
    for bit in [
        actions.connect,
        actions.publish,
        actions.subscribe,
        actions.receive,
    ] {
        out.tag(u8::from(bit));
    }
    let mut topics: Vec<&str> = row.topics().map(TopicFilter::as_str).collect();
    topics.sort();
    out.count(topics.len());
    topics.into_iter().for_each(|topic| out.text(topic));
    out.tag(row.effect as u8);
    out.tag(row.qos_max as u8);
    out.tag(row.qos_over as u8);
    out.tag(row.retain as u8);
    out.option(row.payload_bytes_max, |out, max| out.number(max.into()));
    out.tag(u8::from(row.narrow));
    out.tag(row.on_deny as u8);
    out.tag(row.mode as u8);
    out.tag(u8::from(row.enabled));
}

fn who(out: &mut Writer, who: &WhoPart) {
    for list in [
        &who.users,
        &who.user_patterns,
        &who.client_ids,
        &who.client_id_patterns,
        &who.groups,
        &who.listeners,
    ] {
        out.option(list.as_deref(), Writer::texts);
    }
    out.option(who.addresses.as_deref(), blocks);
    out.option(who.versions, versions);
}

fn blocks(out: &mut Writer, blocks: &[Cidr]) {
    out.count(blocks.len());
    for block in blocks {
        out.0.update(&block.bits.to_le_bytes());
        out.tag(block.prefix_len);
        out.tag(u8::from(block.is_v6));
    }
}

fn versions(out: &mut Writer, set: VersionSet) {
    let versions: Vec<_> = set.iter().collect();
    out.count(versions.len());
    versions
        .into_iter()
        .for_each(|version| out.tag(version as u8));
}
