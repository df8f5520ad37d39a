//! Which engine a process runs on: decided once at start, by trying.
//!
//! Kernels, seccomp profiles and `kernel.io_uring_disabled` take io_uring away in different ways and at different depths,
//! and a list of versions or opcodes would be wrong somewhere. So the probe makes a small ring and lets it do what a shard
//! needs: arm, wake, accept, receive into provided buffers, send silently, cancel. It owns nothing afterwards.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::Duration;

use super::{
    Epoll, Event, ListenSlot, Piece, Ring, RingConfig, SocketId, Target, Uring, listen_tcp,
    local_address,
};

/// How long the probe waits for any one step. All of it happens on loopback; only a machine in trouble takes this long.
const STEP: Duration = Duration::from_secs(2);

/// The real engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

/// What the operator asked for with `--engine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where it works, else epoll.
    #[default]
    Auto,
    /// This one or none.
    Forced(Engine),
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Forced(Engine::Uring)),
            "epoll" => Ok(Self::Forced(Engine::Epoll)),
            _ => Err(format!("{text:?} is no engine: auto, uring or epoll")),
        }
    }
}

/// The engine to use, and why, in one line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The engine.
    pub engine: Engine,
    /// Why.
    pub reason: String,
}

/// Tries the engine that is asked for. An engine that is forced and does not work is an error that says why.
pub fn probe(choice: EngineChoice) -> io::Result<Decision> {
    decide(choice, || try_engine(Uring::new), || try_engine(Epoll::new))
}

fn decide(
    choice: EngineChoice,
    uring: impl FnOnce() -> Result<(), Failed>,
    epoll: impl FnOnce() -> Result<(), Failed>,
) -> io::Result<Decision> {
    let fallback = |reason: &str| Decision {
        engine: Engine::Epoll,
        reason: reason.to_owned(),
    };
    match choice {
        EngineChoice::Forced(Engine::Uring) => match uring() {
            Ok(()) => Ok(Decision {
                engine: Engine::Uring,
                reason: "forced, and io_uring works".to_owned(),
            }),
            Err(failed) => Err(io::Error::new(
                failed.error.kind(),
                format!("io_uring is forced but does not work: {failed}"),
            )),
        },
        EngineChoice::Forced(Engine::Epoll) => match epoll() {
            Ok(()) => Ok(fallback("forced")),
            Err(failed) => Err(io::Error::new(
                failed.error.kind(),
                format!("epoll is forced but does not work: {failed}"),
            )),
        },
        EngineChoice::Auto => match uring() {
            Ok(()) => Ok(Decision {
                engine: Engine::Uring,
                reason: "io_uring works with all that is needed".to_owned(),
            }),
            Err(failed) => Ok(fallback(&format!("io_uring does not work here: {failed}"))),
        },
    }
}

/// The step at which an engine failed.
#[derive(Debug)]
struct Failed {
    step: &'static str,
    error: io::Error,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.error)
    }
}

/// Lets an engine do once what a shard does all day.
fn try_engine<R: Ring>(make: impl FnOnce(&RingConfig) -> io::Result<R>) -> Result<(), Failed> {
    let config = RingConfig {
        sockets_max: 8,
        buffers: 8,
        buffer_bytes: 256,
    };
    let at = |step| move |error| Failed { step, error };
    let ring = make(&config).map_err(at("making a ring"))?;
    let mut trial = Trial { ring };
    trial.wake().map_err(at("waking"))?;
    let (near, far) = trial.connect().map_err(at("connecting to itself"))?;
    trial
        .exchange(near, far)
        .map_err(at("sending and receiving"))?;
    trial.pause(far).map_err(at("cancelling a receive"))?;
    trial.ring.close(near);
    trial.ring.close(far);
    Ok(())
}

struct Trial<R> {
    ring: R,
}

impl<R: Ring> Trial<R> {
    /// Turns until `pick` has taken what it wants.
    fn until<T>(&mut self, mut pick: impl FnMut(&mut R, &Event) -> Option<T>) -> io::Result<T> {
        let limit = self.ring.now().after(STEP);
        let mut events = Vec::new();
        loop {
            self.ring.turn(Some(limit), 0, &mut events)?;
            for event in events.drain(..) {
                if let Event::ConnectFailed { errno, .. }
                | Event::AcceptFailed { errno, .. }
                | Event::SendFailed { errno, .. } = event
                {
                    return Err(io::Error::from_raw_os_error(errno));
                }
                if let Event::Ended { end, .. } = event {
                    return Err(io::Error::other(format!("unexpected end: {end:?}")));
                }
                if let Some(picked) = pick(&mut self.ring, &event) {
                    return Ok(picked);
                }
            }
            if self.ring.now() >= limit {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn wake(&mut self) -> io::Result<()> {
        self.ring.waker().wake();
        self.until(|_, event| matches!(event, Event::Woken).then_some(()))
    }

    fn connect(&mut self) -> io::Result<(SocketId, SocketId)> {
        let listener = listen_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 1)?;
        let address = local_address(listener.as_fd())?.ok_or(io::ErrorKind::AddrNotAvailable)?;
        self.ring.listen(ListenSlot(0), listener)?;
        let full = |_| io::Error::from_raw_os_error(libc::EMFILE);
        let near = self.ring.connect(&Target::Tcp(address)).map_err(full)?;
        let (mut connected, mut far) = (false, None);
        let far = self.until(|_, event| {
            connected |= matches!(event, Event::Connected { .. });
            if let Event::Accepted { socket, .. } = event {
                far = Some(*socket);
            }
            far.filter(|_| connected)
        })?;
        Ok((near, far))
    }

    /// Twice, so that the receive is seen to go on after its first bytes; in two pieces, so that both kinds of send run.
    fn exchange(&mut self, near: SocketId, far: SocketId) -> io::Result<()> {
        self.ring.receive(far);
        for text in [&b"first"[..], b"second"] {
            let (head, tail) = text.split_at(2);
            let head = self.ring.scratch(head);
            let _gap = self.ring.scratch(b"-");
            let tail = self.ring.scratch(tail);
            let pieces: &[Piece] = &[head, tail];
            self.ring.send(near, pieces);
            let mut got = Vec::new();
            self.until(|ring, event| {
                if let Event::Received { socket, lease } = event
                    && *socket == far
                {
                    got.extend_from_slice(ring.lease(*lease));
                }
                (got.len() >= text.len()).then_some(())
            })?;
            if got != text {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(())
    }

    fn pause(&mut self, far: SocketId) -> io::Result<()> {
        self.ring.pause(far);
        self.until(|_, event| matches!(event, Event::Paused { .. }).then_some(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> Result<(), Failed> {
        Err(Failed {
            step: "making a ring",
            error: io::Error::from_raw_os_error(libc::EPERM),
        })
    }

    #[test]
    fn both_engines_work_here() {
        for engine in [Engine::Uring, Engine::Epoll] {
            assert_eq!(probe(EngineChoice::Forced(engine)).unwrap().engine, engine);
        }
        assert_eq!(probe(EngineChoice::Auto).unwrap().engine, Engine::Uring);
    }

    #[test]
    fn without_io_uring_auto_takes_epoll_and_says_why() {
        let decision = decide(EngineChoice::Auto, broken, || Ok(())).unwrap();
        assert_eq!(decision.engine, Engine::Epoll);
        assert!(
            decision.reason.contains("making a ring"),
            "{}",
            decision.reason
        );
        assert!(!decision.reason.contains('\n'));
    }

    #[test]
    fn what_is_forced_and_broken_is_an_error() {
        for engine in [Engine::Uring, Engine::Epoll] {
            let error = decide(EngineChoice::Forced(engine), broken, broken).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("making a ring"), "{error}");
        }
    }

    #[test]
    fn engine_names_parse() {
        let cases = [
            ("auto", Some(EngineChoice::Auto)),
            ("uring", Some(EngineChoice::Forced(Engine::Uring))),
            ("epoll", Some(EngineChoice::Forced(Engine::Epoll))),
            ("kqueue", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
