//! What the rules of one class say about topics: one trie for each question, shadow rules apart.

use super::topic_trie::{Builder, Mark, TopicTrie};
use crate::Effect;
use crate::model::RuleModel;
use crate::rows::Mode;

/// A table of so many filters and more is changed in its place; a smaller one is built anew, which is quick and takes no
/// memory for changing.
const EDITABLE_FROM: usize = if cfg!(test) { 6 } else { 256 };

/// A class: all rules with one who-part.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClassTable {
    pub(crate) enforce: Tries,
    /// Shadow rules never stop a walk, because they are not on it.
    pub(crate) shadow: Option<Box<Tries>>,
    is_editable: bool,
}

/// One trie for each question.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tries {
    pub(crate) publish: Option<TopicTrie>,
    /// Rules that name `subscribe`; they judge deliveries too.
    pub(crate) subscribe: Option<TopicTrie>,
    /// Rules that name `receive` and not `subscribe`.
    pub(crate) receive_alone: Option<TopicTrie>,
}

impl Tries {
    /// Rules that judge deliveries.
    pub(crate) fn receive(&self) -> impl Iterator<Item = &TopicTrie> {
        self.subscribe.iter().chain(&self.receive_alone)
    }

    fn is_empty(&self) -> bool {
        self.publish.is_none() && self.subscribe.is_none() && self.receive_alone.is_none()
    }

    /// Those that a rule is in.
    fn of_rule(&mut self, rule: &RuleModel) -> impl Iterator<Item = &mut Option<TopicTrie>> {
        let [publish, subscribe, receive_alone] = tries_of(rule);
        [
            (publish, &mut self.publish),
            (subscribe, &mut self.subscribe),
            (receive_alone, &mut self.receive_alone),
        ]
        .into_iter()
        .filter_map(|(is_in, trie)| is_in.then_some(trie))
    }
}

/// Whether a rule is in each of [`Tries`].
fn tries_of(rule: &RuleModel) -> [bool; 3] {
    let actions = rule.actions;
    [
        actions.publish,
        actions.subscribe,
        actions.receive && !actions.subscribe,
    ]
}

/// What the check of subscriptions knows a rule by.
fn mark_of(rule: &RuleModel) -> Option<Mark> {
    match rule.effect {
        Effect::Deny => Some(Mark::Deny),
        Effect::Allow => rule.narrow.then_some(Mark::Narrow),
    }
}

impl ClassTable {
    /// Compiles the rules of one class, given with their ranks.
    pub(crate) fn new<'r>(rules: impl Iterator<Item = (u32, &'r RuleModel)>) -> Self {
        let mut drafts: [[Builder; 3]; 2] = Default::default();
        let [enforce, shadow] = &mut drafts;
        let mut filters = 0;
        for (rank, rule) in rules {
            let tries = match rule.mode {
                Mode::Enforce => &mut *enforce,
                Mode::Shadow => &mut *shadow,
            };
            let mark = mark_of(rule);
            for topic in rule.topics() {
                filters += 1;
                for (trie, is_in) in tries.iter_mut().zip(tries_of(rule)) {
                    if is_in {
                        trie.add(topic, rank, mark);
                    }
                }
            }
        }
        let is_editable = filters >= EDITABLE_FROM;
        let [enforce, shadow] = drafts.map(|drafts| {
            let [publish, subscribe, receive_alone] =
                drafts.map(|builder| builder.build(is_editable));
            Tries {
                publish,
                subscribe,
                receive_alone,
            }
        });
        Self {
            enforce,
            shadow: (!shadow.is_empty()).then(|| Box::new(shadow)),
            is_editable,
        }
    }

    #[cfg(test)]
    pub(crate) fn size(&self) -> usize {
        let all = [Some(&self.enforce), self.shadow.as_deref()];
        let tries = all
            .into_iter()
            .flatten()
            .flat_map(|tries| [&tries.publish, &tries.subscribe, &tries.receive_alone]);
        tries.flatten().map(TopicTrie::size).sum()
    }

    /// True exactly when [`Self::change`] can do anything.
    pub(crate) fn is_editable(&self) -> bool {
        self.is_editable
    }

    /// Adds a rule, or takes one out. False: the table must be built anew from the rules of the class.
    pub(crate) fn change(&mut self, rank: u32, rule: &RuleModel, is_added: bool) -> bool {
        if !self.is_editable {
            return false;
        }
        let tries = match rule.mode {
            Mode::Enforce => &mut self.enforce,
            Mode::Shadow => self.shadow.get_or_insert_default(),
        };
        let mark = mark_of(rule);
        for slot in tries.of_rule(rule) {
            let trie = slot.get_or_insert_with(TopicTrie::editable);
            let is_done = rule.topics().all(|topic| {
                if is_added {
                    trie.add(topic, rank, mark)
                } else {
                    trie.remove(topic, rank, mark)
                }
            });
            if !is_done || trie.is_wasteful() {
                return false;
            }
            if trie.is_empty() {
                *slot = None;
            }
        }
        if self.shadow.as_ref().is_some_and(|shadow| shadow.is_empty()) {
            self.shadow = None;
        }
        true
    }
}
