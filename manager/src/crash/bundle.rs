//! What is written about a crash: four files.
//!
//! | file | what |
//! |---|---|
//! | `packets.pcapng` | interfaces `recorded`, `in hand` and `waiting`: see [`PacketKind`] |
//! | `log.txt` | the last lines that the NF printed |
//! | `backtrace.txt` | where a panic or a signal found it, for people |
//! | `crash.json` | a [`Report`]: all the rest, and what `millrace replay` needs |
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use nflib::control::{CrashStatus, NfStatus, ServiceSpec};
use nflib::descriptor::{NO_PORT, PortId, RouteId, ServiceId};
use nflib::observe::NOBODY;
use nflib::shm::{BlackBox, LastWords, RecordedPacket, RecorderTerms, RegionGeometry};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::backtrace::{self, Frame, Reader};
use super::evidence::{Evidence, Found, PacketKind};
use crate::observe::pcapng;
use crate::plan::NfNumber;

/// The files of a bundle, in the order in which they are listed.
pub const FILES: [&str; 4] = ["crash.json", "backtrace.txt", "log.txt", "packets.pcapng"];

/// What was known when an NF crashed; everything that is to be copied in time has been.
pub struct Scene {
    /// When, nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// What is to be added to CLOCK_MONOTONIC for that.
    pub clock_offset_ns: u64,
    /// How its process ended, or why it was removed.
    pub why: String,
    /// Its process.
    pub process: ProcessNote,
    /// Seconds since 1970 when it attached.
    pub attached_unix_s: i64,
    /// Its service.
    pub service: ServiceSpec,
    /// Its counters.
    pub counters: NfStatus,
    /// Packets that it had done with.
    pub done_pkts: u64,
    /// What it had.
    pub evidence: Evidence,
    /// What it recorded and said.
    pub black_box: Arc<BlackBox>,
    /// What numbers stand for.
    pub names: Names,
    /// The last lines that it printed.
    pub log: Vec<String>,
    /// The manager.
    pub manager: ManagerNote,
}

/// What numbers in descriptors stand for.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Ports, by number.
    pub ports: Vec<String>,
    /// Chains, by route.
    pub chains: BTreeMap<RouteId, String>,
    /// NFs, by number, as `service#instance`.
    pub nfs: BTreeMap<NfNumber, String>,
}

/// The process that crashed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessNote {
    /// Its number.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Program and arguments as it was started, by its own word.
    pub command: Vec<String>,
    /// The folder it was in when it attached, where that could be seen.
    pub folder: Option<String>,
    /// The manager had started it.
    pub by_manager: bool,
}

/// The manager that noticed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManagerNote {
    /// Its release.
    pub version: String,
    /// Its process.
    pub pid: i32,
    /// Since its start, seconds.
    pub uptime_s: f64,
    /// Workers.
    pub workers: u16,
    /// Slots of a ring.
    pub ring_capacity: u32,
    /// The packet region.
    pub region: Option<RegionGeometry>,
    /// What was recorded.
    pub recorder: Option<RecorderTerms>,
    /// Its ports, by number.
    pub ports: Vec<String>,
    /// Its services.
    pub services: Vec<(ServiceId, String)>,
}

/// Where a signal struck.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SignalNote {
    /// `SIGSEGV`.
    pub signal: String,
    /// Its `si_code`.
    pub code: i32,
    /// The address used.
    pub address: String,
    /// The instruction.
    pub pc: String,
}

/// What a panic said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PanicNote {
    /// `file:line:column`.
    pub location: String,
    /// Its message.
    pub message: String,
    /// How long before the end was noticed, milliseconds: one that was caught may be old.
    pub before_end_ms: u64,
}

/// A packet of the bundle; in the order of `packets.pcapng`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PacketNote {
    /// What it was to the NF.
    pub kind: PacketKind,
    /// Its number among all that the NF took, where it was recorded.
    pub number: Option<u64>,
    /// Nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// Its buffer.
    pub buffer: u32,
    /// Its length, bytes.
    pub len_bytes: u16,
    /// How many of its first bytes are in the bundle.
    pub kept_bytes: u16,
    /// Its flow hash.
    pub flow_hash: u32,
    /// The chain it travelled.
    pub chain: Option<String>,
    /// The NF's position in it.
    pub hop: u8,
    /// The number of the port it came in by; `None`: an NF made it.
    pub in_port: Option<PortId>,
    /// The NF it came from; `None`: the manager.
    pub peer: Option<String>,
}

/// All about a crash: `crash.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// In short.
    pub crash: CrashStatus,
    /// The process.
    pub process: ProcessNote,
    /// Where a signal struck it, if one did.
    pub signal: Option<SignalNote>,
    /// Its last panic, if it left one.
    pub panic: Option<PanicNote>,
    /// The function that is most likely at fault.
    pub culprit: Option<String>,
    /// Its service.
    pub service: ServiceSpec,
    /// Its counters.
    pub counters: NfStatus,
    /// Packets it had in hand, held, and had not taken yet; not all need be in the bundle.
    pub in_hand_pkts: u64,
    /// See `in_hand_pkts`.
    pub held_pkts: u64,
    /// See `in_hand_pkts`.
    pub waiting_pkts: u64,
    /// Packets that it took since the oldest recorded one and that were not recorded.
    pub unrecorded_pkts: u64,
    /// The packets of the bundle.
    pub packets: Vec<PacketNote>,
    /// The manager.
    pub manager: ManagerNote,
}

impl Scene {
    /// Writes the files into a folder, which is there and empty.
    ///
    /// # Errors
    /// As the system says.
    pub fn write(&self, folder: &Path, name: &str, final_path: &Path) -> io::Result<Report> {
        let words = self.black_box.last_words();
        let recorded = self.black_box.packets();
        let frames = self.frames(&words);
        let culprit = backtrace::culprit(&frames);
        let packets = self.packets(&recorded);
        let mut report = Report {
            crash: CrashStatus {
                name: name.to_owned(),
                time_unix_ns: self.time_unix_ns,
                service: self.service.name.clone(),
                instance: self.counters.instance,
                why: self.why.clone(),
                last_words: last_words(&words, &self.why, culprit),
                path: final_path.display().to_string(),
                recorded_pkts: recorded.len() as u64,
                in_hand_pkts: self.evidence.in_hand_pkts,
                ..CrashStatus::default()
            },
            process: self.process.clone(),
            signal: words.signal.as_ref().map(|signal| SignalNote {
                signal: signal_name(signal.signal),
                code: signal.code,
                address: format!("{:#x}", signal.address),
                pc: format!("{:#x}", signal.pc),
            }),
            panic: words.panic.as_ref().map(|panic| PanicNote {
                location: panic.location.clone(),
                message: panic.message.clone(),
                before_end_ms: self
                    .time_unix_ns
                    .saturating_sub(panic.time_ns.wrapping_add(self.clock_offset_ns))
                    / 1_000_000,
            }),
            culprit: culprit.map(|function| function.name.clone()),
            service: self.service.clone(),
            counters: self.counters.clone(),
            in_hand_pkts: self.evidence.in_hand_pkts,
            held_pkts: self.evidence.held_pkts,
            waiting_pkts: self.evidence.waiting_pkts,
            unrecorded_pkts: unrecorded_pkts(&recorded, self.done_pkts),
            packets: packets.iter().map(|(note, _)| note.clone()).collect(),
            manager: self.manager.clone(),
        };
        let text = self.backtrace_text(&report, &words, &frames);
        let log: String = self.log.iter().map(|line| format!("{line}\n")).collect();
        let capture = self.capture(&report, &packets);
        let contents = [text.as_bytes(), log.as_bytes(), &capture];
        for (file, bytes) in FILES[1..].iter().zip(contents) {
            write_file(&folder.join(file), bytes)?;
            report.crash.files.push(((*file).to_owned(), bytes.len() as u64));
        }
        write_report(folder, &mut report)?;
        Ok(report)
    }

    fn frames(&self, words: &LastWords) -> Vec<Frame> {
        let addresses: Vec<u64> = match (&words.signal, &words.panic) {
            (Some(signal), _) => {
                // The handler's own calls come first.
                let struck = signal.frames.iter().position(|address| *address == signal.pc);
                let below = struck.map_or(&[][..], |at| &signal.frames[at + 1..]);
                [&[signal.pc], below].concat()
            }
            (None, Some(panic)) => panic.frames.clone(),
            (None, None) => return Vec::new(),
        };
        let reader = Reader { uid: self.process.uid, since_unix_s: self.attached_unix_s };
        let frames = backtrace::explain(&addresses, &backtrace::modules(&words.modules), reader);
        if words.signal.is_some() { frames } else { backtrace::without_hook(frames) }
    }

    fn backtrace_text(&self, report: &Report, words: &LastWords, frames: &[Frame]) -> String {
        let crash = &report.crash;
        let mut text = format!("{} of {}: {}\n", crash.instance, crash.service, crash.why);
        if let Some(signal) = &report.signal {
            let SignalNote { signal, code, address, pc } = signal;
            let _ = writeln!(text, "{signal}, code {code}, address {address}, instruction {pc}");
        }
        if let Some(panic) = &report.panic {
            let PanicNote { location, message, before_end_ms } = panic;
            let _ = writeln!(text, "panic {before_end_ms} ms before, at {location}:\n{message}");
        }
        if words.signal.is_none() && words.panic.is_none() {
            text.push_str("It left no last words: SIGKILL and exit leave no time for any.\n");
        }
        text + "\n" + &backtrace::text(frames)
    }

    /// The packets with their notes, in the order of the file.
    fn packets<'a>(&'a self, recorded: &'a [RecordedPacket]) -> Vec<(PacketNote, &'a [u8])> {
        let unix = |time_ns: u64| time_ns.wrapping_add(self.clock_offset_ns);
        let of_record = recorded.iter().map(|packet| {
            let note = PacketNote {
                kind: PacketKind::Recorded,
                number: Some(packet.number),
                time_unix_ns: unix(packet.time_ns),
                buffer: packet.buffer,
                len_bytes: packet.len_bytes,
                kept_bytes: packet.bytes.len() as u16,
                flow_hash: packet.flow_hash,
                chain: self.names.chains.get(&packet.route).cloned(),
                hop: packet.hop,
                in_port: in_port(packet.ingress),
                peer: self.peer(packet.peer),
            };
            (note, &packet.bytes[..])
        });
        // Those that the NF had not done with have not been published: an older packet in the same buffer
        // has a lower number.
        let open = recorded.iter().filter(|packet| packet.number > self.done_pkts);
        let open: HashMap<_, _> = open.map(|packet| (packet.buffer, packet)).collect();
        let of_evidence = self.evidence.packets.iter().map(move |found| {
            let Found { kind, delivery, peer, bytes } = found;
            let record = match kind {
                PacketKind::InHand => open.get(&delivery.buffer).filter(|packet| {
                    (packet.offset_bytes, packet.len_bytes)
                        == (delivery.offset_bytes, delivery.len_bytes)
                }),
                _ => None,
            };
            let note = PacketNote {
                kind: *kind,
                number: record.map(|packet| packet.number),
                time_unix_ns: record.map_or(self.time_unix_ns, |packet| unix(packet.time_ns)),
                buffer: delivery.buffer,
                len_bytes: delivery.len_bytes,
                kept_bytes: bytes.len() as u16,
                flow_hash: delivery.flow_hash,
                chain: self.names.chains.get(&delivery.route).cloned(),
                hop: delivery.hop,
                in_port: in_port(delivery.port),
                peer: self.peer(*peer),
            };
            (note, &bytes[..])
        });
        of_record.chain(of_evidence).collect()
    }

    fn peer(&self, nf: NfNumber) -> Option<String> {
        let name = || self.names.nfs.get(&nf).cloned().unwrap_or_else(|| format!("NF {nf}"));
        (nf != NOBODY).then(name)
    }

    fn capture(&self, report: &Report, packets: &[(PacketNote, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        let CrashStatus { service, instance, why, .. } = &report.crash;
        let application = format!("millrace {}", self.manager.version);
        let comment = format!("NF {service}#{instance}: {why}");
        let section =
            pcapng::Section { application: &application, comment: &comment, ..Default::default() };
        pcapng::section(&mut out, &section);
        let kept = self.black_box.terms().kept_bytes.into();
        for (name, description, snap_bytes) in [
            ("recorded", "packets that the NF had taken, as they came", kept),
            ("in hand", "packets that the NF had taken and not passed on, as they were found", 0),
            ("waiting", "packets that the NF had not taken yet", 0),
        ] {
            let interface =
                pcapng::Interface { name, description, snap_bytes, ..Default::default() };
            pcapng::interface(&mut out, &interface);
        }
        for (note, bytes) in packets {
            let packet = pcapng::Packet {
                interface: match note.kind {
                    PacketKind::Recorded => 0,
                    PacketKind::InHand | PacketKind::Held => 1,
                    PacketKind::Waiting => 2,
                },
                time_unix_ns: note.time_unix_ns,
                bytes,
                original_bytes: note.len_bytes.into(),
                direction: pcapng::Direction::Inbound,
                id: note.number,
                comment: &self.comment(note),
                ..Default::default()
            };
            pcapng::packet(&mut out, &packet);
        }
        out
    }

    fn comment(&self, note: &PacketNote) -> String {
        let mut parts = Vec::new();
        parts.extend(note.chain.as_ref().map(|chain| format!("chain={chain}")));
        parts.push(format!("hop={}", note.hop));
        let port = note.in_port.map(|port| match self.names.ports.get(usize::from(port)) {
            Some(name) => name.clone(),
            None => port.to_string(),
        });
        parts.extend(port.map(|port| format!("in_port={port}")));
        parts.push(format!("from={}", note.peer.as_deref().unwrap_or("manager")));
        parts.extend(note.number.map(|number| format!("number={number}")));
        parts.extend((note.kind == PacketKind::Held).then(|| "held".to_owned()));
        parts.join(" ")
    }
}

fn in_port(port: PortId) -> Option<PortId> {
    (port != NO_PORT).then_some(port)
}

/// Packets that were taken since the oldest one that is recorded, and are not.
fn unrecorded_pkts(recorded: &[RecordedPacket], done_pkts: u64) -> u64 {
    let (Some(first), Some(last)) = (recorded.first(), recorded.last()) else { return done_pkts };
    let taken = last.number.max(done_pkts).saturating_sub(first.number).saturating_add(1);
    taken.saturating_sub(recorded.len() as u64)
}

fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |s| s.as_str().to_owned())
}

/// In a line or two, what the NF said, as far as it has to do with its end.
fn last_words(
    words: &LastWords,
    why: &str,
    culprit: Option<&backtrace::Function>,
) -> Option<String> {
    let place = |begin: &str| match culprit {
        Some(backtrace::Function { name, at: Some(at) }) => format!("{begin} {name} ({at})"),
        Some(backtrace::Function { name, at: None }) => format!("{begin} {name}"),
        None => String::new(),
    };
    let of_signal = words.signal.as_ref().map(|signal| {
        let name = signal_name(signal.signal);
        // An address is told of an access, and only by the kernel.
        let is_access = matches!(signal.signal, nix::libc::SIGSEGV | nix::libc::SIGBUS);
        match is_access && signal.code > 0 {
            true => format!("{name} at address {:#x}{}", signal.address, place(", in")),
            false => format!("{name}{}", place(" in")),
        }
    });
    // An old one that was caught has nothing to do with a signal from outside.
    let is_its_end = why.starts_with("exit status") || why.contains("not known");
    let of_panic =
        words.panic.as_ref().filter(|_| of_signal.is_some() || is_its_end).map(|panic| {
            let place = if of_signal.is_none() { place(", in") } else { String::new() };
            format!("panic: {} at {}{place}", panic.message, panic.location)
        });
    let parts: Vec<_> = [of_panic, of_signal].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o640).open(path)?.write_all(bytes)
}

/// Writes the report, whose own length stands in it.
fn write_report(folder: &Path, report: &mut Report) -> io::Result<()> {
    report.crash.files.insert(0, (FILES[0].to_owned(), 0));
    let mut text = serde_json::to_vec(report)?;
    // The length may have more digits than 0 has, once.
    for _ in 0..3 {
        report.crash.files[0].1 = text.len() as u64;
        text = serde_json::to_vec(report)?;
    }
    write_file(&folder.join(FILES[0]), &text)
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
