//! Callers who may only look, against the real process: however they use their share, those who write are served, and what
//! they took comes back when they leave.

#![allow(clippy::expect_used)] // a test that cannot go on ends here

mod common;

use std::time::Duration;

use common::{PATIENCE, Server, with};
use sluice_proto::control::v1 as wire;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use wire::access_client::AccessClient;
use wire::document_part::Part;
use wire::policies_client::PoliciesClient;
use wire::{DocumentHeader, DocumentPart, ValidateResponse};

const SMALL: &str = "rules: [{name: c, actions: connect, decision: allow}]\n";
/// Rules of a document whose trial takes long enough to be seen at work.
const RULES: usize = 100_000;
const PIECE_BYTES: usize = 1 << 20;

async fn viewer(server: &Server, name: &str) -> String {
    let asked = wire::CreateTokenRequest {
        name: name.to_owned(),
        role: wire::Role::Viewer.into(),
        lifetime_secs: None,
    };
    let mut access = AccessClient::new(server.channel());
    let created = access.create_token(with(&server.token(), asked)).await;
    created.expect("a token").into_inner().secret
}

fn text(bytes: &[u8]) -> DocumentPart {
    DocumentPart {
        part: Some(Part::Text(bytes.to_vec().into())),
    }
}

fn header(expected_newest: Option<u64>) -> DocumentPart {
    let header = DocumentHeader {
        expected_newest,
        ..DocumentHeader::default()
    };
    DocumentPart {
        part: Some(Part::Header(header)),
    }
}

fn parts(expected_newest: Option<u64>, document: &str) -> Vec<DocumentPart> {
    let pieces = document.as_bytes().chunks(PIECE_BYTES).map(text);
    std::iter::once(header(expected_newest))
        .chain(pieces)
        .collect()
}

fn large() -> String {
    let mut text = String::from("rules:\n");
    for n in 0..RULES {
        text.push_str(&format!(
            "- {{name: r{n}, actions: publish, topics: [plant/{n}/state], decision: allow}}\n"
        ));
    }
    text
}

async fn validate(
    channel: Channel,
    token: &str,
    document: &str,
) -> Result<ValidateResponse, Status> {
    let parts = tokio_stream::iter(parts(None, document));
    let mut policies = PoliciesClient::new(channel);
    let answer = policies.validate(with(token, parts)).await?;
    Ok(answer.into_inner())
}

async fn apply(server: &Server, document: &str, newest: u64) -> Result<u64, Status> {
    let parts = tokio_stream::iter(parts(Some(newest), document));
    let mut policies = PoliciesClient::new(server.channel());
    let applied = policies.apply(with(&server.token(), parts)).await?;
    let generation = applied.into_inner().generation.expect("a generation");
    Ok(generation.id.expect("its id").number)
}

/// A call that sends a document as it is told to, and never ends by itself.
struct Upload {
    pieces: mpsc::Sender<DocumentPart>,
    call: JoinHandle<Result<(), Status>>,
}

impl Upload {
    async fn begin(server: &Server, token: &str) -> Self {
        let (pieces, stream) = mpsc::channel(1);
        let request = with(token, ReceiverStream::new(stream));
        let mut policies = PoliciesClient::new(server.channel());
        let call = tokio::spawn(async move { policies.validate(request).await.map(drop) });
        pieces.send(header(None)).await.expect("the call is there");
        Self { pieces, call }
    }

    async fn send(&self, bytes: &[u8]) {
        let sent = self.pieces.send(text(bytes)).await;
        sent.expect("the call is there");
    }
}

/// Waits until a number of the process is what it should be.
async fn until_metric(server: &Server, name: &str, wanted: f64) {
    let look = async {
        while server.metric(name) != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let seen = tokio::time::timeout(PATIENCE, look).await;
    seen.unwrap_or_else(|_| panic!("{name} is {} and should be {wanted}", server.metric(name)));
}

const UNDERWAY: &str = r#"sluice_control_trials_underway{share="readers"}"#;
const CANCELLED: &str = r#"sluice_control_trials_total{share="readers",end="cancelled"}"#;

#[tokio::test]
async fn slow_uploads_and_trials_of_readers_do_not_keep_an_apply_from_starting() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let slow = viewer(&server, "slow").await;
    let upload = Upload::begin(&server, &slow).await;
    for byte in SMALL.bytes().take(10) {
        upload.send(&[byte]).await;
    }
    // As many readers as there are, each with a trial that takes long: one is at work and the others wait.
    let document = std::sync::Arc::new(large());
    let mut loops = Vec::new();
    for number in 0..3 {
        let token = viewer(&server, &format!("loop{number}")).await;
        let (channel, document) = (server.channel(), std::sync::Arc::clone(&document));
        loops.push(tokio::spawn(async move {
            loop {
                validate(channel.clone(), &token, &document)
                    .await
                    .expect("a good document");
            }
        }));
    }
    until_metric(&server, UNDERWAY, 1.0).await;
    for newest in 0..2 {
        let other = SMALL.replace("name: c", &format!("name: c{newest}"));
        assert_eq!(
            apply(&server, &other, newest).await.expect("applied"),
            newest + 1
        );
    }
    assert_eq!(
        server.metric(r#"sluice_control_trials_total{share="writers",end="done"}"#),
        2.0
    );
    assert!(!upload.call.is_finished() && loops.iter().all(|readers| !readers.is_finished()));
    loops.iter().for_each(JoinHandle::abort);
    until_metric(&server, UNDERWAY, 0.0).await;
}

#[tokio::test]
async fn of_a_reader_who_leaves_the_trial_is_cancelled_and_the_place_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let token = viewer(&server, "bob").await;
    let call = tokio::spawn({
        let (channel, token) = (server.channel(), token.clone());
        async move { validate(channel, &token, &large()).await.map(drop) }
    });
    until_metric(&server, UNDERWAY, 1.0).await;
    let second = validate(server.channel(), &token, SMALL).await;
    let second = second.expect_err("one at a time");
    assert_eq!(second.code(), Code::ResourceExhausted);
    assert!(
        second.message().contains("wait for that call to end"),
        "{second}"
    );
    call.abort();
    until_metric(&server, CANCELLED, 1.0).await;
    until_metric(&server, UNDERWAY, 0.0).await;
    // The place comes back a moment after the count.
    let checked = async {
        loop {
            match validate(server.channel(), &token, SMALL).await {
                Err(status) if status.code() == Code::ResourceExhausted => {
                    tokio::task::yield_now().await;
                }
                checked => return checked.expect("a good document"),
            }
        }
    };
    let checked = tokio::time::timeout(PATIENCE, checked).await;
    assert_eq!(checked.expect("the place comes back").rows, 2);
}
