//! Where the endpoints of each upstream are: addresses as resolved, and the cell of the node's table that counts for
//! each. Made by the control thread, read by shards, immutable.
//!
//! # Invariants
//!
//! - **A cell means one address.** The same endpoint at the same address keeps its cell from one directory to the next,
//!   so its breaker and its open connections carry over; a cell is given to another endpoint only when the previous
//!   directory does not use it and nothing is connected through it.

use std::hash::{BuildHasher, Hasher};

use sluice_policy::UpstreamId;

use super::table::Table;
use crate::ring::Target;

/// A cell of the table's endpoint part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointCell(pub u16);

/// An endpoint as the control thread found it, before it has a cell. One endpoint of the document may resolve to several
/// addresses; each is located on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The upstream it belongs to.
    pub upstream: UpstreamId,
    /// The endpoint as the document spells it. Rendezvous hashing goes by this and the address, so that every node of a
    /// fleet sends a client to the same place.
    pub name: Box<str>,
    /// Where to connect.
    pub target: Target,
}

/// One place to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedEndpoint {
    /// Where it is counted.
    pub cell: EndpointCell,
    /// Where to connect.
    pub target: Target,
    /// Seed of its rendezvous scores: the same on every node and shard.
    pub identity: u64,
    name: Box<str>,
}

/// The endpoints of all upstreams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Sorted by upstream; endpoints in the order given.
    upstreams: Vec<(UpstreamId, Vec<ResolvedEndpoint>)>,
}

/// Why a directory could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// More endpoints than the node's table has cells.
    #[error("more than {0} upstream endpoints (those still in use by open sessions included)")]
    TooManyEndpoints(usize),
}

impl Directory {
    /// Makes the directory that follows `previous`. Cells of endpoints that appear for the first time are reset.
    pub fn build(
        previous: &Self,
        table: &Table,
        located: Vec<Located>,
    ) -> Result<Self, DirectoryError> {
        let mut used = vec![false; table.endpoint_cells()];
        for endpoint in previous.all() {
            mark(&mut used, endpoint.cell);
        }
        let mut next = Self::default();
        for place in located {
            if next.cell_of(&place).is_some() {
                continue; // the same place twice is one endpoint
            }
            let cell = match previous.cell_of(&place) {
                Some(cell) => cell,
                None => take_free(&mut used, table)?,
            };
            next.insert(cell, place);
        }
        Ok(next)
    }

    /// The endpoints of one upstream; empty when it is unknown or nothing of it could be resolved.
    pub fn endpoints(&self, upstream: UpstreamId) -> &[ResolvedEndpoint] {
        self.upstreams
            .binary_search_by_key(&upstream, |(id, _)| *id)
            .ok()
            .and_then(|found| self.upstreams.get(found))
            .map_or(&[], |(_, endpoints)| endpoints.as_slice())
    }

    /// Every endpoint, for health checks.
    pub fn all(&self) -> impl Iterator<Item = &ResolvedEndpoint> {
        self.upstreams.iter().flat_map(|(_, endpoints)| endpoints)
    }

    fn cell_of(&self, place: &Located) -> Option<EndpointCell> {
        self.endpoints(place.upstream)
            .iter()
            .find(|endpoint| endpoint.name == place.name && endpoint.target == place.target)
            .map(|endpoint| endpoint.cell)
    }

    fn insert(&mut self, cell: EndpointCell, place: Located) {
        let position = match self
            .upstreams
            .binary_search_by_key(&place.upstream, |(id, _)| *id)
        {
            Ok(found) => found,
            Err(position) => {
                self.upstreams
                    .insert(position, (place.upstream, Vec::new()));
                position
            }
        };
        let Some((_, endpoints)) = self.upstreams.get_mut(position) else {
            return;
        };
        endpoints.push(ResolvedEndpoint {
            cell,
            identity: identity(&place),
            target: place.target,
            name: place.name,
        });
    }
}

impl ResolvedEndpoint {
    /// The endpoint as the document spells it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn mark(used: &mut [bool], cell: EndpointCell) {
    if let Some(used) = used.get_mut(usize::from(cell.0)) {
        *used = true;
    }
}

fn take_free(used: &mut [bool], table: &Table) -> Result<EndpointCell, DirectoryError> {
    for (index, used) in used.iter_mut().enumerate() {
        let Ok(number) = u16::try_from(index) else {
            break;
        };
        let cell = EndpointCell(number);
        let Some(state) = table.endpoint(cell) else {
            break;
        };
        if !*used && state.open() == 0 {
            *used = true;
            state.reset();
            return Ok(cell);
        }
    }
    Err(DirectoryError::TooManyEndpoints(table.endpoint_cells()))
}

/// The same on every node: a fixed seed, and nothing of this machine in it.
fn identity(place: &Located) -> u64 {
    let mut hasher = foldhash::quality::FixedState::with_seed(0x5157_4943_4531).build_hasher();
    hasher.write(place.name.as_bytes());
    hasher.write_u8(0xff);
    match &place.target {
        Target::Tcp(address) => hasher.write(address.to_string().as_bytes()),
        Target::Unix(path) => hasher.write(path.as_os_str().as_encoded_bytes()),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::table::TableConfig;
    use super::*;

    fn located(upstream: u16, port: u16) -> Located {
        Located {
            upstream: UpstreamId(upstream),
            name: format!("tcp://broker:{port}").into(),
            target: Target::Tcp(SocketAddr::from(([127, 0, 0, 1], port))),
        }
    }

    fn table(endpoints_max: u16) -> Table {
        Table::new(&TableConfig {
            endpoints_max,
            ..TableConfig::default()
        })
    }

    fn cells(directory: &Directory, upstream: u16) -> Vec<u16> {
        directory
            .endpoints(UpstreamId(upstream))
            .iter()
            .map(|endpoint| endpoint.cell.0)
            .collect()
    }

    #[test]
    fn endpoints_keep_their_cell_and_new_ones_take_free_cells() {
        let table = table(4);
        let none = Directory::default();
        let first = Directory::build(&none, &table, vec![located(2, 1), located(1, 2)]).unwrap();
        assert_eq!((cells(&first, 2), cells(&first, 1)), (vec![0], vec![1]));
        let second = Directory::build(&first, &table, vec![located(1, 2), located(1, 3)]).unwrap();
        assert_eq!(cells(&second, 1), vec![1, 2]);
        assert!(second.endpoints(UpstreamId(2)).is_empty());
    }

    #[test]
    fn a_cell_with_open_connections_is_not_given_away() {
        let table = table(2);
        let first = Directory::build(&Directory::default(), &table, vec![located(1, 1)]).unwrap();
        table.endpoint(EndpointCell(0)).unwrap().connected();
        let second = Directory::build(&first, &table, vec![located(1, 2)]).unwrap();
        assert_eq!(cells(&second, 1), vec![1]);
        let third = Directory::build(&second, &table, vec![located(1, 3)]);
        assert_eq!(third, Err(DirectoryError::TooManyEndpoints(2)));
        table.endpoint(EndpointCell(0)).unwrap().disconnected();
        let third = Directory::build(&second, &table, vec![located(1, 3)]).unwrap();
        assert_eq!(cells(&third, 1), vec![0]);
    }

    #[test]
    fn the_same_place_twice_is_one_endpoint() {
        let table = table(4);
        let first = Directory::build(&Directory::default(), &table, vec![located(1, 1)]).unwrap();
        let again = Directory::build(&first, &table, vec![located(1, 1), located(1, 1)]).unwrap();
        assert_eq!(again, first);
        let fresh = Directory::build(
            &Directory::default(),
            &table,
            vec![located(1, 1), located(1, 1)],
        );
        assert_eq!(fresh.unwrap().endpoints(UpstreamId(1)).len(), 1);
    }
}
