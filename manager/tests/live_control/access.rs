//! Services whose NFs may read packets and not change them.

use std::process::Command;

use nflib::control::{self, AttachRequest, MAX_REPLY_BYTES, Reply, ServiceRef};
use nflib::control::{ErrorCode, Request, Target};
use nflib::shm::{Region, RegionError};

use super::running::{Manager, assert_nothing_lost, nf_program, nfs_of, until};
use super::scale::wait_for_pkts;
use super::tables::{WAITING, by_hand, chain, service_with, services, traffic};

const READ_ONLY: &str = "access = \"read-only\"\n";

#[test]
fn a_monitor_between_two_nfs_passes_packets_on_and_cannot_change_them() {
    let Some(program) = nf_program() else { return };
    let tables = traffic()
        + &services(&["first", "last"])
        + &service_with("watch", 1, READ_ONLY)
        + &service_with("alone", 1, &format!("{READ_ONLY}\nisolated = true"))
        + &by_hand("hand")
        + READ_ONLY
        + &chain("default", &["first", "watch", "last", "alone"]);
    let manager = Manager::start(WAITING, &tables);
    let all = [("first", 1), ("watch", 1), ("last", 1), ("alone", 1)];
    let status = manager.settled(&all);
    wait_for_pkts(&manager, 500);
    assert_nothing_lost(&manager.status(), &["out"]);
    let watch = nfs_of(&status, "watch").next().unwrap();
    let last = nfs_of(&status, "last").next().unwrap();
    assert_eq!(watch.direct_to, [last.instance], "it is of the trusted domain");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", watch.pid)).unwrap();
    let modes: Vec<_> = maps
        .lines()
        .filter(|line| line.contains("millrace-region"))
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    assert_eq!(modes, ["r--s"]);

    // What changes packets is refused, in one line each time.
    let payload = b"set swap-macs on".to_vec();
    let call = Request::Call { target: Target::Instance(watch.instance), payload };
    let Reply::Called { answers } = manager.ask(&call) else { panic!("no answer") };
    let answer = answers[0].1.clone().unwrap_err();
    assert!(answer.contains("access is \"read-only\": packets cannot be changed"), "{answer}");
    let mut stamp = Command::new(&program);
    let stamp = stamp.args(["stamp", "--service", "hand", "--socket"]).arg(manager.socket());
    let stamp = stamp.output().unwrap();
    let said = String::from_utf8(stamp.stderr).unwrap();
    assert_eq!(stamp.status.code(), Some(1), "{said}");
    assert!(said.contains("this NF changes packets, and the access of service"), "{said}");
    wait_for_pkts(&manager, 200);
    assert_nothing_lost(&manager.status(), &["out"]);
    manager.stop();
}

#[test]
fn a_monitor_gets_a_descriptor_that_no_mapping_can_write_by_and_no_loans() {
    let tables = traffic() + &by_hand("watch") + READ_ONLY + &chain("default", &["watch"]);
    let manager = Manager::start("", &tables);
    let attach = |loan_pkts| {
        let socket = manager.connect();
        let request = AttachRequest::new("watcher", ServiceRef::Name("watch".into()));
        let request = Request::Attach(AttachRequest { loan_pkts, ..request });
        control::send(&socket, &request, &[]).unwrap();
        (control::recv(&socket, MAX_REPLY_BYTES).unwrap(), socket)
    };
    let ((reply, mut fds), _socket) = attach(0);
    let Reply::Attached(terms) = reply else { panic!("{reply:?}") };
    assert!(terms.read_only);
    let region = fds.remove(0);
    let again = region.try_clone().unwrap();
    assert!(Region::from_fd_read_only(again, terms.region).is_ok());
    let error = Region::from_fd(region, terms.region).unwrap_err();
    assert!(matches!(error, RegionError::Os { what: "mmap", .. }), "{error}");
    let ((reply, _), _socket) = attach(8);
    let Reply::Error(error) = reply else { panic!("{reply:?}") };
    assert_eq!(error.code, ErrorCode::Invalid);
    assert!(error.message.contains("the access of service \"watch\" is \"read-only\""), "{error}");
    // The service is not read-only any more: who attached to it so has to come again.
    let tables = traffic() + &by_hand("watch") + &chain("default", &["watch"]);
    manager.apply(&tables).unwrap();
    until("the monitor is told to leave", || {
        let status = manager.status();
        nfs_of(&status, "watch").all(|nf| nf.state != "running").then_some(())
    });
}
