//! May a session be, and which classes is it in: asked when it begins and when it meets a new generation.
//!
//! Owns where the answer stands when its share of work is used up. What it costs depends on the length of the client id and
//! the user name, on the patterns, and on how many who-parts nearly match; none of these needs a bound for the shard's
//! sake, because any of them can be left half way.

use smallvec::SmallVec;

use crate::model::{ClientIdBinding, Pattern};
use crate::ruling::rule;
use crate::snapshot::Value;
use crate::tables::NO_RANK;
use crate::tables::expression::Walk;
use crate::tables::who::Search;
use crate::verdict::{Recognised, SESSION_CLASSES_MAX, facts, fits_variables, recognise};
use crate::{Admission, Classes, Effect, Effort, Refusal, Refused, RuleId, Snapshot, Who};

/// What the shortest answer costs: listener, user and the lists of the index are looked up.
const SESSION_NODES: u32 = 4;
/// Bytes of client id and user name that are looked up, checked and compared at the cost of one node, all in all.
const NAME_BYTES_A_NODE: usize = 64;

/// A session that is half admitted. It holds for the snapshot and the [`Who`] it was begun with.
#[derive(Debug)]
pub struct HalfAdmitted {
    step: Step,
    /// Through the client id, by the pattern of the step.
    walk: Walk,
    search: Search,
    found: Found,
}

/// What is asked next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Names,
    ListenerPattern,
    Binding,
    Classes,
}

/// What the classes found so far come to.
#[derive(Debug)]
struct Found {
    client_id: Value,
    username: Value,
    /// The connect rule with the lowest rank, and the same among shadow rules.
    connect: u32,
    connect_shadow: u32,
    /// Classes with topics, in order; one more than there may be, at most.
    ids: SmallVec<[u32; 8]>,
    /// Every variable that they use has a value that fits.
    fits: bool,
}

/// See [`Snapshot::admit_within`].
pub(crate) fn admit(
    snapshot: &Snapshot,
    who: &Who<'_>,
    effort: &mut Effort,
    half: &mut Option<Box<HalfAdmitted>>,
) -> Option<Result<Admission, Refused>> {
    let Some(begun) = half else {
        let mut begun = HalfAdmitted::begin();
        let admitted = begun.go_on(snapshot, who, effort);
        if admitted.is_none() {
            *half = Some(Box::new(begun));
        }
        return admitted;
    };
    let admitted = begun.go_on(snapshot, who, effort)?;
    *half = None;
    Some(admitted)
}

/// Everything about a session that does not depend on rules, in one go.
pub(crate) fn recognise_with_id<'s>(
    snapshot: &'s Snapshot,
    who: &Who<'_>,
) -> Result<Recognised<'s>, Refusal> {
    let recognised = recognise(snapshot, who)?;
    let mut half = HalfAdmitted::begin();
    loop {
        let mut effort = Effort::new(u32::MAX);
        match half.has_a_fitting_id(who, &recognised, &mut effort) {
            Some(true) => return Ok(recognised),
            Some(false) => return Err(Refusal::ClientIdentifier),
            None => {}
        }
    }
}

impl HalfAdmitted {
    fn begin() -> Self {
        Self {
            step: Step::Names,
            walk: Walk::default(),
            search: Search::default(),
            found: Found {
                client_id: Value::default(),
                username: Value::default(),
                connect: NO_RANK,
                connect_shadow: NO_RANK,
                ids: SmallVec::new(),
                fits: true,
            },
        }
    }

    /// Heap behind it.
    pub fn heap_bytes(&self) -> usize {
        let ids = if self.found.ids.spilled() {
            self.found.ids.capacity() * size_of::<u32>()
        } else {
            0
        };
        self.walk.heap_bytes() + self.search.heap_bytes() + ids
    }

    fn go_on(
        &mut self,
        snapshot: &Snapshot,
        who: &Who<'_>,
        effort: &mut Effort,
    ) -> Option<Result<Admission, Refused>> {
        let recognised = match recognise(snapshot, who) {
            Ok(recognised) => recognised,
            Err(refusal) => return Some(Err(refusal.into())),
        };
        if !self.has_a_fitting_id(who, &recognised, effort)? {
            return Some(Err(Refusal::ClientIdentifier.into()));
        }
        let found = &mut self.found;
        let index = snapshot.rules.index();
        index.go_on(
            &facts(who, &recognised),
            &mut self.search,
            effort,
            |class| found.add(snapshot, class),
        )?;
        Some(found.decide(snapshot))
    }

    /// True exactly when listener and user let a session have this client id.
    fn has_a_fitting_id(
        &mut self,
        who: &Who<'_>,
        recognised: &Recognised<'_>,
        effort: &mut Effort,
    ) -> Option<bool> {
        let binding = recognised.user.and_then(|user| user.client_id.as_ref());
        if self.step == Step::Names {
            let username = who.username.unwrap_or_default();
            let bytes = who.client_id.len() + username.len();
            effort.spend_for(SESSION_NODES, bytes / NAME_BYTES_A_NODE);
            self.found.client_id = Value::of(who.client_id);
            self.found.username = Value::of(username);
            if let Some(ClientIdBinding::Exactly(expected)) = binding
                && **expected != *who.client_id
            {
                return Some(false);
            }
            self.step = Step::ListenerPattern;
        }
        if self.step == Step::ListenerPattern {
            let pattern = recognised.listener.client_id_pattern.as_ref();
            if !self.is_match(pattern, who, effort)? {
                return Some(false);
            }
            self.step = Step::Binding;
        }
        if self.step == Step::Binding {
            let pattern = match binding {
                Some(ClientIdBinding::Matching(pattern)) => Some(pattern),
                Some(ClientIdBinding::Exactly(_)) | None => None,
            };
            if !self.is_match(pattern, who, effort)? {
                return Some(false);
            }
            self.step = Step::Classes;
        }
        Some(true)
    }

    fn is_match(
        &mut self,
        pattern: Option<&Pattern>,
        who: &Who<'_>,
        effort: &mut Effort,
    ) -> Option<bool> {
        let Some(pattern) = pattern else {
            return Some(true);
        };
        let expression = pattern.expression();
        let is_match = expression.go_on(who.client_id, &mut self.walk, effort)?;
        self.walk = Walk::default();
        Some(is_match)
    }
}

impl Found {
    /// A class may come more than once.
    fn add(&mut self, snapshot: &Snapshot, id: u32) {
        let Some(class) = snapshot.rules.class(id) else {
            return;
        };
        self.connect = self.connect.min(class.connect);
        self.connect_shadow = self.connect_shadow.min(class.connect_shadow);
        if !class.has_topics() {
            return;
        }
        self.fits &= fits_variables(class, self.client_id, self.username);
        if self.ids.len() <= SESSION_CLASSES_MAX
            && let Err(place) = self.ids.binary_search(&id)
        {
            self.ids.insert(place, id);
        }
    }

    fn decide(&self, snapshot: &Snapshot) -> Result<Admission, Refused> {
        if !self.fits {
            return Err(Refusal::ClientIdentifier.into());
        }
        let effect = snapshot.effect(self.connect);
        let is_first = self.connect_shadow < self.connect;
        let shadow_first = rule(self.connect_shadow).filter(|_| is_first);
        let is_otherwise = |first: &RuleId| snapshot.effect(first.0) != effect;
        let shadow = shadow_first.filter(is_otherwise);
        if effect == Effect::Deny {
            return Err(Refused {
                refusal: Refusal::NotAuthorized,
                rule: rule(self.connect),
                shadow,
                shadow_first,
            });
        }
        if self.ids.len() > SESSION_CLASSES_MAX {
            return Err(Refusal::NotAuthorized.into());
        }
        Ok(Admission {
            classes: Classes {
                ids: self.ids.as_slice().into(),
            },
            rule: rule(self.connect),
            shadow,
            shadow_first,
        })
    }
}
