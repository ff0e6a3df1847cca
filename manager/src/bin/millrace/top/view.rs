//! What `millrace top` shows, as lines: four views over one reading.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::body::{Body, Sort};
use super::keys::Key;
use super::reading::Reading;
use super::screen::Size;
use crate::table::{ago, clean};

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

const VIEWS: [&str; 4] = ["all", "NFs", "chains", "drops"];
const KEYS: &str = "q quit  p pause  1-4 view  s sort  ↑↓ scroll";

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

/// A line without anything special.
pub fn plain(text: &str) -> Line {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::cores::CoreLoad;
    use crate::top::reading::Up;
    use nflib::control::rates::Rates;
    use nflib::control::{
        ChainLatency, ChainSpec, ChainStatus, DropStatus, Histogram, HopLatency, LatencyReport,
        NfStatus, PortStatus, ServiceRef, ServiceStatus, Status, WorkerStatus,
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
        view.reading =
            Reading::Up(Box::new(Up { status: after, rates, cores, latency: Some(latency()) }));
        view
    }

    fn latency() -> LatencyReport {
        let times = |p50_ns, p99_ns| Histogram { p50_ns, p99_ns, ..Default::default() };
        let hop = |chain: &str, wait, took| HopLatency {
            chain: chain.into(),
            service: "fw".into(),
            wait,
            took,
            ..Default::default()
        };
        LatencyReport {
            hops: vec![
                hop("web", times(1, 1500), times(1, 700)),
                hop("other", times(1, 900), times(1, 800)),
            ],
            chains: vec![
                ChainLatency { chain: None, total: times(1, 2) },
                ChainLatency { chain: Some("web".into()), total: times(4000, 52_000) },
            ],
            ..Default::default()
        }
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
        let services = text(&view(2).whole());
        assert!(services.contains("0   1.50 µs    800 ns"), "{services}");
        let chains = text(&view(3).whole());
        assert!(chains.contains("4.00 µs  52.0 µs"), "{chains}");
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
}
