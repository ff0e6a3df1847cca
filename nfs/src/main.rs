//! millrace-nf
fn main() {}
