//! Nothing to do: what that costs, and how soon the next packet is noticed.
//!
//! Manager and NFs run in a network namespace of their own, between two veth pairs, which goes when the
//! last of them ends.
#![forbid(unsafe_code)]

use std::io::{IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::geteuid;
use serde_json::json;

use super::super::lab::Lab;
use super::super::{Bench, Outcome, Trouble, pin};
use super::RowSpec;
use crate::traffic::packet_socket::PacketSocket;

pub const ROWS: &[RowSpec] = &[
    RowSpec {
        id: "idle-cpu",
        work: "idle manager and 4 NFs, AF_XDP ports",
        unit: "% of a core",
        peer: "limit",
        aim: 1.0,
        run: |bench| in_namespace(|| idle_cpu(bench)),
    },
    RowSpec {
        id: "idle-first",
        work: "p99 of the first packet after 50 ms, veth, 1 NF, veth",
        unit: "us",
        peer: "limit",
        aim: 1.0,
        run: |bench| in_namespace(|| first_packet(bench)),
    },
];

/// Packets timed in a run.
const PACKETS: usize = 200;
/// Long enough for everyone to sleep.
const SILENCE: Duration = Duration::from_millis(50);
/// Sent and not seen for so long: lost.
const LOST_AFTER_MS: u16 = 1000;

/// The ends of the veth pairs that the manager does not have.
const ENDS: [&str; 2] = ["end-left", "end-right"];

const CONFIG: &str = r#"
[[port]]
name = "left"
backend = "af_xdp"
interface = "left"
egress = "right"
[[port]]
name = "right"
backend = "af_xdp"
interface = "right"
egress = "left"
"#;

/// Runs on a thread of its own, which alone moves into a new namespace, and all that it starts.
fn in_namespace(run: impl Fn() -> Result<Outcome, Trouble> + Sync) -> Result<Outcome, Trouble> {
    if !geteuid().is_root() {
        return Err(Trouble::NotAvailable("needs root, for a network namespace".into()));
    }
    std::thread::scope(|scope| {
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            for (end, port) in ENDS.iter().zip(["left", "right"]) {
                ip(&[
                    "link",
                    "add",
                    port,
                    "numrxqueues",
                    "1",
                    "numtxqueues",
                    "1",
                    "type",
                    "veth",
                    "peer",
                    "name",
                    end,
                    "numrxqueues",
                    "1",
                    "numtxqueues",
                    "1",
                ])?;
                for interface in [port, *end] {
                    // The kernel says nothing of its own there.
                    ip(&["link", "set", interface, "addrgenmode", "none"])?;
                    ip(&["link", "set", interface, "up"])?;
                }
            }
            run()
        };
        scope
            .spawn(inside)
            .join()
            .map_err(|_| Trouble::Failed("the measurement panicked".into()))?
    })
}

fn ip(args: &[&str]) -> Result<(), Trouble> {
    let output = Command::new("ip").args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Trouble::Failed(format!("ip {}: {}", args.join(" "), said.trim())))
}

fn start(bench: &Bench, nfs: usize) -> Result<Lab<'_>, Trouble> {
    let services: Vec<_> = (1..=nfs).collect();
    let chain = format!("[[chain]]\nname = \"default\"\nservices = {services:?}\n");
    let mut lab = Lab::start(bench, &format!("{CONFIG}{chain}"))?;
    let core = bench.second_core().unwrap_or(bench.cores.manager);
    for service in services {
        lab.nf(core, &["forward", "--service", &service.to_string()])?;
    }
    Ok(lab)
}

fn idle_cpu(bench: &Bench) -> Result<Outcome, Trouble> {
    let lab = start(bench, 4)?;
    let mut shares = Vec::new();
    bench.pause(Duration::from_secs(1))?;
    for _ in 0..bench.reps {
        let window = lab.measure_for(Duration::from_secs(1))?;
        shares.push((window.manager_cpu_s + window.nfs_cpu_s()) / window.seconds * 100.0);
    }
    lab.finish()?;
    Ok(Outcome::below(shares, 3.0))
}

fn first_packet(bench: &Bench) -> Result<Outcome, Trouble> {
    let (mut with_nf, mut medians, mut without) = (Vec::new(), Vec::new(), Vec::new());
    let mut wake_ups = Vec::new();
    for _ in 0..bench.reps {
        let (p50_us, p99_us) = percentiles_us(bench, 1)?;
        with_nf.push(p99_us);
        medians.push(p50_us);
        without.push(percentiles_us(bench, 0)?);
        wake_ups.push(wake_up_us(bench)?);
    }
    let outcome = Outcome::below(with_nf, 100.0).with("p50_each", json!(medians));
    let outcome = outcome.with("without_nf_p50_p99_each", json!(without));
    Ok(outcome.with("wake_up_p50_p99_each", json!(wake_ups)))
}

/// The 50th and the 99th percentile of how long a thread that sleeps alone on the NF's core takes to see what
/// is written to its pipe after a silence. The way to an NF contains one such wake-up.
fn wake_up_us(bench: &Bench) -> Result<(f64, f64), Trouble> {
    let core = bench.second_core().unwrap_or(bench.cores.manager);
    let (mut listens, mut says) = std::io::pipe()?;
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(move || -> Result<Vec<Duration>, Trouble> {
            pin(core)?;
            let mut seen = Vec::new();
            while listens.read(&mut [0])? > 0 {
                seen.push(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into());
            }
            Ok(seen)
        });
        let mut said = Vec::new();
        for _ in 0..PACKETS {
            bench.pause(SILENCE)?;
            said.push(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?));
            says.write_all(&[0])?;
        }
        // The end of the pipe ends the sleeper; so does its drop, after an error.
        drop(says);
        let seen = sleeper.join().map_err(|_| Trouble::Failed("the sleeper panicked".into()))??;
        let took = seen.iter().zip(&said).map(|(seen, said)| seen.saturating_sub(*said));
        Ok(percentiles(took.map(|took| took.as_nanos() as f64 / 1e3).collect()))
    })
}

/// The 50th and the 99th.
fn percentiles(mut all: Vec<f64>) -> (f64, f64) {
    all.sort_by(f64::total_cmp);
    let at = |percent: usize| all.get(all.len() * percent / 100).copied().unwrap_or(f64::NAN);
    (at(50), at(99))
}

/// The 50th and the 99th percentile of the way from one end to the other, each packet alone after a silence.
fn percentiles_us(bench: &Bench, nfs: usize) -> Result<(f64, f64), Trouble> {
    let lab = start(bench, nfs)?;
    let sender = PacketSocket::sender(ENDS[0])?;
    let receiver = PacketSocket::receiver(ENDS[1], 1 << 20)?;
    setsockopt(&receiver, sockopt::ReceiveTimestampns, &true)?;
    let frame = vec![frame()];
    let mut times_us = Vec::new();
    // The first ones make caches and pages warm.
    for at in 0..PACKETS + 5 {
        bench.pause(SILENCE)?;
        let sent = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
        sender.send_burst(&frame)?;
        let came = arrival(&receiver)?;
        if at >= 5 {
            times_us.push(came.saturating_sub(sent).as_nanos() as f64 / 1e3);
        }
    }
    lab.finish()?;
    Ok(percentiles(times_us))
}

/// When the next packet came, by the kernel's clock: this thread sleeps meanwhile, since it has no core
/// to itself, and how late it wakes is not the question.
fn arrival(receiver: &PacketSocket) -> Result<Duration, Trouble> {
    let mut ready = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, LOST_AFTER_MS)? == 0 {
        return Err(Trouble::Failed("a packet was lost between the veth pairs".into()));
    }
    let mut frame = [0; 2048];
    let mut parts = [IoSliceMut::new(&mut frame)];
    let mut control = nix::cmsg_space!(nix::libc::timespec);
    let fd = receiver.as_fd().as_raw_fd();
    let message = recvmsg::<()>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let stamp = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    });
    stamp.ok_or_else(|| Trouble::Failed("the kernel gives no time stamps of packets".into()))
}

/// To an address that nobody has, of a type for experiments (IEEE 802, local experimental).
fn frame() -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 0xfe, 0x02, 0, 0, 0, 0, 0x01, 0x88, 0xb5];
    frame.resize(60, 0);
    frame
}
