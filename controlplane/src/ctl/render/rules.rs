//! Rules and how often they decided.

use serde_json::{Value, json};
use sluice_proto::control::v1::{FleetRule, RulesResponse};

use super::table::Table;
use super::{count, time};

fn mode(rule: &FleetRule) -> &'static str {
    if rule.is_shadow { "shadow" } else { "enforce" }
}

fn decision(rule: &FleetRule) -> &'static str {
    if rule.denies { "deny" } else { "allow" }
}

fn name(rule: &FleetRule) -> &str {
    rule.place.as_ref().map_or("", |place| &place.name)
}

/// A page, with a header.
pub(crate) fn page_text(rules: &[FleetRule]) -> String {
    let mut table = Table::new(&[
        "RULE",
        ">PRIORITY",
        "MODE",
        "SAYS",
        ">DECIDED",
        ">OTHERWISE",
        "COUNTED SINCE",
        ">NODES",
    ]);
    for rule in rules {
        let priority = rule.place.as_ref().map_or(0, |place| place.priority);
        table.row([
            name(rule).to_owned(),
            priority.to_string(),
            mode(rule).to_owned(),
            decision(rule).to_owned(),
            rule.decided.to_string(),
            if rule.is_shadow {
                rule.otherwise.to_string()
            } else {
                "-".into()
            },
            time::utc(rule.since_unix_ms),
            rule.nodes.to_string(),
        ]);
    }
    table.text()
}

/// What is said below all pages, from the last of them.
pub(crate) fn end_text(last: &RulesResponse) -> String {
    if last.nodes == 0 {
        return "no node answered\n".into();
    }
    format!(
        "the default decision was taken {}; counted on {} since {}\n",
        count(last.by_default, "time"),
        count(last.nodes.into(), "node"),
        time::utc(last.since_unix_ms)
    )
}

/// One rule.
pub(crate) fn rule_json(rule: &FleetRule) -> Value {
    json!({
        "name": name(rule),
        "priority": rule.place.as_ref().map_or(0, |place| place.priority),
        "mode": mode(rule),
        "decision": decision(rule),
        "decided": rule.decided,
        "otherwise": rule.is_shadow.then_some(rule.otherwise),
        "since_unix_ms": rule.since_unix_ms,
        "nodes": rule.nodes,
    })
}

#[cfg(test)]
mod tests {
    use sluice_proto::v1::RulePlace;

    use super::*;

    #[test]
    fn rules_are_a_table_and_shadow_rules_say_what_they_would_have_done() {
        let rule = |name: &str, is_shadow| FleetRule {
            place: Some(RulePlace {
                priority: -5,
                name: name.into(),
                ..RulePlace::default()
            }),
            is_shadow,
            denies: is_shadow,
            decided: 12,
            otherwise: 3,
            since_unix_ms: 1_000_000_000_000,
            nodes: 2,
        };
        let expected = "\
RULE   PRIORITY  MODE     SAYS   DECIDED  OTHERWISE  COUNTED SINCE         NODES
own          -5  enforce  allow       12          -  2001-09-09 01:46:40Z      2
tried        -5  shadow   deny        12          3  2001-09-09 01:46:40Z      2
";
        assert_eq!(
            page_text(&[rule("own", false), rule("tried", true)]),
            expected
        );
        assert_eq!(rule_json(&rule("own", false))["otherwise"], Value::Null);
        assert_eq!(rule_json(&rule("tried", true))["otherwise"], 3);
        let last = RulesResponse {
            nodes: 1,
            by_default: 2,
            since_unix_ms: 1_000_000_000_000,
            ..RulesResponse::default()
        };
        let expected = "the default decision was taken 2 times; counted on 1 node since 2001-09-09 01:46:40Z\n";
        assert_eq!(end_text(&last), expected);
    }
}
