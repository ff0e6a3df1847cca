//! Where buffers are: asked while packets flow, and while an NF stands still with some.

use std::process::Command;

use nflib::control::{BufferReport, BufferUse, Reply, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::running::{BUFFERS, Manager, nf_program, nfs_of, until};
use super::scale::wait_for_pkts;
use super::tables::{WAITING, chain, chain_to, few_to, service_with, services, sink, traffic};

#[track_caller]
fn report(manager: &Manager, buffer: Option<u32>) -> BufferReport {
    let Reply::Buffers(report) = manager.ask(&Request::Buffers { buffer }) else {
        panic!("no answer");
    };
    let sum: u64 = report.places.iter().map(|place| place.buffers).sum();
    assert!(report.balanced && report.twice == 0, "{report:?}");
    assert_eq!((sum, report.total), (BUFFERS, BUFFERS), "{report:?}");
    *report
}

fn count(report: &BufferReport, used_for: BufferUse, place: &str) -> u64 {
    let places = report.places.iter();
    let these = places.filter(|found| found.used_for == used_for && found.place == place);
    these.map(|found| found.buffers).sum()
}

fn millrace(manager: &Manager, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_millrace"))
        .args(args)
        .arg("--socket")
        .arg(manager.socket())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn every_buffer_has_one_place_while_packets_flow_and_while_nfs_stand_still_with_some() {
    if nf_program().is_none() {
        return;
    }
    let tables = traffic()
        + &sink("other")
        + &services(&["first", "second"])
        + &service_with("alone", 1, "isolated = true")
        + &chain("default", &["first", "second"])
        + &chain_to("few", &["alone"], "out:other")
        + &few_to("few");
    let manager = Manager::start(WAITING, &tables);
    let status = manager.settled(&[("first", 1), ("second", 1), ("alone", 1)]);
    wait_for_pkts(&manager, 300);
    for _ in 0..200 {
        report(&manager, None);
    }
    let [first, second, alone] =
        ["first", "second", "alone"].map(|name| nfs_of(&status, name).next().unwrap());
    for nf in [second, alone] {
        kill(Pid::from_raw(nf.pid), Signal::SIGSTOP).unwrap();
    }
    let edge = format!("nf:{}>nf:{}", first.instance, second.instance);
    let to_alone = format!("nf:{}", alone.instance);
    until("packets pile up before those who stand still", || {
        let report = report(&manager, None);
        let waiting = [(BufferUse::InEdge, &edge), (BufferUse::ToNf, &to_alone)];
        waiting.iter().all(|(used, place)| count(&report, *used, place) > 20).then_some(())
    });
    let one = (0..BUFFERS as u32).map(|buffer| report(&manager, Some(buffer)).buffer.unwrap());
    let in_edge = one.into_iter().find(|one| one.place.used_for == BufferUse::InEdge).unwrap();
    assert_eq!((in_edge.chain.as_deref(), in_edge.hop), (Some("default"), Some(0)), "{in_edge:?}");
    assert_eq!((in_edge.ingress.as_deref(), in_edge.place.place), (Some("in"), edge));

    let number = in_edge.buffer.to_string();
    let (code, said, _) = millrace(&manager, &["doctor", "buffers", "--buffer", &number]);
    assert_eq!(code, Some(0));
    assert!(
        said.contains(&format!("{BUFFERS} of {BUFFERS} buffers: each has one place")),
        "{said}"
    );
    assert!(said.contains(&format!("buffer {number}: in a direct edge (nf:")), "{said}");
    let (code, said, complaint) = millrace(&manager, &["doctor", "buffers", "--buffer", "16384"]);
    assert_eq!((code, said.as_str()), (Some(1), ""));
    assert_eq!(complaint, "millrace: there is no buffer 16384: they are 0 to 16383\n");
    for nf in [second, alone] {
        kill(Pid::from_raw(nf.pid), Signal::SIGCONT).unwrap();
    }
    manager.stop();
}
