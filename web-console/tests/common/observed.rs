//! What the manager of a test sees of packets: latencies that grow, captures that run, a trace, a crash.

use std::fs::File;
use std::io::{Write as _, pipe};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nflib::control::{
    ByteChange, CapturePoint, CaptureRequest, CaptureStatus, ChainLatency, CrashStatus, ErrorCode,
    ErrorReply, Histogram, HopLatency, LatencyReport, MatchSpec, Reply, Request, TraceRequest,
    TraceStatus, TraceStep, TracedPacket,
};

/// The file of the crash that has packets: a section header alone is a pcapng file.
pub const CRASH_PCAPNG: &[u8] = &SECTION;
pub const CRASH_WORDS: &[u8] = b"panicked at src/main.rs:7: no more\n";
/// Name of the crash.
pub const CRASH: &str = "fw-3-1000";

/// A section header block of pcapng, without options (draft-ietf-opsawg-pcapng, section 4.1).
const SECTION: [u8; 28] = [
    0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255,
    255, 255, 255, 255, 28, 0, 0, 0,
];

/// Its memory.
#[derive(Default)]
pub struct Observed {
    reports: AtomicU64,
    captures: Mutex<Vec<(CaptureStatus, Arc<AtomicBool>)>>,
    traces: Mutex<Vec<TraceStatus>>,
}

fn refused(code: ErrorCode, message: &str) -> Reply {
    Reply::Error(ErrorReply { code, message: message.into() })
}

impl Observed {
    /// Whether the console asks this by itself, again and again.
    pub fn is_routine(request: &Request) -> bool {
        matches!(
            request,
            Request::Latency | Request::Captures | Request::Crashes | Request::Traces { id: None }
        )
    }

    /// Captures whose reader is still there.
    pub fn captures(&self) -> Vec<CaptureStatus> {
        let mut captures = self.captures.lock().unwrap();
        captures.retain(|(_, runs)| runs.load(Ordering::Relaxed));
        captures.iter().map(|(status, _)| status.clone()).collect()
    }

    /// The answer to what is about packets, with what comes along.
    pub fn reply(&self, request: &Request) -> Option<(Reply, Vec<OwnedFd>)> {
        let reply = match request {
            Request::Latency => Reply::Latency(Box::new(self.report())),
            Request::CapturePoints => Reply::CapturePoints { points: points() },
            Request::Captures => Reply::Captures { captures: self.captures() },
            Request::Capture(request) => return Some(self.capture(request)),
            Request::Trace(request) => self.trace(request),
            Request::Traces { id } => self.told(*id),
            Request::ForgetTrace { id } => self.forget(*id),
            Request::Crashes => Reply::Crashes { crashes: vec![crash()] },
            Request::Crash { name } if name == CRASH => {
                let files = [CRASH_PCAPNG, CRASH_WORDS].map(file).into();
                return Some((Reply::Crash(Box::new(crash())), files));
            }
            Request::Crash { .. } => refused(ErrorCode::NotFound, "there is no such crash"),
            _ => return None,
        };
        Some((reply, Vec::new()))
    }

    fn report(&self) -> LatencyReport {
        report(self.reports.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn capture(&self, request: &CaptureRequest) -> (Reply, Vec<OwnedFd>) {
        if request.at.iter().any(|at| !points().iter().any(|point| point.at == *at)) {
            return (refused(ErrorCode::NotFound, "there is no such place"), Vec::new());
        }
        let (reading, mut writing) = pipe().unwrap();
        let runs = Arc::new(AtomicBool::new(true));
        let mut captures = self.captures.lock().unwrap();
        let id = captures.len() as u64 + 1;
        let status = CaptureStatus {
            id,
            name: request.name.clone(),
            at: request.at.clone(),
            filter: request.filter_text.clone(),
            pkts: 5,
            lost_pkts: 2,
            for_s: 0.5,
        };
        captures.push((status, Arc::clone(&runs)));
        let end = Instant::now() + Duration::from_millis(request.max_ms);
        std::thread::spawn(move || {
            while Instant::now() < end && writing.write_all(&SECTION).is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
            runs.store(false, Ordering::Relaxed);
        });
        (Reply::Capturing { id }, vec![reading.into()])
    }

    fn trace(&self, request: &TraceRequest) -> Reply {
        let mut traces = self.traces.lock().unwrap();
        if traces.len() == 8 {
            return refused(ErrorCode::Exhausted, "8 traces are kept: forget one");
        }
        let id = traces.last().map_or(1, |trace| trace.id + 1);
        traces.push(TraceStatus {
            id,
            request: request.clone(),
            marked_pkts: 1,
            done: true,
            packets: vec![packet()],
            ..TraceStatus::default()
        });
        Reply::Tracing { id }
    }

    fn told(&self, id: Option<u64>) -> Reply {
        let mut traces = self.traces.lock().unwrap().clone();
        match id {
            None => traces.iter_mut().for_each(|trace| trace.packets.clear()),
            Some(id) => traces.retain(|trace| trace.id == id),
        }
        if id.is_some() && traces.is_empty() {
            return refused(ErrorCode::NotFound, "there is no such trace");
        }
        Reply::Traces { traces }
    }

    fn forget(&self, id: u64) -> Reply {
        let mut traces = self.traces.lock().unwrap();
        let before = traces.len();
        traces.retain(|trace| trace.id != id);
        match traces.len() < before {
            true => Reply::Done,
            false => refused(ErrorCode::NotFound, "there is no such trace"),
        }
    }
}

fn file(content: &[u8]) -> OwnedFd {
    let mut named = tempfile::NamedTempFile::new().unwrap();
    named.write_all(content).unwrap();
    File::open(named.path()).unwrap().into()
}

fn points() -> Vec<CapturePoint> {
    ["port:lan:in", "port:wan:out", "nf:fw:in", "ring:manager:fw", "drop"]
        .map(|at| CapturePoint { at: at.into(), description: format!("at {at}") })
        .into()
}

/// A hundred packets more each time, of which each hundredth takes long.
fn histogram(number: u64, shift: u32) -> Histogram {
    let buckets =
        vec![(2560 << shift, 60 * number), (4096 << shift, 39 * number), (1 << 24, number)];
    Histogram {
        count: 100 * number,
        sum_ns: number * (60 * 2000 + 39 * 4000 + 16_000_000),
        max_ns: 16_000_000,
        p50_ns: 2560 << shift,
        p90_ns: 4096 << shift,
        p99_ns: 4096 << shift,
        p999_ns: 1 << 24,
        buckets,
    }
}

fn report(number: u64) -> LatencyReport {
    let hop = |hop: u8, service: &str| HopLatency {
        chain: "default".into(),
        hop,
        service: service.into(),
        wait: histogram(number, u32::from(hop)),
        took: histogram(number, 1),
    };
    let chain = |chain: Option<&str>| ChainLatency {
        chain: chain.map(str::to_owned),
        total: histogram(number, 3),
    };
    LatencyReport {
        interval_us: 1000,
        sampled_pkts: 100 * number,
        torn_pkts: number,
        hops: vec![hop(0, "fw"), hop(1, "nat")],
        chains: vec![chain(Some("default")), chain(None)],
    }
}

fn packet() -> TracedPacket {
    let change = ByteChange {
        at_bytes: 22,
        before: "40".into(),
        after: "3f".into(),
        field: Some("ipv4.ttl".into()),
    };
    let key: MatchSpec = serde_json::from_str(r#"{"ip_proto":"udp"}"#).unwrap();

    let step = |place: &str, at_ns, wait_ns, took_ns, action: Option<&str>| TraceStep {
        place: place.into(),
        at_ns,
        wait_ns,
        took_ns,
        action: action.map(str::to_owned),
        len_bytes: 60,
        ..TraceStep::default()
    };
    let mut fw = step("nf:fw#3", 5000, 5000, 2000, Some("next"));
    (fw.service, fw.from, fw.changed) = (Some("fw".into()), Some("manager".into()), vec![change]);
    TracedPacket {
        time_unix_ns: 1_700_000_000_000_000_000,
        key,
        len_bytes: 60,
        chain: Some("default".into()),
        total_ns: 9000,
        end: "sent by wan".into(),
        steps: vec![step("port:lan", 0, 0, 0, None), fw, step("port:wan", 9000, 2000, 0, None)],
    }
}

fn crash() -> CrashStatus {
    CrashStatus {
        name: CRASH.into(),
        time_unix_ns: 1_700_000_000_000_000_000,
        service: "fw".into(),
        instance: 3,
        why: "exit status 101".into(),
        last_words: Some("panicked at src/main.rs:7: no more".into()),
        path: format!("/var/lib/millrace/crashes/{CRASH}"),
        files: vec![
            ("packets.pcapng".into(), CRASH_PCAPNG.len() as u64),
            ("last-words.txt".into(), CRASH_WORDS.len() as u64),
        ],
        recorded_pkts: 64,
        in_hand_pkts: 2,
    }
}
