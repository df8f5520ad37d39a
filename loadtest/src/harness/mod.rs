//! Starts real programs for the end-to-end tests, on free ports, and stops them by process id.
//!
//! Owns processes, their logs and a scratch folder. Knows how Mosquitto and the data plane are started and asked, and
//! nothing of what the tests say to them.

mod admin;
mod controlplane;
mod dataplane;
mod far;
mod fleet;
mod matrix;
mod mosquitto;
mod process;
mod relay;

pub use admin::{HttpAnswer, Metrics, http_get, http_send};
pub use controlplane::{ControlPlane, number_of};
pub use dataplane::{DataPlane, Membership, Setup};
pub use far::{FAR, Far, NEAR, is_in_own_network};
pub use fleet::{Fleet, Guarded, NODE};
pub use matrix::{CELLS, Cell, Engine, Gate, Gates, Visit};
pub use mosquitto::{Mosquitto, find_on_path};
pub use process::{Finished, Program, Running, free_port, scratch, sibling};
pub use relay::{Relay, Way};

/// Declares each scenario four times: with 1 and 3 shards, on io_uring and on epoll, against one [`Gates`].
///
/// A scenario is a function that takes a [`Visit`]; the generated tests are called `<scenario>::uring_1` and so on.
#[macro_export]
macro_rules! on_every_cell {
    ($gates:ident; $($scenario:ident),* $(,)?) => {
        $(
            mod $scenario {
                use $crate::harness::{Cell, Engine};
                #[test]
                fn uring_1() { super::$scenario(&super::$gates.visit(Cell { engine: Engine::Uring, shards: 1 })); }
                #[test]
                fn uring_3() { super::$scenario(&super::$gates.visit(Cell { engine: Engine::Uring, shards: 3 })); }
                #[test]
                fn epoll_1() { super::$scenario(&super::$gates.visit(Cell { engine: Engine::Epoll, shards: 1 })); }
                #[test]
                fn epoll_3() { super::$scenario(&super::$gates.visit(Cell { engine: Engine::Epoll, shards: 3 })); }
            }
        )*
    };
}

/// The same for scenarios that stop or overload what they use: each test starts its own programs from a [`Cell`].
#[macro_export]
macro_rules! on_every_cell_alone {
    ($($scenario:ident),* $(,)?) => {
        $(
            mod $scenario {
                use $crate::harness::{Cell, Engine};
                #[test]
                fn uring_1() { super::$scenario(Cell { engine: Engine::Uring, shards: 1 }); }
                #[test]
                fn uring_3() { super::$scenario(Cell { engine: Engine::Uring, shards: 3 }); }
                #[test]
                fn epoll_1() { super::$scenario(Cell { engine: Engine::Epoll, shards: 1 }); }
                #[test]
                fn epoll_3() { super::$scenario(Cell { engine: Engine::Epoll, shards: 3 }); }
            }
        )*
    };
}
