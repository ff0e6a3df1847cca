//! Packets that NFs make and that circulate among NFs: loans, jumps, and `millrace-nf speed-test`.
//!
//! Real managers, real NFs. Each test ends with the same assertion: the books balance and all buffers
//! are back in the pool.

#[path = "support/running.rs"]
mod running;
#[path = "support/skip.rs"]
mod skip;
#[path = "live_control/tables.rs"]
#[allow(dead_code)]
mod tables;

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nflib::control::{Edit, Status};
use nix::sys::signal::Signal;
use running::{BUFFERS, Manager, Process, nf_program, nfs_of, until};
use tables::{by_hand, chain, services, sink};

/// Packets in flight, where a test does not say otherwise.
const IN_FLIGHT: u64 = 256;
const KEYS: &str = "ring_capacity = 1024";

/// A manager whose one port brings nothing.
fn start(keys: &str, tables: &str) -> Manager {
    Manager::start(keys, &(sink("out") + tables))
}

/// A manager with a `speed-test` to be started, alone in its chain.
fn start_alone() -> Manager {
    start(KEYS, &(by_hand("speed") + &chain("loop", &["speed"])))
}

fn speed_test(manager: &Manager, program: &Path, more: &[&str]) -> Process {
    let nf = Command::new(program)
        .args(["speed-test", "--log", "error", "--service", "speed", "--socket"])
        .arg(manager.socket())
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    Process(nf.unwrap())
}

fn circulating(manager: &Manager, program: &Path, to: &[&str]) -> Process {
    let in_flight = IN_FLIGHT.to_string();
    let more = [&["--packets-in-flight", &in_flight], to].concat();
    speed_test(manager, program, &more)
}

fn rounds(status: &Status) -> u64 {
    nfs_of(status, "speed").map(|nf| nf.rx_pkts).sum()
}

/// Waits until so many more packets have come back, and returns the status then.
#[track_caller]
fn after_rounds(manager: &Manager, more: u64) -> Status {
    let before = rounds(&manager.status());
    until("packets come back", || {
        let status = manager.status();
        (rounds(&status) >= before + more).then_some(status)
    })
}

/// What NFs got from workers and gave them.
fn through_the_manager(status: &Status) -> Vec<(u64, u64)> {
    status.nfs.iter().map(|nf| (nf.from_manager_pkts, nf.to_manager_pkts)).collect()
}

/// That packets circulate and the workers see nothing of it.
#[track_caller]
fn assert_circulates_directly(manager: &Manager) {
    until("all packets are lent", || {
        (manager.status().accounting.lent_pkts == IN_FLIGHT).then_some(())
    });
    let before = after_rounds(manager, 2 * IN_FLIGHT);
    let after = after_rounds(manager, 100 * IN_FLIGHT);
    assert_eq!(through_the_manager(&after), through_the_manager(&before));
    assert_eq!(after.accounting.held_pkts, IN_FLIGHT, "{:?}", after.drops);
    assert!(after.drops.is_empty(), "{:?}", after.drops);
}

/// Ends a `speed-test` in good order: its packets are dropped by it, and nothing is left.
#[track_caller]
fn end(manager: &Manager, mut nf: Process) {
    nf.signal(Signal::SIGTERM);
    assert_eq!(nf.exit_code(), Some(0), "{}", nf.complaint());
    manager.assert_all_back();
    let status = manager.status();
    for drop in &status.drops {
        let expected = ("service:speed", "nf_drop");
        assert_eq!((&*drop.place, &*drop.reason), expected, "{:?}", status.drops);
    }
}

fn said(nf: &mut Process) -> String {
    let mut said = String::new();
    nf.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    said
}

#[test]
fn packets_circulate_at_one_nf_without_the_manager() {
    let Some(program) = nf_program() else { return };
    let manager = start_alone();
    let nf = circulating(&manager, &program, &[]);
    assert_circulates_directly(&manager);
    let status = manager.status();
    assert_eq!(status.nfs[0].direct_to, [status.nfs[0].instance], "it has an edge to itself");
    end(&manager, nf);
    assert_eq!(manager.status().plan.unordered_changes, 0, "it let its packets go");
    manager.stop();
}

/// A loop through these NFs, started by the manager, and a `speed-test` at their end.
fn loop_through(names: &[&str]) {
    let Some(program) = nf_program() else { return };
    let all = [names, &["speed"]].concat();
    let manager = start(KEYS, &(services(names) + &by_hand("speed") + &chain("loop", &all)));
    let nf = circulating(&manager, &program, &["--to", names[0]]);
    assert_circulates_directly(&manager);
    let status = after_rounds(&manager, IN_FLIGHT);
    for name in names {
        let nf = nfs_of(&status, name).next().unwrap();
        assert!(nf.rx_pkts > 100 * IN_FLIGHT, "every packet passes {name}: {}", nf.rx_pkts);
    }
    end(&manager, nf);
    assert_eq!(manager.status().plan.unordered_changes, 0);
    manager.stop();
}

#[test]
fn packets_circulate_through_two_nfs_without_the_manager() {
    loop_through(&["fwd"]);
}

#[test]
fn packets_circulate_through_four_nfs_without_the_manager() {
    loop_through(&["one", "two", "three"]);
}

#[test]
fn two_nfs_send_packets_to_each_other_by_name() {
    let Some(program) = nf_program() else { return };
    let forward = "[[service]]\nname = \"fwd\"\ninstances = 1\ncommand = [\"millrace-nf\", \
                   \"forward\", \"--log\", \"error\", \"--to-service\", \"speed\"]\n";
    let tables = by_hand("speed") + forward + &chain("loop", &["speed", "fwd"]);
    let manager = start(KEYS, &tables);
    let nf = circulating(&manager, &program, &["--to", "fwd"]);
    assert_circulates_directly(&manager);
    end(&manager, nf);
    manager.stop();
}

#[test]
fn an_isolated_service_circulates_by_way_of_the_manager_for_as_long_as_it_likes() {
    let Some(program) = nf_program() else { return };
    let tables = by_hand("speed") + "isolated = true\n" + &chain("loop", &["speed"]);
    let manager = start(KEYS, &tables);
    let nf = speed_test(&manager, &program, &["--packets-in-flight", "2"]);
    until("they are lent", || (manager.status().accounting.lent_pkts == 2).then_some(()));
    let status = after_rounds(&manager, 2000);
    assert!(status.nfs[0].direct_to.is_empty() && status.nfs[0].to_manager_pkts > 1000);
    end(&manager, nf);
    manager.stop();
}

#[test]
fn packets_that_an_nf_made_pass_the_manager_by_the_burst_for_as_long_as_it_likes() {
    let Some(program) = nf_program() else { return };
    let speed = by_hand("speed") + "isolated = true\n";
    let manager = start(KEYS, &(services(&["fwd"]) + &speed + &chain("loop", &["fwd", "speed"])));
    let nf = speed_test(&manager, &program, &["--packets-in-flight", "2", "--to", "fwd"]);
    until("they are lent", || (manager.status().accounting.lent_pkts == 2).then_some(()));
    // More rounds for each than a packet that came in by a port may have.
    after_rounds(&manager, 2000);
    end(&manager, nf);
    manager.stop();
}

#[test]
fn every_worker_lends_its_part() {
    let Some(program) = nf_program() else { return };
    let port = "[[port]]\nname = \"out\"\nbackend = \"sink\"\nqueues = 2\n";
    let tables = port.to_owned() + &by_hand("speed") + &chain("loop", &["speed"]);
    let manager = Manager::start("workers = 2\nring_capacity = 1024", &tables);
    let nf = circulating(&manager, &program, &[]);
    assert_circulates_directly(&manager);
    end(&manager, nf);
    manager.stop();
}

#[test]
fn what_a_killed_speed_test_had_is_found_wherever_it_was() {
    let Some(program) = nf_program() else { return };
    let tables = services(&["fwd"])
        + &by_hand("speed")
        + &chain("alone", &["speed"])
        + &chain("loop", &["fwd", "speed"]);
    let manager = start(KEYS, &tables);
    for round in 0..6 {
        let to = if round % 2 == 0 { "speed" } else { "fwd" };
        let mut nf = circulating(&manager, &program, &["--to", to]);
        until("all packets are lent", || {
            (manager.status().accounting.lent_pkts == (round + 1) * IN_FLIGHT).then_some(())
        });
        after_rounds(&manager, 3 * IN_FLIGHT);
        nf.0.kill().unwrap();
        nf.0.wait().unwrap();
        until("it is gone", || nfs_of(&manager.status(), "speed").next().is_none().then_some(()));
        manager.assert_all_back();
    }
    let status = manager.status();
    let lost: u64 = status.drops.iter().map(|drop| drop.pkts).sum();
    assert_eq!(lost, 6 * IN_FLIGHT);
    for drop in &status.drops {
        assert!(["nf_gone", "no_instance"].contains(&&*drop.reason), "{:?}", status.drops);
    }
    manager.stop();
}

#[test]
fn when_another_nf_of_the_loop_dies_the_books_still_balance() {
    let Some(program) = nf_program() else { return };
    let tables = by_hand("fwd") + &by_hand("speed") + &chain("loop", &["fwd", "speed"]);
    let manager = start(KEYS, &tables);
    let nf = circulating(&manager, &program, &["--to", "fwd"]);
    // What it asked for waits for its chain.
    until("it is there", || (manager.status().nfs.len() == 1).then_some(()));
    assert_eq!(manager.status().accounting.lent_pkts, 0);
    let mut forward = manager.nf(&program, "fwd");
    assert_circulates_directly(&manager);
    forward.0.kill().unwrap();
    forward.0.wait().unwrap();
    manager.assert_all_back();
    drop(nf);
    manager.stop();
}

#[test]
fn what_runs_can_be_changed_while_packets_circulate() {
    let Some(program) = nf_program() else { return };
    let tables = services(&["fwd"]) + &by_hand("speed") + &chain("loop", &["fwd", "speed"]);
    let manager = start(KEYS, &tables);
    let nf = circulating(&manager, &program, &["--to", "fwd"]);
    assert_circulates_directly(&manager);
    for round in 0..3 {
        let name = format!("more-{round}");
        let more = nflib::control::ChainSpec {
            name,
            end: "egress".into(),
            services: vec![nflib::control::ServiceRef::Name("fwd".into())],
            ..Default::default()
        };
        manager.edit(vec![Edit::SetChain { chain: more, new: true }]).unwrap();
        let status = after_rounds(&manager, 10 * IN_FLIGHT);
        assert_eq!(status.accounting.held_pkts, IN_FLIGHT);
    }
    let status = manager.status();
    assert_eq!((status.chains.len(), status.accounting.lent_pkts), (4, IN_FLIGHT));
    assert_eq!(status.plan.unordered_changes, 3, "each gave up waiting for them");
    end(&manager, nf);
    manager.stop();
}

#[test]
fn a_speed_test_outlives_its_manager_and_gets_its_packets_from_the_next_one() {
    let Some(program) = nf_program() else { return };
    let mut manager = start_alone();
    let nf = circulating(&manager, &program, &[]);
    assert_circulates_directly(&manager);
    manager.kill_and_start_again();
    assert_circulates_directly(&manager);
    end(&manager, nf);
    manager.stop();
}

#[test]
fn a_stopping_manager_gets_back_what_circulates() {
    let Some(program) = nf_program() else { return };
    let manager = start_alone();
    let mut nf = circulating(&manager, &program, &[]);
    assert_circulates_directly(&manager);
    let said = manager.stop();
    assert!(said.contains(&format!("lent {IN_FLIGHT}")), "{said}");
    assert_eq!(nf.exit_code(), Some(0));
}

fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn figures_are_printed_as_json_and_latencies_with_them() {
    let Some(program) = nf_program() else { return };
    let manager = start_alone();
    for mode in [&["--latency"][..], &["--sample", "100", "--touch", "payload"]] {
        let more = [&["--json", "--print-every", "1", "--time-limit-s", "4"], mode].concat();
        let mut nf = speed_test(&manager, &program, &more);
        assert_eq!(nf.exit_code(), Some(0), "{}", nf.complaint());
        let lines = json_lines(&said(&mut nf));
        let (total, periods) = lines.split_last().unwrap();
        assert_eq!(total["period"], "total");
        assert!(!periods.is_empty() && periods.iter().all(|line| line["period"] == "period"));
        let rounds = |line: &serde_json::Value| line["rounds"].as_u64().unwrap();
        assert!(rounds(total) >= periods.iter().map(rounds).sum());
        let latency = &total["latency"];
        let ns = |name: &str| latency[name].as_u64().unwrap();
        assert!(ns("samples") > 0 && ns("p50_ns") > 0, "{total}");
        let ordered = [ns("p50_ns"), ns("p99_ns"), ns("p99_9_ns"), ns("max_ns")];
        assert!(ordered.is_sorted(), "{total}");
        if mode == ["--latency"] {
            assert_eq!(total["packets_in_flight"], 1);
            assert_eq!(ns("samples"), rounds(total), "every round is timed");
        }
        manager.assert_all_back();
    }
    manager.stop();
}

#[test]
fn what_cannot_be_lent_or_reached_is_refused_in_one_line_that_names_the_limit() {
    let Some(program) = nf_program() else { return };
    let tables = by_hand("speed") + &by_hand("idle") + &chain("loop", &["speed"]);
    let manager = start("ring_capacity = 65536", &tables);
    let half_the_pool = (BUFFERS / 2 + 1).to_string();
    let (ring, pool) = ("half of manager.ring_capacity", "half of pool.buffers");
    let cases: [(&[&str], &[&str]); 5] = [
        (&["--packets-in-flight", "32769"], &["32769 packets", "at most 32768", ring]),
        (&["--packets-in-flight", &half_the_pool], &["8193 packets", "at most 8192", pool]),
        (&["--to", "nobody"], &["\"nobody\"", "speed"]),
        (&["--packet-bytes", "9000"], &["--packet-bytes 9000", "at most 1792"]),
        (&["--service", "idle"], &["\"idle\" is in no chain"]),
    ];
    for (more, expected) in cases {
        let mut nf = Process(
            Command::new(&program)
                .args(["speed-test", "--log", "error", "--socket"])
                .arg(manager.socket())
                .args(if more[0] == "--service" { &[][..] } else { &["--service", "speed"] })
                .args(more)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        assert_eq!(nf.exit_code(), Some(1), "{more:?}");
        let said = nf.complaint();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(expected.iter().all(|part| said.contains(part)), "{said}");
    }
    manager.assert_all_back();
    manager.stop();
}
