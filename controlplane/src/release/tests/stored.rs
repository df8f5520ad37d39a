//! A store of an earlier version, which took for a password hash what has text before it: it opens, goes back to such a
//! generation, and says who cannot log in.

use super::*;

const STORE: &[u8] = include_bytes!("../../../tests/stored/store.db");
/// What generation 1 of the store was applied from; generation 2 has its first user only.
const POLICY: &str = include_str!("../../../tests/stored/policy.yaml");

const LOCKED_OUT: [&str; 5] = ["line", "locked", "plus", "spaced", "starred"];

impl Bench {
    async fn start_on(store: &[u8]) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("store.db"), store).unwrap();
        Self::open(dir).await
    }

    async fn restart(self) -> Self {
        let Self {
            dir,
            store,
            releases,
        } = self;
        drop((store, releases));
        Self::open(dir).await
    }

    async fn open(dir: TempDir) -> Self {
        let store = Arc::new(Troubled::new(Sqlite::open(dir.path()).await.unwrap()));
        let shared: Arc<dyn Store> = Arc::<Troubled>::clone(&store);
        let releases = Releases::open(shared, Limits::default()).await.unwrap();
        Self {
            dir,
            store,
            releases,
        }
    }

    fn warnings(&self) -> Vec<String> {
        let in_force = self.releases.in_force().borrow().clone();
        in_force.unwrap().warnings.to_vec()
    }
}

fn assert_named(warnings: &[String]) {
    assert_eq!(warnings.len(), LOCKED_OUT.len(), "{warnings:#?}");
    for (warning, name) in warnings.iter().zip(LOCKED_OUT) {
        let start = format!("user `{name}` cannot log in: ");
        assert!(warning.starts_with(&start), "{warning}");
        assert!(!warning.contains("$7$101$"), "{warning}");
    }
}

#[tokio::test]
async fn a_store_with_broken_hashes_opens_goes_back_and_says_who_is_locked_out() {
    let bench = Bench::start_on(STORE).await;
    assert_eq!(bench.in_force(), 2);
    assert_eq!(bench.warnings(), Vec::<String>::new());
    // The same document is refused today.
    let refused = bench.releases.apply(bench.document(POLICY), 2, author(1));
    let Err(Failed::Document(wrong)) = refused.await else {
        panic!("a locked account is no hash");
    };
    assert_eq!(wrong.problems.len(), LOCKED_OUT.len(), "{wrong}");
    assert!(
        wrong
            .to_string()
            .contains("user `locked`: a locked account"),
        "{wrong}"
    );

    let back = bench
        .releases
        .rollback(Some(1), 2, author(2))
        .await
        .unwrap();
    assert_eq!((back.id.number, bench.in_force()), (3, 3));
    assert_named(&bench.warnings());

    let bench = bench.restart().await;
    assert_eq!(bench.in_force(), 3);
    assert_named(&bench.warnings());
    bench.assert_agrees().await;
    let asked = |name: &str| Asked {
        listener: None,
        address: [127, 0, 0, 1].into(),
        version: sluice_wire::mqtt::Version::V5,
        client_id: "c".into(),
        username: Some(name.into()),
        action: sluice_policy::Action::Connect,
        topic: String::new(),
        qos: sluice_wire::mqtt::QoS::AtMostOnce,
        retain: false,
        payload_bytes: 0,
    };
    let good = bench
        .releases
        .explain(None, asked("good"), &TokenId("bob".into()))
        .await
        .unwrap();
    assert_eq!(good.decision, "allow");
    for name in LOCKED_OUT {
        let answer = bench
            .releases
            .explain(None, asked(name), &TokenId("bob".into()))
            .await
            .unwrap();
        assert_eq!(answer.decision, "deny");
        assert!(
            answer
                .text
                .contains("`password_hash` of this user cannot be used"),
            "{}",
            answer.text
        );
    }
    // A good document ends it.
    let (good, _) = POLICY.split_once("  - {name: locked").unwrap();
    let applied = bench.releases.apply(bench.document(good), 3, author(3));
    let number = applied.await.unwrap().generation.id.number;
    bench.releases.release(number, 3, author(4)).await.unwrap();
    assert_eq!(bench.warnings(), Vec::<String>::new());
}

/// What the check of a document said stays with its generation, over a restart, a release and a rollback.
#[tokio::test]
async fn warnings_stay_with_a_generation() {
    const UNWISE: &str = "
listeners: [{name: l, address: 127.0.0.1:0, upstream: u, anonymous: {group: g}}]
upstreams: [{name: u, endpoints: [tcp://127.0.0.1:1]}]
groups: [{name: g}]
default: allow
";
    let bench = Bench::start().await;
    let applied = bench.releases.apply(bench.document(UNWISE), 0, author(1));
    let applied = applied.await.unwrap();
    let [warning] = &*applied.warnings else {
        panic!("{:?}", applied.warnings);
    };
    assert!(warning.contains("may come with any client id"), "{warning}");
    let expected = Some(vec![warning.clone()]);
    let bench = bench.restart().await;
    let released = bench.releases.release(1, 0, author(2)).await.unwrap();
    assert_eq!(released.warnings, expected);
    let wise = UNWISE.replace("anonymous", "client_id: {pattern: 'c-.*'}, anonymous");
    let applied = bench.releases.apply(bench.document(&wise), 1, author(3));
    assert_eq!(applied.await.unwrap().warnings, Vec::<String>::new());
    let released = bench.releases.release(2, 1, author(4)).await.unwrap();
    assert_eq!(released.warnings, Some(Vec::new()));
    let back = bench.releases.rollback(None, 2, author(5)).await.unwrap();
    assert_eq!((back.id.number, back.warnings), (3, expected.clone()));
    let history = bench.releases.history(None, 10).await.unwrap();
    let stored: Vec<_> = history
        .generations
        .into_iter()
        .map(|g| g.warnings)
        .collect();
    assert_eq!(
        stored,
        [expected, Some(Vec::new()), Some(vec![warning.clone()])]
    );
    // Comparing says what the second is warned of.
    let against = Against::Generation(3, bench.seat(Share::Readers, "bob").unwrap());
    let compared = bench.releases.diff(Some(2), against, 10).await.unwrap();
    assert_eq!(compared.warnings, std::slice::from_ref(warning));
}
