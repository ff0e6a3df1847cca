//! Calls that schemathesis makes up from the OpenAPI document: none is answered by 5xx, or by what the
//! document does not say. All reach a real manager with traffic, whose books must balance afterwards.

mod common;
#[path = "common/lab.rs"]
mod lab;

use common::Console;
use lab::Lab;
use std::path::PathBuf;
use std::process::Command;

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance";
/// Calls of both tests together are 10,000 at least where so many are wanted.
const LEAST_CALLS: u64 = 5000;

/// The program: `$MILLRACE_SCHEMATHESIS`, or the one on the path; Debian has no package of it.
fn schemathesis() -> Option<PathBuf> {
    if !common::long_is_wanted() {
        return None;
    }
    let named = std::env::var_os("MILLRACE_SCHEMATHESIS");
    let program = named.map_or_else(|| "schemathesis".into(), PathBuf::from);
    if Command::new(&program).arg("--version").output().is_ok() {
        return Some(program);
    }
    common::skip("schemathesis is not here: MILLRACE_SCHEMATHESIS does not name it");
    None
}

/// Lets it loose on a console; returns how many calls it made. `MILLRACE_WEB_EXAMPLES` says how many cases
/// an operation gets beside those of its schema's edges.
fn fuzz(program: &PathBuf, console: &Console) -> u64 {
    let examples = std::env::var("MILLRACE_WEB_EXAMPLES").unwrap_or_else(|_| "40".into());
    // Whatever it writes goes with this.
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .current_dir(folder.path())
        .arg("run")
        .arg(format!("http://{}/api/v1/openapi.json", console.address))
        // A stream does not end.
        .args(["--exclude-path", "/api/v1/events", "--phases", "coverage,fuzzing"])
        .args(["--checks", CHECKS, "--continue-on-failure", "-n", &examples])
        .args(["--generation-database", "none", "--warnings", "off", "--no-shrink"])
        .args(["--request-timeout", "25"])
        .env("NO_COLOR", "1")
        .env("HYPOTHESIS_STORAGE_DIRECTORY", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let summary = said.lines().rev().find(|line| line.contains(" generated"));
    let summary = summary.unwrap_or_else(|| panic!("no summary: {said}")).trim();
    tell(summary);
    assert!(output.status.success(), "{said}");
    let calls = summary.split_whitespace().next().map(|calls| calls.replace(',', ""));
    calls.and_then(|calls| calls.parse().ok()).unwrap_or_else(|| panic!("{summary}"))
}

#[allow(clippy::print_stdout)] // How many calls there were is what the test is for.
fn tell(summary: &str) {
    println!("schemathesis: {summary}");
}

#[track_caller]
fn no_call_breaks(options: &[&str]) -> Option<Lab> {
    let program = schemathesis()?;
    let lab = Lab::start()?;
    let console =
        Console::start_with(&lab.socket(), &[&["--interval-ms", "100"], options].concat());
    console.wait_for_code(200);
    let calls = fuzz(&program, &console);
    assert!(calls >= LEAST_CALLS, "{calls} calls");
    assert_eq!(console.get("/healthz").json()["manager"], "up");
    Some(lab)
}

#[test]
fn no_call_that_the_document_allows_or_forbids_breaks_a_console_that_may_do_all() {
    let Some(mut lab) = no_call_breaks(&["--allow-changes", "--allow-captures"]) else { return };
    // Whatever became of rules, chains and NFs: every packet and every buffer is accounted for.
    lab.stop();
}

#[test]
fn no_look_that_the_document_allows_or_forbids_disturbs_a_manager() {
    let Some(mut lab) = no_call_breaks(&[]) else { return };
    let drops = lab.status().unwrap().drops;
    assert!(drops.iter().all(|drop| drop.reason == "no_instance"), "{drops:?}");
    lab.stop();
}
