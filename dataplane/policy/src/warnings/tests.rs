//! What is said of which policy, and that nothing is said where nothing is certain.

use super::*;

const HASH: &str = "$7$1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";
const UPSTREAM: &str = "upstreams: [{name: up, endpoints: [tcp://a:1]}]\n";
const CONNECT: &str = "- {name: connect, priority: -9, actions: [connect], decision: allow}\n";

/// The warnings about a document; `H` stands for a password hash.
fn warnings(text: &str) -> Vec<String> {
    match check(
        &text
            .replace("H}", &format!("{HASH}}}"))
            .replace("H,", &format!("{HASH},")),
        "p",
    ) {
        Ok(checked) => checked.warnings,
        Err(errors) => panic!("{errors}"),
    }
}

/// A document with one listener, two users with their own client ids, and the rules given.
fn with_rules(rules: &str) -> String {
    format!(
        "{UPSTREAM}listeners: [{{name: l, address: 127.0.0.1:0, upstream: up}}]\n\
         groups: [{{name: staff}}, {{name: empty}}]\n\
         users:\n\
         - {{name: ann, groups: [staff], client_id: '${{username}}', password_hash: H}}\n\
         - {{name: bob, networks: [10.0.0.0/8], client_id: '${{username}}', password_hash: H}}\n\
         - {{name: gone, enabled: false, groups: [empty], password_hash: H}}\n\
         rules:\n{CONNECT}{rules}"
    )
}

#[track_caller]
fn says(text: &str, expected: &[&str]) {
    let found = warnings(text);
    assert_eq!(found.len(), expected.len(), "{text}\n{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            found.contains(expected),
            "{text}\n found {found}\nwanted {expected}"
        );
    }
}

#[test]
fn nothing_is_said_of_what_can_work() {
    says(&with_rules(""), &[]);
    says(
        &with_rules(
            "- {name: a, actions: [publish], topics: ['a/${username}'], decision: allow}\n",
        ),
        &[],
    );
}

#[test]
fn who_cannot_connect() {
    let listener = |more: &str| {
        format!(
            "{UPSTREAM}groups: [{{name: g}}]\nlisteners: [{{name: l, address: 127.0.0.1:0, upstream: up{more}}}]\n"
        )
    };
    let user = "users: [{name: ann, client_id: x, password_hash: H}]\n";
    let table: &[(String, &str)] = &[
        (
            UPSTREAM.into(),
            "no client can connect: there is no listener",
        ),
        (
            listener(""),
            "no client can connect: `l` (there is no enabled user, and `anonymous` is off)",
        ),
        (
            listener("") + user,
            "no client can connect: `l` (no rule allows `connect`, and the default is `deny`)",
        ),
        (
            listener("")
                + user
                + "rules:\n- {name: r, who: {users: [bob]}, actions: [connect], decision: allow}\n",
            "no client can connect: `l` (for user `ann`, no rule allows `connect`",
        ),
        (
            listener("")
                + user
                + "default: allow\nrules: [{name: no one, actions: [connect], decision: deny}]\n",
            "for user `ann`, rule `no one` denies `connect`",
        ),
        (
            listener(", client_id: {pattern: 'm-[0-9]+'}") + user + "default: allow\n",
            "the `client_id` of user `ann` is none that the listener takes",
        ),
        (
            listener(", client_id: {pattern: '.*'}, anonymous: {group: g}")
                + "default: allow\nrules: [{name: r, actions: [publish], topics: ['${username}/#'], decision: allow}]\n",
            "for clients without a user name, rules that match use `${username}`",
        ),
    ];
    for (text, expected) in table {
        let found = warnings(text);
        assert!(
            found.iter().any(|found| found.contains(expected)),
            "{text}\n{found:#?}"
        );
    }
    // What a client chooses may let it in.
    for who in [
        "client_ids: [x]",
        "client_id_patterns: ['x.*']",
        "addresses: [10.0.0.0/8]",
        "versions: ['5']",
    ] {
        let rule =
            format!("rules: [{{name: r, who: {{{who}}}, actions: [connect], decision: allow}}]\n");
        says(&(listener("") + user + &rule), &[]);
        let but = format!(
            "default: allow\nrules: [{{name: r, who: {{{who}}}, actions: [connect], decision: deny}}]\n"
        );
        let expected: &[&str] = if who.contains("client_id") {
            &["no client can connect"]
        } else {
            &[]
        };
        says(&(listener("") + user + &but), expected);
    }
    let two = listener("").replace(
        "up}]",
        "up}, {name: m, address: 127.0.0.1:0, upstream: up}]",
    );
    says(
        &(two
            + user
            + "rules: [{name: r, who: {listeners: [m]}, actions: [connect], decision: allow}]\n"),
        &["no client can connect at 1 of 2 listeners: `l` (for user `ann`"],
    );
}

#[test]
fn rules_that_are_about_no_session() {
    for (who, expected) in [
        (
            "users: [an]",
            Some("there is no enabled user `an`; did you mean `ann`?"),
        ),
        ("users: [gone]", Some("there is no enabled user `gone`")),
        (
            "users: [gone, carl]",
            Some("none of its `users` is an enabled user"),
        ),
        ("users: [gone, bob]", None),
        ("groups: [empty]", Some("its `groups` have no enabled user")),
        ("groups: [staff, empty]", None),
        (
            "users: [bob], groups: [staff]",
            Some("no user and listener there is fits all of it"),
        ),
        ("users: [ann], groups: [staff]", None),
        ("user_patterns: ['an+']", None),
        ("user_patterns: ['c.*']", Some("no user and listener")),
        ("client_ids: [ann]", None),
        ("client_ids: [eve]", Some("no user and listener")),
        (
            "users: [ann], client_ids: [bob]",
            Some("no user and listener"),
        ),
        (
            "users: [bob], addresses: [192.168.0.0/16]",
            Some("no user and listener"),
        ),
        ("users: [bob], addresses: [10.1.0.0/16]", None),
        ("users: [ann], addresses: [192.168.0.0/16]", None),
        ("versions: ['3.1']", None),
    ] {
        let rule = format!(
            "- {{name: r, who: {{{who}}}, actions: [publish], topics: [a], decision: allow}}\n"
        );
        let expected = expected.map(|why| format!("1 rule can never decide, because no client there can be is matched by the `who`: `r` ({why}"));
        says(
            &with_rules(&rule),
            &expected.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        // What is switched off is meant so.
        says(
            &with_rules(&rule.replace("decision", "enabled: false, decision")),
            &[],
        );
    }
}

#[test]
fn rules_behind_others() {
    let rule = |name: &str, who: &str, actions: &str, topics: &str, more: &str| {
        format!(
            "- {{name: {name}, who: {{{who}}}, actions: [{actions}], topics: [{topics}], decision: allow{more}}}\n"
        )
    };
    // First and second rule, and whether the second is behind the first.
    let table = [
        (("", "publish", "'#'"), ("", "publish", "a/b"), true),
        (("", "publish", "a/b"), ("", "publish", "a/b"), true),
        (("", "publish", "'a/+'"), ("", "publish", "a/b"), true),
        (("", "publish", "a/b"), ("", "publish", "'a/+'"), false),
        (("", "publish", "'a/#'"), ("", "publish", "a, b"), false),
        (("", "publish", "'a/#', b"), ("", "publish", "a, b"), true),
        (
            ("", "publish", "a, 'a/+', 'a/+/#'"),
            ("", "publish", "'a/#'"),
            true,
        ),
        (("", "publish", "'#'"), ("", "publish", "$SYS/a"), false),
        (
            ("", "publish", "'+/x'"),
            ("", "publish", "'${username}/x'"),
            true,
        ),
        (
            ("", "publish", "'#'"),
            ("", "publish", "'${client_id}/#'"),
            true,
        ),
        (
            ("", "publish", "'${client_id}/x'"),
            ("", "publish", "'${username}/x'"),
            false,
        ),
        (
            ("", "publish", "'${username}/#'"),
            ("", "publish", "'${username}/x'"),
            true,
        ),
        (("", "publish", "'#'"), ("", "subscribe", "a"), false),
        (
            ("", "publish, subscribe", "'#'"),
            ("", "publish, subscribe", "a"),
            true,
        ),
        (("", "subscribe", "'#'"), ("", "receive", "a"), true),
        (("", "receive", "'#'"), ("", "subscribe", "a"), false),
        (("", "publish", "'#'"), ("", "publish, connect", "a"), true), // `connect` is behind the rule of all documents here
        (
            ("users: [ann]", "publish", "'#'"),
            ("", "publish", "a"),
            false,
        ),
        (
            ("", "publish", "'#'"),
            ("users: [ann]", "publish", "a"),
            true,
        ),
        (
            ("users: [ann, bob]", "publish", "'#'"),
            ("users: [ann]", "publish", "a"),
            true,
        ),
        (
            ("groups: [staff]", "publish", "'#'"),
            ("users: [ann]", "publish", "a"),
            true,
        ),
        (
            ("groups: [staff]", "publish", "'#'"),
            ("users: [bob]", "publish", "a"),
            false,
        ),
        (
            ("groups: [staff]", "publish", "'#'"),
            ("users: [ann, bob]", "publish", "a"),
            false,
        ),
        (
            ("user_patterns: ['a.*']", "publish", "'#'"),
            ("users: [ann]", "publish", "a"),
            true,
        ),
        (
            ("user_patterns: ['b.*']", "publish", "'#'"),
            ("users: [ann]", "publish", "a"),
            false,
        ),
        (
            ("addresses: [10.0.0.0/8]", "publish", "'#'"),
            ("addresses: [10.1.0.0/16]", "publish", "a"),
            true,
        ),
        (
            ("addresses: [10.1.0.0/16]", "publish", "'#'"),
            ("addresses: [10.0.0.0/8]", "publish", "a"),
            false,
        ),
        (
            ("versions: ['5']", "publish", "'#'"),
            ("versions: ['5', '3.1']", "publish", "a"),
            false,
        ),
        (
            ("versions: ['5', '3.1']", "publish", "'#'"),
            ("versions: ['5']", "publish", "a"),
            true,
        ),
        (
            ("listeners: [l]", "publish", "'#'"),
            ("", "publish", "a"),
            true,
        ),
        (
            ("client_ids: [ann]", "publish", "'#'"),
            ("client_ids: [ann]", "publish", "a"),
            true,
        ),
        (
            ("client_id_patterns: ['a.*']", "publish", "'#'"),
            ("client_ids: [ann]", "publish", "a"),
            true,
        ),
        (
            ("client_id_patterns: ['a.*']", "publish", "'#'"),
            ("client_id_patterns: ['a.*']", "publish", "a"),
            true,
        ),
        (
            ("client_id_patterns: ['a.*']", "publish", "'#'"),
            ("users: [bob]", "publish", "a"),
            false,
        ),
    ];
    for ((who, actions, topics), (who_b, actions_b, topics_b), is_behind) in table {
        let first = rule("first", who, actions, topics, "");
        let second = rule("second", who_b, actions_b, topics_b, ", priority: -10");
        let expected = is_behind.then_some("1 rule can never decide, because rules that are asked before decide about the same sessions and topics: `second` (behind `");
        says(&with_rules(&(first.clone() + &second)), expected.as_slice());
        // A shadow rule decides nothing, so nothing is behind it but another one.
        let shadow = |rule: &str| rule.replace("decision: allow", "mode: shadow, decision: allow");
        let only = actions_b.contains("connect");
        if !only {
            says(&with_rules(&(shadow(&first) + &second)), &[]);
            says(
                &with_rules(&(shadow(&first) + &shadow(&second))),
                expected.as_slice(),
            );
        }
    }
}

#[test]
fn client_ids_that_are_not_bound() {
    let listener = "listeners: [{name: l, address: 127.0.0.1:0, upstream: up";
    let head = format!("{UPSTREAM}groups: [{{name: g}}]\ndefault: allow\n{listener}");
    let one = "users:\n- {name: ann, password_hash: H}\n";
    let two = format!("{one}- {{name: bob, client_id: b, password_hash: H}}\n");
    // No other client is there.
    says(&format!("{head}}}]\n{one}"), &[]);
    says(
        &format!("{head}}}]\n{two}"),
        &[
            "1 of 2 users may come with any client id, so each of them can take over the session of any other client; bind them with `client_id: ${username}` or a `client_id_pattern`: `ann`",
        ],
    );
    says(
        &format!("{head}, anonymous: {{group: g}}}}]\n{two}"),
        &[
            "1 of 2 users",
            "give these listeners a `client_id.pattern`: `l`",
        ],
    );
    says(
        &format!("{head}, anonymous: {{group: g}}, client_id: {{pattern: 'x.*'}}}}]\n"),
        &[],
    );
    // Of users whom no listener takes, nothing is said.
    says(
        &format!(
            "{head}, username: ignore, anonymous: {{group: g}}, client_id: {{pattern: 'x.*'}}}}]\n{two}"
        ),
        &[],
    );
    let many: String = (0..30)
        .map(|n| format!("- {{name: u{n:02}, password_hash: H}}\n"))
        .collect();
    says(
        &format!("{head}}}]\nusers:\n{many}"),
        &["30 of 30 users may come with any client id, so"],
    );
    let [warning] = &*warnings(&format!("{head}}}]\nusers:\n{many}")) else {
        panic!("one warning for all of them");
    };
    assert!(
        warning.ends_with(": `u00`, `u01`, `u02`, `u03`, `u04` and 25 more"),
        "{warning}"
    );
}

#[test]
fn work_ends_and_what_was_left_is_said() {
    let rules: String = (0..50)
        .map(|n| format!("- {{name: r{n}, who: {{users: [u{n}]}}, actions: [publish], topics: [a], decision: allow}}\n"))
        .collect();
    let text = with_rules(&rules).replace("H}", &format!("{HASH}}}"));
    let snapshot = crate::compile(&text, "p", Generation(1), None).expect("a good document");
    let whole = snapshot.review(&Cancel::new());
    assert!(
        whole[0].starts_with("50 rules can never decide"),
        "{whole:#?}"
    );
    assert_eq!(whole.len(), 1, "{whole:#?}");
    let part = snapshot.review_within(60, &Cancel::new());
    assert!(
        part.iter()
            .any(|text| text.contains("looked at were those that are asked before `r")),
        "{part:#?}"
    );
    let none = snapshot.review_within(0, &Cancel::new());
    assert!(
        none[0].contains("too large to find out for each listener"),
        "{none:#?}"
    );
    let cancelled = Cancel::new();
    cancelled.cancel();
    assert_eq!(snapshot.review(&cancelled), none);
}
