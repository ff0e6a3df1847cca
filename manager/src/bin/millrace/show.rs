//! Statuses as tables for people.

use std::fmt::Write as _;

use nflib::control::{Accounting, DropStatus, NfStatus, PortStatus, Status};
use serde::Serialize;

/// Rows under a header, each column as wide as its widest cell; numbers to the right.
fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let is_number = |column: usize| {
        !rows.is_empty()
            && rows.iter().all(|row| row[column].starts_with(|c: char| c.is_ascii_digit()))
    };
    let mut out = String::new();
    let titles: Vec<String> = header.iter().map(|title| (*title).to_owned()).collect();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            let _ = if is_number(column) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `millrace port list`.
pub fn ports(status: &Status) -> String {
    let rows: Vec<_> = status.ports.iter().map(port_row).collect();
    table(
        &[
            "PORT", "BACKEND", "DEVICE", "DRIVER", "LINK", "MTU", "EGRESS", "RX PKTS", "TX PKTS",
            "DROPS",
        ],
        &rows,
    )
}

fn port_row(port: &PortStatus) -> Vec<String> {
    vec![
        port.name.clone(),
        port.backend.clone(),
        port.device.clone(),
        port.driver.clone(),
        port.link.clone(),
        port.mtu_bytes.to_string(),
        port.egress.clone().unwrap_or_else(|| "-".to_owned()),
        port.rx_pkts.to_string(),
        port.tx_pkts.to_string(),
        port.drops.values().sum::<u64>().to_string(),
    ]
}

/// `millrace nf list`.
pub fn nfs(status: &Status) -> String {
    if status.nfs.is_empty() {
        let wanted = chain(status);
        return format!("no NF is attached; the chain waits for services {}\n", wanted.join(", "));
    }
    let rows: Vec<_> = status.nfs.iter().map(nf_row).collect();
    table(
        &[
            "INSTANCE",
            "SERVICE",
            "NAME",
            "PID",
            "UID",
            "RX PKTS",
            "TX PKTS",
            "DROPS",
            "HELD",
            "RING FULL",
            "VIOLATIONS",
        ],
        &rows,
    )
}

fn nf_row(nf: &NfStatus) -> Vec<String> {
    vec![
        nf.instance.to_string(),
        nf.service.to_string(),
        nf.name.clone(),
        nf.pid.to_string(),
        nf.uid.to_string(),
        nf.rx_pkts.to_string(),
        nf.tx_pkts.to_string(),
        nf.drop_pkts.to_string(),
        nf.held_pkts.to_string(),
        nf.ring_full_pkts.to_string(),
        nf.violations.to_string(),
    ]
}

/// The services of the default chain.
fn chain(status: &Status) -> Vec<String> {
    let services = status.chains.first().map(|chain| chain.spec.services.as_slice());
    services.unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// `millrace status`.
pub fn status(status: &Status) -> String {
    let chain = chain(status);
    let pages = if status.hugepages { "hugepages" } else { "ordinary pages" };
    let pool = &status.pool;
    format!(
        "millrace {} (pid {}), up {:.0} s, chain {}\n\
         buffers: {} of {} bytes on {pages}: {} free, {} at NFs, {} at ports\n{}\n{}\n{}{}",
        status.version,
        status.pid,
        status.uptime_s,
        if chain.is_empty() { "(empty)".to_owned() } else { chain.join(" → ") },
        pool.total,
        pool.buffer_bytes,
        pool.free,
        pool.at_nfs,
        pool.at_ports,
        ports(status),
        nfs(status),
        drops(&status.drops),
        books(&status.accounting),
    )
}

fn books(books: &Accounting) -> String {
    format!(
        "\nrx {} = tx {} + dropped {} + held {}: {}\n",
        books.rx_pkts,
        books.tx_pkts,
        books.dropped_pkts,
        books.held_pkts,
        if books.balanced { "balanced" } else { "NOT balanced" }
    )
}

fn drops(drops: &[DropStatus]) -> String {
    if drops.is_empty() {
        return String::new();
    }
    let rows: Vec<_> =
        drops.iter().map(|d| vec![d.place.clone(), d.reason.clone(), d.pkts.to_string()]).collect();
    format!("\n{}", table(&["DROPPED AT", "REASON", "PKTS"], &rows))
}

/// What moved between two statuses.
#[derive(Debug, Serialize)]
pub struct Rates {
    /// Seconds between them.
    pub interval_s: f64,
    /// Ports.
    pub ports: Vec<PortRate>,
    /// NFs that were there both times.
    pub nfs: Vec<NfRate>,
    /// Every drop so far.
    pub drops: Vec<DropStatus>,
    /// The books at the end.
    pub accounting: Accounting,
}

/// One port's rates.
#[derive(Debug, Serialize)]
pub struct PortRate {
    name: String,
    link: String,
    rx_pps: f64,
    rx_bps: f64,
    tx_pps: f64,
    tx_bps: f64,
    drop_pps: f64,
}

/// One NF's rates.
#[derive(Debug, Serialize)]
pub struct NfRate {
    instance: u32,
    service: u16,
    name: String,
    rx_pps: f64,
    tx_pps: f64,
    drop_pps: f64,
    held_pkts: u64,
}

impl Rates {
    /// Rates from `before` to `after`.
    pub fn between(before: &Status, after: &Status) -> Self {
        let interval_s = (after.at_ns.saturating_sub(before.at_ns)).max(1) as f64 / 1e9;
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / interval_s;
        let ports = before.ports.iter().zip(&after.ports).map(|(then, now)| PortRate {
            name: now.name.clone(),
            link: now.link.clone(),
            rx_pps: rate(now.rx_pkts, then.rx_pkts),
            rx_bps: 8.0 * rate(now.rx_bytes, then.rx_bytes),
            tx_pps: rate(now.tx_pkts, then.tx_pkts),
            tx_bps: 8.0 * rate(now.tx_bytes, then.tx_bytes),
            drop_pps: rate(now.drops.values().sum(), then.drops.values().sum()),
        });
        let nfs = after.nfs.iter().filter_map(|now| {
            let then = before.nfs.iter().find(|then| then.instance == now.instance)?;
            Some(NfRate {
                instance: now.instance,
                service: now.service,
                name: now.name.clone(),
                rx_pps: rate(now.rx_pkts, then.rx_pkts),
                tx_pps: rate(now.tx_pkts, then.tx_pkts),
                drop_pps: rate(now.drop_pkts, then.drop_pkts),
                held_pkts: now.held_pkts,
            })
        });
        Self {
            interval_s,
            ports: ports.collect(),
            nfs: nfs.collect(),
            drops: after.drops.clone(),
            accounting: after.accounting,
        }
    }
}

/// `millrace stats`.
pub fn rates(rates: &Rates) -> String {
    let ports: Vec<_> = rates
        .ports
        .iter()
        .map(|port| {
            vec![
                port.name.clone(),
                port.link.clone(),
                si(port.rx_pps, "pps"),
                si(port.rx_bps, "bit/s"),
                si(port.tx_pps, "pps"),
                si(port.tx_bps, "bit/s"),
                si(port.drop_pps, "pps"),
            ]
        })
        .collect();
    let nfs: Vec<_> = rates
        .nfs
        .iter()
        .map(|nf| {
            vec![
                nf.service.to_string(),
                nf.name.clone(),
                si(nf.rx_pps, "pps"),
                si(nf.tx_pps, "pps"),
                si(nf.drop_pps, "pps"),
                nf.held_pkts.to_string(),
            ]
        })
        .collect();
    format!(
        "{}\n{}{}{}",
        table(&["PORT", "LINK", "RX", "RX", "TX", "TX", "DROPPED"], &ports),
        table(&["SERVICE", "NF", "RX", "TX", "DROPPED", "HELD"], &nfs),
        drops(&rates.drops),
        books(&rates.accounting)
    )
}

/// A rate with a decimal prefix.
fn si(value: f64, unit: &str) -> String {
    let (scaled, prefix) = match value {
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e3 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let digits = if prefix.is_empty() { 0 } else { 2 };
    format!("{scaled:.digits$} {prefix}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_difference_over_the_time_between() {
        let port = |rx_pkts, rx_bytes| PortStatus {
            name: "p".into(),
            rx_pkts,
            rx_bytes,
            ..PortStatus::default()
        };
        let status = |at_ns, port| Status { at_ns, ports: vec![port], ..Status::default() };
        let rates =
            Rates::between(&status(0, port(100, 0)), &status(2_000_000_000, port(300, 25_000)));
        assert_eq!((rates.ports[0].rx_pps, rates.ports[0].rx_bps), (100.0, 100_000.0));
    }

    #[test]
    fn rates_have_a_prefix_a_person_can_read() {
        assert_eq!(si(999.0, "pps"), "999 pps");
        assert_eq!(si(1_234_567.0, "pps"), "1.23 Mpps");
    }

    #[test]
    fn columns_line_up() {
        let text =
            table(&["A", "N"], &[vec!["x".into(), "5".into()], vec!["long".into(), "10".into()]]);
        assert_eq!(text, "A      N\nx      5\nlong  10\n");
    }
}
