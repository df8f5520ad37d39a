//! Errors on the way to the control plane, in one line that says what to do about them.
//!
//! Pure. The libraries say what they saw in words of their own; what that means for whoever set up this node is added here.
//! Recognised by their texts, because the errors' types are several layers down and not ours: a text that changes costs the
//! advice, nothing else, and a test notices.

use std::error::Error;

use tonic::{Code, Status};

const NO_GRPC: &str =
    "what answers there is no control plane: --control-plane names the port of its --listen";

/// How the control plane is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// In the clear.
    Plain,
    /// Encrypted; this node shows no certificate.
    Tls,
    /// Encrypted, and this node shows one.
    MutualTls,
}

impl Way {
    /// What it may mean that a connection ends before the first answer. In TLS 1.3 a client learns only after its first
    /// request that its certificate is not taken, and mostly by the end of the connection alone.
    fn cut_off(self) -> &'static str {
        match self {
            Self::Plain => {
                "who ends a connection without an answer is no control plane, or one that just stops: look at the port in --control-plane"
            }
            Self::Tls => {
                "a control plane that wants to see a certificate of this node ends the connection so: --control-plane-cert and --control-plane-key"
            }
            Self::MutualTls => {
                "a control plane that does not take the certificate in --control-plane-cert ends the connection so"
            }
        }
    }
}

/// Parts of texts, and what they mean. The first that is found counts.
const ADVICE: &[(&str, &str)] = &[
    (
        "UnknownIssuer",
        "the control plane's certificate comes from none of the authorities in --control-plane-ca",
    ),
    (
        "BadSignature",
        "the control plane's certificate comes from none of the authorities in --control-plane-ca, though one of them has the same name",
    ),
    (
        "not valid for name",
        "the control plane's certificate is for another name than --control-plane says",
    ),
    (
        "certificate expired",
        "the control plane's certificate has expired, or a clock is wrong",
    ),
    (
        "CertificateRequired",
        "the control plane wants to see a certificate of this node: --control-plane-cert and --control-plane-key",
    ),
    (
        "fatal alert",
        "the control plane does not take the certificate in --control-plane-cert",
    ),
    (
        "InvalidContentType",
        "what answers there does not speak TLS: another port, or http:// on this machine?",
    ),
    ("HTTP status code", NO_GRPC),
    ("frame with invalid size", NO_GRPC),
    ("FRAME_SIZE_ERROR", NO_GRPC),
];

/// An error that came before there was an answer, with all that caused it.
pub(super) fn of_error(error: &(dyn Error + 'static)) -> String {
    advised(chain(error.to_string(), error.source()), None)
}

/// What the control plane answered, or what the transport says in its place; `way` where nothing was answered before.
pub(super) fn of_status(status: &Status, way: Option<Way>) -> String {
    let text = format!("{:?}: {}", status.code(), status.message());
    let text = chain(text, status.source());
    if status.code() == Code::Unimplemented {
        return format!("{text} ({NO_GRPC})");
    }
    // A status with a cause was made on this side.
    let cut_off = way.filter(|_| status.source().is_some()).map(Way::cut_off);
    advised(text, cut_off)
}

fn chain(mut text: String, mut next: Option<&(dyn Error + 'static)>) -> String {
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn advised(text: String, otherwise: Option<&str>) -> String {
    let advice = ADVICE.iter().find(|(part, _)| text.contains(part));
    match advice.map(|(_, advice)| *advice).or(otherwise) {
        Some(advice) => format!("{text} ({advice})"),
        None => text,
    }
}
