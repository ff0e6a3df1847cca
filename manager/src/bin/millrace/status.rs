//! `millrace status`: everything at a glance.
#![forbid(unsafe_code)]

use nflib::control::Status;

use crate::table::{ago, clean};
use crate::{Globals, chain, drops, nf, port, print, service};

pub fn run(globals: &Globals) -> anyhow::Result<()> {
    let status = globals.connect()?.status()?;
    print::either(globals.json, &status, || show(&status))
}

fn show(status: &Status) -> String {
    let services =
        if status.services.is_empty() { String::new() } else { service::table(&status.services) };
    let parts = [
        head(status) + &deaths(status),
        port::table(status),
        chain::table(&status.chains),
        services,
        nf::table(status),
        drops::table(status, &status.drops, None),
        drops::books(&status.accounting),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn head(status: &Status) -> String {
    let Status { pool, plan, .. } = status;
    let pages = if status.hugepages { "hugepages" } else { "ordinary pages" };
    let changing = if plan.changing { ", changing now" } else { "" };
    let unordered = match plan.unordered_changes {
        0 => String::new(),
        n => format!(", {n} of them took too long to keep the order"),
    };
    let lost = match pool.lost {
        0 => String::new(),
        n => format!(", {n} LOST: see millrace doctor buffers"),
    };
    format!(
        "millrace {} (pid {}), up {}, rules {}, changes {}{unordered}{changing}\n\
         buffers: {} of {} bytes on {pages}: {} free, {} at NFs, {} at ports, {} waiting for a change{lost}\n",
        clean(&status.version),
        status.pid,
        ago(status.uptime_s),
        status.rule_count,
        plan.generation,
        pool.total,
        pool.buffer_bytes,
        pool.free,
        pool.at_nfs,
        pool.at_ports,
        pool.parked,
    )
}

/// A line on NFs that ended unasked, if any did.
fn deaths(status: &Status) -> String {
    let Some(last) = status.deaths.last.last() else { return String::new() };
    format!(
        "deaths: {}, each one's last buffer back within {:.1} ms; the last: instance {} ({}), {}\n",
        status.deaths.count,
        status.deaths.longest_reclaim_us as f64 / 1e3,
        last.instance,
        clean(&last.service),
        clean(&last.why),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{Accounting, DeathStatus, DeathsStatus, PlanStatus, PoolStatus};

    #[test]
    fn the_head_says_who_for_how_long_and_what_changed() {
        let status = Status {
            version: "1.2.3".into(),
            pid: 7,
            uptime_s: 12.0,
            rule_count: 3,
            plan: PlanStatus {
                generation: 5,
                unordered_changes: 1,
                changing: true,
                ..Default::default()
            },
            pool: PoolStatus {
                total: 64,
                free: 60,
                at_nfs: 1,
                at_ports: 2,
                parked: 1,
                buffer_bytes: 2048,
                lost: 0,
            },
            accounting: Accounting { balanced: true, ..Default::default() },
            ..Default::default()
        };
        assert_eq!(
            head(&status),
            "millrace 1.2.3 (pid 7), up 12 s, rules 3, changes 5, 1 of them took too long to keep \
             the order, changing now\n\
             buffers: 64 of 2048 bytes on ordinary pages: 60 free, 1 at NFs, 2 at ports, 1 \
             waiting for a change\n"
        );
        assert!(show(&status).ends_with("held 0: balanced\n"));
        assert_eq!(deaths(&status), "");
    }

    #[test]
    fn deaths_are_told_with_how_long_their_buffers_took() {
        let last = DeathStatus {
            instance: 9,
            service: "fw".into(),
            why: "its process ended".into(),
            ..Default::default()
        };
        let deaths = DeathsStatus { count: 3, longest_reclaim_us: 1500, last: vec![last] };
        assert_eq!(
            super::deaths(&Status { deaths, ..Default::default() }),
            "deaths: 3, each one's last buffer back within 1.5 ms; the last: instance 9 (fw), its \
             process ended\n"
        );
    }
}
