//! Sends the flows of a run at an even rate.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::flows::{Addresses, Kinds, Schedule, frame};
use super::interface::InterfaceDrops;
use super::label::{Kind, Label};
use super::pace::Pace;
use super::packet_socket::{BURST_PKTS, PacketSocket};
use super::signals::{Asked, Signals};

/// How a run is sent.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// Interface, in this process's network namespace.
    pub interface: String,
    /// Ethernet and IP addresses.
    pub addresses: Addresses,
    /// Tells this run's packets from others.
    pub run_id: u64,
    /// How many flows.
    pub flows: u32,
    /// Which kinds.
    pub kinds: Kinds,
    /// Packets a second, all flows together.
    pub rate_pps: u64,
    /// How long; `None`: until told to stop.
    pub seconds: Option<f64>,
    /// For the order of flows and the lengths of packets.
    pub seed: u64,
    /// Where to write the [`Sent`] with each flow's count, for the receivers.
    pub report: Option<PathBuf>,
}

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// The run.
    pub run_id: u64,
    /// Packets.
    pub sent: u64,
    /// Of those, of HTTP flows.
    pub sent_http: u64,
    /// Of those, of UDP flows.
    pub sent_udp: u64,
    /// The last phase; the first is 0.
    pub phase: u16,
    /// How long it took, seconds.
    pub seconds: f64,
    /// Packets a second over the whole time.
    pub rate_pps: f64,
    /// Time in which this process got no processor and that was not made up for, seconds.
    pub paused_s: f64,
    /// Dropped by the interface before anybody could receive them: such a run proves nothing.
    pub interface_dropped: u64,
    /// Packets of each flow; in the report only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sent_by_flow: Vec<u64>,
    /// Whether even flows are HTTP and odd ones UDP, or all of one kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kinds: String,
}

impl Sent {
    /// Reads a report; `None` while there is none.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let sent = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no report of lab-traffic send", path.display()))?;
        Ok(Some(sent))
    }

    /// The kind of a flow.
    #[must_use]
    pub fn kind_of(&self, flow: u32) -> Kind {
        kinds_from(&self.kinds).of(flow)
    }

    /// In one step, so that nobody reads half of it.
    fn write(&self, path: &Path) -> Result<()> {
        let draft = path.with_extension("draft");
        fs::write(&draft, serde_json::to_vec(self)?)
            .and_then(|()| fs::rename(&draft, path))
            .with_context(|| format!("the report {} cannot be written", path.display()))
    }
}

fn kinds_from(name: &str) -> Kinds {
    match name {
        "http" => Kinds::Only(Kind::Http),
        "udp" => Kinds::Only(Kind::Udp),
        _ => Kinds::Mix,
    }
}

fn kinds_name(kinds: Kinds) -> &'static str {
    match kinds {
        Kinds::Only(kind) => kind.name(),
        Kinds::Mix => "mix",
    }
}

/// A run in progress.
struct Run<'o> {
    options: &'o SendOptions,
    schedule: Schedule,
    sent_by_flow: Vec<u64>,
    phase: u16,
    frames: Vec<Vec<u8>>,
}

/// Sends until the time is over or a signal says so. `next_phase` is told of each phase that begins.
///
/// # Errors
/// What the socket, the clock or the report's file say.
pub fn send(
    options: &SendOptions,
    signals: &Signals,
    mut next_phase: impl FnMut(u16),
) -> Result<Sent> {
    let interface = &options.interface;
    let before = InterfaceDrops::read(interface)?;
    let socket = PacketSocket::sender(interface)
        .with_context(|| format!("no packet socket on {interface} (it needs CAP_NET_RAW)"))?;
    let start_ns = super::now_ns()?;
    let mut pace = Pace::new(options.rate_pps, start_ns);
    let mut run = Run {
        options,
        schedule: Schedule::new(options.flows, options.seed),
        sent_by_flow: vec![0; options.flows as usize],
        phase: 0,
        frames: Vec::with_capacity(BURST_PKTS),
    };
    let end_ns = options.seconds.map(|s| start_ns + (s * 1e9) as u64);
    loop {
        match signals.next()? {
            Some(Asked::Stop) => break,
            Some(Asked::NextPhase) => {
                run.phase = run.phase.wrapping_add(1);
                next_phase(run.phase);
            }
            None => {}
        }
        let now_ns = super::now_ns()?;
        if end_ns.is_some_and(|end_ns| now_ns >= end_ns) {
            break;
        }
        let due = pace.due(now_ns).min(BURST_PKTS as u64);
        if due == 0 {
            signals.sleep(Duration::from_nanos(pace.sleep_ns(now_ns)))?;
            continue;
        }
        run.build(due, now_ns);
        run.send_all(&socket, signals)?;
        pace.sent(due);
    }
    let sent = run.sum(start_ns, pace.paused_ns, before)?;
    if let Some(path) = &options.report {
        sent.write(path)?;
    }
    Ok(sent)
}

impl Run<'_> {
    fn build(&mut self, count: u64, now_ns: u64) {
        self.frames.clear();
        for _ in 0..count {
            let (flow, filler_bytes) = self.schedule.next_packet();
            let number = &mut self.sent_by_flow[flow as usize];
            let label = Label {
                run_id: self.options.run_id,
                flow,
                phase: self.phase,
                kind: self.options.kinds.of(flow),
                number: *number,
                sent_ns: now_ns,
            };
            *number += 1;
            self.frames.push(frame(&self.options.addresses, &label, filler_bytes));
        }
    }

    /// Every frame has its number already, so each must go, in order.
    fn send_all(&self, socket: &PacketSocket, signals: &Signals) -> Result<()> {
        let mut left = &self.frames[..];
        while !left.is_empty() {
            match socket.send_burst(left) {
                Ok(taken) => left = &left[taken..],
                Err(error) if is_busy(&error) => signals.sleep(Duration::from_micros(100))?,
                Err(error) => {
                    return Err(error).context(format!("sending on {}", self.options.interface));
                }
            }
        }
        Ok(())
    }

    fn sum(self, start_ns: u64, paused_ns: u64, before: InterfaceDrops) -> Result<Sent> {
        let seconds = (super::now_ns()? - start_ns) as f64 / 1e9;
        let of = |kind: Kind| {
            let flows = self.sent_by_flow.iter().enumerate();
            flows
                .filter(|&(flow, _)| self.options.kinds.of(flow as u32) == kind)
                .map(|(_, sent)| sent)
                .sum()
        };
        let sent: u64 = self.sent_by_flow.iter().sum();
        Ok(Sent {
            run_id: self.options.run_id,
            sent,
            sent_http: of(Kind::Http),
            sent_udp: of(Kind::Udp),
            phase: self.phase,
            seconds,
            rate_pps: (sent as f64 / seconds).round(),
            paused_s: paused_ns as f64 / 1e9,
            interface_dropped: InterfaceDrops::read(&self.options.interface)?.since(before).tx_pkts,
            sent_by_flow: self.sent_by_flow,
            kinds: kinds_name(self.options.kinds).to_owned(),
        })
    }
}

/// The interface has no room now.
fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}
