//! Many pages and programs at once: packets go on as before, and memory does not grow.
//!
//! Packets are forwarded as fast as it goes: from a generator through two NFs to a sink. A crowd of this size
//! takes much of a core by itself, whatever it talks to; what is asked here is what the console and the
//! manager's answers cost the data path. So the worker and the NFs have one core, and everything else has the
//! other: the console, the crowd, and the manager's control thread. Windows with
//! and without a crowd take turns, and each is compared with the one before it.
//!
//! What is compared is how many packets are forwarded in a second that the worker and the NFs have their
//! core: on a core that nobody else wants that is the forwarding rate, whose ratio is told, too; where
//! others want it (a compiler, say), it does not depend on how much of it they take.
//!
//! Takes most of a minute and compares rates, so it runs only where `scripts/test web` asks for it; there with
//! optimised programs, as users have them.

mod common;
#[path = "common/lab.rs"]
mod lab;

use common::Console;
use lab::{Lab, RATE_PPS};
use nflib::control::Status;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PAGES: usize = 200;
const CALLS_PER_S: u64 = 1000;
const CALLERS: u64 = 4;
const WINDOW: Duration = Duration::from_secs(2);
/// Pairs of windows, one without the crowd and one with it.
const PAIRS: usize = 7;
/// The console remembers figures of each second, and the manager's statuses grow by digits.
const MAX_GROWTH_KIB: u64 = 512;
/// A machine that others use at the same time may spoil a run.
const TRIES: usize = 3;
const PATHS: [&str; 5] =
    ["/api/v1/status", "/api/v1/ports", "/metrics", "/api/v1/timeline", "/api/v1/rates"];

/// Pages that read their streams, and programs that ask, until it is dropped.
struct Crowd {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    events: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn gather(console: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (calls, events) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&events));
        threads.push(std::thread::spawn(move || pages(console, &stopped, &counted)));
        for _ in 0..CALLERS {
            let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&calls));
            threads.push(std::thread::spawn(move || caller(console, &stopped, &counted)));
        }
        Self { stop, calls, events, threads }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn pages(console: SocketAddr, stop: &AtomicBool, events: &AtomicU64) {
    let open = |_| {
        let mut stream = TcpStream::connect(console).unwrap();
        let request = b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let mut streams: Vec<_> = (0..PAGES).map(open).collect();
    let mut bytes = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        for stream in &mut streams {
            match stream.read(&mut bytes) {
                Ok(0) => panic!("a page lost its stream"),
                Ok(len) => {
                    let found = bytes[..len].windows(6).filter(|bytes| bytes == b"event:");
                    events.fetch_add(found.count() as u64, Ordering::Relaxed);
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks over one connection, at its share of the rate.
fn caller(console: SocketAddr, stop: &AtomicBool, calls: &AtomicU64) {
    let mut stream = TcpStream::connect(console).unwrap();
    stream.set_nodelay(true).unwrap();
    let started = Instant::now();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let due = started + Duration::from_micros(number * 1_000_000 * CALLERS / CALLS_PER_S);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let path = PATHS[number as usize % PATHS.len()];
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert_eq!(answer(&mut stream), 200, "{path}");
        calls.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads one answer to its end; returns its status.
fn answer(stream: &mut TcpStream) -> u16 {
    let mut bytes = Vec::new();
    let mut part = [0; 16 << 10];
    loop {
        let len = stream.read(&mut part).unwrap();
        assert!(len > 0, "the console hung up");
        bytes.extend_from_slice(&part[..len]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let field = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let body_bytes: usize = field.unwrap().parse().unwrap();
        if bytes.len() >= end + 4 + body_bytes {
            return head.split(' ').nth(1).unwrap().parse().unwrap();
        }
    }
}

/// What was forwarded in a window.
struct Forwarded {
    pkts: f64,
    /// How long it was.
    wall_s: f64,
    /// CPU time that the worker and the NFs had in it.
    cpu_s: f64,
}

/// Packets that leave by the second port, over a window.
fn forwarded(lab: &Lab, data_path: &[PathBuf]) -> Forwarded {
    let read = || -> (Status, f64) {
        let cpu_ns: u64 = data_path.iter().map(|schedstat| cpu_ns(schedstat)).sum();
        (lab.status().unwrap(), cpu_ns as f64)
    };
    let (before, cpu_before_ns) = read();
    std::thread::sleep(WINDOW);
    let (after, cpu_after_ns) = read();
    Forwarded {
        pkts: (after.ports[1].tx_pkts - before.ports[1].tx_pkts) as f64,
        wall_s: (after.at_ns - before.at_ns) as f64 / 1e9,
        cpu_s: (cpu_after_ns - cpu_before_ns) / 1e9,
    }
}

/// How long a thread has had a core (Linux, Documentation/scheduler/sched-stats.rst).
fn cpu_ns(schedstat: &Path) -> u64 {
    let text = std::fs::read_to_string(schedstat).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// The cores of packets and of everything else; `None` where there is only one.
fn two_cores() -> Option<(usize, usize)> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut cores = (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap());
    Some((cores.next()?, cores.next()?))
}

/// Gives a thread, or those that a process starts from now on, one core.
fn pin(id: u32, core: usize) {
    let mut set = CpuSet::new();
    set.set(core).unwrap();
    sched_setaffinity(Pid::from_raw(id.cast_signed()), &set).unwrap();
}

/// The threads of a process, with their names.
fn threads(pid: u32) -> Vec<(u32, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let named = |path: &Path| -> Option<(u32, String)> {
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        Some((path.file_name()?.to_str()?.parse().ok()?, name.trim().to_owned()))
    };
    tasks.filter_map(|task| named(&task.ok()?.path())).collect()
}

/// A lab at its limit, whose packets have a core of their own, and where its threads that move packets
/// account for their time.
fn saturated(packets: usize, rest: usize) -> Option<(Lab, Vec<PathBuf>)> {
    let edit = |text: String| {
        text.replace(&format!("rate_pps = {RATE_PPS}\n"), "")
            .replace("[manager]\n", &format!("[manager]\ncores = [{packets}]\n"))
            .replace("instances = 2", "instances = 1")
            .replace("[[service]]\n", &format!("[[service]]\ncores = [{packets}]\n"))
    };
    let lab = Lab::start_edited(2, edit)?;
    let (workers, others): (Vec<_>, Vec<_>) =
        threads(lab.manager_pid()).into_iter().partition(|(_, name)| name.starts_with("worker"));
    assert!(!workers.is_empty() && !others.is_empty(), "{workers:?} {others:?}");
    others.iter().for_each(|(id, _)| pin(*id, rest));
    let nfs = lab.status().unwrap().nfs;
    let nfs = nfs.iter().flat_map(|nf| threads(nf.pid.cast_unsigned()));
    let movers = workers.into_iter().chain(nfs).map(|(id, _)| id);
    let schedstat = |id| PathBuf::from(format!("/proc/{id}/schedstat"));
    let movers = movers.map(schedstat).collect();
    Some((lab, movers))
}

/// Memory of a process that is not shared, KiB.
fn private_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What is forwarded with a crowd over that without, and how memory grew from the first crowd to the last.
struct Figures {
    quiet_pps: f64,
    /// Of packets in a second of the data path's CPU time, and in a second.
    ratio: f64,
    wall_ratio: f64,
    calls_per_s: f64,
    events_per_s: f64,
    console_kib: (u64, u64),
    manager_kib: (u64, u64),
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(lab: &Lab, data_path: &[PathBuf], console: &Console) -> Figures {
    let (mut quiet, mut ratios, mut wall_ratios) = (vec![], vec![], vec![]);
    let (mut calls, mut events, mut took_s) = (0, 0, 0.0);
    let mut memory = Vec::new();
    for _ in 0..PAIRS {
        let alone = forwarded(lab, data_path);
        let crowd = Crowd::gather(console.address);
        let started = Instant::now();
        let beside = forwarded(lab, data_path);
        ratios.push((beside.pkts / beside.cpu_s) / (alone.pkts / alone.cpu_s));
        wall_ratios.push((beside.pkts / beside.wall_s) / (alone.pkts / alone.wall_s));
        quiet.push(alone.pkts / alone.wall_s);
        took_s += started.elapsed().as_secs_f64();
        calls += crowd.calls.load(Ordering::Relaxed);
        events += crowd.events.load(Ordering::Relaxed);
        memory.push((private_kib(console.pid()), private_kib(lab.manager_pid())));
    }
    let (first, last) = (memory[0], memory[PAIRS - 1]);
    Figures {
        quiet_pps: median(quiet),
        ratio: median(ratios),
        wall_ratio: median(wall_ratios),
        calls_per_s: calls as f64 / took_s,
        events_per_s: events as f64 / took_s,
        console_kib: (first.0, last.0),
        manager_kib: (first.1, last.1),
    }
}

#[allow(clippy::print_stdout)] // The figures are what the test is for.
fn tell(line: &str) {
    println!("{line}");
}

#[test]
fn two_hundred_pages_and_a_thousand_calls_a_second_cost_no_packet_and_no_memory() {
    if !common::long_is_wanted() {
        return;
    }
    let Some((packets, rest)) = two_cores() else {
        common::skip("packets and the crowd want a core each, and there is only one");
        return;
    };
    let Some((mut lab, data_path)) = saturated(packets, rest) else { return };
    // This thread, and so the console and the crowd that it starts.
    pin(0, rest);
    let console = Console::start_with(&lab.socket(), &[]);
    console.wait_for_code(200);
    // The first crowds make the console take the memory that it keeps.
    for _ in 0..4 {
        let crowd = Crowd::gather(console.address);
        std::thread::sleep(WINDOW);
        drop(crowd);
    }
    let mut told = Vec::new();
    for _ in 0..TRIES {
        let figures = measure(&lab, &data_path, &console);
        let Figures { quiet_pps, ratio, wall_ratio, calls_per_s, events_per_s, .. } = figures;
        let (console_kib, manager_kib) = (figures.console_kib, figures.manager_kib);
        let line = format!(
            "{:.2} Mpps; with {PAGES} pages ({events_per_s:.0} events/s) and {calls_per_s:.0} calls/s, \
             over that without: {ratio:.4} in a second of the data path's CPU time, {wall_ratio:.4} in a \
             second; private memory from the first crowd to the last, KiB: console {} → {}, manager \
             {} → {}",
            quiet_pps / 1e6,
            console_kib.0,
            console_kib.1,
            manager_kib.0,
            manager_kib.1
        );
        tell(&line);
        told.push(line);
        let grew = |(first, last): (u64, u64)| last.saturating_sub(first) > MAX_GROWTH_KIB;
        // How many calls this test can make beside all else is the machine's business; that it is a crowd is
        // the test's.
        let is_crowd = calls_per_s > 0.7 * CALLS_PER_S as f64 && events_per_s > 0.8 * PAGES as f64;
        if is_crowd && ratio > 0.98 && !grew(console_kib) && !grew(manager_kib) {
            lab.stop();
            return;
        }
    }
    panic!("{}", told.join("\n"));
}
