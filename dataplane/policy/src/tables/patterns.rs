//! Regular expressions that client ids or user names must match from end to end, all of one kind asked at once.
//!
//! A client chooses its id, so what the answer costs must not depend on what is in it. Expressions are compiled into automata
//! that take one step for each character, several expressions in each; an automaton that would be larger than
//! [`TABLE_BYTES_MAX`] is divided. So an answer takes at most [`TABLES_MAX`] times the characters of a name, however many
//! expressions there are, and mostly less, since an automaton stops at the first character that none of its expressions
//! can go on with. Documents that need more are refused. How long a name may be is a listener's to say, so an answer is found
//! in shares: a [`Matching`] can be left after any few characters.
//!
//! An automaton does not read bytes but kinds of characters: those that no expression of it tells apart are one kind.
//! Without that a `\d`, which is any digit of any script, would take hundreds of states.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::primitives::StateID;
use regex_automata::{Anchored, Input, MatchKind};
use regex_syntax::hir::{Class, ClassBytes, ClassBytesRange, Hir, HirKind, Look, Repetition};
use smallvec::SmallVec;

use super::expression::{States, Walk};
use crate::Effort;

/// Largest automaton, in bytes: a few of them stay in the cache nearest to the core.
const TABLE_BYTES_MAX: usize = if cfg!(test) { 16 << 10 } else { 128 << 10 };
/// Automata of one kind: a step takes about two nanoseconds, and a client id has 256 characters unless a listener allows
/// more (bench `slices`).
const TABLES_MAX: usize = 64;
/// Characters that are read at the cost of a node, on a table that is in no cache.
const CHARACTERS_A_NODE: usize = 8;
/// Numbers that are put in order at the cost of a node.
const NUMBERS_A_NODE: usize = 32;
/// Expressions of one kind that cannot be an automaton of this kind by themselves: those that speak of word boundaries or
/// lines, or would be too large. They are evaluated one by one.
const OTHERS_MAX: usize = 8;
/// Expressions that are tried as one automaton first.
const PART_MAX: usize = if cfg!(test) { 8 } else { 256 };
/// Memory while one is made.
const BUILD_BYTES_MAX: usize = 8 << 20;

/// See the file's header.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matcher {
    tables: Vec<Arc<Table>>,
    others: Vec<(u32, States)>,
}

/// Numbers of expressions that match, in order.
pub(crate) type Found = SmallVec<[u32; 8]>;

/// An expression with its number.
type Numbered = (Box<str>, u32);

/// Which expressions match, as far as that is known.
#[derive(Debug, Default)]
pub(crate) struct Matching {
    /// Tables and others that were asked.
    asked: usize,
    /// Through the next one.
    walk: Walk,
    found: Found,
    is_over: bool,
}

impl Matching {
    /// Numbers of expressions that match, in order, once all were asked.
    pub(crate) fn found(&self) -> &Found {
        &self.found
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        let found = if self.found.spilled() {
            self.found.capacity() * size_of::<u32>()
        } else {
            0
        };
        self.walk.heap_bytes() + found
    }
}

#[derive(Debug)]
pub(super) struct Table {
    /// In the order of the automaton.
    patterns: Box<[Numbered]>,
    alphabet: Alphabet,
    automaton: dense::DFA<Vec<u32>>,
}

impl Matcher {
    /// Finds the expressions that match the whole text, within a share of work; `None` when it is used up before.
    pub(crate) fn go_on(
        &self,
        text: &str,
        matching: &mut Matching,
        effort: &mut Effort,
    ) -> Option<()> {
        while !matching.is_over {
            if effort.is_used_up() {
                return None;
            }
            if let Some(table) = self.tables.get(matching.asked) {
                let end = table.go_on(text, &mut matching.walk, effort)?;
                table.collect(end, &mut matching.found);
            } else if let Some((number, states)) =
                self.others.get(matching.asked - self.tables.len())
            {
                if states.go_on(text, &mut matching.walk, effort)? {
                    matching.found.push(*number);
                }
            } else {
                matching.found.sort_unstable();
                effort.spend_for(0, matching.found.len() / NUMBERS_A_NODE);
                matching.is_over = true;
            }
            matching.walk = Walk::default();
            matching.asked += 1;
        }
        Some(())
    }

    /// A matcher of these expressions, all of which compile by themselves. Automata whose expressions are all still there
    /// are taken over. The error is for the writer of the expressions.
    pub(crate) fn compile<'a>(
        &self,
        patterns: impl Iterator<Item = (u32, &'a str)>,
    ) -> Result<Self, &'static str> {
        // In the order of their texts: those that begin alike share states.
        let wanted: BTreeSet<(Box<str>, u32)> = patterns
            .map(|(number, text)| (text.into(), number))
            .collect();
        let mut kept = Self::default();
        let mut missing = wanted.clone();
        for table in &self.tables {
            if table
                .patterns
                .iter()
                .all(|pattern| wanted.contains(pattern))
            {
                kept.tables.push(Arc::clone(table));
                for pattern in &table.patterns {
                    missing.remove(pattern);
                }
            }
        }
        kept.add_all(missing);
        // Far from the bound, so that what is accepted piece by piece is accepted as a whole too.
        if kept.tables.len() <= TABLES_MAX / 2 {
            kept.check()?;
            return Ok(kept);
        }
        let mut whole = Self::default();
        whole.add_all(wanted);
        whole.check()?;
        Ok(whole)
    }

    fn add_all(&mut self, patterns: BTreeSet<Numbered>) {
        let patterns: Vec<Numbered> = patterns.into_iter().collect();
        for part in patterns.chunks(PART_MAX) {
            self.add(part);
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.others.len() > OTHERS_MAX {
            return Err(
                "too many of them are too complex, or about word boundaries or lines; write simpler ones",
            );
        }
        if self.tables.len() > TABLES_MAX {
            return Err("together they are too complex; write fewer or simpler ones");
        }
        Ok(())
    }

    fn add(&mut self, part: &[Numbered]) {
        if self.check().is_err() {
            return;
        }
        if let Some(table) = Table::build(part, TABLE_BYTES_MAX) {
            self.tables.push(Arc::new(table));
        } else if let [(text, number)] = part {
            // It compiled when it was read.
            let states = States::compile(text);
            self.others.extend(states.map(|states| (*number, states)));
        } else {
            let (left, right) = part.split_at(part.len() / 2);
            self.add(left);
            self.add(right);
        }
    }
}

impl Table {
    /// `None` where the expressions cannot be one automaton of that size.
    pub(super) fn build(part: &[Numbered], bytes_max: usize) -> Option<Self> {
        let parsed = part.iter().map(|(text, _)| regex_syntax::parse(text).ok());
        let parsed: Vec<Hir> = parsed.collect::<Option<_>>()?;
        let mut sets = Sets::default();
        for expression in &parsed {
            sets.add_all(expression)?;
        }
        let (alphabet, kinds) = sets.divide()?;
        let translated = parsed.iter().map(|expression| {
            let expression = translate(expression, &sets, &kinds)?;
            Some(Hir::concat(vec![expression, Hir::look(Look::End)]))
        });
        let translated: Vec<Hir> = translated.collect::<Option<_>>()?;
        let nfa = thompson::Compiler::new()
            .configure(
                thompson::Config::new()
                    .utf8(false)
                    .which_captures(WhichCaptures::None)
                    .nfa_size_limit(Some(BUILD_BYTES_MAX)),
            )
            .build_many_from_hir(&translated)
            .ok()?;
        let automaton = dense::Builder::new()
            .configure(
                dense::Config::new()
                    .start_kind(StartKind::Anchored)
                    .match_kind(MatchKind::All)
                    .accelerate(false)
                    .dfa_size_limit(Some(bytes_max))
                    .determinize_size_limit(Some(BUILD_BYTES_MAX)),
            )
            .build_from_nfa(&nfa)
            .ok()?;
        Some(Self {
            patterns: part.into(),
            alphabet,
            automaton,
        })
    }

    /// The state in which the end of the text is reached, if any expression matches it.
    pub(super) fn go_on(
        &self,
        text: &str,
        walk: &mut Walk,
        effort: &mut Effort,
    ) -> Option<Option<StateID>> {
        let start = || {
            let start = Input::new("").anchored(Anchored::Yes);
            self.automaton.start_state_forward(&start).ok()
        };
        let Some(mut state) = walk.state.or_else(start) else {
            return Some(None); // never: no expression looks behind
        };
        let mut rest = text.get(walk.at..).unwrap_or_default().chars();
        loop {
            effort.spend(1);
            for character in rest.by_ref().take(CHARACTERS_A_NODE) {
                let kind = self.alphabet.kind(character);
                state = self.automaton.next_state(state, kind);
                if self.automaton.is_dead_state(state) {
                    return Some(None);
                }
            }
            if rest.as_str().is_empty() {
                let end = self.automaton.next_eoi_state(state);
                return Some(self.automaton.is_match_state(end).then_some(end));
            }
            if effort.is_used_up() {
                walk.at = text.len() - rest.as_str().len();
                walk.state = Some(state);
                return None;
            }
        }
    }

    /// The expressions that match where the text ends in this state.
    fn collect(&self, end: Option<StateID>, found: &mut Found) {
        let Some(end) = end else {
            return;
        };
        for index in 0..self.automaton.match_len(end) {
            let place = self.automaton.match_pattern(end, index).as_usize();
            found.extend(self.patterns.get(place).map(|(_, number)| *number));
        }
    }
}

/// Which kind a character is of.
#[derive(Debug)]
struct Alphabet {
    ascii: [u8; 128],
    /// Where another kind begins, from the first character on.
    begins: Box<[(u32, u8)]>,
}

impl Alphabet {
    #[inline]
    fn kind(&self, character: char) -> u8 {
        let code = u32::from(character);
        match self.ascii.get(code as usize) {
            Some(kind) => *kind,
            None => self.find(code),
        }
    }

    fn find(&self, code: u32) -> u8 {
        let behind = self.begins.partition_point(|(begin, _)| *begin <= code);
        let (_, kind) = self.begins.get(behind.wrapping_sub(1)).unwrap_or(&(0, 0));
        *kind
    }
}

/// Sets of characters that expressions name, by their ranges.
#[derive(Default)]
struct Sets {
    numbers: HashMap<Box<[(u32, u32)]>, usize>,
}

impl Sets {
    /// Every set of an expression; `None` where it says what cannot be said in kinds.
    fn add_all(&mut self, expression: &Hir) -> Option<()> {
        match expression.kind() {
            HirKind::Empty | HirKind::Look(Look::Start | Look::End) => Some(()),
            HirKind::Look(_) => None,
            HirKind::Literal(literal) => {
                for character in str::from_utf8(&literal.0).ok()?.chars() {
                    self.add(single(character));
                }
                Some(())
            }
            HirKind::Class(class) => {
                self.add(ranges(class)?);
                Some(())
            }
            HirKind::Repetition(repetition) => self.add_all(&repetition.sub),
            HirKind::Capture(capture) => self.add_all(&capture.sub),
            HirKind::Concat(parts) | HirKind::Alternation(parts) => {
                parts.iter().try_for_each(|part| self.add_all(part))
            }
        }
    }

    fn add(&mut self, set: Box<[(u32, u32)]>) {
        let number = self.numbers.len();
        self.numbers.entry(set).or_insert(number);
    }

    /// Characters that are in the same sets are of one kind. For each set its kinds; `None` when there are more kinds than
    /// a byte can name.
    fn divide(&self) -> Option<(Alphabet, Vec<Vec<u8>>)> {
        let mut edges: Vec<(u32, bool, usize)> = Vec::new();
        for (set, number) in &self.numbers {
            for (first, last) in set {
                edges.push((*first, true, *number));
                edges.push((*last + 1, false, *number));
            }
        }
        edges.sort_unstable();
        let mut kinds = vec![Vec::new(); self.numbers.len()];
        let mut known: HashMap<Vec<usize>, u8> = HashMap::from([(Vec::new(), 0)]);
        let mut begins = vec![(0, 0)];
        let mut inside: Vec<usize> = Vec::new();
        for group in edges.chunk_by(|left, right| left.0 == right.0) {
            for (_, is_begin, number) in group {
                match inside.binary_search(number) {
                    Ok(at) if !is_begin => drop(inside.remove(at)),
                    Err(at) if *is_begin => inside.insert(at, *number),
                    // One range ends where the next one of the same set begins.
                    Ok(_) | Err(_) => {}
                }
            }
            let kind = match known.get(&inside) {
                Some(kind) => *kind,
                None => {
                    let kind = u8::try_from(known.len()).ok()?;
                    known.insert(inside.clone(), kind);
                    for number in &inside {
                        kinds.get_mut(*number)?.push(kind);
                    }
                    kind
                }
            };
            begins.push((group.first()?.0, kind));
        }
        let mut alphabet = Alphabet {
            ascii: [0; 128],
            begins: begins.into(),
        };
        for code in 0..128_u8 {
            let kind = alphabet.find(u32::from(code));
            *alphabet.ascii.get_mut(usize::from(code))? = kind;
        }
        Some((alphabet, kinds))
    }

    /// The kinds of a set, as what an automaton of bytes reads.
    fn class(&self, set: &[(u32, u32)], kinds: &[Vec<u8>]) -> Option<Hir> {
        let kinds = kinds.get(*self.numbers.get(set)?)?;
        let ranges = kinds.iter().map(|kind| ClassBytesRange::new(*kind, *kind));
        Some(Hir::class(Class::Bytes(ClassBytes::new(ranges))))
    }
}

fn single(character: char) -> Box<[(u32, u32)]> {
    Box::new([(u32::from(character), u32::from(character))])
}

fn ranges(class: &Class) -> Option<Box<[(u32, u32)]>> {
    match class {
        Class::Unicode(class) => {
            let ranges = class.iter();
            Some(
                ranges
                    .map(|range| (range.start().into(), range.end().into()))
                    .collect(),
            )
        }
        // Without Unicode; beyond ASCII it would be parts of characters.
        Class::Bytes(class) if class.is_ascii() => {
            let ranges = class.iter();
            Some(
                ranges
                    .map(|range| (range.start().into(), range.end().into()))
                    .collect(),
            )
        }
        Class::Bytes(_) => None,
    }
}

/// The same expression about kinds of characters.
fn translate(expression: &Hir, sets: &Sets, kinds: &[Vec<u8>]) -> Option<Hir> {
    let all = |parts: &[Hir]| {
        let parts = parts.iter().map(|part| translate(part, sets, kinds));
        parts.collect::<Option<Vec<Hir>>>()
    };
    Some(match expression.kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Look(look) => Hir::look(*look),
        HirKind::Literal(literal) => {
            let text = str::from_utf8(&literal.0).ok()?;
            let characters = text.chars().map(|char| sets.class(&single(char), kinds));
            Hir::concat(characters.collect::<Option<_>>()?)
        }
        HirKind::Class(class) => sets.class(&ranges(class)?, kinds)?,
        HirKind::Repetition(repetition) => Hir::repetition(Repetition {
            min: repetition.min,
            max: repetition.max,
            greedy: repetition.greedy,
            sub: Box::new(translate(&repetition.sub, sets, kinds)?),
        }),
        HirKind::Capture(capture) => translate(&capture.sub, sets, kinds)?,
        HirKind::Concat(parts) => Hir::concat(all(parts)?),
        HirKind::Alternation(parts) => Hir::alternation(all(parts)?),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use regex::Regex;

    use super::*;
    use crate::tables::expression::Expression;
    use crate::validate::anchored;

    impl Matcher {
        /// In shares of so many nodes.
        fn matches(&self, text: &str, share: u32) -> Found {
            let mut matching = Matching::default();
            loop {
                let mut effort = Effort::new(share);
                if self.go_on(text, &mut matching, &mut effort).is_some() {
                    return matching.found;
                }
                assert!(effort.is_used_up() && effort.spent() <= share + 64);
            }
        }
    }

    fn compiled(patterns: &[&str]) -> Result<Matcher, &'static str> {
        Matcher::default().compile((0..).zip(patterns.iter().copied()))
    }

    fn expected(patterns: &[&str], text: &str) -> Vec<u32> {
        let is_match = |pattern: &str| Regex::new(&anchored(pattern)).unwrap().is_match(text);
        let matching = (0..).zip(patterns).filter(|(_, text)| is_match(text));
        matching.map(|(number, _)| number).collect()
    }

    /// Every construct there is, and how it can meet another.
    const PATTERNS: &[&str] = &[
        "",
        "a",
        "a|b",
        "a|",
        "ab*c",
        "(a)(b)?",
        "a{2,3}",
        "[a-c]+",
        "[^a]",
        "[^a-z]{2}",
        ".*",
        ".+b",
        "(?i)AB",
        "(?s).b.",
        r"\d+",
        r"\w-\w",
        r"\D",
        r"\p{Greek}+",
        "é|è",
        "日本?",
        r"a\z",
        r"\Aa|b$",
        "^(?:ab|ac)$",
        r"(?-u:[a-b])\d",
        r"[[:alpha:]&&[^b]]",
        "a*?b",
        r"[\x{10000}-\x{10ffff}]",
        r"[a&&b]",
        // These are evaluated by themselves.
        r"\bab\b",
        "(?m)^a$",
        r"a\B.",
    ];

    fn text() -> impl Strategy<Value = String> {
        let character = prop::sample::select(vec![
            'a', 'b', 'c', 'A', 'B', 'z', '-', '_', '0', '7', '٣', 'é', 'è', 'β', '日', '本', '\n',
            ' ', '𝄞',
        ]);
        prop::collection::vec(character, 0..5).prop_map(|list| list.into_iter().collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn tables_say_what_the_expressions_say(
            patterns in prop::sample::subsequence(PATTERNS, 0..=PATTERNS.len()),
            texts in prop::collection::vec(text(), 20),
            share in prop::sample::select(vec![1, 2, u32::MAX]),
        ) {
            let matcher = compiled(&patterns).unwrap();
            for text in texts {
                prop_assert_eq!(matcher.matches(&text, share).to_vec(), expected(&patterns, &text), "{:?}", text);
            }
        }

        /// Each by itself, also as states where it could be a table.
        #[test]
        fn an_expression_says_the_same_in_either_form(
            pattern in prop::sample::select(PATTERNS),
            texts in prop::collection::vec(text(), 20),
        ) {
            let (expression, states) = (Expression::new(pattern), States::compile(pattern).unwrap());
            for text in texts {
                let is_match = Regex::new(&anchored(pattern)).unwrap().is_match(&text);
                prop_assert_eq!(expression.is_match(&text), is_match, "{:?}", text);
                let (mut walk, mut effort) = (Walk::default(), Effort::new(u32::MAX));
                prop_assert_eq!(states.go_on(&text, &mut walk, &mut effort), Some(is_match), "{:?}", text);
            }
        }
    }

    /// What a change leaves alone is not made again, and the answers are those of a whole compile.
    #[test]
    fn tables_are_taken_over() {
        let mut patterns: BTreeMap<u32, String> =
            (0..60).map(|n| (n, format!("plant-{n}-[a-z]+"))).collect();
        let compile = |matcher: &Matcher, patterns: &BTreeMap<u32, String>| {
            let patterns = patterns.iter().map(|(number, text)| (*number, &**text));
            matcher.compile(patterns).unwrap()
        };
        let mut matcher = compile(&Matcher::default(), &patterns);
        for round in 0..20 {
            patterns.insert(round * 3, format!("other-{round}-.*"));
            patterns.remove(&(round * 3 + 1));
            let changed = compile(&matcher, &patterns);
            let old = &matcher.tables;
            let is_old = |table: &&Arc<Table>| old.iter().any(|old| Arc::ptr_eq(table, old));
            let taken_over = changed.tables.iter().filter(is_old).count();
            assert!(taken_over + 2 >= old.len(), "{taken_over} of {}", old.len());
            let whole = compile(&Matcher::default(), &patterns);
            for text in [
                "plant-3-a",
                "other-0-x",
                "other-9-",
                "plant-59-zz",
                "plant-12-",
            ] {
                assert_eq!(
                    changed.matches(text, u32::MAX),
                    whole.matches(text, u32::MAX),
                    "{text}"
                );
            }
            matcher = changed;
        }
        assert_eq!(matcher.matches("other-9-", u32::MAX).to_vec(), [27]);
    }

    #[test]
    fn small_tables_are_put_together_before_they_are_too_many() {
        let many: Vec<String> = (0..40).map(|n| format!("plant-{n}")).collect();
        let mut matcher = Matcher::default();
        // One more in each change: a table for each, until they are made again as a whole.
        for count in 1..=many.len() {
            let patterns = many.iter().take(count).map(String::as_str);
            matcher = matcher.compile((0..).zip(patterns)).unwrap();
            assert!(matcher.tables.len() <= TABLES_MAX / 2);
            let last = format!("plant-{}", count - 1);
            assert_eq!(
                matcher.matches(&last, u32::MAX).to_vec(),
                [count as u32 - 1]
            );
        }
        assert!(matcher.tables.len() < 20);
    }

    #[test]
    fn what_would_take_too_long_is_refused() {
        let middle: Vec<String> = (0..600).map(|n| format!(".*x{n}y.*")).collect();
        let middle: Vec<&str> = middle.iter().map(String::as_str).collect();
        assert!(compiled(&middle).unwrap_err().contains("together"));
        assert!(compiled(&middle[..20]).is_ok());
        let large: Vec<String> = (0..9).map(|n| format!(".*a.{{{}}}", n + 20)).collect();
        let large: Vec<&str> = large.iter().map(String::as_str).collect();
        assert!(compiled(&large[..8]).is_ok(), "a few may be");
        assert!(compiled(&large).unwrap_err().contains("too complex"));
    }
}
