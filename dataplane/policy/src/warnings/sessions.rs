//! Which sessions there can be: the listeners, who may come in there, and whether a who-part is about them.
//!
//! What a client chooses (its id, its address, its version) is not known, so answers are of three kinds. Owns no verdict.

use std::collections::HashMap;

use regex::Regex;

use super::{Unfinished, Work};
use crate::model::{Cidr, ClientIdBinding, WhoPart};
use crate::validate::anchored;
use crate::{Listener, Snapshot, User};

/// Client ids and addresses of one who-part that are looked at; with more, it is not certain what they leave out.
const VALUES_MAX: usize = 1_000;
/// What compiling an expression costs, in steps.
const PATTERN_STEPS: usize = 1_000;

/// Whether a who-part is about the sessions of someone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// Whatever else is true of the session, it is not.
    Never,
    /// It depends on what the client chooses.
    Perhaps,
    /// It is.
    Always,
}

/// Someone who may come in.
#[derive(Clone, Copy)]
pub(super) struct Client<'s> {
    pub(super) name: Option<&'s str>,
    groups: &'s [Box<str>],
    pub(super) client_id: Option<&'s ClientIdBinding>,
    networks: Option<&'s [Cidr]>,
}

impl<'s> Client<'s> {
    pub(super) fn of_user(user: &'s User) -> Self {
        Self {
            name: Some(&user.name),
            groups: &user.groups,
            client_id: user.client_id.as_ref(),
            networks: user.networks.as_deref(),
        }
    }

    /// The client without a user name, where a listener takes one.
    pub(super) fn anonymous(listener: &'s Listener) -> Option<Self> {
        listener.anonymous.then_some(Self {
            name: None,
            groups: listener.anonymous_group.as_slice(),
            client_id: None,
            networks: None,
        })
    }

    /// The one client id that it comes with.
    pub(super) fn only_id(&self) -> Option<&'s str> {
        match self.client_id {
            Some(ClientIdBinding::Exactly(id)) => Some(id),
            Some(ClientIdBinding::Matching(_)) | None => None,
        }
    }

    /// True exactly when it may come to the listener with the client id.
    fn may_have(&self, id: &str, listener: &Listener) -> bool {
        let (bytes_max, pattern) = (listener.client_id_bytes_max, &listener.client_id_pattern);
        id.len() <= usize::from(bytes_max)
            && pattern.as_ref().is_none_or(|pattern| pattern.is_match(id))
            && self.client_id.is_none_or(|binding| binding.allows(id))
    }

    /// False: the listener takes no client id that it may have.
    pub(super) fn has_an_id(&self, listener: &Listener) -> bool {
        self.only_id().is_none_or(|id| self.may_have(id, listener))
    }
}

/// See the file's header.
pub(super) struct Sessions<'s> {
    pub(super) snapshot: &'s Snapshot,
    /// Expressions that were needed, each compiled once.
    patterns: HashMap<&'s str, Option<Regex>>,
}

impl<'s> Sessions<'s> {
    pub(super) fn new(snapshot: &'s Snapshot) -> Self {
        Self {
            snapshot,
            patterns: HashMap::new(),
        }
    }

    /// All users who may come to some listener.
    pub(super) fn users(&self) -> impl Iterator<Item = Client<'s>> + use<'s> {
        self.snapshot.users.iter().map(Client::of_user)
    }

    /// Whether a who-part is about the sessions of a client at a listener.
    pub(super) fn fit(
        &mut self,
        part: &'s WhoPart,
        listener: &Listener,
        client: &Client<'s>,
        work: &mut Work<'_>,
    ) -> Result<Fit, Unfinished> {
        work.spend(1)?;
        let is = |condition: bool| if condition { Fit::Always } else { Fit::Never };
        let has = |list: &Option<Box<[Box<str>]>>, value: Option<&str>| {
            is(list
                .as_deref()
                .is_none_or(|list| value.is_some_and(|value| contains(list, value))))
        };
        let in_group = |list: &[Box<str>]| client.groups.iter().any(|group| contains(list, group));
        let fit = has(&part.users, client.name)
            .min(has(&part.listeners, Some(&listener.name)))
            .min(is(part.groups.as_deref().is_none_or(in_group)))
            .min(versions(part, listener))
            .min(client_ids(part, listener, client, work)?)
            .min(addresses(part, listener, client, work)?);
        if fit == Fit::Never {
            return Ok(fit);
        }
        Ok(fit
            .min(self.user_patterns(part, client, work)?)
            .min(self.client_id_patterns(part, client, work)?))
    }

    fn user_patterns(
        &mut self,
        part: &'s WhoPart,
        client: &Client<'_>,
        work: &mut Work<'_>,
    ) -> Result<Fit, Unfinished> {
        let Some(patterns) = &part.user_patterns else {
            return Ok(Fit::Always);
        };
        match client.name {
            None => Ok(Fit::Never),
            Some(name) => self.is_match(patterns, name, work),
        }
    }

    fn client_id_patterns(
        &mut self,
        part: &'s WhoPart,
        client: &Client<'_>,
        work: &mut Work<'_>,
    ) -> Result<Fit, Unfinished> {
        match (&part.client_id_patterns, client.only_id()) {
            (None, _) => Ok(Fit::Always),
            (Some(_), None) => Ok(Fit::Perhaps),
            (Some(patterns), Some(id)) => self.is_match(patterns, id, work),
        }
    }

    /// Whether a value that is known matches one of the expressions.
    pub(super) fn is_match(
        &mut self,
        patterns: &'s [Box<str>],
        value: &str,
        work: &mut Work<'_>,
    ) -> Result<Fit, Unfinished> {
        for text in patterns {
            if !self.patterns.contains_key(&**text) {
                work.spend(PATTERN_STEPS)?;
                self.patterns.insert(text, Regex::new(&anchored(text)).ok());
            }
            work.spend(1 + value.len() / 16)?;
            let regex = self.patterns.get(&**text).and_then(Option::as_ref);
            if regex.is_none_or(|regex| regex.is_match(value)) {
                // One that cannot be compiled with these bounds is not known.
                return Ok(regex.map_or(Fit::Perhaps, |_| Fit::Always));
            }
        }
        Ok(Fit::Never)
    }
}

/// True exactly when a sorted list has the value.
pub(super) fn contains(list: &[Box<str>], value: &str) -> bool {
    list.binary_search_by(|entry| (**entry).cmp(value)).is_ok()
}

fn versions(part: &WhoPart, listener: &Listener) -> Fit {
    let Some(versions) = part.versions else {
        return Fit::Always;
    };
    let shared = listener.versions.iter();
    match shared
        .filter(|version| versions.contains(**version))
        .count()
    {
        0 => Fit::Never,
        all if all == listener.versions.len() => Fit::Always,
        _ => Fit::Perhaps,
    }
}

fn client_ids(
    part: &WhoPart,
    listener: &Listener,
    client: &Client<'_>,
    work: &mut Work<'_>,
) -> Result<Fit, Unfinished> {
    let Some(ids) = &part.client_ids else {
        return Ok(Fit::Always);
    };
    if let Some(id) = client.only_id() {
        return Ok(if contains(ids, id) {
            Fit::Always
        } else {
            Fit::Never
        });
    }
    if ids.len() > VALUES_MAX {
        return Ok(Fit::Perhaps);
    }
    work.spend(ids.len())?;
    let is_possible = ids.iter().any(|id| client.may_have(id, listener));
    Ok(if is_possible {
        Fit::Perhaps
    } else {
        Fit::Never
    })
}

fn addresses(
    part: &WhoPart,
    listener: &Listener,
    client: &Client<'_>,
    work: &mut Work<'_>,
) -> Result<Fit, Unfinished> {
    let Some(blocks) = &part.addresses else {
        return Ok(Fit::Always);
    };
    if covers_all(blocks, listener) {
        return Ok(Fit::Always);
    }
    let Some(networks) = client.networks else {
        return Ok(Fit::Perhaps);
    };
    if blocks.len() > VALUES_MAX {
        return Ok(Fit::Perhaps);
    }
    work.spend(blocks.len() * networks.len())?;
    let is_in = |inner: &Cidr| blocks.iter().any(|outer| outer.covers(inner));
    if networks.iter().all(is_in) {
        return Ok(Fit::Always);
    }
    let is_apart = |network: &Cidr| {
        blocks
            .iter()
            .all(|block| !block.covers(network) && !network.covers(block))
    };
    Ok(if networks.iter().all(is_apart) {
        Fit::Never
    } else {
        Fit::Perhaps
    })
}

/// True exactly when every address is in one of the blocks: of IPv4 alone, where a listener has no other clients.
fn covers_all(blocks: &[Cidr], listener: &Listener) -> bool {
    let has_all = |is_v6: bool| {
        blocks
            .iter()
            .any(|block| block.prefix_len == 0 && block.is_v6 == is_v6)
    };
    has_all(false) && (has_all(true) || listener.address.is_ipv4())
}
