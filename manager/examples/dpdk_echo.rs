//! Opens devices with the `dpdk` back end and bounces every packet from each to the next, in place.
//!
//! ```text
//! dpdk_echo [--queues N] [--mtu N] [--stride BYTES] [--packets N] DEVICE [DEVICE …]
//! ```
//! A packet received on device `i` leaves by device `i + 1` (the last one's by the first, a single
//! device's by itself). Ends after N packets, or at the end of standard input, prints what every
//! port counted, and fails when a buffer is missing from the pool at the end. Made to check a
//! driver, not to measure one.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use clap::Parser;
use millrace::pool::BufferPool;
use millrace::ports::dpdk::{DpdkOptions, Eal, EalOptions, open};
use millrace::ports::{OpenPort, PortPacket};
use nflib::shm::{HugePages, Region, RegionGeometry};

#[derive(Parser)]
struct Args {
    /// PCI addresses or vdev strings.
    #[arg(required = true)]
    devices: Vec<String>,
    /// Queues of each device.
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// MTU to set.
    #[arg(long)]
    mtu: Option<u16>,
    /// Bytes of a buffer.
    #[arg(long, default_value_t = 2368)]
    stride: u32,
    /// Buffers in all.
    #[arg(long, default_value_t = 16_384)]
    buffers: u32,
    /// Packets after which to end; 0 for none.
    #[arg(long, default_value_t = 0)]
    packets: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let geometry =
        RegionGeometry { buffers: args.buffers, stride_bytes: args.stride, headroom_bytes: 256 };
    let region = Arc::new(Region::create(geometry, HugePages::Try)?);
    println!("region: {} buffers of {} bytes on {:?}", args.buffers, args.stride, region.pages());
    let eal = Eal::init(&EalOptions {
        devices: args.devices.clone(),
        buffers: args.buffers,
        ..EalOptions::default()
    })?;
    let mut pools = [eal.buffer_pool(&region, 0, args.buffers)?];
    let mut ports = Vec::new();
    for device in &args.devices {
        let options =
            DpdkOptions { queues: args.queues, mtu_bytes: args.mtu, ..DpdkOptions::new(device) };
        let port = open(device, &options, &eal, &mut pools)?;
        println!("{:?}", port.port.info());
        ports.push(port);
    }
    let [pool] = &mut pools;
    bounce(&mut ports, pool, args.packets);
    report_and_close(ports, pool)
}

/// Until standard input ends or `limit` packets have passed.
fn bounce(ports: &mut [OpenPort], pool: &mut BufferPool, limit: u64) {
    let ended = Arc::new(AtomicBool::new(false));
    let at_end = Arc::clone(&ended);
    std::thread::spawn(move || {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        at_end.store(true, Ordering::Release);
    });
    let (mut passed, mut packets) = (0_u64, Vec::new());
    let (ports_n, queues) = (ports.len(), ports[0].queues.len());
    while !ended.load(Ordering::Acquire) && (limit == 0 || passed < limit) {
        for (from, q) in (0..ports_n).flat_map(|from| (0..queues).map(move |q| (from, q))) {
            packets.clear();
            ports[from].queues[q].rx_burst(pool, &mut packets);
            let out = &mut ports[(from + 1) % ports_n].queues[q];
            let taken = out.tx_burst(pool, &packets);
            out.maintain(pool);
            let refused: Vec<_> =
                packets[taken..].iter().map(|packet: &PortPacket| packet.buffer).collect();
            pool.give(&refused);
            passed += packets.len() as u64;
        }
    }
}

fn report_and_close(mut ports: Vec<OpenPort>, pool: &mut BufferPool) -> anyhow::Result<()> {
    for port in &ports {
        println!("{:?}", port.port.info());
        for (q, queue) in port.queues.iter().enumerate() {
            let c = queue.counters();
            let drops: Vec<_> = c.drops.nonzero().map(|(r, n)| (r.name(), n)).collect();
            println!("  queue {q}: rx {} tx {} drops {drops:?}", c.rx_pkts.get(), c.tx_pkts.get());
        }
        let counted = port.port.hw_stats().into_iter().filter(|&(_, value)| value > 0);
        let counted: Vec<_> =
            counted.filter(|(name, _)| name.contains("packets") || name.contains("err")).collect();
        println!("  driver: {counted:?}");
    }
    for port in &mut ports {
        for queue in &mut port.queues {
            queue.close(pool);
        }
        port.port.close();
    }
    let free = u32::try_from(pool.free_buffers()).context("more buffers than there are")?;
    ensure!(
        free == pool.count(),
        "{} of {} buffers are missing",
        pool.count() - free,
        pool.count()
    );
    println!("all {free} buffers are back in the pool");
    Ok(())
}
