//! The service over a real connection and a real store: each scenario with the code that the contract gives it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::Message;
use sluice_proto::control::v1::document_part::Part;
use sluice_proto::control::v1::policies_client::PoliciesClient;
use sluice_proto::control::v1::{DocumentHeader, DocumentProblems, GenerationState};
use tempfile::TempDir;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Server};

use super::*;
use crate::auth::{self, Call, Kind, Peer, Stay};
use crate::domain::{Name, Token, TokenId, UnixMillis};
use crate::release::{Bounds, Limits, READERS_BYTES_MAX};
use crate::store::{Sqlite, Store};

const GOOD: &str = "
listeners: [{name: main, address: '127.0.0.1:1883', upstream: b, anonymous: {group: guests}}]
upstreams: [{name: b, endpoints: 'tcp://127.0.0.1:1'}]
groups: [{name: guests}]
users: [{name: ann, password_hash: '$7$101$c2FsdC1vZi1zYWx0$uw5AQyOIeh7ghL2eGIQJoig8PX1GR+TgmS3CH9Yri1KNMDA+VyxdQgcZL72t+TUzbXXlq45w1BnZ7zDJKwxboQ=='}]
rules:
  - {name: all connect, actions: connect, decision: allow}
  - {name: own, actions: [publish, subscribe], topics: ['own/${client_id}/#'], decision: allow}
";

/// Of the word `example`; checked as to its form only.
const HASH: &str = "$7$101$c2FsdC1vZi1zYWx0$uw5AQyOIeh7ghL2eGIQJoig8PX1GR+TgmS3CH9Yri1KNMDA+VyxdQgcZL72t+TUzbXXlq45w1BnZ7zDJKwxboQ==";

/// A control plane as far as policies go, served, and an operator connected to it.
struct Plane {
    _dir: TempDir,
    store: Arc<dyn Store>,
    server: tokio::task::JoinHandle<()>,
    client: PoliciesClient<Channel>,
    tokens: Vec<(Role, String)>,
    role: Role,
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Plane {
    async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    async fn start_with(limits: Limits) -> Self {
        let dir = TempDir::new().unwrap();
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(dir.path()).await.unwrap());
        let tokens = tokens(&*store).await;
        let gate = Gate::open(Arc::clone(&store)).await.unwrap();
        let releases = Releases::open(Arc::clone(&store), limits).await.unwrap();
        let fleet = Fleet::open(gate.clone(), releases.in_force()).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let known = move |mut request: Request<()>| {
            request.extensions_mut().insert(Peer::new(address, false));
            request.extensions_mut().insert(Call::new("req-1".into()));
            Ok(request)
        };
        let service = service(gate, releases, fleet.unwrap());
        let server = Server::builder().add_service(InterceptedService::new(service, known));
        let incoming = TcpListenerStream::new(listener);
        let server =
            tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        let client = PoliciesClient::new(channel.connect().await.unwrap());
        Self {
            _dir: dir,
            store,
            server,
            client,
            tokens,
            role: Role::Operator,
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some((_, token)) = self.tokens.iter().find(|(role, _)| *role == self.role) {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    async fn validate(&self, text: &str) -> Result<ValidateResponse, Status> {
        let parts = parts(DocumentHeader::default(), text);
        let mut client = self.client.clone();
        Ok(client.validate(self.request(parts)).await?.into_inner())
    }

    async fn apply(&self, text: &str, newest: u64) -> Result<ApplyResponse, Status> {
        let header = DocumentHeader {
            expected_newest: Some(newest),
            ..DocumentHeader::default()
        };
        self.apply_parts(parts(header, text)).await
    }

    async fn apply_parts(
        &self,
        parts: impl tokio_stream::Stream<Item = DocumentPart> + Send + 'static,
    ) -> Result<ApplyResponse, Status> {
        let mut client = self.client.clone();
        Ok(client.apply(self.request(parts)).await?.into_inner())
    }

    async fn diff(&self, header: DocumentHeader, text: &str) -> Result<DiffResponse, Status> {
        let mut client = self.client.clone();
        let request = self.request(parts(header, text));
        Ok(client.diff(request).await?.into_inner())
    }

    async fn release(&self, generation: u64, released: u64) -> Result<u64, Status> {
        let request = ReleaseRequest {
            generation,
            expected_released: Some(released),
            comment: Some("because".into()),
        };
        let answer = self.client.clone().release(self.request(request)).await?;
        let generation = answer.into_inner().generation.unwrap();
        assert_eq!(generation.state(), GenerationState::Released);
        Ok(generation.id.unwrap().number)
    }

    async fn rollback(&self, generation: Option<u64>, released: u64) -> Result<u64, Status> {
        let request = RollbackRequest {
            generation,
            expected_released: Some(released),
            comment: None,
        };
        let answer = self.client.clone().rollback(self.request(request)).await?;
        let generation = answer.into_inner().generation.unwrap();
        assert_eq!(generation.state(), GenerationState::Released);
        Ok(generation.id.unwrap().number)
    }

    async fn history(&self) -> HistoryResponse {
        let request = self.request(HistoryRequest::default());
        self.client
            .clone()
            .history(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn explain(&self, request: ExplainRequest) -> Result<ExplainResponse, Status> {
        let request = self.request(request);
        Ok(self.client.clone().explain(request).await?.into_inner())
    }
}

/// A token for each role.
async fn tokens(store: &dyn Store) -> Vec<(Role, String)> {
    let mut tokens = Vec::new();
    for role in Role::ALL {
        let (id, secret) = auth::random().unwrap();
        let token = Token {
            id: id.clone(),
            name: Name::parse(role.name()).unwrap(),
            role,
            hash: secret.hash(),
            created_at: UnixMillis(1),
            created_by: "test".into(),
            expires_at: None,
            revoked_at: None,
        };
        let caller = Caller {
            name: "test".into(),
            token: id.clone(),
            role,
            request_id: String::new(),
            peer: String::new(),
            is_tls: false,
            stay: Stay::new(tokio::sync::watch::channel(()).1, None),
        };
        let audit = caller.audit("token.create", role.name());
        store.add_token(token, audit).await.unwrap();
        let text = auth::written(Kind::Caller, &id, &secret);
        tokens.push((role, text.as_str().to_owned()));
    }
    tokens
}

fn header(header: DocumentHeader) -> DocumentPart {
    DocumentPart {
        part: Some(Part::Header(header)),
    }
}

fn piece(text: impl Into<Vec<u8>>) -> DocumentPart {
    DocumentPart {
        part: Some(Part::Text(text.into().into())),
    }
}

/// A header, and the text in small pieces.
fn parts(
    first: DocumentHeader,
    text: &str,
) -> impl tokio_stream::Stream<Item = DocumentPart> + Send + 'static + use<> {
    let bytes = if text.len() < 10_000 { 100 } else { 1 << 20 };
    let pieces: Vec<DocumentPart> = text.as_bytes().chunks(bytes).map(piece).collect();
    tokio_stream::iter(std::iter::once(header(first)).chain(pieces))
}

async fn code<T>(call: impl Future<Output = Result<T, Status>>) -> Code {
    call.await.err().map_or(Code::Ok, |status| status.code())
}

fn number(answer: &ApplyResponse) -> u64 {
    answer
        .generation
        .as_ref()
        .unwrap()
        .id
        .as_ref()
        .unwrap()
        .number
}

#[tokio::test]
async fn from_a_document_to_a_generation_in_force_and_back() {
    let plane = Plane::start().await;
    let first = plane.apply(GOOD, 0).await.unwrap();
    assert_eq!((number(&first), first.unchanged), (1, false));
    let generation = first.generation.as_ref().unwrap();
    assert_eq!(generation.state(), GenerationState::Applied);
    assert_eq!(
        (generation.base, generation.rows, generation.changes),
        (0, 7, 7)
    );
    assert_eq!(generation.created_by, "operator");
    assert!(generation.expires_unix_ms > Some(generation.created_unix_ms));
    assert_eq!(first.summary.unwrap().added, 7);
    assert_eq!(plane.release(1, 0).await.unwrap(), 1);

    let deny = GOOD.replace(
        "topics: ['own/${client_id}/#'], decision: allow",
        "topics: ['own/#'], decision: deny",
    );
    assert_eq!(number(&plane.apply(&deny, 1).await.unwrap()), 2);
    assert_eq!(plane.release(2, 1).await.unwrap(), 2);
    // The one before, then the one before that, which says what the third says.
    assert_eq!(plane.rollback(None, 2).await.unwrap(), 3);
    assert_eq!(plane.rollback(None, 3).await.unwrap(), 4);

    let history = plane.history().await;
    assert_eq!((history.newest, history.released), (4, 4));
    let told: Vec<_> = history
        .generations
        .iter()
        .map(|g| {
            (
                g.id.as_ref().unwrap().number,
                g.state(),
                g.rollback_of,
                g.changes,
            )
        })
        .collect();
    use GenerationState::{Released, Superseded};
    assert_eq!(
        told,
        [
            (4, Released, Some(2), 1),
            (3, Superseded, Some(1), 1),
            (2, Superseded, None, 1),
            (1, Superseded, None, 7)
        ]
    );
    let audit = plane.store.audit(None, 6).await.unwrap();
    let told: Vec<_> = audit
        .iter()
        .map(|r| [&*r.action, &*r.what, &*r.before, &*r.after, &*r.request_id].join(" | "))
        .collect();
    assert_eq!(
        told,
        [
            "policy.rollback | generation 4 | generation 3 | a generation with the rows of generation 2: +0 ~1 -0 rows | req-1",
            "policy.rollback | generation 3 | generation 2 | a generation with the rows of generation 1: +0 ~1 -0 rows | req-1",
            "policy.release | generation 2 | generation 1 | generation 2: +0 ~1 -0 rows; because | req-1",
            "policy.apply | generation 2 | generation 1 is in force | +0 ~1 -0 rows | req-1",
            "policy.release | generation 1 | nothing | generation 1: +7 ~0 -0 rows; because | req-1",
            "policy.apply | generation 1 | nothing is in force | +7 ~0 -0 rows | req-1",
        ]
    );
}

#[tokio::test]
async fn c9_no_change_makes_no_generation() {
    let plane = Plane::start().await;
    plane.apply(GOOD, 0).await.unwrap();
    for released in [false, true] {
        let again = format!("# written otherwise\n{}", GOOD.replace(", ", ",  "));
        let again = plane.apply(&again, 1).await.unwrap();
        assert!(again.unchanged);
        assert_eq!(number(&again), 1);
        let diff = plane.diff(DocumentHeader::default(), GOOD).await.unwrap();
        assert_eq!(diff.rows.is_empty(), released);
        if !released {
            plane.release(1, 0).await.unwrap();
        }
    }
    assert_eq!(plane.history().await.newest, 1);
}

#[tokio::test]
async fn c10_a_write_names_what_its_author_saw() {
    let plane = Plane::start().await;
    let other = GOOD.replace("own/", "their/");
    let nothing = parts(DocumentHeader::default(), GOOD);
    assert_eq!(
        code(plane.apply_parts(nothing)).await,
        Code::InvalidArgument
    );
    let unsaid = plane.request(ReleaseRequest {
        generation: 1,
        ..ReleaseRequest::default()
    });
    assert_eq!(
        code(plane.client.clone().release(unsaid)).await,
        Code::InvalidArgument
    );
    let unsaid = plane.request(RollbackRequest::default());
    assert_eq!(
        code(plane.client.clone().rollback(unsaid)).await,
        Code::InvalidArgument
    );

    assert_eq!(code(plane.apply(GOOD, 3)).await, Code::Aborted);
    plane.apply(GOOD, 0).await.unwrap();
    assert_eq!(
        code(plane.apply(&other, 0)).await,
        Code::Aborted,
        "the newest changed"
    );
    assert_eq!(number(&plane.apply(&other, 1).await.unwrap()), 2);

    assert_eq!(code(plane.release(9, 0)).await, Code::NotFound);
    assert_eq!(code(plane.release(0, 0)).await, Code::NotFound);
    assert_eq!(
        code(plane.rollback(Some(1), 0)).await,
        Code::FailedPrecondition,
        "nothing is released"
    );
    assert_eq!(code(plane.release(1, 2)).await, Code::Aborted);
    plane.release(1, 0).await.unwrap();
    assert_eq!(
        code(plane.release(1, 1)).await,
        Code::FailedPrecondition,
        "it is in force"
    );
    assert_eq!(
        code(plane.release(2, 1)).await,
        Code::FailedPrecondition,
        "its base is not in force"
    );
    assert_eq!(code(plane.release(2, 0)).await, Code::Aborted);
    assert_eq!(
        code(plane.rollback(Some(2), 1)).await,
        Code::FailedPrecondition,
        "never in force"
    );
    assert_eq!(
        code(plane.rollback(Some(1), 1)).await,
        Code::FailedPrecondition,
        "says the same"
    );
    assert_eq!(
        code(plane.rollback(None, 1)).await,
        Code::FailedPrecondition,
        "nothing before it"
    );
    assert_eq!(code(plane.rollback(Some(9), 1)).await, Code::NotFound);

    // What cannot be released any more is applied again, although the newest says the same.
    let again = plane.apply(&other, 2).await.unwrap();
    assert_eq!((number(&again), again.unchanged), (3, false));
    plane.release(3, 1).await.unwrap();
    assert_eq!(
        code(plane.release(1, 3)).await,
        Code::FailedPrecondition,
        "released before"
    );
    assert_eq!(code(plane.rollback(None, 1)).await, Code::Aborted);
    let gone = DocumentHeader {
        to: Some(2),
        ..DocumentHeader::default()
    };
    assert_eq!(
        code(plane.diff(gone, "")).await,
        Code::NotFound,
        "its rows are removed"
    );
}

#[tokio::test]
async fn c14_of_two_who_apply_at_once_one_wins() {
    let plane = Plane::start_with(Limits {
        writers: Bounds {
            trials_max: 2,
            ..Bounds::writers()
        },
        ..Limits::default()
    })
    .await;
    let other = GOOD.replace("own/", "their/");
    let (one, two) = tokio::join!(plane.apply(GOOD, 0), plane.apply(&other, 0));
    let codes = [one, two].map(|answer| answer.err().map_or(Code::Ok, |status| status.code()));
    assert!(
        codes == [Code::Ok, Code::Aborted] || codes == [Code::Aborted, Code::Ok],
        "{codes:?}"
    );
    assert_eq!(plane.history().await.newest, 1);
    let (one, two) = tokio::join!(plane.release(1, 0), plane.release(1, 0));
    let codes = [one, two].map(|answer| answer.err().map_or(Code::Ok, |status| status.code()));
    assert!(
        codes == [Code::Ok, Code::Aborted] || codes == [Code::Aborted, Code::Ok],
        "{codes:?}"
    );
}

#[tokio::test]
async fn c15_filters_are_refused_with_their_places() {
    let plane = Plane::start().await;
    let filters = [
        ("a/#/b", false),
        ("a#", false),
        ("+a", false),
        ("", false),
        ("\\0", false),
        ("$SYS/#", true),
        ("a//b", true),
        ("${client_id}/+/#", true),
        ("${client_id}x", false),
    ];
    let mut text = String::from("rules:\n");
    for (at, (filter, _)) in filters.iter().enumerate() {
        text.push_str(&format!(
            "- {{name: r{at}, actions: publish, decision: allow, topics: [\"{filter}\"]}}\n"
        ));
    }
    let lines: Vec<u32> = (2..)
        .zip(filters)
        .filter(|(_, (_, is_good))| !is_good)
        .map(|(line, _)| line)
        .collect();
    let told = |problems: &DocumentProblems| -> Vec<u32> {
        assert!(
            problems
                .problems
                .iter()
                .all(|p| p.column == 58 && !p.message.is_empty()),
            "{problems:?}"
        );
        problems
            .problems
            .iter()
            .map(|problem| problem.line)
            .collect()
    };
    let checked = plane.validate(&text).await.unwrap();
    assert_eq!(told(&checked.problems.unwrap()), lines);
    let refused = plane.apply(&text, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        told(&DocumentProblems::decode(refused.details()).unwrap()),
        lines
    );
    let refused = plane
        .diff(DocumentHeader::default(), &text)
        .await
        .unwrap_err();
    assert_eq!(
        told(&DocumentProblems::decode(refused.details()).unwrap()),
        lines
    );
    let not_text = [header(DocumentHeader::default()), piece(*b"rules: \xff")];
    let not_text = plane.request(tokio_stream::iter(not_text));
    let refused = plane.client.clone().validate(not_text).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let message = "1:8: the byte 0xFF is not UTF-8; it looks like Latin-1";
    assert!(refused.message().contains(message), "{refused}");
    let problems = DocumentProblems::decode(refused.details()).unwrap();
    assert_eq!(
        (problems.problems[0].line, problems.problems[0].column),
        (1, 8)
    );
}

#[tokio::test]
async fn many_problems_are_told_as_far_as_an_answer_goes() {
    let plane = Plane::start().await;
    let text: String = (0..3000).map(|n| format!("unknown-{n}: 1\n")).collect();
    let refused = plane.apply(&text, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let told = DocumentProblems::decode(refused.details()).unwrap();
    assert!(told.problems.len() > 20, "{}", told.problems.len());
    assert_eq!(told.problems.len() as u64 + told.left_off, 3000);
    let checked = plane.validate(&text).await.unwrap().problems.unwrap();
    assert_eq!((checked.problems.len(), checked.left_off), (1000, 2000));
}

#[tokio::test]
async fn c19_a_document_beyond_the_bound_is_refused() {
    let limits = Limits {
        writers: Bounds {
            documents_bytes_max: 3 << 20,
            ..Bounds::writers()
        },
        ..Limits::default()
    };
    let plane = Plane::start_with(limits).await;
    let long = |pieces: usize| {
        let first = DocumentHeader {
            expected_newest: Some(0),
            ..DocumentHeader::default()
        };
        let pieces = std::iter::repeat_n(piece(vec![b' '; 1 << 20]), pieces);
        plane.apply_parts(tokio_stream::iter(
            std::iter::once(header(first)).chain(pieces),
        ))
    };
    assert_eq!(code(long(4)).await, Code::ResourceExhausted);
    // It was given back: the same is read again, and is an empty document.
    assert_eq!(code(long(3)).await, Code::InvalidArgument);
    assert_eq!(code(long(3)).await, Code::InvalidArgument);
    let first = || {
        header(DocumentHeader {
            expected_newest: Some(0),
            ..DocumentHeader::default()
        })
    };
    let big = plane.apply_parts(tokio_stream::iter([
        first(),
        piece(vec![b' '; (1 << 20) + 1]),
    ]));
    assert_eq!(code(big).await, Code::ResourceExhausted);
    let table: [&[DocumentPart]; 4] = [
        &[],
        &[piece("rules: []")],
        &[first(), first()],
        &[first(), DocumentPart { part: None }],
    ];
    for parts in table {
        let call = plane.apply_parts(tokio_stream::iter(parts.to_vec()));
        assert_eq!(
            code(call).await,
            Code::InvalidArgument,
            "{} parts",
            parts.len()
        );
    }
    let long = "x".repeat(1001);
    for (file, comment) in [(Some(long.clone()), None), (None, Some(long))] {
        let first = DocumentHeader {
            expected_newest: Some(0),
            file,
            comment,
            ..DocumentHeader::default()
        };
        let call = plane.apply_parts(parts(first, GOOD));
        assert_eq!(code(call).await, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn c19_a_row_beyond_the_bound_is_a_problem_of_the_document() {
    let plane = Plane::start().await;
    let topics: Vec<String> = (0..50)
        .map(|n| format!("{}/{n}", "x".repeat(65_000)))
        .collect();
    let text = format!(
        "rules:\n  - {{name: many, actions: publish, decision: allow, topics: [{}]}}\n",
        topics.join(",")
    );
    let checked = plane.validate(&text).await.unwrap().problems.unwrap();
    let [problem] = checked.problems.as_slice() else {
        panic!("{checked:?}");
    };
    assert_eq!((problem.line, problem.column), (2, 6));
    assert!(problem.message.contains("`many`"), "{problem:?}");
}

#[tokio::test]
async fn s18_one_bad_section_changes_nothing() {
    let plane = Plane::start().await;
    plane.apply(GOOD, 0).await.unwrap();
    plane.release(1, 0).await.unwrap();
    let before = (
        plane.history().await,
        plane.store.audit(None, 100).await.unwrap(),
    );
    for bad in [
        GOOD.replace(
            "decision: allow}\n  - {name: own",
            "decision: maybe}\n  - {name: own",
        ),
        GOOD.replace("upstream: b", "upstream: nowhere"),
        GOOD.replace("rules:", "rulez:"),
        GOOD.replace("rules:", "requires: [time travel]\nrules:"),
        format!("{GOOD}  - {{name: own, actions: connect, decision: deny}}\n"),
    ] {
        assert_eq!(
            code(plane.apply(&bad, 1)).await,
            Code::InvalidArgument,
            "{bad}"
        );
    }
    let after = (
        plane.history().await,
        plane.store.audit(None, 100).await.unwrap(),
    );
    assert_eq!(before, after);
}

#[tokio::test]
async fn each_call_asks_for_its_role() {
    let mut plane = Plane::start().await;
    for (role, may_look, may_write) in [
        (Role::Viewer, true, false),
        (Role::Auditor, true, false),
        (Role::Operator, true, true),
        (Role::Admin, true, true),
    ] {
        plane.role = role;
        let looks = [
            code(plane.validate(GOOD)).await,
            code(plane.diff(DocumentHeader::default(), GOOD)).await,
            code(
                plane
                    .client
                    .clone()
                    .history(plane.request(HistoryRequest::default())),
            )
            .await,
            code(plane.explain(ExplainRequest::default())).await,
        ];
        let writes = [
            code(plane.apply(GOOD, 77)).await,
            code(plane.release(77, 0)).await,
            code(plane.rollback(None, 77)).await,
        ];
        assert_eq!(
            looks.iter().all(|code| *code != Code::PermissionDenied),
            may_look,
            "{role:?} {looks:?}"
        );
        assert_eq!(
            writes.iter().all(|code| *code != Code::PermissionDenied),
            may_write,
            "{role:?} {writes:?}"
        );
        assert!(
            may_write || writes.iter().all(|code| *code == Code::PermissionDenied),
            "{writes:?}"
        );
    }
    plane.tokens.clear();
    let nobody = [
        code(plane.validate(GOOD)).await,
        code(plane.apply(GOOD, 0)).await,
        code(plane.diff(DocumentHeader::default(), GOOD)).await,
        code(plane.release(1, 0)).await,
        code(plane.rollback(None, 0)).await,
        code(
            plane
                .client
                .clone()
                .history(plane.request(HistoryRequest::default())),
        )
        .await,
        code(plane.explain(ExplainRequest::default())).await,
    ];
    assert_eq!(nobody, [Code::Unauthenticated; 7]);
}

#[tokio::test]
async fn a_difference_is_told_between_what_was_asked_for() {
    let plane = Plane::start().await;
    let other = GOOD
        .replace("$uw5A", "$ux5A")
        .replace("['own/${client_id}/#']", "['own/#']");
    plane.apply(GOOD, 0).await.unwrap();
    plane.release(1, 0).await.unwrap();
    plane.apply(&other, 1).await.unwrap();
    let told = |diff: &DiffResponse| -> Vec<String> {
        let fields = diff
            .rows
            .iter()
            .flat_map(|row| row.fields.iter().map(move |field| (row, field)));
        fields
            .map(|(row, field)| {
                format!(
                    "{}: {}: {:?} {:?}",
                    row.title,
                    field.field,
                    field.before(),
                    field.after()
                )
            })
            .collect()
    };
    let forth = [
        "user ann: password_hash: \"set\" \"changed\"",
        "rule own: topics: \"own/${client_id}/#\" \"own/#\"",
    ];
    let diff = plane.diff(DocumentHeader::default(), &other).await.unwrap();
    assert_eq!(
        (told(&diff), diff.from, diff.to),
        (forth.map(Into::into).to_vec(), 1, None)
    );
    let between = DocumentHeader {
        from: Some(2),
        to: Some(1),
        ..DocumentHeader::default()
    };
    let diff = plane.diff(between.clone(), "").await.unwrap();
    assert_eq!(
        told(&diff)[1],
        "rule own: topics: \"own/#\" \"own/${client_id}/#\""
    );
    assert_eq!((diff.from, diff.to), (2, Some(1)));
    assert_eq!(
        code(plane.diff(between, "rules: []")).await,
        Code::InvalidArgument
    );
    let first = DocumentHeader {
        from: Some(0),
        to: Some(2),
        limit: Some(2),
        ..DocumentHeader::default()
    };
    let diff = plane.diff(first.clone(), "").await.unwrap();
    assert_eq!(
        (diff.rows.len(), diff.left_off, diff.summary.unwrap().added),
        (2, 5, 7)
    );
    for limit in [0, 10_001] {
        let bad = DocumentHeader {
            limit: Some(limit),
            ..first.clone()
        };
        assert_eq!(code(plane.diff(bad, "")).await, Code::InvalidArgument);
    }
    let unknown = DocumentHeader {
        from: Some(9),
        ..DocumentHeader::default()
    };
    assert_eq!(code(plane.diff(unknown, GOOD)).await, Code::NotFound);
}

#[tokio::test]
async fn an_answer_is_explained_under_the_number_of_the_store() {
    let plane = Plane::start().await;
    let ask = |generation, topic: &str| ExplainRequest {
        generation,
        client_id: "c1".into(),
        action: "publish".into(),
        topic: Some(topic.into()),
        ..ExplainRequest::default()
    };
    assert_eq!(
        code(plane.explain(ask(None, "own/c1/x"))).await,
        Code::NotFound
    );
    plane.apply(GOOD, 0).await.unwrap();
    plane.release(1, 0).await.unwrap();
    let other = GOOD.replace("own/", "their/");
    plane.apply(&other, 1).await.unwrap();
    for (generation, topic, number, decision) in [
        (None, "own/c1/x", 1, "allow"),
        (None, "own/c2/x", 1, "deny"),
        (Some(2), "own/c1/x", 2, "deny"),
        (Some(2), "their/c1/x", 2, "allow"),
        (Some(1), "own/c1/x", 1, "allow"),
    ] {
        let answer = plane.explain(ask(generation, topic)).await.unwrap();
        assert_eq!(
            (answer.generation, &*answer.decision),
            (number, decision),
            "{topic}"
        );
        let json: serde_json::Value = serde_json::from_str(&answer.json).unwrap();
        assert_eq!(
            (json["generation"].as_u64(), json["decision"].as_str()),
            (Some(number), Some(decision))
        );
        assert!(answer.text.contains(decision), "{}", answer.text);
    }
    assert_eq!(code(plane.explain(ask(Some(9), "a"))).await, Code::NotFound);
    let good = ask(None, "own/c1/x");
    let table = [
        ExplainRequest {
            action: "delete".into(),
            ..good.clone()
        },
        ExplainRequest {
            topic: None,
            ..good.clone()
        },
        ExplainRequest {
            topic: Some("a/#".into()),
            ..good.clone()
        },
        ExplainRequest {
            topic: Some("a#".into()),
            action: "subscribe".into(),
            ..good.clone()
        },
        ExplainRequest {
            address: Some("nowhere".into()),
            ..good.clone()
        },
        ExplainRequest {
            listener: Some("nowhere".into()),
            ..good.clone()
        },
        ExplainRequest {
            version: Some("4".into()),
            ..good.clone()
        },
        ExplainRequest {
            qos: 3,
            ..good.clone()
        },
        ExplainRequest {
            client_id: "x".repeat(65_536),
            ..good
        },
    ];
    for bad in table {
        assert_eq!(
            code(plane.explain(bad.clone())).await,
            Code::InvalidArgument,
            "{bad:?}"
        );
    }
}

#[tokio::test]
async fn history_is_paged() {
    let plane = Plane::start().await;
    for number in 0..3 {
        let text = GOOD.replace("own/", &format!("own{number}/"));
        plane.apply(&text, number).await.unwrap();
    }
    let page = async |before, limit| {
        let request = plane.request(HistoryRequest { before, limit });
        let answer = plane.client.clone().history(request).await?.into_inner();
        let numbers = answer.generations.into_iter();
        Ok::<Vec<u64>, Status>(numbers.map(|g| g.id.unwrap().number).collect())
    };
    assert_eq!(page(None, None).await.unwrap(), [3, 2, 1]);
    assert_eq!(page(None, Some(2)).await.unwrap(), [3, 2]);
    assert_eq!(page(Some(2), Some(2)).await.unwrap(), [1]);
    assert_eq!(code(page(None, Some(0))).await, Code::InvalidArgument);
    assert_eq!(code(page(None, Some(1001))).await, Code::InvalidArgument);
}

#[tokio::test]
async fn one_changed_row_of_a_large_document_is_one_change() {
    let plane = Plane::start().await;
    // The rule in the middle stands where it is asked to: it is moved past half of the others.
    let document = |middle_at: usize| {
        let mut text = String::from("users:\n");
        for n in 0..100_000 {
            text.push_str(&format!("- {{name: u{n}, password_hash: {HASH}}}\n"));
        }
        text.push_str("rules:\n");
        for n in 0..100_000 {
            let name = if n == middle_at {
                "middle".into()
            } else {
                format!("r{}", n - usize::from(n > middle_at))
            };
            text.push_str(&format!(
                "- {{name: {name}, actions: publish, topics: [{name}], decision: allow}}\n"
            ));
        }
        text
    };
    let first = plane.apply(&document(50_000), 0).await.unwrap();
    assert_eq!(first.generation.unwrap().rows, 200_001);
    plane.release(1, 0).await.unwrap();
    let second = plane.apply(&document(10), 1).await.unwrap();
    let summary = second.summary.unwrap();
    assert_eq!((summary.added, summary.changed, summary.removed), (0, 1, 0));
    assert_eq!(second.generation.unwrap().changes, 1);
}

/// Deadlines of a document, without a connection and on a clock that jumps.
#[tokio::test(start_paused = true)]
async fn a_document_that_does_not_come_is_given_up() {
    type Parts =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<DocumentPart, Status>> + Send>>;
    let mut silent: Parts = Box::pin(tokio_stream::pending());
    assert_eq!(
        code(intake::header(&mut silent)).await,
        Code::DeadlineExceeded
    );
    let begun = tokio::time::Instant::now();
    let mut header = Box::pin(intake::header(&mut silent));
    let early = tokio::time::timeout(intake::PART_WITHIN - Duration::from_millis(1), &mut header);
    assert!(early.await.is_err());
    assert_eq!(code(header).await, Code::DeadlineExceeded);
    assert_eq!(begun.elapsed(), intake::PART_WITHIN);
}

#[tokio::test]
async fn a_document_that_never_ends_is_given_up_and_its_seat_is_free() {
    use tokio_stream::StreamExt;
    let dir = TempDir::new().unwrap();
    let store = Arc::new(Sqlite::open(dir.path()).await.unwrap());
    let limits = Limits {
        readers: Bounds {
            seats_max: 1,
            ..Bounds::readers(READERS_BYTES_MAX)
        },
        ..Limits::default()
    };
    let releases = Releases::open(store, limits).await.unwrap();
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let trickle = tokio_stream::iter(std::iter::repeat(())).then(async |()| {
        tokio::time::sleep(intake::PART_WITHIN / 2).await;
        Ok(piece(" "))
    });
    let mut trickle = Box::pin(trickle);
    let seat = || releases.seat(Share::Readers, &TokenId("bob".into()));
    let text = intake::text(&mut trickle, seat().unwrap(), None);
    assert_eq!(code(text).await, Code::DeadlineExceeded);
    // Timers have a grain of a millisecond.
    let late = begun.elapsed().checked_sub(intake::DOCUMENT_WITHIN);
    assert!(
        late.is_some_and(|late| late < Duration::from_millis(10)),
        "{late:?}"
    );
    assert!(seat().is_ok());
}
