//! The manager program.
fn main() {}
