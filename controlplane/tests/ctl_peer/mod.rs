//! A scripted peer for `sluicectl`: every service of the operators' API, with answers that a test prepared.
//!
//! Nothing here decides anything; it keeps what it was asked, so that tests can look at what the program really sent.

use std::collections::VecDeque;
use std::pin::Pin;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError};

use sluice_proto::control::v1::access_server::{Access, AccessServer};
use sluice_proto::control::v1::document_part::Part;
use sluice_proto::control::v1::nodes_server::{Nodes, NodesServer};
use sluice_proto::control::v1::operations_server::{Operations, OperationsServer};
use sluice_proto::control::v1::policies_server::{Policies, PoliciesServer};
use sluice_proto::control::v1::*;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

/// The token that every test sends.
pub(crate) const TOKEN: &str = "slc_0123456789abcdef_hiddenhiddenhidden";

/// What the peer answers. What is not set is answered with the empty message.
#[derive(Default)]
pub(crate) struct Script {
    /// Calls of these names fail with this.
    pub failures: Vec<(&'static str, Code, &'static str)>,
    /// Apply fails with these problems.
    pub problems: Option<DocumentProblems>,
    pub validate: ValidateResponse,
    pub apply: ApplyResponse,
    pub diff: DiffResponse,
    pub release: ReleaseResponse,
    pub history: HistoryResponse,
    pub explain: ExplainResponse,
    pub nodes: NodesResponse,
    /// The answers of each watch, one after the other; `None`: the watch breaks.
    pub watches: VecDeque<Vec<Option<NodesResponse>>>,
    pub sessions: VecDeque<SessionsResponse>,
    pub rules: VecDeque<RulesResponse>,
    /// The answers to Denials; the answer ends behind them.
    pub denials: Vec<DenialsResponse>,
    pub answers: NodeAnswers,
    pub token: CreateTokenResponse,
    pub join: CreateJoinTokenResponse,
    pub status: StatusResponse,
    pub audit: AuditResponse,
    /// The answers of VerifyAudit.
    pub verified: Vec<VerifyAuditProgress>,
    pub backup: Vec<Vec<u8>>,
    /// What came, in order: the name of the call and what it held.
    pub asked: Vec<(&'static str, String)>,
}

type Shared = Arc<Mutex<Script>>;

/// A running peer.
pub(crate) struct Peer {
    runtime: Runtime,
    address: std::net::SocketAddr,
    script: Shared,
}

/// How a run of `sluicectl` ended.
pub(crate) struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ended {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.out, self.err))
    }

    pub(crate) fn from_output(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self {
            code: output.status.code().expect("it ended by itself"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

/// The program with an environment that says nothing.
pub(crate) fn sluicectl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicectl"));
    for name in [
        "SLUICE_SERVER",
        "SLUICE_TOKEN",
        "SLUICE_TOKEN_FILE",
        "SLUICE_CA",
    ] {
        command.env_remove(name);
    }
    command
}

impl Peer {
    pub(crate) fn start(script: Script) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let script = Arc::new(Mutex::new(script));
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let address = listener.local_addr().expect("its address");
        let service = Scripted(Arc::clone(&script));
        let (health, health_service) =
            runtime.block_on(async { tonic_health::server::health_reporter() });
        drop(health);
        let server = tonic::transport::Server::builder()
            .add_service(health_service)
            .add_service(PoliciesServer::new(service.clone()))
            .add_service(NodesServer::new(service.clone()))
            .add_service(AccessServer::new(service.clone()))
            .add_service(OperationsServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(server);
        Self {
            runtime,
            address,
            script,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Runs `sluicectl` against it.
    pub(crate) fn run(&self, words: &[&str]) -> Ended {
        let mut command = sluicectl();
        command
            .env("SLUICE_SERVER", self.url())
            .env("SLUICE_TOKEN", TOKEN);
        Ended::from_output(command.args(words).output().expect("sluicectl runs"))
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<(&'static str, String)> {
        lock(&self.script).asked.clone()
    }

    /// Ends it.
    pub(crate) fn stop(self) {
        self.runtime.shutdown_background();
    }
}

fn lock(script: &Shared) -> std::sync::MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone)]
struct Scripted(Shared);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Scripted {
    /// Keeps the question; fails where the script says so, and without the token.
    fn ask<T>(
        &self,
        call: &'static str,
        metadata: &tonic::metadata::MetadataMap,
        what: String,
        answer: impl FnOnce(&mut Script) -> T,
    ) -> Result<Response<T>, Status> {
        let sent = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        if sent != Some(&format!("Bearer {TOKEN}")) {
            return Err(Status::unauthenticated("no such token"));
        }
        let mut script = lock(&self.0);
        script.asked.push((call, what));
        let failure = script.failures.iter().find(|(name, ..)| *name == call);
        if let Some((_, code, message)) = failure {
            let mut status = Status::new(*code, *message);
            status
                .metadata_mut()
                .insert("x-request-id", "r-1".parse().expect("an id"));
            return Err(status);
        }
        Ok(Response::new(answer(&mut script)))
    }

    async fn document(
        &self,
        call: &'static str,
        request: Request<Streaming<DocumentPart>>,
    ) -> Result<(), Status> {
        let (metadata, _, mut parts) = request.into_parts();
        let mut what = String::new();
        while let Some(part) = parts.next().await {
            what.push_str(&match part?.part {
                Some(Part::Header(header)) => format!("{header:?} "),
                Some(Part::Text(text)) => format!("[{}]", text.len()),
                None => "nothing".into(),
            });
        }
        self.ask(call, &metadata, what, |_| ()).map(drop)
    }
}

#[tonic::async_trait]
impl Policies for Scripted {
    async fn validate(
        &self,
        request: Request<Streaming<DocumentPart>>,
    ) -> Result<Response<ValidateResponse>, Status> {
        self.document("validate", request).await?;
        Ok(Response::new(lock(&self.0).validate.clone()))
    }

    async fn apply(
        &self,
        request: Request<Streaming<DocumentPart>>,
    ) -> Result<Response<ApplyResponse>, Status> {
        self.document("apply", request).await?;
        let script = lock(&self.0);
        if let Some(problems) = &script.problems {
            let details = sluice_proto::Message::encode_to_vec(problems);
            let message = "the document is wrong";
            return Err(Status::with_details(
                Code::InvalidArgument,
                message,
                details.into(),
            ));
        }
        Ok(Response::new(script.apply.clone()))
    }

    async fn diff(
        &self,
        request: Request<Streaming<DocumentPart>>,
    ) -> Result<Response<DiffResponse>, Status> {
        self.document("diff", request).await?;
        Ok(Response::new(lock(&self.0).diff.clone()))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("release", request.metadata(), what, |script| {
            script.release.clone()
        })
    }

    async fn rollback(
        &self,
        request: Request<RollbackRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("rollback", request.metadata(), what, |script| {
            script.release.clone()
        })
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("history", request.metadata(), what, |script| {
            script.history.clone()
        })
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("explain", request.metadata(), what, |script| {
            script.explain.clone()
        })
    }
}

#[tonic::async_trait]
impl Nodes for Scripted {
    type WatchStream = Answers<NodesResponse>;
    type DenialsStream = Answers<DenialsResponse>;

    async fn list(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<NodesResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("list", request.metadata(), what, |script| {
            script.nodes.clone()
        })
    }

    async fn watch(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("watch", request.metadata(), what, |script| {
            let answers = script.watches.pop_front().unwrap_or_default();
            let broken = || Status::unavailable("restarting");
            let answers = answers
                .into_iter()
                .map(move |answer| answer.ok_or_else(broken));
            // Then it is quiet: a watch does not end by itself.
            let stream = tokio_stream::iter(answers).chain(tokio_stream::pending());
            Box::pin(stream) as Self::WatchStream
        })
    }

    async fn sessions(
        &self,
        request: Request<SessionsRequest>,
    ) -> Result<Response<SessionsResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("sessions", request.metadata(), what, |script| {
            script.sessions.pop_front().unwrap_or_default()
        })
    }

    async fn rules(
        &self,
        request: Request<RulesRequest>,
    ) -> Result<Response<RulesResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("rules", request.metadata(), what, |script| {
            script.rules.pop_front().unwrap_or_default()
        })
    }

    async fn denials(
        &self,
        request: Request<DenialsRequest>,
    ) -> Result<Response<Self::DenialsStream>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("denials", request.metadata(), what, |script| {
            let answers = std::mem::take(&mut script.denials);
            Box::pin(tokio_stream::iter(answers.into_iter().map(Ok))) as Self::DenialsStream
        })
    }

    async fn kick(&self, request: Request<KickRequest>) -> Result<Response<NodeAnswers>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("kick", request.metadata(), what, |script| {
            script.answers.clone()
        })
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<NodeAnswers>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("drain", request.metadata(), what, |script| {
            script.answers.clone()
        })
    }

    async fn remove(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask(
            "remove",
            request.metadata(),
            what,
            |_| RemoveNodeResponse {},
        )
    }
}

#[tonic::async_trait]
impl Access for Scripted {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("create_token", request.metadata(), what, |script| {
            script.token.clone()
        })
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        self.ask("list_tokens", request.metadata(), String::new(), |_| {
            ListTokensResponse::default()
        })
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("revoke_token", request.metadata(), what, |_| {
            RevokeTokenResponse {}
        })
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("create_join_token", request.metadata(), what, |script| {
            script.join.clone()
        })
    }

    async fn list_join_tokens(
        &self,
        request: Request<ListJoinTokensRequest>,
    ) -> Result<Response<ListJoinTokensResponse>, Status> {
        self.ask(
            "list_join_tokens",
            request.metadata(),
            String::new(),
            |_| ListJoinTokensResponse::default(),
        )
    }

    async fn revoke_join_token(
        &self,
        request: Request<RevokeJoinTokenRequest>,
    ) -> Result<Response<RevokeJoinTokenResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("revoke_join_token", request.metadata(), what, |_| {
            RevokeJoinTokenResponse {}
        })
    }
}

#[tonic::async_trait]
impl Operations for Scripted {
    type BackupStream = Answers<BackupPart>;
    type VerifyAuditStream = Answers<VerifyAuditProgress>;

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.ask("status", request.metadata(), String::new(), |script| {
            script.status.clone()
        })
    }

    async fn audit(
        &self,
        request: Request<AuditRequest>,
    ) -> Result<Response<AuditResponse>, Status> {
        let what = format!("{:?}", request.get_ref());
        self.ask("audit", request.metadata(), what, |script| {
            script.audit.clone()
        })
    }

    async fn verify_audit(
        &self,
        request: Request<VerifyAuditRequest>,
    ) -> Result<Response<Self::VerifyAuditStream>, Status> {
        let metadata = request.metadata();
        self.ask("verify_audit", metadata, String::new(), |script| {
            let parts = std::mem::take(&mut script.verified).into_iter().map(Ok);
            Box::pin(tokio_stream::iter(parts)) as Self::VerifyAuditStream
        })
    }

    async fn backup(
        &self,
        request: Request<BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        self.ask("backup", request.metadata(), String::new(), |script| {
            let parts = std::mem::take(&mut script.backup).into_iter().map(|bytes| {
                if bytes.is_empty() {
                    Err(Status::unavailable("the disk failed"))
                } else {
                    Ok(BackupPart {
                        bytes: bytes.into(),
                    })
                }
            });
            Box::pin(tokio_stream::iter(parts)) as Self::BackupStream
        })
    }
}
