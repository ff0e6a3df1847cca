//! The port conformance suite on the `dpdk` back end, over drivers that need no hardware.
//!
//! In a binary of its own, because DPDK can be started once in a process.
#![cfg(feature = "dpdk")]

mod support;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use millrace::pool::BufferPool;
use millrace::ports::OpenPort;
use millrace::ports::dpdk::{self, DpdkOptions, Eal, EalOptions};
use nflib::shm::{HugePages, Region, RegionGeometry};
use support::lab::{Abilities, Lab, ShowsSent};
use support::plain::{FaultLab, GeneratorLab, PcapLab, read_capture, write_capture};
use support::veth::{OnVeth, PORT_INTERFACE, VethLab};

/// An odd number of cache lines, as DPDK likes it.
const GEOMETRY: RegionGeometry =
    RegionGeometry { buffers: 2048, stride_bytes: 2368, headroom_bytes: 256 };

fn eal() -> Result<Eal, String> {
    static EAL: OnceLock<Result<Eal, String>> = OnceLock::new();
    let start = || {
        let options =
            EalOptions { buffers: 1 << 17, hugepages: HugePages::Off, ..EalOptions::default() };
        Eal::init(&options).map_err(|error| error.to_string())
    };
    EAL.get_or_init(start).clone()
}

fn open(driver: &str, arguments: &str, pools: &mut [BufferPool]) -> OpenPort {
    // Checks run side by side, and a device's name is the process's.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut options = DpdkOptions::new(format!("{driver}{number},{arguments}"));
    options.rx_descriptors = 256;
    options.tx_descriptors = 256;
    dpdk::open("dpdk0", &options, &eal().unwrap(), pools).unwrap()
}

/// A lab whose worker's pool is a DPDK mempool, as all pools of a manager with a `dpdk` port are.
struct OnMempool<L>(L);

impl<L: Lab> Lab for OnMempool<L> {
    fn new() -> Result<Self, String> {
        // First, since a lab may move this thread into a namespace that DPDK's must not keep.
        eal()?;
        L::new().map(Self)
    }

    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }

    fn geometry(&self) -> RegionGeometry {
        self.0.geometry()
    }

    fn pool(&self, region: &Arc<Region>) -> BufferPool {
        eal().unwrap().buffer_pool(region, 0, region.geometry().buffers).unwrap()
    }

    fn arrivals(&self, wanted: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        self.0.arrivals(wanted)
    }

    fn open(&mut self, pools: &mut [BufferPool], arrivals: &[Vec<u8>]) -> OpenPort {
        self.0.open(pools, arrivals)
    }

    fn feed(&mut self, most: usize) -> usize {
        self.0.feed(most)
    }

    fn sent(&mut self) -> Vec<Vec<u8>> {
        self.0.sent()
    }

    fn is_noise(&self, frame: &[u8]) -> bool {
        self.0.is_noise(frame)
    }
}

struct AfPacket;

impl OnVeth for AfPacket {
    const OVERSIZE_TX_BYTES: Option<usize> = Some(1600);

    fn geometry() -> RegionGeometry {
        GEOMETRY
    }

    fn open(pools: &mut [BufferPool]) -> OpenPort {
        open("net_af_packet", &format!("iface={PORT_INTERFACE}"), pools)
    }
}

/// Replays and records capture files by libpcap, which writes its buffer out at the end.
struct PcapDriverLab {
    dir: tempfile::TempDir,
}

impl PcapDriverLab {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Lab for PcapDriverLab {
    fn new() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        Ok(Self { dir })
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            shows_sent: ShowsSent::AtClose,
            oversize_rx_bytes: Some(3000),
            oversize_tx_bytes: Some(1600),
            // The driver reads a frame before it asks for a buffer, and loses it without one.
            waits_for_buffers: false,
            ..Abilities::FULL
        }
    }

    fn geometry(&self) -> RegionGeometry {
        GEOMETRY
    }

    fn open(&mut self, pools: &mut [BufferPool], arrivals: &[Vec<u8>]) -> OpenPort {
        let (input, output) = (self.path("in.pcap"), self.path("out.pcap"));
        write_capture(&input, arrivals);
        let arguments = format!("rx_pcap={},tx_pcap={}", input.display(), output.display());
        open("net_pcap", &arguments, pools)
    }

    fn sent(&mut self) -> Vec<Vec<u8>> {
        read_capture(&self.path("out.pcap"))
    }
}

port_conforms!(net_af_packet, OnMempool<VethLab<AfPacket>>);
port_conforms!(net_pcap, OnMempool<PcapDriverLab>);
port_conforms!(generator_on_a_mempool, OnMempool<GeneratorLab>);
port_conforms!(fault_with_delay_around_pcap_on_a_mempool, OnMempool<FaultLab<PcapLab, true>>);
