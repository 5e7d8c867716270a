//! The static binary in the sandbox.
fn main() {}
