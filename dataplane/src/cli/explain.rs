//! `explain`: what a policy decides about one request, by which rule, and which rules were passed over.
//!
//! Owns the words of the command line; the reasons are the policy's. Answers with 0 whether it is allow or deny: the
//! question was answered.

use std::io::Write;

use sluice_policy::{Action, Generation, ListenerId, Question, Request, Snapshot, Who};
use sluice_wire::mqtt::{FilterError, QoS, Version, is_topic_name, parse_filter};

use super::{ActionName, EXIT_POLICY, ExplainArgs, Output, ProtocolVersion, complain};

pub(super) fn explain(args: &ExplainArgs, out: &mut impl Write) -> u8 {
    let document = match super::read(&args.policy) {
        Ok(document) => document,
        Err(code) => return code,
    };
    let name = args.policy.display().to_string();
    let compiled = sluice_policy::text_of(&document, &name)
        .and_then(|text| sluice_policy::compile(text, &name, Generation(1), None));
    let snapshot = match compiled {
        Ok(snapshot) => snapshot,
        Err(errors) => {
            let _ = writeln!(out, "{errors}");
            return EXIT_POLICY;
        }
    };
    match ask(args, &snapshot, out) {
        Ok(()) => 0,
        Err(message) => complain(format_args!("{message}")),
    }
}

fn ask(args: &ExplainArgs, snapshot: &Snapshot, out: &mut impl Write) -> Result<(), String> {
    let who = Who {
        listener: listener(args, snapshot)?,
        address: args.address,
        version: version(args.version),
        client_id: &args.client_id,
        username: args.user.as_deref(),
    };
    let explanation = snapshot.explain(&who, &question(args)?);
    let written = match args.output {
        Output::Text => writeln!(out, "{explanation}"),
        Output::Json => {
            let json = serde_json::to_string_pretty(&explanation).map_err(|e| e.to_string())?;
            writeln!(out, "{json}")
        }
    };
    let _ = written; // who reads may have enough
    Ok(())
}

fn listener(args: &ExplainArgs, snapshot: &Snapshot) -> Result<ListenerId, String> {
    let names = || {
        let names: Vec<&str> = snapshot.listeners().iter().map(|l| &*l.name).collect();
        names.join(", ")
    };
    match (&args.listener, snapshot.listeners()) {
        (Some(name), _) => snapshot
            .listener_by_name(name)
            .map(|listener| listener.id)
            .ok_or_else(|| format!("no listener `{name}`; the policy has: {}", names())),
        (None, [only]) => Ok(only.id),
        (None, _) => Err(format!("--listener is needed, one of: {}", names())),
    }
}

fn question(args: &ExplainArgs) -> Result<Question<'_>, String> {
    let topic = args.topic.as_deref().unwrap_or_default();
    let qos = QoS::from_bits(args.qos).ok_or("no such QoS")?;
    let message = |action| {
        if !is_topic_name(topic) {
            return Err(format!(
                "`{topic}` is no topic name (not empty, no `+`, `#` or NUL)"
            ));
        }
        Ok(Question::Message(Request {
            action,
            topic,
            qos,
            retain: args.retain,
            payload_bytes: args.payload_bytes,
        }))
    };
    match args.action {
        ActionName::Connect => Ok(Question::Connect),
        ActionName::Publish => message(Action::Publish),
        ActionName::Receive => message(Action::Receive),
        ActionName::Subscribe => {
            let parsed = parse_filter(topic)
                .map_err(|error| format!("`{topic}` is no topic filter: {}", fault(error)))?;
            Ok(Question::Subscribe {
                filter: parsed.filter,
                qos,
                shared: parsed.share_group.is_some(),
            })
        }
    }
}

/// What is wrong with a filter, in words.
fn fault(error: FilterError) -> &'static str {
    match error {
        FilterError::Empty => "it is empty",
        FilterError::TooLong => "it is longer than 65535 bytes",
        FilterError::Nul => "it contains NUL",
        FilterError::MultiLevelNotLast => "`#` must be the last level",
        FilterError::MultiLevelNotAlone => "`#` must be a whole level",
        FilterError::WildcardNotAlone => "`+` must be a whole level",
        FilterError::ShareGroup => "the name of the share is empty or has a wildcard",
        FilterError::ShareWithoutFilter => "no filter follows the name of the share",
    }
}

fn version(version: ProtocolVersion) -> Version {
    match version {
        ProtocolVersion::V31 => Version::V31,
        ProtocolVersion::V311 => Version::V311,
        ProtocolVersion::V5 => Version::V5,
    }
}
