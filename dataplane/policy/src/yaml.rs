//! YAML text to nodes that know their line and column. Bounded in bytes, depth and what aliases may expand to.
//!
//! Knows nothing of policies. Every scalar keeps its text as written: what it means is decided by the key it stands
//! under, so `3.1`, `yes` and `007` never change into something else on the way.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use crate::brackets;
use crate::problem::{Position, Problems};

/// Longest document read, in bytes. Rows are dropped as they are read, so memory follows the model, not the text.
/// Of short values that is fifty times the text and more, so they have a bound of their own, [`NODES_MAX`].
pub const DOCUMENT_BYTES_MAX: usize = 256 << 20;
/// Deepest nesting of lists and maps; the format itself needs six.
pub const DEPTH_MAX: usize = 24;
/// How many keys and values a document holds at most: two million rules of ordinary size.
pub const NODES_MAX: usize = 1 << 25;
/// How many nodes all anchors and aliases of a document together may stand for.
pub const ALIAS_NODES_MAX: usize = 100_000;
/// So many bytes of an aliased text stand for one node more: about what a node takes.
const ALIAS_TEXT_BYTES: usize = 64;

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// `null`, `~` or nothing at all.
    Null,
    /// Text as written, quoted or not.
    Scalar(Box<str>),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

impl Value {
    /// What it is, in words: for messages that must not repeat it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "an empty value",
            Self::Scalar(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// The key of a map entry.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) at: Position,
    pub(crate) text: Box<str>,
}

/// The text is not read on: the problem has been noted, or the reading was cancelled.
pub(crate) struct Stopped;

/// Where [`Reader`] stands at the top of the document.
pub(crate) enum Top {
    /// The document is a map; its entries follow.
    Map,
    /// There is nothing in it.
    Empty,
}

/// Reads one document, one top-level entry (or one row of it) at a time.
pub(crate) struct Reader<'a> {
    text: &'a str,
    parser: Parser<'a, StrInput<'a>>,
    /// Where the lists and maps begin that have not ended.
    open: Vec<Position>,
    peeked: Option<(Event<'a>, Position)>,
    anchors: HashMap<usize, (Node, usize)>,
    alias_nodes: usize,
    nodes_left: usize,
}

impl<'a> Reader<'a> {
    /// Begins; nothing is read yet.
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            text,
            parser: Parser::new_from_str(text),
            open: Vec::new(),
            peeked: None,
            anchors: HashMap::new(),
            alias_nodes: 0,
            nodes_left: NODES_MAX,
        }
    }

    /// Reads up to the first key of the document.
    pub(crate) fn open(&mut self, problems: &mut Problems) -> Result<Top, Stopped> {
        loop {
            let (event, at) = self.next(problems)?;
            match event {
                Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
                Event::StreamEnd | Event::DocumentEnd => return Ok(Top::Empty),
                Event::MappingStart(..) => return Ok(Top::Map),
                Event::Scalar(text, style, _, None) if is_null(&text, style) => {
                    return Ok(Top::Empty);
                }
                Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingEnd
                | Event::Alias(_) => {
                    problems.add(at, "a policy document is a map of `listeners`, `upstreams`, `users`, `groups` and `rules`");
                    return Err(Stopped);
                }
            }
        }
    }

    /// The next key of the top map; `None` at its end.
    pub(crate) fn key(&mut self, problems: &mut Problems) -> Result<Option<Key>, Stopped> {
        if matches!(self.peek(problems)?, Event::MappingEnd) {
            self.next(problems)?;
            return Ok(None);
        }
        self.read_key(problems, 1).map(Some)
    }

    /// When the next value is a list, enters it, so that its items can be read one by one.
    pub(crate) fn enter_list(&mut self, problems: &mut Problems) -> Result<bool, Stopped> {
        // An anchored list must be kept whole for its aliases.
        if !matches!(self.peek(problems)?, Event::SequenceStart(0, None)) {
            return Ok(false);
        }
        self.next(problems)?;
        Ok(true)
    }

    /// The next item of the list entered; `None` at its end.
    pub(crate) fn item(&mut self, problems: &mut Problems) -> Result<Option<Node>, Stopped> {
        if matches!(self.peek(problems)?, Event::SequenceEnd) {
            self.next(problems)?;
            return Ok(None);
        }
        self.node(problems, 2).map(Some)
    }

    /// The next value, whole.
    pub(crate) fn value(&mut self, problems: &mut Problems) -> Result<Node, Stopped> {
        self.node(problems, 1)
    }

    /// Reads to the end: a second document in the file is refused, since it would silently do nothing.
    pub(crate) fn close(&mut self, problems: &mut Problems) -> Result<(), Stopped> {
        loop {
            let (event, at) = self.next(problems)?;
            match event {
                Event::DocumentEnd | Event::Nothing => {}
                Event::StreamEnd => return Ok(()),
                Event::StreamStart
                | Event::DocumentStart(_)
                | Event::Alias(_)
                | Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..)
                | Event::MappingEnd => {
                    problems.add(
                        at,
                        "a second document in the same file; one file holds one policy document",
                    );
                    return Err(Stopped);
                }
            }
        }
    }

    fn node(&mut self, problems: &mut Problems, depth: usize) -> Result<Node, Stopped> {
        let (event, at) = self.next(problems)?;
        if depth > DEPTH_MAX {
            problems.add(at, format!("nested deeper than {DEPTH_MAX} levels"));
            return Err(Stopped);
        }
        let Some(left) = self.nodes_left.checked_sub(1) else {
            problems.add(at, format!("more than {NODES_MAX} keys and values"));
            return Err(Stopped);
        };
        self.nodes_left = left;
        let (anchor, tag, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = if is_null(&text, style) {
                    Value::Null
                } else {
                    Value::Scalar(text.into())
                };
                (anchor, tag, value)
            }
            Event::SequenceStart(anchor, tag) => {
                let mut items = Vec::new();
                while !matches!(self.peek(problems)?, Event::SequenceEnd) {
                    items.push(self.node(problems, depth + 1)?);
                }
                self.next(problems)?;
                (anchor, tag, Value::List(items))
            }
            Event::MappingStart(anchor, tag) => {
                let mut entries = Vec::new();
                while !matches!(self.peek(problems)?, Event::MappingEnd) {
                    let key = self.read_key(problems, depth)?;
                    entries.push((key, self.node(problems, depth + 1)?));
                }
                self.next(problems)?;
                (anchor, tag, Value::Map(entries))
            }
            Event::Alias(anchor) => return self.alias(problems, anchor, at, depth),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => {
                problems.add(at, "the document ends in the middle of a value");
                return Err(Stopped);
            }
        };
        if tag.is_some() {
            problems.add(
                at,
                "YAML tags (`!...`) are not supported; write the plain value",
            );
        }
        let node = Node { at, value };
        if anchor != 0 {
            // The copy kept for the aliases comes out of the same budget.
            let count = count(&node);
            self.charge(problems, at, count)?;
            self.anchors.insert(anchor, (node.clone(), count));
        }
        Ok(node)
    }

    fn alias(
        &mut self,
        problems: &mut Problems,
        anchor: usize,
        at: Position,
        depth: usize,
    ) -> Result<Node, Stopped> {
        let Some((node, count)) = self.anchors.get(&anchor) else {
            problems.add(at, "an alias inside the value it stands for");
            return Err(Stopped);
        };
        if depth + height(node) > DEPTH_MAX {
            problems.add(at, format!("nested deeper than {DEPTH_MAX} levels"));
            return Err(Stopped);
        }
        let node = node.clone();
        let count = *count;
        self.charge(problems, at, count)?;
        Ok(node)
    }

    fn charge(
        &mut self,
        problems: &mut Problems,
        at: Position,
        count: usize,
    ) -> Result<(), Stopped> {
        self.alias_nodes = self.alias_nodes.saturating_add(count);
        if self.alias_nodes > ALIAS_NODES_MAX {
            problems.add(
                at,
                format!("anchors and aliases stand for more than {ALIAS_NODES_MAX} values"),
            );
            return Err(Stopped);
        }
        Ok(())
    }

    fn read_key(&mut self, problems: &mut Problems, depth: usize) -> Result<Key, Stopped> {
        let node = self.node(problems, depth + 1)?;
        let text = match node.value {
            Value::Scalar(text) => text,
            Value::Null => "".into(),
            Value::List(_) | Value::Map(_) => {
                problems.add(node.at, "a key must be a plain word");
                return Err(Stopped);
            }
        };
        Ok(Key { at: node.at, text })
    }

    fn peek(&mut self, problems: &mut Problems) -> Result<&Event<'a>, Stopped> {
        if self.peeked.is_none() {
            let next = self.pull(problems)?;
            self.peeked = Some(next);
        }
        match &self.peeked {
            Some((event, _)) => Ok(event),
            None => Err(Stopped),
        }
    }

    fn next(&mut self, problems: &mut Problems) -> Result<(Event<'a>, Position), Stopped> {
        match self.peeked.take() {
            Some(next) => Ok(next),
            None => self.pull(problems),
        }
    }

    fn pull(&mut self, problems: &mut Problems) -> Result<(Event<'a>, Position), Stopped> {
        if problems.is_cancelled() {
            return Err(Stopped);
        }
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let at = position(&span);
                match &event {
                    Event::SequenceStart(..) | Event::MappingStart(..) => self.open.push(at),
                    Event::SequenceEnd | Event::MappingEnd => drop(self.open.pop()),
                    Event::Nothing
                    | Event::StreamStart
                    | Event::StreamEnd
                    | Event::DocumentStart(_)
                    | Event::DocumentEnd
                    | Event::Alias(_)
                    | Event::Scalar(..) => {}
                }
                Ok((event, at))
            }
            Some(Err(error)) => {
                let at = position(&Span::empty(*error.marker()));
                let bracket = self.open_bracket(at);
                problems.add(at, format!("not YAML: {}{bracket}", error.info()));
                Err(Stopped)
            }
            None => {
                problems.add(Position::default(), "not YAML: the document ends too early");
                Err(Stopped)
            }
        }
    }
}

impl Reader<'_> {
    /// The bracket that is open at a place, for the end of a message: the text is often found to be wrong far behind it.
    /// It takes a pass over the text for each list and map that has not ended, [`DEPTH_MAX`] at most.
    fn open_bracket(&self, end: Position) -> String {
        let begin = Position { line: 1, column: 1 };
        let innermost = self.open.last().copied().unwrap_or(begin);
        let bracket = |at: &Position| {
            let line = self.text.lines().nth(at.line as usize - 1)?;
            let c = line.chars().nth(at.column as usize - 1)?;
            matches!(c, '{' | '[').then_some((c, *at))
        };
        let around = || self.open.iter().rev().take(DEPTH_MAX).find_map(bracket);
        match brackets::last_open(self.text, innermost, end).or_else(around) {
            Some((c, Position { line, column })) => {
                format!("; the `{c}` of line {line}, column {column} is still open there")
            }
            None => String::new(),
        }
    }
}

fn position(span: &Span) -> Position {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Position {
        line: number(span.start.line()).max(1),
        column: number(span.start.col()).saturating_add(1),
    }
}

fn is_null(text: &str, style: ScalarStyle) -> bool {
    style == ScalarStyle::Plain && matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::Null => 0,
        // Every alias copies the text.
        Value::Scalar(text) => text.len() / ALIAS_TEXT_BYTES,
        Value::List(items) => items.iter().map(count).sum(),
        Value::Map(entries) => entries
            .iter()
            .map(|(key, value)| 1 + key.text.len() / ALIAS_TEXT_BYTES + count(value))
            .sum(),
    }
}

fn height(node: &Node) -> usize {
    match &node.value {
        Value::Null | Value::Scalar(_) => 0,
        Value::List(items) => 1 + items.iter().map(height).max().unwrap_or(0),
        Value::Map(entries) => {
            1 + entries
                .iter()
                .map(|(_, value)| height(value))
                .max()
                .unwrap_or(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_have_a_bound() {
        let text = "a: {b: [c, d], e: f}";
        // The key `a`, the map, and six in it.
        for (nodes_max, is_read) in [(8, true), (7, false), (1, false)] {
            let mut problems = Problems::default();
            let mut reader = Reader::new(text);
            reader.nodes_left = nodes_max;
            assert!(matches!(reader.open(&mut problems), Ok(Top::Map)));
            assert!(matches!(reader.key(&mut problems), Ok(Some(_))));
            let value = reader.value(&mut problems);
            assert_eq!(value.is_ok(), is_read, "{nodes_max}");
            assert_eq!(problems.is_empty(), is_read, "{nodes_max}");
        }
    }
}
