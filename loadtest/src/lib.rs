//! Test peers and end-to-end tests.
