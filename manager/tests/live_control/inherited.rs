//! What an NF keeps for its successor.

use nflib::control::{Edit, Reply, Request, ServiceRef, Target};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::running::{Manager, nf_program, nfs_of, until, verified};
use super::scale::wait_for_pkts;
use super::tables::{WAITING, chain, traffic};

/// Packets that an NF has seen, by its own word.
fn seen_pkts(manager: &Manager, instance: u32) -> u64 {
    let target = Target::Instance(instance);
    let reply = manager.ask(&Request::Call { target, payload: b"get seen-pkts".to_vec() });
    let Reply::Called { answers } = reply else { panic!("{reply:?}") };
    String::from_utf8(answers[0].1.clone().unwrap()).unwrap().parse().unwrap()
}

#[test]
fn a_successor_goes_on_from_the_counts_of_one_that_was_killed_under_traffic() {
    if nf_program().is_none() {
        return;
    }
    let tables = traffic()
        + "[[service]]\nname = \"mid\"\ncommand = [\"millrace-nf\", \"forward\", \"--log\", \"error\", \
           \"--keep-counts\"]\n"
        + &chain("default", &["mid"]);
    let manager = Manager::start(WAITING, &tables);
    manager.settled(&[("mid", 1)]);
    for generation in 1..=4 {
        let status = manager.settled(&[("mid", 1)]);
        let nf = nfs_of(&status, "mid").next().unwrap();
        assert_eq!(nf.state_generation, generation);
        wait_for_pkts(&manager, 300);
        if generation < 4 {
            kill(Pid::from_raw(nf.pid), Signal::SIGKILL).unwrap();
            until("another takes its place", || {
                nfs_of(&manager.status(), "mid").any(|other| other.pid != nf.pid).then_some(())
            });
        }
    }
    let instance = nfs_of(&manager.status(), "mid").next().unwrap().instance;
    // Nothing more comes to it, so that the count stands still.
    manager
        .edit(vec![Edit::SetChain {
            chain: nflib::control::ChainSpec {
                name: "default".into(),
                end: "egress".into(),
                ..Default::default()
            },
            new: false,
        }])
        .unwrap();
    let status = manager.status();
    let bypassed_from = verified(&status, "out", "good");
    let seen = seen_pkts(&manager, instance);
    let gone: u64 =
        status.drops.iter().filter(|drop| drop.reason == "nf_gone").map(|drop| drop.pkts).sum();
    // What it had counted and not yet passed on when it died was lost.
    assert!(seen <= bypassed_from + gone, "{seen} {bypassed_from} {gone}");
    let least = 4 * 300;
    assert!(seen >= least, "{seen}: the counts of those before are in it");

    // Scaled away and back it is still the one of its place.
    for instances in [0, 1] {
        let service = ServiceRef::Name("mid".into());
        manager.edit(vec![Edit::Scale { service, instances }]).unwrap();
    }
    let status = manager.settled(&[("mid", 1)]);
    let nf = nfs_of(&status, "mid").next().unwrap();
    assert_eq!((nf.state_generation, seen_pkts(&manager, nf.instance)), (5, seen));
    manager.stop();
}
