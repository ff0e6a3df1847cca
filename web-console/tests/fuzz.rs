//! Calls that schemathesis makes up from the OpenAPI document: none is answered by 5xx, or by what the
//! document does not say.
//!
//! Changes are tried with a manager of the test's own, which starts no processes; all else with a real
//! one, whose books must balance afterwards.

mod common;
#[path = "common/lab.rs"]
mod lab;

use common::{Answer, Console, FakeManager};
use lab::Lab;
use std::process::Command;

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance";

fn is_wanted() -> bool {
    if !common::long_is_wanted() {
        return false;
    }
    // Debian has no package of it.
    let there = Command::new("schemathesis").arg("--version").output().is_ok();
    if !there {
        common::leave_out("schemathesis is not installed (pip install schemathesis)");
    }
    there
}

/// Lets it loose on a console; `MILLRACE_WEB_EXAMPLES` says how many calls an operation gets.
fn fuzz(console: &Console) {
    let examples = std::env::var("MILLRACE_WEB_EXAMPLES").unwrap_or_else(|_| "40".into());
    let output = Command::new("schemathesis")
        .arg("run")
        .arg(format!("http://{}/api/v1/openapi.json", console.address))
        // A stream does not end.
        .args(["--exclude-path", "/api/v1/events", "--phases", "coverage,fuzzing"])
        .args(["--checks", CHECKS, "--continue-on-failure", "-n", &examples])
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let summary = said.lines().rev().find(|line| line.contains(" generated"));
    tell(summary.unwrap_or("no summary"));
    assert!(output.status.success(), "{said}");
}

#[allow(clippy::print_stdout)] // How many calls there were is what the test is for.
fn tell(summary: &str) {
    println!("schemathesis: {}", summary.trim());
}

#[test]
fn no_call_that_the_document_allows_or_forbids_breaks_the_console() {
    if !is_wanted() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("manager.sock");
    let manager = FakeManager::start(&socket, Answer::Full);
    let console = Console::start_with(&socket, &["--interval-ms", "100", "--allow-changes"]);
    console.wait_for_code(200);
    fuzz(&console);
    assert!(!manager.others().is_empty(), "some calls were good enough for the manager");
    assert_eq!(console.get("/healthz").code, 200);
}

#[test]
fn no_look_that_the_document_allows_or_forbids_disturbs_a_manager() {
    if !is_wanted() {
        return;
    }
    let Some(mut lab) = Lab::start() else { return };
    let console = Console::start_with(&lab.socket(), &["--interval-ms", "100"]);
    console.wait_for_code(200);
    fuzz(&console);
    let drops = lab.status().unwrap().drops;
    assert!(drops.iter().all(|drop| drop.reason == "no_instance"), "{drops:?}");
    lab.stop();
}
