//! Topic filters as rules write them: levels that are literal, `+`, or a variable, and perhaps `#` at the end.
//!
//! A variable is exactly one whole level. Text only; matching happens in `tables`.

use std::fmt;

/// Deepest filter a rule may have, in levels. Deeper topics are reached by `#`.
pub const FILTER_LEVELS_MAX: usize = 32;
const MULTI_ALONE: &str = "`#` must be a whole level, the last one";
/// Longest filter a rule may have, in bytes: what a topic can have [MQTT-4.7.3-3].
const FILTER_BYTES_MAX: usize = 65_535;

/// A rule's topic filter, checked: its text says everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter<'a> {
    text: &'a str,
}

/// One level of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level<'a> {
    /// Itself only; may be empty.
    Literal(&'a str),
    /// `+`: any one level.
    Any,
    /// A variable: the value the session has for it.
    Variable(Variable),
}

/// What a session can be asked for inside a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variable {
    /// `${client_id}`
    ClientId,
    /// `${username}`
    Username,
}

impl<'a> TopicFilter<'a> {
    /// Reads a filter; the error says what is wrong with it.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a topic filter must not be empty".into());
        }
        if text.len() > FILTER_BYTES_MAX {
            return Err(format!(
                "a topic filter has at most {FILTER_BYTES_MAX} bytes"
            ));
        }
        if text.contains('\0') {
            return Err("a topic filter must not contain NUL".into());
        }
        if text == "$share" || text.starts_with("$share/") {
            return Err("write the filter without `$share/<group>/`: shared subscriptions are judged by their filter".into());
        }
        if text.ends_with('#') && text != "#" && !text.ends_with("/#") {
            return Err(MULTI_ALONE.into());
        }
        let filter = Self { text };
        let mut depth = 0;
        if let Some(body) = filter.body() {
            for level in body.split('/') {
                Level::parse(level)?;
                depth += 1;
            }
        }
        if depth > FILTER_LEVELS_MAX {
            return Err(format!(
                "a rule's filter has at most {FILTER_LEVELS_MAX} levels; end it with `#`"
            ));
        }
        Ok(filter)
    }

    /// One that was checked when it was stored.
    pub(crate) fn checked(text: &'a str) -> Self {
        Self { text }
    }

    /// As written.
    pub fn as_str(self) -> &'a str {
        self.text
    }

    /// What stands before a `#`; `None` where nothing does.
    fn body(self) -> Option<&'a str> {
        match self.text.strip_suffix('#') {
            Some("") => None,
            Some(body) => Some(body.strip_suffix('/').unwrap_or(body)),
            None => Some(self.text),
        }
    }

    /// The levels before a `#`.
    pub fn levels(self) -> impl Iterator<Item = Level<'a>> {
        let levels = self.body().map(|body| body.split('/'));
        levels.into_iter().flatten().map(Level::of)
    }

    /// True exactly when it ends in `#`.
    pub fn is_multi(self) -> bool {
        self.text.ends_with('#')
    }

    /// True exactly when `variable` is one of the levels.
    pub fn uses(self, variable: Variable) -> bool {
        self.text.contains(variable.as_str())
    }
}

impl<'a> Level<'a> {
    /// What a text means as a level of a filter that is one.
    fn of(text: &'a str) -> Self {
        match text {
            "+" => Self::Any,
            "${client_id}" => Self::Variable(Variable::ClientId),
            "${username}" => Self::Variable(Variable::Username),
            _ => Self::Literal(text),
        }
    }

    fn parse(text: &'a str) -> Result<Self, String> {
        let level = Self::of(text);
        if !matches!(level, Self::Literal(_)) {
            return Ok(level);
        }
        if text.contains('#') {
            return Err(MULTI_ALONE.into());
        }
        if text.contains('+') {
            return Err("`+` must be a whole level".into());
        }
        if text.contains("${") {
            return Err(
                "a variable must be a whole level, and one of `${client_id}` and `${username}`"
                    .into(),
            );
        }
        Ok(level)
    }
}

impl Variable {
    /// As written in a document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientId => "${client_id}",
            Self::Username => "${username}",
        }
    }
}

impl fmt::Display for TopicFilter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_read_and_write() {
        for text in [
            "a",
            "a/b",
            "/",
            "//",
            "a//b",
            "+",
            "+/a",
            "#",
            "a/#",
            "/#",
            "+/#",
            "$SYS/#",
            "${client_id}/x",
            "d/${username}/#",
            "$share2/x",
        ] {
            let filter = TopicFilter::parse(text).unwrap();
            let mut levels: Vec<String> = filter
                .levels()
                .map(|level| match level {
                    Level::Literal(text) => text.into(),
                    Level::Any => "+".into(),
                    Level::Variable(variable) => variable.as_str().into(),
                })
                .collect();
            levels.extend(filter.is_multi().then(|| "#".into()));
            assert_eq!(levels.join("/"), text);
        }
    }

    #[test]
    fn what_is_not_a_filter() {
        let deep = "a/".repeat(FILTER_LEVELS_MAX) + "a";
        for text in [
            "",
            "a#",
            "#/a",
            "a/#/b",
            "a+",
            "+a/b",
            "${client_id}x",
            "x${username}/y",
            "${claims.x}",
            "${}",
            "a\0",
            "$share/g/x",
            "$share",
            &deep,
        ] {
            assert!(TopicFilter::parse(text).is_err(), "{text}");
        }
        assert!(TopicFilter::parse(&("a/".repeat(FILTER_LEVELS_MAX) + "#")).is_ok());
    }
}
