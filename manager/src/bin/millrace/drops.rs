//! `millrace drops`: the ledger of drops, place × reason × count.
#![forbid(unsafe_code)]

use std::time::Duration;

use clap::Args;
use nflib::control::rates::{DropRate, Rates};
use nflib::control::{Accounting, DropStatus, Status};

use crate::table::{Table, clean, si};
use crate::{Globals, print, stats, words};

#[derive(Args)]
pub struct Options {
    /// Measure rates too, over so long
    #[arg(long, value_name = "SECONDS", value_parser = words::interval)]
    interval: Option<f64>,
}

pub fn run(globals: &Globals, options: &Options) -> anyhow::Result<()> {
    let client = globals.connect()?;
    let before = client.status()?;
    let Some(interval_s) = options.interval else {
        return print::either(globals.json, &before.drops, || show(&before, None));
    };
    std::thread::sleep(Duration::from_secs_f64(interval_s));
    let after = client.status()?;
    let rates = Rates::between(&before, &after).ok_or_else(stats::restarted)?;
    print::either(globals.json, &rates.drops, || show(&after, Some(&rates.drops)))
}

fn show(status: &Status, rates: Option<&[DropRate]>) -> String {
    table(status, &status.drops, rates) + &books(&status.accounting)
}

/// The ledger, most packets first; empty when nothing was dropped.
pub fn table(status: &Status, drops: &[DropStatus], rates: Option<&[DropRate]>) -> String {
    if drops.is_empty() {
        return String::new();
    }
    let mut header = vec!["DROPPED AT", "REASON", "PKTS"];
    header.extend(rates.map(|_| "RATE"));
    let mut table = Table::new(&header);
    let mut drops: Vec<_> = drops.iter().collect();
    drops.sort_by_key(|drop| std::cmp::Reverse(drop.pkts));
    for drop in drops {
        let mut row = vec![place(status, &drop.place), drop.reason.clone(), drop.pkts.to_string()];
        if let Some(rates) = rates {
            let same = |rate: &&DropRate| rate.place == drop.place && rate.reason == drop.reason;
            row.push(rates.iter().find(same).map_or_else(|| "-".into(), |r| si(r.pps, "pps")));
        }
        table.row(row);
    }
    table.text()
}

/// A place as a person knows it: a service by its name, an NF with its name.
pub fn place(status: &Status, place: &str) -> String {
    let name = match place.split_once(':') {
        Some(("service", id)) => {
            let id = id.parse().ok();
            status.services.iter().find(|s| Some(s.id) == id).map(|service| &service.name)
        }
        Some(("nf", instance)) => {
            let instance = instance.parse().ok();
            status.nfs.iter().find(|nf| Some(nf.instance) == instance).map(|nf| &nf.name)
        }
        _ => None,
    };
    match name {
        Some(name) if !name.is_empty() => format!("{place} ({})", clean(name)),
        _ => place.to_owned(),
    }
}

/// The sum of the ledger.
pub fn books(books: &Accounting) -> String {
    let verdict = if books.balanced { "balanced" } else { "NOT balanced" };
    format!("{}: {verdict}\n", books.equation())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::ServiceStatus;

    #[test]
    fn the_ledger_has_the_largest_first_services_by_name_and_rates() {
        let line = |place: &str, reason: &str, pkts| DropStatus {
            place: place.into(),
            reason: reason.into(),
            pkts,
        };
        let status = Status {
            drops: vec![line("port:left", "tx_full", 5), line("service:2", "no_instance", 804)],
            services: vec![ServiceStatus { id: 2, name: "nat".into(), ..Default::default() }],
            accounting: Accounting {
                rx_pkts: 900,
                lent_pkts: 0,
                tx_pkts: 91,
                dropped_pkts: 809,
                held_pkts: 0,
                balanced: true,
            },
            ..Default::default()
        };
        let rate = DropRate {
            place: "service:2".into(),
            reason: "no_instance".into(),
            pkts: 804,
            pps: 12_000.0,
        };
        assert_eq!(
            show(&status, Some(&[rate])),
            "DROPPED AT       REASON       PKTS        RATE\n\
             service:2 (nat)  no_instance   804  12.00 kpps\n\
             port:left        tx_full         5           -\n\
             rx 900 = tx 91 + dropped 809 + held 0: balanced\n"
        );
        assert!(!show(&status, None).contains("RATE"));
    }

    #[test]
    fn what_was_lent_stands_on_the_left() {
        let lent = Accounting { lent_pkts: 512, held_pkts: 512, ..Accounting::default() };
        assert!(books(&lent).starts_with("rx 0 + lent 512 = tx 0 + dropped 0 + held 512"));
    }

    #[test]
    fn books_that_do_not_balance_are_loud() {
        assert!(books(&Accounting::default()).ends_with(": NOT balanced\n"));
    }
}
