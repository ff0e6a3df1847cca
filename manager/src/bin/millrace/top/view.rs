//! What `millrace top` shows, as lines: four views over one reading.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::time::Duration;

use nflib::control::rates::{ChainRate, NfRate, PortRate, RuleRate};
use nflib::control::{NfStatus, PortStatus};

use super::cores;
use super::keys::Key;
use super::reading::{Reading, Up};
use super::screen::Size;
use crate::table::{Table, ago, clean, list, or_dash, percent, si};
use crate::{chain, drops, nf};

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As the terminal's own text.
    Plain,
    /// The first line.
    Title,
    /// A table's header.
    Header,
    /// Something is wrong.
    Bad,
    /// Not so important.
    Quiet,
}

/// One line, without escape codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How it looks.
    pub style: Style,
    /// What it says.
    pub text: String,
}

/// The order of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    /// As the manager lists them.
    Listed,
    Name,
    /// Highest rate first.
    Rate,
    /// Most drops first.
    Drops,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Listed => Self::Name,
            Self::Name => Self::Rate,
            Self::Rate => Self::Drops,
            Self::Drops => Self::Listed,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Listed => "as listed",
            Self::Name => "name",
            Self::Rate => "rate",
            Self::Drops => "drops",
        }
    }
}

const VIEWS: [&str; 4] = ["all", "NFs", "chains", "drops"];
const KEYS: &str = "q quit  p pause  1-4 view  s sort  ↑↓ scroll";
/// Lines of the drop ledger in the view of everything.
const FEW_DROPS: usize = 5;

/// What a person has chosen, over the latest reading.
pub struct View {
    /// The latest reading.
    pub reading: Reading,
    /// Nothing new is read.
    pub paused: bool,
    view: u8,
    sort: Sort,
    scroll: usize,
}

impl View {
    /// View 1 to 4, before anything was read.
    pub fn new(view: u8) -> Self {
        let reading = Reading::Away { away: "the manager has not been asked yet".to_owned() };
        Self { reading, paused: false, view, sort: Sort::Listed, scroll: 0 }
    }

    /// Does what a key says; [`Key::Quit`] and [`Key::Suspend`] are not for the view.
    pub fn press(&mut self, key: Key) {
        match key {
            Key::Pause => self.paused = !self.paused,
            Key::View(view) => (self.view, self.scroll) = (view, 0),
            Key::Sort => self.sort = self.sort.next(),
            Key::Scroll(by) => {
                self.scroll = self.scroll.saturating_add_signed(by as isize);
            }
            Key::Quit | Key::Suspend => {}
        }
    }

    /// A frame for a terminal: exactly its rows, no line longer than it.
    pub fn frame(&mut self, size: Size, interval: Duration) -> Vec<Line> {
        let body = self.body(interval, size.columns);
        let room = size.rows.saturating_sub(2).max(1);
        self.scroll = self.scroll.min(body.len().saturating_sub(room));
        let below = body.len().saturating_sub(self.scroll + room);
        let mut lines = vec![Line { style: Style::Title, text: self.title() }];
        lines.extend(body.into_iter().skip(self.scroll).take(room));
        lines.resize(1 + room, plain(""));
        let more = if below > 0 { format!("({below} more lines) ") } else { String::new() };
        let keys = format!("{more}{KEYS}  order: {}", self.sort.name());
        lines.push(Line { style: Style::Quiet, text: keys });
        lines.truncate(size.rows.max(1));
        for line in &mut lines {
            fit(line, size.columns);
        }
        lines
    }

    /// The view as a whole, for no terminal.
    pub fn whole(&self) -> Vec<Line> {
        let mut lines = vec![plain(self.title().trim_end())];
        lines.extend(self.body(Duration::ZERO, usize::MAX));
        lines
    }

    fn title(&self) -> String {
        let who = match &self.reading {
            Reading::Away { .. } => "no manager".to_owned(),
            Reading::Up(up) => {
                let status = &up.status;
                let version = clean(&status.version);
                format!("{version}, pid {}, up {}", status.pid, ago(status.uptime_s))
            }
        };
        let views: Vec<_> = VIEWS
            .iter()
            .zip(1..)
            .map(|(name, number)| match number == self.view {
                true => format!("[{number} {name}]"),
                false => format!(" {number} {name} "),
            })
            .collect();
        let paused = if self.paused { " PAUSED" } else { "" };
        format!("millrace {who}{paused} {}", views.join(""))
    }

    fn body(&self, interval: Duration, columns: usize) -> Vec<Line> {
        match &self.reading {
            Reading::Up(up) => Body { up, sort: self.sort }.lines(self.view),
            Reading::Away { away } => {
                let mut lines = vec![plain("")];
                let bad = |text| Line { style: Style::Bad, text };
                lines.extend(wrap(&clean(away), columns).into_iter().map(bad));
                lines.push(plain(&format!("asked again every {} s", interval.as_secs_f64())));
                lines
            }
        }
    }
}

fn plain(text: &str) -> Line {
    Line { style: Style::Plain, text: text.to_owned() }
}

/// Lines of whole words, none longer than `columns` but for a word that is.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Cuts a line, and fills the title up: it is a bar.
fn fit(line: &mut Line, columns: usize) {
    if let Some((at, _)) = line.text.char_indices().nth(columns) {
        line.text.truncate(at);
    }
    if line.style == Style::Title {
        let missing = columns.saturating_sub(line.text.chars().count());
        line.text.extend(std::iter::repeat_n(' ', missing));
    }
}

/// The tables of one reading.
struct Body<'a> {
    up: &'a Up,
    sort: Sort,
}

impl Body<'_> {
    fn lines(&self, view: u8) -> Vec<Line> {
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
        let mut rows = Rows::new(&["CHAIN", "PKTS", "BITS", "SERVICES", "END", "MISSING"]);
        for chain in chains {
            let rate = rate(&chain.spec.name);
            let cells = vec![
                chain.spec.name.clone(),
                rate.map_or_else(|| "-".into(), |rate| si(rate.pps, "pps")),
                rate.map_or_else(|| "-".into(), |rate| si(rate.bps, "bit/s")),
                chain::services(&chain.spec),
                chain.spec.end.clone(),
                list(&chain.missing),
            ];
            rows.add(cells, !chain.missing.is_empty());
        }
        rows.lines()
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
        let mut rows = Rows::new(&["SERVICE", "WANTED", "RUNNING", "DRAINING", "RESTARTS", "NOTE"]);
        for service in &self.up.status.services {
            let running = service.instances.len() as u32;
            let cells = vec![
                service.name.clone(),
                or_dash(service.wanted),
                running.to_string(),
                service.draining.len().to_string(),
                service.restarts.to_string(),
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
            let same = |rate: &&nflib::control::rates::DropRate| {
                rate.place == place && rate.reason == reason
            };
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
    use crate::top::cores::CoreLoad;
    use nflib::control::rates::Rates;
    use nflib::control::{
        ChainSpec, ChainStatus, DropStatus, ServiceRef, ServiceStatus, Status, WorkerStatus,
    };

    fn status(s: u64) -> Status {
        let port = |name: &str, link: &str, pkts| PortStatus {
            name: name.into(),
            link: link.into(),
            rx_pkts: pkts,
            ..Default::default()
        };
        let nf = |instance, name: &str, pkts| NfStatus {
            instance,
            service: 1,
            service_name: "fw".into(),
            name: name.into(),
            state: "running".into(),
            rx_pkts: pkts,
            flow_share: 0.5,
            ..Default::default()
        };
        Status {
            version: "1.2.3".into(),
            pid: 7,
            uptime_s: s as f64,
            at_ns: s * 1_000_000_000,
            ports: vec![port("left", "up", 1000 * s), port("a-right", "down", 5000 * s)],
            nfs: vec![nf(3, "slow", 10 * s), nf(4, "fast\x1b[2J", 20 * s)],
            services: vec![ServiceStatus {
                id: 1,
                name: "fw".into(),
                wanted: Some(3),
                instances: vec![3, 4],
                ..Default::default()
            }],
            chains: vec![ChainStatus {
                spec: ChainSpec {
                    name: "web".into(),
                    services: vec![ServiceRef::Name("fw".into())],
                    end: "egress".into(),
                    ..Default::default()
                },
                pkts: 100 * s,
                ..Default::default()
            }],
            drops: (0..7)
                .map(|n| DropStatus {
                    place: format!("worker:{n}"),
                    reason: "no_egress".into(),
                    pkts: n * s,
                })
                .collect(),
            workers: vec![WorkerStatus {
                turns: 100 * s,
                idle_turns: 75 * s,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn view(number: u8) -> View {
        let (before, after) = (status(1), status(2));
        let rates = Rates::between(&before, &after);
        let cores =
            vec![CoreLoad { core: 0, busy_share: Some(0.5), pinned: vec!["worker 0".into()] }];
        let mut view = View::new(number);
        view.reading = Reading::Up(Box::new(Up { status: after, rates, cores }));
        view
    }

    fn text(lines: &[Line]) -> String {
        lines.iter().map(|line| line.text.clone() + "\n").collect()
    }

    const SIZE: Size = Size { columns: 80, rows: 24 };
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_view_has_everything() {
        let text = text(&view(1).whole());
        for words in [
            "millrace 1.2.3, pid 7, up 2.00 s [1 all] 2 NFs",
            "rx 0 = tx 0 + dropped 0 + held 0: NOT balanced",
            "left     up    1.00 kpps",
            "a-right  down  5.00 kpps",
            "web    100 pps",
            " 3  fw       slow",
            "worker:6    no_egress    12  6 pps",
            "2 more in view 4",
            "   0  50.0 %  ##########..........  worker 0",
        ] {
            assert!(text.contains(words), "{words:?} is missing in:\n{text}");
        }
        assert!(!text.contains('\x1b'), "{text}");
    }

    #[test]
    fn the_other_views_have_their_subject() {
        for (number, has, has_not) in [
            (2, "SERVICE  WANTED", "PORT"),
            (3, "CHAIN", "DROPPED AT"),
            (4, "TURNS WITH PACKETS", "CHAIN"),
        ] {
            let text = text(&view(number).whole());
            assert!(text.contains(has) && !text.contains(has_not), "{number}:\n{text}");
        }
        let drops = text(&view(4).whole());
        assert!(drops.contains("25.0 %") && drops.contains("worker:0"), "{drops}");
    }

    #[test]
    fn a_frame_fills_the_terminal_and_no_line_is_longer() {
        for (columns, rows) in [(80, 24), (20, 5), (200, 100), (1, 1), (3, 2)] {
            let lines = view(1).frame(Size { columns, rows }, SECOND);
            assert_eq!(lines.len(), rows);
            assert!(lines.iter().all(|line| line.text.chars().count() <= columns));
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_can_be_scrolled_to_but_not_beyond() {
        let mut view = view(1);
        let small = Size { columns: 100, rows: 8 };
        let all = view.whole().len() - 1;
        let foot = view.frame(small, SECOND).pop().unwrap().text;
        assert!(foot.contains(&format!("({} more lines)", all - 6)), "{foot}");
        view.press(Key::Scroll(1000));
        let last = view.whole().pop().unwrap().text;
        let lines = view.frame(small, SECOND);
        assert_eq!(lines[6].text, last);
        view.press(Key::Scroll(-1));
        assert_eq!(view.frame(small, SECOND)[6].text, view.whole()[all - 1].text);
    }

    #[test]
    fn rows_stand_in_the_chosen_order() {
        let mut view = view(1);
        let first = |view: &View, starts: [&str; 2]| {
            let text = text(&view.whole());
            let at = starts.map(|start| text.find(start).unwrap());
            at[0] < at[1]
        };
        assert!(first(&view, ["\nleft ", "\na-right "]), "as listed");
        view.press(Key::Sort);
        assert!(first(&view, ["\na-right ", "\nleft "]), "by name");
        view.press(Key::Sort);
        assert!(first(&view, ["\na-right ", "\nleft "]), "by rate");
        assert!(first(&view, ["fast", "slow"]), "by rate");
        view.press(Key::Sort);
        view.press(Key::Sort);
        assert!(first(&view, ["\nleft ", "\na-right "]), "as listed again");
    }

    #[test]
    fn what_is_wrong_stands_out() {
        let lines = view(1).frame(SIZE, SECOND);
        let bad: Vec<_> = lines.iter().filter(|line| line.style == Style::Bad).collect();
        assert!(bad.iter().any(|line| line.text.starts_with("a-right")));
        assert!(!bad.iter().any(|line| line.text.starts_with("left")));
        let services = view(2).whole();
        assert!(services.iter().any(|l| l.style == Style::Bad && l.text.starts_with("fw")));
    }

    #[test]
    fn a_manager_that_is_away_is_said_with_the_reason() {
        let mut view = View::new(1);
        view.reading = Reading::Away { away: "no manager at /x".into() };
        let text = text(&view.frame(SIZE, SECOND));
        assert!(text.starts_with("millrace no manager"), "{text}");
        assert!(text.contains("\nno manager at /x\nasked again every 1 s\n"), "{text}");
    }

    #[test]
    fn a_pause_is_seen() {
        let mut view = view(1);
        view.press(Key::Pause);
        assert!(view.frame(SIZE, SECOND)[0].text.contains("PAUSED"));
        view.press(Key::Pause);
        assert!(!view.frame(SIZE, SECOND)[0].text.contains("PAUSED"));
    }

    #[test]
    fn a_long_message_is_wrapped_at_its_words() {
        assert_eq!(wrap("no manager at /x: start one", 14), ["no manager at", "/x: start one"]);
        assert_eq!(wrap("abcdef g", 3), ["abcdef", "g"]);
        assert_eq!(wrap("a b", usize::MAX), ["a b"]);
    }

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(0.0), "....................");
        assert_eq!(bar(0.5), "##########..........");
        assert_eq!(bar(7.0), "####################");
    }
}
