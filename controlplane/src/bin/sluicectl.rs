//! The operator's command line. Its words, answers and exit codes are `sluice_controlplane::ctl`'s.

use std::process::ExitCode;

fn main() -> ExitCode {
    sluice_controlplane::ctl::run(std::env::args_os())
}
