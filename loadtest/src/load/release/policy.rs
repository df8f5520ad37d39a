//! The policy of a release measurement: so many rules, one of which is another in each variant.

use std::fmt::Write as _;

/// Devices publish to `d/<number>/t`, one rule each.
pub(super) const TOPICS: &str = "d/{c}/t";

/// One rule admits devices, `rules` let them publish. Of two variants exactly one row differs: the last rule.
pub(super) fn document(rules: u32, variant: u64, upstream: &str) -> String {
    let mut text = format!(
        "listeners:\n  - name: devices\n    address: 127.0.0.1:0\n    upstream: broker\n    \
         anonymous: {{ group: devices }}\n    limits: {{ connections_per_address_max: unlimited }}\n\
         upstreams:\n  - {{ name: broker, endpoints: [\"{upstream}\"] }}\n\
         groups:\n  - {{ name: devices }}\n\
         rules:\n  - {{ name: connect, who: {{ groups: [devices] }}, actions: [connect], decision: allow }}\n"
    );
    for rule in 0..rules {
        let last = if rule + 1 == rules {
            format!("/{variant}")
        } else {
            String::new()
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  - {{ name: r{rule}, who: {{ groups: [devices] }}, actions: [publish], topics: [d/{rule}/t{last}], decision: allow }}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_variants_differ_in_one_row() {
        let rows = |variant| {
            let text = document(3, variant, "tcp://127.0.0.1:1");
            let rows = sluice_policy::parse(&text, "policy").unwrap();
            let rows = sluice_policy::convert::to_messages(&rows);
            sluice_policy::fleet::Inventory::from_messages(&rows).unwrap()
        };
        let (one, two) = (rows(1), rows(2));
        // Settings, listener, upstream, group, and the four rules.
        assert_eq!(one.len(), 8);
        assert_eq!(one.changes_to(&two).len(), 1);
    }
}
