//! `millrace port …`
#![forbid(unsafe_code)]

use clap::Subcommand;
use nflib::control::{PortStatus, Status};

use crate::table::{Table, or_dash};
use crate::{Globals, print};

#[derive(Subcommand)]
pub enum Verb {
    /// One line each
    List,
}

pub fn run(globals: &Globals, verb: &Verb) -> anyhow::Result<()> {
    let status = globals.connect()?.status()?;
    match verb {
        Verb::List => print::either(globals.json, &status.ports, || table(&status)),
    }
}

/// One line for each port.
pub fn table(status: &Status) -> String {
    let mut table = Table::new(&[
        "PORT", "BACKEND", "DEVICE", "DRIVER", "LINK", "MTU", "EGRESS", "RX PKTS", "TX PKTS",
        "DROPS",
    ]);
    for port in &status.ports {
        table.row(row(port));
    }
    table.text()
}

fn row(port: &PortStatus) -> Vec<String> {
    vec![
        port.name.clone(),
        port.backend.clone(),
        port.device.clone(),
        port.driver.clone(),
        port.link.clone(),
        port.mtu_bytes.to_string(),
        or_dash(port.egress.as_ref()),
        port.rx_pkts.to_string(),
        port.tx_pkts.to_string(),
        port.drops.values().fold(0, |sum: u64, &n| sum.saturating_add(n)).to_string(),
    ]
}
