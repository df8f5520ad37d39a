//! What callers send: documents in parts, under deadlines, and questions with their fields checked.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use sluice_policy::Action;
use sluice_proto::control::v1::{
    DocumentHeader, DocumentPart, ExplainRequest, document_part::Part,
};
use sluice_wire::mqtt::{QoS, Version};
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::answers::failure;
use crate::release::{Asked, Document, Draft, Seat};

/// Longest piece of a document, in bytes.
pub(super) const PIECE_BYTES_MAX: usize = 1 << 20;
/// How long the next part of a document may take.
pub(super) const PART_WITHIN: Duration = Duration::from_secs(30);
/// How long a whole document may take: 256 MiB at half a MiB in a second, and a bit.
pub(super) const DOCUMENT_WITHIN: Duration = Duration::from_secs(600);
/// Longest name, id or topic in a question, in bytes: what MQTT can carry.
const TEXT_BYTES_MAX: usize = 65_535;

/// The header, which comes first.
pub(super) async fn header(
    parts: &mut (impl Stream<Item = Result<DocumentPart, Status>> + Unpin),
) -> Result<DocumentHeader, Status> {
    match next(parts).await? {
        Some(Part::Header(header)) => Ok(header),
        Some(Part::Text(_)) | None => Err(Status::invalid_argument(
            "a document begins with its header",
        )),
    }
}

/// The text, which follows.
pub(super) async fn text(
    parts: &mut (impl Stream<Item = Result<DocumentPart, Status>> + Unpin),
    seat: Seat,
    file: Option<String>,
) -> Result<Document, Status> {
    let mut draft = Draft::new(seat, file).map_err(|failed| failure(&failed))?;
    let whole = async {
        while let Some(part) = next(parts).await? {
            let Part::Text(piece) = part else {
                return Err(Status::invalid_argument("a document has one header"));
            };
            if piece.len() > PIECE_BYTES_MAX {
                return Err(Status::resource_exhausted(format!(
                    "a piece of a document has at most {PIECE_BYTES_MAX} bytes"
                )));
            }
            draft.push(&piece).map_err(|failed| failure(&failed))?;
        }
        draft.finish().map_err(|failed| failure(&failed))
    };
    let late = |_| {
        Status::deadline_exceeded(format!(
            "the document was not whole within {} s",
            DOCUMENT_WITHIN.as_secs()
        ))
    };
    timeout(DOCUMENT_WITHIN, whole).await.map_err(late)?
}

/// Nothing more, for a call whose header said it all.
pub(super) async fn end(
    parts: &mut (impl Stream<Item = Result<DocumentPart, Status>> + Unpin),
) -> Result<(), Status> {
    match next(parts).await? {
        None => Ok(()),
        Some(_) => Err(Status::invalid_argument(
            "`to` names a generation, so no document may follow",
        )),
    }
}

async fn next(
    parts: &mut (impl Stream<Item = Result<DocumentPart, Status>> + Unpin),
) -> Result<Option<Part>, Status> {
    let late = |_| {
        Status::deadline_exceeded(format!(
            "the next part of the document did not come within {} s",
            PART_WITHIN.as_secs()
        ))
    };
    let Some(part) = timeout(PART_WITHIN, parts.next()).await.map_err(late)? else {
        return Ok(None);
    };
    let part = part?.part;
    part.map_or_else(
        || Err(Status::invalid_argument("a part is a header or text")),
        |part| Ok(Some(part)),
    )
}

/// What is asked, if it makes sense as far as can be said without the policy.
pub(super) fn asked(request: ExplainRequest) -> Result<Asked, Status> {
    let texts = [
        Some(&request.client_id),
        request.username.as_ref(),
        request.listener.as_ref(),
        request.topic.as_ref(),
    ];
    if texts
        .iter()
        .flatten()
        .any(|text| text.len() > TEXT_BYTES_MAX)
    {
        return Err(Status::invalid_argument(format!(
            "names, client ids and topics have at most {TEXT_BYTES_MAX} bytes"
        )));
    }
    let action = action(&request.action)?;
    if request.topic.is_none() && action != Action::Connect {
        return Err(Status::invalid_argument(
            "`topic` is required unless the action is `connect`",
        ));
    }
    Ok(Asked {
        listener: request.listener,
        address: address(request.address.as_deref())?,
        version: version(request.version.as_deref())?,
        client_id: request.client_id,
        username: request.username,
        action,
        topic: request.topic.unwrap_or_default(),
        qos: qos(request.qos)?,
        retain: request.retain,
        payload_bytes: request.payload_bytes,
    })
}

fn action(word: &str) -> Result<Action, Status> {
    match word {
        "connect" => Ok(Action::Connect),
        "publish" => Ok(Action::Publish),
        "subscribe" => Ok(Action::Subscribe),
        "receive" => Ok(Action::Receive),
        _ => Err(Status::invalid_argument(
            "`action` is required: `connect`, `publish`, `subscribe` or `receive`",
        )),
    }
}

fn address(text: Option<&str>) -> Result<IpAddr, Status> {
    text.map_or(Ok(Ipv4Addr::LOCALHOST.into()), |text| {
        text.parse()
            .map_err(|_| Status::invalid_argument("`address` is no IP address"))
    })
}

fn version(text: Option<&str>) -> Result<Version, Status> {
    match text {
        None | Some("5") => Ok(Version::V5),
        Some("3.1.1") => Ok(Version::V311),
        Some("3.1") => Ok(Version::V31),
        Some(_) => Err(Status::invalid_argument(
            "`version` is `3.1`, `3.1.1` or `5`",
        )),
    }
}

fn qos(number: u32) -> Result<QoS, Status> {
    match number {
        0 => Ok(QoS::AtMostOnce),
        1 => Ok(QoS::AtLeastOnce),
        2 => Ok(QoS::ExactlyOnce),
        _ => Err(Status::invalid_argument("`qos` is 0, 1 or 2")),
    }
}
