//! All rules, compiled: which rule has which rank, what it asks for, who it is about, and the tables of the classes.
//!
//! A clone shares everything with its original, and changing it copies the pages that are touched: so a policy of a
//! million rules is changed by one for the price of that one. Nothing is checked here; rules come from `validate`.
//!
//! # Invariants
//!
//! - Ranks are in the order of decision, with gaps, so that a rule can come between two others without moving all behind it.
//! - A class is in the index exactly when it has an enabled rule; `members` says which, and its table is made of them.
//! - After a change nothing is asked before [`Rulebook::settle`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::Cancel;
use crate::filter::{Level, Variable};
use crate::model::{RuleModel, WhoPart};
use crate::rows::Mode;
use crate::snapshot::{Class, Outcome};
use crate::tables::NO_RANK;
use crate::tables::class::ClassTable;
use crate::tables::shared::{Paged, Sorted};
use crate::tables::who::WhoIndex;

/// Between two rules of a new book there is room for one more; between two priorities, where rules are often added at the
/// end of the upper one, for up to so many.
const GAP_MAX: u32 = 4_096;
/// Where no room is left, rules make some by moving apart within at most `2^13` ranks.
const WINDOW_BITS_MAX: u32 = 13;

/// Different outcomes that are kept beside the ranks; rules with others are asked themselves, which takes a little longer.
const KINDS_MAX: usize = 4_096;
/// Ranks without a rule, for each with one, at which a book should be made anew.
const HOLES_MAX: usize = 8;

/// See the file's header.
#[derive(Clone)]
pub(crate) struct Rulebook {
    /// By rank.
    rules: Paged<Option<Arc<RuleModel>>, 9>,
    /// Those that have a rule.
    ranks: Sorted<u32>,
    /// By rank: the place in `kinds`; behind its end where the rule itself must be asked.
    outcomes: Paged<u16, 12>,
    /// What rules ask for, each once; few, however many rules.
    kinds: Arc<Vec<Outcome>>,
    default: Outcome,
    index: WhoIndex,
    /// By class.
    classes: Paged<Class, 8>,
    /// By class, apart from the rest so that what a message touches lies close together.
    tables: Paged<Arc<ClassTable>, 8>,
    /// The ranks of each class.
    members: Sorted<(u32, u32)>,
    /// The connect rules of each class: whether in shadow, and the rank.
    connects: Sorted<(u32, bool, u32)>,
    /// Enabled shadow rules with topics.
    shadow_rules: usize,
    /// Enabled rules that narrow subscriptions.
    narrow_rules: usize,
    /// Enabled rules that ask for the client id, by listener; under no name those for all listeners.
    by_client_id: BTreeMap<Option<Box<str>>, usize>,
    /// Classes with topics that depend on the user alone.
    certain: usize,
    /// The number of the next new row.
    rows_end: u32,
    changed: Changed,
}

/// What a change has left to do.
#[derive(Clone, Default)]
struct Changed {
    /// Classes with another number of rules, and whether the table must be built anew.
    classes: BTreeMap<u32, bool>,
    /// Classes that have come to depend on the user alone.
    certain: Vec<u32>,
}

impl Rulebook {
    /// A book of rules in the order of decision; equal who-parts are one. A table that `previous` has already is shared
    /// with it. The error is for the writer of the patterns. Cancelled, it is a book of some of the rules.
    pub(crate) fn new(
        mut rules: Vec<RuleModel>,
        default: Outcome,
        previous: Option<&Self>,
        cancel: Option<&Cancel>,
    ) -> Result<Self, String> {
        let is_wanted = || !cancel.is_some_and(Cancel::is_cancelled);
        let rows_end = number_rows(&mut rules, previous);
        let ranks = spread(&rules);
        let len = ranks.last().map_or(0, |last| *last as usize + 1);
        let mut book = Self {
            rules: Paged::filled(&None, len),
            outcomes: Paged::filled(&u16::MAX, len),
            ranks: Sorted::default(),
            kinds: Arc::default(),
            default,
            index: WhoIndex::with_capacity(0),
            classes: Paged::default(),
            tables: Paged::default(),
            members: Sorted::default(),
            connects: Sorted::default(),
            shadow_rules: 0,
            narrow_rules: 0,
            by_client_id: BTreeMap::new(),
            certain: 0,
            rows_end,
            changed: Changed::default(),
        };
        let (parts, members) = group(&rules, &ranks);
        book.index = WhoIndex::new(&parts, is_wanted);
        book.index.settle()?;
        for (rank, rule) in ranks.iter().zip(rules).take_while(|_| is_wanted()) {
            book.set_outcome(*rank, Outcome::of(&rule));
            if let Some(slot) = book.rules.get_mut(*rank as usize) {
                *slot = Some(Arc::new(rule));
            }
        }
        let (mut classes, mut connects) = (Vec::new(), Vec::new());
        for (number, ranks) in (0_u32..).zip(&members).take_while(|_| is_wanted()) {
            let mut class = Class::default();
            for (rank, rule) in book.rules_of(ranks.iter().copied()) {
                class.count(rule, true);
                if rule.actions.connect {
                    let is_shadow = rule.mode == Mode::Shadow;
                    let slot = class.connect_mut(is_shadow);
                    *slot = (*slot).min(rank);
                    connects.push((number, is_shadow, rank));
                }
            }
            classes.push(class);
        }
        let tables: Vec<Arc<ClassTable>> = parts
            .iter()
            .zip(&members)
            .take_while(|_| is_wanted())
            .map(|(part, ranks)| {
                let known = previous.and_then(|previous| book.same_table(previous, part, ranks));
                known.unwrap_or_else(|| {
                    let rules = book.rules_of(ranks.iter().copied());
                    Arc::new(ClassTable::new(rules.take_while(|_| is_wanted())))
                })
            })
            .collect();
        let rules = book.rules.iter().flatten();
        for rule in rules.take_while(|_| is_wanted()) {
            book.narrow_rules += usize::from(rule.enabled && rule.narrow);
            count_rule(&mut book.shadow_rules, &mut book.by_client_id, rule, true);
        }
        let is_certain = |(part, class): &(&Arc<WhoPart>, &Class)| {
            class.has_topics() && depends_on_the_user_alone(part)
        };
        book.certain = parts.iter().zip(&classes).filter(is_certain).count();
        book.classes = Paged::new(classes);
        book.tables = Paged::new(tables);
        book.connects = Sorted::new(connects);
        let members = (0_u32..).zip(members);
        let members =
            members.flat_map(|(class, ranks)| ranks.into_iter().map(move |rank| (class, rank)));
        book.members = Sorted::new(members.collect());
        book.ranks = Sorted::new(ranks);
        Ok(book)
    }

    fn rules_of(
        &self,
        ranks: impl Iterator<Item = u32>,
    ) -> impl Iterator<Item = (u32, &RuleModel)> {
        ranks.filter_map(|rank| Some((rank, self.rule(rank)?)))
    }

    /// The table of a class in another book, when it is made of the same.
    fn same_table(&self, other: &Self, part: &WhoPart, ranks: &[u32]) -> Option<Arc<ClassTable>> {
        let (number, _) = other.index.number(part)?;
        let theirs = other.rules_of(other.members_of(number));
        let ours = self.rules_of(ranks.iter().copied());
        let is_same = |(a, b): ((u32, &RuleModel), (u32, &RuleModel))| {
            a.0 == b.0 && a.1.is_same_in_tables(b.1)
        };
        let count = other.classes.get(number as usize)?.rules as usize;
        (count == ranks.len() && theirs.zip(ours).all(is_same))
            .then(|| other.tables.get(number as usize).cloned())?
    }

    /// The ranks of a class.
    pub(crate) fn members_of(&self, class: u32) -> impl Iterator<Item = u32> {
        let from = self.members.from((class, 0));
        from.take_while(move |(found, _)| *found == class)
            .map(|(_, rank)| rank)
    }

    // --- what is asked

    /// How many rules there are.
    pub(crate) fn len(&self) -> usize {
        self.ranks.len()
    }

    /// All rules with their ranks, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &RuleModel)> {
        self.rules_of(self.ranks.from(0))
    }

    /// The rules behind a place in the order, with their ranks.
    pub(crate) fn behind(
        &self,
        is_before: impl Fn(&RuleModel) -> bool,
    ) -> impl Iterator<Item = (u32, &RuleModel)> {
        let (_, first) = self
            .ranks
            .around(|rank| self.rule(*rank).is_some_and(&is_before));
        let ranks = first.map(|first| self.ranks.from(first));
        self.rules_of(ranks.into_iter().flatten())
    }

    /// Every rank is below this.
    pub(crate) fn ranks_end(&self) -> u32 {
        u32::try_from(self.rules.len()).unwrap_or(u32::MAX)
    }

    /// Every number of a row is below this.
    pub(crate) fn rows_end(&self) -> u32 {
        self.rows_end
    }

    pub(crate) fn rule(&self, rank: u32) -> Option<&RuleModel> {
        self.rules.get(rank as usize)?.as_deref()
    }

    #[inline]
    pub(crate) fn table(&self, class: u32) -> Option<&ClassTable> {
        self.tables.get(class as usize).map(|table| &**table)
    }

    pub(crate) fn class(&self, class: u32) -> Option<&Class> {
        self.classes.get(class as usize)
    }

    pub(crate) fn index(&self) -> &WhoIndex {
        &self.index
    }

    /// What is done where no rule decides.
    pub(crate) fn default(&self) -> &Outcome {
        &self.default
    }

    /// What the rule of a rank asks for; the default's for no rank.
    #[inline]
    pub(crate) fn outcome(&self, rank: u32) -> Outcome {
        let Some(kind) = self.outcomes.get(rank as usize) else {
            return self.default;
        };
        match self.kinds.get(usize::from(*kind)) {
            Some(outcome) => *outcome,
            None => self.outcome_of_rule(rank),
        }
    }

    #[cold]
    fn outcome_of_rule(&self, rank: u32) -> Outcome {
        self.rule(rank).map_or(self.default, Outcome::of)
    }

    /// True exactly when some table has shadow rules.
    #[inline]
    pub(crate) fn has_shadow(&self) -> bool {
        self.shadow_rules > 0
    }

    /// True exactly when some rule, or the default, narrows subscriptions.
    pub(crate) fn may_narrow(&self) -> bool {
        self.narrow_rules > 0 || self.default.narrows
    }

    /// True exactly when a rule for sessions of this listener asks for the client id.
    pub(crate) fn needs_client_id(&self, listener: &str) -> bool {
        let is_for_all = self.by_client_id.contains_key(&None);
        is_for_all || self.by_client_id.contains_key(&Some(listener.into()))
    }

    /// How many classes with topics depend on the user alone.
    pub(crate) fn certain(&self) -> usize {
        self.certain
    }

    /// True exactly when the class is one of those.
    pub(crate) fn is_certain(&self, class: u32) -> bool {
        self.class(class).is_some_and(Class::has_topics)
            && self
                .index
                .part(class)
                .is_some_and(|part| depends_on_the_user_alone(part))
    }

    // --- what is changed

    /// The rank of the rule that stands at the place of `like` in the order.
    pub(crate) fn find(&self, like: &RuleModel) -> Option<u32> {
        let (_, at) = self.neighbours(like);
        at.filter(|rank| {
            self.rule(*rank)
                .is_some_and(|rule| rule.asked_before(like).is_eq())
        })
    }

    /// The last rank before a rule's place in the order, and the first that is not before it.
    fn neighbours(&self, like: &RuleModel) -> (Option<u32>, Option<u32>) {
        self.ranks.around(|rank| {
            self.rule(*rank)
                .is_some_and(|rule| rule.asked_before(like).is_lt())
        })
    }

    /// A number for a row that is new; `None`: all were used, and the book is to be made anew.
    pub(crate) fn new_row(&mut self) -> Option<u32> {
        let row = self.rows_end;
        self.rows_end = row.checked_add(1)?;
        Some(row)
    }

    /// Takes a rule out.
    pub(crate) fn take(&mut self, rank: u32) -> Option<Arc<RuleModel>> {
        let rule = self.rules.get_mut(rank as usize)?.take()?;
        self.ranks.remove(&rank);
        self.count(&rule, rank, false);
        Some(rule)
    }

    /// Puts a rule where none is.
    pub(crate) fn put(&mut self, rank: u32, mut rule: Arc<RuleModel>) {
        if let Some((_, part)) = self.index.number(&rule.who)
            && !Arc::ptr_eq(part, &rule.who)
        {
            let part = Arc::clone(part);
            Arc::make_mut(&mut rule).who = part;
        }
        let len = rank as usize + 1;
        self.rules.grow(len, &None);
        self.outcomes.grow(len, &u16::MAX);
        self.ranks.insert(rank);
        self.set_outcome(rank, Outcome::of(&rule));
        self.count(&rule, rank, true);
        if let Some(slot) = self.rules.get_mut(rank as usize) {
            *slot = Some(rule);
        }
    }

    /// Puts a rule at its place in the order. False: there is no room near it, and the book is as before.
    pub(crate) fn insert(&mut self, rule: Arc<RuleModel>) -> bool {
        let (before, after) = self.neighbours(&rule);
        let is_same = |rank: Option<u32>| {
            let other = rank.and_then(|rank| self.rule(rank));
            other.is_some_and(|other| other.priority == rule.priority)
        };
        // One more than the ranks, so that there is one before the first.
        let low = before.map_or(0, |rank| rank + 1);
        let gap = after.map_or(u32::MAX, |rank| rank - low);
        let step = (gap - 1.min(gap)).min(1);
        let rank = match (is_same(before), is_same(after)) {
            _ if gap == 0 => return self.move_apart(before, rule),
            // More are to be expected behind it.
            (true, false) => low + step,
            (false, true) => low + gap - 1 - step,
            _ if after.is_none() => low + step,
            _ => low + gap / 2,
        };
        self.put(rank, rule);
        true
    }

    /// Makes room behind a rank by spreading the rules around it evenly, as few as will do.
    fn move_apart(&mut self, before: Option<u32>, rule: Arc<RuleModel>) -> bool {
        let found = (3..=WINDOW_BITS_MAX).find_map(|bits| {
            let start = before.unwrap_or(0) >> bits << bits;
            let size = 1_usize << bits;
            let inside = self.ranks.from(start);
            let inside: Vec<u32> = inside
                .take_while(|rank| ((*rank - start) as usize) < size)
                .collect();
            ((inside.len() + 1) * 4 <= size * 3).then_some((start, size, inside))
        });
        let Some((start, size, inside)) = found else {
            return false;
        };
        let count = inside.len() + 1;
        let place = inside.partition_point(|rank| before.is_some_and(|before| *rank <= before));
        let to = |index: usize| start + ((2 * index + 1) * size / (2 * count)) as u32;
        let moves = inside.iter().enumerate().map(|(index, from)| {
            let index = index + usize::from(index >= place);
            (*from, to(index))
        });
        let moves: Vec<(u32, u32)> = moves.filter(|(from, to)| from != to).collect();
        let taken: Vec<_> = moves
            .into_iter()
            .filter_map(|(from, to)| Some((to, self.take(from)?)))
            .collect();
        for (to, rule) in taken {
            self.put(to, rule);
        }
        self.put(to(place), rule);
        true
    }

    fn set_outcome(&mut self, rank: u32, outcome: Outcome) {
        let kind = self.kinds.iter().position(|kind| *kind == outcome);
        let kind = kind.unwrap_or_else(|| {
            let kind = self.kinds.len();
            if kind < KINDS_MAX {
                Arc::make_mut(&mut self.kinds).push(outcome);
            }
            kind
        });
        // One too many has a number that none has.
        let kind = u16::try_from(kind).unwrap_or(u16::MAX);
        if let Some(slot) = self.outcomes.get_mut(rank as usize) {
            *slot = kind;
        }
    }

    /// Notes a rule that came or went, everywhere but in the order.
    fn count(&mut self, rule: &RuleModel, rank: u32, is_added: bool) {
        if !rule.enabled {
            return;
        }
        if rule.narrow {
            step(&mut self.narrow_rules, is_added);
        }
        count_rule(
            &mut self.shadow_rules,
            &mut self.by_client_id,
            rule,
            is_added,
        );
        let number = match self.index.number(&rule.who) {
            Some((number, _)) => number,
            None => self.new_class(&rule.who),
        };
        if is_added {
            self.members.insert((number, rank));
        } else {
            self.members.remove(&(number, rank));
        }
        self.count_in_class(number, rule, rank, is_added);
        let must_build = rule.actions.needs_topics()
            && !self.tables.get_mut(number as usize).is_some_and(|table| {
                table.is_editable() && Arc::make_mut(table).change(rank, rule, is_added)
            });
        *self.changed.classes.entry(number).or_default() |= must_build;
    }

    fn new_class(&mut self, who: &Arc<WhoPart>) -> u32 {
        let number = self.index.add(who);
        let len = self.index.len();
        self.classes.grow(len, &Class::default());
        self.tables.grow(len, &Arc::default());
        number
    }

    fn count_in_class(&mut self, number: u32, rule: &RuleModel, rank: u32, is_added: bool) {
        let was_certain = self.is_certain(number);
        let connect = rule.actions.connect.then(|| {
            let is_shadow = rule.mode == Mode::Shadow;
            let key = (number, is_shadow, rank);
            if is_added {
                self.connects.insert(key);
            } else {
                self.connects.remove(&key);
            }
            let first = self.connects.from((number, is_shadow, 0)).next();
            let first = first.filter(|found| (found.0, found.1) == (number, is_shadow));
            (is_shadow, first.map_or(NO_RANK, |(_, _, rank)| rank))
        });
        if let Some(class) = self.classes.get_mut(number as usize) {
            class.count(rule, is_added);
            if let Some((is_shadow, rank)) = connect {
                *class.connect_mut(is_shadow) = rank;
            }
        }
        match (was_certain, self.is_certain(number)) {
            (false, true) => {
                self.certain += 1;
                self.changed.certain.push(number);
            }
            (true, false) => self.certain -= 1,
            _ => {}
        }
    }

    /// True exactly when so many rules have come at one end and gone at the other that the book should be made anew.
    pub(crate) fn is_wasteful(&self) -> bool {
        self.rules.len() > HOLES_MAX * (self.ranks.len() + GAP_MAX as usize)
    }

    /// What it holds, to see that it does not grow.
    #[cfg(test)]
    pub(crate) fn size(&self) -> usize {
        let tables: usize = self.tables.iter().map(|table| table.size()).sum();
        let indexed = self.classes.len() + self.index.len();
        self.rules.len() + self.kinds.len() + self.connects.len() + indexed + tables
    }

    /// Ends a change. Tells which classes have come to depend on the user alone. The error is for the writer of the
    /// patterns.
    pub(crate) fn settle(&mut self) -> Result<Vec<u32>, String> {
        let Changed { classes, certain } = std::mem::take(&mut self.changed);
        for (number, must_build) in classes {
            let is_empty = self.class(number).is_none_or(|class| class.rules == 0);
            if is_empty {
                self.index.remove(number);
            }
            if must_build || is_empty {
                let table = ClassTable::new(self.rules_of(self.members_of(number)));
                if let Some(slot) = self.tables.get_mut(number as usize) {
                    *slot = Arc::new(table);
                }
            }
        }
        self.index.settle()?;
        Ok(certain)
    }
}

/// Gives each row the number that it had, else one that none had, and tells the number of the next new one. Where all were
/// used they begin again, and no row keeps its number.
fn number_rows(rules: &mut [RuleModel], previous: Option<&Rulebook>) -> u32 {
    let len = u32::try_from(rules.len()).unwrap_or(u32::MAX);
    let previous = previous.filter(|book| book.rows_end.checked_add(len).is_some());
    let known = previous.into_iter().flat_map(Rulebook::iter);
    let known: HashMap<&str, &RuleModel, foldhash::fast::RandomState> =
        known.map(|(_, rule)| (rule.name(), rule)).collect();
    let mut next = previous.map_or(0, |book| book.rows_end);
    for rule in rules {
        let same = known.get(rule.name());
        rule.row = match same.filter(|other| other.is_same_row(rule)) {
            Some(other) => other.row,
            None => {
                next += 1;
                next - 1
            }
        };
    }
    next
}

/// Ranks for rules in their order, with gaps.
fn spread(rules: &[RuleModel]) -> Vec<u32> {
    let next = rules.iter().skip(1);
    let is_boundary = |(rule, next): &(&RuleModel, &RuleModel)| rule.priority != next.priority;
    let boundaries = rules.iter().zip(next).filter(is_boundary).count();
    let gap = u32::try_from(rules.len() / (4 * (boundaries + 1))).unwrap_or(GAP_MAX);
    let gap = gap.min(GAP_MAX);
    let mut ranks = Vec::with_capacity(rules.len());
    let (mut rank, mut priority) = (0, None);
    for rule in rules {
        rank += 1;
        if priority.is_some_and(|priority| priority != rule.priority) {
            rank += gap;
        }
        priority = Some(rule.priority);
        ranks.push(rank);
        rank += 1;
    }
    ranks
}

/// The different who-parts of enabled rules, in rank order, and the ranks of each.
fn group(rules: &[RuleModel], ranks: &[u32]) -> (Vec<Arc<WhoPart>>, Vec<Vec<u32>>) {
    let mut parts: Vec<Arc<WhoPart>> = Vec::new();
    let mut members: Vec<Vec<u32>> = Vec::new();
    // Equal parts are one, so where it stands says which it is.
    let mut places: HashMap<usize, usize, foldhash::fast::RandomState> = HashMap::default();
    for (rank, rule) in ranks.iter().zip(rules).filter(|(_, rule)| rule.enabled) {
        let place = *places
            .entry(Arc::as_ptr(&rule.who).addr())
            .or_insert_with(|| {
                parts.push(Arc::clone(&rule.who));
                members.push(Vec::new());
                parts.len() - 1
            });
        if let Some(ranks) = members.get_mut(place) {
            ranks.push(*rank);
        }
    }
    (parts, members)
}

fn count_rule(
    shadow_rules: &mut usize,
    by_client_id: &mut BTreeMap<Option<Box<str>>, usize>,
    rule: &RuleModel,
    is_added: bool,
) {
    if !rule.enabled {
        return;
    }
    if rule.mode == Mode::Shadow && rule.actions.needs_topics() {
        step(shadow_rules, is_added);
    }
    let who = &rule.who;
    let asks = who.client_ids.is_some()
        || who.client_id_patterns.is_some()
        || rule.topics().any(|topic| topic.uses(Variable::ClientId));
    if !asks {
        return;
    }
    let listeners: Vec<Option<Box<str>>> = match &who.listeners {
        Some(listeners) => listeners.iter().cloned().map(Some).collect(),
        None => vec![None],
    };
    for listener in listeners {
        let count = by_client_id.entry(listener.clone()).or_default();
        step(count, is_added);
        if *count == 0 {
            by_client_id.remove(&listener);
        }
    }
}

fn step(count: &mut usize, is_added: bool) {
    *count = if is_added { *count + 1 } else { *count - 1 };
}

fn depends_on_the_user_alone(part: &WhoPart) -> bool {
    part.client_ids.is_none()
        && part.client_id_patterns.is_none()
        && part.addresses.is_none()
        && part.versions.is_none()
        && part.listeners.is_none()
}

impl Class {
    fn connect_mut(&mut self, is_shadow: bool) -> &mut u32 {
        if is_shadow {
            &mut self.connect_shadow
        } else {
            &mut self.connect
        }
    }

    /// Counts a rule in or out, but for its rank.
    fn count(&mut self, rule: &RuleModel, is_added: bool) {
        let step = |count: &mut u32| *count = if is_added { *count + 1 } else { *count - 1 };
        step(&mut self.rules);
        if !rule.actions.needs_topics() {
            return;
        }
        step(&mut self.with_topics);
        for topic in rule.topics() {
            for (depth, level) in topic.levels().enumerate() {
                let Level::Variable(variable) = level else {
                    continue;
                };
                let used = match variable {
                    Variable::ClientId => &mut self.client_id,
                    Variable::Username => &mut self.username,
                };
                step(&mut used.anywhere);
                if depth == 0 {
                    step(&mut used.first);
                }
            }
        }
    }
}
