//! The real programs together: manager, NFs, command; real sockets, real deaths.
//!
//! Each test ends with the same assertion: the books balance and all buffers are back in the pool.

#[path = "support/running.rs"]
mod running;
#[path = "support/skip.rs"]
mod skip;

use std::io::Read as _;

use nflib::control::{
    self, AttachRequest, DropStatus, ErrorCode, MAX_REPLY_BYTES, Reply, Request, ServiceRef,
    Status, Target, request_status,
};
use nix::sys::signal::Signal;
use running::{Manager, nf_program, until};

fn start(workers: u16, ports: &str, chain: &str) -> Manager {
    start_with(false, workers, ports, chain)
}

/// A manager that receives nothing before all its NFs are there.
fn start_waiting(workers: u16, ports: &str, chain: &str) -> Manager {
    start_with(true, workers, ports, chain)
}

fn start_with(wait: bool, workers: u16, ports: &str, chain: &str) -> Manager {
    let keys = format!("workers = {workers}\nring_capacity = 1024\nwait_for_nfs = {wait}");
    let tables = format!("{ports}\n[[chain]]\nname = \"default\"\nservices = {chain}\n");
    Manager::start(&keys, &tables)
}

fn generator(pkts: u64, rate_pps: u64) -> String {
    format!(
        "[[port]]\nname = \"in\"\nbackend = \"generator\"\nqueues = 2\nflows = 16\n\
         count_pkts = {pkts}\nrate_pps = {rate_pps}\negress = \"out\"\n\
         [[port]]\nname = \"out\"\nbackend = \"sink\"\nqueues = 2\nverify = true\n"
    )
}

/// Counts of the sink that checks what the generator made.
fn verified(status: &Status, what: &str) -> u64 {
    status.ports[1].hw_stats[&format!("verify_{what}_pkts")]
}

fn crosses_two_nfs(workers: u16) {
    let Some(program) = nf_program() else { return };
    // The generator waits for nobody, so both NFs are there first: an attached chain, then traffic.
    let manager = start(workers, &generator(200_000, 100_000), "[1, 2]");
    let _nfs = [manager.nf(&program, "1"), manager.nf(&program, "2")];
    let status = until("the generator is done", || {
        let status = manager.status();
        (status.ports[0].exhausted && status.accounting.held_pkts == 0).then_some(status)
    });
    assert_eq!(status.ports[0].rx_pkts, 200_000);
    // Before the NFs attached, packets were dropped for want of one; afterwards none was.
    let early: u64 = status.drops.iter().map(|drop| drop.pkts).sum();
    for drop in &status.drops {
        assert!(["no_instance", "nf_ring_full"].contains(&drop.reason.as_str()), "{drop:?}");
    }
    assert_eq!(verified(&status, "good"), 200_000 - early);
    assert_eq!((verified(&status, "corrupt"), verified(&status, "reordered")), (0, 0));
    assert_eq!(verified(&status, "duplicate"), 0);
    assert_eq!(status.nfs[1].rx_pkts, status.ports[1].tx_pkts);
    assert_eq!(status.workers.len(), usize::from(workers));
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn packets_cross_two_nf_processes_whole_and_in_order() {
    crosses_two_nfs(1);
}

#[test]
fn a_chain_that_waits_for_its_nfs_loses_none_of_the_first_packets() {
    let Some(program) = nf_program() else { return };
    let manager = start_waiting(1, &generator(50_000, 100_000), "[1, 2]");
    let first = manager.nf(&program, "1");
    assert_eq!(manager.status().ports[0].rx_pkts, 0, "half a chain is waited for");
    let _nfs = [first, manager.nf(&program, "2")];
    let status = until("the generator is done", || {
        let status = manager.status();
        (status.ports[0].exhausted && status.accounting.held_pkts == 0).then_some(status)
    });
    assert_eq!(status.ports[0].rx_pkts, 50_000);
    // A full ring is no fault here; a missing NF would be.
    assert!(status.drops.iter().all(|drop| drop.reason == "nf_ring_full"), "{:?}", status.drops);
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn what_a_chain_cannot_carry_is_dropped_at_its_entrance_and_nowhere_else() {
    let Some(program) = nf_program() else { return };
    // As fast as the generator can, into a chain whose last NF takes long for each packet.
    let manager = start_waiting(1, &generator(1_000_000, 0), "[1, 2, 3]");
    let _nfs = ["1", "2", "3"].map(|service| manager.nf(&program, service));
    let target = Target::Service(ServiceRef::Id(3));
    let told = manager.ask(&Request::Call { target, payload: b"set busy-ns 20000".to_vec() });
    assert!(matches!(&told, Reply::Called { answers } if answers[0].1.is_ok()), "{told:?}");
    let status = until("the generator is done", || {
        let status = manager.status();
        (status.ports[0].exhausted && status.accounting.held_pkts == 0).then_some(status)
    });
    let all: u64 = status.drops.iter().map(|drop| drop.pkts).sum();
    let at_entrance =
        |drop: &&DropStatus| drop.place == "service:1" && drop.reason == "nf_ring_full";
    let entrance: u64 = status.drops.iter().filter(at_entrance).map(|drop| drop.pkts).sum();
    assert!(entrance > status.ports[1].tx_pkts, "there was overload: {:?}", status.drops);
    // A machine that lets an NF wait for longer than its neighbour's patience makes a few others right.
    assert!((all - entrance) * 100 <= all, "{:?}", status.drops);
    assert_eq!((verified(&status, "corrupt"), verified(&status, "reordered")), (0, 0));
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn two_workers_share_the_queues_and_every_packet_is_accounted_for() {
    crosses_two_nfs(2);
}

#[test]
fn a_manager_that_waits_for_nfs_does_not_wait_when_its_chain_has_none() {
    let manager = start_waiting(1, &generator(1000, 0), "[]");
    until("every packet has crossed", || (manager.status().ports[1].tx_pkts == 1000).then_some(()));
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn a_killed_nf_is_gone_from_the_list_and_a_new_one_takes_over() {
    let Some(program) = nf_program() else { return };
    let manager = start(1, &generator(0, 20_000), "[1]");
    for _ in 0..5 {
        let mut nf = manager.nf(&program, "1");
        let before = manager.status().ports[1].tx_pkts;
        until("packets flow", || (manager.status().ports[1].tx_pkts > before).then_some(()));
        nf.0.kill().unwrap();
        nf.0.wait().unwrap();
        until("it is gone from the list", || manager.status().nfs.is_empty().then_some(()));
    }
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn three_hundred_launches_leave_the_manager_as_it_was() {
    let Some(program) = nf_program() else { return };
    let manager = start(1, &generator(0, 10_000), "[1]");
    // Counted over a connection that stays, when the control thread has all that it opens.
    let bystander = manager.connect();
    let open_files = || {
        request_status(&bystander).unwrap();
        manager.open_files()
    };
    let before = open_files();
    for round in 0..300 {
        let mut nf = manager.nf(&program, "1");
        if round % 2 == 0 {
            nf.signal(Signal::SIGTERM);
            assert_eq!(nf.exit_code(), Some(0), "an NF told to stop ends well");
        } else {
            nf.0.kill().unwrap();
            nf.0.wait().unwrap();
        }
        until("it is gone", || manager.status().nfs.is_empty().then_some(()));
    }
    until("no descriptor is left open", || (open_files() <= before + 1).then_some(()));
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn an_nf_outlives_its_manager_and_joins_the_next_one() {
    let Some(program) = nf_program() else { return };
    let mut manager = start(1, &generator(0, 10_000), "[1]");
    let mut nf = manager.nf(&program, "1");
    manager.kill_and_start_again();
    until("the NF is back", || (manager.status().nfs.len() == 1).then_some(()));
    let before = manager.status().ports[1].tx_pkts;
    until("packets flow", || (manager.status().ports[1].tx_pkts > before).then_some(()));
    assert!(nf.0.try_wait().unwrap().is_none(), "it is the same process");
    nf.signal(Signal::SIGTERM);
    assert_eq!(nf.exit_code(), Some(0));
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn an_nf_without_a_place_is_told_why_in_one_line() {
    let Some(program) = nf_program() else { return };
    let manager = start(1, &generator(0, 1000), "[1, 2]");
    let _first = manager.nf(&program, "1");
    let mut nf = manager.spawn_nf(&program, "9");
    assert_eq!(nf.exit_code(), Some(1));
    let said = nf.complaint();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("no service with id 9") && said.contains("there are 1, 2"), "{said}");
    assert_eq!(manager.status().nfs.len(), 1);
    manager.stop();
}

#[test]
fn a_second_nf_of_a_service_shares_its_flows_and_a_third_takes_over() {
    let Some(program) = nf_program() else { return };
    let manager = start_waiting(1, &generator(0, 20_000), "[1]");
    let mut nfs = [manager.nf(&program, "1"), manager.nf(&program, "1")];
    let shares = || manager.status().nfs.iter().map(|nf| nf.flow_share).collect::<Vec<_>>();
    until("both have their share", || (shares() == [0.5, 0.5]).then_some(()));
    let counts = || manager.status().nfs.iter().map(|nf| nf.rx_pkts).collect::<Vec<_>>();
    let before = counts();
    until("both get packets", || {
        counts().iter().zip(&before).all(|(now, before)| now > before).then_some(())
    });
    // One that leaves in good order takes no packet with it.
    nfs[0].signal(Signal::SIGTERM);
    assert_eq!(nfs[0].exit_code(), Some(0));
    until("the other has all flows", || (shares() == [1.0]).then_some(()));
    let _third = manager.nf(&program, "1");
    until("the third has its share", || (shares() == [0.5, 0.5]).then_some(()));
    let status = manager.status();
    assert!(status.drops.is_empty(), "{:?}", status.drops);
    assert_eq!((verified(&status, "lost"), verified(&status, "reordered")), (0, 0));
    manager.stop();
}

#[test]
fn an_nf_of_another_version_is_refused_with_both_versions() {
    let manager = start(1, &generator(0, 1000), "[1]");
    for (protocol, layout) in [(99, nflib::shm::LAYOUT_VERSION), (control::PROTOCOL_VERSION, 99)] {
        let socket = manager.connect();
        let request = AttachRequest {
            protocol,
            layout,
            ..AttachRequest::new("old", control::ServiceRef::Id(1))
        };
        control::send(&socket, &Request::Attach(request), &[]).unwrap();
        let (reply, fds) = control::recv::<Reply>(&socket, MAX_REPLY_BYTES).unwrap();
        let Reply::Error(error) = reply else { panic!("{reply:?}") };
        assert_eq!((error.code, fds.len()), (ErrorCode::Version, 0));
        assert!(error.message.contains("99"), "{error}");
    }
    manager.stop();
}

#[test]
fn a_client_that_talks_nonsense_loses_its_connection_and_nobody_else_s() {
    use std::io::Write as _;
    let manager = start(1, &generator(0, 1000), "[1]");
    let bystander = manager.connect();
    let nonsense: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[255, 255, 255, 255],
        &[2, 0, 0, 0, b'{', b'}'],
        &[4, 0, 0, 0, 0xff, 0xfe, 0xfd, 0xfc],
        b"\x13\x00\x00\x00{\"op\":\"no_such_op\"}",
    ];
    for bytes in nonsense {
        let mut socket = manager.connect();
        socket.write_all(bytes).unwrap();
        let (reply, _) = control::recv::<Reply>(&socket, MAX_REPLY_BYTES).unwrap();
        let Reply::Error(error) = reply else { panic!("{reply:?}") };
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert_eq!(socket.read(&mut [0]).unwrap(), 0, "the connection is closed");
    }
    // A frame that never ends, and one that is cut off, hold nobody up.
    let mut slow = manager.connect();
    slow.write_all(&[200, 0]).unwrap();
    let mut cut = manager.connect();
    cut.write_all(&[200, 0, 0, 0, b'{']).unwrap();
    drop(cut);
    assert!(request_status(&bystander).is_ok());
    manager.stop();
}

#[test]
fn descriptors_sent_where_none_belong_are_closed() {
    use std::os::fd::AsFd as _;
    let manager = start(1, &generator(0, 1000), "[1]");
    let open_files = || manager.open_files();
    let socket = manager.connect();
    request_status(&socket).unwrap();
    let before = open_files();
    let file = std::fs::File::open("/dev/null").unwrap();
    for _ in 0..50 {
        control::send(&socket, &Request::Status, &[file.as_fd(); 8]).unwrap();
        assert!(matches!(
            control::recv::<Reply>(&socket, MAX_REPLY_BYTES),
            Ok((Reply::Status(_), _))
        ));
    }
    // Fewer is possible: the connection that waited for the manager to listen may have closed since.
    assert!(open_files() <= before, "{} files are open, {before} were", open_files());
    manager.stop();
}

#[test]
fn a_stopping_manager_lets_what_is_inside_come_out() {
    let Some(program) = nf_program() else { return };
    let manager = start(1, &generator(0, 50_000), "[1, 2]");
    let mut nfs = [manager.nf(&program, "1"), manager.nf(&program, "2")];
    until("packets flow", || (manager.status().ports[1].tx_pkts > 1000).then_some(()));
    manager.stop();
    for nf in &mut nfs {
        assert_eq!(nf.exit_code(), Some(0), "the NFs are told to go and end well");
    }
}
