//! Latencies, sampled all the time.

use nflib::control::{HopLatency, LatencyReport};

use super::running::until;
use super::stage::{Stage, set};

fn report(stage: &Stage) -> LatencyReport {
    stage.json(&["latency"])
}

fn hops(report: &LatencyReport) -> Vec<&HopLatency> {
    report.hops.iter().filter(|hop| hop.chain == "default").collect()
}

#[test]
fn every_hop_is_timed_and_the_whole_way_takes_longer_than_any_part() {
    let Some(stage) = set("") else { return };
    let report = until("samples of all hops", || {
        let report = report(&stage);
        let enough = hops(&report).len() == 3 && hops(&report).iter().all(|h| h.took.count >= 50);
        enough.then_some(report)
    });
    assert_eq!(report.interval_us, 1000);
    let services: Vec<_> = hops(&report).iter().map(|hop| hop.service.clone()).collect();
    assert_eq!(services, ["a", "b", "c"]);
    let chain = report.chains.iter().find(|c| c.chain.as_deref() == Some("default")).unwrap();
    for hop in hops(&report) {
        assert_eq!(hop.wait.count, hop.took.count);
        assert!(chain.total.p50_ns >= hop.wait.p50_ns.max(hop.took.p50_ns), "{report:?}");
        assert_eq!(hop.took.buckets.iter().map(|(_, count)| count).sum::<u64>(), hop.took.count);
    }
    // What is dropped takes no time from port to port, but at its hop.
    assert!(report.hops.iter().any(|hop| hop.chain == "walled" && hop.took.count > 0));
    assert!(report.chains.iter().all(|chain| chain.chain.as_deref() != Some("walled")));
    let before = report.sampled_pkts;
    until("more samples", || (self::report(&stage).sampled_pkts > before).then_some(()));
    let said = stage.says(&["latency"]);
    for words in ["WAIT P50", "TOOK P50", "PORT TO PORT", "default", "walled", "µs"] {
        assert!(said.contains(words), "{words:?} is missing in: {said}");
    }
    stage.stop();
}

#[test]
fn latencies_stay_under_their_names_when_the_plan_changes() {
    let Some(stage) = set("") else { return };
    let count = |stage: &Stage| hops(&report(stage)).first().map_or(0, |hop| hop.took.count);
    until("samples", || (count(&stage) > 10).then_some(()));
    let before = count(&stage);
    stage.says(&["chain", "set", "default", "--services", "a,c"]);
    until("samples of the new chain", || {
        let report = report(&stage);
        let second = report.hops.iter().find(|hop| hop.hop == 1 && hop.service == "c");
        (second.is_some_and(|hop| hop.took.count > 10)).then_some(())
    });
    assert!(count(&stage) > before);
    assert!(report(&stage).hops.iter().any(|hop| hop.service == "b" && hop.took.count > 0));
    stage.stop();
}

#[test]
fn nothing_is_sampled_where_it_is_switched_off() {
    let Some(stage) = set("latency_interval_us = 0") else { return };
    let report = report(&stage);
    assert_eq!((report.interval_us, report.sampled_pkts, report.hops.len()), (0, 0, 0));
    assert!(stage.says(&["latency"]).contains("latency_interval_us is 0"));
    // Traces work all the same.
    assert_eq!(stage.trace("*", "3").packets.len(), 3);
    stage.stop();
}
