//! Topics and filters: any text is answered, and the matcher agrees with a naive one.

use sluice_wire::mqtt::{filter_matches, is_topic_name, parse_filter};

/// Input: a filter and a topic, with a byte 0xff (which no UTF-8 has) between them.
pub fn topics(input: &[u8]) {
    let mut parts = input.splitn(2, |byte| *byte == 0xff);
    let (Some(filter), Some(topic)) = (text(parts.next()), text(parts.next())) else {
        return;
    };
    let matches = filter_matches(filter, topic);
    let is_topic = is_topic_name(topic);
    if let Ok(parsed) = parse_filter(filter) {
        assert!(filter.ends_with(parsed.filter));
        assert_eq!(
            parsed.share_group.is_some(),
            filter.starts_with("$share/"),
            "a share is a share"
        );
        assert!(parse_filter(parsed.filter).is_ok() || parsed.filter.starts_with("$share"));
        if is_topic && parsed.share_group.is_none() {
            assert_eq!(matches, naive_matches(filter, topic));
        }
    }
    if is_topic && !topic.starts_with("$share/") {
        assert!(parse_filter(topic).is_ok(), "a topic is a filter");
        assert!(filter_matches(topic, topic), "that matches itself");
    }
}

fn text(bytes: Option<&[u8]>) -> Option<&str> {
    std::str::from_utf8(bytes?).ok()
}

/// Section 4.7 by recursion over vectors of levels.
fn naive_matches(filter: &str, topic: &str) -> bool {
    fn levels_match(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) | ([], []) => true,
            (["+", filter @ ..], [_, topic @ ..]) => levels_match(filter, topic),
            ([name, filter @ ..], [level, topic @ ..]) => {
                name == level && levels_match(filter, topic)
            }
            ([], [_, ..]) | ([_, ..], []) => false,
        }
    }
    let begins_with_wildcard = filter.starts_with(['+', '#']);
    let filter: Vec<_> = filter.split('/').collect();
    let levels: Vec<_> = topic.split('/').collect();
    !(begins_with_wildcard && topic.starts_with('$')) && levels_match(&filter, &levels)
}
