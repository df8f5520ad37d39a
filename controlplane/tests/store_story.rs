//! The life of a store, told once against the trait, so that another engine can be made to tell the same; and what may
//! befall the file of the one that there is: two callers at once, callers who go away, a kill, a full disk, damage, a
//! backup while it is written to, a restore.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests, outside of their functions

use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::Poll;

use sluice_controlplane::domain::{
    AuditEntry, AuditRecord, JoinToken, Name, NewGeneration, NodeRecord, Role, Secret, State,
    Token, TokenId, UnixMillis,
};
use sluice_controlplane::store::{
    Chain, ChainPart, Enrolled, Examined, Heads, Sqlite, Store, StoreError, Verified, restore,
};
use sluice_policy::fleet::Inventory;
use sluice_proto::v1::{self, row::Kind};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqlSafeStr};

type Told = Result<(), Box<dyn std::error::Error>>;

fn at(millis: u64) -> UnixMillis {
    UnixMillis(millis)
}

fn entry(action: &'static str, millis: u64) -> AuditEntry {
    AuditEntry {
        at: at(millis),
        who: "ada".into(),
        action,
        what: "generation".into(),
        before: "what was".into(),
        after: "what is".into(),
        request_id: "r-1".into(),
        peer: "127.0.0.1:7".into(),
    }
}

fn rule(name: &str, order: i64) -> v1::Row {
    v1::Row {
        name: name.into(),
        kind: Some(Kind::Rule(v1::Rule {
            order: Some(order),
            topics: vec![format!("plant/{name}/temperature")],
            ..v1::Rule::default()
        })),
        ..v1::Row::default()
    }
}

fn rules(count: usize, order: i64) -> Inventory {
    let rows: Vec<v1::Row> = (0..count).map(|n| rule(&format!("r{n}"), order)).collect();
    Inventory::from_messages(&rows).unwrap()
}

fn generation(base: u64, from: &Inventory, to: &Inventory) -> NewGeneration {
    NewGeneration {
        digest: to.digest(),
        base,
        rollback_of: None,
        rows: to.len() as u64,
        changes: from.changes_to(to),
        comment: "because".into(),
        created_at: at(10),
        created_by: "ada".into(),
        expires_at: at(1_000),
        warnings: Some(vec!["look at this".into(), "and at that".into()]),
    }
}

fn heads(newest: u64, released: u64) -> Heads {
    Heads { newest, released }
}

fn token_id(text: &str) -> TokenId {
    TokenId(text.into())
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn secret(byte: u8) -> Secret {
    Secret::new([byte; 32])
}

fn token(id: &str, named: &str, role: Role, expires_at: Option<u64>) -> Token {
    Token {
        id: token_id(id),
        name: name(named),
        role,
        hash: secret(1).hash(),
        created_at: at(5),
        created_by: "control plane".into(),
        expires_at: expires_at.map(at),
        revoked_at: None,
    }
}

fn join_token(id: &str, node: Option<&str>, uses_left: u32) -> JoinToken {
    JoinToken {
        id: token_id(id),
        node: node.map(name),
        uses_left,
        hash: secret(2).hash(),
        created_at: at(5),
        created_by: "ada".into(),
        expires_at: at(100),
        revoked_at: None,
    }
}

fn node(named: &str, byte: u8, join_token: &str, millis: u64) -> NodeRecord {
    NodeRecord {
        name: name(named),
        hash: secret(byte).hash(),
        enrolled_at: at(millis),
        join_token: token_id(join_token),
    }
}

/// The story. `reopen` closes the store and opens it again: what was answered has to be there.
async fn story<F>(reopen: impl Fn(Option<Arc<dyn Store>>) -> F) -> Told
where
    F: Future<Output = Arc<dyn Store>>,
{
    let store = reopen(None).await;
    an_empty_store(&*store).await?;
    generations(&*store).await?;
    expiry(&*store).await?;
    tokens(&*store).await?;
    joining(&*store).await?;
    let (id, known) = (store.id(), store.audit(None, 1000).await?);
    let store = reopen(Some(store)).await;
    assert_eq!(store.id(), id, "the same store");
    assert_eq!(store.audit(None, 1000).await?, known, "the same records");
    audit(&*store).await?;
    Ok(())
}

async fn an_empty_store(store: &dyn Store) -> Told {
    assert_eq!(store.heads().await?, heads(0, 0));
    assert!(store.rows(0).await?.is_empty());
    assert!(store.generations(None, 10).await?.is_empty());
    assert!(store.tokens().await?.is_empty());
    assert!(store.nodes().await?.is_empty());
    assert!(store.audit_is_whole().await?);
    for number in [0, 1, u64::MAX] {
        let missing = store.generation(number).await;
        assert!(matches!(missing, Err(StoreError::NotFound(_))), "{number}");
    }
    assert!(matches!(store.rows(7).await, Err(StoreError::NotFound(_))));
    let missing = store.release(1, 0, entry("policy.release", 1)).await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))));
    assert_eq!(store.prune(at(u64::MAX)).await?, 0);
    store.check().await?;
    assert!(store.size_bytes().await? > 0);
    assert!(store.audit(None, 10).await?.is_empty(), "nothing was done");
    Ok(())
}

async fn generations(store: &dyn Store) -> Told {
    let (nothing, first, second) = (Inventory::default(), rules(300, 1), rules(200, 1));
    let added = store
        .add(
            generation(0, &nothing, &first),
            0,
            entry("policy.apply", 10),
        )
        .await?;
    assert_eq!((added.id.number, added.id.store), (1, store.id()));
    assert_eq!((added.rows, added.changes, added.base), (300, 300, 0));
    assert_eq!(added.state(0, at(20)), State::Applied);
    assert_eq!(store.heads().await?, heads(1, 0));
    assert_eq!(store.generation(1).await?, added);
    assert_eq!(store.rows(1).await?.digest(), first.digest());

    for (expected, base) in [(0, 0), (2, 0), (1, 1)] {
        let new = generation(base, &nothing, &second);
        let lost = store.add(new, expected, entry("policy.apply", 11)).await;
        assert!(
            matches!(lost, Err(StoreError::Conflict(now)) if now == heads(1, 0)),
            "{expected} {base}: {lost:?}"
        );
    }
    let lost = store.release(1, 1, entry("policy.release", 12)).await;
    assert!(matches!(lost, Err(StoreError::Conflict(now)) if now == heads(1, 0)));
    let released = store.release(1, 0, entry("policy.release", 12)).await?;
    assert_eq!(released.released_at, Some(at(12)));
    assert_eq!(released.released_by.as_deref(), Some("ada"));
    assert_eq!(released.state(1, at(20)), State::Released);
    assert_eq!(store.heads().await?, heads(1, 1));
    let again = store.release(1, 1, entry("policy.release", 13)).await;
    assert!(matches!(again, Err(StoreError::Refused(_))), "{again:?}");

    // Two made to the same base: only one of them can follow it.
    let third = rules(250, 2);
    store
        .add(generation(1, &first, &second), 1, entry("policy.apply", 14))
        .await?;
    store
        .add(generation(1, &first, &third), 2, entry("policy.apply", 15))
        .await?;
    assert_eq!(store.rows(2).await?.digest(), second.digest());
    store.release(3, 1, entry("policy.release", 16)).await?;
    let outdated = store.release(2, 3, entry("policy.release", 17)).await;
    assert!(matches!(outdated, Err(StoreError::Conflict(now)) if now == heads(3, 3)));
    assert_eq!(store.generation(2).await?.state(3, at(20)), State::Outdated);

    let mut back = generation(3, &third, &first);
    back.rollback_of = Some(1);
    let lost = store
        .add_released(generation(1, &first, &second), entry("policy.rollback", 18))
        .await;
    assert!(matches!(lost, Err(StoreError::Conflict(now)) if now == heads(3, 3)));
    let back = store
        .add_released(back, entry("policy.rollback", 18))
        .await?;
    assert_eq!((back.id.number, back.rollback_of), (4, Some(1)));
    assert_eq!(back.released_at, Some(at(18)));
    assert_eq!(store.heads().await?, heads(4, 4));
    for (number, rows) in [(1, &first), (2, &second), (3, &third), (4, &first)] {
        assert_eq!(
            store.rows(number).await?.digest(),
            rows.digest(),
            "{number}"
        );
    }
    for (number, base, rows) in [
        (1, &nothing, &first),
        (3, &first, &third),
        (4, &third, &first),
    ] {
        let changes = store.changes(number).await?;
        assert_eq!(
            changes.len() as u64,
            store.generation(number).await?.changes
        );
        assert_eq!(base.with(changes).digest(), rows.digest(), "{number}");
    }
    for number in [0, 77] {
        let none = store.changes(number).await;
        assert!(matches!(none, Err(StoreError::NotFound(_))), "{none:?}");
    }
    let numbers = |page: Vec<sluice_controlplane::domain::Generation>| -> Vec<u64> {
        page.iter().map(|generation| generation.id.number).collect()
    };
    assert_eq!(numbers(store.generations(None, 3).await?), [4, 3, 2]);
    assert_eq!(numbers(store.generations(Some(2), 3).await?), [1]);
    assert_eq!(
        numbers(store.generations(Some(u64::MAX), 9).await?),
        [4, 3, 2, 1]
    );
    Ok(())
}

async fn expiry(store: &dyn Store) -> Told {
    let (now, later) = (rules(300, 1), rules(301, 1));
    store
        .add(generation(4, &now, &later), 4, entry("policy.apply", 20))
        .await?;
    assert_eq!(store.prune(at(999)).await?, 1, "2, which is outdated");
    assert_eq!(store.prune(at(999)).await?, 0);
    assert_eq!(store.prune(at(1_000)).await?, 1, "5, which has expired");
    assert_eq!(store.heads().await?, heads(5, 4), "no number comes again");
    for number in [2, 5] {
        assert!(!store.generation(number).await?.has_rows);
        assert!(matches!(
            store.rows(number).await,
            Err(StoreError::Refused(_))
        ));
        assert!(matches!(
            store.changes(number).await,
            Err(StoreError::Refused(_))
        ));
    }
    assert_eq!(store.generation(5).await?.state(4, at(0)), State::Expired);
    let gone = store.release(5, 4, entry("policy.release", 21)).await;
    assert!(matches!(gone, Err(StoreError::Refused(_))), "{gone:?}");
    assert_eq!(store.rows(4).await?.digest(), now.digest());
    let pruned = &store.audit(None, 1).await?[0];
    assert_eq!(
        (pruned.action.as_str(), pruned.what.as_str()),
        ("policy.prune", "generation 5")
    );
    Ok(())
}

async fn tokens(store: &dyn Store) -> Told {
    let note = || entry("token.create", 30);
    store
        .add_token(token("b", "root", Role::Admin, None), note())
        .await?;
    store
        .add_token(token("a", "bob", Role::Viewer, None), note())
        .await?;
    for (id, named) in [("c", "root"), ("a", "carol")] {
        let taken = store
            .add_token(token(id, named, Role::Viewer, None), note())
            .await;
        assert!(matches!(taken, Err(StoreError::Exists(_))), "{id} {named}");
    }
    let ids = |tokens: &[Token]| -> Vec<String> {
        tokens.iter().map(|token| token.id.0.to_string()).collect()
    };
    assert_eq!(ids(&store.tokens().await?), ["a", "b"], "by name");

    let last = store.revoke_token(&token_id("b"), at(31), note()).await;
    assert!(matches!(last, Err(StoreError::Refused(_))), "{last:?}");
    store
        .add_token(token("d", "dora", Role::Admin, Some(50)), note())
        .await?;
    let last = store.revoke_token(&token_id("b"), at(50), note()).await;
    assert!(
        matches!(last, Err(StoreError::Refused(_))),
        "the other has expired by then"
    );
    store.revoke_token(&token_id("b"), at(49), note()).await?;
    let kept = store.tokens().await?;
    let revoked = kept.iter().find(|token| *token.id.0 == *"b").unwrap();
    assert_eq!(revoked.revoked_at, Some(at(49)));
    assert!(revoked.hash.is_of(&secret(1)) && !revoked.works(at(49)));
    let records = store.audit(None, 1000).await?.len();
    store.revoke_token(&token_id("b"), at(60), note()).await?;
    assert_eq!(
        store.audit(None, 1000).await?.len(),
        records,
        "nothing was done"
    );
    let missing = store.revoke_token(&token_id("zz"), at(50), note()).await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))));
    store
        .add_token(token("e", "root", Role::Admin, None), note())
        .await?;
    Ok(())
}

async fn joining(store: &dyn Store) -> Told {
    let note = || entry("node.enroll", 40);
    let mut old = join_token("old", None, 5);
    old.created_at = at(1);
    store.add_join_token(old, note()).await?;
    store
        .add_join_token(join_token("two", None, 2), note())
        .await?;
    store
        .add_join_token(join_token("own", Some("edge-9"), 1), note())
        .await?;
    let ids: Vec<String> = store
        .join_tokens()
        .await?
        .iter()
        .map(|token| token.id.0.to_string())
        .collect();
    assert_eq!(ids, ["own", "two", "old"], "newest first");
    let taken = store
        .add_join_token(join_token("two", None, 9), note())
        .await;
    assert!(matches!(taken, Err(StoreError::Exists(_))));

    let enroll = async |record: NodeRecord| store.enroll(record, note()).await;
    assert_eq!(
        enroll(node("edge-1", 7, "two", 50)).await?,
        Enrolled::Joined
    );
    let records = store.audit(None, 1000).await?.len();
    assert_eq!(enroll(node("edge-1", 7, "two", 60)).await?, Enrolled::Again);
    assert_eq!(
        store.audit(None, 1000).await?.len(),
        records,
        "nothing was done"
    );
    let other = enroll(node("edge-1", 8, "two", 50)).await;
    assert!(matches!(other, Err(StoreError::Exists(_))));
    for (record, why) in [
        (node("edge-2", 7, "two", 100), "expired"),
        (node("edge-2", 7, "own", 50), "another node"),
    ] {
        let refused = enroll(record).await;
        assert!(
            matches!(&refused, Err(StoreError::Refused(text)) if text.contains(why)),
            "{why}: {refused:?}"
        );
    }
    let unknown = enroll(node("edge-2", 7, "none", 50)).await;
    assert!(matches!(unknown, Err(StoreError::NotFound(_))));
    assert_eq!(
        enroll(node("edge-2", 9, "two", 99)).await?,
        Enrolled::Joined
    );
    let used = enroll(node("edge-3", 9, "two", 50)).await;
    assert!(matches!(&used, Err(StoreError::Refused(text)) if text.contains("used up")));
    assert_eq!(
        enroll(node("edge-1", 7, "two", 5_000)).await?,
        Enrolled::Again,
        "even then"
    );
    store
        .revoke_join_token(&token_id("old"), at(51), note())
        .await?;
    store
        .revoke_join_token(&token_id("old"), at(52), note())
        .await?;
    let revoked = enroll(node("edge-3", 9, "old", 52)).await;
    assert!(matches!(&revoked, Err(StoreError::Refused(text)) if text.contains("revoked")));
    let missing = store
        .revoke_join_token(&token_id("zz"), at(1), note())
        .await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))));

    let hash = store.node_hash(&name("edge-1")).await?.unwrap();
    assert!(hash.is_of(&secret(7)));
    assert!(store.node_hash(&name("edge-7")).await?.is_none());
    store.remove_node(&name("edge-1"), note()).await?;
    assert!(store.node_hash(&name("edge-1")).await?.is_none());
    let missing = store.remove_node(&name("edge-1"), note()).await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))));
    let names: Vec<String> = store
        .nodes()
        .await?
        .iter()
        .map(|node| node.name.to_string())
        .collect();
    assert_eq!(names, ["edge-2"]);
    Ok(())
}

async fn audit(store: &dyn Store) -> Told {
    store.note(entry("session.kick", u64::MAX)).await?;
    let all = store.audit(None, 1000).await?;
    for (place, record) in all.iter().enumerate() {
        assert_eq!(
            record.number,
            (all.len() - place) as u64,
            "newest first, no gaps"
        );
    }
    let mut paged: Vec<AuditRecord> = Vec::new();
    while let page = store
        .audit(paged.last().map(|record| record.number), 3)
        .await?
        && !page.is_empty()
    {
        assert!(page.len() <= 3);
        paged.extend(page);
    }
    assert_eq!(paged, all);
    let what = |action: &str| -> Vec<String> {
        let of = all.iter().filter(|record| record.action == action);
        of.map(|record| record.what.clone()).collect()
    };
    assert_eq!(what("policy.release"), ["generation 3", "generation 1"]);
    assert_eq!(what("policy.rollback"), ["generation 4"]);
    assert!(store.audit_is_whole().await?);
    assert!(
        store.audit_is_whole().await?,
        "also when it was read before"
    );
    Ok(())
}

#[tokio::test]
async fn sqlite_tells_the_story() -> Told {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    story(async |store: Option<Arc<dyn Store>>| {
        drop(store);
        Arc::new(Sqlite::open(&data).await.unwrap()) as Arc<dyn Store>
    })
    .await?;
    for (path, mode) in [("", 0o700), ("store.db", 0o600), ("store.lock", 0o600)] {
        let found = fs::metadata(data.join(path))?.permissions().mode();
        assert_eq!(found & 0o777, mode, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_store_has_one_user() -> Told {
    let dir = tempfile::tempdir()?;
    let store = Sqlite::open(dir.path()).await?;
    let second = Sqlite::open(dir.path()).await;
    assert!(
        matches!(&second, Err(StoreError::Unavailable(text)) if text.contains("in use")),
        "{second:?}"
    );
    let copy = store.clone();
    drop(store);
    assert!(
        Sqlite::open(dir.path()).await.is_err(),
        "a copy is still there"
    );
    copy.close().await;
    assert!(matches!(
        copy.heads().await,
        Err(StoreError::Unavailable(_))
    ));
    assert!(matches!(
        copy.check().await,
        Err(StoreError::Unavailable(_))
    ));
    drop(copy);
    Sqlite::open(dir.path()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_saw_the_same_one_wins() -> Told {
    let dir = tempfile::tempdir()?;
    let store = Sqlite::open(dir.path()).await?;
    let (nothing, rows) = (Inventory::default(), rules(50, 1));
    for round in 0..10 {
        let adding = (0..4).map(|_| {
            let (store, new) = (store.clone(), generation(0, &nothing, &rows));
            tokio::spawn(async move { store.add(new, round, entry("policy.apply", 1)).await })
        });
        let (mut won, mut lost) = (0, 0);
        for task in adding.collect::<Vec<_>>() {
            match task.await? {
                Ok(added) => {
                    won += 1;
                    assert_eq!(added.id.number, round + 1);
                }
                Err(StoreError::Conflict(now)) => {
                    lost += 1;
                    assert_eq!(now, heads(round + 1, 0));
                }
                Err(other) => return Err(other.into()),
            }
        }
        assert_eq!((won, lost), (1, 3));
    }
    let releasing = (1..=10).map(|number| {
        let store = store.clone();
        tokio::spawn(async move { store.release(number, 0, entry("policy.release", 2)).await })
    });
    let mut won = Vec::new();
    for task in releasing.collect::<Vec<_>>() {
        match task.await? {
            Ok(released) => won.push(released.id.number),
            Err(StoreError::Conflict(_)) => {}
            Err(other) => return Err(other.into()),
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(store.heads().await?, heads(10, won[0]));
    assert!(store.audit_is_whole().await?);
    Ok(())
}

/// What holds whatever happened: each generation is there whole or not at all, and each has its record.
async fn is_consistent(store: &dyn Store) -> Result<Heads, Box<dyn std::error::Error>> {
    let now = store.heads().await?;
    assert!(store.audit_is_whole().await?);
    for number in 1..=now.newest {
        let generation = store.generation(number).await?;
        let rows = store.rows(number).await?;
        assert_eq!(rows.digest(), generation.id.digest);
    }
    let mut records = Vec::new();
    while let page = store
        .audit(
            records.last().map(|record: &AuditRecord| record.number),
            1000,
        )
        .await?
        && !page.is_empty()
    {
        records.extend(page);
    }
    let of = |action: &str| {
        records
            .iter()
            .filter(|record| record.action == action)
            .count()
    };
    assert_eq!(of("policy.apply") as u64, now.newest, "a record for each");
    let mut released = 0;
    for generation in store.generations(None, 1000).await? {
        released += usize::from(generation.released_at.is_some());
    }
    assert_eq!(of("policy.release"), released);
    Ok(now)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_goes_away_leaves_nothing_half_done() -> Told {
    let dir = tempfile::tempdir()?;
    let store = Sqlite::open(dir.path()).await?;
    let mut rows = store.rows(0).await?;
    let mut finished = 0;
    // Polls each call once more often than the call before, until several came to their end.
    for polls in 0..500 {
        let now = store.heads().await?;
        let next = rules(20, i64::from(polls));
        let mut adding = store.add(
            generation(now.released, &rows, &next),
            now.newest,
            entry("policy.apply", 1),
        );
        let is_done = poll_at_most(&mut adding, polls).await;
        drop(adding);
        store.check().await?; // waits until what was under way has ended, one way or the other
        let after = is_consistent(&store).await?;
        assert!((now.newest..=now.newest + 1).contains(&after.newest));
        if after.newest > now.newest {
            let mut releasing =
                store.release(after.newest, now.released, entry("policy.release", 2));
            poll_at_most(&mut releasing, polls).await;
            drop(releasing);
            store.check().await?;
            let then = is_consistent(&store).await?;
            if then.released == after.newest {
                rows = next;
            }
        }
        finished += u32::from(is_done);
        if finished == 3 {
            return Ok(());
        }
    }
    panic!("no call ever came to its end");
}

/// Whether it came to its end. It is polled when it is woken and not before, so each poll is a step; the step after the
/// last one is there to be taken when it is dropped.
async fn poll_at_most<T>(future: &mut (impl Future<Output = T> + Unpin), polls: u32) -> bool {
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        std::pin::Pin::new(&mut *future).poll(context).map(|_| true)
    })
    .await
}

/// Set for the process that is killed; says where its store is.
const KILLED_IN: &str = "SLUICE_TEST_STORE";

/// Not a test of its own: what the killed process does. Without the variable there is nothing to do.
#[tokio::test]
async fn the_one_that_is_killed() -> Told {
    let Some(dir) = std::env::var_os(KILLED_IN) else {
        return Ok(());
    };
    let store = Sqlite::open(Path::new(&dir)).await?;
    println!("step open");
    loop {
        let now = store.heads().await?;
        let rows = store.rows(now.released).await?;
        let next = rules(400, i64::try_from(now.newest)?);
        let new = generation(now.released, &rows, &next);
        let added = store.add(new, now.newest, entry("policy.apply", 1)).await?;
        println!("step added {}", added.id.number);
        let number = added.id.number;
        store
            .release(number, now.released, entry("policy.release", 2))
            .await?;
        println!("step released {number}");
    }
}

/// Runs the writer until it has said `steps` lines, kills it (-9), and gives the last ones it said.
fn run_and_kill(dir: &Path, steps: usize) -> std::io::Result<Vec<String>> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "the_one_that_is_killed", "--nocapture"])
        .env(KILLED_IN, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = child.stdout.take().expect("piped");
    let mut said = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        // The test runner may put its own words before the first step.
        if let Some(at) = line.find("step ") {
            said.push(line[at..].to_owned());
        }
        if said.len() == steps {
            child.kill()?;
            break;
        }
    }
    child.wait()?;
    assert_eq!(said.len(), steps, "it ended before it was killed: {said:?}");
    Ok(said)
}

#[tokio::test]
async fn a_kill_at_any_step_leaves_all_that_was_answered_and_nothing_half_done() -> Told {
    let dir = tempfile::tempdir()?;
    let mut before = heads(0, 0);
    // After an odd count the writer has just released, after an even one just added; it goes on while it is killed.
    for steps in 1..=16 {
        let said = run_and_kill(dir.path(), steps)?;
        let store = Sqlite::open(dir.path()).await?;
        let now = is_consistent(&store).await?;
        let told = |verb: &str| -> Option<u64> {
            let last = said.iter().rev().find_map(|line| line.strip_prefix(verb))?;
            last.trim().parse().ok()
        };
        let added = told("step added ").unwrap_or(before.newest);
        let released = told("step released ").unwrap_or(before.released);
        assert!(
            now.newest >= added && now.released >= released,
            "{now:?} {said:?}"
        );
        assert!(now.released >= before.released && now.newest >= before.newest);
        before = now;
    }
    Ok(())
}

async fn filled(dir: &Path) -> Result<(Sqlite, Inventory), Box<dyn std::error::Error>> {
    let store = Sqlite::open(dir).await?;
    let rows = rules(2_000, 1);
    let new = generation(0, &Inventory::default(), &rows);
    store.add(new, 0, entry("policy.apply", 1)).await?;
    store.release(1, 0, entry("policy.release", 2)).await?;
    Ok((store, rows))
}

#[tokio::test]
async fn a_full_disk_is_told_and_changes_nothing() -> Told {
    let dir = tempfile::tempdir()?;
    let (store, rows) = filled(dir.path()).await?;
    let held = store.size_bytes().await?;
    store.close().await;
    drop(store);
    let store = Sqlite::open_bounded(dir.path(), Some(held + (256 << 10))).await?;
    let big = rules(20_000, 2);
    for _ in 0..3 {
        let full = store
            .add(generation(1, &rows, &big), 1, entry("policy.apply", 3))
            .await;
        assert!(
            matches!(&full, Err(StoreError::Full(text)) if text.contains("store.db")),
            "{full:?}"
        );
        assert_eq!(is_consistent(&store).await?, heads(1, 1));
    }
    // What fits still works, again and again, until nothing does.
    let mut text = entry("note", 4);
    text.after = "x".repeat(10_000);
    let mut noted = 0;
    let full = loop {
        match store.note(text.clone()).await {
            Ok(()) => noted += 1,
            Err(error) => break error,
        }
        assert!(noted < 1_000, "the bound does not bind");
    };
    assert!(matches!(full, StoreError::Full(_)), "{full:?}");
    assert!(noted > 5, "a refused change left its room free: {noted}");
    assert_eq!(is_consistent(&store).await?, heads(1, 1));
    drop(store);
    let store = Sqlite::open(dir.path()).await?;
    store
        .add(generation(1, &rows, &big), 1, entry("policy.apply", 5))
        .await?;
    assert_eq!(is_consistent(&store).await?, heads(2, 1));
    Ok(())
}

/// A store closed in good order, as bytes.
async fn closed(dir: &Path) -> Result<(PathBuf, Vec<u8>), Box<dyn std::error::Error>> {
    let (store, _) = filled(dir).await?;
    store.close().await;
    let file = dir.join("store.db");
    let bytes = fs::read(&file)?;
    Ok((file, bytes))
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_left_as_it_is() -> Told {
    let dir = tempfile::tempdir()?;
    let (file, good) = closed(dir.path()).await?;
    let mut header = good.clone();
    header[..16].fill(0);
    let mut tree = good.clone();
    tree[4096..8192].fill(0xa5);
    let mut other = good.clone();
    other[68..72].fill(7); // the application id
    for (what, bad) in [
        (
            "garbage",
            b"this is not a database, but long enough to look like one".repeat(100),
        ),
        ("its header gone", header),
        ("a page overwritten", tree),
        ("cut off", good[..good.len() / 2].to_vec()),
        ("cut off in its first page", good[..1000].to_vec()),
        ("another program's", other),
    ] {
        fs::write(&file, &bad)?;
        let refused = Sqlite::open(dir.path()).await;
        assert!(
            matches!(&refused, Err(StoreError::Corrupt(text)) if text.contains("store.db")),
            "{what}: {refused:?}"
        );
        assert_eq!(fs::read(&file)?, bad, "{what}: left as it is");
    }
    fs::write(&file, &good)?;
    let store = Sqlite::open(dir.path()).await?;
    assert_eq!(is_consistent(&store).await?, heads(1, 1));
    Ok(())
}

#[tokio::test]
async fn flipped_bits_are_never_taken_for_policy() -> Told {
    let dir = tempfile::tempdir()?;
    let (file, good) = closed(dir.path()).await?;
    let rows = rules(2_000, 1);
    let (mut at_open, mut at_use) = (0, 0);
    for place in (100..good.len()).step_by(good.len() / 97) {
        let mut bad = good.clone();
        bad[place] ^= 0x10;
        fs::write(&file, &bad)?;
        let _ = fs::remove_file(dir.path().join("store.db-wal"));
        let Ok(store) = Sqlite::open(dir.path()).await else {
            at_open += 1;
            continue;
        };
        match store.rows(1).await {
            Ok(found) => assert_eq!(found.digest(), rows.digest(), "{place}"),
            Err(StoreError::Corrupt(text)) => {
                at_use += 1;
                assert!(
                    text.contains("generation 1") || text.contains("store.db"),
                    "{text}"
                );
            }
            Err(StoreError::NotFound(_) | StoreError::Refused(_)) => at_use += 1,
            Err(other) => return Err(other.into()),
        }
        store.close().await;
    }
    assert!(at_open + at_use > 10, "{at_open} {at_use}");
    Ok(())
}

#[tokio::test]
async fn a_log_without_its_store_is_not_thrown_away() -> Told {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("store.db-wal"), b"what was last written")?;
    let refused = Sqlite::open(dir.path()).await;
    assert!(
        matches!(refused, Err(StoreError::Corrupt(_))),
        "{refused:?}"
    );
    assert!(!dir.path().join("store.db").exists());
    Ok(())
}

#[tokio::test]
async fn a_first_start_that_was_cut_short_begins_again() -> Told {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("store.making"), b"half of a store")?;
    fs::write(dir.path().join("store.making-wal"), b"and its log")?;
    let store = Sqlite::open(dir.path()).await?;
    store.close().await;
    let mut left: Vec<_> = fs::read_dir(dir.path())?
        .map(|found| found.map(|found| found.file_name()))
        .collect::<Result<_, _>>()?;
    left.sort();
    assert_eq!(left, ["store.db", "store.lock"]);
    Ok(())
}

#[tokio::test]
async fn the_audit_chain_stays_whole_when_records_get_peers() -> Told {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("store.db");
    fs::write(&file, include_bytes!("stored/store.db"))?;
    let mut old = Examined::open(&file).await?;
    let before = old.verify_audit(Verified::default()).await?;
    assert_eq!(before.found, Chain::Whole, "looked at as it is");
    drop(old);
    let store = Sqlite::open(dir.path()).await?;
    store.note(entry("note", 3)).await?;
    let records = store.audit(None, 100).await?;
    assert_eq!(records[0].peer.as_deref(), Some("127.0.0.1:7"));
    assert!(records.len() > 2 && records[1..].iter().all(|record| record.peer.is_none()));
    assert!(store.audit_is_whole().await?);
    store.close().await;
    for (what, sql) in [
        (
            "a new one's is taken",
            "UPDATE audit SET peer = NULL WHERE number = (SELECT max(number) FROM audit)",
        ),
        (
            "a new one's is changed",
            "UPDATE audit SET peer = '10.0.0.1:1' WHERE peer IS NOT NULL",
        ),
        (
            "an old one gets one",
            "UPDATE audit SET peer = '' WHERE number = 1",
        ),
    ] {
        let copy = tempfile::tempdir()?;
        fs::copy(&file, copy.path().join("store.db"))?;
        run_sql(&copy.path().join("store.db"), sql).await?;
        let store = Sqlite::open(copy.path()).await?;
        assert!(!store.audit_is_whole().await?, "{what}");
    }
    Ok(())
}

#[tokio::test]
async fn a_long_audit_chain_is_read_in_parts_and_the_broken_record_is_named() -> Told {
    let dir = tempfile::tempdir()?;
    let (store, _) = filled(dir.path()).await?;
    let file = dir.path().join("store.db");
    // As many as two parts and some; made like the store makes them, and in one transaction.
    let mut previous = store.audit(None, 1).await?.remove(0);
    let mut connection = SqliteConnectOptions::new()
        .filename(&file)
        .connect()
        .await?;
    let mut change = connection.begin().await?;
    for number in previous.number + 1..=20_005 {
        let next = AuditRecord::following(&previous.hash, number, entry("note", 9));
        sqlx::query("INSERT INTO audit VALUES (?1, 9, 'ada', 'note', 'generation', 'what was', 'what is', 'r-1', ?2, '127.0.0.1:7')")
            .bind(i64::try_from(number)?)
            .bind(next.hash.as_slice())
            .execute(&mut *change)
            .await?;
        previous = next;
    }
    sqlx::query("UPDATE store SET audit_number = 20005, audit_hash = ?1")
        .bind(previous.hash.as_slice())
        .execute(&mut *change)
        .await?;
    change.commit().await?;
    connection.close().await?;
    let read = async |from| -> Result<(Vec<u64>, ChainPart), StoreError> {
        let (mut from, mut read) = (from, Vec::new());
        loop {
            let part = store.verify_audit(from).await?;
            (from, _) = (part.upto, read.push(part.upto.number));
            if part.found != Chain::More {
                return Ok((read, part));
            }
        }
    };
    let (parts, last) = read(Verified::default()).await?;
    assert_eq!(
        (parts, last.found),
        (vec![10_000, 20_000, 20_005], Chain::Whole)
    );
    assert!(store.audit_is_whole().await?);
    run_sql(&file, "UPDATE audit SET who = 'eve' WHERE number = 15000").await?;
    let (parts, last) = read(Verified::default()).await?;
    assert_eq!((parts, last.found), (vec![10_000, 14_999], Chain::Broken));
    assert!(!store.audit_is_whole().await?);
    Ok(())
}

async fn run_sql(file: &Path, sql: &'static str) -> Told {
    let mut connection = SqliteConnectOptions::new().filename(file).connect().await?;
    sqlx::raw_sql(sql).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_by_name() -> Told {
    let dir = tempfile::tempdir()?;
    let (file, _) = closed(dir.path()).await?;
    run_sql(
        &file,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (77, 'later', 1, x'00', 0)",
    )
    .await?;
    let refused = Sqlite::open(dir.path()).await;
    assert!(
        matches!(&refused, Err(StoreError::Unavailable(text)) if text.contains("77") && text.contains("newer")),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn changes_to_the_audit_log_are_seen() -> Told {
    for (what, sql) in [
        ("changed", "UPDATE audit SET who = 'eve' WHERE number = 1"),
        ("removed", "DELETE FROM audit WHERE number = 2"),
        ("taken off the end", "DELETE FROM audit WHERE number = 4"),
        (
            "put in",
            "INSERT INTO audit SELECT 5, at, who, action, what, before, after, request_id, hash, peer FROM audit
             WHERE number = 4",
        ),
        ("all gone", "DELETE FROM audit"),
    ] {
        let dir = tempfile::tempdir()?;
        let (store, _) = filled(dir.path()).await?;
        store.note(entry("note", 3)).await?;
        store.note(entry("note", 4)).await?;
        assert!(store.audit_is_whole().await?);
        // By another program, while the store is open and the chain was read.
        run_sql(&dir.path().join("store.db"), sql).await?;
        assert!(!store.audit_is_whole().await?, "{what}");
        drop(store);
        let store = Sqlite::open(dir.path()).await?;
        assert!(!store.audit_is_whole().await?, "{what}, opened again");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c22_a_backup_while_it_is_written_to_is_consistent() -> Told {
    let dir = tempfile::tempdir()?;
    let (store, mut rows) = filled(&dir.path().join("data")).await?;
    let copies = dir.path().join("copies");
    fs::create_dir(&copies)?;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for turn in 2..30 {
                let now = store.heads().await?;
                let next = rules(500, turn);
                let new = generation(now.released, &rows, &next);
                let added = store.add(new, now.newest, entry("policy.apply", 1)).await?;
                store
                    .release(added.id.number, now.released, entry("policy.release", 2))
                    .await?;
                rows = next;
            }
            Ok::<_, StoreError>(())
        })
    };
    let mut made = Vec::new();
    while !writer.is_finished() {
        let to = copies.join(format!("{}.db", made.len()));
        store.backup(&to).await?;
        made.push(to);
    }
    writer.await??;
    assert!(made.len() > 1);
    // Looking into all of them takes a minute; some of each third of the time will do.
    for (place, file) in made.iter().enumerate().step_by(made.len().div_ceil(6)) {
        assert_eq!(fs::metadata(file)?.permissions().mode() & 0o777, 0o600);
        let data = dir.path().join(format!("restored-{place}"));
        let restored = restore(file, &data, false, at(9)).await?;
        assert_eq!(restored.replaced, None);
        assert_ne!(restored.id, store.id());
        let copy = Sqlite::open(&data).await?;
        assert_eq!(copy.id(), restored.id);
        assert_eq!(is_consistent(&copy).await?, restored.heads);
        assert_eq!(copy.audit(None, 1).await?[0].action, "store.restore");
    }
    let taken = store.backup(&made[0]).await;
    assert!(matches!(taken, Err(StoreError::Exists(_))), "{taken:?}");
    let nowhere = store.backup(Path::new("/nowhere/at/all")).await;
    assert!(
        matches!(nowhere, Err(StoreError::Unavailable(_))),
        "{nowhere:?}"
    );
    assert_eq!(fs::read_dir(&copies)?.count(), made.len(), "no leftovers");
    Ok(())
}

#[tokio::test]
async fn c22_a_restore_replaces_a_store_only_when_forced_and_keeps_it() -> Told {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let (store, rows) = filled(&data).await?;
    let backup = dir.path().join("backup.db");
    store.backup(&backup).await?;
    let later = rules(100, 5);
    store
        .add(generation(1, &rows, &later), 1, entry("policy.apply", 3))
        .await?;
    let old = store.id();
    let in_use = restore(&backup, &data, true, at(9)).await;
    assert!(
        matches!(in_use, Err(StoreError::Unavailable(_))),
        "{in_use:?}"
    );
    drop(store);

    let refused = restore(&backup, &data, false, at(9)).await;
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
    let store = Sqlite::open(&data).await?;
    assert_eq!(is_consistent(&store).await?, heads(2, 1), "untouched");
    store.close().await;
    drop(store);

    let restored = restore(&backup, &data, true, at(9)).await?;
    let kept = restored.replaced.clone().unwrap();
    let store = Sqlite::open(&data).await?;
    assert!(store.id() == restored.id && store.id() != old);
    assert_eq!(is_consistent(&store).await?, heads(1, 1));
    assert_eq!(
        fs::metadata(data.join("store.db"))?.permissions().mode() & 0o777,
        0o600
    );
    store.close().await;
    drop(store);

    let mut all_kept = vec![kept.clone()];
    for number in 2..5 {
        let again = restore(&backup, &data, true, at(10)).await?;
        let kept = again.replaced.unwrap();
        assert_eq!(kept, data.join(format!("store.db.before-restore.{number}")));
        all_kept.push(kept);
    }
    let lengths: Vec<_> = all_kept
        .iter()
        .map(fs::metadata)
        .collect::<Result<_, _>>()?;
    assert!(lengths.iter().all(|file| file.len() > 0), "each is there");
    // What was kept is a store in itself, and can be put back.
    let elsewhere = dir.path().join("kept.db");
    fs::rename(&kept, &elsewhere)?;
    restore(&elsewhere, &data, true, at(11)).await?;
    let store = Sqlite::open(&data).await?;
    assert_eq!(is_consistent(&store).await?, heads(2, 1));
    assert_eq!(store.rows(2).await?.digest(), later.digest());
    Ok(())
}

#[tokio::test]
async fn c22_a_restore_of_a_damaged_backup_touches_nothing() -> Told {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let (store, _) = filled(&data).await?;
    let (id, backup) = (store.id(), dir.path().join("backup.db"));
    store.backup(&backup).await?;
    store.close().await;
    drop(store);
    let good = fs::read(&backup)?;
    let policy = good
        .windows(20)
        .position(|bytes| bytes == b"plant/r7/temperature")
        .expect("the row is in there");
    let mut flipped = good.clone();
    flipped[policy] ^= 1;
    for (what, bad) in [
        ("empty", Vec::new()),
        ("garbage", vec![0x42; 20_000]),
        ("cut off", good[..good.len() / 3].to_vec()),
        ("a bit of its policy flipped", flipped),
    ] {
        fs::write(&backup, bad)?;
        let refused = restore(&backup, &data, true, at(9)).await;
        assert!(
            matches!(&refused, Err(StoreError::Corrupt(text)) if text.contains("backup")),
            "{what}: {refused:?}"
        );
        let mut left: Vec<_> = fs::read_dir(&data)?
            .map(|found| found.map(|found| found.file_name()))
            .collect::<Result<_, _>>()?;
        left.sort();
        assert_eq!(left, ["store.db", "store.lock"], "{what}");
    }
    let missing = restore(&dir.path().join("none"), &data, true, at(9)).await;
    assert!(
        matches!(missing, Err(StoreError::Unavailable(_))),
        "{missing:?}"
    );
    let store = Sqlite::open(&data).await?;
    assert_eq!(store.id(), id);
    assert_eq!(is_consistent(&store).await?, heads(1, 1));
    Ok(())
}

#[tokio::test]
async fn c22_a_backup_of_an_older_schema_is_brought_to_this_one() -> Told {
    let dir = tempfile::tempdir()?;
    let old = dir.path().join("old.db");
    let mut connection = SqliteConnectOptions::new()
        .filename(&old)
        .create_if_missing(true)
        .connect()
        .await?;
    let first = Migration::new(
        1,
        "generations".into(),
        MigrationType::Simple,
        include_str!("../migrations/sqlite/0001_generations.sql").into_sql_str(),
        false,
    );
    Migrator::with_migrations(vec![first])
        .run(&mut connection)
        .await?;
    let id = [7_u8; 16];
    sqlx::query("INSERT INTO store VALUES (1, ?1, 0, zeroblob(32))")
        .bind(id.as_slice())
        .execute(&mut connection)
        .await?;
    connection.close().await?;

    let data = dir.path().join("restored");
    let restored = restore(&old, &data, false, at(9)).await?;
    assert_ne!(restored.id.0, id);
    let store = Sqlite::open(&data).await?;
    assert!(store.nodes().await?.is_empty(), "the tables are there");
    store
        .add_token(
            token("a", "root", Role::Admin, None),
            entry("token.create", 1),
        )
        .await?;
    assert!(store.audit_is_whole().await?);

    let opened = dir.path().join("opened");
    fs::create_dir(&opened)?;
    fs::copy(&old, opened.join("store.db"))?;
    let store = Sqlite::open(&opened).await?;
    assert_eq!(store.id().0, id, "opened, it stays the same store");
    assert!(store.tokens().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_policy_of_many_rows_is_a_few_blobs() -> Told {
    let dir = tempfile::tempdir()?;
    let store = Sqlite::open(dir.path()).await?;
    let rows = rules(100_000, 1);
    let new = generation(0, &Inventory::default(), &rows);
    store.add_released(new, entry("policy.rollback", 1)).await?;
    let one = rows.with([sluice_policy::fleet::Change::from_message(&rule("r7", 9))?]);
    let size = store.size_bytes().await?;
    store
        .add(generation(1, &rows, &one), 1, entry("policy.apply", 2))
        .await?;
    assert!(
        store.size_bytes().await? < size + (1 << 20),
        "a row costs a row"
    );
    assert_eq!(store.rows(2).await?.digest(), one.digest());
    assert_eq!(store.rows(1).await?.digest(), rows.digest());
    store.close().await;
    drop(store);
    let file = dir.path().join("store.db");
    let mut connection = SqliteConnectOptions::new()
        .filename(&file)
        .connect()
        .await?;
    let row = sqlx::query("SELECT count(*), max(length(changes)) FROM generation_chunk")
        .fetch_one(&mut connection)
        .await?;
    let (blobs, longest): (i64, i64) = (sqlx::Row::try_get(&row, 0)?, sqlx::Row::try_get(&row, 1)?);
    assert!(blobs < 20 && longest <= 1 << 20, "{blobs} {longest}");
    Ok(())
}

#[tokio::test]
async fn c22_a_restore_over_a_damaged_store_keeps_it_with_its_log() -> Told {
    let dir = tempfile::tempdir()?;
    let (store, _) = filled(&dir.path().join("elsewhere")).await?;
    let backup = dir.path().join("backup.db");
    store.backup(&backup).await?;
    let data = dir.path().join("data");
    fs::create_dir(&data)?;
    let (bad, log) = (vec![0x42; 20_000], b"a log that nobody can read".to_vec());
    fs::write(data.join("store.db"), &bad)?;
    fs::write(data.join("store.db-wal"), &log)?;
    restore(&backup, &data, true, at(9)).await?;
    assert_eq!(fs::read(data.join("store.db.before-restore"))?, bad);
    assert_eq!(fs::read(data.join("store.db.before-restore-wal"))?, log);
    assert!(
        !data.join("store.db-wal").exists(),
        "it is not for the new one"
    );
    let store = Sqlite::open(&data).await?;
    assert_eq!(is_consistent(&store).await?, heads(1, 1));
    Ok(())
}

#[tokio::test]
async fn tokens_that_work_no_more_are_forgotten_before_there_are_too_many() -> Told {
    let dir = tempfile::tempdir()?;
    let store = Sqlite::open(dir.path()).await?;
    let file = dir.path().join("store.db");
    run_sql(
        &file,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)
         INSERT INTO token SELECT 'w' || i, 'w' || i, 'viewer', zeroblob(32), 1, 'ada', NULL, NULL FROM n;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)
         INSERT INTO join_token SELECT 'w' || i, NULL, 1, zeroblob(32), 1, 'ada', 99, NULL FROM n;
         INSERT INTO token VALUES ('dead', 'dead', 'viewer', zeroblob(32), 2, 'ada', 3, NULL);
         INSERT INTO join_token VALUES ('dead', NULL, 0, zeroblob(32), 2, 'ada', 99, NULL);",
    )
    .await?;
    let note = || entry("token.create", 5);
    store
        .add_token(token("a", "root", Role::Admin, None), note())
        .await?;
    store
        .add_join_token(join_token("a", None, 1), note())
        .await?;
    let (tokens, joins) = (store.tokens().await?, store.join_tokens().await?);
    assert_eq!((tokens.len(), joins.len()), (10_000, 10_000));
    assert!(tokens.iter().all(|token| *token.id.0 != *"dead"));
    assert!(joins.iter().all(|token| *token.id.0 != *"dead"));
    let refused = store
        .add_token(token("b", "bob", Role::Admin, None), note())
        .await;
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
    let refused = store.add_join_token(join_token("b", None, 1), note()).await;
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
    Ok(())
}
