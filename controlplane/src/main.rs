//! The program: reads the command line and runs the control plane.

fn main() {}
