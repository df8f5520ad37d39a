//! `doctor`: everything between here and the nodes, stage by stage, each with what to do about it.
//!
//! Stages go on after one that failed as far as that makes sense; what could not be asked is said to be skipped.

mod audit;
mod certificate;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_proto::control::v1::{
    ListNodesRequest, Node, NodeState, NodesResponse, StatusRequest, StatusResponse,
};
use tokio::net::{TcpStream, lookup_host};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::args::ConnectionArgs;
use super::connect::{self, Connection, Target, within};
use super::failure::{Exit, Failure};
use super::out::{Answer, Out};
use super::render::nodes::trouble_text;
use super::render::{access, clean, count, time};
use crate::clock::unix_now;

/// Clocks this far apart make records hard to compare; lifetimes of tokens go by the server's.
const CLOCK_DIFFERENCE_MS_MAX: u64 = 5_000;
/// A node that takes longer than this for a generation is worth a look.
const LAG_MS_MAX: u64 = 10_000;
/// Names listed in one line.
const NAMES_MAX: usize = 10;

pub(super) use audit::examine_backup;

/// What a stage found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Ok,
    Warn,
    Fail(Exit),
    Skipped,
}

impl Finding {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail(_) => "FAIL",
            Self::Skipped => "SKIP",
        }
    }
}

/// One stage: what was looked at, what was found, and what to do.
#[derive(Clone, Debug, PartialEq)]
struct Stage {
    name: &'static str,
    finding: Finding,
    detail: String,
    advice: String,
}

/// The stages, in order.
const STAGES: [&str; 15] = [
    "address",
    "tcp",
    "tls",
    "health",
    "token",
    "role",
    "store",
    "audit",
    "cert",
    "clock",
    "policy",
    "nodes",
    "offline",
    "lag",
    "upstreams",
];

#[derive(Default)]
struct Report(Vec<Stage>);

impl Report {
    fn add(
        &mut self,
        name: &'static str,
        finding: Finding,
        detail: impl Into<String>,
        advice: &str,
    ) {
        self.0.push(Stage {
            name,
            finding,
            detail: detail.into(),
            advice: advice.into(),
        });
    }

    fn ok(&mut self, name: &'static str, detail: impl Into<String>) {
        self.add(name, Finding::Ok, detail, "");
    }

    fn fail(&mut self, name: &'static str, exit: Exit, detail: impl Into<String>, advice: &str) {
        self.add(name, Finding::Fail(exit), detail, advice);
    }

    fn failure(&mut self, name: &'static str, failure: &Failure) {
        self.fail(name, failure.exit, failure.message.clone(), "");
    }

    /// What was not reached is skipped; the first failure is the exit code.
    fn into_answer(mut self, stages: &[&'static str]) -> Answer {
        for name in stages.iter().copied() {
            if !self.0.iter().any(|stage| stage.name == name) {
                self.add(name, Finding::Skipped, "not reached", "");
            }
        }
        let exit = self.0.iter().find_map(|stage| match stage.finding {
            Finding::Fail(exit) => Some(exit),
            Finding::Ok | Finding::Warn | Finding::Skipped => None,
        });
        Answer {
            text: text(&self.0),
            json: json(&self.0),
            exit: exit.unwrap_or(Exit::Done),
        }
    }
}

fn text(stages: &[Stage]) -> String {
    let mut text = String::new();
    for stage in stages {
        let word = stage.finding.word();
        text.push_str(&format!(
            "{word:<4}  {:<8} {}\n",
            stage.name,
            clean(&stage.detail)
        ));
        if !stage.advice.is_empty() {
            text.push_str(&format!("               {}\n", stage.advice));
        }
    }
    text
}

fn json(stages: &[Stage]) -> Value {
    let one = |stage: &Stage| {
        json!({
            "stage": stage.name,
            "result": stage.finding.word().to_lowercase(),
            "detail": stage.detail,
            "advice": stage.advice,
        })
    };
    let is_ok = |stage: &Stage| !matches!(stage.finding, Finding::Fail(_));
    json!({
        "ok": stages.iter().all(is_ok),
        "stages": stages.iter().map(one).collect::<Value>(),
    })
}

/// Looks at everything.
pub(super) async fn examine(args: &ConnectionArgs, out: &mut Out) -> Answer {
    let mut report = Report::default();
    if let Some((channel, target)) = reach(args, &mut report).await {
        health(channel.clone(), args.call_timeout, &mut report).await;
        if let Some(connection) = identify(args, &target, channel, &mut report) {
            ask(&connection, &mut report, out).await;
        }
    }
    report.into_answer(&STAGES)
}

/// Address, TCP, TLS.
async fn reach(args: &ConnectionArgs, report: &mut Report) -> Option<(Channel, Target)> {
    let target = match connect::target(args) {
        Ok(target) => target,
        Err(failure) => {
            report.failure("address", &failure);
            return None;
        }
    };
    let addresses = resolve(&target, args.connect_timeout, report).await?;
    dial(&addresses, args.connect_timeout, report).await?;
    let opened = match connect::endpoint(args, &target) {
        Ok(endpoint) => connect::open(&endpoint, &target).await,
        Err(failure) => Err(failure),
    };
    match (opened, target.is_tls) {
        (Ok(channel), true) => {
            report.ok(
                "tls",
                "the certificate is the server's and the connection is encrypted",
            );
            Some((channel, target))
        }
        (Ok(channel), false) if target.is_loopback() => {
            report.add(
                "tls",
                Finding::Ok,
                "not encrypted; it does not leave this machine",
                "",
            );
            Some((channel, target))
        }
        (Ok(channel), false) => {
            let detail = "not encrypted, and not on this machine: no token is sent there";
            report.fail(
                "tls",
                Exit::Usage,
                detail,
                "use https:// with --ca, or a tunnel to 127.0.0.1",
            );
            Some((channel, target))
        }
        (Err(failure), _) => {
            let advice = "check --ca, --cert and --key; the server's certificate must name the host of --server (or --domain)";
            report.fail(
                "tls",
                failure.exit,
                failure.message,
                if target.is_tls { advice } else { "" },
            );
            None
        }
    }
}

async fn resolve(
    target: &Target,
    timeout: Duration,
    report: &mut Report,
) -> Option<Vec<SocketAddr>> {
    let looked_up =
        tokio::time::timeout(timeout, lookup_host((target.host.as_str(), target.port))).await;
    let why = match looked_up {
        Ok(Ok(found)) => {
            let addresses: Vec<_> = found.collect();
            if !addresses.is_empty() {
                let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                report.ok("address", format!("{} is {}", target.host, list.join(", ")));
                return Some(addresses);
            }
            "the name has no address".to_owned()
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} ms", timeout.as_millis()),
    };
    let detail = format!("{}: {why}", target.host);
    report.fail(
        "address",
        Exit::Away,
        detail,
        "check --server (SLUICE_SERVER) and the name service",
    );
    None
}

async fn dial(addresses: &[SocketAddr], timeout: Duration, report: &mut Report) -> Option<()> {
    let mut failures = Vec::new();
    for address in addresses {
        match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                report.ok("tcp", format!("{address} accepts connections"));
                return Some(());
            }
            Ok(Err(error)) => failures.push(format!("{address}: {error}")),
            Err(_) => failures.push(format!(
                "{address}: no answer within {} ms",
                timeout.as_millis()
            )),
        }
    }
    let advice =
        "is the control plane running, listening on this address, and not behind a firewall?";
    report.fail("tcp", Exit::Away, failures.join("; "), advice);
    None
}

/// gRPC health, which needs no token.
async fn health(channel: Channel, timeout: Duration, report: &mut Report) {
    let mut client = HealthClient::new(channel);
    let request = HealthCheckRequest {
        service: String::new(),
    };
    match within(timeout, client.check(request)).await {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => {
            report.ok("health", "serving");
        }
        Ok(_) => {
            let advice = "its /readyz and its log say why";
            report.fail(
                "health",
                Exit::Refused,
                "the control plane says it is not serving",
                advice,
            );
        }
        Err(status) => {
            let failure = Failure::from_status(&status);
            report.fail(
                "health",
                failure.exit,
                failure.message,
                "is it Sluice's control plane that listens there? One with TLS is asked by https://; one with --tls-client-ca lets in \
                 only who shows a certificate: --cert and --key",
            );
        }
    }
}

fn identify(
    args: &ConnectionArgs,
    target: &Target,
    channel: Channel,
    report: &mut Report,
) -> Option<Connection> {
    if target.check_token_is_safe().is_err() {
        return None;
    }
    match connect::token(args) {
        Ok((bearer, None)) => Some(Connection::new(channel, bearer, args.call_timeout)),
        Ok((bearer, Some(warning))) => {
            report.add("token file", Finding::Warn, warning, "");
            Some(Connection::new(channel, bearer, args.call_timeout))
        }
        Err(failure) => {
            report.failure("token", &failure);
            None
        }
    }
}

/// Everything that needs a token.
async fn ask(connection: &Connection, report: &mut Report, out: &mut Out) {
    let mut client = connection.operations();
    let answer = within(connection.call_timeout(), client.status(StatusRequest {})).await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(status) => {
            report.failure("token", &Failure::from_status(&status));
            return;
        }
    };
    let date = answer
        .metadata()
        .get("date")
        .and_then(|date| date.to_str().ok());
    let clock = clock(date.and_then(time::http_date), unix_now().0);
    let status = answer.into_inner();
    report.ok("token", format!("accepted; it is `{}`", status.caller));
    report.ok("role", access::role(status.role()));
    report.0.push(store(&status));
    report
        .0
        .push(audit::of_server(connection, status.role(), out).await);
    report.0.push(certificate::judged(&status, unix_now().0));
    report.0.push(clock);
    report.0.push(policy(&status));
    let mut client = connection.nodes();
    match connection
        .call(client.list(ListNodesRequest::default()))
        .await
    {
        Ok(nodes) => report.0.extend(fleet(&nodes)),
        Err(status) => report.failure("nodes", &Failure::from_status(&status)),
    }
}

fn stage(name: &'static str, finding: Finding, detail: impl Into<String>, advice: &str) -> Stage {
    Stage {
        name,
        finding,
        detail: detail.into(),
        advice: advice.into(),
    }
}

fn store(status: &StatusResponse) -> Stage {
    if status.not_ready.is_empty() {
        return stage("store", Finding::Ok, "the control plane is ready", "");
    }
    let advice = "the disk's room and rights, and the control plane's log, say more";
    let detail = status.not_ready.join("; ");
    stage("store", Finding::Fail(Exit::Refused), detail, advice)
}

/// The server's clock against this one; its date has whole seconds.
fn clock(server: Option<u64>, here: u64) -> Stage {
    let Some(server) = server else {
        return stage("clock", Finding::Skipped, "the answer had no date", "");
    };
    let difference = server.abs_diff(here);
    if difference <= CLOCK_DIFFERENCE_MS_MAX {
        return stage("clock", Finding::Ok, "the same here and there", "");
    }
    let word = if server > here { "ahead of" } else { "behind" };
    let detail = format!(
        "the control plane is {} {word} this machine",
        time::span(difference)
    );
    stage(
        "clock",
        Finding::Warn,
        detail,
        "let both follow a time server",
    )
}

/// What is in force says what an operator should know.
fn policy(status: &StatusResponse) -> Stage {
    if status.warnings.is_empty() {
        return stage(
            "policy",
            Finding::Ok,
            "nothing to say about what is in force",
            "",
        );
    }
    let advice =
        "correct the document and apply it; `sluicectl history` says where this one came from";
    stage("policy", Finding::Warn, status.warnings.join("; "), advice)
}

/// Rejected, offline, late; and what connected nodes cannot send clients to.
fn fleet(answer: &NodesResponse) -> [Stage; 4] {
    let of = |wanted: &[NodeState]| -> Vec<&Node> {
        answer
            .nodes
            .iter()
            .filter(|node| wanted.contains(&node.state()))
            .collect()
    };
    let rejected = of(&[NodeState::Rejected]);
    let offline = of(&[NodeState::Offline]);
    let draining = |node: &&Node| node.connected && node.is_draining;
    let draining: Vec<&Node> = answer.nodes.iter().filter(draining).collect();
    let late = |node: &&&Node| node.lag_ms.is_some_and(|lag| lag > LAG_MS_MAX);
    let moving = of(&[NodeState::Delivering, NodeState::Sweeping]);
    let late: Vec<&Node> = moving.iter().filter(late).copied().collect();
    let (total, active) = (answer.nodes.len(), of(&[NodeState::Active]).len());
    let nodes = if !rejected.is_empty() {
        let detail = format!(
            "{} rejected what is in force: {}",
            count(rejected.len() as u64, "node"),
            names(&rejected)
        );
        stage(
            "nodes",
            Finding::Fail(Exit::Wrong),
            detail,
            "`sluicectl nodes` says why; apply a corrected document, or roll back",
        )
    } else if total == 0 {
        stage(
            "nodes",
            Finding::Warn,
            "no node is a member",
            "`sluicectl token join create` lets one join",
        )
    } else if answer.released.is_none() {
        stage(
            "nodes",
            Finding::Warn,
            "nothing is released",
            "`sluicectl apply -f FILE --release`",
        )
    } else if !draining.is_empty() {
        stage(
            "nodes",
            Finding::Warn,
            format!("out of service by a drain: {}", names(&draining)),
            "`sluicectl drain NODE --undo` brings one back",
        )
    } else {
        stage(
            "nodes",
            Finding::Ok,
            format!("{active} of {total} active"),
            "",
        )
    };
    let offline = match offline.len() {
        0 => stage("offline", Finding::Ok, "every node is connected", ""),
        count_offline => {
            let detail = format!(
                "{}: {}",
                count(count_offline as u64, "node"),
                names(&offline)
            );
            let advice =
                "they go on with what they have; check that they run and reach the control plane";
            stage("offline", Finding::Fail(Exit::Partly), detail, advice)
        }
    };
    let lag = match late.iter().filter_map(|node| node.lag_ms).max() {
        None => stage("lag", Finding::Ok, "no node is late", ""),
        Some(lag) => {
            let detail = format!("up to {}: {}", time::span(lag), names(&late));
            let advice = "a node that compiles for long, or sessions that are busy; `sluicectl nodes --watch` shows it";
            stage("lag", Finding::Fail(Exit::Partly), detail, advice)
        }
    };
    [nodes, offline, lag, upstreams(answer)]
}

/// A fault when clients of a node have nowhere to go, a warning when there are other endpoints.
fn upstreams(answer: &NodesResponse) -> Stage {
    let connected = answer.nodes.iter().filter(|node| node.connected);
    let troubles = connected.flat_map(|node| {
        let troubles = node.troubles.iter();
        troubles.map(move |trouble| (trouble.is_last, node, trouble))
    });
    let (last, others): (Vec<_>, Vec<_>) = troubles.partition(|(is_last, ..)| *is_last);
    if last.is_empty() && others.is_empty() {
        return stage("upstreams", Finding::Ok, "every endpoint works", "");
    }
    let all: Vec<_> = last.iter().chain(&others).collect();
    let shown = all.iter().take(NAMES_MAX).map(|(_, node, trouble)| {
        let trouble = trouble_text(trouble);
        format!("{}: {trouble}", clean(&node.name))
    });
    let shown: Vec<_> = shown.collect();
    let beyond: u64 = answer.nodes.iter().map(|node| node.troubles_left_off).sum();
    let more = match (all.len() - shown.len()) as u64 + beyond {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let detail = format!("{}{more}", shown.join("; "));
    if last.is_empty() {
        let advice = "clients go to the other endpoints; `sluicectl nodes` and /upstreams of the node say more";
        return stage("upstreams", Finding::Warn, detail, advice);
    }
    let advice = "clients of these nodes have nowhere to go: is the broker up, and does it answer from there?";
    stage("upstreams", Finding::Fail(Exit::Partly), detail, advice)
}

fn names(nodes: &[&Node]) -> String {
    let shown: Vec<_> = nodes
        .iter()
        .take(NAMES_MAX)
        .map(|node| node.name.as_str())
        .collect();
    let more = nodes.len() - shown.len();
    let list = shown.join(", ");
    if more > 0 {
        format!("{list} and {more} more")
    } else {
        list
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::v1::EndpointTrouble;
    use sluice_proto::v1::endpoint_trouble::Fault;

    use super::*;

    fn node(name: &str, state: NodeState, lag_ms: Option<u64>) -> Node {
        Node {
            name: name.into(),
            state: state.into(),
            lag_ms,
            ..Node::default()
        }
    }

    fn findings(nodes: Vec<Node>) -> [Finding; 4] {
        let answer = NodesResponse {
            nodes,
            released: Some(sluice_proto::v1::GenerationId::default()),
        };
        fleet(&answer).map(|stage| stage.finding)
    }

    #[test]
    fn the_fleet_is_judged_by_rejected_offline_and_late_nodes() {
        use Finding::{Fail, Ok, Warn};
        use NodeState::{Active, Offline, Rejected, Sweeping};
        let drained = Node {
            connected: true,
            is_draining: true,
            ..node("a", Active, None)
        };
        for (nodes, expected) in [
            (vec![], [Warn, Ok, Ok, Ok]),
            (vec![node("a", Active, None)], [Ok, Ok, Ok, Ok]),
            (vec![drained.clone()], [Warn, Ok, Ok, Ok]),
            (
                vec![drained, node("b", Rejected, None)],
                [Fail(Exit::Wrong), Ok, Ok, Ok],
            ),
            (
                vec![node("a", Rejected, Some(99_000))],
                [Fail(Exit::Wrong), Ok, Ok, Ok],
            ),
            (
                vec![node("a", Offline, Some(99_000))],
                [Ok, Fail(Exit::Partly), Ok, Ok],
            ),
            (vec![node("a", Sweeping, Some(9_000))], [Ok, Ok, Ok, Ok]),
            (
                vec![node("a", Sweeping, Some(11_000))],
                [Ok, Ok, Fail(Exit::Partly), Ok],
            ),
            (vec![with_trouble(false, true)], [Ok, Ok, Ok, Warn]),
            (
                vec![with_trouble(true, true)],
                [Ok, Ok, Ok, Fail(Exit::Partly)],
            ),
            (vec![with_trouble(true, false)], [Ok, Ok, Ok, Ok]),
        ] {
            assert_eq!(findings(nodes.clone()), expected, "{nodes:?}");
        }
    }

    fn with_trouble(is_last: bool, connected: bool) -> Node {
        let trouble = EndpointTrouble {
            upstream: "brokers".into(),
            endpoint: "tcp://broker:1883".into(),
            address: "10.0.0.1:1883".into(),
            fault: Fault::NoConnack.into(),
            is_last,
        };
        Node {
            connected,
            troubles: vec![trouble],
            ..node("a", NodeState::Active, None)
        }
    }

    #[test]
    fn an_endpoint_that_does_not_work_is_named_with_its_node_and_reason() {
        let answer = NodesResponse {
            nodes: vec![with_trouble(true, true)],
            released: None,
        };
        let expected = "a: upstream brokers: tcp://broker:1883 (10.0.0.1:1883): no CONNACK";
        assert_eq!(upstreams(&answer).detail, expected);
    }

    #[test]
    fn clocks_are_compared_with_room_for_whole_seconds() {
        for (server, here, expected) in [
            (Some(1_000_000), 1_000_999, Finding::Ok),
            (Some(1_000_000), 1_005_001, Finding::Warn),
            (Some(1_010_000), 1_000_000, Finding::Warn),
            (None, 1_000_000, Finding::Skipped),
        ] {
            assert_eq!(clock(server, here).finding, expected);
        }
        assert!(clock(Some(10_000), 0).detail.contains("10s ahead of"));
    }

    #[test]
    fn the_first_failure_is_the_exit_code_and_the_rest_is_skipped() {
        let mut report = Report::default();
        report.ok("address", "here is 127.0.0.1:1");
        report.fail("tcp", Exit::Away, "refused", "start it");
        let answer = report.into_answer(&STAGES);
        assert_eq!(answer.exit, Exit::Away);
        let expected = "\
OK    address  here is 127.0.0.1:1
FAIL  tcp      refused
               start it
SKIP  tls      not reached
";
        assert!(answer.text.starts_with(expected), "{}", answer.text);
        assert_eq!(answer.json["ok"], false);
        assert_eq!(
            answer.json["stages"].as_array().map(Vec::len),
            Some(STAGES.len())
        );
        assert_eq!(answer.json["stages"][1]["result"], "fail");
    }
}
