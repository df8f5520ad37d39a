//! Runs a program that must not outlive its parent: `sluice-tether PROGRAM ARGS...`.
//!
//! Asks the kernel for SIGKILL at the parent's death, then becomes the program, so the process id stays the same. Used by
//! the test harness and the quickstart for everything they start.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

#[allow(clippy::print_stderr)] // a program's voice
fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(program) = args.next() else {
        eprintln!("usage: sluice-tether PROGRAM ARGS...");
        return ExitCode::from(2);
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("sluice-tether: cannot tie the process to its parent: {error}");
        return ExitCode::FAILURE;
    }
    // The parent may have died before the line above; then nobody of our namespace is the parent.
    if getppid().is_none() {
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(args).exec();
    eprintln!("sluice-tether: cannot run {}: {error}", program.display());
    ExitCode::FAILURE
}
