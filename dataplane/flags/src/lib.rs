//! What the command lines of Sluice's programs share: an environment variable for each flag, a file for flags, shell
//! completion and man pages.
//!
//! Owns no flag: it works on the `clap` command of a program. A flag has its value from the command line, else from its
//! environment variable, else from the file, else it has its default. Reads the environment through `clap`, and the one
//! file it is given.

mod file;
mod layers;
mod pages;
mod settings;
mod variables;

pub use file::{FileProblem, FlagFile};
pub use layers::{EXIT_USAGE, Given, Unusable, parse};
pub use pages::{CompletionArgs, ManArgs};
pub use settings::{ConfigCommand, Settings};
pub use variables::{broken_rules, with_variables};

/// The flag, in every program that has it, that names the file for flags.
const CONFIG: &str = "config";
