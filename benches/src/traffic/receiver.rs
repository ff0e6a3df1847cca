//! Receives the flows of a run and accounts for every packet.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nflib::headers::{Headers, Transport, checksum};
use nflib::trail::Trail;
use serde::Serialize;

use super::flows::{Kinds, MAX_FLOWS};
use super::interface::InterfaceDrops;
use super::label::{Kind, Label, NoLabel};
use super::ledger::FlowLedger;
use super::packet_socket::{FrameBuffers, PacketSocket};
use super::sender::Sent;
use super::signals::{Asked, Signals};
use super::ways::{FlowWays, PhaseReport, Ways};

/// Room in the socket while this process does not run: seconds of traffic.
const SOCKET_BUFFER_BYTES: usize = 64 << 20;
/// How long to sleep when nothing is there: packets that come meanwhile are taken together, which
/// spares the machine a wake-up for each; delays are known to this precision.
const SLEEP: Duration = Duration::from_micros(500);
/// How often to look whether the run is over.
const LOOK_EVERY_NS: u64 = 50_000_000;
/// After the last packet, so long for others that should not be there.
const LINGER_NS: u64 = 200_000_000;

/// What is received, and until when.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    /// Interface, in this process's network namespace.
    pub interface: String,
    /// The run.
    pub run_id: u64,
    /// Kinds that belong here; packets of another are misdelivered.
    pub kinds: Kinds,
    /// The sender's report, which appears at its end; then what is missing is waited for until
    /// nothing came for `idle`.
    pub expect: Option<PathBuf>,
    /// See `expect`; without it, the end of the run.
    pub idle: Duration,
    /// The longest that this may take, seconds; `None`: no limit.
    pub seconds: Option<f64>,
    /// Services in order, as `1,2`, that packets may meet; none: all.
    pub courses: Vec<String>,
}

/// What one kind of flow came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KindReport {
    /// Flows that are known.
    pub flows: u64,
    /// Packets, those that came twice too.
    pub received: u64,
    /// Packets that were sent and did not come.
    pub lost: u64,
    /// Packets that came after a later one of their flow.
    pub reordered: u64,
    /// Packets that came again.
    pub duplicated: u64,
    /// Packets with a number that was never sent.
    pub invented: u64,
}

impl KindReport {
    fn add(&mut self, other: &Self) {
        self.flows += other.flows;
        self.received += other.received;
        self.lost += other.lost;
        self.reordered += other.reordered;
        self.duplicated += other.duplicated;
        self.invented += other.invented;
    }
}

/// Times between sending and receiving, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Delays {
    /// Half took no longer.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// What became of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Received {
    /// The run.
    pub run_id: u64,
    /// Whether the losses below are on the way and not in this machine's kernel, and all that was
    /// sent is known.
    pub valid: bool,
    /// Why not.
    pub invalid_because: Vec<String>,
    /// Packets of the kinds that belong here that were sent; 0 when it is not known.
    pub expected: u64,
    /// All kinds that belong here together.
    #[serde(flatten)]
    pub total: KindReport,
    /// By kind.
    pub kinds: BTreeMap<&'static str, KindReport>,
    /// Packets that were altered on the way, or whose checksum is wrong.
    pub corrupted: u64,
    /// Packets of a kind that does not belong here.
    pub misdelivered: u64,
    /// Packets with a trail that is no allowed course, or of more than one route.
    pub mixed: u64,
    /// The first few of those.
    pub mixed_examples: Vec<String>,
    /// Packets by kind and course.
    pub courses: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// The ends of the phases.
    pub phases: Vec<PhaseReport>,
    /// From sender to here.
    pub delay_us: Delays,
    /// Dropped by this program's own socket.
    pub socket_dropped: u64,
    /// Dropped by the interface on receiving.
    pub interface_dropped: u64,
}

/// One flow.
#[derive(Debug, Default)]
struct Flow {
    ledger: FlowLedger,
    ways: FlowWays,
    received: u64,
    kind: Option<Kind>,
}

/// The books of a run.
#[derive(Debug)]
pub struct Books {
    run_id: u64,
    kinds: Kinds,
    flows: Vec<Flow>,
    ways: Ways,
    delays_us: Vec<u32>,
    corrupted: u64,
    misdelivered: u64,
    /// Packets that came once or more often and belong here.
    distinct: u64,
}

impl Books {
    /// Empty ones, for the kinds that belong here and the courses allowed.
    #[must_use]
    pub fn new(run_id: u64, kinds: Kinds, courses: Vec<String>) -> Self {
        Self {
            run_id,
            kinds,
            flows: Vec::new(),
            ways: Ways::new(courses),
            delays_us: Vec::new(),
            corrupted: 0,
            misdelivered: 0,
            distinct: 0,
        }
    }

    /// Notes a frame; false when it is none of this run's.
    pub fn note(&mut self, frame: &[u8], now_ns: u64) -> bool {
        let headers = Headers::parse(frame);
        let payload = headers.payload(frame);
        let Some(trail) = Trail::read(payload) else { return false };
        let label = match Label::read(&payload[trail.len_bytes()..], self.run_id) {
            Ok(label) => label,
            Err(NoLabel::Foreign) => return false,
            Err(NoLabel::Altered) => {
                self.corrupted += 1;
                return true;
            }
        };
        let kind = match headers.transport {
            Transport::Tcp { dst: 80, .. } => Some(Kind::Http),
            Transport::Udp { .. } => Some(Kind::Udp),
            _ => None,
        };
        let checksums =
            [checksum::ipv4_ok(frame, &headers), checksum::transport_ok(frame, &headers)];
        if kind != Some(label.kind) || checksums != [Some(true); 2] || label.flow >= 2 * MAX_FLOWS {
            self.corrupted += 1;
        } else if matches!(self.kinds, Kinds::Only(here) if here != label.kind) {
            self.misdelivered += 1;
        } else {
            self.note_label(&label, &trail, now_ns);
        }
        true
    }

    fn note_label(&mut self, label: &Label, trail: &Trail<'_>, now_ns: u64) {
        let at = label.flow as usize;
        if self.flows.len() <= at {
            self.flows.resize_with(at + 1, Flow::default);
        }
        let flow = &mut self.flows[at];
        flow.kind = Some(label.kind);
        flow.received += 1;
        let before = flow.ledger.distinct();
        flow.ledger.note(label.number);
        self.distinct += flow.ledger.distinct() - before;
        self.ways.note(&mut flow.ways, label.phase, label.kind, trail);
        let delay_us = now_ns.saturating_sub(label.sent_ns) / 1000;
        self.delays_us.push(u32::try_from(delay_us).unwrap_or(u32::MAX));
    }

    /// How many of the packets sent belong here.
    fn expected(&self, sent: &Sent) -> u64 {
        match self.kinds {
            Kinds::Mix => sent.sent,
            Kinds::Only(Kind::Http) => sent.sent_http,
            Kinds::Only(Kind::Udp) => sent.sent_udp,
        }
    }

    /// Adds everything up, against what was sent if that is known.
    #[must_use]
    pub fn close(mut self, sent: Option<&Sent>) -> Received {
        let mut kinds: BTreeMap<&'static str, KindReport> = BTreeMap::new();
        let known = sent.map_or(0, |sent| sent.sent_by_flow.len());
        self.flows.resize_with(self.flows.len().max(known), Flow::default);
        for (at, flow) in self.flows.iter().enumerate() {
            let sent_here = sent.map(|sent| sent.sent_by_flow.get(at).copied().unwrap_or(0));
            let kind = flow.kind.or_else(|| sent.map(|sent| sent.kind_of(at as u32)));
            let Some(kind) = kind.filter(|&kind| self.belongs(kind)) else { continue };
            kinds.entry(kind.name()).or_default().add(&KindReport {
                flows: 1,
                received: flow.received,
                lost: flow.ledger.lost(sent_here),
                reordered: flow.ledger.reordered,
                duplicated: flow.ledger.duplicated,
                invented: sent_here.map_or(0, |sent| flow.ledger.invented(sent)),
            });
        }
        let mut total = KindReport::default();
        kinds.values().for_each(|report| total.add(report));
        let flows = self.flows.iter().filter_map(|flow| Some((flow.kind?, &flow.ways)));
        let phases = self.ways.phases(flows);
        Received {
            run_id: self.run_id,
            valid: true,
            expected: sent.map_or(0, |sent| self.expected(sent)),
            total,
            kinds,
            corrupted: self.corrupted,
            misdelivered: self.misdelivered,
            mixed: self.ways.mixed,
            mixed_examples: std::mem::take(&mut self.ways.mixed_examples),
            courses: self.ways.packets_by_course(),
            phases,
            delay_us: delays(&mut self.delays_us),
            ..Received::default()
        }
    }

    fn belongs(&self, kind: Kind) -> bool {
        match self.kinds {
            Kinds::Mix => true,
            Kinds::Only(here) => here == kind,
        }
    }
}

fn delays(delays_us: &mut [u32]) -> Delays {
    delays_us.sort_unstable();
    let at = |percent: usize| {
        let last = delays_us.len().saturating_sub(1);
        delays_us.get(last * percent / 100).copied().unwrap_or(0).into()
    };
    Delays { p50: at(50), p99: at(99), max: at(100) }
}

/// When a run is over.
struct End<'o> {
    options: &'o ReceiveOptions,
    sent: Option<Sent>,
    started_ns: u64,
    last_packet_ns: Option<u64>,
    looked_ns: u64,
}

impl End<'_> {
    /// Whether it is, now; looks only now and then.
    fn reached(&mut self, books: &Books, now_ns: u64) -> Result<bool> {
        if now_ns < self.looked_ns + LOOK_EVERY_NS {
            return Ok(false);
        }
        self.looked_ns = now_ns;
        let options = self.options;
        if options.seconds.is_some_and(|s| now_ns - self.started_ns >= (s * 1e9) as u64) {
            return Ok(true);
        }
        if let (Some(path), None) = (&options.expect, &self.sent) {
            self.sent = Sent::read(path)?;
            if self.sent.is_some() {
                // What is on its way has the full time from now on.
                self.last_packet_ns = Some(now_ns);
            }
        }
        let quiet_ns = now_ns - self.last_packet_ns.unwrap_or(now_ns);
        Ok(match (&options.expect, &self.sent) {
            (Some(_), None) => false,
            (_, Some(sent)) if books.distinct >= books.expected(sent) => quiet_ns >= LINGER_NS,
            _ => quiet_ns >= options.idle.as_nanos() as u64,
        })
    }
}

/// Receives until the run is over, or a signal ends it. `ready` is called once packets are heard.
///
/// # Errors
/// What the socket, the clock or the sender's report say.
pub fn receive(
    options: &ReceiveOptions,
    signals: &Signals,
    ready: impl FnOnce(),
) -> Result<Received> {
    let interface = &options.interface;
    let before = InterfaceDrops::read(interface)?;
    let socket = PacketSocket::receiver(interface, SOCKET_BUFFER_BYTES).with_context(|| {
        format!("no packet socket on {interface} (it needs CAP_NET_RAW and CAP_NET_ADMIN)")
    })?;
    ready();
    let mut books = Books::new(options.run_id, options.kinds, options.courses.clone());
    let mut buffers = FrameBuffers::new();
    let started_ns = super::now_ns()?;
    let mut end =
        End { options, sent: None, started_ns, last_packet_ns: None, looked_ns: started_ns };
    loop {
        if signals.next()? == Some(Asked::Stop) {
            break;
        }
        let got = socket.receive_burst(&mut buffers).with_context(|| format!("on {interface}"))?;
        let now_ns = super::now_ns()?;
        let mut ours = false;
        for frame in buffers.frames() {
            ours |= books.note(frame, now_ns);
        }
        if ours {
            end.last_packet_ns = Some(now_ns);
        }
        if end.reached(&books, now_ns)? {
            break;
        }
        if got == 0 {
            signals.sleep(SLEEP)?;
        }
    }
    let counts = socket.take_counts()?;
    let dropped = InterfaceDrops::read(interface)?.since(before).rx_pkts;
    let sent = match (&options.expect, end.sent) {
        (Some(path), None) => Sent::read(path)?,
        (_, sent) => sent,
    };
    let mut received = books.close(sent.as_ref());
    received.socket_dropped = counts.dropped_pkts;
    received.interface_dropped = dropped;
    received.judge(options, sent.as_ref());
    Ok(received)
}

impl Received {
    /// Says what makes the run prove nothing.
    fn judge(&mut self, options: &ReceiveOptions, sent: Option<&Sent>) {
        let mut because = Vec::new();
        if self.socket_dropped > 0 {
            because.push(format!("this program's socket dropped {} packets", self.socket_dropped));
        }
        if self.interface_dropped > 0 {
            because.push(format!("{} dropped {}", options.interface, self.interface_dropped));
        }
        match sent {
            Some(sent) if sent.run_id != options.run_id => {
                because.push(format!("the sender's report is of run {}", sent.run_id));
            }
            Some(sent) if sent.interface_dropped > 0 => because
                .push(format!("the sender's interface dropped {} packets", sent.interface_dropped)),
            None if options.expect.is_some() => because.push("the sender left no report".into()),
            _ => {}
        }
        self.valid = because.is_empty();
        self.invalid_because = because;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use nflib::trail::{Step, stamp};

    use super::super::flows::{Addresses, frame};
    use super::*;

    const ADDRESSES: Addresses = Addresses {
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        src: Ipv4Addr::new(10, 0, 0, 1),
        to_http: Ipv4Addr::new(10, 0, 0, 2),
        to_udp: Ipv4Addr::new(10, 0, 0, 3),
    };

    fn packet(flow: u32, number: u64) -> Vec<u8> {
        let kind = Kinds::Mix.of(flow);
        let label = Label { run_id: 9, flow, phase: 0, kind, number, sent_ns: 1000 };
        let mut frame = frame(&ADDRESSES, &label, 10);
        stamp(&mut frame, Step { service: 1, route: 0, instance: 1 });
        frame
    }

    fn sent(by_flow: &[u64]) -> Sent {
        let of = |parity: usize| by_flow.iter().skip(parity).step_by(2).sum();
        Sent {
            run_id: 9,
            sent: by_flow.iter().sum(),
            sent_http: of(0),
            sent_udp: of(1),
            sent_by_flow: by_flow.to_vec(),
            kinds: "mix".into(),
            ..Sent::default()
        }
    }

    #[test]
    fn all_that_came_in_order_leaves_nothing_to_say() {
        let mut books = Books::new(9, Kinds::Mix, vec!["1".into()]);
        for number in 0..10 {
            for flow in 0..4 {
                assert!(books.note(&packet(flow, number), 3_000_000));
            }
        }
        let report = books.close(Some(&sent(&[10; 4])));
        let kind = KindReport { flows: 2, received: 20, ..KindReport::default() };
        assert_eq!(report.kinds, BTreeMap::from([("http", kind.clone()), ("udp", kind)]));
        assert_eq!((report.expected, report.total.received), (40, 40));
        assert_eq!((report.corrupted, report.misdelivered, report.mixed), (0, 0, 0));
        assert_eq!(report.delay_us, Delays { p50: 2999, p99: 2999, max: 2999 });
    }

    #[test]
    fn losses_at_the_end_of_a_flow_and_of_whole_flows_are_seen() {
        let mut books = Books::new(9, Kinds::Mix, vec![]);
        books.note(&packet(0, 0), 0);
        let report = books.close(Some(&sent(&[3, 0, 5, 2])));
        assert_eq!((report.kinds["http"].lost, report.kinds["udp"].lost), (7, 2));
        assert_eq!(report.total.lost, 9);
    }

    #[test]
    fn disorder_repeats_and_inventions_are_told_apart() {
        let mut books = Books::new(9, Kinds::Mix, vec![]);
        for number in [1, 0, 1, 7] {
            books.note(&packet(2, number), 0);
        }
        let total = books.close(Some(&sent(&[0, 0, 3]))).total;
        assert_eq!((total.reordered, total.duplicated, total.invented, total.lost), (1, 1, 1, 1));
    }

    #[test]
    fn what_does_not_belong_here_is_misdelivered() {
        let mut books = Books::new(9, Kinds::Only(Kind::Http), vec![]);
        books.note(&packet(0, 0), 0);
        books.note(&packet(1, 0), 0);
        let report = books.close(Some(&sent(&[1, 1])));
        assert_eq!((report.misdelivered, report.expected, report.total.lost), (1, 1, 0));
    }

    #[test]
    fn altered_bytes_and_wrong_checksums_are_corruption_and_other_traffic_is_nothing() {
        let mut books = Books::new(9, Kinds::Mix, vec![]);
        let good = packet(1, 0);
        let last = good.len() - 1;
        // The last byte of the filler; a byte of the IP header; the checksum of UDP.
        for at in [last, 8 + 14, 14 + 20 + 7] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(books.note(&bad, 0));
        }
        assert!(!books.note(&[0; 60], 0));
        assert!(!books.note(&[], 0));
        let mut other = Books::new(10, Kinds::Mix, vec![]);
        assert!(!other.note(&good, 0));
        let report = books.close(None);
        assert_eq!((report.corrupted, report.total.received), (3, 0));
    }
}
