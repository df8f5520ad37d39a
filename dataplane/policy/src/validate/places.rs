//! Listeners and upstreams: addresses, endpoints, limits and deadlines.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::Checker;
use crate::document::shown;
use crate::model::{ListenerModel, UpstreamModel, VersionSet};
use crate::problem::Position;
use crate::rows::{
    DrainWills, LimitsRow, ListenerRow, Located, UpstreamAuth, UpstreamRow, Usernames,
};
use crate::wording::quoted;
use crate::{Balance, Endpoint, Limits, ReasonStrings};

/// Most endpoints of one upstream.
pub const ENDPOINTS_MAX: usize = 64;
/// Longest path of a Unix socket on Linux, without the final NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;

impl Checker<'_> {
    pub(super) fn listener(&mut self, row: &ListenerRow) -> ListenerModel {
        let mut versions = VersionSet::default();
        for version in row.versions.iter().flatten() {
            versions = self.version(version, versions);
        }
        if row.versions.as_ref().is_some_and(Vec::is_empty) {
            self.problems.add(
                row.at,
                format!(
                    "listener `{}`: `versions` must not be empty",
                    shown(&row.name.value)
                ),
            );
        }
        let username = row.username.as_ref();
        let ignored = username.filter(|username| username.value == Usernames::Ignore);
        if let Some(ignored) = ignored.filter(|_| row.anonymous_group.is_none()) {
            self.problem(
                ignored,
                "`username: ignore` makes every client anonymous, so `anonymous` is needed too",
            );
        }
        ListenerModel {
            name: row.name.value.clone(),
            address: self.address(row),
            upstream: self.upstream_of(row),
            versions: if row.versions.is_some() {
                versions
            } else {
                VersionSet::ALL
            },
            anonymous_group: row.anonymous_group.as_ref().map(|group| {
                self.known_group(group);
                group.value.clone()
            }),
            client_id_pattern: row
                .client_id_pattern
                .as_ref()
                .and_then(|pattern| self.pattern(pattern)),
            client_id_bytes_max: self.small(&row.client_id_bytes_max, "bytes_max", 1..=65_535, 256),
            upstream_auth_pass: matches!(
                &row.upstream_auth,
                Some(Located {
                    value: UpstreamAuth::Pass,
                    ..
                })
            ),
            drain_publishes_wills: !matches!(
                &row.drain_wills,
                Some(Located {
                    value: DrainWills::Suppress,
                    ..
                })
            ),
            ignores_usernames: ignored.is_some(),
            reason_strings: row
                .reason_strings
                .as_ref()
                .map_or(ReasonStrings::Off, |located| located.value),
            limits: self.limits(&row.limits),
        }
    }

    fn address(&mut self, row: &ListenerRow) -> SocketAddr {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let Some(address) = &row.address else {
            self.missing(row.at, "listener", &row.name, "address");
            return nowhere;
        };
        address.value.parse().unwrap_or_else(|_| {
            let found = quoted(&address.value);
            self.problem(
                address,
                format!(
                    "expected an IP address with a port, such as `0.0.0.0:1883` or `[::]:1883`, not {found}"
                ),
            );
            nowhere
        })
    }

    pub(super) fn same_address_twice(&mut self, rows: &[ListenerRow], listeners: &[ListenerModel]) {
        let mut seen: HashMap<SocketAddr, &str> = HashMap::new();
        for (row, listener) in rows.iter().zip(listeners) {
            // Port 0 asks the system for a free one.
            if listener.address.port() == 0 {
                continue;
            }
            if let Some(first) = seen.insert(listener.address, &listener.name) {
                let at = row.address.as_ref().map_or(row.at, |address| address.at);
                self.problems.add(
                    at,
                    format!(
                        "the address {} belongs to listener `{}`",
                        listener.address,
                        shown(first)
                    ),
                );
            }
        }
    }

    fn upstream_of(&mut self, row: &ListenerRow) -> Box<str> {
        let Some(upstream) = &row.upstream else {
            self.missing(row.at, "listener", &row.name, "upstream");
            return Box::default();
        };
        if !self.upstreams.contains_key(&upstream.value) {
            let near = self.nearby.suggestion(&upstream.value, &self.upstreams);
            let name = shown(&upstream.value);
            self.problem(upstream, format!("there is no upstream `{name}`{near}"));
        }
        upstream.value.clone()
    }

    fn limits(&mut self, row: &LimitsRow) -> Limits {
        const SECOND: Duration = Duration::from_secs(1);
        const U32_MAX: u64 = u32::MAX as u64;
        let default = Limits::default();
        let timeout = SECOND / 10..=3_600 * SECOND;
        let keep_alive_max = self.duration(
            &row.keep_alive_max,
            "keep_alive_max",
            SECOND..=65_535 * SECOND,
            SECOND * u32::from(default.keep_alive_secs_max),
        );
        if keep_alive_max.subsec_nanos() != 0
            && let Some(located) = &row.keep_alive_max
        {
            self.problem(located, "`keep_alive_max` must be whole seconds");
        }
        let limits = Limits {
            connections_max: self.small(
                &row.connections_max,
                "connections_max",
                1..=U32_MAX,
                default.connections_max,
            ),
            connections_per_address_max: self.small(
                &row.connections_per_address_max,
                "connections_per_address_max",
                1..=U32_MAX,
                default.connections_per_address_max,
            ),
            // 268,435,460: the longest packet MQTT can say, header included.
            packet_bytes_max: self.small(
                &row.packet_bytes_max,
                "packet_bytes_max",
                128..=268_435_460,
                default.packet_bytes_max,
            ),
            connect_bytes_max: self.small(
                &row.connect_bytes_max,
                "connect_bytes_max",
                128..=1 << 20,
                default.connect_bytes_max,
            ),
            topic_alias_max: self.small(
                &row.topic_alias_max,
                "topic_alias_max",
                0..=1_024,
                default.topic_alias_max,
            ),
            receive_max: self.small(
                &row.receive_max,
                "receive_max",
                1..=65_535,
                default.receive_max,
            ),
            keep_alive_secs_max: u16::try_from(keep_alive_max.as_secs()).unwrap_or(u16::MAX),
            connect_timeout: self.duration(
                &row.connect_timeout,
                "connect_timeout",
                timeout.clone(),
                default.connect_timeout,
            ),
            packet_timeout: self.duration(
                &row.packet_timeout,
                "packet_timeout",
                timeout.clone(),
                default.packet_timeout,
            ),
            write_stall_timeout: self.duration(
                &row.write_stall_timeout,
                "write_stall_timeout",
                timeout,
                default.write_stall_timeout,
            ),
            backlog_bytes_high: self.small(
                &row.backlog_bytes_high,
                "backlog_bytes_high",
                4_096..=1 << 30,
                default.backlog_bytes_high,
            ),
            backlog_bytes_low: self.small(
                &row.backlog_bytes_low,
                "backlog_bytes_low",
                0..=1 << 30,
                default.backlog_bytes_low,
            ),
            latency_budget: self.duration(
                &row.latency_budget,
                "latency_budget",
                Duration::ZERO..=SECOND / 10,
                default.latency_budget,
            ),
            tcp_keep_alive: self.tcp_keep_alive(&row.tcp_keep_alive),
        };
        if limits.backlog_bytes_low >= limits.backlog_bytes_high {
            let at = row
                .backlog_bytes_low
                .as_ref()
                .or(row.backlog_bytes_high.as_ref());
            let at = at.map_or(Position::default(), |located| located.at);
            self.problems.add(
                at,
                format!(
                    "`backlog_bytes_low` ({}) must be less than `backlog_bytes_high` ({})",
                    limits.backlog_bytes_low, limits.backlog_bytes_high
                ),
            );
        }
        limits
    }

    /// The kernel counts in seconds, and takes no more of them.
    fn tcp_keep_alive(&mut self, value: &Option<Located<Duration>>) -> Duration {
        const LONGEST: Duration = Duration::from_secs(32_767);
        let default = Limits::default().tcp_keep_alive;
        let found = self.duration(value, "tcp_keep_alive", Duration::ZERO..=LONGEST, default);
        if found.subsec_nanos() != 0
            && let Some(located) = value
        {
            self.problem(located, "`tcp_keep_alive` must be whole seconds");
        }
        found
    }

    // --- upstreams

    pub(super) fn upstream(&mut self, row: &UpstreamRow) -> UpstreamModel {
        const MILLI: Duration = Duration::from_millis(1);
        let minute = 60_000 * MILLI;
        if row.endpoints.is_empty() || row.endpoints.len() > ENDPOINTS_MAX {
            self.problems.add(
                row.at,
                format!(
                    "upstream `{}`: from 1 to {ENDPOINTS_MAX} `endpoints`",
                    shown(&row.name.value)
                ),
            );
        }
        let mut endpoints = Vec::with_capacity(row.endpoints.len());
        for text in &row.endpoints {
            match endpoint(&text.value) {
                Ok(endpoint) if endpoints.contains(&endpoint) => {
                    self.wrong(text, "the endpoint is there twice")
                }
                Ok(endpoint) => endpoints.push(endpoint),
                Err(message) => self.wrong(text, message),
            }
        }
        UpstreamModel {
            name: row.name.value.clone(),
            endpoints,
            balance: row
                .balance
                .as_ref()
                .map_or(Balance::ClientId, |located| located.value),
            dial_timeout: self.duration(
                &row.dial_timeout,
                "timeout",
                10 * MILLI..=minute,
                5_000 * MILLI,
            ),
            dial_attempts_max: self.small(&row.dial_attempts_max, "attempts_max", 1..=100, 3),
            dial_backoff: self.duration(&row.dial_backoff, "backoff", MILLI..=minute, 100 * MILLI),
            breaker_failures: self.small(&row.breaker_failures, "failures", 1..=1_000_000, 5),
            breaker_open: self.duration(
                &row.breaker_open,
                "open",
                10 * MILLI..=60 * minute,
                10_000 * MILLI,
            ),
            health_interval: row.health_interval.as_ref().map(|interval| {
                self.duration(
                    &Some(interval.clone()),
                    "interval",
                    100 * MILLI..=60 * minute,
                    minute,
                )
            }),
            tcp_keep_alive: self.tcp_keep_alive(&row.tcp_keep_alive),
            connack_timeout: self.duration(
                &row.connack_timeout,
                "connack_timeout",
                100 * MILLI..=60 * minute,
                5_000 * MILLI,
            ),
        }
    }
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    const WANTED: &str = "expected `tcp://host:port` or `unix:///path`";
    if let Some(path) = text.strip_prefix("unix://") {
        if !path.starts_with('/') || path.len() > UNIX_PATH_BYTES_MAX || path.contains('\0') {
            return Err(format!(
                "expected `unix://` and an absolute path of at most {UNIX_PATH_BYTES_MAX} bytes"
            ));
        }
        return Ok(Endpoint::Unix { path: path.into() });
    }
    let rest = text.strip_prefix("tcp://").ok_or(WANTED)?;
    let (host, port) = rest.rsplit_once(':').ok_or(WANTED)?;
    let port: u16 = port
        .parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or("the port must be from 1 to 65535")?;
    let host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(v6) => {
            v6.parse::<std::net::Ipv6Addr>()
                .map_err(|_| "expected an IPv6 address in the brackets")?;
            v6
        }
        None => host,
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_v6 = host.parse::<std::net::Ipv6Addr>().is_ok() && rest.starts_with('[');
    if host.is_empty() || host.len() > 253 || !(is_v6 || host.chars().all(is_host)) {
        return Err(WANTED.into());
    }
    Ok(Endpoint::Tcp {
        host: host.into(),
        port,
    })
}
