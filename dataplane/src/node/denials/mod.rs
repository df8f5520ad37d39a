//! Recent refusals, kept by each shard until somebody asks why a device was refused.
//!
//! | file | noun |
//! |---|---|
//! | `ring.rs` | what a shard keeps, within bounds, and each address its share of it |
//! | `query.rs` | what is asked of it, and what is answered |
//! | `text.rs` | names and topics that are safe to show |

mod query;
mod ring;
mod text;

pub use query::{DenialFilter, DenialLine, DenialList, DenialQuery};
pub use ring::{DenialRing, EXPIRES_AFTER};
pub use text::shown;
