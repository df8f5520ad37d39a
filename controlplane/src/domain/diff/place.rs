//! Where a rule stands, in words: behind which rule it is asked.

use foldhash::{HashMap, HashMapExt, HashSet};
use sluice_policy::fleet::Inventory;
use sluice_proto::Message;
use sluice_proto::v1::{self, RowKind, row::Kind};

/// The rule before each rule that was asked for, among those of its priority; `None` for the first.
pub(super) struct Places(HashMap<Box<str>, Option<Box<str>>>);

impl Places {
    /// Reads all rules, when any place is wanted at all.
    pub(super) fn of(rows: &Inventory, wanted: &HashSet<&str>) -> Self {
        let mut places = HashMap::new();
        if wanted.is_empty() {
            return Self(places);
        }
        let mut rules: Vec<(i64, i64, u64, &str)> = rows
            .iter()
            .filter(|(key, _)| key.kind == RowKind::Rule)
            .filter_map(|(key, row)| {
                let row = v1::Row::decode(row.clone()).ok()?;
                let Some(Kind::Rule(rule)) = row.kind else {
                    return None;
                };
                Some((rule.priority(), rule.order(), rule.tie, &*key.name))
            })
            .collect();
        rules.sort_unstable();
        let mut before: Option<(i64, &str)> = None;
        for (priority, _, _, name) in rules {
            if wanted.contains(name) {
                let before = before.filter(|(other, _)| *other == priority);
                places.insert(name.into(), before.map(|(_, name)| name.into()));
            }
            before = Some((priority, name));
        }
        Self(places)
    }

    /// What a rule comes after.
    pub(super) fn before(&self, name: &str) -> String {
        match self.0.get(name) {
            Some(Some(before)) => format!("after `{before}`"),
            Some(None) => "first of its priority".into(),
            None => "not known".into(),
        }
    }
}
