//! Model to [`Snapshot`]: the one way a policy comes into being.
//!
//! Pure and slow; runs off the shards. Either everything compiles or nothing does: a refused document leaves the previous
//! snapshot as it is.

use std::collections::HashMap;

use sluice_wire::mqtt::QoS;

use crate::model::{ListenerModel, Model, RuleModel, UpstreamModel, UserModel};
use crate::password::{Kind, Verifier};
use crate::problem::{Errors, Position, Problems};
use crate::rows::{Mode, QosOver, Retain, Rows};
use crate::snapshot::{Numbers, Outcome};
use crate::{
    Balance, Generation, Listener, ListenerId, Snapshot, Upstream, UpstreamId, User, Variable,
    classes, digest, document, validate,
};

/// Compiles a YAML document. `file` is only for the messages; `previous` is the snapshot in use, whose numbers of
/// listeners and upstreams are kept.
pub fn compile(
    document: &str,
    file: &str,
    generation: Generation,
    previous: Option<&Snapshot>,
) -> Result<Snapshot, Errors> {
    let mut problems = Problems::default();
    let rows = document::read(document, &mut problems);
    compile_noted(rows, file, generation, previous, problems)
}

/// Compiles rows, wherever they come from.
pub fn compile_rows(
    rows: Rows,
    file: &str,
    generation: Generation,
    previous: Option<&Snapshot>,
) -> Result<Snapshot, Errors> {
    compile_noted(rows, file, generation, previous, Problems::default())
}

fn compile_noted(
    rows: Rows,
    file: &str,
    generation: Generation,
    previous: Option<&Snapshot>,
    mut problems: Problems,
) -> Result<Snapshot, Errors> {
    // Checked even when reading found problems, so that one run reports everything.
    let model = validate::check(rows, &mut problems);
    let model = problems.finish(file, model)?;
    let mut problems = Problems::default();
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
    let digest = digest::digest(&model);
    let upstream_numbers = number(
        model.upstreams.iter().map(|row| &row.name),
        previous.map(|snapshot| &snapshot.upstream_numbers),
        problems,
    );
    let listener_numbers = number(
        model.listeners.iter().map(|row| &row.name),
        previous.map(|snapshot| &snapshot.listener_numbers),
        problems,
    );
    let needs_client_id = model
        .listeners
        .iter()
        .map(|row| needs_client_id(&model, row))
        .collect();
    let dummy_verifier = dummy_verifier(&model.users);
    let classes = classes::build(&model, previous, problems)?;
    let default = Outcome {
        payload_bytes_max: u32::MAX,
        effect: model.default,
        qos_max: QoS::ExactlyOnce,
        qos_over: QosOver::Downgrade,
        retain: Retain::Allow,
        on_deny: model.on_deny,
        is_shadow: false,
    };
    Some(Snapshot {
        generation,
        digest,
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
        users: model
            .users
            .into_iter()
            .filter(|row| row.enabled)
            .map(|row| (row.name.clone(), user(row)))
            .collect(),
        dummy_verifier,
        outcomes: model.rules.iter().map(outcome).collect(),
        rules: model.rules.into(),
        needs_client_id,
        index: classes.index,
        has_shadow: classes.tables.iter().any(|table| table.shadow.is_some()),
        classes: classes.classes,
        tables: classes.tables,
        default,
    })
}

fn outcome(rule: &RuleModel) -> Outcome {
    Outcome {
        payload_bytes_max: rule.payload_bytes_max.unwrap_or(u32::MAX),
        effect: rule.effect,
        qos_max: rule.qos_max,
        qos_over: rule.qos_over,
        retain: rule.retain,
        on_deny: rule.on_deny,
        is_shadow: rule.mode == Mode::Shadow,
    }
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
    }
}

fn user(row: UserModel) -> User {
    User {
        name: row.name,
        verifier: row.verifier,
        groups: row.groups.into(),
        client_id: row.client_id,
    }
}

/// Every name was numbered, and every reference checked, before this is asked.
fn number_of(numbers: &Numbers, name: &str) -> u16 {
    numbers.by_name.get(name).copied().unwrap_or(u16::MAX)
}

/// What most enabled users cost; among equals, what costs most.
fn dummy_verifier(users: &[UserModel]) -> Verifier {
    let mut counts: HashMap<Kind, usize> = HashMap::new();
    for user in users.iter().filter(|user| user.enabled) {
        *counts.entry(user.verifier.kind()).or_default() += 1;
    }
    let most = counts
        .into_iter()
        .max_by_key(|(kind, count)| (*count, *kind));
    most.map_or_else(Verifier::dummy, |(kind, _)| Verifier::dummy_of(kind))
}

/// True exactly when something about a session of this listener depends on its client id.
fn needs_client_id(model: &Model, listener: &ListenerModel) -> bool {
    let is_balanced_by_it = model.upstreams.iter().any(|upstream| {
        upstream.name == listener.upstream
            && upstream.balance == Balance::ClientId
            && upstream.endpoints.len() > 1
    });
    let is_asked_by_a_rule = || {
        model.rules.iter().any(|rule| {
            let who = &rule.who;
            rule.enabled
                && who
                    .listeners
                    .as_ref()
                    .is_none_or(|listeners| listeners.contains(&listener.name))
                && (who.client_ids.is_some()
                    || who.client_id_patterns.is_some()
                    || rule
                        .topics
                        .iter()
                        .any(|topic| topic.uses(Variable::ClientId)))
        })
    };
    is_balanced_by_it
        || listener.client_id_pattern.is_some()
        || model
            .users
            .iter()
            .any(|user| user.enabled && user.client_id.is_some())
        || is_asked_by_a_rule()
}
