//! Policies that cannot have been meant, as operators wrote them: the check alone says what is wrong with each.
#![allow(clippy::unwrap_used)] // tests fail by panicking

use sluice_policy::{check, text_of};

/// Warnings of a good document, or the problems of a wrong one; a line each.
fn said(file: &str, bytes: &[u8]) -> Vec<String> {
    match text_of(bytes, file).and_then(|text| check(text, file)) {
        Ok(checked) => checked.warnings,
        Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
    }
}

/// The name and the bytes of a file.
type Fleet = (&'static str, &'static [u8]);

macro_rules! fleet {
    ($name:literal) => {
        (
            concat!($name, ".yaml"),
            &include_bytes!(concat!("broken/", $name, ".yaml"))[..],
        )
    };
}

#[test]
fn the_fault_of_each_fleet_is_named() {
    let table: [(Fleet, &[&str]); 5] = [
        (
            fleet!("no_connect"),
            &[
                "no client can connect: `mqtt` (no rule allows `connect`, and the default is `deny`)",
            ],
        ),
        (
            fleet!("shadowed_deny"),
            &[
                "1 rule can never decide, because rules that are asked before decide about the same sessions and topics: \
               `secrets stay where they are` (behind `devices use all topics`)",
            ],
        ),
        (
            fleet!("taken_sessions"),
            &[
                "2 of 2 users may come with any client id, so each of them can take over the session of any other client; \
               bind them with `client_id: ${username}` or a `client_id_pattern`: `customer-a`, `customer-b`",
            ],
        ),
        (
            fleet!("variable_for_everyone"),
            &[
                "no client can connect at 1 of 2 listeners: `guests` (for clients without a user name, rules that match use \
               `${username}`, whose value cannot stand in a topic: it is empty, or not one plain level; give those rules a \
               `who`)",
            ],
        ),
        (
            fleet!("typing_errors"),
            &[
                "typing_errors.yaml:5:15: there is no upstream `brokr`; did you mean `broker`?",
                "typing_errors.yaml:6:32: expected a size such as `512`, `64KiB` or `1MiB` (a whole number of bytes, KiB, \
                 MiB or GiB), not `64kb`",
                "typing_errors.yaml:9:17: `mqtt://...@broker.internal:1883`: expected `tcp://host:port` or `unix:///path`",
                "typing_errors.yaml:15:14: there is no group `sensor`; did you mean `sensors`?",
                "typing_errors.yaml:18:20: there is no group `Sensors`; did you mean `sensors`?",
                "typing_errors.yaml:19:15: expected `connect` or `publish` or `subscribe` or `receive`, not `publsh`; did \
                 you mean `publish`?",
                "typing_errors.yaml:20:14: `sensors/#/up`: `#` must be a whole level, the last one",
                "typing_errors.yaml:21:15: expected `allow` or `deny`, not `Allow`; did you mean `allow`?",
            ],
        ),
    ];
    for ((file, bytes), expected) in table {
        let found = said(file, bytes);
        assert_eq!(found, expected, "{file}");
    }
}

/// Mended, nothing is said of any of them.
#[test]
fn the_advice_helps() {
    let mend = |bytes: &[u8], from: &str, to: &str| {
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    };
    let (_, no_connect) = fleet!("no_connect");
    let (_, shadowed) = fleet!("shadowed_deny");
    let (_, taken) = fleet!("taken_sessions");
    let (_, variable) = fleet!("variable_for_everyone");
    for text in [
        mend(
            no_connect,
            "rules:\n",
            "rules:\n  - {name: connect, actions: [connect], decision: allow}\n",
        ),
        mend(
            shadowed,
            "    decision: deny",
            "    decision: deny\n    priority: 1",
        ),
        mend(
            taken,
            "    password_hash",
            "    client_id: ${username}\n    password_hash",
        ),
        mend(
            variable,
            "report\n",
            "report\n    who: {user_patterns: [\".*\"]}\n",
        ),
    ] {
        assert_eq!(said("mended.yaml", text.as_bytes()), Vec::<String>::new());
    }
}

#[test]
fn a_file_in_another_encoding_is_named_too() {
    let text = include_str!("broken/no_connect.yaml");
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(
        said("p.yaml", &wide),
        [
            "p.yaml:1:1: this looks like UTF-16 (little-endian) without a byte order mark: save the document as UTF-8"
        ]
    );
}
