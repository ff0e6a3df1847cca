//! `millrace crash …`: what is left of NFs that crashed.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use millrace::crash::bundle::{FILES, PacketNote, Report};
use millrace::crash::evidence::PacketKind;
use millrace::crash::reading::Bundle;
use millrace::flow::FlowKey;
use nflib::control::spec::Value;
use nflib::control::{CrashStatus, MatchSpec, Reply, Request};

use crate::client::LOOK_LIMIT;
use crate::table::{Table, ago, clean, or_dash};
use crate::{Globals, print};

/// Lines of the backtrace, of the packets and of the log that `show` prints, each.
const LINES_SHOWN: usize = 24;

#[derive(Subcommand)]
pub enum Verb {
    /// One line each
    List,
    /// Why, the last words, where, the packets in hand, and what was printed last
    Show {
        /// Its name
        name: String,
    },
    /// Copy the files of one, for millrace replay and Wireshark
    Save {
        /// Its name
        name: String,
        /// The folder for them; made if it is not there
        dir: PathBuf,
    },
}

pub fn run(globals: &Globals, verb: &Verb) -> anyhow::Result<()> {
    match verb {
        Verb::List => list(globals),
        Verb::Show { name } => show(globals, name),
        Verb::Save { name, dir } => save(globals, name, dir),
    }
}

fn list(globals: &Globals) -> anyhow::Result<()> {
    let client = globals.connect()?;
    let Reply::Crashes { crashes } = client.ask(&Request::Crashes, LOOK_LIMIT)? else {
        return Err(client.unexpected("crashes").into());
    };
    print::either(globals.json, &crashes, || list_text(&crashes, unix_now_ns()))
}

fn unix_now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

fn list_text(crashes: &[CrashStatus], now_ns: u64) -> String {
    if crashes.is_empty() {
        return "no NF has crashed\n".to_owned();
    }
    let header = &["NAME", "AGO", "SERVICE", "INSTANCE", "WHY", "LAST WORDS"];
    let mut table = Table::new(header);
    for crash in crashes {
        let since_s = now_ns.saturating_sub(crash.time_unix_ns) as f64 / 1e9;
        table.row(vec![
            crash.name.clone(),
            ago(since_s),
            crash.service.clone(),
            crash.instance.to_string(),
            crash.why.clone(),
            or_dash(crash.last_words.as_ref()),
        ]);
    }
    table.text()
}

/// A crash and its files, in the order in which it lists them.
fn fetch(globals: &Globals, name: &str) -> anyhow::Result<(CrashStatus, Vec<File>)> {
    let client = globals.connect()?;
    let request = Request::Crash { name: name.to_owned() };
    let (reply, fds) = client.ask_for_fds(&request, LOOK_LIMIT)?;
    let Reply::Crash(crash) = reply else {
        return Err(client.unexpected("a crash").into());
    };
    let (listed, came) = (crash.files.len(), fds.len());
    ensure!(listed == came, "the manager sent {came} files for {listed}: use one release");
    Ok((*crash, fds.into_iter().map(File::from).collect()))
}

fn save(globals: &Globals, name: &str, dir: &Path) -> anyhow::Result<()> {
    let (crash, files) = fetch(globals, name)?;
    if !dir.is_dir() {
        let made = DirBuilder::new().mode(0o750).recursive(true).create(dir);
        made.with_context(|| dir.display().to_string())?;
    }
    for ((file, _), mut from) in crash.files.iter().zip(files) {
        ensure!(
            FILES.contains(&file.as_str()),
            "the manager names a file {file:?}: use one release"
        );
        let path = dir.join(file);
        let to = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path);
        let copied = to.and_then(|mut to| io::copy(&mut from, &mut to));
        copied.with_context(|| path.display().to_string())?;
    }
    print::either(globals.json, &crash, || {
        format!(
            "saved to {0}; packets for Wireshark: {0}/packets.pcapng; to try it again: millrace \
             replay {0}\n",
            dir.display()
        )
    })
}

fn show(globals: &Globals, name: &str) -> anyhow::Result<()> {
    let (crash, mut files) = fetch(globals, name)?;
    let mut take = |file: &str| {
        let at = crash.files.iter().position(|(name, _)| name == file);
        at.map(|at| &mut files[at]).map(|file| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map(|_| bytes)
        })
    };
    let mut contents = Vec::new();
    for file in FILES {
        let bytes = take(file).with_context(|| format!("the bundle has no {file}"))?;
        contents.push(bytes.with_context(|| file.to_owned())?);
    }
    let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
    let contents = <[&[u8]; FILES.len()]>::try_from(contents);
    let contents = contents.ok().context("files are missing")?;
    let bundle = Bundle::from_files(contents)?;
    print::either(globals.json, &bundle.report, || show_text(&bundle, unix_now_ns()))
}

fn show_text(bundle: &Bundle, now_ns: u64) -> String {
    let report = &bundle.report;
    let crash = &report.crash;
    let mut out = String::new();
    let mut line = |what: &str, text: &str| {
        let _ = writeln!(out, "{what:<10} {}", clean(text));
    };
    line("crash", &crash.name);
    line("ago", &ago(now_ns.saturating_sub(crash.time_unix_ns) as f64 / 1e9));
    line("who", &who(report));
    line("why", &crash.why);
    line("last words", crash.last_words.as_deref().unwrap_or("none"));
    line("packets", &counts(report));
    line("files", &crash.path);
    section(&mut out, "backtrace", &frames_of(&bundle.backtrace));
    let packets = packet_lines(bundle);
    let before = packets.len().saturating_sub(LINES_SHOWN);
    let title = match before {
        0 => "the packets it had taken last, oldest first".to_owned(),
        more => format!("the packets it had taken last, oldest first ({more} before them)"),
    };
    section(&mut out, &title, &packets[before..]);
    let log: Vec<_> = bundle.log.lines().map(str::to_owned).collect();
    section(&mut out, "what it printed last", &log[log.len().saturating_sub(LINES_SHOWN)..]);
    out
}

fn section(out: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}:");
    for line in lines {
        let _ = writeln!(out, "  {}", clean(line));
    }
}

fn who(report: &Report) -> String {
    let CrashStatus { service, instance, .. } = &report.crash;
    let by = if report.process.by_manager { "" } else { ", started by hand" };
    let command = report.process.command.join(" ");
    format!("instance {instance} of {service}, pid {}{by}: {command}", report.process.pid)
}

fn counts(report: &Report) -> String {
    let Report { in_hand_pkts, held_pkts, waiting_pkts, unrecorded_pkts, .. } = report;
    format!(
        "{in_hand_pkts} in hand, {held_pkts} held, {waiting_pkts} waiting; {} recorded before, \
         {unrecorded_pkts} among them not",
        report.crash.recorded_pkts
    )
}

/// The top of the backtrace.
fn frames_of(text: &str) -> Vec<String> {
    let mut lines = text.lines().skip_while(|line| !line.is_empty()).skip(1);
    let shown: Vec<_> = lines.by_ref().take(LINES_SHOWN).map(str::to_owned).collect();
    let left = lines.count();
    let more = (left > 0).then(|| format!("… {left} more lines in backtrace.txt"));
    shown.into_iter().chain(more).collect()
}

fn packet_lines(bundle: &Bundle) -> Vec<String> {
    let end_ns = bundle.report.crash.time_unix_ns;
    let of_nf = |note: &PacketNote| note.kind != PacketKind::Waiting;
    let packets: Vec<_> = bundle.packets().filter(|(note, _)| of_nf(note)).collect();
    let in_hand: Vec<_> = packets
        .iter()
        .filter(|(note, _)| note.kind == PacketKind::InHand)
        .filter_map(|(note, _)| note.number)
        .collect();
    let is_told_below = |note: &PacketNote| {
        note.kind == PacketKind::Recorded && note.number.is_some_and(|n| in_hand.contains(&n))
    };
    let told = packets.into_iter().filter(|(note, _)| !is_told_below(note));
    told.map(|(note, bytes)| packet_line(&bundle.report, note, bytes, end_ns)).collect()
}

fn packet_line(report: &Report, note: &PacketNote, bytes: &[u8], end_ns: u64) -> String {
    // When one was taken that is not recorded nobody knows.
    let number = or_dash(note.number);
    let before_ms = end_ns.saturating_sub(note.time_unix_ns) as f64 / 1e6;
    let when = note.number.map_or_else(String::new, |_| format!("-{before_ms:.3} ms"));
    let kind = match note.kind {
        PacketKind::Recorded => "passed",
        PacketKind::InHand => "in hand",
        PacketKind::Held => "held",
        PacketKind::Waiting => "waiting",
    };
    let port = note.in_port.map(|port| {
        let name = report.manager.ports.get(usize::from(port)).cloned();
        name.unwrap_or_else(|| port.to_string())
    });
    let from = port.map_or_else(String::new, |port| format!(" by {port}"));
    let len = note.len_bytes;
    format!("{number:>6}  {when:>12}  {kind:<7}  {len:>4} bytes{from}  {}", summary(bytes))
}

/// Who to whom, in short.
pub fn summary(frame: &[u8]) -> String {
    let spec = FlowKey::parse(frame, 0, 0, 0).to_spec(&|_| String::new());
    let text = |value: &Option<Value>| value.as_ref().map(ToString::to_string);
    let MatchSpec { eth_src, eth_dst, eth_type, ip_src, ip_dst, ip_proto, tp_src, tp_dst, .. } =
        &spec;
    let ends = match (text(ip_src), text(ip_dst)) {
        (Some(src), Some(dst)) => (src, dst),
        _ => (or_dash(text(eth_src)), or_dash(text(eth_dst))),
    };
    let with_port = |end: String, port: Option<String>| match port {
        Some(port) if end.contains(':') => format!("[{end}]:{port}"),
        Some(port) => format!("{end}:{port}"),
        None => end,
    };
    let protocol = or_dash(text(ip_proto).or(text(eth_type)));
    format!("{protocol} {} → {}", with_port(ends.0, text(tp_src)), with_port(ends.1, text(tp_dst)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::testing::FrameBuilder;

    #[test]
    fn each_crash_is_a_line_and_none_is_told() {
        assert_eq!(list_text(&[], 0), "no NF has crashed\n");
        let crash = CrashStatus {
            name: "20261130T132501Z-fw-3".into(),
            time_unix_ns: 5_000_000_000,
            service: "fw".into(),
            instance: 3,
            why: "SIGSEGV".into(),
            ..Default::default()
        };
        let text = list_text(&[crash], 65_000_000_000);
        let line: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line, ["20261130T132501Z-fw-3", "60", "s", "fw", "3", "SIGSEGV", "-"]);
    }

    #[test]
    fn a_packet_is_told_by_its_ends() {
        let ends = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let frame = FrameBuilder::new().ip(ends.0, ends.1).udp(1, 2).payload(b"x").build();
        assert_eq!(summary(&frame), "udp 10.0.0.1:1 → 10.0.0.2:2");
        let ends = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let frame = FrameBuilder::new().ip(ends.0, ends.1).udp(1, 2).payload(b"x").build();
        assert_eq!(summary(&frame), "udp [fd00::1]:1 → [fd00::2]:2");
        assert!(summary(&[]).contains('→'));
    }

    #[test]
    fn a_long_backtrace_is_cut_and_its_head_is_told_elsewhere() {
        let text = format!("head\n\n{}", "  frame\n".repeat(LINES_SHOWN + 3));
        let lines = frames_of(&text);
        assert_eq!(lines.len(), LINES_SHOWN + 1);
        assert_eq!(lines.last().unwrap(), "… 3 more lines in backtrace.txt");
        assert!(frames_of("head\n\n").is_empty());
    }
}
