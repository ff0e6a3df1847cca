//! What a packet costs in the worker: drives one between two ports, with an NF of the trusted domain
//! (or none, or isolated ones) that gives each descriptor back at once, in the same thread.
//!
//! ```text
//! worker_cost [--ports memory|null] [--nfs N] [--isolated|--copies] [--packets N] [--rounds N]
//!     [--tapped-bytes N]
//! ```
//! Prints nanoseconds a packet: the least and the median of some rounds, all in and worker alone.
//! For instructions, run it under callgrind and let it count inside the worker only:
//! ```text
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*turn_to_count*' \
//!     target/release/examples/worker_cost --packets 100000 --rounds 1
//! ```
//! The ports: `memory` hands out buffers of the pool and takes them back, which costs next to
//! nothing; `null` is DPDK's `net_null`, the peer of `benches/README.md`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use millrace::change::Change;
use millrace::classify::{Classifier, RuleChanges};
use millrace::model::End;
use millrace::plan::builder::{Planner, Wanted};
use millrace::plan::delta::PathDelta;
use millrace::plan::{ChainShape, Miss, NfNumber};
use millrace::pool::BufferPool;
use millrace::ports::{MAX_BURST_PKTS, PortPacket, PortQueue};
use millrace::stats::{DropCounters, NfCounters, QueueCounters};
use millrace::worker::{NewNf, Observation, Worker, WorkerPort};
use nflib::control::OnDeath;
use nflib::descriptor::{ActionCode, Delivery, Returned, ServiceId};
use nflib::observe::{TapPoint, TapSpec};
use nflib::shm::channel::ChannelGeometry;
use nflib::shm::{
    BufferIndex, Channel, Consumer, Doorbells, HugePages, MarkTable, Producer, Region,
    RegionGeometry, TapFile, TapReader,
};

#[derive(Parser)]
struct Args {
    /// What stands at both ends.
    #[arg(long, value_enum, default_value_t = PortKind::Memory)]
    ports: PortKind,
    /// NFs that each packet passes; by the worker from one to the next.
    #[arg(long, default_value_t = 1)]
    nfs: u16,
    /// The NFs are isolated.
    #[arg(long)]
    isolated: bool,
    /// The NFs are isolated and packets are copied to and from regions of their own.
    #[arg(long)]
    copies: bool,
    /// Packets in a round.
    #[arg(long, default_value_t = 2_000_000)]
    packets: u64,
    /// Rounds.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// No hugepages for DPDK: under valgrind it finds none.
    #[arg(long)]
    no_huge: bool,
    /// A tap takes so many bytes of each packet at both ports.
    #[arg(long)]
    tapped_bytes: Option<u16>,
    /// Buffers of the region.
    #[arg(long, default_value_t = 16_384)]
    buffers: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum PortKind {
    /// Buffers of the pool, no frame.
    Memory,
    /// DPDK's `net_null`.
    Null,
}

/// A port whose packets cost nothing but the pool's work.
struct MemoryPort {
    counters: Arc<QueueCounters>,
    buffers: Vec<BufferIndex>,
}

impl PortQueue for MemoryPort {
    fn rx_burst(&mut self, pool: &mut BufferPool, out: &mut Vec<PortPacket>) {
        self.buffers.clear();
        let count = pool.take(MAX_BURST_PKTS, &mut self.buffers);
        out.extend(self.buffers.iter().map(|&buffer| PortPacket {
            buffer,
            offset_bytes: 256,
            len_bytes: 64,
            flow_hash: 0,
        }));
        self.counters.rx_pkts.add(count as u64);
    }

    fn tx_burst(&mut self, pool: &mut BufferPool, packets: &[PortPacket]) -> usize {
        self.buffers.clear();
        self.buffers.extend(packets.iter().map(|packet| packet.buffer));
        pool.give(&self.buffers);
        self.counters.tx_pkts.add(packets.len() as u64);
        packets.len()
    }

    fn maintain(&mut self, _pool: &mut BufferPool) {}

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    fn close(&mut self, _pool: &mut BufferPool) {}
}

/// The NF's end of its rings.
struct Echo {
    rx: Consumer<Delivery>,
    tx: Producer<Returned>,
    _channel: Channel,
}

impl Echo {
    #[inline(never)]
    fn echo(&mut self) -> anyhow::Result<()> {
        let mut burst = [Delivery::default(); MAX_BURST_PKTS];
        loop {
            if self.tx.in_flight()? as usize + MAX_BURST_PKTS > self.tx.capacity() as usize {
                return Ok(());
            }
            let count = self.rx.read_burst(&mut burst)?;
            if count == 0 {
                return Ok(());
            }
            let returned = burst.map(|delivery| Returned {
                buffer: delivery.buffer,
                offset_bytes: delivery.offset_bytes,
                len_bytes: delivery.len_bytes,
                flow_hash: delivery.flow_hash,
                target: 0,
                hop: delivery.hop,
                action: ActionCode::Next as u8,
            });
            ensure!(self.tx.push_burst(&returned[..count])? == count, "the ring back is full");
            self.rx.release();
            self.tx.settle();
        }
    }
}

struct Setting {
    worker: Worker,
    nfs: Vec<Echo>,
    counters: Vec<Arc<QueueCounters>>,
    /// What the worker tells, when somebody looks.
    told: Option<TapReader<Arc<TapFile>>>,
}

fn ports(
    args: &Args,
    region: &Arc<Region>,
) -> anyhow::Result<(BufferPool, Vec<Box<dyn PortQueue>>)> {
    match args.ports {
        PortKind::Memory => {
            let pool = BufferPool::new(Arc::clone(region), 0, args.buffers);
            let queue = || -> Box<dyn PortQueue> {
                Box::new(MemoryPort { counters: Arc::default(), buffers: Vec::new() })
            };
            Ok((pool, vec![queue(), queue()]))
        }
        #[cfg(feature = "dpdk")]
        PortKind::Null => {
            use millrace::ports::dpdk::{DpdkOptions, Eal, EalOptions, open};
            let devices = ["net_null0", "net_null1"];
            let eal = Eal::init(&EalOptions {
                devices: devices.map(str::to_owned).to_vec(),
                buffers: args.buffers,
                hugepages: if args.no_huge { HugePages::Off } else { HugePages::Try },
                ..EalOptions::default()
            })?;
            let mut pools = [eal.buffer_pool(region, 0, args.buffers)?];
            let mut queues = Vec::new();
            for device in devices {
                queues.extend(open(device, &DpdkOptions::new(device), &eal, &mut pools)?.queues);
            }
            let [pool] = pools;
            Ok((pool, queues))
        }
        #[cfg(not(feature = "dpdk"))]
        PortKind::Null => bail!("built without the feature dpdk"),
    }
}

fn set_up(args: &Args) -> anyhow::Result<Setting> {
    let (buffers, services) = (args.buffers, (1..=args.nfs).collect::<Vec<ServiceId>>());
    let geometry = RegionGeometry { buffers, stride_bytes: 2048, headroom_bytes: 256 };
    let region = Arc::new(Region::create(geometry, HugePages::Try)?);
    let (pool, queues) = ports(args, &region)?;
    let counters: Vec<_> = queues.iter().map(|queue| Arc::clone(queue.counters())).collect();
    let ports = queues.into_iter().zip([Some(1), Some(0)]);
    let ports = ports.map(|(queue, egress)| WorkerPort::new(vec![queue], egress)).collect();
    let mut worker = Worker::new(pool, ports, Classifier::default(), Arc::default());
    // As in a manager: nobody looks, but somebody could.
    let file = TapFile::create()?;
    worker.watch_with(MarkTable::create(buffers)?, &file);
    let mut planner = Planner::new()?;
    let bells = Arc::new(Doorbells::create(u32::from(args.nfs))?);
    let channel_geometry = ChannelGeometry { workers: 1, ring_capacity: 4096, buffers };
    let drops = Arc::new(DropCounters::default());
    let mut nfs = Vec::new();
    for (nf, &service) in (0..).zip(&services) {
        let channel = Arc::new(Channel::create(channel_geometry)?);
        let theirs = Channel::from_fd(channel.fd().try_clone_to_owned()?, channel_geometry)?;
        let own_region = args.copies.then(|| Region::create_sparse(geometry));
        worker.add_nf(
            0,
            NewNf {
                nf,
                service,
                slot: planner.slot_of(service),
                channel,
                bell: bells.bell(nf).context("no doorbell")?,
                isolated: args.isolated || args.copies,
                own_region: own_region.transpose()?.map(Arc::new),
                wakes_workers: false,
                keeps_stock: false,
                counters: Arc::new(NfCounters::default()),
                drops: Arc::clone(&drops),
            },
        );
        let (rx, tx) = theirs.nf_ends(0).context("no rings")?;
        nfs.push(Echo { rx, tx, _channel: theirs });
    }
    let chain = ChainShape {
        id: 0,
        services,
        end: End::Egress,
        branches: BTreeMap::new(),
        on_death: OnDeath::Drop,
    };
    let instances: BTreeMap<ServiceId, Vec<NfNumber>> =
        (0..args.nfs).map(|nf| (nf + 1, vec![nf])).collect();
    let wanted = Wanted { chains: &[chain], miss: Miss::Chain(0), instances };
    let plan = planner.prepare(&wanted)?;
    let delta = Arc::new(PathDelta::between(planner.current(), &plan));
    let new_services = planner.services_by_slot().iter().map(|_| Arc::clone(&drops)).collect();
    worker.begin_change(Change { plan, delta, rules: RuleChanges::default(), new_services });
    worker.turn(false);
    ensure!(worker.take_outcome().is_some(), "the first plan is not in force");
    let mut told = None;
    if let Some(snap_bytes) = args.tapped_bytes {
        let points = [TapPoint::PortIn { port: 0 }, TapPoint::PortOut { port: 1 }];
        let tap = |(id, at)| TapSpec { id, at, filter: Vec::new(), snap_bytes };
        let taps = (0..).zip(points).map(tap).collect();
        // One round is for counting instructions, under which time passes slowly: all are looked at then.
        let tap_share_ns = (args.rounds == 1).then_some(u64::MAX);
        worker.observe(&Observation { taps, tap_share_ns, ..Observation::default() });
        told = Some(file.reader());
    }
    Ok(Setting { worker, nfs, counters, told })
}

/// A turn by a name of its own, for the profiler.
#[inline(never)]
fn turn_to_count(worker: &mut Worker) -> usize {
    worker.turn(true)
}

fn tx_pkts(setting: &Setting) -> u64 {
    setting.counters.iter().map(|counters| counters.tx_pkts.get()).sum()
}

/// Nanoseconds a packet, all in and inside the worker, of one round.
fn round(setting: &mut Setting, pkts: u64) -> anyhow::Result<(f64, f64)> {
    let (begun, before) = (Instant::now(), tx_pkts(setting));
    let mut in_worker = Duration::ZERO;
    while tx_pkts(setting) - before < pkts {
        let turn_begun = Instant::now();
        turn_to_count(&mut setting.worker);
        in_worker += turn_begun.elapsed();
        for nf in &mut setting.nfs {
            nf.echo()?;
        }
        if let Some(told) = &mut setting.told {
            told.drain(usize::MAX, &mut |_, _| ())?;
        }
    }
    let sent = (tx_pkts(setting) - before) as f64;
    Ok((begun.elapsed().as_nanos() as f64 / sent, in_worker.as_nanos() as f64 / sent))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.rounds == 0 || args.packets == 0 {
        bail!("--rounds and --packets must be at least 1");
    }
    let mut setting = set_up(&args)?;
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        rounds.push(round(&mut setting, args.packets)?);
    }
    for (what, of) in [("all", 0), ("worker", 1)] {
        let mut ns: Vec<f64> = rounds.iter().map(|r| if of == 0 { r.0 } else { r.1 }).collect();
        ns.sort_by(f64::total_cmp);
        println!("{what}: least {:.2}, median {:.2} ns a packet", ns[0], ns[ns.len() / 2]);
    }
    println!("{} packets sent", tx_pkts(&setting));
    setting.worker.close();
    Ok(())
}
