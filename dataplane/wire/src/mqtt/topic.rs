//! Topic names and filters (MQTT 5 section 4.7), `$` topics and `$share` included.
//!
//! Pure functions over strings: no allocation, no state. The compiled matcher of many filters is `sluice-policy`'s.

/// The longest topic name or filter in bytes [MQTT-4.7.3-3].
const TOPIC_BYTES_MAX: usize = u16::MAX as usize;

/// True exactly when `topic` is a legal topic name: not empty, no wildcard, no NUL, at most 65,535 bytes.
#[inline]
pub fn is_topic_name(topic: &str) -> bool {
    !topic.is_empty()
        && topic.len() <= TOPIC_BYTES_MAX
        && !has_any(topic.as_bytes(), |byte| matches!(byte, b'+' | b'#' | 0))
}

/// True exactly when one of the bytes is a wildcard character.
#[inline]
pub(crate) fn has_wildcard(topic: &str) -> bool {
    has_any(topic.as_bytes(), |byte| matches!(byte, b'+' | b'#'))
}

/// Without an early exit, so that the loop over a (short) topic has no branch for each byte.
#[inline]
pub(crate) fn has_any(bytes: &[u8], is_wanted: impl Fn(u8) -> bool) -> bool {
    bytes
        .iter()
        .fold(false, |found, &byte| found | is_wanted(byte))
}

/// A legal topic name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicName<'a>(pub &'a str);

impl<'a> TopicName<'a> {
    /// The topic when it is legal.
    pub fn new(topic: &'a str) -> Option<Self> {
        is_topic_name(topic).then_some(Self(topic))
    }
}

/// A legal filter, with the share group taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter<'a> {
    /// The group of `$share/<group>/<filter>`.
    pub share_group: Option<&'a str>,
    /// The filter part.
    pub filter: &'a str,
}

impl Filter<'_> {
    /// True exactly when the filter part matches `topic`.
    pub fn matches(&self, topic: &str) -> bool {
        filter_matches(self.filter, topic)
    }
}

/// Why a filter is not legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterError {
    /// No character at all [MQTT-4.7.3-1].
    Empty,
    /// More than 65,535 bytes [MQTT-4.7.3-3].
    TooLong,
    /// U+0000 [MQTT-4.7.3-2].
    Nul,
    /// A level after `#` [MQTT-4.7.1-1].
    MultiLevelNotLast,
    /// `#` beside other characters in its level [MQTT-4.7.1-1].
    MultiLevelNotAlone,
    /// `+` beside other characters in its level [MQTT-4.7.1-2].
    WildcardNotAlone,
    /// An empty share name, or a wildcard in it [MQTT-4.8.2-1].
    ShareGroup,
    /// No filter after the share name [MQTT-4.8.2-2].
    ShareWithoutFilter,
}

/// Checks a filter and takes the share group off.
///
/// `$share/` is read as a share in every version: brokers do so too, and a policy that saw only the literal levels
/// would be passed by.
pub fn parse_filter(filter: &str) -> Result<Filter<'_>, FilterError> {
    if filter.is_empty() {
        return Err(FilterError::Empty);
    }
    if filter.len() > TOPIC_BYTES_MAX {
        return Err(FilterError::TooLong);
    }
    if filter.as_bytes().contains(&0) {
        return Err(FilterError::Nul);
    }
    let parsed = match filter.strip_prefix("$share/") {
        Some(shared) => parse_share(shared)?,
        None => Filter {
            share_group: None,
            filter,
        },
    };
    check_levels(parsed.filter)?;
    Ok(parsed)
}

fn parse_share(shared: &str) -> Result<Filter<'_>, FilterError> {
    let (group, rest) = match shared.split_once('/') {
        Some((group, rest)) => (group, Some(rest)),
        None => (shared, None),
    };
    if group.is_empty() || has_wildcard(group) {
        return Err(FilterError::ShareGroup);
    }
    match rest {
        Some(filter) if !filter.is_empty() => Ok(Filter {
            share_group: Some(group),
            filter,
        }),
        Some(_) | None => Err(FilterError::ShareWithoutFilter),
    }
}

/// Where wildcards may stand.
pub(crate) fn check_levels(filter: &str) -> Result<(), FilterError> {
    if !has_wildcard(filter) {
        return Ok(());
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') {
            if level.len() > 1 {
                return Err(FilterError::MultiLevelNotAlone);
            }
            if levels.peek().is_some() {
                return Err(FilterError::MultiLevelNotLast);
            }
        }
        if level.contains('+') && level.len() > 1 {
            return Err(FilterError::WildcardNotAlone);
        }
    }
    Ok(())
}

/// True exactly when `filter` (without share group) matches `topic`. Both must be legal; for others the answer is
/// some bool, never a panic.
pub fn filter_matches(filter: &str, topic: &str) -> bool {
    // A wildcard in the first level does not match a topic that begins with `$` [MQTT-4.7.2-1].
    if topic.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#')) {
        return false;
    }
    let mut filter_levels = filter.split('/');
    let mut topic_levels = topic.split('/');
    loop {
        match (filter_levels.next(), topic_levels.next()) {
            // Also with no topic level left: `a/#` matches `a` (section 4.7.1.2).
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            (Some(_), Some(_) | None) | (None, Some(_)) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Scenario S1: what matches what.
    #[test]
    fn s1_filter_matches_table() {
        let table = [
            ("a/+/c", "a/b/c", true, "one level"),
            ("a/+/c", "a//c", true, "+ matches an empty level"),
            ("a/+/c", "a/b/d/c", false, "+ is exactly one level"),
            ("a/+", "a", false, "+ needs a level"),
            ("a/+", "a/", true, "which may be empty"),
            ("a/#", "a", true, "# matches the parent"),
            ("a/#", "a/", true, ""),
            ("a/#", "a/b/c", true, ""),
            ("a/#", "ab", false, ""),
            ("a/+/#", "a", false, ""),
            ("a/+/#", "a/b", true, ""),
            ("+/#", "a", true, ""),
            ("#", "a/b", true, ""),
            ("#", "/", true, ""),
            ("#", "$SYS/x", false, "leading wildcard against $"),
            ("+/x", "$SYS/x", false, "leading wildcard against $"),
            ("+", "$SYS", false, ""),
            ("$SYS/#", "$SYS/x", true, ""),
            ("$SYS/#", "$SYS", true, ""),
            ("$SYS/+", "$SYS/x", true, ""),
            ("$SYS/a", "$SYS/a", true, ""),
            ("a/#", "a/$x", true, "$ counts only in front"),
            ("a/+", "a/$x", true, ""),
            ("a//b", "a//b", true, "empty levels are levels"),
            ("a//b", "a/b", false, ""),
            ("/a", "/a", true, "leading slash"),
            ("/a", "a", false, ""),
            ("+/a", "/a", true, ""),
            ("+/+", "/", true, ""),
            ("+", "/", false, ""),
            ("a/b", "a/b/", false, "trailing slash"),
            ("a", "A", false, "case counts"),
            ("é/#", "é/x", true, "first character of two bytes"),
            ("+", "é", true, ""),
            ("sport/tennis/player1/#", "sport/tennis/player1", true, ""),
        ];
        for (filter, topic, expected, note) in table {
            assert_eq!(
                filter_matches(filter, topic),
                expected,
                "{filter} {topic} {note}"
            );
            assert!(parse_filter(filter).is_ok() && is_topic_name(topic));
        }
    }

    /// Scenario S8: what is no topic name.
    #[test]
    fn s8_topic_name_table() {
        let longest = "x".repeat(65_535);
        let too_long = "x".repeat(65_536);
        let table = [
            ("a", true),
            ("/", true),
            (" ", true),
            ("$SYS/x", true),
            ("a/b/é", true),
            (longest.as_str(), true),
            (too_long.as_str(), false),
            ("", false),
            ("a/#", false),
            ("a/+/b", false),
            ("a+b", false),
            ("a\0b", false),
        ];
        for (topic, expected) in table {
            assert_eq!(is_topic_name(topic), expected, "{topic:.20}");
            assert_eq!(TopicName::new(topic).is_some(), expected);
        }
    }

    #[test]
    fn filter_table() {
        use FilterError::*;
        let too_long = "x".repeat(65_536);
        let plain = |filter| {
            Ok(Filter {
                share_group: None,
                filter,
            })
        };
        let shared = |group, filter| {
            Ok(Filter {
                share_group: Some(group),
                filter,
            })
        };
        let table = [
            ("a/+/b/#", plain("a/+/b/#")),
            ("#", plain("#")),
            ("+", plain("+")),
            ("/", plain("/")),
            ("$SYS/#", plain("$SYS/#")),
            ("$shared/x", plain("$shared/x")),
            ("", Err(Empty)),
            (too_long.as_str(), Err(TooLong)),
            ("a\0", Err(Nul)),
            ("a/#/b", Err(MultiLevelNotLast)),
            ("#/", Err(MultiLevelNotLast)),
            ("a#", Err(MultiLevelNotAlone)),
            ("a/#b", Err(MultiLevelNotAlone)),
            ("+#", Err(MultiLevelNotAlone)),
            ("a+/b", Err(WildcardNotAlone)),
            ("a/+b", Err(WildcardNotAlone)),
            ("++", Err(WildcardNotAlone)),
            ("$share/g/a/#", shared("g", "a/#")),
            ("$share/g/#", shared("g", "#")),
            ("$share/g//", shared("g", "/")),
            ("$share", plain("$share")),
            ("$share/", Err(ShareGroup)),
            ("$share//a", Err(ShareGroup)),
            ("$share/g+/a", Err(ShareGroup)),
            ("$share/#", Err(ShareGroup)),
            ("$share/g", Err(ShareWithoutFilter)),
            ("$share/g/", Err(ShareWithoutFilter)),
            ("$share/g/a#", Err(MultiLevelNotAlone)),
        ];
        for (filter, expected) in table {
            assert_eq!(parse_filter(filter), expected, "{filter:.20}");
        }
        assert!(parse_filter("$share/g/a/+").is_ok_and(|filter| filter.matches("a/b")));
    }

    /// A matcher after the words of section 4.7, by recursion over vectors of levels.
    fn naive_matches(filter: &str, topic: &str) -> bool {
        fn levels_match(filter: &[&str], topic: &[&str]) -> bool {
            match filter {
                [] => topic.is_empty(),
                ["#"] => true,
                ["+", filter @ ..] => !topic.is_empty() && levels_match(filter, &topic[1..]),
                [name, filter @ ..] => {
                    topic.first() == Some(name) && levels_match(filter, &topic[1..])
                }
            }
        }
        let filter: Vec<_> = filter.split('/').collect();
        let topic: Vec<_> = topic.split('/').collect();
        let is_system = topic[0].starts_with('$');
        !(is_system && matches!(filter[0], "+" | "#")) && levels_match(&filter, &topic)
    }

    /// Few names, so that filters and topics meet often.
    fn level() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "a", "b", "é", "$SYS", "$"])
    }

    prop_compose! {
        fn topic()(levels in prop::collection::vec(level(), 1..6)) -> String {
            levels.join("/")
        }
    }

    prop_compose! {
        fn filter()(
            mut levels in prop::collection::vec(
                prop_oneof![2 => level(), 1 => Just("+")], 0..6),
            is_open in any::<bool>(),
        ) -> String {
            if is_open || levels.is_empty() {
                levels.push("#");
            }
            levels.join("/")
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_matcher(filter in filter(), topic in topic()) {
            prop_assume!(!filter.is_empty() && !topic.is_empty());
            prop_assert!(parse_filter(&filter).is_ok());
            prop_assert_eq!(filter_matches(&filter, &topic), naive_matches(&filter, &topic));
        }

        #[test]
        fn any_text_is_answered(filter in any::<String>(), topic in any::<String>()) {
            let _ = (parse_filter(&filter), is_topic_name(&topic), filter_matches(&filter, &topic));
        }
    }
}
