//! `millrace replay`: what an NF that crashed had, once more, offline.
//!
//! The packets of a bundle go through the NF, by a manager that this command starts and ends. Should it crash,
//! they come once more, one by one, and then fewer and fewer, until the one is known that it dies of; and that
//! one comes alone.
#![forbid(unsafe_code)]

mod lab;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use millrace::crash::bundle::Report;
use millrace::crash::evidence::PacketKind;
use millrace::crash::reading::{Bundle, ReplayPacket};
use nflib::shm::catch_stop_signals;
use serde::Serialize;

use crate::crash::summary;
use crate::table::clean;
use crate::{Globals, down, print};
use lab::{Counts, Lab, Outcome, Pace};

/// Exit code when the NF crashed again.
const CRASHED_AGAIN: u8 = 3;
/// How far apart packets come that come one by one: each is done with before the next.
const APART: Duration = Duration::from_millis(2);
/// How long that may take altogether; of more packets the distance is less.
const APART_LIMIT: Duration = Duration::from_secs(20);

/// Let an NF that crashed have its last packets again, offline
///
/// Exit codes: 0 it did not crash, 3 it crashed again, 1 it could not be tried, 2 the command line makes no
/// sense.
#[derive(Args)]
pub struct Options {
    /// The bundle: a folder, as millrace crash save writes it
    bundle: PathBuf,
    /// So many times at most, until it crashes
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    times: u32,
    /// How long each time may take, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    wait: f64,
    /// Do not look for the packet that it dies of
    #[arg(long)]
    quick: bool,
    /// Program and arguments to try instead of those that crashed; all that follows is theirs
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true)]
    service_command: Vec<String>,
}

/// What became of it.
#[derive(Debug, Default, Serialize)]
struct Result {
    crashed: bool,
    /// How often the packets were sent, one by one or not.
    runs: u32,
    /// Packets that were sent.
    pkts: usize,
    /// Of these, those whose last bytes are not known and were zeros.
    padded_pkts: usize,
    why: Option<String>,
    last_words: Option<String>,
    culprit: Option<String>,
    /// The packet that it died of, from 1 on, where it could be found.
    packet: Option<usize>,
    /// That packet in short.
    packet_summary: Option<String>,
    /// It dies of that packet without those before.
    alone: Option<bool>,
    /// The NF left by itself.
    left: bool,
    rx_pkts: u64,
    tx_pkts: u64,
    held_pkts: u64,
    drops: BTreeMap<String, u64>,
}

struct Replay<'a> {
    bundle: &'a Bundle,
    command: Vec<String>,
    packets: Vec<ReplayPacket>,
    limit: Duration,
    interrupted: &'a AtomicBool,
}

pub fn run(globals: &Globals, options: &Options) -> anyhow::Result<ExitCode> {
    let limit = down::limit(options.wait)?;
    let bundle = Bundle::read(&options.bundle)?;
    let command = match options.service_command.is_empty() {
        false => options.service_command.clone(),
        true => command_of(&bundle.report)?,
    };
    let packets = bundle.replay();
    ensure!(
        !packets.is_empty(),
        "the bundle has no packet that the NF had taken: nothing to replay"
    );
    let interrupted = catch_stop_signals().context("signal handlers")?;
    let replay = Replay { bundle: &bundle, command, packets, limit, interrupted };
    let result = replay.run(options)?;
    print::either(globals.json, &result, || clean_lines(&result.text()))?;
    Ok(if result.crashed { ExitCode::from(CRASHED_AGAIN) } else { ExitCode::SUCCESS })
}

fn clean_lines(text: &str) -> String {
    text.lines().map(|line| clean(line) + "\n").collect()
}

/// How the NF was started, without what another manager says to it.
fn command_of(report: &Report) -> anyhow::Result<Vec<String>> {
    let given = match &report.service.command {
        Some(command) if report.process.command.is_empty() => command,
        _ => &report.process.command,
    };
    ensure!(
        !given.is_empty(),
        "the bundle does not tell how the NF was started: name its program with --service-command"
    );
    let own = ["--socket", "--service", "--core"];
    let mut command = Vec::new();
    let mut words = given.iter();
    while let Some(word) = words.next() {
        if own.contains(&word.as_str()) {
            words.next();
        } else if !own.iter().any(|own| word.strip_prefix(own).is_some_and(|r| r.starts_with('=')))
        {
            command.push(word.clone());
        }
    }
    Ok(command)
}

impl Replay<'_> {
    fn once(&self, packets: &[ReplayPacket], pace: Pace) -> anyhow::Result<Outcome> {
        let mut lab = Lab::start(self.bundle, &self.command, packets, pace)?;
        lab.outcome(packets.len(), self.limit, self.interrupted)
    }

    fn run(&self, options: &Options) -> anyhow::Result<Result> {
        let mut result = Result {
            pkts: self.packets.len(),
            padded_pkts: self.packets.iter().filter(|packet| packet.padded).count(),
            ..Result::default()
        };
        while result.runs < options.times {
            result.runs += 1;
            match self.once(&self.packets, Pace::Bursts)? {
                Outcome::Crashed(report) => {
                    result.note_crash(&report);
                    if !options.quick {
                        self.narrow(&mut result, in_hand(&report))?;
                    }
                    break;
                }
                Outcome::Survived(counts) => result.note_counts(counts),
                Outcome::Left(counts) => {
                    result.left = true;
                    result.note_counts(counts);
                }
            }
        }
        Ok(result)
    }

    /// Looks for the packet that it dies of: that without which those before do it no harm. `suspects` are
    /// those that it had in hand; there may be many, for packets go through it in bursts.
    fn narrow(&self, result: &mut Result, mut suspects: Vec<usize>) -> anyhow::Result<()> {
        if suspects.len() != 1 {
            let count = u32::try_from(self.packets.len()).unwrap_or(u32::MAX).max(1);
            let apart = APART.min(APART_LIMIT / count);
            result.runs += 1;
            match self.once(&self.packets, Pace::Apart(apart))? {
                Outcome::Crashed(report) => suspects = in_hand(&report),
                // It takes a burst to kill it.
                Outcome::Left(_) | Outcome::Survived(_) => return Ok(()),
            }
        }
        let in_range = |number: Option<usize>| number.filter(|n| *n <= self.packets.len());
        let first = in_range(suspects.iter().min().copied()).unwrap_or(1);
        let last = in_range(suspects.iter().max().copied()).unwrap_or(self.packets.len());
        let Some(number) = self.shortest_deadly(first, last, result)? else { return Ok(()) };
        let packet = &self.packets[number - 1];
        result.packet = Some(number);
        result.packet_summary = Some(summary(&packet.bytes));
        result.runs += 1;
        let alone = self.once(std::slice::from_ref(packet), Pace::Bursts)?;
        result.alone = Some(matches!(alone, Outcome::Crashed(_)));
        Ok(())
    }

    /// With how many packets at least it dies, by halves, when it is `first` to `last` of them; `None` when
    /// that is not so each time.
    fn shortest_deadly(
        &self,
        mut first: usize,
        last: usize,
        result: &mut Result,
    ) -> anyhow::Result<Option<usize>> {
        if first == last {
            return Ok(Some(first));
        }
        let mut deadly = last + 1;
        while first < deadly {
            let middle = first.midpoint(deadly - 1).max(first);
            result.runs += 1;
            match self.once(&self.packets[..middle], Pace::Bursts)? {
                Outcome::Crashed(_) => deadly = middle,
                Outcome::Left(_) | Outcome::Survived(_) => first = middle + 1,
            }
        }
        Ok((deadly <= last).then_some(deadly))
    }
}

/// The numbers, from 1 on, of the packets that the NF had in hand.
fn in_hand(report: &Report) -> Vec<usize> {
    let in_hand = report.packets.iter().filter(|packet| packet.kind == PacketKind::InHand);
    in_hand.filter_map(|packet| usize::try_from(packet.number?).ok().filter(|n| *n > 0)).collect()
}

impl Result {
    fn note_crash(&mut self, report: &Report) {
        self.crashed = true;
        self.why = Some(report.crash.why.clone());
        self.last_words.clone_from(&report.crash.last_words);
        self.culprit.clone_from(&report.culprit);
    }

    fn note_counts(&mut self, counts: Counts) {
        let Counts { rx_pkts, tx_pkts, held_pkts, drops } = counts;
        self.rx_pkts += rx_pkts;
        self.tx_pkts += tx_pkts;
        self.held_pkts += held_pkts;
        for (place, pkts) in drops {
            *self.drops.entry(place).or_default() += pkts;
        }
    }

    fn text(&self) -> String {
        let mut text = if self.crashed { self.crash_text() } else { self.survival_text() };
        if self.padded_pkts > 0 {
            text += &format!(
                "\nnote: of {} packets only the first bytes are known, the others were zeros",
                self.padded_pkts
            );
        }
        text
    }

    fn crash_text(&self) -> String {
        let why = self.why.as_deref().unwrap_or("why is not known");
        let mut text = format!("the NF crashed again: {why}");
        if let Some(culprit) = &self.culprit {
            text += &format!(" in {culprit}");
        }
        if let Some(packet) = self.packet {
            text += &format!(" at packet {packet} of {}", self.pkts);
            if let Some(summary) = &self.packet_summary {
                text += &format!(" ({summary})");
            }
        } else {
            text += &format!(" among {} packets", self.pkts);
        }
        match self.alone {
            Some(true) => text += "; that packet alone is enough",
            Some(false) => text += "; that packet alone is not enough",
            None => {}
        }
        if let Some(words) = &self.last_words {
            text += &format!("\nlast words: {words}");
        }
        text
    }

    fn survival_text(&self) -> String {
        let times = if self.runs == 1 { String::new() } else { format!(" in {} runs", self.runs) };
        let what = if self.left { "it left by itself" } else { "it did not crash" };
        let mut text = format!("{what}{times}: {} packets in, {} out", self.rx_pkts, self.tx_pkts);
        if !self.drops.is_empty() {
            let all: u64 = self.drops.values().sum();
            let drops = self.drops.iter().map(|(place, pkts)| format!("{pkts} {place}"));
            text += &format!(", {all} dropped ({})", drops.collect::<Vec<_>>().join(", "));
        }
        if self.held_pkts > 0 {
            text += &format!(", {} kept", self.held_pkts);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_manager_said_to_the_nf_is_left_out() {
        let mut report = Report::default();
        let line = "nf --socket /a x --service=3 --core 1 --services --socket=/b y";
        report.process.command = line.split(' ').map(str::to_owned).collect();
        assert_eq!(command_of(&report).unwrap(), ["nf", "x", "--services", "y"]);
        report.process.command.clear();
        assert!(command_of(&report).unwrap_err().to_string().contains("--service-command"));
        report.service.command = Some(vec!["own".into()]);
        assert_eq!(command_of(&report).unwrap(), ["own"]);
    }

    #[test]
    fn what_became_of_it_is_said_in_a_line_or_two() {
        let crashed = Result {
            crashed: true,
            runs: 3,
            pkts: 64,
            why: Some("SIGSEGV".into()),
            culprit: Some("foo::bar".into()),
            packet: Some(37),
            packet_summary: Some("udp a → b".into()),
            alone: Some(true),
            ..Result::default()
        };
        assert_eq!(
            crashed.text(),
            "the NF crashed again: SIGSEGV in foo::bar at packet 37 of 64 (udp a → b); that packet \
             alone is enough"
        );
        let survived = Result {
            runs: 1,
            pkts: 64,
            rx_pkts: 64,
            tx_pkts: 60,
            drops: BTreeMap::from([("nf_drop at service:fw".to_owned(), 4)]),
            padded_pkts: 2,
            ..Result::default()
        };
        assert_eq!(
            survived.text(),
            "it did not crash: 64 packets in, 60 out, 4 dropped (4 nf_drop at service:fw)\n\
             note: of 2 packets only the first bytes are known, the others were zeros"
        );
    }
}
