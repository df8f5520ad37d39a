//! Commands that bring policy into force: apply, release, rollback, and the waiting for nodes.
//!
//! The waiting itself is decided in [`wait`](super::wait); here are the connection and the time.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_proto::control::v1::{
    ApplyResponse, DocumentHeader, Generation, GenerationState, ListNodesRequest, ReleaseRequest,
    RollbackRequest,
};
use sluice_proto::v1::GenerationId;
use tokio::time::Instant;
use tonic::Status;

use super::args::{ApplyArgs, ReleaseArgs, RollbackArgs, WaitArgs};
use super::connect::{Connection, within};
use super::document::Document;
use super::failure::{Exit, Failure, is_unreachable};
use super::out::{Answer, Out};
use super::policy::{generation, heads};
use super::render::{nodes as render_nodes, policy as render};
use super::wait::{self, End, Standing};

/// Pause before a watch that broke is begun again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Progress is told at most this often.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);

/// `apply`.
pub(super) async fn apply(
    connection: &Connection,
    args: &ApplyArgs,
    out: &mut Out,
) -> Result<Answer, Failure> {
    if args.wait.wait && !args.release {
        return Err(Failure::usage(
            "--wait needs --release: what is not released reaches no node",
        ));
    }
    let document = Document::read(&args.file)?;
    let expected_newest = match args.expect {
        Some(number) => number,
        None => heads(connection).await?.newest,
    };
    check_nodes(connection, &args.wait).await?;
    let header = DocumentHeader {
        expected_newest: Some(expected_newest),
        comment: args.comment.clone(),
        ..DocumentHeader::default()
    };
    let parts = document.parts(header);
    let mut client = connection.policies();
    let applied = connection
        .call_with_document(client.apply(tokio_stream::iter(parts)))
        .await
        .map_err(|status| Failure::from_document_status(&status, &document.name))?;
    let text = render::applied_text(&applied, args.release);
    let mut json = render::applied_json(&applied);
    if !args.release {
        return Ok(Answer::done(text, json));
    }
    let generation = release_applied(connection, args, applied, out).await?;
    if let Value::Object(fields) = &mut json {
        fields.insert("generation".into(), render::generation_json(&generation));
    }
    let text = text + &render::released_text(&generation, &[]);
    wait_if_asked(connection, &args.wait, &generation, (text, json), out).await
}

/// Releases what was applied, unless that is in force already.
async fn release_applied(
    connection: &Connection,
    args: &ApplyArgs,
    applied: ApplyResponse,
    out: &mut Out,
) -> Result<Generation, Failure> {
    let generation = applied.generation.ok_or_else(incomplete)?;
    if generation.state() == GenerationState::Released {
        return Ok(generation);
    }
    let request = ReleaseRequest {
        generation: render::number(&generation),
        // What it was compared with is what its author saw.
        expected_released: Some(generation.base),
        comment: args.comment.clone(),
    };
    let released = send_release(connection, request).await;
    if released.is_err() {
        out.warn(&format!(
            "generation {} was made and is not in force",
            render::number(&generation)
        ));
    }
    // A document has been warned about when it was applied.
    released.map(|(generation, _)| generation)
}

/// `release`.
pub(super) async fn release(
    connection: &Connection,
    args: &ReleaseArgs,
    out: &mut Out,
) -> Result<Answer, Failure> {
    check_nodes(connection, &args.wait).await?;
    let heads = heads(connection).await?;
    let is_only_waited_for = args.wait.wait && heads.released == args.generation;
    let (generation, warnings) = if is_only_waited_for {
        let generation = in_force(connection, &args.wait, args.generation).await?;
        (generation, Vec::new())
    } else {
        let request = ReleaseRequest {
            generation: args.generation,
            expected_released: Some(args.expect.unwrap_or(heads.released)),
            comment: args.comment.clone(),
        };
        send_release(connection, request).await?
    };
    answer(connection, &args.wait, (&generation, &warnings), out).await
}

async fn send_release(
    connection: &Connection,
    request: ReleaseRequest,
) -> Result<(Generation, Vec<String>), Failure> {
    let mut client = connection.policies();
    let answer = connection
        .call(client.release(request))
        .await
        .map_err(|status| Failure::from_status(&status))?;
    let generation = answer.generation.ok_or_else(incomplete)?;
    Ok((generation, answer.warnings))
}

/// The generation that is in force, to wait for it again.
async fn in_force(
    connection: &Connection,
    args: &WaitArgs,
    number: u64,
) -> Result<Generation, Failure> {
    let request = ListNodesRequest {
        nodes: args.nodes.clone(),
    };
    let mut client = connection.nodes();
    let answer = connection
        .call(client.list(request))
        .await
        .map_err(|status| Failure::from_status(&status))?;
    let id = answer
        .released
        .filter(|id| id.number == number)
        .ok_or_else(|| {
            let message = format!("another generation than {number} came into force meanwhile");
            Failure::new(Exit::Conflict, "conflict", message)
        })?;
    Ok(Generation {
        id: Some(id),
        state: GenerationState::Released.into(),
        ..Generation::default()
    })
}

/// `rollback`. Without a target, one after the other would go to and fro between two generations, so the second asks.
pub(super) async fn rollback(
    connection: &Connection,
    args: &RollbackArgs,
    out: &mut Out,
) -> Result<Answer, Failure> {
    check_nodes(connection, &args.wait).await?;
    let target = args.to.or(args.generation);
    let expected = match args.expect {
        Some(number) => number,
        None => heads(connection).await?.released,
    };
    if target.is_none()
        && !args.yes
        && let Some(present) = generation(connection, expected).await?
        && let Some(rows_of) = present.rollback_of
    {
        agree_to_go_forward(&present, rows_of, out).await?;
    }
    let request = RollbackRequest {
        generation: target,
        expected_released: Some(expected),
        comment: args.comment.clone(),
    };
    let mut client = connection.policies();
    let rolled_back = connection
        .call_with_document(client.rollback(request))
        .await
        .map_err(|status| Failure::from_status(&status))?;
    let generation = rolled_back.generation.ok_or_else(incomplete)?;
    let done = (&generation, &*rolled_back.warnings);
    answer(connection, &args.wait, done, out).await
}

/// Somebody says yes on the terminal, or names what they want.
async fn agree_to_go_forward(
    present: &Generation,
    rows_of: u64,
    out: &mut Out,
) -> Result<(), Failure> {
    let (number, left) = (render::number(present), present.base);
    let what = format!(
        "generation {number}, in force, is itself a rollback: it left generation {left} and has the rows of generation \
         {rows_of}. Going back once more brings generation {left} into force again, which was just left"
    );
    let is_yes = match out.ask(&format!("{what}. Go on? [y/N] ")).await {
        Some(line) => ["y", "yes"].contains(&line.trim().to_ascii_lowercase().as_str()),
        None => {
            let advice = "name the generation you want with --to N (`sluicectl history` lists them), or say --yes";
            return Err(Failure::usage(format!("{what}; {advice}")));
        }
    };
    if is_yes {
        return Ok(());
    }
    Err(Failure::usage(
        "nothing was done; `sluicectl history` lists the generations, and --to N names one",
    ))
}

async fn answer(
    connection: &Connection,
    args: &WaitArgs,
    (generation, warnings): (&Generation, &[String]),
    out: &mut Out,
) -> Result<Answer, Failure> {
    let text = render::released_text(generation, warnings);
    let json = json!({ "generation": render::generation_json(generation), "warnings": warnings });
    wait_if_asked(connection, args, generation, (text, json), out).await
}

/// A name that is no node's is found before anything is released.
async fn check_nodes(connection: &Connection, args: &WaitArgs) -> Result<(), Failure> {
    if args.nodes.is_empty() {
        return Ok(());
    }
    let request = ListNodesRequest {
        nodes: args.nodes.clone(),
    };
    let mut client = connection.nodes();
    let found = connection.call(client.list(request)).await;
    found
        .map(drop)
        .map_err(|status| Failure::from_status(&status))
}

/// Adds to what was done where the nodes stand.
async fn wait_if_asked(
    connection: &Connection,
    args: &WaitArgs,
    generation: &Generation,
    (text, mut json): (String, Value),
    out: &mut Out,
) -> Result<Answer, Failure> {
    if !args.wait {
        if let Value::Object(fields) = &mut json {
            fields.insert("wait".into(), Value::Null);
        }
        return Ok(Answer::done(text, json));
    }
    let wanted = generation.id.as_ref().ok_or_else(incomplete)?;
    let deadline = Instant::now() + args.timeout;
    let waiting = Waiting {
        connection,
        wanted,
        nodes: &args.nodes,
        deadline,
    };
    let (standing, end) = waiting.run(out).await?;
    if let Value::Object(fields) = &mut json {
        fields.insert("wait".into(), render_nodes::waited_json(&standing, end));
    }
    Ok(Answer {
        text: text + &render_nodes::waited_text(wanted.number, &standing, end),
        json,
        exit: wait::exit(&standing, end),
    })
}

fn incomplete() -> Failure {
    Failure::new(
        Exit::Refused,
        "other",
        "the control plane's answer names no generation",
    )
}

/// Waiting for the nodes to take a generation.
struct Waiting<'a> {
    connection: &'a Connection,
    wanted: &'a GenerationId,
    nodes: &'a [String],
    deadline: Instant,
}

impl Waiting<'_> {
    /// Watches until the end, over as many connections as it takes: the release is stored, so a control plane that
    /// restarts in between is asked again.
    async fn run(&self, out: &mut Out) -> Result<(Standing, End), Failure> {
        let mut last = None;
        let mut telling = Telling::default();
        loop {
            let broken = match self.watch(&mut last, &mut telling, out).await {
                Ok(end) => return Ok((last.unwrap_or_default(), end)),
                Err(status) => status,
            };
            if !is_worth_retrying(&broken) {
                return Err(self.unseen(&broken));
            }
            let pause_ends = Instant::now() + RETRY_PAUSE;
            if pause_ends >= self.deadline {
                return match last {
                    Some(standing) => Ok((standing, End::TimedOut)),
                    None => Err(self.unseen(&broken)),
                };
            }
            tokio::time::sleep_until(pause_ends).await;
        }
    }

    /// One watch; an error when it broke before the end.
    async fn watch(
        &self,
        last: &mut Option<Standing>,
        telling: &mut Telling,
        out: &mut Out,
    ) -> Result<End, Status> {
        let mut client = self.connection.nodes();
        let request = ListNodesRequest {
            nodes: self.nodes.to_vec(),
        };
        let begun = within(self.left(), client.watch(request)).await;
        let mut stream = begun?.into_inner();
        loop {
            let Ok(next) = tokio::time::timeout_at(self.deadline, stream.message()).await else {
                return Ok(End::TimedOut);
            };
            let Some(answer) = next? else {
                return Err(Status::unavailable("the control plane ended the watch"));
            };
            let (standing, end) = wait::judge(self.wanted, &answer);
            telling.tell(&standing, out);
            *last = Some(standing);
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn unseen(&self, status: &Status) -> Failure {
        let failure = Failure::from_status(status);
        let number = self.wanted.number;
        let message = format!(
            "generation {number} is in force, but what the nodes do with it could not be seen: {}; `sluicectl nodes` \
             shows it later",
            failure.message
        );
        Failure { message, ..failure }
    }
}

/// A control plane that restarts says it is unavailable, or nothing at all.
fn is_worth_retrying(status: &Status) -> bool {
    is_unreachable(status)
        || matches!(
            status.code(),
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded
        )
}

/// What was last told of the progress, and when.
#[derive(Default)]
struct Telling {
    told: Option<(Instant, String)>,
}

impl Telling {
    fn tell(&mut self, standing: &Standing, out: &mut Out) {
        let Some(first) = standing.pending.first() else {
            return;
        };
        let now = Instant::now();
        let total = standing.active.len() + standing.pending.len() + standing.rejected.len();
        let state = render_nodes::state(first.state());
        let others = match standing.pending.len() - 1 {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        let line = format!(
            "active on {} of {total} connected nodes, waiting for {} ({state}){others}",
            standing.active.len(),
            first.name
        );
        let is_due = self
            .told
            .as_ref()
            .is_none_or(|(at, told)| *told != line && now.duration_since(*at) >= PROGRESS_PAUSE);
        if is_due {
            out.progress(&line);
            self.told = Some((now, line));
        }
    }
}
