//! Topic filters as rules write them: levels that are literal, `+`, or a variable, and perhaps `#` at the end.
//!
//! A variable is exactly one whole level. Text only; matching happens in `tables`.

use std::fmt;

/// Deepest filter a rule may have, in levels. Deeper topics are reached by `#`.
pub const FILTER_LEVELS_MAX: usize = 32;
/// Longest filter a rule may have, in bytes: what a topic can have [MQTT-4.7.3-3].
const FILTER_BYTES_MAX: usize = 65_535;

/// A rule's topic filter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter {
    /// The levels before a `#`.
    pub levels: Box<[Level]>,
    /// True exactly when it ends in `#`.
    pub is_multi: bool,
}

/// One level of a filter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Itself only; may be empty.
    Literal(Box<str>),
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

impl TopicFilter {
    /// Reads a filter; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
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
        let (body, is_multi) = match text.strip_suffix('#') {
            Some("") => (None, true),
            Some(body) => match body.strip_suffix('/') {
                Some(body) => (Some(body), true),
                None => return Err("`#` must be a whole level, the last one".into()),
            },
            None => (Some(text), false),
        };
        let levels: Box<[Level]> = match body {
            Some(body) => body
                .split('/')
                .map(Level::parse)
                .collect::<Result<_, _>>()?,
            None => Box::default(),
        };
        if levels.len() > FILTER_LEVELS_MAX {
            return Err(format!(
                "a rule's filter has at most {FILTER_LEVELS_MAX} levels; end it with `#`"
            ));
        }
        Ok(Self { levels, is_multi })
    }

    /// True exactly when `variable` is one of the levels.
    pub fn uses(&self, variable: Variable) -> bool {
        self.levels.contains(&Level::Variable(variable))
    }
}

impl Level {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "+" {
            return Ok(Self::Any);
        }
        if text.contains('#') {
            return Err("`#` must be a whole level, the last one".into());
        }
        if text.contains('+') {
            return Err("`+` must be a whole level".into());
        }
        match text {
            "${client_id}" => Ok(Self::Variable(Variable::ClientId)),
            "${username}" => Ok(Self::Variable(Variable::Username)),
            _ if text.contains("${") => Err(
                "a variable must be a whole level, and one of `${client_id}` and `${username}`"
                    .into(),
            ),
            _ => Ok(Self::Literal(text.into())),
        }
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

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, level) in self.levels.iter().enumerate() {
            if index > 0 {
                f.write_str("/")?;
            }
            f.write_str(match level {
                Level::Literal(text) => text,
                Level::Any => "+",
                Level::Variable(variable) => variable.as_str(),
            })?;
        }
        match (self.is_multi, self.levels.is_empty()) {
            (true, true) => f.write_str("#"),
            (true, false) => f.write_str("/#"),
            (false, _) => Ok(()),
        }
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
            assert_eq!(TopicFilter::parse(text).unwrap().to_string(), text);
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
