//! Labs of the back ends that need no privilege.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace::pool::BufferPool;
use millrace::ports::fault::{self, FaultOptions};
use millrace::ports::generator::{self, FrameBytes, GeneratorOptions};
use millrace::ports::pcap::{self, Capture, PcapOptions};
use millrace::ports::sink::{self, SinkOptions};
use millrace::ports::test_frame::{Stamp, Template};
use millrace::ports::{OpenPort, PortError};
use nflib::shm::{Region, RegionGeometry};

use super::lab::{Abilities, Lab, ShowsSent};

pub struct GeneratorLab;

const GENERATED_BYTES: u16 = 333;
const GENERATED_FLOWS: u32 = 5;

impl Lab for GeneratorLab {
    fn new() -> Result<Self, String> {
        Ok(Self)
    }

    fn abilities(&self) -> Abilities {
        Abilities { shows_sent: ShowsSent::Never, ..Abilities::FULL }
    }

    fn arrivals(&self, wanted: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let template = Template::new(GENERATED_BYTES, &mut fastrand::Rng::with_seed(1));
        let flows = GENERATED_FLOWS as usize;
        let stamp = |i| Stamp { flow: (i % flows) as u32, sequence: (i / flows) as u64 };
        (0..wanted.len()).map(|i| template.frame(stamp(i))).collect()
    }

    fn open(&mut self, pools: &mut [BufferPool], arrivals: &[Vec<u8>]) -> OpenPort {
        let options = GeneratorOptions {
            frame_bytes: FrameBytes::One(GENERATED_BYTES),
            flows: GENERATED_FLOWS,
            // Zero would mean "endless"; a check that wants no arrivals does not look for any.
            count_pkts: arrivals.len() as u64,
            ..Default::default()
        };
        generator::open("gen0", &options, pools).unwrap()
    }
}

pub struct SinkLab;

impl Lab for SinkLab {
    fn new() -> Result<Self, String> {
        Ok(Self)
    }

    fn abilities(&self) -> Abilities {
        Abilities { receives: false, shows_sent: ShowsSent::Never, ..Abilities::FULL }
    }

    fn open(&mut self, pools: &mut [BufferPool], _arrivals: &[Vec<u8>]) -> OpenPort {
        let options = SinkOptions { verify: true, ..Default::default() };
        sink::open("sink0", &options, pools).unwrap()
    }
}

pub struct PcapLab {
    dir: tempfile::TempDir,
}

impl PcapLab {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Writes frames into a capture file, as another program would.
pub fn write_capture(path: &Path, frames: &[Vec<u8>]) {
    let mut file = Vec::new();
    for field in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(field.to_le_bytes());
    }
    for frame in frames {
        for field in [1, 0, frame.len() as u32, frame.len() as u32] {
            file.extend(field.to_le_bytes());
        }
        file.extend(frame);
    }
    std::fs::write(path, file).unwrap();
}

/// The frames of a capture file.
pub fn read_capture(path: &Path) -> Vec<Vec<u8>> {
    let capture = Capture::new(std::fs::read(path).unwrap()).unwrap();
    capture.frames().iter().map(|frame| capture.bytes(frame).to_vec()).collect()
}

impl Lab for PcapLab {
    fn new() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        Ok(Self { dir })
    }

    fn abilities(&self) -> Abilities {
        let largest = self.geometry().max_packet_bytes() as usize;
        Abilities {
            max_frame_bytes: largest,
            oversize_rx_bytes: Some(largest + 1),
            ..Abilities::FULL
        }
    }

    fn open(&mut self, pools: &mut [BufferPool], arrivals: &[Vec<u8>]) -> OpenPort {
        write_capture(&self.path("in.pcap"), arrivals);
        let options = PcapOptions {
            replay: Some(self.path("in.pcap")),
            record: Some(self.path("out.pcap")),
            ..Default::default()
        };
        pcap::open("pcap0", &options, pools).unwrap()
    }

    fn sent(&mut self) -> Vec<Vec<u8>> {
        read_capture(&self.path("out.pcap"))
    }
}

/// Another lab behind the fault wrapper, with no fault or with delays: none that the checks may see.
pub struct FaultLab<L: Lab, const DELAYED: bool>(L);

impl<L: Lab, const DELAYED: bool> Lab for FaultLab<L, DELAYED> {
    fn new() -> Result<Self, String> {
        L::new().map(Self)
    }

    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }

    fn geometry(&self) -> RegionGeometry {
        self.0.geometry()
    }

    fn pool(&self, region: &Arc<Region>) -> BufferPool {
        self.0.pool(region)
    }

    fn arrivals(&self, wanted: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        self.0.arrivals(wanted)
    }

    fn open(&mut self, pools: &mut [BufferPool], arrivals: &[Vec<u8>]) -> OpenPort {
        let inner = self.0.open(pools, arrivals);
        let (delay_us, jitter_us) = if DELAYED { (300, 200) } else { (0, 0) };
        let options = FaultOptions { delay_us, jitter_us, ..Default::default() };
        let wrapped: Result<_, PortError> = fault::wrap("faulty", &options, inner);
        wrapped.unwrap()
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
