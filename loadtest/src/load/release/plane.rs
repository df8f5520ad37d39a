//! A control plane of its own for a measurement, and what an operator does with it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use sluice_proto::control::v1 as control;
use tokio::sync::mpsc;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use control::access_client::AccessClient;
use control::document_part::Part;
use control::nodes_client::NodesClient;
use control::policies_client::PoliciesClient;

use super::super::clock;
use super::super::process::Process;

/// A start, or a small call.
const SOON: Duration = Duration::from_secs(60);
/// Longest piece of text in one message, as the contract has it.
const PART_BYTES_MAX: usize = 1 << 20;
/// Answers of one watch that wait to be looked at.
const WATCHED_MAX: usize = 1024;
/// Longest answer taken.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A running control plane.
pub(in crate::load) struct Plane {
    /// The process and its log.
    pub(in crate::load) process: Process,
    /// Where operators and nodes find it.
    pub(in crate::load) api: SocketAddr,
    /// The newest generation.
    newest: u64,
    /// The one in force.
    released: u64,
    bearer: MetadataValue<Ascii>,
    channel: Channel,
}

/// A release: when it was asked for and when the answer came.
#[derive(Clone, Copy, Debug)]
pub(in crate::load) struct Asked {
    /// Which generation.
    pub(in crate::load) number: u64,
    /// Just before the call.
    pub(in crate::load) began_ns: u64,
    /// Just after.
    pub(in crate::load) returned_ns: u64,
}

impl Plane {
    /// Starts it with an empty store in `folder`.
    pub(in crate::load) async fn start(programs: &Path, folder: &Path) -> anyhow::Result<Self> {
        let data = folder.join("control");
        let mut args: Vec<OsString> = vec!["--data-dir".into(), data.clone().into()];
        for word in ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"] {
            args.push(word.into());
        }
        args.extend(["--log-format".into(), "json".into()]);
        let mut process = Process::start("sluice-controlplane", programs, args)?;
        let address = process.wait("the address of its server", SOON, |line| {
            let address = line.text("address").map(str::parse::<SocketAddr>);
            line.says("gRPC server is listening").then_some(address)?
        });
        let api = address.await?.context("the address in the log")?;
        let token = std::fs::read_to_string(data.join("admin.token")).context("the first token")?;
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {}", token.trim()).parse()?;
        bearer.set_sensitive(true);
        let channel = Endpoint::from_shared(format!("http://{api}"))?
            .tcp_nodelay(true)
            .connect()
            .await?;
        Ok(Self {
            process,
            api,
            newest: 0,
            released: 0,
            bearer,
            channel,
        })
    }

    /// A token with which so many nodes can join.
    pub(in crate::load) async fn join_token(&self, uses: u32) -> anyhow::Result<String> {
        let wish = control::CreateJoinTokenRequest {
            uses: Some(uses),
            ..control::CreateJoinTokenRequest::default()
        };
        let mut access = AccessClient::new(self.channel.clone());
        let made = access.create_join_token(self.with_token(wish)).await?;
        Ok(made.into_inner().secret)
    }

    /// Makes a generation of a document.
    pub(in crate::load) async fn apply(&mut self, text: &str) -> anyhow::Result<u64> {
        let header = control::DocumentHeader {
            expected_newest: Some(self.newest),
            ..control::DocumentHeader::default()
        };
        let mut parts = vec![Part::Header(header)];
        for piece in text.as_bytes().chunks(PART_BYTES_MAX) {
            parts.push(Part::Text(piece.to_vec().into()));
        }
        let parts = parts
            .into_iter()
            .map(|part| control::DocumentPart { part: Some(part) });
        let request = self.with_token(tokio_stream::iter(parts));
        let applied = self.policies().apply(request).await?.into_inner();
        self.newest = number(applied.generation)?;
        Ok(self.newest)
    }

    /// Brings the newest generation into force.
    pub(in crate::load) async fn release(&mut self) -> anyhow::Result<Asked> {
        let request = self.with_token(control::ReleaseRequest {
            generation: self.newest,
            expected_released: Some(self.released),
            comment: None,
        });
        let mut policies = self.policies();
        let began_ns = clock::now();
        let answer = policies.release(request).await;
        self.asked(began_ns, answer)
    }

    /// Brings what was in force before into force again.
    pub(in crate::load) async fn rollback(&mut self) -> anyhow::Result<Asked> {
        let request = self.with_token(control::RollbackRequest {
            generation: None,
            expected_released: Some(self.released),
            comment: None,
        });
        let mut policies = self.policies();
        let began_ns = clock::now();
        let answer = policies.rollback(request).await;
        let asked = self.asked(began_ns, answer)?;
        self.newest = asked.number;
        Ok(asked)
    }

    /// Each answer of a watch, with the time at which it came; ends when dropped.
    pub(in crate::load) async fn watch(
        &self,
    ) -> anyhow::Result<mpsc::Receiver<(u64, control::NodesResponse)>> {
        let nodes = NodesClient::new(self.channel.clone());
        let mut nodes = nodes.max_decoding_message_size(ANSWER_BYTES_MAX);
        let request = self.with_token(control::ListNodesRequest::default());
        let mut answers = nodes.watch(request).await?.into_inner();
        let (sender, receiver) = mpsc::channel(WATCHED_MAX);
        tokio::spawn(async move {
            while let Ok(Some(answer)) = answers.message().await {
                if sender.send((clock::now(), answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    fn asked(
        &mut self,
        began_ns: u64,
        answer: Result<tonic::Response<control::ReleaseResponse>, tonic::Status>,
    ) -> anyhow::Result<Asked> {
        let returned_ns = clock::now();
        let number = number(answer?.into_inner().generation)?;
        self.released = number;
        Ok(Asked {
            number,
            began_ns,
            returned_ns,
        })
    }

    fn policies(&self) -> PoliciesClient<Channel> {
        PoliciesClient::new(self.channel.clone())
    }

    fn with_token<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = self.bearer.clone();
        request.metadata_mut().insert("authorization", bearer);
        request
    }
}

fn number(generation: Option<control::Generation>) -> anyhow::Result<u64> {
    let id = generation.and_then(|generation| generation.id);
    Ok(id.context("the answer names no generation")?.number)
}
