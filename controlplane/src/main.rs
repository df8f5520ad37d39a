//! The program: reads the command line and runs the control plane.

use std::process::ExitCode;

use clap::Parser;
use sluice_controlplane::boot;
use sluice_controlplane::config::{Cli, Command};
use tikv_jemallocator::Jemalloc;

/// Gives memory back by itself, in the background, a second or so after it was freed: a document that was tried may have
/// taken gigabytes. How it was chosen and how it is set is in the README of the data plane, under Libraries.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None => boot::run(&cli.run),
        Some(Command::Run(args)) => boot::run(&args),
        Some(Command::Token(args)) => boot::token(&args),
    }
}
