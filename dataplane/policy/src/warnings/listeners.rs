//! Listeners at which no client can come in, and policies with none at all.

use super::sessions::{Client, Fit, Sessions};
use super::{Few, Unfinished, Work};
use crate::model::WhoPart;
use crate::snapshot::{Class, Value};
use crate::tables::NO_RANK;
use crate::wording::shown;
use crate::{Effect, Listener};

/// What was found.
pub(super) struct Admitted {
    pub(super) warnings: Vec<String>,
    /// False: there is no listener, or no one who could come in, so that nothing is to be said of rules.
    pub(super) has_clients: bool,
}

/// Looks for someone at each listener who may come in.
pub(super) fn review(sessions: &mut Sessions<'_>, work: &mut Work<'_>) -> Admitted {
    let listeners = sessions.snapshot.listeners();
    if listeners.is_empty() {
        return Admitted {
            warnings: vec!["no client can connect: there is no listener".into()],
            has_clients: false,
        };
    }
    let mut asked = Asked::new(sessions);
    let (mut closed, mut is_unfinished) = (Few::default(), false);
    for listener in listeners {
        match asked.why_closed(listener, work) {
            Ok(None) => {}
            Ok(Some(why)) => closed.add(&listener.name, || format!("({why})")),
            Err(Unfinished) => is_unfinished = true,
        }
    }
    let mut warnings = Vec::new();
    if closed.count == listeners.len() {
        warnings.push(format!("no client can connect: {}", closed.text()));
    } else if closed.count > 0 {
        warnings.push(format!(
            "no client can connect at {} of {} listeners: {}",
            closed.count,
            listeners.len(),
            closed.text()
        ));
    }
    if is_unfinished {
        warnings.push(
            "the document is too large to find out for each listener whether a client can connect there"
                .into(),
        );
    }
    let snapshot = asked.sessions.snapshot;
    let has_users = snapshot.users.len() > 0 && listeners.iter().any(|l| !l.ignores_usernames);
    Admitted {
        warnings,
        has_clients: has_users || listeners.iter().any(|listener| listener.anonymous),
    }
}

/// The classes that decide whether a session may open.
struct Asked<'a, 's> {
    sessions: &'a mut Sessions<'s>,
    /// By the rank of the first connect rule.
    connects: Vec<(u32, &'s WhoPart)>,
    /// Those whose filters use a variable.
    with_variables: Vec<(&'s Class, &'s WhoPart)>,
}

/// Why a client cannot come in.
enum Why {
    /// The listener takes no client id that it may have.
    ClientId,
    /// A variable has no value that can stand in a topic.
    Variable(&'static str),
    /// The connect rule of that rank; [`NO_RANK`]: the default.
    Rule(u32),
}

impl<'a, 's> Asked<'a, 's> {
    fn new(sessions: &'a mut Sessions<'s>) -> Self {
        let rules = &sessions.snapshot.rules;
        let (mut connects, mut with_variables) = (Vec::new(), Vec::new());
        let classes = (0..rules.index().len()).filter_map(|number| u32::try_from(number).ok());
        for number in classes {
            let (Some(class), Some(part)) = (rules.class(number), rules.index().part(number))
            else {
                continue;
            };
            if class.connect != NO_RANK {
                connects.push((class.connect, &**part));
            }
            if class.client_id.anywhere + class.username.anywhere > 0 {
                with_variables.push((class, &**part));
            }
        }
        connects.sort_unstable_by_key(|(rank, _)| *rank);
        Self {
            sessions,
            connects,
            with_variables,
        }
    }

    /// `None`: someone may come in, as far as can be known.
    fn why_closed(
        &mut self,
        listener: &'s Listener,
        work: &mut Work<'_>,
    ) -> Result<Option<String>, Unfinished> {
        let anonymous = Client::anonymous(listener);
        let users = self
            .sessions
            .users()
            .filter(|_| !listener.ignores_usernames);
        let mut first: Option<(Client<'_>, Why)> = None;
        for client in anonymous.into_iter().chain(users) {
            let Some(why) = self.why_not(listener, &client, work)? else {
                return Ok(None);
            };
            // The same one is named however the users are kept.
            if first
                .as_ref()
                .is_none_or(|(other, _)| client.name < other.name)
            {
                first = Some((client, why));
            }
        }
        Ok(Some(match first {
            Some((client, why)) => self.words(&client, &why),
            None if listener.ignores_usernames => "`anonymous` is off".into(),
            None => "there is no enabled user, and `anonymous` is off".into(),
        }))
    }

    /// Why a client certainly cannot come in; `None`: it may.
    fn why_not(
        &mut self,
        listener: &'s Listener,
        client: &Client<'s>,
        work: &mut Work<'_>,
    ) -> Result<Option<Why>, Unfinished> {
        if !client.has_an_id(listener) {
            return Ok(Some(Why::ClientId));
        }
        for (class, part) in &self.with_variables {
            let username = !class
                .username
                .fits(Value::of(client.name.unwrap_or_default()));
            let client_id = client
                .only_id()
                .is_some_and(|id| !class.client_id.fits(Value::of(id)));
            let variable = match (username, client_id) {
                (true, _) => "${username}",
                (false, true) => "${client_id}",
                (false, false) => continue,
            };
            if self.sessions.fit(part, listener, client, work)? == Fit::Always {
                return Ok(Some(Why::Variable(variable)));
            }
        }
        let mut decided_by = NO_RANK;
        for (rank, part) in &self.connects {
            let fit = self.sessions.fit(part, listener, client, work)?;
            match (fit, self.sessions.snapshot.effect(*rank)) {
                (Fit::Never, _) | (Fit::Perhaps, Effect::Deny) => {}
                (Fit::Perhaps | Fit::Always, Effect::Allow) => return Ok(None),
                (Fit::Always, Effect::Deny) => {
                    decided_by = *rank;
                    break;
                }
            }
        }
        let is_refused = self.sessions.snapshot.effect(decided_by) == Effect::Deny;
        Ok(is_refused.then_some(Why::Rule(decided_by)))
    }

    fn words(&self, client: &Client<'_>, why: &Why) -> String {
        let snapshot = self.sessions.snapshot;
        let who = client.name.map_or_else(
            || "clients without a user name".into(),
            |name| format!("user `{}`", shown(name)),
        );
        let allows = |(rank, _): &(u32, &WhoPart)| snapshot.effect(*rank) == Effect::Allow;
        match why {
            Why::Rule(NO_RANK) if !self.connects.iter().any(allows) => {
                "no rule allows `connect`, and the default is `deny`".into()
            }
            Why::Rule(NO_RANK) => {
                format!("for {who}, no rule allows `connect`, and the default is `deny`")
            }
            Why::Rule(rank) => {
                let rule = snapshot.rules.rule(*rank);
                let rule = shown(rule.map_or("", |rule| rule.name()));
                format!("for {who}, rule `{rule}` denies `connect`")
            }
            Why::Variable(variable) => format!(
                "for {who}, rules that match use `{variable}`, whose value cannot stand in a topic: it is empty, or not one \
                 plain level; give those rules a `who`"
            ),
            Why::ClientId => format!("the `client_id` of {who} is none that the listener takes"),
        }
    }
}
