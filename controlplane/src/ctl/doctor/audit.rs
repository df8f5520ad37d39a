//! The audit log read from its first record to its last, on a server or in a backup, and what else a backup has to show.

use std::path::Path;

use sluice_proto::control::v1::{Role, VerifyAuditProgress, VerifyAuditRequest};
use tonic::{Code, Status};

use super::{Finding, Report, Stage, stage};
use crate::ctl::connect::{Connection, within};
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::out::{Answer, Out};
use crate::ctl::render::{count, hex};
use crate::store::{Chain, Examined, StoreError, Verified};

/// The stages of a backup, in order.
const BACKUP_STAGES: [&str; 3] = ["file", "audit", "policy"];
const RESTORE: &str = "keep what is there for those who look into it, and restore a backup that is whole: `sluicectl doctor \
                       --backup FILE` says of one whether it is";

/// Has a server read its log, and tells how far it is.
pub(super) async fn of_server(connection: &Connection, role: Role, out: &mut Out) -> Stage {
    let may_read = [Role::Auditor, Role::Operator, Role::Admin].contains(&role);
    if !may_read {
        let advice = "a token with the role auditor can have it read";
        return stage("audit", Finding::Skipped, "not looked at", advice);
    }
    match read(connection, out).await {
        Ok(last) => judged(last.verified, last.broken_at),
        Err(status) if status.code() == Code::Unimplemented => {
            let detail = "not looked at: the control plane is older than this sluicectl";
            stage("audit", Finding::Skipped, detail, "")
        }
        Err(status) => {
            let failure = Failure::from_status(&status);
            stage("audit", Finding::Fail(failure.exit), failure.message, "")
        }
    }
}

async fn read(connection: &Connection, out: &mut Out) -> Result<VerifyAuditProgress, Status> {
    let timeout = connection.call_timeout();
    let mut client = connection.operations();
    let begun = within(timeout, client.verify_audit(VerifyAuditRequest {})).await?;
    let mut parts = begun.into_inner();
    // The deadline is for each part: a long log may take its time, a stalled server may not.
    while let Some(part) = within(timeout, parts.message()).await? {
        if part.is_done {
            return Ok(part);
        }
        tell(part.verified, part.newest, out);
    }
    Err(Status::unavailable(
        "the control plane ended before the log did",
    ))
}

fn tell(verified: u64, newest: u64, out: &mut Out) {
    out.progress(&format!("audit log: {verified} of {newest} records read"));
}

fn judged(verified: u64, broken_at: Option<u64>) -> Stage {
    match broken_at {
        None => {
            let detail = format!(
                "{}, each follows from the one before",
                count(verified, "record")
            );
            stage("audit", Finding::Ok, detail, "")
        }
        Some(number) => {
            let detail = format!(
                "the chain of records is BROKEN at record {number}: it, or one before it, was changed, taken out or put in later"
            );
            stage("audit", Finding::Fail(Exit::Refused), detail, RESTORE)
        }
    }
}

/// Looks at a backup, without a server.
pub(in crate::ctl) async fn examine_backup(file: &Path, out: &mut Out) -> Answer {
    let mut report = Report::default();
    match Examined::open(file).await {
        Ok(mut examined) => {
            report.ok("file", "a whole store: every page, table and index");
            report.0.push(of_backup(&mut examined, out).await);
            report.0.push(policy_of_backup(&mut examined).await);
        }
        Err(error) => report.0.push(failed("file", &error)),
    }
    report.into_answer(&BACKUP_STAGES)
}

async fn of_backup(examined: &mut Examined, out: &mut Out) -> Stage {
    let mut from = Verified::default();
    loop {
        let part = match examined.verify_audit(from).await {
            Ok(part) => part,
            Err(error) => return failed("audit", &error),
        };
        from = part.upto;
        match part.found {
            Chain::More => tell(from.number, part.newest, out),
            Chain::Whole => return judged(from.number, None),
            Chain::Broken => return judged(from.number, Some(from.number + 1)),
        }
    }
}

async fn policy_of_backup(examined: &mut Examined) -> Stage {
    match examined.in_force().await {
        Ok((id, heads)) => {
            let in_force = match heads.released {
                0 => "nothing is in force".to_owned(),
                number => format!("generation {number} is in force, with all its rows"),
            };
            let detail = format!(
                "store {}: {in_force}; the newest is {}",
                hex(&id.0),
                heads.newest
            );
            stage("policy", Finding::Ok, detail, "")
        }
        Err(error) => failed("policy", &error),
    }
}

fn failed(name: &'static str, error: &StoreError) -> Stage {
    let (exit, advice) = if matches!(error, StoreError::Corrupt(_)) {
        (Exit::Refused, "take another backup")
    } else {
        (Exit::Usage, "")
    };
    stage(name, Finding::Fail(exit), error.to_string(), advice)
}
