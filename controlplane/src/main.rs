//! The program: reads the command line and runs the control plane.

use std::process::ExitCode;

use clap::Parser;
use sluice_controlplane::boot;
use sluice_controlplane::config::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None => boot::run(&cli.run),
        Some(Command::Run(args)) => boot::run(&args),
        Some(Command::Token(args)) => boot::token(&args),
    }
}
