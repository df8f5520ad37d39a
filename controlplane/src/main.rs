//! The program: reads the command line and runs the control plane.

use std::process::ExitCode;

use sluice_controlplane::boot;
use sluice_controlplane::config::{self, Command};
use tikv_jemallocator::Jemalloc;

/// Gives memory back by itself, in the background, a second or so after it was freed: a document that was tried may have
/// taken gigabytes. How it was chosen and how it is set is in the README of the data plane, under Libraries.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let given = match config::parse(std::env::args_os()) {
        Ok(given) => given,
        Err(code) => return ExitCode::from(code),
    };
    let code = match &given.cli.command {
        None => return boot::run(&given.cli.run),
        Some(Command::Run(args)) => return boot::run(args),
        Some(Command::Token(args)) => return boot::token(args),
        Some(Command::Config(config)) => config.answer(&given, &mut std::io::stdout()),
        Some(Command::Completion(args)) => {
            args.answer(given.command.clone(), &mut std::io::stdout())
        }
        Some(Command::Man(args)) => args.answer(given.command.clone(), &mut std::io::stdout()),
    };
    ExitCode::from(code)
}
