//! The store in one SQLite file.

/// See the module documentation.
pub struct Sqlite {}
