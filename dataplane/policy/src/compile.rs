//! Model to [`Snapshot`]: the one way a policy comes into being.
//!
//! Pure and slow; runs off the shards. Either everything compiles or nothing does: a refused document leaves the previous
//! snapshot as it is.

use std::sync::Arc;

use sluice_wire::mqtt::QoS;

use crate::model::{ListenerModel, Model, UpstreamModel};
use crate::problem::{Errors, Position, Problems};
use crate::rows::{QosOver, Retain, Rows};
use crate::rulebook::Rulebook;
use crate::snapshot::{Frame, Numbers, Outcome};
use crate::users::Users;
use crate::validate::{self, Source};
use crate::{
    Balance, Cancel, Effect, Generation, Listener, ListenerId, Snapshot, Upstream, UpstreamId,
    crowd, digest, document,
};

/// Compiles a YAML document. `file` is only for the messages; `previous` is the snapshot in use, whose numbers of
/// listeners and upstreams are kept.
pub fn compile(
    document: &str,
    file: &str,
    generation: Generation,
    previous: Option<&Snapshot>,
) -> Result<Snapshot, Errors> {
    compile_document(document, file, generation, previous, Problems::default())
}

/// The same; an error as well when the flag is set before it is done.
pub fn compile_until(
    document: &str,
    file: &str,
    generation: Generation,
    previous: Option<&Snapshot>,
    cancel: &Cancel,
) -> Result<Snapshot, Errors> {
    compile_document(
        document,
        file,
        generation,
        previous,
        Problems::until(cancel),
    )
}

fn compile_document(
    document: &str,
    file: &str,
    generation: Generation,
    previous: Option<&Snapshot>,
    mut problems: Problems,
) -> Result<Snapshot, Errors> {
    let rows = document::read(document, &mut problems);
    compile_noted(rows, Source::Document, file, generation, previous, problems)
}

/// Compiles rows of a document.
pub fn compile_rows(
    rows: Rows,
    file: &str,
    generation: Generation,
    previous: Option<&Snapshot>,
) -> Result<Snapshot, Errors> {
    let problems = Problems::default();
    compile_noted(rows, Source::Document, file, generation, previous, problems)
}

/// The same; an error as well when the flag is set before it is done.
pub fn compile_rows_until(
    rows: Rows,
    file: &str,
    generation: Generation,
    previous: Option<&Snapshot>,
    cancel: &Cancel,
) -> Result<Snapshot, Errors> {
    let problems = Problems::until(cancel);
    compile_noted(rows, Source::Document, file, generation, previous, problems)
}

/// Compiles rows that were stored.
pub(crate) fn compile_stored(
    rows: Rows,
    generation: Generation,
    previous: Option<&Snapshot>,
) -> Result<Snapshot, Errors> {
    let problems = Problems::default();
    compile_noted(rows, Source::Stored, "", generation, previous, problems)
}

pub(crate) fn compile_noted(
    rows: Rows,
    source: Source,
    file: &str,
    generation: Generation,
    previous: Option<&Snapshot>,
    mut problems: Problems,
) -> Result<Snapshot, Errors> {
    // Checked even when reading found problems, so that one run reports everything.
    let model = validate::check(rows, source, &mut problems);
    let cancel = problems.cancel().cloned();
    let model = problems.finish(file, model)?;
    let mut problems = cancel.map_or_else(Problems::default, |cancel| Problems::until(&cancel));
    match build(model, generation, previous, &mut problems) {
        Some(snapshot) => problems.finish(file, snapshot),
        None => Err(problems.into_errors(file)),
    }
}

fn build(
    model: Model,
    generation: Generation,
    previous: Option<&Snapshot>,
    problems: &mut Problems,
) -> Option<Snapshot> {
    let digest = digest::digest(&model, problems)?;
    assemble(model, generation, digest, previous, problems)
}

/// A snapshot of a model whose digest is known.
pub(crate) fn assemble(
    model: Model,
    generation: Generation,
    digest: Box<str>,
    previous: Option<&Snapshot>,
    problems: &mut Problems,
) -> Option<Snapshot> {
    let upstream_numbers = number(
        model.upstreams.iter().map(|row| &row.name),
        previous.map(|snapshot| &snapshot.frame.upstream_numbers),
        problems,
    );
    let listener_numbers = number(
        model.listeners.iter().map(|row| &row.name),
        previous.map(|snapshot| &snapshot.frame.listener_numbers),
        problems,
    );
    let needs_client_id = model
        .listeners
        .iter()
        .map(|row| needs_client_id(&model.upstreams, row))
        .collect();
    let default = Outcome {
        payload_bytes_max: u32::MAX,
        effect: model.default,
        qos_max: QoS::ExactlyOnce,
        qos_over: QosOver::Downgrade,
        retain: Retain::Allow,
        on_deny: model.on_deny,
        is_shadow: false,
        narrows: model.narrow && model.default == Effect::Allow,
    };
    let known = previous.map(|snapshot| &snapshot.rules);
    let rules = Rulebook::new(model.rules, default, known, problems.cancel())
        .map_err(|message| problems.add(Position::default(), message))
        .ok()?;
    let frame = Frame {
        listeners: model
            .listeners
            .into_iter()
            .map(|row| listener(row, &listener_numbers, &upstream_numbers))
            .collect(),
        upstreams: model
            .upstreams
            .into_iter()
            .map(|row| upstream(row, &upstream_numbers))
            .collect(),
        listener_numbers,
        upstream_numbers,
        needs_client_id,
    };
    let users = model.users.into_iter();
    let users = Users::new(users.take_while(|_| !problems.is_cancelled()));
    let crowd = crowd::count(&rules, &users, &frame.listeners, problems.cancel());
    for message in crowd.problems {
        problems.add(Position::default(), message);
    }
    Some(Snapshot {
        generation,
        digest,
        frame: Arc::new(frame),
        users,
        rules,
        crowd_max: crowd.max,
        origin: None,
    })
}

/// Gives every name its number: the one it had, else one that nothing had.
fn number<'a>(
    names: impl Iterator<Item = &'a Box<str>>,
    previous: Option<&Numbers>,
    problems: &mut Problems,
) -> Numbers {
    let mut numbers = Numbers {
        by_name: previous
            .map(|numbers| numbers.by_name.clone())
            .unwrap_or_default(),
        places: Vec::new(),
    };
    for (place, name) in names.enumerate() {
        let number = match numbers.by_name.get(name) {
            Some(number) => *number,
            None => {
                let Ok(next) = u16::try_from(numbers.by_name.len()) else {
                    problems.add(
                        Position::default(),
                        "more than 65,536 different names of listeners or upstreams since the process started; restart it",
                    );
                    return numbers;
                };
                numbers.by_name.insert(name.clone(), next);
                next
            }
        };
        let slot = usize::from(number);
        if numbers.places.len() <= slot {
            numbers.places.resize(slot + 1, None);
        }
        if let Some(found) = numbers.places.get_mut(slot) {
            *found = u16::try_from(place).ok();
        }
    }
    numbers
}

fn listener(row: ListenerModel, listeners: &Numbers, upstreams: &Numbers) -> Listener {
    Listener {
        id: ListenerId(number_of(listeners, &row.name)),
        name: row.name,
        address: row.address,
        upstream: UpstreamId(number_of(upstreams, &row.upstream)),
        versions: row.versions.iter().collect(),
        anonymous: row.anonymous_group.is_some(),
        anonymous_group: row.anonymous_group,
        client_id_pattern: row.client_id_pattern,
        client_id_bytes_max: row.client_id_bytes_max,
        upstream_auth_pass: row.upstream_auth_pass,
        drain_publishes_wills: row.drain_publishes_wills,
        ignores_usernames: row.ignores_usernames,
        reason_strings: row.reason_strings,
        limits: row.limits,
    }
}

fn upstream(row: UpstreamModel, numbers: &Numbers) -> Upstream {
    Upstream {
        id: UpstreamId(number_of(numbers, &row.name)),
        name: row.name,
        endpoints: row.endpoints.into(),
        balance: row.balance,
        dial_timeout: row.dial_timeout,
        dial_attempts_max: row.dial_attempts_max,
        dial_backoff: row.dial_backoff,
        breaker_failures: row.breaker_failures,
        breaker_open: row.breaker_open,
        health_interval: row.health_interval,
        tcp_keep_alive: row.tcp_keep_alive,
        connack_timeout: row.connack_timeout,
    }
}

/// Every name was numbered, and every reference checked, before this is asked.
fn number_of(numbers: &Numbers, name: &str) -> u16 {
    numbers.by_name.get(name).copied().unwrap_or(u16::MAX)
}

/// True exactly when a listener needs the client id of a session, whatever users and rules ask for.
fn needs_client_id(upstreams: &[UpstreamModel], listener: &ListenerModel) -> bool {
    let is_balanced_by_it = upstreams.iter().any(|upstream| {
        upstream.name == listener.upstream
            && upstream.balance == Balance::ClientId
            && upstream.endpoints.len() > 1
    });
    is_balanced_by_it || listener.client_id_pattern.is_some()
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    #[test]
    fn unchanged_classes_share_their_tables_with_the_previous_snapshot() {
        let document = |users: &str, deny: &str| {
            format!(
                "groups: [{{name: g}}]\nusers: [{users}]\nrules:\n\
                 - {{name: one, order: 1, actions: [publish], topics: [a], decision: allow}}\n\
                 - {{name: two, order: 2, who: {{groups: [g]}}, actions: [publish], topics: [{deny}], decision: deny}}\n"
            )
        };
        let compiled = |text: &str, previous: Option<&Snapshot>| {
            compile(text, "p.yaml", Generation(1), previous)
                .unwrap_or_else(|errors| panic!("{errors}"))
        };
        let user = "{name: u, password_hash: $7$1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==}";
        let first = compiled(&document("", "b"), None);
        let more_users = compiled(&document(user, "b"), Some(&first));
        let other_rule = compiled(&document(user, "c"), Some(&more_users));
        let is_shared = |left: &Snapshot, right: &Snapshot| {
            [0, 1].map(|class| {
                let tables = [left, right].map(|snapshot| snapshot.rules.table(class));
                matches!(tables, [Some(left), Some(right)] if ptr::eq(left, right))
            })
        };
        assert_eq!(is_shared(&first, &more_users), [true, true]);
        assert_eq!(is_shared(&more_users, &other_rule), [true, false]);
    }
}
