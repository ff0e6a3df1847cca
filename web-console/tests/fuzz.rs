//! Calls that schemathesis makes up from the OpenAPI document: none is answered by 5xx, or by what the
//! document does not say. They reach a real manager with traffic, whose books must balance afterwards; but for
//! those by which processes are started, as many as are said and whichever are named: these are tried with a
//! manager of the test's own, which starts none.

mod common;
#[path = "common/lab.rs"]
mod lab;

use common::{Answer, Console, FakeManager};
use lab::Lab;
use std::path::{Path, PathBuf};
use std::process::Command;

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance";
/// Of all three parts together.
const LEAST_CALLS: u64 = 10_000;
const ALL: [&str; 2] = ["--allow-changes", "--allow-captures"];
/// What starts processes.
const STARTING: [&str; 5] =
    ["scaleService", "setServiceCommand", "upgradeService", "applyConfig", "edit"];

/// The program: `$MILLRACE_SCHEMATHESIS`, or the one on the path; Debian has no package of it.
fn schemathesis() -> Option<PathBuf> {
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
fn fuzz(program: &PathBuf, console: &Console, without: &[&str]) -> u64 {
    let examples = std::env::var("MILLRACE_WEB_EXAMPLES").unwrap_or_else(|_| "40".into());
    // Whatever it writes goes with this.
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .current_dir(folder.path())
        .arg("run")
        .arg(format!("http://{}/api/v1/openapi.json", console.address))
        // A stream does not end, and a capture takes as long as is said.
        .args(["--exclude-path", "/api/v1/events", "--exclude-path", "/api/v1/captures/download"])
        .args(["--phases", "coverage,fuzzing"])
        .args(["--checks", CHECKS, "--continue-on-failure", "-n", &examples])
        .args(["--generation-database", "none", "--warnings", "off", "--no-shrink"])
        .args(["--request-timeout", "25"])
        // How well it can make calls up is its own affair.
        .args(["--suppress-health-check", "all"])
        .args(without.iter().flat_map(|operation| ["--exclude-operation-id", operation]))
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

/// Calls to a console started with these options.
#[track_caller]
fn calls(program: &PathBuf, socket: &Path, options: &[&str], without: &[&str]) -> u64 {
    let console = Console::start_with(socket, &[&["--interval-ms", "100"], options].concat());
    console.wait_for_code(200);
    let calls = fuzz(program, &console, without);
    assert_eq!(console.get("/healthz").json()["manager"], "up");
    calls
}

#[test]
fn no_call_that_the_document_allows_or_forbids_breaks_a_console_or_disturbs_a_manager() {
    if !common::long_is_wanted() {
        return;
    }
    let Some(program) = schemathesis() else { return };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("manager.sock");
    let manager = FakeManager::start(&socket, Answer::Full);
    let mut sum = calls(&program, &socket, &ALL, &[]);
    assert!(!manager.others().is_empty(), "some calls were good enough for the manager");

    let Some(mut lab) = Lab::start() else { return };
    sum += calls(&program, &lab.socket(), &[], &[]);
    let drops = lab.status().unwrap().drops;
    // Rings run full where the machine has no time for the NFs, whoever looks.
    let known = ["no_instance", "nf_ring_full"];
    assert!(drops.iter().all(|drop| known.contains(&&*drop.reason)), "{drops:?}");
    sum += calls(&program, &lab.socket(), &ALL, &STARTING);
    // Whatever became of rules, chains and NFs: every packet and every buffer is accounted for.
    lab.stop();
    assert!(sum >= LEAST_CALLS, "{sum} calls");
}
