//! The program: reads the command line, then runs the data plane or answers a question offline.

use std::process::ExitCode;

use sluice_dataplane::{boot, cli};
use tikv_jemallocator::Jemalloc;

/// Gives memory back by itself, in the background, a second or so after it was freed: a policy that was replaced may have
/// taken a gigabyte. How it was chosen and how it is set is in the README, under Libraries.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let given = match cli::parse(std::env::args_os()) {
        Ok(given) => given,
        Err(code) => return code,
    };
    match cli::answer(&given) {
        Ok(args) => boot::run(args),
        Err(code) => code,
    }
}
