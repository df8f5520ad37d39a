//! The certificate that the control plane shows: when it ends, and whether a changed one is in use.

use sluice_proto::control::v1::StatusResponse;

use super::{Finding, Stage, stage};
use crate::ctl::failure::Exit;
use crate::ctl::render::time;

/// As the control plane warns in its own log.
const SOON_MS: u64 = 30 * 86_400_000;

pub(super) fn judged(status: &StatusResponse, now: u64) -> Stage {
    let Some(ends) = status.certificate_expires_unix_ms else {
        return stage("cert", Finding::Ok, "the control plane names none", "");
    };
    let detail = format!(
        "the control plane's certificate ends at {}",
        time::utc(ends)
    );
    let advice =
        "put a new pair in the place of --tls-cert and --tls-key: it is taken without a restart";
    if ends <= now {
        return stage("cert", Finding::Fail(Exit::Refused), detail, advice);
    }
    if !status.certificate_problem.is_empty() {
        let detail = format!(
            "{detail}; its files were changed and cannot be used: {}",
            status.certificate_problem
        );
        return stage(
            "cert",
            Finding::Warn,
            detail,
            "correct the files: they are read again when they change",
        );
    }
    let left = ends - now;
    if left <= SOON_MS {
        let detail = format!("{detail}, in {}", time::span(left));
        return stage("cert", Finding::Warn, detail, advice);
    }
    stage("cert", Finding::Ok, detail, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_judged_by_its_end_and_its_files() {
        const DAY: u64 = 86_400_000;
        for (ends, problem, expected) in [
            (None, "", Finding::Ok),
            (Some(131 * DAY), "", Finding::Ok),
            (Some(130 * DAY), "", Finding::Warn),
            (Some(131 * DAY), "cannot be used together", Finding::Warn),
            (Some(100 * DAY), "", Finding::Fail(Exit::Refused)),
            (
                Some(1),
                "cannot be used together",
                Finding::Fail(Exit::Refused),
            ),
        ] {
            let status = StatusResponse {
                certificate_expires_unix_ms: ends,
                certificate_problem: problem.into(),
                ..StatusResponse::default()
            };
            let found = judged(&status, 100 * DAY);
            assert_eq!(found.finding, expected, "{ends:?} {problem}");
            assert!(
                found.detail.contains(problem) || ends == Some(1),
                "{}",
                found.detail
            );
        }
    }
}
