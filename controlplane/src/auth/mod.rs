//! Who calls, and whether they may: operators by token and role, nodes by their own secret.
//!
//! The only place that compares secrets and that decides whether a secret may travel over this connection. Knows nothing
//! of what is called. Tokens and nodes' secrets are held in memory and changed together with the store, so that one that
//! was revoked is refused at the next call, and its open streams end.
//!
//! # Invariants
//!
//! - A secret that came over plaintext from beyond loopback is refused before it is looked at.
//! - A token or node that the store has revoked or removed does not work in memory either, also when the caller who asked
//!   for it went away in the middle: store and memory change in a task of their own, one change at a time.
//! - An unknown id costs the same work as a wrong secret.

mod credential;
mod first;
mod peer;
mod refusal;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use foldhash::HashMap;
use tokio::sync::{Mutex, watch};
use tonic::{Request, Status};

use crate::clock;
use crate::domain::{
    AuditEntry, JoinToken, Name, NodeRecord, Role, Secret, SecretHash, Token, TokenId, UnixMillis,
};
use crate::store::{Enrolled, Store, StoreError};

use credential::{Authorization, authorization};
pub(crate) use refusal::JOIN_TOKEN_REFUSED;
use refusal::{Refusal, Refusals, of_joining};

pub use credential::{Kind, random, read, read_node, written};
pub use first::{admin_token, first_token};
pub use peer::{Call, Peer, Stay, may_carry_secrets};

/// Tokens that work, at most: each is a person or a program, and they are held in memory.
const TOKENS_MAX: usize = 1000;

/// Someone who proved who they are.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Name of the token; who, in audit.
    pub name: String,
    /// Which token it is.
    pub token: TokenId,
    /// What they may do.
    pub role: Role,
    /// Of the call.
    pub request_id: String,
    /// Address and port of the caller's end of the connection.
    pub peer: String,
    /// True exactly when the connection is encrypted.
    pub is_tls: bool,
    /// How long they are welcome.
    pub stay: Stay,
}

impl Caller {
    /// What is to be recorded of something this caller does.
    pub fn audit(&self, action: &'static str, what: impl Into<String>) -> AuditEntry {
        AuditEntry {
            at: clock::unix_now(),
            who: self.name.clone(),
            action,
            what: what.into(),
            before: String::new(),
            after: String::new(),
            request_id: self.request_id.clone(),
            peer: self.peer.clone(),
        }
    }
}

/// See the module documentation. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    known: RwLock<Known>,
    /// Held while store and memory change, so that they change in the same order.
    changing: Mutex<()>,
    refusals: Refusals,
}

#[derive(Default)]
struct Known {
    tokens: HashMap<TokenId, Guest<Token>>,
    nodes: HashMap<Name, Guest<SecretHash>>,
}

impl Known {
    fn working(&self, now: UnixMillis) -> usize {
        let tokens = self.tokens.values();
        tokens.filter(|guest| guest.pass.works(now)).count()
    }

    /// Tokens that do not work are kept as well, so that the log can say why they are refused, but not without bound.
    fn admit(&mut self, token: Token, now: UnixMillis) {
        if self.tokens.len() >= 2 * TOKENS_MAX {
            self.tokens.retain(|_, guest| guest.pass.works(now));
        }
        self.tokens.insert(token.id.clone(), Guest::new(token));
    }
}

/// Who is let in, and the end of their stay: streams watch for `stay` to be dropped.
struct Guest<T> {
    pass: T,
    stay: watch::Sender<()>,
}

impl<T> Guest<T> {
    fn new(pass: T) -> Self {
        let stay = watch::Sender::new(());
        Self { pass, stay }
    }
}

impl Gate {
    /// Reads tokens and members.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let mut known = Known::default();
        let now = clock::unix_now();
        for token in store.tokens().await? {
            known.admit(token, now);
        }
        for node in store.nodes().await? {
            known.nodes.insert(node.name, Guest::new(node.hash));
        }
        let inner = Inner {
            store,
            known: RwLock::new(known),
            changing: Mutex::new(()),
            refusals: Refusals::new(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The caller of an operators' call, if its role is enough. The first thing every handler asks.
    #[allow(clippy::result_large_err)] // tonic's own error; it is made once for a refused call
    pub fn caller<T>(&self, request: &Request<T>, least: Role) -> Result<Caller, Status> {
        let asked = Asked::of(request);
        let text = self.bearer(&asked, request)?;
        let Some((id, secret)) = read(Kind::Caller, text) else {
            return Err(self.refuse(Refusal::Malformed, &asked, ""));
        };
        let (token, stay) = self
            .token(&id, &secret, clock::unix_now())
            .map_err(|refusal| self.refuse(refusal, &asked, &id.0))?;
        asked.prove(token.name.as_str(), stay.clone());
        if token.role < least {
            self.refuse(Refusal::Role, &asked, token.name.as_str());
            let (name, has, needs) = (&token.name, token.role.name(), least.name());
            return Err(Status::permission_denied(format!(
                "this needs the role {needs}; the token `{name}` has the role {has}"
            )));
        }
        Ok(Caller {
            name: token.name.as_str().to_owned(),
            token: id,
            role: token.role,
            request_id: asked.request_id().to_owned(),
            peer: asked.peer.as_ref().map(Peer::shown).unwrap_or_default(),
            is_tls: asked.peer.as_ref().is_some_and(|peer| peer.is_tls),
            stay,
        })
    }

    /// The node that opened a stream. When it is removed, the stream is cut.
    #[allow(clippy::result_large_err)] // as above
    pub fn node<T>(&self, request: &Request<T>) -> Result<Name, Status> {
        let asked = Asked::of(request);
        let text = self.bearer(&asked, request)?;
        let Some((name, secret)) = read_node(text) else {
            return Err(self.refuse(Refusal::Malformed, &asked, ""));
        };
        let stay = self
            .member(&name, &secret)
            .map_err(|refusal| self.refuse(refusal, &asked, name.as_str()))?;
        asked.prove(&format!("node {name}"), stay);
        Ok(name)
    }

    /// The join token that a node shows in a call's message, if it is one of ours and may have travelled this way. Whether
    /// it can still be used is the store's to say, so that a repeated call is answered the same.
    pub async fn join_token<T>(
        &self,
        request: &Request<T>,
        text: &str,
    ) -> Result<JoinToken, Status> {
        self.carries_secrets(request)?;
        let asked = Asked::of(request);
        let refuse = |refusal, who| of_joining(self.refuse(refusal, &asked, who));
        let Some((id, secret)) = read(Kind::Join, text) else {
            return Err(refuse(Refusal::Malformed, ""));
        };
        let tokens = self.inner.store.join_tokens().await;
        let tokens = tokens.map_err(|error| Status::unavailable(error.to_string()))?;
        let token = tokens.into_iter().find(|token| token.id == id);
        check(token.as_ref().map(|token| token.hash), &secret)
            .and(token.ok_or(Refusal::Unknown))
            .map_err(|refusal| refuse(refusal, &id.0))
    }

    /// Stores a token that works from now on.
    pub async fn create_token(&self, token: Token, audit: AuditEntry) -> Result<(), StoreError> {
        let now = token.created_at;
        self.change(async move |inner| {
            if inner.known().working(now) >= TOKENS_MAX {
                return Err(StoreError::Refused(format!(
                    "{TOKENS_MAX} tokens work already; revoke some"
                )));
            }
            inner.store.add_token(token.clone(), audit).await?;
            inner.known_mut().admit(token, now);
            Ok(())
        })
        .await
    }

    /// Stores a join token, unless `working_max` of them can be used already.
    pub async fn create_join_token(
        &self,
        token: JoinToken,
        working_max: usize,
        audit: AuditEntry,
    ) -> Result<(), StoreError> {
        self.change(async move |inner| {
            let tokens = inner.store.join_tokens().await?;
            let working = tokens.iter().filter(|other| other.works(token.created_at));
            if working.count() >= working_max {
                return Err(StoreError::Refused(format!(
                    "{working_max} join tokens can be used already; revoke some"
                )));
            }
            inner.store.add_join_token(token, audit).await
        })
        .await
    }

    /// Revokes a token: it is refused at the next call, and its open streams end.
    pub async fn revoke_token(
        &self,
        id: TokenId,
        at: UnixMillis,
        audit: AuditEntry,
    ) -> Result<(), StoreError> {
        self.change(async move |inner| {
            inner.store.revoke_token(&id, at, audit).await?;
            if let Some(guest) = inner.known_mut().tokens.get_mut(&id) {
                let mut token = guest.pass.clone();
                token.revoked_at = Some(at);
                *guest = Guest::new(token);
            }
            Ok(())
        })
        .await
    }

    /// Makes a node a member, see [`Store::enroll`]. Its secret works from now on.
    pub async fn enroll(
        &self,
        node: NodeRecord,
        audit: AuditEntry,
    ) -> Result<Enrolled, StoreError> {
        self.change(async move |inner| {
            let enrolled = inner.store.enroll(node.clone(), audit).await?;
            if enrolled == Enrolled::Joined {
                let guest = Guest::new(node.hash);
                inner.known_mut().nodes.insert(node.name, guest);
            }
            Ok(enrolled)
        })
        .await
    }

    /// Ends a membership: its secret is refused at the next call and its stream is cut.
    pub async fn remove_node(&self, name: Name, audit: AuditEntry) -> Result<(), StoreError> {
        self.change(async move |inner| {
            inner.store.remove_node(&name, audit).await?;
            inner.known_mut().nodes.remove(&name);
            Ok(())
        })
        .await
    }

    /// Whether a secret may travel over this connection: for calls that carry one inside, such as Enroll.
    #[allow(clippy::result_large_err)] // as above
    fn carries_secrets<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let asked = Asked::of(request);
        if asked.may_carry_secrets() {
            return Ok(());
        }
        Err(self.refuse(Refusal::Plaintext, &asked, ""))
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// Does a change of store and memory to its end, whatever becomes of the caller.
    async fn change<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(Arc<Inner>) -> F + Send + 'static,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move {
            let _order = inner.changing.lock().await;
            work(Arc::clone(&inner)).await
        });
        task.await
            .unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }

    #[allow(clippy::result_large_err)] // as above
    fn bearer<'a, T>(&self, asked: &Asked, request: &'a Request<T>) -> Result<&'a str, Status> {
        let text = match authorization(request.metadata()) {
            Authorization::None => return Err(self.refuse(Refusal::NoToken, asked, "")),
            Authorization::Malformed => Err(Refusal::Malformed),
            Authorization::Bearer(text) => Ok(text),
        };
        if !asked.may_carry_secrets() {
            return Err(self.refuse(Refusal::Plaintext, asked, ""));
        }
        text.map_err(|refusal| self.refuse(refusal, asked, ""))
    }

    fn token(
        &self,
        id: &TokenId,
        secret: &Secret,
        now: UnixMillis,
    ) -> Result<(Token, Stay), Refusal> {
        let known = self.inner.known();
        let guest = known.tokens.get(id);
        check(guest.map(|guest| guest.pass.hash), secret)?;
        let guest = guest.ok_or(Refusal::Unknown)?;
        if guest.pass.revoked_at.is_some() {
            return Err(Refusal::Revoked);
        }
        if !guest.pass.works(now) {
            return Err(Refusal::Expired);
        }
        let stay = Stay::new(guest.stay.subscribe(), guest.pass.expires_at);
        Ok((guest.pass.clone(), stay))
    }

    fn member(&self, name: &Name, secret: &Secret) -> Result<Stay, Refusal> {
        let known = self.inner.known();
        let guest = known.nodes.get(name);
        check(guest.map(|guest| guest.pass), secret)?;
        let guest = guest.ok_or(Refusal::Unknown)?;
        Ok(Stay::new(guest.stay.subscribe(), None))
    }

    fn refuse(&self, refusal: Refusal, asked: &Asked, who: &str) -> Status {
        let (peer, request_id) = (asked.peer.as_ref(), asked.request_id());
        self.inner.refusals.refuse(refusal, peer, who, request_id)
    }
}

impl Inner {
    // Nothing panics between lock and unlock of either.
    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compares a secret with a stored hash, or with none at the same cost.
fn check(hash: Option<SecretHash>, secret: &Secret) -> Result<(), Refusal> {
    let is_right = hash.unwrap_or(SecretHash([0; 32])).is_of(secret);
    match (hash, is_right) {
        (None, _) => Err(Refusal::Unknown),
        (Some(_), false) => Err(Refusal::WrongSecret),
        (Some(_), true) => Ok(()),
    }
}

/// What a request brings beside its message.
struct Asked {
    peer: Option<Peer>,
    call: Option<Call>,
}

impl Asked {
    fn of<T>(request: &Request<T>) -> Self {
        Self {
            peer: request.extensions().get().cloned(),
            call: request.extensions().get().cloned(),
        }
    }

    /// A request without a known peer carries nothing.
    fn may_carry_secrets(&self) -> bool {
        let peer = self.peer.as_ref();
        peer.is_some_and(|peer| may_carry_secrets(peer.address.ip(), peer.is_tls))
    }

    fn request_id(&self) -> &str {
        self.call.as_ref().map_or("", |call| &call.request_id)
    }

    fn prove(&self, name: &str, stay: Stay) {
        if let Some(peer) = &self.peer {
            peer.prove(stay.clone());
        }
        if let Some(call) = &self.call {
            call.prove(name, stay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Sqlite;

    #[tokio::test]
    async fn c3_a_token_works_until_its_time_and_is_refused_from_then_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Sqlite::open(folder.path()).await.expect("a store");
        let gate = Gate::open(Arc::new(store)).await.expect("a gate");
        let (id, secret) = random().expect("randomness");
        let token = Token {
            id: id.clone(),
            name: Name::parse("guest").expect("a name"),
            role: Role::Viewer,
            hash: secret.hash(),
            created_at: UnixMillis(1000),
            created_by: "test".into(),
            expires_at: Some(UnixMillis(2000)),
            revoked_at: None,
        };
        let audit = AuditEntry {
            at: UnixMillis(1000),
            who: "test".into(),
            action: "token.create",
            what: "token guest".into(),
            before: String::new(),
            after: String::new(),
            request_id: String::new(),
            peer: String::new(),
        };
        gate.create_token(token, audit).await.expect("made");
        for (now, expected) in [
            (1000, None),
            (1999, None),
            (2000, Some(Refusal::Expired)),
            (u64::MAX, Some(Refusal::Expired)),
            // A clock that was put back: nothing remembers that it was later once.
            (1500, None),
        ] {
            let found = gate.token(&id, &secret, UnixMillis(now));
            assert_eq!(found.map(drop).err(), expected, "{now}");
        }
        let (_, other) = random().expect("randomness");
        let wrong = gate.token(&id, &other, UnixMillis(u64::MAX)).map(drop);
        assert_eq!(
            wrong,
            Err(Refusal::WrongSecret),
            "who guesses learns nothing of time"
        );
    }
}
