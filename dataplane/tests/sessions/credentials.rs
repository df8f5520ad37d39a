//! Who a client is when it sends less than a name with its password: a name that its address proves, a name that the
//! listener ignores; and names that hold at some addresses only.

use sluice_dataplane::session::{AuthOutcome, Cause};
use sluice_wire::mqtt::{Connect, Packet, QoS, Version, decode_connect};

use super::harness::*;

/// The client of the harness is at 192.0.2.7.
const HERE: &str = "192.0.2.0/24";
const ELSEWHERE: &str = "'10.0.0.0/8', '2001:db8::/32'";

/// With a user `meter`, who has these keys; the rule for its topic matches that user alone.
fn policy(meter: &str) -> String {
    let users = format!("users:\n  - {{name: meter, {meter}}}\n");
    let rule = "  - {name: meters, who: {users: [meter]}, actions: [publish], topics: [\"of/${username}/#\"], decision: allow}\n";
    document("", &format!("{RULES}{rule}")).replace("users:\n", &users)
}

fn hash() -> String {
    let document = document("", "");
    let hash = document.split("password_hash: ").nth(1).unwrap();
    format!("password_hash: {}", hash.split('}').next().unwrap())
}

fn claim<'a>(version: Version, username: &'a str, password: Option<&'a [u8]>) -> Connect<'a> {
    Connect {
        username: Some(username),
        password,
        ..connect(version, "dev")
    }
}

fn sent(policy: &str, connect: &Connect<'_>) -> Rig {
    let mut rig = Rig::new(policy);
    rig.version = connect.version;
    rig.client(&bytes(connect.version, &Packet::Connect(connect.clone())));
    rig
}

fn asked(username: &str, known: bool) -> Event {
    Event::Authenticate {
        username: username.into(),
        known,
    }
}

/// Nothing is taken from what the broker may verify itself.
#[track_caller]
fn assert_goes_up_as_it_came(rig: &mut Rig, connect: &Connect<'_>) {
    rig.dialled_now(true);
    let up = rig.take_up();
    if connect.version != Version::V5 {
        let sent = bytes(connect.version, &Packet::Connect(connect.clone()));
        return assert_eq!(up, sent);
    }
    // The limits of the hop stand in it as well.
    let up = decode_connect(&up).unwrap();
    let claimed = |connect: &Connect<'_>| {
        let password = connect.password.map(<[u8]>::to_vec);
        (connect.username.map(str::to_owned), password)
    };
    assert_eq!(claimed(&up), claimed(connect));
}

/// May it publish where only `meter` may?
fn is_meter(rig: &mut Rig) -> bool {
    rig.dialled_now(true);
    let version = rig.version;
    rig.broker(&connack(version, 0, &[]));
    assert!(rig.session.is_open(), "{:?}", rig.events);
    rig.decisions.clear();
    let publish = publish("of/meter/x", QoS::AtMostOnce, 0, b"x");
    rig.client_sends(&Packet::Publish(publish));
    rig.decisions == [("of/meter/x".to_owned(), true)]
}

#[test]
fn the_address_proves_the_name_of_a_user_without_a_password() {
    for version in VERSIONS {
        for password in [None, Some(&b""[..])] {
            let connect = claim(version, "meter", password);
            let mut rig = sent(&policy(&format!("networks: [{HERE}]")), &connect);
            assert_eq!(rig.events, [Event::Dial], "no password is verified");
            assert_eq!(rig.session.username(), Some("meter"));
            assert_goes_up_as_it_came(&mut rig, &connect);
        }
        let connect = claim(version, "meter", None);
        let mut rig = sent(&policy(&format!("networks: [{HERE}]")), &connect);
        assert!(is_meter(&mut rig), "rules know the name");
    }
}

/// All of them queue for the pool and take as long as a user who is not there.
#[test]
fn what_proves_nothing_looks_like_an_unknown_user() {
    let by_address = |networks: &str| policy(&format!("networks: [{networks}]"));
    let with_hash = |networks: &str| policy(&format!("{}, networks: [{networks}]", hash()));
    let cases: [(&str, String, Option<&[u8]>); 7] = [
        (
            "no such user",
            policy("enabled: false, networks: [0.0.0.0/0]"),
            None,
        ),
        ("from elsewhere", by_address(ELSEWHERE), None),
        (
            "a password that nothing verifies",
            by_address(HERE),
            Some(b"x"),
        ),
        ("both", by_address(ELSEWHERE), Some(b"x")),
        ("a hash and no password", policy(&hash()), None),
        ("a hash and no password, from here", with_hash(HERE), None),
        (
            "a hash and a password, from elsewhere",
            with_hash(ELSEWHERE),
            Some(b"right"),
        ),
    ];
    for version in VERSIONS {
        for (note, policy, password) in &cases {
            let mut rig = sent(policy, &claim(version, "meter", *password));
            assert_eq!(rig.events, [asked("meter", false)], "{note}");
            rig.authenticated(AuthOutcome::Refused);
            assert_eq!(rig.ended(), Some(Cause::Unauthenticated), "{note}");
            let code = if version == Version::V5 {
                vec![0x20, 3, 0, 0x86, 0]
            } else {
                vec![0x20, 2, 0, 4]
            };
            rig.expect(&code, &[], note);
        }
    }
}

#[test]
fn a_user_with_a_hash_and_networks_needs_both() {
    let here = policy(&format!("{}, networks: [{HERE}]", hash()));
    let connect = claim(Version::V5, "meter", Some(b"right"));
    let mut rig = sent(&here, &connect);
    assert_eq!(rig.events, [asked("meter", true)]);
    rig.authenticated(AuthOutcome::Verified);
    assert!(is_meter(&mut rig));

    // The networks move while the password is verified, and while the session is open.
    let elsewhere = policy(&format!("{}, networks: [{ELSEWHERE}]", hash()));
    let mut rig = sent(&here, &connect);
    rig.applies(&elsewhere);
    rig.authenticated(AuthOutcome::Verified);
    rig.expect(&[0x20, 3, 0, 0x86, 0], &[], "moved before CONNACK");
    assert!(rig.ended().is_some() && !rig.events.contains(&Event::Dial));

    let mut rig = sent(&here, &connect);
    rig.authenticated(AuthOutcome::Verified);
    assert!(is_meter(&mut rig));
    rig.applies(&elsewhere);
    rig.sweeps();
    assert!(rig.ended().is_some(), "an open session ends");
}

/// While a password is verified, its row may change; what counts is the row when the answer comes.
#[test]
fn a_password_that_changed_while_it_was_verified_is_none() {
    let other = sluice_policy::hash_password(b"right").unwrap();
    let other = format!("password_hash: '{other}'");
    for version in VERSIONS {
        for (note, meter, gets_in) in [
            ("the same", hash(), true),
            (
                "another row, the same hash",
                format!("{}, networks: [{HERE}]", hash()),
                true,
            ),
            ("another hash", other.clone(), false),
            ("no hash", format!("networks: [{HERE}]"), false),
            ("no such user", format!("{}, enabled: false", hash()), false),
        ] {
            let connect = claim(version, "meter", Some(b"right"));
            let mut rig = sent(&policy(&hash()), &connect);
            rig.applies(&policy(&meter));
            rig.clear();
            rig.authenticated(AuthOutcome::Verified);
            assert_eq!(rig.events.contains(&Event::Dial), gets_in, "{note}");
            let ended = (!gets_in).then_some(Cause::Unauthenticated);
            assert_eq!(rig.ended(), ended, "{note}");
        }
    }
}

#[test]
fn a_row_that_gains_a_password_ends_what_the_address_alone_has_proven() {
    let by_address = policy(&format!("networks: [{HERE}]"));
    let with_hash = policy(&format!("{}, networks: [{HERE}]", hash()));
    for version in VERSIONS {
        // Before CONNACK, and open.
        let mut rig = sent(&by_address, &claim(version, "meter", None));
        rig.applies(&with_hash);
        rig.sweeps();
        assert_eq!(rig.ended(), Some(Cause::Denied), "while it is dialled");
        let code = if version == Version::V5 {
            vec![0x20, 3, 0, 0x86, 0]
        } else {
            vec![0x20, 2, 0, 4]
        };
        rig.expect(&code, &[], "bad credentials");

        let mut rig = sent(&by_address, &claim(version, "meter", None));
        assert!(is_meter(&mut rig));
        rig.applies(&by_address);
        rig.sweeps();
        assert!(rig.session.is_open(), "still without a password");
        rig.applies(&with_hash);
        rig.sweeps();
        assert!(rig.ended().is_some(), "it would have to prove itself");

        // A password was right when it was shown; another one does not undo that.
        let mut rig = sent(&with_hash, &claim(version, "meter", Some(b"right")));
        rig.authenticated(AuthOutcome::Verified);
        assert!(is_meter(&mut rig));
        rig.applies(&by_address);
        rig.sweeps();
        rig.applies(&with_hash);
        rig.sweeps();
        assert!(rig.session.is_open());
    }
}

#[test]
fn a_listener_that_ignores_names_knows_none() {
    let ignoring =
        |policy: String| policy.replace("group: guests}", "group: guests}\n    username: ignore");
    let networks = format!("networks: [{HERE}]");
    for version in VERSIONS {
        for (name, password) in [
            ("meter", None),
            ("alice", None),
            ("alice", Some(&b"right"[..])),
            ("nobody", Some(b"\xff")),
            ("", None),
        ] {
            let connect = claim(version, name, password);
            let mut rig = sent(&ignoring(policy(&networks)), &connect);
            assert_eq!(rig.events, [Event::Dial], "{name}: nothing is verified");
            assert_eq!(rig.session.username(), None, "{name}");
            assert_goes_up_as_it_came(&mut rig, &connect);
            let mut rig = sent(&ignoring(policy(&networks)), &connect);
            assert!(!is_meter(&mut rig), "{name}: a rule for the user matches");
        }
    }
    // A rule for all whose variable is the name takes the claimed one for none, as it does without a name.
    let rule =
        "  - {name: own, actions: [publish], topics: [\"of/${username}\"], decision: allow}\n";
    let document = ignoring(document("", &format!("{RULES}{rule}")));
    let mut rig = sent(&document, &claim(Version::V5, "alice", None));
    rig.expect(&[0x20, 3, 0, 0x85, 0], &[], "the variable is empty");
    assert!(rig.ended().is_some());
}

/// Only version 5 has a password without a user name. It names nobody, so it is anonymous, or refused where that is.
#[test]
fn a_password_alone_names_nobody() {
    let connect = Connect {
        password: Some(b"token"),
        ..connect(Version::V5, "dev")
    };
    let open = policy(&format!("networks: [{HERE}]"));
    let mut rig = sent(&open, &connect);
    assert_eq!(rig.events, [Event::Dial]);
    assert!(!is_meter(&mut rig));
    let closed = open.replace("    anonymous: {group: guests}\n", "");
    let mut rig = sent(&closed, &connect);
    rig.expect(&[0x20, 3, 0, 0x86, 0], &[], "no anonymous clients");
}
