//! The other end of a connection, and what is known of one call: where it came from, its id, who proved to be the caller.
//!
//! Holds facts and decides one thing: whether a secret may travel over such a connection. Knows no token.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::clock;
use crate::domain::UnixMillis;

/// The other end of a connection; an extension of every request. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// True exactly when the connection is encrypted.
    pub is_tls: bool,
    /// Of those who proved who they are over it, the last few.
    proofs: Arc<Mutex<Vec<Stay>>>,
}

/// Callers of one connection that keep it open, at most: programs have one token, gateways a few.
const PROOFS_MAX: usize = 8;

impl Peer {
    /// Nobody has proved anything over this connection yet.
    pub fn new(address: SocketAddr, is_tls: bool) -> Self {
        Self {
            address,
            is_tls,
            proofs: Arc::default(),
        }
    }

    /// Address and port, for records: an IPv4 address is written as one, also on a socket for both families.
    pub fn shown(&self) -> String {
        SocketAddr::new(self.address.ip().to_canonical(), self.address.port()).to_string()
    }

    /// True exactly when a call over this connection came with a secret that still works.
    pub fn is_proven(&self) -> bool {
        // Nothing panics between lock and unlock, here and below.
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.iter().any(|stay| !stay.is_over())
    }

    /// Somebody proved who they are, and is welcome for so long.
    pub(crate) fn prove(&self, stay: Stay) {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.retain(|held| !held.is_same(&stay) && !held.is_over());
        if proofs.len() >= PROOFS_MAX {
            proofs.remove(0);
        }
        proofs.push(stay);
    }
}

/// True exactly when a secret may travel over a connection with that peer: others cannot listen.
pub fn may_carry_secrets(peer: IpAddr, is_tls: bool) -> bool {
    is_tls || peer.to_canonical().is_loopback()
}

/// One call; an extension of every request, shared with who writes the log line of the call. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its id: 1 to 128 of letters, digits, `-`, `_` and `.`.
    pub request_id: Arc<str>,
    who: Arc<OnceLock<Who>>,
}

#[derive(Debug)]
struct Who {
    name: Box<str>,
    stay: Stay,
}

impl Call {
    /// A call of nobody yet.
    pub fn new(request_id: Arc<str>) -> Self {
        Self {
            request_id,
            who: Arc::default(),
        }
    }

    /// Name of the token, or `node <name>`; `None` until somebody proved to be the caller.
    pub fn who(&self) -> Option<&str> {
        self.who.get().map(|who| &*who.name)
    }

    /// How long the caller is welcome; `None` as above.
    pub fn stay(&self) -> Option<Stay> {
        self.who.get().map(|who| who.stay.clone())
    }

    pub(super) fn prove(&self, name: &str, stay: Stay) {
        // A call asks the gate once; who asks again gets the same answer.
        let _ = self.who.set(Who {
            name: name.into(),
            stay,
        });
    }
}

/// How long a caller is welcome: until the token is revoked or expires, or the node is removed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stay {
    gone: watch::Receiver<()>,
    expires_at: Option<UnixMillis>,
}

impl Stay {
    pub(crate) fn new(gone: watch::Receiver<()>, expires_at: Option<UnixMillis>) -> Self {
        Self { gone, expires_at }
    }

    /// True exactly when the caller is not welcome any more.
    pub fn is_over(&self) -> bool {
        self.is_over_at(clock::unix_now)
    }

    fn is_over_at(&self, now: impl FnOnce() -> UnixMillis) -> bool {
        let is_gone = self.gone.has_changed().is_err();
        is_gone || self.expires_at.is_some_and(|at| left(at, now()).is_none())
    }

    /// True exactly when it ends together with the other.
    fn is_same(&self, other: &Self) -> bool {
        self.gone.same_channel(&other.gone)
    }

    /// Ends when the caller is not welcome any more.
    pub async fn ended(self) {
        self.ended_by(clock::unix_now).await;
    }

    async fn ended_by(mut self, now: impl Fn() -> UnixMillis) {
        let expired = async {
            match self.expires_at {
                // In steps, so that a clock that was put forward is noticed.
                Some(at) => {
                    while let Some(left) = left(at, now()) {
                        tokio::time::sleep(left.min(CLOCK_LOOK)).await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        let gone = async { while self.gone.changed().await.is_ok() {} };
        tokio::select! {
            () = gone => {}
            () = expired => {}
        }
    }
}

/// Longest time between two looks at the clock while a stream of a token that expires is open.
const CLOCK_LOOK: Duration = Duration::from_secs(30);

fn left(until: UnixMillis, now: UnixMillis) -> Option<Duration> {
    let left = until.0.checked_sub(now.0).filter(|left| *left > 0)?;
    Some(Duration::from_millis(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_travel_where_nobody_listens() {
        for (address, is_tls, expected) in [
            ("127.0.0.1", false, true),
            ("127.8.9.10", false, true),
            ("::1", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("::ffff:10.0.0.1", false, false),
            ("10.0.0.1", false, false),
            ("192.168.1.1", false, false),
            ("169.254.1.1", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("fe80::1", false, false),
            ("2001:db8::1", false, false),
            ("10.0.0.1", true, true),
            ("2001:db8::1", true, true),
            ("127.0.0.1", true, true),
        ] {
            let parsed = address.parse().expect("an address");
            assert_eq!(
                may_carry_secrets(parsed, is_tls),
                expected,
                "{address} {is_tls}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stay_ends_by_revocation() {
        let (sender, gone) = watch::channel(());
        let ended = tokio::spawn(Stay::new(gone, None).ended());
        tokio::task::yield_now().await;
        assert!(!ended.is_finished());
        drop(sender);
        ended.await.expect("it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn c3_a_stay_ends_when_its_time_has_passed_also_when_the_clock_jumps() {
        let begin = tokio::time::Instant::now();
        let (_sender, gone) = watch::channel(());
        let stay = Stay::new(gone, Some(UnixMillis(600_000)));
        let passed = move || UnixMillis(u64::try_from(begin.elapsed().as_millis()).unwrap());
        stay.clone().ended_by(passed).await;
        assert_eq!(begin.elapsed(), Duration::from_secs(600), "not before");
        let jumped = move || UnixMillis(passed().0 + 300_000 * u64::from(passed().0 > 610_000));
        let again = tokio::time::Instant::now();
        let later = Stay::new(stay.gone.clone(), Some(UnixMillis(1_200_000)));
        later.ended_by(jumped).await;
        assert!(
            again.elapsed() < Duration::from_secs(350),
            "put forward by five minutes: {:?}",
            again.elapsed()
        );
    }

    #[test]
    fn a_proof_lasts_as_long_as_its_stay() {
        let peer = Peer::new(SocketAddr::from(([127, 0, 0, 1], 1)), false);
        assert!(!peer.is_proven());
        let (sender, gone) = watch::channel(());
        peer.prove(Stay::new(gone, None));
        assert!(peer.is_proven());
        drop(sender);
        assert!(!peer.is_proven(), "revoked");
        let (_sender, gone) = watch::channel(());
        peer.prove(Stay::new(gone.clone(), Some(UnixMillis(1))));
        assert!(!peer.is_proven(), "expired long ago");
        peer.prove(Stay::new(gone, None));
        assert!(peer.is_proven(), "another call, another proof");
        let senders: Vec<_> = (0..100).map(|_| watch::channel(())).collect();
        for (_, gone) in &senders {
            peer.prove(Stay::new(gone.clone(), None));
            peer.prove(Stay::new(gone.clone(), None));
        }
        let held = peer.proofs.lock().unwrap().len();
        assert_eq!(held, PROOFS_MAX, "one for each, and bounded");
    }

    #[test]
    fn c3_a_stay_is_over_at_its_time() {
        let (_sender, gone) = watch::channel(());
        for (expires_at, now, expected) in [
            (None, u64::MAX, false),
            (Some(10), 9, false),
            (Some(10), 10, true),
            (Some(10), 11, true),
        ] {
            let stay = Stay::new(gone.clone(), expires_at.map(UnixMillis));
            assert_eq!(stay.is_over_at(|| UnixMillis(now)), expected);
        }
    }

    #[test]
    fn time_left_is_counted_down_to_nothing() {
        for (until, now, expected) in [(10, 4, Some(6)), (10, 10, None), (10, 11, None)] {
            let found = left(UnixMillis(until), UnixMillis(now));
            assert_eq!(found, expected.map(Duration::from_millis));
        }
    }
}
