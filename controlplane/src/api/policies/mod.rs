//! The service `Policies`: each call asks the gate, reads its message, asks [`Releases`] and writes the answer.

mod answers;
mod intake;

use std::ops::RangeInclusive;

use sluice_proto::control::v1::policies_server::{Policies, PoliciesServer};
use sluice_proto::control::v1::{
    ApplyResponse, DiffResponse, DocumentPart, ExplainRequest, ExplainResponse, HistoryRequest,
    HistoryResponse, ReleaseRequest, ReleaseResponse, RollbackRequest, ValidateResponse,
};
use tonic::{Request, Response, Status, Streaming};

use crate::auth::{Caller, Gate};
use crate::clock;
use crate::domain::{Generation, Role};
use crate::fleet::Fleet;
use crate::release::{Against, Author, COMMENT_BYTES_MAX, Failed, Releases, Seat, Share};

use answers::failure;

/// Longest message of a call: a piece of a document and what is around it.
const MESSAGE_BYTES_MAX: usize = intake::PIECE_BYTES_MAX + 4096;
/// Longest list of problems in an answer, in bytes: less than what clients take as one message.
const PROBLEMS_BYTES_MAX: usize = 2 << 20;

/// The service, ready to be served.
pub fn service(gate: Gate, releases: Releases, fleet: Fleet) -> PoliciesServer<impl Policies> {
    let desk = Desk {
        gate,
        releases,
        fleet,
    };
    PoliciesServer::new(desk).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

struct Desk {
    gate: Gate,
    releases: Releases,
    fleet: Fleet,
}

impl Desk {
    #[allow(clippy::result_large_err)] // tonic's own error
    fn seat(&self, share: Share, caller: &Caller) -> Result<Seat, Status> {
        let seat = self.releases.seat(share, &caller.token);
        seat.map_err(|failed| failure(&failed))
    }
}

#[tonic::async_trait]
impl Policies for Desk {
    async fn validate(
        &self,
        request: Request<Streaming<DocumentPart>>,
    ) -> Result<Response<ValidateResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Viewer)?;
        let mut parts = request.into_inner();
        let header = intake::header(&mut parts).await?;
        let seat = self.seat(Share::Readers, &caller)?;
        let document = intake::text(&mut parts, seat, header.file).await?;
        let answer = match self.releases.validate(document).await {
            Ok(checked) => ValidateResponse {
                problems: None,
                warnings: checked.warnings,
                rows: checked.rows,
                lacking: answers::lacking(self.fleet.lacking(&checked.features)),
            },
            Err(Failed::Document(wrong)) => ValidateResponse {
                problems: Some(answers::problems(&wrong, PROBLEMS_BYTES_MAX)),
                ..ValidateResponse::default()
            },
            Err(failed) => return Err(failure(&failed)),
        };
        Ok(Response::new(answer))
    }

    async fn apply(
        &self,
        request: Request<Streaming<DocumentPart>>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Operator)?;
        let mut parts = request.into_inner();
        let header = intake::header(&mut parts).await?;
        let expected = required(header.expected_newest, "expected_newest")?;
        let seat = self.seat(Share::Writers, &caller)?;
        let author = author(caller, header.comment)?;
        let now = author.at;
        let document = intake::text(&mut parts, seat, header.file).await?;
        let applied = self.releases.apply(document, expected, author).await;
        let applied = applied.map_err(|failed| failure(&failed))?;
        Ok(Response::new(ApplyResponse {
            generation: Some(answers::generation(
                applied.generation,
                applied.in_force,
                now,
            )),
            unchanged: applied.unchanged,
            summary: Some(answers::summary(applied.summary)),
            warnings: applied.warnings,
            lacking: answers::lacking(self.fleet.lacking(&applied.features)),
        }))
    }

    async fn diff(
        &self,
        request: Request<Streaming<DocumentPart>>,
    ) -> Result<Response<DiffResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Viewer)?;
        let mut parts = request.into_inner();
        let header = intake::header(&mut parts).await?;
        let limit = within(header.limit, 1000, 1..=10_000, "limit")?;
        let seat = self.seat(Share::Readers, &caller)?;
        let to = match header.to {
            Some(to) => {
                intake::end(&mut parts).await?;
                Against::Generation(to, seat)
            }
            None => Against::Document(intake::text(&mut parts, seat, header.file).await?),
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let compared = self.releases.diff(header.from, to, limit).await;
        let compared = compared.map_err(|failed| failure(&failed))?;
        Ok(Response::new(answers::diff(
            compared.diff,
            compared.from,
            header.to,
            compared.warnings,
        )))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Operator)?;
        let request = request.into_inner();
        let expected = required(request.expected_released, "expected_released")?;
        let author = author(caller, request.comment)?;
        let released = self.releases.release(request.generation, expected, author);
        released_answer(released.await, &self.releases)
    }

    async fn rollback(
        &self,
        request: Request<RollbackRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Operator)?;
        let request = request.into_inner();
        let expected = required(request.expected_released, "expected_released")?;
        let author = author(caller, request.comment)?;
        let released = self.releases.rollback(request.generation, expected, author);
        released_answer(released.await, &self.releases)
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryResponse>, Status> {
        self.gate.caller(&request, Role::Viewer)?;
        let request = request.into_inner();
        let limit = within(request.limit, 50, 1..=1000, "limit")?;
        let history = self.releases.history(request.before, limit).await;
        let history = history.map_err(|failed| failure(&failed))?;
        let (heads, now) = (history.heads, clock::unix_now());
        let generations = history.generations.into_iter();
        Ok(Response::new(HistoryResponse {
            generations: generations
                .map(|generation| answers::generation(generation, heads.released, now))
                .collect(),
            newest: heads.newest,
            released: heads.released,
        }))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Viewer)?;
        let request = request.into_inner();
        let number = request.generation;
        let asked = intake::asked(request)?;
        let explained = self.releases.explain(number, asked, &caller.token).await;
        let explained = explained.map_err(|failed| failure(&failed))?;
        Ok(Response::new(ExplainResponse {
            generation: explained.generation,
            decision: explained.decision.into(),
            text: explained.text,
            json: explained.json,
        }))
    }
}

#[allow(clippy::result_large_err)] // tonic's own error, here and below
fn released_answer(
    released: Result<Generation, Failed>,
    releases: &Releases,
) -> Result<Response<ReleaseResponse>, Status> {
    let generation = released.map_err(|failed| failure(&failed))?;
    // It was in force when the store answered.
    let number = generation.id.number;
    let in_force = releases.in_force().borrow().clone();
    let in_force = in_force.filter(|in_force| in_force.id == generation.id);
    // What is wrong with the rows as this version reads them, then what the check of the document said.
    let mut warnings = in_force.map_or_else(Vec::new, |in_force| in_force.warnings.to_vec());
    for warning in generation.warnings.iter().flatten() {
        if !warnings.contains(warning) {
            warnings.push(warning.clone());
        }
    }
    Ok(Response::new(ReleaseResponse {
        warnings,
        generation: Some(answers::generation(generation, number, clock::unix_now())),
    }))
}

#[allow(clippy::result_large_err)]
fn author(caller: Caller, comment: Option<String>) -> Result<Author, Status> {
    let comment = comment.unwrap_or_default();
    if comment.len() > COMMENT_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "`comment` has at most {COMMENT_BYTES_MAX} bytes"
        )));
    }
    Ok(Author {
        who: caller.name,
        request_id: caller.request_id,
        peer: caller.peer,
        at: clock::unix_now(),
        comment,
        stay: Some(caller.stay),
    })
}

#[allow(clippy::result_large_err)]
fn required(value: Option<u64>, field: &str) -> Result<u64, Status> {
    value.ok_or_else(|| {
        Status::invalid_argument(format!(
            "`{field}` is required, so that nobody overwrites what they have not seen"
        ))
    })
}

#[allow(clippy::result_large_err)]
fn within(
    value: Option<u32>,
    unset: u32,
    range: RangeInclusive<u32>,
    field: &str,
) -> Result<u32, Status> {
    let value = value.unwrap_or(unset);
    if !range.contains(&value) {
        let (least, most) = range.into_inner();
        return Err(Status::invalid_argument(format!(
            "`{field}` is {least} to {most}"
        )));
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
