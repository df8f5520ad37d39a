//! The store of refusals: floods, shares, expiry, texts, filters, and who follows.

use sluice_policy::{Generation, ListenerId};

use super::super::query::DenialFilter;
use super::*;
use crate::session::{User, Wanted};

fn snapshot() -> Snapshot {
    let document = "
listeners: [{name: mqtt, address: '127.0.0.1:0', upstream: broker}]
upstreams: [{name: broker, endpoints: ['tcp://127.0.0.1:1']}]
users: [{name: alice, networks: [127.0.0.1/32]}]
";
    sluice_policy::compile(document, "test", Generation(1), None)
        .unwrap_or_else(|errors| panic!("{errors}"))
}

struct Kept {
    ring: DenialRing,
    snapshot: Snapshot,
    now: Time,
}

impl Kept {
    fn new(entries_max: u32) -> Self {
        Self {
            ring: DenialRing::new(entries_max, NameKey::default()),
            snapshot: snapshot(),
            now: Time(0),
        }
    }

    fn note(&mut self, last: u16, client_id: &str) {
        self.tell(last, client_id, User::Nobody, "t", Reason::NoRule);
    }

    fn tell(&mut self, last: u16, client_id: &str, user: User<'_>, topic: &str, reason: Reason) {
        let [high, low] = last.to_be_bytes();
        let wanted = Wanted {
            topic,
            ..Wanted::only(Act::Publish)
        };
        let record = DecisionRecord {
            peer: SocketAddr::from(([10, 0, high, low], 4711)),
            listener: ListenerId(0),
            version: None,
            client_id,
            user,
            wanted,
            refused: Some(reason),
            rule: None,
            shadow: None,
        };
        self.ring.note(self.now, Some(&self.snapshot), &record);
        self.check();
    }

    /// The invariants, read off the lists.
    fn check(&self) {
        let ring = &self.ring;
        let entries: Vec<&Entry> = ring.newest_first(Time(0)).collect();
        assert_eq!(entries.len(), ring.len() as usize);
        assert!(entries.is_sorted_by(|a, b| a.number > b.number));
        let mut largest = 0;
        let mut of_crowds = 0;
        for (count, (first, last)) in (0..).zip(&ring.by_count) {
            let (mut at, mut previous) = (*first, NONE);
            while let Some(crowd) = ring.crowds.get(at as usize) {
                assert_eq!((crowd.count, crowd.previous), (count, previous));
                let own = entries.iter().filter(|entry| entry.crowd == at).count();
                assert_eq!(own, count as usize);
                assert_eq!(ring.by_address.get(&crowd.address), Some(&at));
                (largest, of_crowds) = (count, of_crowds + own);
                (previous, at) = (at, crowd.next);
            }
            assert_eq!(*last, previous);
        }
        assert_eq!((ring.largest, of_crowds), (largest, entries.len()));
    }

    fn ask(&self, after: Option<u64>, limit: u32, filter: DenialFilter) -> DenialList {
        let query = DenialQuery {
            after,
            limit,
            filter,
        };
        self.ring.list(self.now, &query)
    }

    fn client_ids(&self) -> Vec<String> {
        let list = self.ask(None, LINES_MAX, DenialFilter::default());
        list.lines
            .iter()
            .map(|line| line.client_id.to_string())
            .collect()
    }
}

#[test]
fn a_flood_from_one_address_drives_out_its_own_only() {
    let mut kept = Kept::new(16);
    for client in ["a", "b", "c"] {
        kept.note(1, client);
    }
    kept.note(2, "d");
    for flood in 0..1000 {
        kept.note(3, &format!("flood-{flood}"));
    }
    kept.note(4, "e");
    let ids = kept.client_ids();
    assert_eq!(ids.len(), 16);
    for client in ["a", "b", "c", "d", "e"] {
        assert!(ids.iter().any(|id| id == client), "{client} is gone");
    }
    assert_eq!(ids.iter().filter(|id| id.starts_with("flood")).count(), 11);
    let list = kept.ask(None, 100, DenialFilter::default());
    assert_eq!(list.lost, 1005 - 16, "what is gone is said");
}

#[test]
fn one_with_as_many_as_the_largest_drives_out_its_own() {
    let mut kept = Kept::new(8);
    for client in ["a1", "a2", "a3", "a4"] {
        kept.note(1, client);
    }
    for flood in 0..20 {
        kept.note(2, &format!("b{flood}"));
    }
    let ids = kept.client_ids();
    assert_eq!(&ids[..4], ["a1", "a2", "a3", "a4"]);
    assert_eq!(&ids[4..], ["b16", "b17", "b18", "b19"]);
}

#[test]
fn floods_from_more_addresses_than_there_is_room_leave_the_newest() {
    let mut kept = Kept::new(8);
    for last in 0..300 {
        kept.note(last, &format!("c{last}"));
    }
    let expected: Vec<String> = (292..300).map(|last| format!("c{last}")).collect();
    assert_eq!(kept.client_ids(), expected);
    assert!(kept.ring.by_address.len() == 8 && kept.ring.crowds.len() <= 9);
}

#[test]
fn entries_expire_and_with_them_what_was_lost() {
    let mut kept = Kept::new(2);
    for client in ["a", "b", "c"] {
        kept.note(1, client);
        kept.now = kept.now.after(Duration::from_secs(60));
    }
    assert_eq!(kept.client_ids(), ["b", "c"]);
    assert_eq!(kept.ask(None, 9, DenialFilter::default()).lost, 1);
    kept.now = Time(0).after(EXPIRES_AFTER + Duration::from_secs(60));
    assert_eq!(kept.client_ids(), ["c"], "expired ones are not shown");
    kept.now = kept.now.after(Duration::from_secs(60));
    kept.ring.expire(kept.now);
    kept.check();
    assert!(kept.ring.is_empty());
    assert_eq!(kept.ask(None, 9, DenialFilter::default()).lost, 0);
    kept.note(1, "d");
    assert_eq!(kept.client_ids(), ["d"]);
}

#[test]
fn texts_are_cut_and_escaped_and_still_found() {
    let mut kept = Kept::new(4);
    let long = format!(
        "{}é{}",
        "x".repeat(TEXT_BYTES_MAX[0] - 1),
        "y".repeat(60_000)
    );
    let topic = format!("a\u{202e}\n{}", "t".repeat(60_000));
    kept.tell(1, &long, User::Nobody, &topic, Reason::NoRule);
    let list = kept.ask(None, 9, DenialFilter::default());
    let line = &list.lines[0];
    assert_eq!(
        *line.client_id,
        format!("{}…", "x".repeat(TEXT_BYTES_MAX[0] - 1))
    );
    assert!(line.topic.starts_with("a\\u{202e}\\u{a}tt") && line.topic.ends_with("t…"));
    let of = |client_id: &str| {
        let client_id = Some(client_id.into());
        let filter = DenialFilter {
            client_id,
            ..DenialFilter::default()
        };
        kept.ask(None, 9, filter).lines.len()
    };
    assert_eq!((of(&long), of("x"), of("y")), (1, 0, 0));
    let most = TEXT_BYTES_MAX.iter().sum::<usize>();
    assert!(kept.ring.text_bytes <= 2 * most, "{}", kept.ring.text_bytes);
}

#[test]
fn filters() {
    let mut kept = Kept::new(16);
    kept.tell(1, "a", User::Verified("alice"), "t", Reason::DeniedByRule);
    kept.tell(2, "b", User::Claimed("alice"), "", Reason::PasswordWrong);
    kept.tell(3, "c", User::Claimed("eyJ.token"), "", Reason::UserUnknown);
    kept.tell(3, "d", User::Nobody, "", Reason::PayloadTooLarge);
    let found = |filter: DenialFilter| {
        let list = kept.ask(None, 9, filter);
        let ids = list.lines.iter().map(|line| line.client_id.to_string());
        ids.collect::<Vec<_>>().concat()
    };
    let none = DenialFilter::default;
    let user = |name: &str| {
        found(DenialFilter {
            user: Some(name.into()),
            ..none()
        })
    };
    assert_eq!(
        (&*user("alice"), &*user("eyJ.token"), &*user("x")),
        ("ab", "c", "")
    );
    let reason = |name: &str| {
        found(DenialFilter {
            reason: Some(name.into()),
            ..none()
        })
    };
    assert_eq!(reason("password_wrong"), "b");
    assert_eq!(
        (&*reason("credentials"), &*reason("too_large")),
        ("bc", "d")
    );
    let address = Some("10.0.0.3".parse().expect("an address"));
    assert_eq!(found(DenialFilter { address, ..none() }), "cd");
    let both = DenialFilter {
        address,
        reason: Some("rules".into()),
        ..none()
    };
    assert_eq!(found(both), "");
    let list = kept.ask(None, 9, none());
    let shown: Vec<String> = list
        .lines
        .iter()
        .map(|line| line.user.to_string())
        .collect();
    assert_eq!(shown[0], "alice");
    assert_eq!(shown[1], "alice (not verified)");
    assert!(
        !shown[2].contains("token") && shown[2].contains("9 bytes"),
        "{}",
        shown[2]
    );
}

#[test]
fn who_follows_hears_each_once_and_what_was_lost() {
    let mut kept = Kept::new(4);
    kept.note(1, "a");
    kept.note(1, "b");
    let none = DenialFilter::default;
    let first = kept.ask(None, 1, none());
    assert_eq!((first.lines.len(), first.left_off, first.next), (1, 1, 2));
    assert_eq!(&*first.lines[0].client_id, "b", "the newest");
    for client in ["c", "d", "e", "f", "g", "h"] {
        kept.note(1, client);
    }
    let second = kept.ask(Some(first.next), 2, none());
    let ids: Vec<&str> = second.lines.iter().map(|line| &*line.client_id).collect();
    assert_eq!((ids, second.lost, second.next), (vec!["e", "f"], 2, 6));
    let third = kept.ask(Some(second.next), 9, none());
    let ids: Vec<&str> = third.lines.iter().map(|line| &*line.client_id).collect();
    assert_eq!((ids, third.lost, third.next), (vec!["g", "h"], 0, 8));
    assert!(kept.ask(Some(third.next), 9, none()).lines.is_empty());
    let of_another_life = kept.ask(Some(1_000_000), 9, none());
    assert_eq!(of_another_life.lines.len(), 4);
}

/// Once the store has been full a refusal takes no memory.
#[test]
fn a_full_store_grows_no_more() {
    let mut kept = Kept::new(64);
    let name = "n".repeat(1000);
    let note = |kept: &mut Kept, round: u16| {
        let user = User::Verified(&name);
        kept.tell(round % 300, &name, user, &name, Reason::NoRule);
    };
    (0..600).for_each(|round| note(&mut kept, round));
    let bytes = kept.ring.heap_bytes();
    (0..5000).for_each(|round| note(&mut kept, round));
    assert_eq!(kept.ring.heap_bytes(), bytes);
    assert!(bytes < 64 * 1024, "{bytes}");
}
