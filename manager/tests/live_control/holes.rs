//! An isolated NF that punches holes into everything it was given.

use std::os::fd::AsFd as _;
use std::time::Duration;

use nflib::control::{self, AttachRequest, MAX_REPLY_BYTES, Reply, Request, ServiceRef};
use nflib::shm::Region;
use nix::fcntl::{FallocateFlags, fallocate};

use super::running::{Manager, assert_faultless, nf_program, nfs_of};
use super::scale::wait_for_pkts;
use super::tables::{WAITING, by_hand, chain, chain_to, few_to, services, sink, traffic};

#[test]
fn an_isolated_nf_that_punches_holes_everywhere_harms_neither_the_manager_nor_bystanders() {
    if nf_program().is_none() {
        return;
    }
    let tables = traffic()
        + &sink("other")
        + &services(&["first", "second"])
        + &by_hand("hostile")
        + "isolated = true\n"
        + &chain("default", &["first", "second"])
        + &chain_to("few", &["hostile"], "out:other")
        + &few_to("few");
    let manager = Manager::start(WAITING, &tables);
    let socket = manager.connect();
    let request = AttachRequest::new("hostile", ServiceRef::Name("hostile".into()));
    control::send(&socket, &Request::Attach(request), &[]).unwrap();
    let (reply, fds) = control::recv(&socket, MAX_REPLY_BYTES).unwrap();
    let Reply::Attached(terms) = reply else { panic!("{reply:?}") };
    assert!(terms.own_region);
    manager.settled(&[("first", 1), ("second", 1), ("hostile", 1)]);
    wait_for_pkts(&manager, 500);

    let region = Region::from_fd_sparse(fds[0].try_clone().unwrap(), terms.region).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let before = manager.status();
    let mut punched = 0;
    for round in 0..200 {
        for fd in [&fds[0], &fds[1], &fds[3]] {
            punched += u32::from(fallocate(fd.as_fd(), punch, 0, 1 << 30).is_ok());
        }
        // Still there, cut as it was, and full of what it likes.
        assert!(region.write(round, 0, &[0xee; 2048]));
        std::thread::sleep(Duration::from_millis(2));
        if round % 50 == 0 {
            manager.status();
        }
    }
    assert_eq!(punched, 600, "the holes were punched");
    wait_for_pkts(&manager, 500);
    let status = manager.status();
    assert_faultless(&status, "out");
    for name in ["first", "second"] {
        let nf = |status| nfs_of(status, name).next().map(|nf| (nf.instance, nf.violations));
        assert_eq!(nf(&status), nf(&before), "{name} noticed nothing");
    }
    drop(socket);
    manager.settled(&[("hostile", 0)]);
    manager.stop();
}
