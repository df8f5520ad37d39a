//! Names of endpoints to addresses, off the shards: asked again and again, the last good answer kept.
//!
//! Owns what is known of each name. A name that cannot be resolved does not refuse a policy: its endpoint is missing
//! until it can be, and what was known before stays in use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use sluice_policy::{Endpoint, Snapshot, UpstreamId};
use tokio::task::JoinSet;

use crate::node::Located;
use crate::ring::Target;

/// Longest wait for one name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Names asked for at once.
const LOOKUPS_MAX: usize = 16;
/// Addresses used of one name.
const ADDRESSES_MAX: usize = 64;

/// A host name with its port.
pub type Name = (Box<str>, u16);

/// What is known of each name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    names: BTreeMap<Name, Vec<SocketAddr>>,
}

/// The names a snapshot needs resolved; literal addresses are none.
pub fn names(snapshot: &Snapshot) -> BTreeSet<Name> {
    let endpoints = snapshot
        .upstreams()
        .iter()
        .flat_map(|upstream| &upstream.endpoints);
    endpoints
        .filter_map(|endpoint| match endpoint {
            Endpoint::Tcp { host, port } if literal(host).is_none() => Some((host.clone(), *port)),
            Endpoint::Tcp { .. } | Endpoint::Unix { .. } => None,
        })
        .collect()
}

/// Asks for every name, keeps of `previous` what does not answer now, and forgets the names not asked for.
pub async fn resolve(names: BTreeSet<Name>, previous: Resolved) -> Resolved {
    resolve_by(names, previous, |name| async move {
        let found = lookup(&name).await;
        (name, found)
    })
    .await
}

/// What a policy needs before it is swapped in: asks only for names without an address. A change of rules must not wait
/// for a resolver; the names that are known are asked for again in the background.
pub async fn complete(names: BTreeSet<Name>, known: Resolved) -> Resolved {
    let (mut have, ask) = known.split(names);
    have.names.extend(resolve(ask, known).await.names);
    have
}

/// A name and what was found.
type Found = (Name, std::io::Result<Vec<SocketAddr>>);

async fn resolve_by<F>(
    names: BTreeSet<Name>,
    previous: Resolved,
    lookup: impl Fn(Name) -> F,
) -> Resolved
where
    F: Future<Output = Found> + Send + 'static,
{
    let known = |name: &Name| previous.names.get(name).cloned().unwrap_or_default();
    let names_known = names.iter().map(|name| (name.clone(), known(name)));
    let mut resolved = Resolved {
        names: names_known.collect(),
    };
    let mut lookups = JoinSet::new();
    let mut waiting = names.into_iter();
    loop {
        while lookups.len() < LOOKUPS_MAX
            && let Some(name) = waiting.next()
        {
            lookups.spawn(lookup(name));
        }
        let Some(done) = lookups.join_next().await else {
            return resolved;
        };
        // A lookup that panicked is a lookup without an answer; its name stays as it was known.
        let Ok((name, found)) = done else { continue };
        match found {
            Ok(addresses) => {
                resolved.names.insert(name, addresses);
            }
            Err(error) => tracing::warn!(
                host = %name.0,
                %error,
                kept = resolved.names.get(&name).map_or(0, Vec::len),
                "an upstream's name cannot be resolved; the last good addresses stay in use"
            ),
        }
    }
}

impl Resolved {
    /// Every endpoint of the snapshot at every address it has.
    pub fn locate(&self, snapshot: &Snapshot) -> Vec<Located> {
        let mut located = Vec::new();
        for upstream in snapshot.upstreams() {
            for endpoint in &upstream.endpoints {
                let mut place = |name: &str, target| {
                    located.push(Located {
                        upstream: upstream.id,
                        name: name.into(),
                        target,
                    });
                };
                match endpoint {
                    Endpoint::Unix { path } => {
                        place(
                            &format!("unix://{path}"),
                            Target::Unix(PathBuf::from(&**path)),
                        );
                    }
                    Endpoint::Tcp { host, port } => {
                        let name = match literal(host) {
                            Some(address) => format!("tcp://{}", SocketAddr::new(address, *port)),
                            None => format!("tcp://{host}:{port}"),
                        };
                        for address in self.addresses(host, *port) {
                            place(&name, Target::Tcp(address));
                        }
                    }
                }
            }
        }
        located
    }

    /// Endpoints of the snapshot whose name has no address: the upstream, and the endpoint as the policy spells it.
    pub fn missing(&self, snapshot: &Snapshot) -> Vec<(UpstreamId, String)> {
        let mut missing = Vec::new();
        for upstream in snapshot.upstreams() {
            for endpoint in &upstream.endpoints {
                if let Endpoint::Tcp { host, port } = endpoint
                    && self.addresses(host, *port).is_empty()
                {
                    missing.push((upstream.id, format!("tcp://{host}:{port}")));
                }
            }
        }
        missing
    }

    /// The names asked for.
    pub fn names(&self) -> BTreeSet<Name> {
        self.names.keys().cloned().collect()
    }

    /// True exactly when some name has no address at all.
    pub fn is_incomplete(&self) -> bool {
        self.names.values().any(Vec::is_empty)
    }

    /// The names that have an address, with it, and those that have none.
    fn split(&self, names: BTreeSet<Name>) -> (Self, BTreeSet<Name>) {
        let (have, ask): (BTreeSet<_>, BTreeSet<_>) = names
            .into_iter()
            .partition(|name| self.names.get(name).is_some_and(|known| !known.is_empty()));
        let names = self.names.iter().filter(|(name, _)| have.contains(*name));
        let names = names.map(|(name, known)| (name.clone(), known.clone()));
        let names = names.collect();
        (Self { names }, ask)
    }

    fn addresses(&self, host: &str, port: u16) -> Vec<SocketAddr> {
        match literal(host) {
            Some(address) => vec![SocketAddr::new(address, port)],
            None => self
                .names
                .get(&(host.into(), port))
                .cloned()
                .unwrap_or_default(),
        }
    }
}

/// `10.0.0.1`, `::1` and `[::1]` need nobody to be asked.
fn literal(host: &str) -> Option<IpAddr> {
    let inner = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    inner.parse().ok()
}

/// Sorted, so that the order of a round-robin answer changes nothing.
async fn lookup(name: &Name) -> std::io::Result<Vec<SocketAddr>> {
    let asked = tokio::net::lookup_host((&*name.0, name.1));
    let mut addresses: Vec<SocketAddr> = tokio::time::timeout(LOOKUP_TIMEOUT, asked)
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() {
        return Err(std::io::Error::from(std::io::ErrorKind::NotFound));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use sluice_policy::{Generation, UpstreamId};

    use super::*;

    const DOCUMENT: &str = "
listeners: [{name: l, address: '127.0.0.1:0', upstream: u}]
upstreams:
  - {name: u, endpoints: ['tcp://broker.example:1883', 'tcp://10.0.0.1:1', 'tcp://[::1]:2', 'unix:///run/b.sock']}
";

    fn snapshot() -> Snapshot {
        sluice_policy::compile(DOCUMENT, "test", Generation(1), None).expect("a good document")
    }

    fn broker() -> Name {
        ("broker.example".into(), 1883)
    }

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 1883))
    }

    async fn ask(previous: Resolved, answer: Option<Vec<SocketAddr>>) -> Resolved {
        resolve_by(names(&snapshot()), previous, move |name| {
            let found = answer
                .clone()
                .ok_or_else(|| std::io::ErrorKind::NotFound.into());
            async move { (name, found) }
        })
        .await
    }

    #[test]
    fn only_names_are_asked_for() {
        assert_eq!(names(&snapshot()), BTreeSet::from([broker()]));
    }

    #[tokio::test]
    async fn every_endpoint_is_located_at_every_address_it_has() {
        let resolved = ask(Resolved::default(), Some(vec![address(1), address(2)])).await;
        let located = resolved.locate(&snapshot());
        let places: Vec<(&str, &Target)> = located.iter().map(|l| (&*l.name, &l.target)).collect();
        let tcp = |text: &str| Target::Tcp(text.parse().expect("an address"));
        assert_eq!(
            places,
            [
                ("tcp://broker.example:1883", &tcp("192.0.2.1:1883")),
                ("tcp://broker.example:1883", &tcp("192.0.2.2:1883")),
                ("tcp://10.0.0.1:1", &tcp("10.0.0.1:1")),
                ("tcp://[::1]:2", &tcp("[::1]:2")),
                ("unix:///run/b.sock", &Target::Unix("/run/b.sock".into())),
            ]
        );
        assert!(located.iter().all(|l| l.upstream == UpstreamId(0)));
    }

    #[tokio::test]
    async fn the_last_good_answer_is_kept_and_unknown_names_are_incomplete() {
        let nothing = ask(Resolved::default(), None).await;
        assert!(nothing.is_incomplete());
        assert_eq!(nothing.locate(&snapshot()).len(), 3, "the others are there");
        let good = ask(nothing, Some(vec![address(1)])).await;
        assert!(!good.is_incomplete());
        assert_eq!(ask(good.clone(), None).await, good);
        let moved = ask(good, Some(vec![address(9)])).await;
        assert_eq!(moved.addresses("broker.example", 1883), [address(9)]);
    }

    #[tokio::test]
    async fn a_lookup_that_panics_forgets_nothing() {
        let good = ask(Resolved::default(), Some(vec![address(1)])).await;
        let after = resolve_by(names(&snapshot()), good.clone(), |_| async {
            panic!("a lookup")
        });
        assert_eq!(after.await, good);
    }

    #[tokio::test]
    async fn a_new_policy_waits_for_unknown_names_only() {
        let known = ask(Resolved::default(), Some(vec![address(1)])).await;
        let other: Name = ("other.example".into(), 1883);
        let (have, missing) = known.split(BTreeSet::from([broker(), other.clone()]));
        assert_eq!(have, known);
        assert_eq!(missing, BTreeSet::from([other]));
        let empty = ask(Resolved::default(), None).await;
        let (have, missing) = empty.split(BTreeSet::from([broker()]));
        assert_eq!(
            (have, missing),
            (Resolved::default(), BTreeSet::from([broker()]))
        );
        assert_eq!(
            complete(BTreeSet::from([broker()]), known.clone()).await,
            known
        );
    }

    #[tokio::test]
    async fn names_not_asked_for_are_forgotten() {
        let good = ask(Resolved::default(), Some(vec![address(1)])).await;
        let none = resolve(BTreeSet::new(), good).await;
        assert_eq!(none, Resolved::default());
    }
}
