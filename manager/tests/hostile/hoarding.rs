//! Intruders that keep what they are given.

use nflib::control::Status;

use super::intruder::Intruder;
use super::running::{BUFFERS, until};
use super::stage::{Place, Stage, set, set_with};

fn dropped(status: &Status, reason: &str) -> u64 {
    status.drops.iter().filter(|drop| drop.reason == reason).map(|drop| drop.pkts).sum()
}

/// Takes everything and gives nothing back, until its credit is used up. Returns what NFs have then.
fn hoard(stage: &Stage, intruder: &mut Intruder) -> u64 {
    until("its credit is used up", || {
        intruder.take();
        let status = stage.manager.status();
        (dropped(&status, "no_credit") > 500).then_some(())
    });
    let status = stage.manager.status();
    let service = status.services.iter().find(|service| service.name == "evil").unwrap();
    assert!(service.drops["no_credit"] > 500, "at its place: {:?}", status.drops);
    // What it has and may have is shown: of itself, or of its chain.
    let nf = status.nfs.iter().find(|nf| nf.instance == intruder.instance()).unwrap();
    let chain = status.chains.iter().find(|chain| chain.spec.name == "default").unwrap();
    let (held, credit) = nf
        .credit_pkts
        .map_or((chain.held_pkts, chain.credit_pkts), |credit| (nf.held_pkts, credit));
    assert!(held + 256 >= credit && held > 500, "{held} of {credit}");
    status.pool.at_nfs
}

#[test]
fn an_isolated_nf_that_keeps_all_packets_gets_no_more_than_half_of_the_pool() {
    let Some((stage, mut intruder)) = set(Place::Isolated) else { return };
    let held = hoard(&stage, &mut intruder);
    assert!(held <= BUFFERS / 2 + 256, "{held} of {BUFFERS}");
    stage.end(intruder);
}

#[test]
fn a_chain_of_the_domain_whose_packets_are_kept_gets_no_more_than_seven_eighths() {
    for place in [Place::Trusted, Place::Before] {
        let Some((stage, mut intruder)) = set(place) else { return };
        let held = hoard(&stage, &mut intruder);
        assert!(held <= BUFFERS / 8 * 7 + 256, "{held} of {BUFFERS}");
        // It hid what it took.
        stage.end_with_domain(intruder);
    }
}

#[test]
fn a_limit_in_the_configuration_is_kept() {
    for place in [Place::Isolated, Place::Trusted] {
        let Some((stage, mut intruder)) = set_with(place, "", "credit_pkts = 700") else { return };
        let held = hoard(&stage, &mut intruder);
        assert!((700..=700 + 400).contains(&held), "{held}");
        stage.end_with_domain(intruder);
    }
}

#[test]
fn two_that_hoard_leave_room_for_others() {
    let Some((stage, mut first)) = set(Place::Isolated) else { return };
    let mut second = Intruder::attach(&stage.manager);
    until("both get packets", || {
        let got = (first.behave(), second.behave());
        (got.0 > 0 && got.1 > 0).then_some(())
    });
    until("both have used their credit up", || {
        first.take();
        second.take();
        let status = stage.manager.status();
        (dropped(&status, "no_credit") > 2000).then_some(())
    });
    let held = stage.manager.status().pool.at_nfs;
    assert!(held <= BUFFERS / 3 * 2 + 256, "{held} of {BUFFERS}");
    drop(second);
    stage.end(first);
}

#[test]
fn who_gives_back_gets_packets_again() {
    let Some((stage, mut intruder)) = set_with(Place::Isolated, "", "credit_pkts = 300") else {
        return;
    };
    let mut kept = Vec::new();
    until("its credit is used up", || {
        kept.extend(intruder.take());
        (dropped(&stage.manager.status(), "no_credit") > 100).then_some(())
    });
    let returned: Vec<_> = kept.iter().map(super::intruder::next).collect();
    intruder.give(&returned);
    let mut got = 0;
    until("it gets packets again", || {
        got += intruder.behave();
        (got > 1000).then_some(())
    });
    stage.assert_unharmed(&intruder);
    stage.end(intruder);
}

#[test]
fn buffers_that_were_lent_are_kept() {
    for place in [Place::Isolated, Place::Trusted] {
        let Some((stage, first)) = set(place) else { return };
        drop(first);
        let mut intruder = Intruder::attach_as(&stage.manager, |request| request.loan_pkts = 1000);
        let mut kept = 0;
        until("it has its loan", || {
            let packets = intruder.take();
            let (loans, others): (Vec<_>, Vec<_>) = packets.iter().partition(|p| p.is_loan());
            kept += loans.len();
            let returned: Vec<_> = others.into_iter().map(super::intruder::next).collect();
            intruder.give(&returned);
            (kept == 1000).then_some(())
        });
        // Another one is told that there is no more.
        let refused = std::panic::catch_unwind(|| {
            Intruder::attach_as(&stage.manager, |request| request.loan_pkts = 100)
        });
        assert!(refused.is_err());
        stage.end_with_domain(intruder);
    }
}

#[test]
fn one_that_stops_with_packets_in_its_hands_stops_alone() {
    for place in [Place::Isolated, Place::Trusted, Place::Behind] {
        let Some((stage, intruder)) = set(place) else { return };
        until("its ring is full", || {
            let status = stage.manager.status();
            (dropped(&status, "nf_ring_full") > 1000).then_some(())
        });
        stage.assert_bystander_well();
        stage.end(intruder);
    }
}
