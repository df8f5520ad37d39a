//! Topic names and filters (MQTT 5 section 4.7), `$` topics and `$share` included.

/// True exactly when `topic` is a legal topic name: not empty, no wildcard, no NUL, at most 65,535 bytes.
pub fn is_topic_name(topic: &str) -> bool {
    let _ = topic;
    todo!()
}

/// A legal topic name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicName<'a>(pub &'a str);

/// A legal filter, with the share group taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter<'a> {
    /// The group of `$share/<group>/<filter>`.
    pub share_group: Option<&'a str>,
    /// The filter part.
    pub filter: &'a str,
}

/// Why a filter is not legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FilterError {
    Empty,
    TooLong,
    Nul,
    MultiLevelNotLast,
    WildcardNotAlone,
    ShareGroup,
}

/// Checks a filter and takes the share group off.
pub fn parse_filter(filter: &str) -> Result<Filter<'_>, FilterError> {
    let _ = filter;
    todo!()
}

/// True exactly when `filter` (without share group) matches `topic`.
pub fn filter_matches(filter: &str, topic: &str) -> bool {
    let _ = (filter, topic);
    todo!()
}
