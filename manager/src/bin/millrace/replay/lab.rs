//! A manager for a replay: in a folder of its own, with ports that are files, and gone afterwards.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use millrace::crash::bundle::Report;
use millrace::crash::reading::{Bundle, ReplayPacket};
use millrace::supervisor::{GIVEN_UP, find_program};
use nflib::control::{Confine, Reply, Request, Status};
use nflib::descriptor::PortId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Client, ClientError, LOOK_LIMIT};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a packet may stay with the NF while nothing moves, before it is said to be kept.
const STILL_LIMIT: Duration = Duration::from_secs(1);
/// How long a manager may have a reason why its NF does not run.
const START_LIMIT: Duration = Duration::from_secs(1);
/// What a manager may take to end.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Stands still for so long who hangs, unless the service says otherwise.
const STUCK_AFTER_MS: u64 = 1000;

/// What became of a replay.
pub enum Outcome {
    /// The NF crashed.
    Crashed(Box<Report>),
    /// It left by itself.
    Left(Counts),
    /// All packets went through.
    Survived(Counts),
}

/// What became of packets.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub rx_pkts: u64,
    pub tx_pkts: u64,
    pub held_pkts: u64,
    /// By place and reason.
    pub drops: BTreeMap<String, u64>,
}

/// A manager that runs, and its folder. Both go with it.
pub struct Lab {
    folder: PathBuf,
    manager: Child,
}

/// How the packets come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as they are taken, in bursts.
    Bursts,
    /// One by one, so far apart.
    Apart(Duration),
}

impl Lab {
    /// Starts a manager that has these packets come in, and lets the NF of the bundle have them, by this
    /// command.
    ///
    /// # Errors
    /// One line.
    pub fn start(
        bundle: &Bundle,
        command: &[String],
        packets: &[ReplayPacket],
        pace: Pace,
    ) -> anyhow::Result<Self> {
        let folder = make_folder()?;
        let started = write_and_start(&folder, &bundle.report, command, packets, pace);
        match started {
            Ok(manager) => Ok(Self { folder, manager }),
            Err(error) => {
                let _ = std::fs::remove_dir_all(&folder);
                Err(error)
            }
        }
    }

    /// Waits until the NF has crashed, or all packets have gone through.
    ///
    /// # Errors
    /// One line: it cannot be started, the time is over, or somebody interrupts.
    pub fn outcome(
        &mut self,
        sent_pkts: usize,
        limit: Duration,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<Outcome> {
        let end = Instant::now() + limit;
        let mut moved = (Instant::now(), 0);
        loop {
            if let Some(ended) = self.manager.try_wait().context("millrace-manager")? {
                bail!("millrace-manager ended ({ended}): {}", self.last_line());
            }
            if let Some(status) = self.status()?
                && let Some(outcome) = self.judge(&status, sent_pkts, &mut moved)?
            {
                return Ok(outcome);
            }
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if Instant::now() > end {
                bail!("no end after {} s: give it longer with --wait", limit.as_secs_f64());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("m.sock")
    }

    fn client(&self) -> anyhow::Result<Option<Client>> {
        match Client::connect(&self.socket()) {
            Err(ClientError::Absent(_)) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    fn status(&self) -> anyhow::Result<Option<Status>> {
        let Some(client) = self.client()? else { return Ok(None) };
        match client.status_within(LOOK_LIMIT) {
            Err(ClientError::Closed(_)) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    fn judge(
        &self,
        status: &Status,
        sent_pkts: usize,
        moved: &mut (Instant, u64),
    ) -> anyhow::Result<Option<Outcome>> {
        if status.deaths.count > 0 {
            // How it ended is known soon after.
            if let Some(report) = self.crash()? {
                return Ok(Some(Outcome::Crashed(Box::new(report))));
            }
        }
        let service = status.services.iter().find(|service| service.wanted.is_some());
        let waiting = service.and_then(|service| service.waiting.as_deref()).unwrap_or_default();
        let never_came = status.nfs.is_empty() && status.deaths.count == 0;
        let fails = !waiting.is_empty() && status.uptime_s > START_LIMIT.as_secs_f64();
        if never_came && (fails || waiting.starts_with(GIVEN_UP)) {
            bail!("the NF cannot be started: {waiting}");
        }
        let sum = status.accounting.tx_pkts + status.accounting.rx_pkts;
        if sum != moved.1 {
            *moved = (Instant::now(), sum);
        }
        let still = moved.0.elapsed();
        let is_gone = status.deaths.count > 0 && status.nfs.is_empty() && still > STILL_LIMIT;
        if is_gone && (waiting.is_empty() || waiting.starts_with(GIVEN_UP)) {
            return Ok(Some(Outcome::Left(counts(status))));
        }
        let all_in = status.accounting.rx_pkts >= sent_pkts as u64;
        let at_rest = status.accounting.held_pkts == 0
            || still > STILL_LIMIT + Duration::from_millis(STUCK_AFTER_MS);
        let is_there = !status.nfs.is_empty();
        Ok((all_in && at_rest && is_there && status.deaths.count == 0)
            .then(|| Outcome::Survived(counts(status))))
    }

    /// The first crash, once it is written down.
    fn crash(&self) -> anyhow::Result<Option<Report>> {
        let Some(client) = self.client()? else { return Ok(None) };
        let Reply::Crashes { crashes } = client.ask(&Request::Crashes, LOOK_LIMIT)? else {
            return Err(client.unexpected("crashes").into());
        };
        let Some(first) = crashes.first() else { return Ok(None) };
        Ok(Some(Bundle::read(Path::new(&first.path))?.report))
    }

    fn last_line(&self) -> String {
        let log = std::fs::read(self.folder.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let line = log.lines().rev().find(|line| !line.trim().is_empty());
        line.unwrap_or("it said nothing").to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Asked, it ends its NFs, too.
        let _ = kill(Pid::from_raw(self.manager.id().cast_signed()), Signal::SIGTERM);
        let end = Instant::now() + END_LIMIT;
        while matches!(self.manager.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.manager.kill();
                let _ = self.manager.wait();
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn counts(status: &Status) -> Counts {
    let mut drops = BTreeMap::new();
    for drop in &status.drops {
        *drops.entry(format!("{} at {}", drop.reason, drop.place)).or_default() += drop.pkts;
    }
    Counts {
        rx_pkts: status.accounting.rx_pkts,
        tx_pkts: status.accounting.tx_pkts,
        held_pkts: status.accounting.held_pkts,
        drops,
    }
}

/// A folder that nobody else can look into: there are payloads in it.
fn make_folder() -> anyhow::Result<PathBuf> {
    let base = std::env::temp_dir();
    for attempt in 0..100 {
        let name = format!("millrace-replay-{}-{attempt}", std::process::id());
        let path = base.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    bail!("{}: no name for a folder is free", base.display())
}

fn write_and_start(
    folder: &Path,
    report: &Report,
    command: &[String],
    packets: &[ReplayPacket],
    pace: Pace,
) -> anyhow::Result<Child> {
    let mut ports: BTreeMap<PortId, Vec<u8>> = BTreeMap::new();
    for (at, packet) in packets.iter().enumerate() {
        let file = ports.entry(packet.in_port).or_insert_with(capture_header);
        let apart = if let Pace::Apart(apart) = pace { apart } else { Duration::ZERO };
        add_frame(file, apart * u32::try_from(at).unwrap_or(u32::MAX), &packet.bytes);
    }
    for (port, file) in &ports {
        let path = folder.join(format!("in{port}.pcap"));
        std::fs::write(&path, file).with_context(|| path.display().to_string())?;
    }
    let with_packets: Vec<_> = ports.keys().copied().collect();
    let text = configuration(folder, report, command, packets.len(), &with_packets, pace)?;
    let config = folder.join("m.toml");
    std::fs::write(&config, text).with_context(|| config.display().to_string())?;
    let own = std::env::current_exe().context("own program")?;
    let program = find_program("millrace-manager", &own, std::env::var_os("PATH").as_deref())
        .map_err(anyhow::Error::msg)?;
    let log = File::create(folder.join("log")).context("log")?;
    let mut manager = Command::new(&program);
    if let Some(was_in) = report.process.folder.as_ref().filter(|folder| Path::new(folder).is_dir())
    {
        manager.current_dir(was_in);
    }
    // A group of its own: Ctrl-C is for this command, which ends the manager in good order.
    manager
        .args(["--log", "warn", "--config"])
        .arg(&config)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("log")?)
        .stderr(log)
        .spawn()
        .with_context(|| program.display().to_string())
}

/// The file of a manager like the one that noticed, with files for ports.
fn configuration(
    folder: &Path,
    report: &Report,
    command: &[String],
    pkts: usize,
    with_packets: &[PortId],
    pace: Pace,
) -> anyhow::Result<String> {
    let path = |name: &str| toml_text(&folder.join(name).display().to_string());
    let region = report.manager.region;
    let buffers = (2 * pkts + 4096).next_power_of_two();
    let recorded = pkts.clamp(64, 65_536);
    let mut text = format!(
        "[manager]\nsocket = {}\ncrash_dir = {}\njournal = \"off\"\nwait_for_nfs = true\n\
         drain_ms = 200\nrecorder_pkts = {recorded}\n[pool]\nbuffers = {buffers}\n\
         buffer_bytes = {}\nheadroom_bytes = {}\nhugepages = \"off\"\n",
        path("m.sock"),
        path("crashes"),
        region.map_or(2048, |region| region.stride_bytes),
        region.map_or(256, |region| region.headroom_bytes),
    );
    let last = with_packets.last().map_or(0, |port| usize::from(*port) + 1);
    let names = &report.manager.ports;
    let count = names.len().max(last);
    let name = |at: usize| names.get(at).cloned().unwrap_or_else(|| format!("port{at}"));
    let out = (0..).map(|n| format!("out{n}")).find(|out| !names.contains(out));
    let out = out.context("every name of a port is taken")?;
    for at in 0..count {
        let _ = write!(text, "[[port]]\nname = {}\n", toml_text(&name(at)));
        let has_packets = with_packets.iter().any(|port| usize::from(*port) == at);
        text += &match (has_packets, pace) {
            (false, _) => "backend = \"sink\"\n".to_owned(),
            (true, _) => {
                let pace = if pace == Pace::Bursts { "full" } else { "timestamps" };
                let file = path(&format!("in{at}.pcap"));
                format!(
                    "backend = \"pcap\"\nreplay = {file}\npace = \"{pace}\"\negress = {}\n",
                    toml_text(&out)
                )
            }
        };
    }
    let _ = write!(text, "[[port]]\nname = {}\nbackend = \"sink\"\n", toml_text(&out));
    text += &services(report, command);
    Ok(text)
}

fn services(report: &Report, command: &[String]) -> String {
    let own = &report.service;
    let mut text = String::new();
    let others = report.manager.services.iter().filter(|(_, name)| *name != own.name);
    for (id, name) in others {
        let _ = write!(text, "[[service]]\nname = {}\nid = {id}\n", toml_text(name));
    }
    let words: Vec<_> = command.iter().map(|word| toml_text(word)).collect();
    let name = toml_text(&own.name);
    let _ = write!(text, "[[service]]\nname = {name}\ncommand = [{}]\n", words.join(", "));
    if let Some(id) = own.id {
        let _ = writeln!(text, "id = {id}");
    }
    if own.confine != Confine::Default {
        let _ = writeln!(text, "confine = \"{}\"", own.confine.name());
    }
    if !own.writable.is_empty() {
        let paths: Vec<_> = own.writable.iter().map(|path| toml_text(path)).collect();
        let _ = writeln!(text, "writable = [{}]", paths.join(", "));
    }
    for (key, is_set) in [("isolated", own.isolated), ("shared_region", own.shared_region)] {
        if is_set {
            let _ = writeln!(text, "{key} = true");
        }
    }
    if own.access.is_read_only() && own.confine != Confine::Off {
        text += "access = \"read-only\"\n";
    }
    let stuck_after_ms = own.stuck_after_ms.unwrap_or(STUCK_AFTER_MS).min(STUCK_AFTER_MS);
    let _ = write!(
        text,
        "on_stuck = \"kill\"\nstuck_after_ms = {stuck_after_ms}\nrecorder_all = true\n\
         [[chain]]\nname = \"default\"\nservices = [{name}]\n"
    );
    text
}

/// A text as TOML writes it.
fn toml_text(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}

/// A pcap file's header: nanoseconds, whole Ethernet frames.
fn capture_header() -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(0xa1b2_3c4d_u32.to_le_bytes());
    file.extend([2_u16.to_le_bytes(), 4_u16.to_le_bytes()].concat());
    for field in [0, 0, 262_144, 1_u32] {
        file.extend(field.to_le_bytes());
    }
    file
}

fn add_frame(file: &mut Vec<u8>, at: Duration, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
    for field in [seconds, at.subsec_nanos(), len, len] {
        file.extend(field.to_le_bytes());
    }
    file.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace::config::Config;
    use millrace::ports::pcap::Capture;

    #[test]
    fn the_file_of_the_manager_is_one_whatever_stands_in_the_bundle() {
        let mut report = Report::default();
        report.service.name = "fw".into();
        report.service.id = Some(7);
        report.service.isolated = true;
        report.manager.ports = vec!["lan".into(), "out0".into(), "wan".into()];
        report.manager.services = vec![(7, "fw".into()), (9, "nat".into())];
        let command = ["nf".to_owned(), "a \"b\\\n".to_owned()];
        let folder = Path::new("/tmp/x");
        let text = configuration(folder, &report, &command, 3, &[2, 5], Pace::Bursts).unwrap();
        let config = Config::parse(&text, Path::new("m.toml")).unwrap();
        let names: Vec<_> = config.ports.iter().map(|port| port.name.as_str()).collect();
        assert_eq!(names, ["lan", "out0", "wan", "port3", "port4", "port5", "out1"]);
        let service = &config.specs.services[1];
        assert_eq!(service.command.as_deref(), Some(&command[..]));
        assert_eq!((service.id, service.isolated, service.recorder_all), (Some(7), true, true));
    }

    #[test]
    fn frames_are_written_with_their_distance() {
        let mut file = capture_header();
        add_frame(&mut file, Duration::ZERO, &[1; 60]);
        add_frame(&mut file, Duration::from_micros(1_500_000), &[2; 61]);
        let capture = Capture::new(file).unwrap();
        let frames: Vec<_> = capture.frames().iter().map(|f| (f.time_ns, f.len_bytes)).collect();
        assert_eq!(frames, [(0, 60), (1_500_000_000, 61)]);
    }
}
