//! The tables of `millrace top`, with their rates, in the chosen order.
#![forbid(unsafe_code)]

use std::cmp::Reverse;

use nflib::control::rates::{ChainRate, DropRate, NfRate, PortRate, RuleRate};
use nflib::control::{Histogram, HopLatency, NfStatus, PortStatus};

use super::cores;
use super::reading::Up;
use super::view::{Line, Style, plain};
use crate::table::{Table, list, or_dash, percent, si, time_ns};
use crate::{chain, drops, nf};

/// Lines of the drop ledger in the view of everything.
const FEW_DROPS: usize = 5;

/// The order of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// As the manager lists them.
    Listed,
    /// By the alphabet.
    Name,
    /// Highest rate first.
    Rate,
    /// Most drops first.
    Drops,
}

impl Sort {
    /// The one that comes after it.
    pub fn next(self) -> Self {
        match self {
            Self::Listed => Self::Name,
            Self::Name => Self::Rate,
            Self::Rate => Self::Drops,
            Self::Drops => Self::Listed,
        }
    }

    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Listed => "as listed",
            Self::Name => "name",
            Self::Rate => "rate",
            Self::Drops => "drops",
        }
    }
}

/// The tables of one reading.
pub struct Body<'a> {
    /// The reading.
    pub up: &'a Up,
    /// The order of their rows.
    pub sort: Sort,
}

impl Body<'_> {
    /// Those of view 1 to 4, with empty lines between them.
    pub fn lines(&self, view: u8) -> Vec<Line> {
        let parts = match view {
            2 => vec![self.services(), self.nfs()],
            3 => vec![self.chains(), self.rules()],
            4 => vec![self.books(), self.drops(usize::MAX), self.workers(), self.cores()],
            _ => vec![
                self.books(),
                self.ports(),
                self.chains(),
                self.nfs(),
                self.drops(FEW_DROPS),
                self.cores(),
            ],
        };
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join(&plain(""))
    }

    fn books(&self) -> Vec<Line> {
        let status = &self.up.status;
        let pool = &status.pool;
        let style = if status.accounting.balanced { Style::Plain } else { Style::Bad };
        let books = drops::books(&status.accounting).trim_end().to_owned();
        let changing = if status.plan.changing { "; a change is under way" } else { "" };
        vec![
            Line { style, text: books },
            plain(&format!(
                "buffers {} = {} free + {} at NFs + {} at ports + {} waiting; plan {}{changing}",
                pool.total,
                pool.free,
                pool.at_nfs,
                pool.at_ports,
                pool.parked,
                status.plan.generation
            )),
        ]
    }

    fn ports(&self) -> Vec<Line> {
        let status = &self.up.status;
        let rate = |port: &PortStatus| -> Option<&PortRate> {
            self.up.rates.as_ref()?.ports.iter().find(|rate| rate.name == port.name)
        };
        let mut ports: Vec<_> = status.ports.iter().collect();
        self.order(
            &mut ports,
            |port| port.name.clone(),
            |port| rate(port).map_or(0.0, |rate| rate.rx_pps + rate.tx_pps),
            |port| rate(port).map_or(0.0, |rate| rate.drop_pps),
        );
        let mut rows =
            Rows::new(&["PORT", "LINK", "RX", "RX", "TX", "TX", "DROPPED", "RX PKTS", "TX PKTS"]);
        for port in ports {
            let rate = rate(port);
            let of = |value: fn(&PortRate) -> f64, unit| {
                rate.map_or_else(|| "-".into(), |rate| si(value(rate), unit))
            };
            let cells = vec![
                port.name.clone(),
                port.link.clone(),
                of(|rate| rate.rx_pps, "pps"),
                of(|rate| rate.rx_bps, "bit/s"),
                of(|rate| rate.tx_pps, "pps"),
                of(|rate| rate.tx_bps, "bit/s"),
                of(|rate| rate.drop_pps, "pps"),
                port.rx_pkts.to_string(),
                port.tx_pkts.to_string(),
            ];
            rows.add(cells, port.link != "up");
        }
        rows.lines()
    }

    fn chains(&self) -> Vec<Line> {
        let rate = |name: &str| -> Option<&ChainRate> {
            self.up.rates.as_ref()?.chains.iter().find(|rate| rate.name == name)
        };
        let mut chains: Vec<_> = self.up.status.chains.iter().collect();
        self.order(
            &mut chains,
            |chain| chain.spec.name.clone(),
            |chain| rate(&chain.spec.name).map_or(0.0, |rate| rate.pps),
            |_| 0.0,
        );
        let mut rows =
            Rows::new(&["CHAIN", "PKTS", "BITS", "P50", "P99", "SERVICES", "END", "MISSING"]);
        for chain in chains {
            let rate = rate(&chain.spec.name);
            let cells = vec![
                chain.spec.name.clone(),
                rate.map_or_else(|| "-".into(), |rate| si(rate.pps, "pps")),
                rate.map_or_else(|| "-".into(), |rate| si(rate.bps, "bit/s")),
                self.of_chain(&chain.spec.name, |total| total.p50_ns),
                self.of_chain(&chain.spec.name, |total| total.p99_ns),
                chain::services(&chain.spec),
                chain.spec.end.clone(),
                list(&chain.missing),
            ];
            rows.add(cells, !chain.missing.is_empty());
        }
        rows.lines()
    }

    /// How long packets of a chain take from port to port.
    fn of_chain(&self, name: &str, of: fn(&Histogram) -> u64) -> String {
        let chains = self.up.latency.iter().flat_map(|latency| &latency.chains);
        let total = chains.filter(|chain| chain.chain.as_deref() == Some(name));
        or_dash(total.map(|chain| time_ns(of(&chain.total))).next())
    }

    /// The longest that packets take at a service, of all hops that it is at.
    fn at_service(&self, name: &str, of: fn(&HopLatency) -> &Histogram) -> String {
        let hops = self.up.latency.iter().flat_map(|latency| &latency.hops);
        let longest = hops.filter(|hop| hop.service == name).map(|hop| of(hop).p99_ns).max();
        or_dash(longest.map(time_ns))
    }

    fn rules(&self) -> Vec<Line> {
        let rate = |id: u64| -> Option<&RuleRate> {
            self.up.rates.as_ref()?.rules.iter().find(|rate| rate.id == id)
        };
        let status = &self.up.status;
        let mut rules: Vec<_> = status.rules.iter().collect();
        self.order(
            &mut rules,
            |rule| rule.spec.name.clone().unwrap_or_default(),
            |rule| rate(rule.id).map_or(0.0, |rate| rate.pps),
            |rule| {
                if rule.spec.then.drop { rate(rule.id).map_or(0.0, |rate| rate.pps) } else { 0.0 }
            },
        );
        let mut rows =
            Rows::new(&["RULE", "NAME", "TABLE", "PRIORITY", "RATE", "PKTS", "MATCH", "THEN"]);
        for rule in rules {
            let cells = vec![
                rule.id.to_string(),
                or_dash(rule.spec.name.as_ref()),
                rule.spec.table.to_string(),
                rule.spec.priority.to_string(),
                si(rate(rule.id).map_or(0.0, |rate| rate.pps), "pps"),
                rule.pkts.to_string(),
                rule.spec.matches.to_string(),
                rule.spec.then.to_string(),
            ];
            rows.add(cells, false);
        }
        let mut lines = rows.lines();
        if status.rule_count > status.rules.len() as u64 {
            lines.push(plain(&format!("{} rules in all", status.rule_count)));
        }
        lines
    }

    fn services(&self) -> Vec<Line> {
        let mut rows = Rows::new(&[
            "SERVICE", "WANTED", "RUNNING", "DRAINING", "RESTARTS", "WAIT P99", "TOOK P99", "NOTE",
        ]);
        for service in &self.up.status.services {
            let running = service.instances.len() as u32;
            let cells = vec![
                service.name.clone(),
                or_dash(service.wanted),
                running.to_string(),
                service.draining.len().to_string(),
                service.restarts.to_string(),
                self.at_service(&service.name, |hop| &hop.wait),
                self.at_service(&service.name, |hop| &hop.took),
                or_dash(service.waiting.as_ref()),
            ];
            rows.add(cells, service.wanted.is_some_and(|wanted| running < wanted));
        }
        rows.lines()
    }

    fn nfs(&self) -> Vec<Line> {
        let status = &self.up.status;
        let rate = |nf: &NfStatus| -> Option<&NfRate> {
            self.up.rates.as_ref()?.nfs.iter().find(|rate| rate.instance == nf.instance)
        };
        let mut nfs: Vec<_> = status.nfs.iter().collect();
        self.order(
            &mut nfs,
            |nf| format!("{} {}", nf::service(nf), nf.name),
            |nf| rate(nf).map_or(0.0, |rate| rate.rx_pps),
            |nf| rate(nf).map_or(0.0, |rate| rate.drop_pps + rate.ring_full_pps),
        );
        if nfs.is_empty() {
            return nf::table(status).lines().map(plain).collect();
        }
        let mut rows = Rows::new(&[
            "NF",
            "SERVICE",
            "NAME",
            "STATE",
            "CORE",
            "RX",
            "TX",
            "DROPPED",
            "RING FULL",
            "HELD",
            "SHARE",
        ]);
        for nf in nfs {
            let rate = rate(nf);
            let of = |value: fn(&NfRate) -> f64| {
                rate.map_or_else(|| "-".into(), |rate| si(value(rate), "pps"))
            };
            let cells = vec![
                nf.instance.to_string(),
                nf::service(nf),
                nf.name.clone(),
                if nf.state.is_empty() { "-".into() } else { nf.state.clone() },
                or_dash(nf.core),
                of(|rate| rate.rx_pps),
                of(|rate| rate.tx_pps),
                of(|rate| rate.drop_pps),
                of(|rate| rate.ring_full_pps),
                nf.held_pkts.to_string(),
                percent(nf.flow_share),
            ];
            rows.add(cells, nf.violations > 0 || rate.is_some_and(|rate| rate.ring_full_pps > 0.0));
        }
        rows.lines()
    }

    fn drops(&self, at_most: usize) -> Vec<Line> {
        let status = &self.up.status;
        let pps = |place: &str, reason: &str| -> Option<f64> {
            let rates = self.up.rates.as_ref()?;
            let same = |rate: &&DropRate| rate.place == place && rate.reason == reason;
            rates.drops.iter().find(same).map(|rate| rate.pps)
        };
        let mut ledger: Vec<_> = status.drops.iter().collect();
        ledger.sort_by_key(|drop| Reverse(drop.pkts));
        self.order(
            &mut ledger,
            |drop| drop.place.clone(),
            |drop| pps(&drop.place, &drop.reason).unwrap_or(0.0),
            |drop| pps(&drop.place, &drop.reason).unwrap_or(0.0),
        );
        let mut rows = Rows::new(&["DROPPED AT", "REASON", "PKTS", "RATE"]);
        for drop in ledger.iter().take(at_most) {
            let pps = pps(&drop.place, &drop.reason);
            let cells = vec![
                drops::place(status, &drop.place),
                drop.reason.clone(),
                drop.pkts.to_string(),
                pps.map_or_else(|| "-".into(), |pps| si(pps, "pps")),
            ];
            rows.add(cells, pps.is_some_and(|pps| pps > 0.0));
        }
        let mut lines = rows.lines();
        if ledger.len() > at_most {
            lines.push(plain(&format!("{} more in view 4", ledger.len() - at_most)));
        }
        lines
    }

    fn workers(&self) -> Vec<Line> {
        let mut rows = Rows::new(&["WORKER", "CORE", "TURNS WITH PACKETS", "TURNS"]);
        for worker in &self.up.status.workers {
            let share = cores::worker_share(self.up.rates.as_ref(), worker.worker);
            let cells = vec![
                worker.worker.to_string(),
                or_dash(worker.core),
                or_dash(share.map(percent)),
                worker.turns.to_string(),
            ];
            rows.add(cells, false);
        }
        rows.lines()
    }

    fn cores(&self) -> Vec<Line> {
        let mut rows = Rows::new(&["CORE", "LOAD", "", "PINNED TO IT"]);
        for core in &self.up.cores {
            let cells = vec![
                core.core.to_string(),
                or_dash(core.busy_share.map(percent)),
                core.busy_share.map(bar).unwrap_or_default(),
                core.pinned.join(", "),
            ];
            rows.add(cells, false);
        }
        rows.lines()
    }

    /// Puts rows in the chosen order; equal ones stay as they were.
    fn order<T>(
        &self,
        rows: &mut [T],
        name: impl Fn(&T) -> String,
        rate: impl Fn(&T) -> f64,
        dropped: impl Fn(&T) -> f64,
    ) {
        match self.sort {
            Sort::Listed => {}
            Sort::Name => rows.sort_by_key(name),
            Sort::Rate => rows.sort_by(|a, b| rate(b).total_cmp(&rate(a))),
            Sort::Drops => rows.sort_by(|a, b| dropped(b).total_cmp(&dropped(a))),
        }
    }
}

/// A share as a bar of 20 characters.
fn bar(share: f64) -> String {
    let full = (20.0 * share.clamp(0.0, 1.0)).round() as usize;
    format!("{}{}", "#".repeat(full), ".".repeat(20 - full))
}

/// A table whose rows may be bad.
struct Rows {
    table: Table,
    bad: Vec<bool>,
}

impl Rows {
    fn new(header: &[&'static str]) -> Self {
        Self { table: Table::new(header), bad: Vec::new() }
    }

    fn add(&mut self, cells: Vec<String>, bad: bool) {
        self.table.row(cells);
        self.bad.push(bad);
    }

    /// The header and the rows; nothing when there is no row.
    fn lines(&self) -> Vec<Line> {
        if self.bad.is_empty() {
            return Vec::new();
        }
        let styles = self.bad.iter().map(|&bad| if bad { Style::Bad } else { Style::Plain });
        let styles = std::iter::once(Style::Header).chain(styles);
        self.table
            .lines()
            .into_iter()
            .zip(styles)
            .map(|(text, style)| Line { style, text })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(0.0), "....................");
        assert_eq!(bar(0.5), "##########..........");
        assert_eq!(bar(7.0), "####################");
    }
}
