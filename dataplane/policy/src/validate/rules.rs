//! Rules: who they are about, what they say, and that what they ask for can happen.

use std::sync::Arc;

use sluice_wire::mqtt::QoS;
use smallvec::SmallVec;

use super::Checker;
use crate::document::shown;
use crate::filter::TopicFilter;
use crate::model::{ActionSet, RuleModel, VersionSet, WhoPart};
use crate::problem::Position;
use crate::rows::{Mode, QosOver, Retain, RuleRow, Text, WhoRow};
use crate::{Action, Effect, OnDeny};

/// What the document says where a rule does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    pub(super) on_deny: OnDeny,
    pub(super) narrow: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            on_deny: OnDeny::Drop,
            narrow: false,
        }
    }
}

impl Checker<'_> {
    pub(super) fn rule(&mut self, row: RuleRow, position: usize, defaults: Defaults) -> RuleModel {
        let actions = self.actions(&row);
        let effect = match &row.decision {
            Some(decision) => decision.value,
            None => {
                self.missing(row.at, "rule", &row.name, "decision");
                Effect::Deny
            }
        };
        self.check_obligations(&row, actions, effect);
        if actions.needs_topics() && row.topics.is_empty() {
            self.missing(row.at, "rule", &row.name, "topics");
        }
        let mut topics: SmallVec<[TopicFilter<'_>; 8]> = SmallVec::new();
        for text in &row.topics {
            if self.problems.is_cancelled() {
                break;
            }
            match TopicFilter::parse(&text.value) {
                Ok(filter) if topics.contains(&filter) => {
                    self.wrong(text, "the filter is there twice")
                }
                Ok(filter) => topics.push(filter),
                Err(message) => self.wrong(text, message),
            }
        }
        let qos_max = match row.qos_max.as_ref().map(|located| located.value) {
            Some(0) => QoS::AtMostOnce,
            Some(1) => QoS::AtLeastOnce,
            Some(_) | None => QoS::ExactlyOnce,
        };
        RuleModel {
            text: RuleModel::text(&row.name.value, &topics),
            priority: row.priority.map_or(0, |located| located.value),
            order: row.order.map_or_else(
                || i64::try_from(position).unwrap_or(i64::MAX),
                |located| located.value,
            ),
            tie: 0,
            who: self.shared_who(row.at, row.who),
            actions,
            effect,
            qos_max,
            qos_over: row
                .qos_over
                .map_or(QosOver::Downgrade, |located| located.value),
            retain: row.retain.map_or(Retain::Allow, |located| located.value),
            payload_bytes_max: row
                .payload_bytes_max
                .map(|located| u32::try_from(located.value).unwrap_or(u32::MAX)),
            row: 0,
            narrow: actions.subscribe
                && effect == Effect::Allow
                && row.narrow.map_or(defaults.narrow, |located| located.value),
            on_deny: row
                .on_deny
                .map_or(defaults.on_deny, |located| located.value),
            mode: row.mode.map_or(Mode::Enforce, |located| located.value),
            enabled: row.enabled.is_none_or(|located| located.value),
        }
    }

    fn actions(&mut self, row: &RuleRow) -> ActionSet {
        let mut actions = ActionSet::default();
        for action in &row.actions {
            let bit = match action.value {
                Action::Connect => &mut actions.connect,
                Action::Publish => &mut actions.publish,
                Action::Subscribe => &mut actions.subscribe,
                Action::Receive => &mut actions.receive,
            };
            if std::mem::replace(bit, true) {
                self.problem(action, "the action is there twice");
            }
        }
        if row.actions.is_empty() {
            self.missing(row.at, "rule", &row.name, "actions");
        }
        actions
    }

    /// What a rule asks for must be able to happen.
    fn check_obligations(&mut self, row: &RuleRow, actions: ActionSet, effect: Effect) {
        if let Some(topic) = row.topics.first()
            && !actions.needs_topics()
        {
            self.problem(
                topic,
                "`topics` have no effect on a rule for `connect` alone",
            );
        }
        if let Some(qos_max) = &row.qos_max
            && qos_max.value > 2
        {
            let message = format!("`qos_max` is 0, 1 or 2, not {}", qos_max.value);
            self.problem(qos_max, message);
        }
        if let (Some(qos_over), true) = (
            &row.qos_over,
            row.qos_max.as_ref().is_none_or(|max| max.value >= 2),
        ) {
            self.problem(
                qos_over,
                "`qos_over` has no effect without a `qos_max` of 0 or 1",
            );
        }
        if let Some(max) = &row.payload_bytes_max
            && max.value > u64::from(u32::MAX)
        {
            self.problem(max, "`payload_bytes_max` is larger than any MQTT packet");
        }
        let settings = [
            ("qos_max", row.qos_max.as_ref().map(|located| located.at)),
            ("retain", row.retain.as_ref().map(|located| located.at)),
            (
                "payload_bytes_max",
                row.payload_bytes_max.as_ref().map(|located| located.at),
            ),
        ];
        for (key, at) in settings {
            let Some(at) = at else {
                continue;
            };
            if effect == Effect::Deny {
                self.problems
                    .add(at, format!("`{key}` has no effect on a rule that denies"));
            } else if !actions.needs_topics() {
                self.problems.add(
                    at,
                    format!("`{key}` has no effect on a rule for `connect` alone"),
                );
            }
        }
        if let Some(narrow) = &row.narrow
            && !(effect == Effect::Allow && actions.subscribe)
        {
            self.problem(
                narrow,
                "`narrow` has no effect on a rule that does not allow to `subscribe`",
            );
        }
        let can_refuse = effect == Effect::Deny
            || row.payload_bytes_max.is_some()
            || row
                .retain
                .as_ref()
                .is_some_and(|retain| retain.value == Retain::Refuse)
            || row
                .qos_over
                .as_ref()
                .is_some_and(|over| over.value == QosOver::Refuse);
        if let Some(on_deny) = &row.on_deny
            && !(actions.publish && can_refuse)
        {
            self.problem(
                on_deny,
                "`on_deny` is about a refused publish, and this rule cannot refuse one",
            );
        }
    }

    fn shared_who(&mut self, at: Position, row: WhoRow) -> Arc<WhoPart> {
        let lists = [
            ("users", &row.users),
            ("user_patterns", &row.user_patterns),
            ("client_ids", &row.client_ids),
            ("client_id_patterns", &row.client_id_patterns),
            ("addresses", &row.addresses),
            ("groups", &row.groups),
            ("versions", &row.versions),
            ("listeners", &row.listeners),
        ];
        for (key, list) in lists {
            if list.as_ref().is_some_and(Vec::is_empty) {
                self.problems.add(
                    at,
                    format!("`{key}` of `who` must not be empty; leave it out to mean any"),
                );
            }
        }
        let who = Arc::new(self.who(row));
        if let Some(known) = self.who_parts.get(&who) {
            return Arc::clone(known);
        }
        self.who_parts.insert(Arc::clone(&who));
        who
    }

    fn who(&mut self, row: WhoRow) -> WhoPart {
        let patterns = row
            .user_patterns
            .iter()
            .chain(&row.client_id_patterns)
            .flatten();
        for text in patterns {
            self.expression(text);
        }
        for group in row.groups.iter().flatten() {
            self.known_group(group);
        }
        for listener in row.listeners.iter().flatten() {
            if !self.listeners.contains_key(&listener.value) {
                let near = self.nearby.suggestion(&listener.value, &self.listeners);
                let name = shown(&listener.value);
                self.problem(listener, format!("there is no listener `{name}`{near}"));
            }
        }
        let versions = row.versions.as_ref().map(|versions| {
            versions.iter().fold(VersionSet::default(), |set, version| {
                self.version(version, set)
            })
        });
        let addresses = row.addresses.as_ref();
        let addresses = addresses.map(|addresses| self.blocks(addresses));
        WhoPart {
            users: set(row.users),
            user_patterns: set(row.user_patterns),
            client_ids: set(row.client_ids),
            client_id_patterns: set(row.client_id_patterns),
            addresses,
            groups: set(row.groups),
            versions,
            listeners: set(row.listeners),
        }
    }
}

fn set(values: Option<Vec<Text>>) -> Option<Box<[Box<str>]>> {
    values.map(|values| {
        let mut values: Vec<Box<str>> = values.into_iter().map(|text| text.value).collect();
        values.sort();
        values.dedup();
        values.into()
    })
}
