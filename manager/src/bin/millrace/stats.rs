//! `millrace stats`: rates over an interval, and every drop so far.
#![forbid(unsafe_code)]

use std::time::Duration;

use clap::Args;
use nflib::control::rates::Rates;
use nflib::control::{Accounting, Status};
use serde::Serialize;

use crate::table::{Table, si};
use crate::{Globals, drops, print, words};

#[derive(Args)]
pub struct Options {
    /// Measure over so long
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = words::interval)]
    interval: f64,
    /// Measure again and again, until interrupted or so many times
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "0")]
    watch: Option<u64>,
}

#[derive(Serialize)]
struct Stats<'a> {
    #[serde(flatten)]
    rates: &'a Rates,
    /// The books at the end.
    accounting: Accounting,
}

pub fn run(globals: &Globals, options: &Options) -> anyhow::Result<()> {
    let client = globals.connect()?;
    let mut times_left = options.watch.unwrap_or(1);
    let mut before = client.status()?;
    loop {
        std::thread::sleep(Duration::from_secs_f64(options.interval));
        let after = client.status()?;
        let rates = Rates::between(&before, &after).ok_or_else(restarted)?;
        let stats = Stats { rates: &rates, accounting: after.accounting };
        print::either(globals.json, &stats, || show(&after, &rates))?;
        before = after;
        if options.watch != Some(0) {
            times_left = times_left.saturating_sub(1);
            if times_left == 0 {
                return Ok(());
            }
        }
    }
}

/// Why two statuses give no rate.
pub fn restarted() -> anyhow::Error {
    anyhow::anyhow!("the manager started anew while it was measured; try again")
}

fn show(status: &Status, rates: &Rates) -> String {
    let drops = drops::table(status, &status.drops, Some(&rates.drops));
    [ports(rates), nfs(rates), chains(rates), drops, drops::books(&status.accounting)]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

fn ports(rates: &Rates) -> String {
    let mut table = Table::new(&["PORT", "LINK", "RX", "RX", "TX", "TX", "DROPPED"]);
    for port in &rates.ports {
        table.row(vec![
            port.name.clone(),
            port.link.clone(),
            si(port.rx_pps, "pps"),
            si(port.rx_bps, "bit/s"),
            si(port.tx_pps, "pps"),
            si(port.tx_bps, "bit/s"),
            si(port.drop_pps, "pps"),
        ]);
    }
    table.text()
}

fn nfs(rates: &Rates) -> String {
    if rates.nfs.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["INSTANCE", "SERVICE", "NF", "RX", "TX", "DROPPED", "HELD"]);
    for nf in &rates.nfs {
        let service = &nf.service_name;
        table.row(vec![
            nf.instance.to_string(),
            if service.is_empty() { nf.service.to_string() } else { service.clone() },
            nf.name.clone(),
            si(nf.rx_pps, "pps"),
            si(nf.tx_pps, "pps"),
            si(nf.drop_pps, "pps"),
            nf.held_pkts.to_string(),
        ]);
    }
    table.text()
}

fn chains(rates: &Rates) -> String {
    if rates.chains.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["CHAIN", "PKTS", "BITS"]);
    for chain in &rates.chains {
        table.row(vec![chain.name.clone(), si(chain.pps, "pps"), si(chain.bps, "bit/s")]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{ChainSpec, ChainStatus, NfStatus, PortStatus};

    #[test]
    fn rates_are_shown_by_port_nf_and_chain() {
        let status = |s: u64, pkts: u64| Status {
            at_ns: s * 1_000_000_000,
            uptime_s: s as f64,
            ports: vec![PortStatus {
                name: "left".into(),
                link: "up".into(),
                rx_pkts: pkts,
                rx_bytes: 100 * pkts,
                ..Default::default()
            }],
            nfs: vec![NfStatus { instance: 3, service: 1, rx_pkts: pkts, ..Default::default() }],
            chains: vec![ChainStatus {
                spec: ChainSpec { name: "web".into(), ..Default::default() },
                pkts,
                ..Default::default()
            }],
            ..Default::default()
        };
        let (before, after) = (status(1, 0), status(2, 1500));
        let rates = Rates::between(&before, &after).unwrap();
        assert_eq!(
            show(&after, &rates),
            "PORT  LINK         RX           RX     TX       TX  DROPPED\n\
             left  up    1.50 kpps  1.20 Mbit/s  0 pps  0 bit/s    0 pps\n\
             \n\
             INSTANCE  SERVICE  NF         RX     TX  DROPPED  HELD\n\
             \x20      3        1      1.50 kpps  0 pps    0 pps     0\n\
             \n\
             CHAIN       PKTS     BITS\n\
             web    1.50 kpps  0 bit/s\n\
             \n\
             rx 0 = tx 0 + dropped 0 + held 0: NOT balanced\n"
        );
    }
}
