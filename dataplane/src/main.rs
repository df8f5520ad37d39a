//! The program: reads the command line, then runs the data plane or answers a question offline.

use std::process::ExitCode;

use clap::Parser;
use sluice_dataplane::{boot, cli};

fn main() -> ExitCode {
    match cli::Cli::parse().resolve() {
        Ok(args) => boot::run(&args),
        Err(question) => cli::answer(&question),
    }
}
