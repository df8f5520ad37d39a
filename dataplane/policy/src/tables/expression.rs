//! One regular expression that a text must match from end to end, asked a few characters at a time.
//!
//! Mostly it is an automaton, which takes one step for each character ([`super::patterns`]). One that speaks of word
//! boundaries or lines, or would be too large, is gone through as the states that it may be in: each character then costs as
//! many steps as there are such states. Either way a walk can be left after any character and gone on with later, so that
//! neither a long client id nor a heavy expression holds a shard up.

use std::fmt;
use std::sync::OnceLock;

use regex_automata::nfa::thompson::{self, NFA, State, WhichCaptures};
use regex_automata::util::primitives::StateID;

use super::patterns::Table;
use crate::Effort;
use crate::validate::{PATTERN_COMPILED_BYTES_MAX, anchored};

/// The largest automaton of an expression by itself, in bytes: a document has up to 4,096 of them.
const TABLE_BYTES_MAX: usize = 32 << 10;
/// Steps through states that take as long as a node: they stay in the cache nearest to the core.
const STEPS_A_NODE: usize = 16;

/// Where a walk through a text stands; of one expression or table, and one text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walk {
    /// Bytes of the text that were read.
    pub(super) at: usize,
    /// The state of an automaton; `None` at the start.
    pub(super) state: Option<StateID>,
    /// The states of an expression that may be in several; empty at the start.
    states: Vec<StateID>,
}

impl Walk {
    pub(crate) fn heap_bytes(&self) -> usize {
        self.states.capacity() * size_of::<StateID>()
    }
}

/// An expression by itself. It is compiled when it is first wanted, which is never on a shard: [`Expression::prepare`].
pub(crate) struct Expression {
    text: Box<str>,
    form: OnceLock<Option<Form>>,
}

enum Form {
    Table(Box<Table>),
    States(States),
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.text).finish()
    }
}

impl Expression {
    /// An expression that compiles.
    pub(crate) fn new(text: &str) -> Self {
        Self {
            text: text.into(),
            form: OnceLock::new(),
        }
    }

    /// Compiles it. False: it is too large.
    pub(crate) fn prepare(&self) -> bool {
        self.form().is_some()
    }

    fn form(&self) -> Option<&Form> {
        let compile = || {
            let part = [(self.text.clone(), 0)];
            match Table::build(&part, TABLE_BYTES_MAX) {
                Some(table) => Some(Form::Table(Box::new(table))),
                None => States::compile(&self.text).map(Form::States),
            }
        };
        self.form.get_or_init(compile).as_ref()
    }

    /// True exactly when it matches the whole text.
    pub(crate) fn is_match(&self, text: &str) -> bool {
        let mut walk = Walk::default();
        loop {
            let mut effort = Effort::new(u32::MAX);
            if let Some(is_match) = self.go_on(text, &mut walk, &mut effort) {
                return is_match;
            }
        }
    }

    /// The same within a share of work; `None` when it is used up before.
    pub(crate) fn go_on(&self, text: &str, walk: &mut Walk, effort: &mut Effort) -> Option<bool> {
        match self.form() {
            Some(Form::Table(table)) => Some(table.go_on(text, walk, effort)?.is_some()),
            Some(Form::States(states)) => states.go_on(text, walk, effort),
            None => Some(false),
        }
    }
}

/// An expression as a graph of states.
#[derive(Clone, Debug)]
pub(super) struct States {
    graph: NFA,
}

impl States {
    pub(super) fn compile(text: &str) -> Option<Self> {
        let parsed = regex_syntax::parse(&anchored(text)).ok()?;
        let graph = thompson::Compiler::new()
            .configure(
                thompson::Config::new()
                    .which_captures(WhichCaptures::None)
                    .nfa_size_limit(Some(PATTERN_COMPILED_BYTES_MAX)),
            )
            .build_from_hir(&parsed)
            .ok()?;
        Some(Self { graph })
    }

    pub(super) fn go_on(&self, text: &str, walk: &mut Walk, effort: &mut Effort) -> Option<bool> {
        let text = text.as_bytes();
        if walk.states.is_empty() {
            walk.states.push(self.graph.start_anchored());
        }
        let mut reached = Reached::new(self.graph.states().len());
        let mut steps = 0;
        loop {
            let is_match = self.follow(&walk.states, text, walk.at, &mut reached);
            steps += 1 + reached.list.len();
            let Some(byte) = text.get(walk.at) else {
                effort.spend_for(1, steps / STEPS_A_NODE);
                return Some(is_match);
            };
            walk.states.clear();
            let next = reached.list.iter().filter_map(|id| self.next(*id, *byte));
            walk.states.extend(next);
            walk.at += 1;
            if walk.states.is_empty() {
                effort.spend_for(1, steps / STEPS_A_NODE);
                return Some(false);
            }
            if steps >= STEPS_A_NODE {
                effort.spend_for(0, steps / STEPS_A_NODE);
                steps %= STEPS_A_NODE;
                if effort.is_used_up() {
                    return None;
                }
            }
        }
    }

    /// Everything that can be reached from `from` without reading. True exactly when the end of the expression can.
    fn follow(&self, from: &[StateID], text: &[u8], at: usize, reached: &mut Reached) -> bool {
        reached.clear();
        for id in from {
            reached.add(*id);
        }
        let mut is_match = false;
        let mut place = 0;
        while let Some(id) = reached.list.get(place).copied() {
            place += 1;
            match self.graph.state(id) {
                State::Look { look, next } => {
                    if self.graph.look_matcher().matches(*look, text, at) {
                        reached.add(*next);
                    }
                }
                State::Union { alternates } => alternates.iter().for_each(|id| reached.add(*id)),
                State::BinaryUnion { alt1, alt2 } => {
                    reached.add(*alt1);
                    reached.add(*alt2);
                }
                State::Capture { next, .. } => reached.add(*next),
                State::Match { .. } => is_match = true,
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) | State::Fail => {}
            }
        }
        is_match
    }

    fn next(&self, id: StateID, byte: u8) -> Option<StateID> {
        match self.graph.state(id) {
            State::ByteRange { trans } => trans.matches_byte(byte).then_some(trans.next),
            State::Sparse(sparse) => sparse.matches_byte(byte),
            State::Dense(dense) => dense.matches_byte(byte),
            State::Look { .. }
            | State::Union { .. }
            | State::BinaryUnion { .. }
            | State::Capture { .. }
            | State::Match { .. }
            | State::Fail => None,
        }
    }
}

/// States, each once.
struct Reached {
    list: Vec<StateID>,
    is_in: Vec<bool>,
}

impl Reached {
    fn new(states: usize) -> Self {
        Self {
            list: Vec::new(),
            is_in: vec![false; states],
        }
    }

    fn clear(&mut self) {
        for id in self.list.drain(..) {
            if let Some(is_in) = self.is_in.get_mut(id.as_usize()) {
                *is_in = false;
            }
        }
    }

    fn add(&mut self, id: StateID) {
        if let Some(is_in) = self.is_in.get_mut(id.as_usize())
            && !*is_in
        {
            *is_in = true;
            self.list.push(id);
        }
    }
}
