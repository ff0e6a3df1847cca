//! A wire of software: joins two kernel interfaces in both directions through the AF_XDP back end,
//! with no NF between. For trying the back end alone, and for measuring it.
//!
//! ```text
//! af_xdp_wire INTERFACE INTERFACE [key=value …]
//!   mode=auto|native|generic   buffer_bytes=2048   seconds=0 (until killed)   sleep=true
//!   checksum=complete|leave (by the driver when not given)   busy_poll=false   buffers=16384
//!   hugepages=false
//! ```
//! At the end it prints what each port counted and whether all buffers are back in the pool.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace::pool::BufferPool;
use millrace::ports::af_xdp::{self, AfXdpOptions};
use millrace::ports::{OpenPort, PortPacket};
use millrace::stats::DropReason;
use nflib::shm::{HugePages, Region, RegionGeometry};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Empty turns before the loop sleeps on the descriptors.
const EMPTY_TURNS: u32 = 64;

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_target(false).init();
    let (interfaces, settings) = arguments()?;
    let get =
        |key: &str, default: &str| settings.get(key).cloned().unwrap_or_else(|| default.to_owned());
    let geometry = RegionGeometry {
        buffers: get("buffers", "16384").parse().context("buffers")?,
        stride_bytes: get("buffer_bytes", "2048").parse().context("buffer_bytes")?,
        headroom_bytes: 256,
    };
    let huge = get("hugepages", "false") == "true";
    let huge = if huge { HugePages::Require } else { HugePages::Off };
    let region = Arc::new(Region::create(geometry, huge)?);
    let mut pools = [BufferPool::new(region, 0, geometry.buffers)];
    let mut ports = Vec::new();
    for interface in &interfaces {
        let mut text = format!("interface = \"{interface}\"\nmode = \"{}\"\n", get("mode", "auto"));
        text += &format!("busy_poll = {}\n", get("busy_poll", "false"));
        if let Some(checksum) = settings.get("checksum") {
            text += &format!("checksum = \"{checksum}\"\n");
        }
        let options: AfXdpOptions = toml::from_str(&text)?;
        ports.push(af_xdp::open(interface, &options, &mut pools)?);
    }
    let seconds: u64 = get("seconds", "0").parse().context("seconds")?;
    let sleep = get("sleep", "true") == "true";
    let [pool] = &mut pools;
    let no_room = forward(&mut ports, pool, seconds, sleep)?;
    report(&mut ports, pool, no_room)
}

/// The two interfaces and the `key=value` settings.
fn arguments() -> Result<(Vec<String>, HashMap<String, String>)> {
    let (mut interfaces, mut settings) = (Vec::new(), HashMap::new());
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some((key, value)) => {
                settings.insert(key.to_owned(), value.to_owned());
            }
            None => interfaces.push(argument),
        }
    }
    ensure!(interfaces.len() == 2, "usage: af_xdp_wire INTERFACE INTERFACE [key=value …]");
    Ok((interfaces, settings))
}

/// Moves packets until the time is over; returns how many were dropped for want of room.
fn forward(
    ports: &mut [OpenPort],
    pool: &mut BufferPool,
    seconds: u64,
    sleep: bool,
) -> Result<u64> {
    let started = Instant::now();
    let mut burst: Vec<PortPacket> = Vec::with_capacity(64);
    let (mut empty_turns, mut turns, mut no_room) = (0, 0u64, 0);
    loop {
        let mut moved = 0;
        let queues = ports[0].queues.len().max(ports[1].queues.len());
        for (from, to) in [(0, 1), (1, 0)] {
            for queue in 0..queues.min(ports[from].queues.len()) {
                burst.clear();
                ports[from].queues[queue].rx_burst(pool, &mut burst);
                moved += burst.len();
                let outputs = ports[to].queues.len();
                let output = &mut ports[to].queues[queue % outputs];
                let sent = output.tx_burst(pool, &burst);
                let rest: Vec<_> = burst[sent..].iter().map(|packet| packet.buffer).collect();
                no_room += rest.len() as u64;
                pool.give(&rest);
            }
        }
        for queue in ports.iter_mut().flat_map(|port| &mut port.queues) {
            queue.maintain(pool);
        }
        empty_turns = if moved > 0 { 0 } else { empty_turns + 1 };
        turns += 1;
        if sleep && empty_turns > EMPTY_TURNS {
            wait(ports)?;
        }
        let look_at_clock = turns.is_multiple_of(256) || empty_turns > 0;
        if seconds > 0 && look_at_clock && started.elapsed() >= Duration::from_secs(seconds) {
            return Ok(no_room);
        }
    }
}

/// Sleeps until a packet comes on any queue, 10 ms at most.
fn wait(ports: &[OpenPort]) -> Result<()> {
    let mut entries: Vec<_> = ports
        .iter()
        .flat_map(|port| &port.queues)
        .filter_map(|queue| queue.poll_fd())
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    match poll(&mut entries, PollTimeout::from(10u8)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Closes the ports and prints what they counted.
fn report(ports: &mut [OpenPort], pool: &mut BufferPool, no_room: u64) -> Result<()> {
    let (mut rx, mut tx, mut drops) = (0, 0, no_room);
    for port in ports {
        for queue in &mut port.queues {
            queue.maintain(pool);
            queue.close(pool);
        }
        let info = port.port.info();
        println!("{} ({}, {:?})", info.device, info.driver, info.link);
        for queue in &port.queues {
            let counters = queue.counters();
            println!(
                "  rx {} pkts {} bytes, tx {} pkts {} bytes, drops {:?}",
                counters.rx_pkts.get(),
                counters.rx_bytes.get(),
                counters.tx_pkts.get(),
                counters.tx_bytes.get(),
                counters.drops.nonzero().map(|(r, n)| (r.name(), n)).collect::<Vec<_>>(),
            );
            rx += counters.rx_pkts.get();
            tx += counters.tx_pkts.get();
            drops += counters.drops.total();
        }
        for (name, value) in port.port.hw_stats().into_iter().filter(|&(_, value)| value > 0) {
            println!("    {name} {value}");
        }
        port.port.close();
    }
    let full = DropReason::TxFull.name();
    println!("rx {rx} = tx {tx} + drops {drops} ({no_room} {full}): {}", rx == tx + drops);
    println!("buffers free {} of {}", pool.free_buffers(), pool.count());
    ensure!(rx == tx + drops && pool.free_buffers() == pool.count() as usize, "not all accounted");
    Ok(())
}
