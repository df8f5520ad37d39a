//! The program: arguments, start, wait for a signal.

fn main() {}
