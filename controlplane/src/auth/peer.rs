//! The other end of a connection, and what is known of one call: where it came from, its id, who proved to be the caller.
//!
//! Holds facts and decides one thing: whether a secret may travel over such a connection. Knows no token.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
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
    proof: Arc<AtomicBool>,
}

impl Peer {
    /// Nobody has proved anything over this connection yet.
    pub fn new(address: SocketAddr, is_tls: bool) -> Self {
        Self {
            address,
            is_tls,
            proof: Arc::default(),
        }
    }

    /// True once a call over this connection came with a secret that works.
    pub fn is_proven(&self) -> bool {
        self.proof.load(Ordering::Relaxed)
    }

    /// Somebody proved who they are.
    pub(crate) fn prove(&self) {
        self.proof.store(true, Ordering::Relaxed);
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
    pub(super) fn new(gone: watch::Receiver<()>, expires_at: Option<UnixMillis>) -> Self {
        Self { gone, expires_at }
    }

    /// Ends when the caller is not welcome any more.
    pub async fn ended(mut self) {
        let expired = async {
            match self.expires_at {
                // In steps, so that a clock that was put forward is noticed.
                Some(at) => {
                    while let Some(left) = left(at, clock::unix_now()) {
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

    #[test]
    fn time_left_is_counted_down_to_nothing() {
        for (until, now, expected) in [(10, 4, Some(6)), (10, 10, None), (10, 11, None)] {
            let found = left(UnixMillis(until), UnixMillis(now));
            assert_eq!(found, expected.map(Duration::from_millis));
        }
    }
}
