//! millrace-web
fn main() {}
