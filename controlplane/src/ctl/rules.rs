//! `rules`: how often each rule decided, page by page, so that a million rules need not fit into memory.

use serde_json::{Value, json};
use sluice_proto::control::v1::{NodeAnswer, RulesRequest, RulesResponse};
use sluice_proto::v1::RulePlace;

use super::args::{Form, RulesArgs};
use super::connect::Connection;
use super::failure::{Exit, Failure};
use super::out::Out;
use super::render::{clean, nodes, rules as render};

/// Rules in one call, the most there can be.
const PAGE_MAX: u64 = 1000;

/// `rules`.
pub(super) async fn rules(
    connection: &Connection,
    args: &RulesArgs,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut told = Told::default();
    // Before anything is printed, so that what fails at once is an error like any other.
    let mut next = Some(page(connection, args, None, left).await?);
    if out.form() == Form::Json {
        out.print("{\"rules\":[");
    }
    while let Some(answer) = next.take() {
        let has_readers = out.print(&piece(out.form(), &answer, told.shown));
        left = left.saturating_sub(answer.rules.len() as u64);
        let behind = answer.next.clone().filter(|_| has_readers && left > 0);
        told.add(answer);
        if behind.is_some() {
            match page(connection, args, behind, left).await {
                Ok(answer) => next = Some(answer),
                Err(failure) => told.broken = Some(failure),
            }
        }
    }
    Ok(told.end(args, out))
}

async fn page(
    connection: &Connection,
    args: &RulesArgs,
    behind: Option<RulePlace>,
    left: u64,
) -> Result<RulesResponse, Failure> {
    let request = RulesRequest {
        node: args.node.clone(),
        only_unused: args.unused,
        only_shadow: args.shadow,
        limit: u32::try_from(left.min(PAGE_MAX)).ok(),
        behind,
    };
    let mut client = connection.nodes();
    let found = connection.call(client.rules(request)).await;
    found.map_err(|status| Failure::from_status(&status))
}

fn piece(form: Form, answer: &RulesResponse, shown: u64) -> String {
    match form {
        Form::Text if answer.rules.is_empty() => String::new(),
        Form::Text => render::page_text(&answer.rules),
        Form::Json => {
            let mut text = String::new();
            for (index, rule) in answer.rules.iter().enumerate() {
                let comma = if shown == 0 && index == 0 { "" } else { "," };
                text.push_str(&format!("{comma}\n{}", render::rule_json(rule)));
            }
            text
        }
    }
}

/// What was told so far.
#[derive(Default)]
struct Told {
    shown: u64,
    /// The page that was told last, without its rules.
    last: RulesResponse,
    failed: Vec<NodeAnswer>,
    broken: Option<Failure>,
}

impl Told {
    fn add(&mut self, mut answer: RulesResponse) {
        self.shown += answer.rules.len() as u64;
        answer.rules.clear();
        for node in std::mem::take(&mut answer.failed) {
            if !self.failed.iter().any(|known| known.node == node.node) {
                self.failed.push(node);
            }
        }
        self.last = answer;
    }

    fn end(self, args: &RulesArgs, out: &mut Out) -> Exit {
        match out.form() {
            Form::Text => self.end_text(args, out),
            Form::Json => {
                let last = &self.last;
                let error = self.broken.as_ref();
                let end = json!({
                    "nodes": last.nodes,
                    "by_default": last.by_default,
                    "left_off": last.left_off,
                    "since_unix_ms": last.since_unix_ms,
                    "failed": nodes::answers_json(&self.failed),
                    "error": error.map_or(Value::Null, |failure| failure.json()["error"].clone()),
                });
                let end = end.to_string();
                out.print(&format!("\n],{}\n", end.trim_start_matches('{')));
            }
        }
        match self.broken {
            Some(failure) if out.form() == Form::Text => out.failure(&failure),
            Some(failure) => failure.exit,
            None if self.failed.is_empty() => Exit::Done,
            None => Exit::Partly,
        }
    }

    fn end_text(&self, args: &RulesArgs, out: &mut Out) {
        if self.shown == 0 && self.last.nodes > 0 {
            out.print(match (args.unused, args.shadow) {
                (true, true) => "every rule in shadow would have decided something\n",
                (true, false) => "every rule decided something\n",
                (false, true) => "no rules in shadow\n",
                (false, false) => "no rules\n",
            });
        }
        out.print(&render::end_text(&self.last));
        if self.last.left_off > 0 {
            out.warn(&format!(
                "{} decisions were not counted for their rule for want of memory (--rule-counts-mib of sluice-dataplane); rules shown as unused may have made them",
                self.last.left_off
            ));
        }
        for node in &self.failed {
            out.warn(&format!(
                "{} is not counted: {}",
                clean(&node.node),
                clean(&node.error)
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::control::v1::FleetRule;

    use super::*;

    #[test]
    fn pages_make_one_json_document() {
        let page = |count| RulesResponse {
            rules: vec![FleetRule::default(); count],
            ..RulesResponse::default()
        };
        let mut text = String::from("[");
        let mut shown = 0;
        for count in [0, 2, 0, 1] {
            text.push_str(&piece(Form::Json, &page(count), shown));
            shown += count as u64;
        }
        text.push(']');
        let read: Value = serde_json::from_str(&text).expect("one document");
        assert_eq!(read.as_array().map(Vec::len), Some(3));
    }
}
