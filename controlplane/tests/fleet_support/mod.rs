//! A fleet stream server on loopback with a real store behind it, and simulated nodes in front of it.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part
#![allow(clippy::expect_used, clippy::unwrap_used)] // all of it is test

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sluice_controlplane::auth::{self, Gate, Kind, Peer};
use sluice_controlplane::domain::{
    AuditEntry, GenerationId, JoinToken, Name, NodeRecord, Role, Secret, Token, TokenId, UnixMillis,
};
use sluice_controlplane::fleet::{Fleet, Limits, View};
use sluice_controlplane::release::Released;
use sluice_controlplane::store::{Sqlite, Store};
use sluice_controlplane::{api, clock};
use sluice_loadtest::fleet_node::{Memory, Options, Seen, dial, serve};
use sluice_policy::fleet::{Change, Inventory};
use sluice_proto::v1::{self, row::Kind as RowKind};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::InterceptorLayer;
use tonic::{Request, Status};

/// Longer than anything takes.
pub const PATIENCE: Duration = Duration::from_secs(30);
const JOIN_ID: &str = "joinjoinjoinjoin";

pub struct Plane {
    pub fleet: Fleet,
    pub gate: Gate,
    pub store: Arc<Sqlite>,
    pub address: SocketAddr,
    in_force: watch::Sender<Option<Arc<Released>>>,
    rows: Inventory,
    number: u64,
    server: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Plane {
    pub async fn start(nodes: &[&str]) -> Self {
        Self::start_with(nodes, Limits::default(), Ipv4Addr::LOCALHOST.into()).await
    }

    /// Calls come as if from that address.
    pub async fn start_with(nodes: &[&str], limits: Limits, from: IpAddr) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Arc::new(Sqlite::open(folder.path()).await.expect("a store"));
        store
            .add_join_token(join_token(), audit())
            .await
            .expect("a join token");
        for node in nodes {
            store.enroll(record(node), audit()).await.expect("a node");
        }
        let shared: Arc<dyn Store> = store.clone();
        let gate = Gate::open(shared).await.expect("a gate");
        let in_force = watch::Sender::new(None);
        let fleet = Fleet::open_with(gate.clone(), in_force.subscribe(), limits);
        let fleet = fleet.await.expect("a fleet");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let peer = move |mut request: Request<()>| -> Result<Request<()>, Status> {
            let peer = Peer::new(SocketAddr::new(from, 1), false);
            request.extensions_mut().insert(peer);
            Ok(request)
        };
        let router = tonic::transport::Server::builder()
            .layer(InterceptorLayer::new(peer))
            .add_service(fleet.server())
            .add_service(api::nodes::service(gate.clone(), fleet.clone()));
        let server = tokio::spawn(async move {
            let served = router.serve_with_incoming(TcpListenerStream::new(listener));
            served.await.expect("it serves");
        });
        Self {
            fleet,
            gate,
            store,
            address,
            in_force,
            rows: Inventory::default(),
            number: 0,
            server,
            _folder: folder,
        }
    }

    pub fn release(&mut self, changes: Vec<Change>) -> GenerationId {
        self.release_needing(changes, &[])
    }

    pub fn release_needing(&mut self, changes: Vec<Change>, features: &[&str]) -> GenerationId {
        self.rows = self.rows.with(changes);
        self.number += 1;
        let id = GenerationId {
            store: self.store.id(),
            number: self.number,
            digest: self.rows.digest(),
        };
        let released = Released {
            id,
            rows: self.rows.clone(),
            features: Arc::new(features.iter().map(|word| (*word).to_owned()).collect()),
            warnings: Arc::default(),
            since: tokio::time::Instant::now(),
        };
        self.in_force.send_replace(Some(Arc::new(released)));
        id
    }

    /// Waits until the members as they are shown are as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&[View]) -> bool) -> Vec<View> {
        let mut changes = self.fleet.changes();
        let wait = async {
            loop {
                changes.mark_unchanged();
                let views = self.fleet.views(&[]).expect("all");
                if wanted(&views) {
                    return views;
                }
                changes.changed().await.expect("the fleet lives");
            }
        };
        let views = timeout(PATIENCE, wait).await;
        views.unwrap_or_else(|_| {
            let views = self.fleet.views(&[]).expect("all");
            let states: Vec<_> = views.iter().map(|v| (v.name.as_str(), v.state)).collect();
            panic!("never {what}: {states:?}");
        })
    }

    pub async fn operator(&self, name: &str, role: Role) -> String {
        let (id, secret) = auth::random().expect("random bytes");
        let token = Token {
            id: id.clone(),
            name: Name::parse(name).expect("a name"),
            role,
            hash: secret.hash(),
            created_at: clock::unix_now(),
            created_by: "test".into(),
            expires_at: None,
            revoked_at: None,
        };
        let made = self.gate.create_token(token, audit()).await;
        made.expect("a token");
        format!("Bearer {}", *auth::written(Kind::Caller, &id, &secret))
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A simulated node on a task of its own.
pub struct Running {
    pub seen: watch::Receiver<Seen>,
    task: JoinHandle<(Memory, Status)>,
    cut: oneshot::Sender<()>,
}

impl Running {
    /// One stream.
    pub async fn start(plane: &Plane, options: Options, memory: Memory) -> Self {
        Self::start_narrow(plane, options, memory, None).await
    }

    pub async fn start_narrow(
        plane: &Plane,
        options: Options,
        mut memory: Memory,
        window_bytes: Option<u32>,
    ) -> Self {
        let channel = dial(plane.address, window_bytes).await.expect("a channel");
        let (sender, seen) = watch::channel(Seen::default());
        let (cut, cut_off) = oneshot::channel();
        let task = tokio::spawn(async move {
            let status = tokio::select! {
                status = serve(channel, &options, &mut memory, &sender) => status,
                Ok(()) = cut_off => Status::cancelled("the test cut it"),
            };
            (memory, status)
        });
        Self { seen, task, cut }
    }

    /// Streams one after the other, for as long as the test lasts.
    pub fn start_again_and_again(plane: &Plane, options: Options) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let address = plane.address;
        let (cut, _) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut memory = Memory::default();
            loop {
                let channel = dial(address, None).await.expect("a channel");
                serve(channel, &options, &mut memory, &sender).await;
            }
        });
        Self { seen, task, cut }
    }

    /// Cuts the connection of a node with one stream; gives what it holds.
    pub async fn stop(self) -> Memory {
        self.cut.send(()).expect("its stream is open");
        let ended = timeout(PATIENCE, self.task).await;
        ended.expect("it ends").expect("it does not panic").0
    }

    /// How it ended, and what it holds then.
    pub async fn ended(self) -> (Memory, Status) {
        let ended = timeout(PATIENCE, self.task).await;
        ended.expect("it ends").expect("it does not panic")
    }

    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let seen = timeout(PATIENCE, self.seen.wait_for(|seen| wanted(seen))).await;
        let seen = seen.unwrap_or_else(|_| panic!("never {what}"));
        seen.expect("the node lives").clone()
    }
}

pub fn secret(node: &str) -> [u8; 32] {
    std::array::from_fn(|at| node.as_bytes()[at % node.len()])
}

pub fn options(node: &str) -> Options {
    Options::new(node, secret(node))
}

pub fn record(node: &str) -> NodeRecord {
    NodeRecord {
        name: Name::parse(node).expect("a name"),
        hash: Secret::new(secret(node)).hash(),
        enrolled_at: clock::unix_now(),
        join_token: TokenId(JOIN_ID.into()),
    }
}

/// Of the join token that every store here has.
pub fn join_secret() -> Secret {
    Secret::new([3; 32])
}

pub fn join_text() -> String {
    let id = TokenId(JOIN_ID.into());
    auth::written(Kind::Join, &id, &join_secret()).to_string()
}

fn join_token() -> JoinToken {
    JoinToken {
        id: TokenId(JOIN_ID.into()),
        node: None,
        uses_left: 10_000,
        hash: join_secret().hash(),
        created_at: UnixMillis(1),
        created_by: "test".into(),
        expires_at: UnixMillis(u64::MAX >> 1),
        revoked_at: None,
    }
}

pub fn audit() -> AuditEntry {
    AuditEntry {
        at: clock::unix_now(),
        who: "test".into(),
        action: "test",
        what: String::new(),
        before: String::new(),
        after: String::new(),
        request_id: String::new(),
        peer: "127.0.0.1:7".into(),
    }
}

/// A rule of about that many bytes.
pub fn change(name: usize, value: u64, bytes: usize) -> Change {
    let row = v1::Row {
        name: format!("r{name}"),
        kind: Some(RowKind::Rule(v1::Rule {
            topics: vec![format!("{value}/{}", "x".repeat(bytes))],
            ..v1::Rule::default()
        })),
        ..v1::Row::default()
    };
    Change::from_message(&row).expect("a good row")
}
