//! Why a snapshot answers as it does: the rule that decided, the ones passed over, and the reason for each.
//!
//! The answer itself always comes from the tables that serve packets; only the reasons are found by walking the rules. Slow,
//! allocates, evaluates expressions: for people, never for a shard.

mod narrowed;

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;
use sluice_wire::mqtt::{QoS, Version};

use crate::admitting;
use crate::filter::{Level, TopicFilter, Variable};
use crate::model::{RuleModel, WhoPart};
use crate::rows::Mode;
use crate::snapshot::Value;
use crate::tables::NO_RANK;
use crate::validate::anchored;
use crate::verdict::{self, Recognised};
use crate::{
    Action, Decision, Denial, Effect, OnDeny, Refusal, Request, RuleId, SESSION_CLASSES_MAX,
    Snapshot, Vars, Verdict, Who, narrower,
};

pub use narrowed::Narrowed;

/// How many rules that were passed over are listed.
pub const PASSED_OVER_MAX: usize = 200;

/// What is asked about.
#[derive(Clone, Copy, Debug)]
pub enum Question<'a> {
    /// May the session open?
    Connect,
    /// May the message pass? [`Action::Publish`] or [`Action::Receive`].
    Message(Request<'a>),
    /// May the filter be subscribed to? Share group taken off.
    Subscribe {
        /// The filter.
        filter: &'a str,
        /// The QoS asked for.
        qos: QoS,
        /// True exactly when it came with a share group.
        shared: bool,
    },
}

/// An answer with its reasons; [`fmt::Display`] for people, [`Serialize`] for programs.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Number of the policy.
    pub generation: u64,
    /// Digest of its rows.
    pub digest: String,
    /// What was asked.
    pub question: String,
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// Why, in a sentence.
    pub reason: String,
    /// The rule that decided; absent when none did: the default decision, or what is asked before any rule.
    pub rule: Option<String>,
    /// How the session was received; `allow` or why not.
    pub connect: String,
    /// What is changed about an allowed message or subscription.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub obligations: Vec<String>,
    /// Of a refused subscription, filters inside it that would be granted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub narrower: Vec<String>,
    /// Of a subscription that goes on although some of it is refused: what takes it away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub narrowed: Option<Narrowed>,
    /// The shadow rule that would have decided otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<String>,
    /// Rules that did not decide, in the order in which rules are asked.
    pub passed_over: Vec<PassedOver>,
    /// How many more there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_off: usize,
}

/// A rule that did not decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// Its name.
    pub rule: String,
    /// What it says.
    pub decision: &'static str,
    /// Why it did not decide.
    pub why: String,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Snapshot {
    /// Explains what this snapshot answers.
    pub fn explain(&self, who: &Who<'_>, question: &Question<'_>) -> Explanation {
        let listener = self.listener(who.listener);
        if who.username.is_some() && listener.is_some_and(|listener| listener.ignores_usernames) {
            let nameless = Who {
                username: None,
                ..*who
            };
            let mut explanation = self.explain(&nameless, question);
            explanation.question += ", without the user name, which the listener ignores";
            return explanation;
        }
        let mut explanation = Explanation {
            generation: self.generation().0,
            digest: self.digest().into(),
            question: describe(question),
            decision: "deny",
            reason: String::new(),
            rule: None,
            connect: "allow".into(),
            obligations: Vec::new(),
            narrower: Vec::new(),
            narrowed: None,
            shadow: None,
            passed_over: Vec::new(),
            left_off: 0,
        };
        let recognised = match admitting::recognise_with_id(self, who) {
            Ok(recognised) => recognised,
            Err(refusal) => {
                explanation.connect = self.stranger(who, refusal);
                explanation.reason = format!("the session may not open: {}", explanation.connect);
                return explanation;
            }
        };
        let admission = self.admit(who);
        if let Err(refused) = &admission {
            explanation.connect = self.connect_refusal(who, &recognised, refused.refusal);
        }
        match (question, &admission) {
            (Question::Connect, Ok(admission)) => {
                explanation.decision = "allow";
                self.decided_by(&mut explanation, admission.rule);
                explanation.shadow = admission.shadow.map(|rule| self.rule_name(rule).into());
            }
            (Question::Connect, Err(refused)) if refused.refusal == Refusal::NotAuthorized => {
                let (rank, _) =
                    verdict::connect_ranks(self, &verdict::classes_of(self, who, &recognised));
                if self.effect(rank) == Effect::Deny {
                    self.decided_by(&mut explanation, (rank != NO_RANK).then_some(RuleId(rank)));
                } else {
                    explanation.reason = explanation.connect.clone();
                }
            }
            (_, Err(_)) => {
                explanation.reason = format!("the session may not open: {}", explanation.connect)
            }
            (Question::Message(request), Ok(admission)) => {
                let verdict = self.verdict(&admission.classes, &vars(who), request);
                self.judged(&mut explanation, &verdict, request.qos);
                if verdict.decision != Decision::Allow && request.action == Action::Publish {
                    explanation.obligations.push(match verdict.on_deny {
                        OnDeny::Drop => "the message is dropped, the session stays".into(),
                        OnDeny::Close => "the session is closed".into(),
                    });
                }
            }
            (
                Question::Subscribe {
                    filter,
                    qos,
                    shared,
                },
                Ok(admission),
            ) => {
                let verdict = self.subscribe(&admission.classes, &vars(who), filter, *qos, *shared);
                self.judged(&mut explanation, &verdict, *qos);
                if matches!(
                    verdict.decision,
                    Decision::Deny(Denial::NotAuthorized | Denial::TooComplex)
                ) {
                    explanation.narrower =
                        narrower::find(self, &admission.classes, &vars(who), filter, *qos);
                }
                if verdict.is_narrowed {
                    explanation.reason = match verdict.rule {
                        Some(rule) => format!(
                            "rule `{}` allows a part of it, and narrows",
                            self.rule_name(rule)
                        ),
                        None => "the default allows a part of it, and narrows".into(),
                    };
                    explanation.narrowed = Some(self.narrowed(who, &admission.classes, filter));
                }
            }
        }
        self.pass_over(&mut explanation, who, &recognised, question);
        explanation
    }

    /// Why a session is refused before any rule is asked.
    fn stranger(&self, who: &Who<'_>, refusal: Refusal) -> String {
        let Some(name) = who.username.filter(|_| refusal == Refusal::Credentials) else {
            return refusal_text(refusal).into();
        };
        if let Some(error) = self.users.locked_out().why(name) {
            return format!("the stored `password_hash` of this user cannot be used: {error}");
        }
        match self.user(name) {
            Some(_) => "the address is in none of the `networks` of this user".into(),
            None => refusal_text(refusal).into(),
        }
    }

    fn decided_by(&self, explanation: &mut Explanation, rule: Option<RuleId>) {
        explanation.rule = rule.map(|rule| self.rule_name(rule).into());
        explanation.reason = match rule {
            Some(rule) => format!(
                "rule `{}` says {}",
                self.rule_name(rule),
                effect_text(self.effect(rule.0))
            ),
            None => format!(
                "no rule matches, and the default is {}",
                effect_text(self.rules.default().effect)
            ),
        };
    }

    fn judged(&self, explanation: &mut Explanation, verdict: &Verdict, qos: QoS) {
        self.decided_by(explanation, verdict.rule);
        explanation.shadow = verdict.shadow.map(|rule| self.rule_name(rule).into());
        match verdict.decision {
            Decision::Allow => {
                explanation.decision = "allow";
                if verdict.qos_max < qos {
                    explanation
                        .obligations
                        .push(format!("QoS is lowered to {}", verdict.qos_max as u8));
                }
                if verdict.strip_retain {
                    explanation.obligations.push("RETAIN is cleared".into());
                }
            }
            Decision::Deny(denial) => {
                let but = match denial {
                    Denial::NotAuthorized => return,
                    Denial::RetainRefused => "but refuses RETAIN",
                    Denial::QosRefused => "but refuses this QoS",
                    Denial::PayloadTooLarge => "but the payload is larger than it allows",
                    Denial::TooComplex => {
                        explanation.reason =
                            "too many rules overlap to judge this within the bound".into();
                        return;
                    }
                };
                explanation.reason = format!("{}, {but}", explanation.reason);
            }
        }
    }

    fn connect_refusal(
        &self,
        who: &Who<'_>,
        recognised: &Recognised<'_>,
        refusal: Refusal,
    ) -> String {
        let ids = verdict::classes_of(self, who, recognised);
        let (client_id, username) = (
            Value::of(who.client_id),
            Value::of(who.username.unwrap_or_default()),
        );
        let classes: Vec<_> = ids.iter().filter_map(|id| self.rules.class(*id)).collect();
        if !classes
            .iter()
            .all(|class| !class.has_topics() || verdict::fits_variables(class, client_id, username))
        {
            return "a matching rule uses a variable whose value is not exactly one plain level (empty, or with `/`, `+`, \
                    `#`, NUL, or a leading `$` as the first level)"
                .into();
        }
        let (rank, _) = verdict::connect_ranks(self, &ids);
        let with_topics = classes.iter().filter(|class| class.has_topics()).count();
        if self.effect(rank) == Effect::Allow && with_topics > SESSION_CLASSES_MAX {
            return format!(
                "rules with {with_topics} different `who` parts match, at most {SESSION_CLASSES_MAX}"
            );
        }
        refusal_text(refusal).into()
    }

    /// Lists the rules asked before the one that decided, and those that would have matched after it.
    fn pass_over(
        &self,
        explanation: &mut Explanation,
        who: &Who<'_>,
        recognised: &Recognised<'_>,
        question: &Question<'_>,
    ) {
        let mut walk = Walk {
            who,
            recognised,
            question,
            patterns: HashMap::new(),
        };
        let mut is_decided = false;
        for (_, rule) in self.rules.iter() {
            if explanation.rule.as_deref() == Some(rule.name()) {
                is_decided = true;
                continue;
            }
            let why = match (walk.why_not(rule), is_decided) {
                (Some(why), false) => why,
                // Behind the rule that decided, only what else would have matched is of interest.
                (Some(_), true) => continue,
                (None, true) => "matches as well, but is asked later".into(),
                // Before it: a subscription is decided by the rules for all its topics together.
                (None, false) => "matches, but does not decide alone".into(),
            };
            if explanation.passed_over.len() == PASSED_OVER_MAX {
                explanation.left_off += 1;
                continue;
            }
            explanation.passed_over.push(PassedOver {
                rule: rule.name().to_owned(),
                decision: effect_text(rule.effect),
                why,
            });
        }
    }
}

/// Finds reasons, rule by rule.
struct Walk<'w> {
    who: &'w Who<'w>,
    recognised: &'w Recognised<'w>,
    question: &'w Question<'w>,
    /// Answers of expressions already asked, by kind and text.
    patterns: HashMap<(&'static str, Box<str>), bool>,
}

impl Walk<'_> {
    /// Why a rule does not match; `None` when it does.
    fn why_not(&mut self, rule: &RuleModel) -> Option<String> {
        if !rule.enabled {
            return Some("is disabled".into());
        }
        let (is_asked, action) = match self.question {
            Question::Connect => (rule.actions.connect, "connect"),
            Question::Message(request) => match request.action {
                Action::Publish => (rule.actions.publish, "publish"),
                Action::Receive => (rule.actions.judges_deliveries(), "receive"),
                Action::Connect | Action::Subscribe => (false, "this question"),
            },
            // A rule for `receive` alone can only take away from a subscription.
            Question::Subscribe { .. } => (
                rule.actions.subscribe || (rule.actions.receive && rule.effect == Effect::Deny),
                "subscribe",
            ),
        };
        if !is_asked {
            return Some(format!("is not about {action}"));
        }
        if let Some(kind) = self.mismatch(&rule.who) {
            return Some(format!("its `{kind}` do not match the session"));
        }
        if let Some(why) = self.topics_mismatch(rule) {
            return Some(why);
        }
        (rule.mode == Mode::Shadow).then(|| "matches, but is a shadow rule".into())
    }

    /// The first kind of a who-part that does not match.
    fn mismatch(&mut self, part: &WhoPart) -> Option<&'static str> {
        let who = self.who;
        let has = |list: &[Box<str>], value: &str| list.iter().any(|entry| **entry == *value);
        if part
            .users
            .as_deref()
            .is_some_and(|list| !who.username.is_some_and(|name| has(list, name)))
        {
            return Some("users");
        }
        if part
            .client_ids
            .as_deref()
            .is_some_and(|list| !has(list, who.client_id))
        {
            return Some("client_ids");
        }
        if part
            .groups
            .as_deref()
            .is_some_and(|list| !self.recognised.groups.iter().any(|group| has(list, group)))
        {
            return Some("groups");
        }
        if part
            .listeners
            .as_deref()
            .is_some_and(|list| !has(list, &self.recognised.listener.name))
        {
            return Some("listeners");
        }
        if part
            .versions
            .is_some_and(|versions| !versions.contains(who.version))
        {
            return Some("versions");
        }
        if part
            .addresses
            .as_deref()
            .is_some_and(|list| !list.iter().any(|block| block.contains(who.address)))
        {
            return Some("addresses");
        }
        let kinds = [
            ("user_patterns", part.user_patterns.as_deref(), who.username),
            (
                "client_id_patterns",
                part.client_id_patterns.as_deref(),
                Some(who.client_id),
            ),
        ];
        for (kind, list, value) in kinds {
            let is_missed =
                |list: &[Box<str>]| !list.iter().any(|text| self.is_match(kind, text, value));
            if list.is_some_and(is_missed) {
                return Some(kind);
            }
        }
        None
    }

    fn is_match(&mut self, kind: &'static str, text: &str, value: Option<&str>) -> bool {
        let Some(value) = value else {
            return false;
        };
        *self.patterns.entry((kind, text.into())).or_insert_with(|| {
            regex::Regex::new(&anchored(text)).is_ok_and(|regex| regex.is_match(value))
        })
    }

    fn topics_mismatch(&self, rule: &RuleModel) -> Option<String> {
        let vars = vars(self.who);
        match self.question {
            Question::Connect => None,
            Question::Message(request) => {
                let topic = Asked::topic(request.topic);
                let is_match = rule
                    .topics()
                    .any(|filter| Asked::rule(filter, &vars).contains(&topic));
                (!is_match).then(|| "none of its filters matches the topic".into())
            }
            Question::Subscribe { filter, .. } => {
                let asked = Asked::filter(filter);
                let filters: Vec<Asked<'_>> = rule
                    .topics()
                    .map(|filter| Asked::rule(filter, &vars))
                    .collect();
                if filters.iter().any(|filter| filter.contains(&asked)) {
                    return None;
                }
                if !filters.iter().any(|filter| filter.overlaps(&asked)) {
                    return Some(
                        "none of its filters has a topic in common with the filter".into(),
                    );
                }
                (rule.effect == Effect::Allow)
                    .then(|| "its filters cover only a part of the filter".into())
            }
        }
    }
}

/// A filter or topic with the session's values in it; `None` is any level.
pub(crate) struct Asked<'a> {
    levels: Vec<Option<&'a str>>,
    is_multi: bool,
}

impl<'a> Asked<'a> {
    pub(crate) fn rule(filter: TopicFilter<'a>, vars: &Vars<'a>) -> Self {
        let value = |level: Level<'a>| match level {
            Level::Any => None,
            Level::Literal(text) => Some(text),
            Level::Variable(Variable::ClientId) => Some(vars.client_id),
            Level::Variable(Variable::Username) => Some(vars.username),
        };
        Self {
            levels: filter.levels().map(value).collect(),
            is_multi: filter.is_multi(),
        }
    }

    fn topic(topic: &'a str) -> Self {
        Self {
            levels: topic.split('/').map(Some).collect(),
            is_multi: false,
        }
    }

    pub(crate) fn filter(filter: &'a str) -> Self {
        let mut levels: Vec<Option<&str>> = filter
            .split('/')
            .map(|level| (level != "+").then_some(level))
            .collect();
        let is_multi = levels.last() == Some(&Some("#"));
        if is_multi {
            levels.pop();
        }
        Self { levels, is_multi }
    }

    fn is_reserved(&self) -> bool {
        matches!(self.levels.first(), Some(Some(level)) if level.starts_with('$'))
    }

    fn begins_with_a_wildcard(&self) -> bool {
        matches!(self.levels.first(), None | Some(None))
    }

    /// The filter for what both deliver; `None`: nothing.
    pub(crate) fn meet(&self, other: &Self) -> Option<String> {
        if !self.overlaps(other) {
            return None;
        }
        let depth = self.levels.len().max(other.levels.len());
        let at = |levels: &[Option<&'a str>], index: usize| levels.get(index).copied().flatten();
        let level = |index| at(&self.levels, index).or(at(&other.levels, index));
        let levels = (0..depth).map(|index| level(index).unwrap_or("+"));
        let end = (self.is_multi && other.is_multi).then_some("#");
        Some(levels.chain(end).collect::<Vec<_>>().join("/"))
    }

    pub(crate) fn contains(&self, other: &Self) -> bool {
        let is_long_enough = other.levels.len() >= self.levels.len();
        let is_same_end =
            self.is_multi || (!other.is_multi && other.levels.len() == self.levels.len());
        let covers =
            |(mine, theirs): (&Option<&str>, &Option<&str>)| mine.is_none() || mine == theirs;
        is_long_enough
            && is_same_end
            && !(self.begins_with_a_wildcard() && other.is_reserved())
            && self.levels.iter().zip(&other.levels).all(covers)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.levels.len(), other.levels.len());
        let is_depth_shared =
            mine == theirs || (mine < theirs && self.is_multi) || (theirs < mine && other.is_multi);
        let is_apart = (self.begins_with_a_wildcard() && other.is_reserved())
            || (other.begins_with_a_wildcard() && self.is_reserved());
        is_depth_shared
            && !is_apart
            && self
                .levels
                .iter()
                .zip(&other.levels)
                .all(|(mine, theirs)| mine.is_none() || theirs.is_none() || mine == theirs)
    }
}

fn vars<'a>(who: &Who<'a>) -> Vars<'a> {
    Vars {
        client_id: who.client_id,
        username: who.username.unwrap_or_default(),
    }
}

fn effect_text(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
    }
}

fn refusal_text(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::ClientIdentifier => {
            "the client id is too long, does not match, or belongs to another user"
        }
        Refusal::Version => "the listener does not accept this protocol version",
        Refusal::Credentials => "there is no such enabled user, or anonymous access is off",
        Refusal::NotAuthorized => "a connect rule or the default decision refuses it",
        Refusal::ListenerGone => "there is no such listener",
    }
}

fn describe(question: &Question<'_>) -> String {
    match question {
        Question::Connect => "connect".into(),
        Question::Message(request) => {
            let action = match request.action {
                Action::Publish => "publish to",
                Action::Receive => "receive",
                Action::Connect | Action::Subscribe => "ask about",
            };
            let retain = if request.retain { ", retained" } else { "" };
            format!(
                "{action} `{}` at QoS {}, {} bytes{retain}",
                request.topic, request.qos as u8, request.payload_bytes
            )
        }
        Question::Subscribe {
            filter,
            qos,
            shared,
        } => {
            let shared = if *shared { ", shared" } else { "" };
            format!("subscribe to `{filter}` at QoS {}{shared}", *qos as u8)
        }
    }
}

/// The name of a version as documents write it.
pub fn version_name(version: Version) -> &'static str {
    match version {
        Version::V31 => "3.1",
        Version::V311 => "3.1.1",
        Version::V5 => "5",
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.question, self.decision)?;
        writeln!(f, "  because {}", self.reason)?;
        for obligation in &self.obligations {
            writeln!(f, "  {obligation}")?;
        }
        if !self.narrower.is_empty() {
            let filters: Vec<String> = self.narrower.iter().map(|one| format!("`{one}`")).collect();
            writeln!(
                f,
                "  narrower filters that would pass: {}",
                filters.join(", ")
            )?;
        }
        if let Some(narrowed) = &self.narrowed {
            writeln!(f, "  {narrowed}")?;
        }
        if let Some(shadow) = &self.shadow {
            writeln!(f, "  shadow rule `{shadow}` would have decided otherwise")?;
        }
        if !self.passed_over.is_empty() {
            writeln!(f, "  passed over:")?;
        }
        for passed in &self.passed_over {
            writeln!(
                f,
                "    {} ({}): {}",
                passed.rule, passed.decision, passed.why
            )?;
        }
        if self.left_off > 0 {
            writeln!(f, "    and {} more", self.left_off)?;
        }
        write!(
            f,
            "  policy generation {}, digest {}",
            self.generation, self.digest
        )
    }
}
