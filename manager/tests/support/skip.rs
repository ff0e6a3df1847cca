//! Tests that need what is not everywhere say so; where all must run, that is a failure.

/// Prints why a test does not run here; fails instead when `MILLRACE_MUST_RUN=1`.
#[track_caller]
#[allow(clippy::print_stdout)] // shown by the test harness
pub fn skip(reason: &str) {
    let must_run = std::env::var_os("MILLRACE_MUST_RUN").is_some_and(|value| value == "1");
    assert!(!must_run, "this test must run here, and cannot: {reason}");
    println!("skipped: {reason}");
}
