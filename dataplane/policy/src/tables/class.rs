//! What the rules of one class say about topics: one trie for each action, shadow rules apart.

use super::topic_trie::{Builder, TopicTrie};
use crate::Effect;
use crate::model::RuleModel;
use crate::rows::Mode;

/// A class: all rules with one who-part.
#[derive(Debug, Default)]
pub(crate) struct ClassTable {
    pub(crate) enforce: Tries,
    /// Shadow rules never stop a walk, because they are not on it.
    pub(crate) shadow: Option<Box<Tries>>,
}

/// One trie for each question.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    pub(crate) publish: Option<TopicTrie>,
    /// Rules that name `subscribe`.
    pub(crate) subscribe: Option<TopicTrie>,
    /// Rules that name `subscribe` or `receive`; absent when no rule names `receive` alone, since it would be the same
    /// as `subscribe`.
    receive_apart: Option<TopicTrie>,
}

impl Tries {
    /// Rules that judge deliveries.
    pub(crate) fn receive(&self) -> Option<&TopicTrie> {
        self.receive_apart.as_ref().or(self.subscribe.as_ref())
    }

    /// True exactly when deliveries are judged by other rules than subscriptions.
    pub(crate) fn has_receive_apart(&self) -> bool {
        self.receive_apart.is_some()
    }
}

impl ClassTable {
    /// Compiles the rules of one class, given with their ranks.
    pub(crate) fn new<'r>(rules: impl Iterator<Item = (u32, &'r RuleModel)>) -> Self {
        let (mut enforce, mut shadow) = (Drafts::default(), Drafts::default());
        for (rank, rule) in rules {
            match rule.mode {
                Mode::Enforce => enforce.add(rank, rule),
                Mode::Shadow => shadow.add(rank, rule),
            }
        }
        let has_shadow = shadow.has_any;
        Self {
            enforce: enforce.build(),
            shadow: has_shadow.then(|| Box::new(shadow.build())),
        }
    }
}

#[derive(Default)]
struct Drafts<'f> {
    publish: Builder<'f>,
    subscribe: Builder<'f>,
    receive: Builder<'f>,
    is_receive_apart: bool,
    has_any: bool,
}

impl<'f> Drafts<'f> {
    fn add(&mut self, rank: u32, rule: &'f RuleModel) {
        self.has_any |= rule.actions.needs_topics();
        self.is_receive_apart |= rule.actions.receive && !rule.actions.subscribe;
        let is_deny = rule.effect == Effect::Deny;
        for topic in &rule.topics {
            if rule.actions.publish {
                self.publish.add(topic, rank, is_deny);
            }
            if rule.actions.subscribe {
                self.subscribe.add(topic, rank, is_deny);
            }
            if rule.actions.judges_deliveries() {
                self.receive.add(topic, rank, is_deny);
            }
        }
    }

    fn build(self) -> Tries {
        Tries {
            publish: self.publish.build(),
            subscribe: self.subscribe.build(),
            receive_apart: if self.is_receive_apart {
                self.receive.build()
            } else {
                None
            },
        }
    }
}
