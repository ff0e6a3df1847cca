//! One set of checks, run against every port back end.
//!
//! The checks are in `support/checks.rs`, what each back end needs around it in the labs beside it.

mod support;

use millrace::pool::BufferPool;
use millrace::ports::OpenPort;
use millrace::ports::af_xdp::{self, AfXdpOptions, XdpMode};
use nflib::shm::RegionGeometry;
use support::plain::{FaultLab, GeneratorLab, PcapLab, SinkLab};

use support::veth::{OnVeth, PORT_INTERFACE, VethLab};

fn open_af_xdp(mode: XdpMode, pools: &mut [BufferPool]) -> OpenPort {
    let mut options = AfXdpOptions::new(PORT_INTERFACE);
    options.mode = mode;
    // Small enough that the suite fills them.
    options.ring_descriptors = 256;
    af_xdp::open("xdp0", &options, pools).unwrap()
}

struct Native;

impl OnVeth for Native {
    const OVERSIZE_TX_BYTES: Option<usize> = Some(1600);

    fn open(pools: &mut [BufferPool]) -> OpenPort {
        open_af_xdp(XdpMode::Native, pools)
    }
}

struct Generic;

impl OnVeth for Generic {
    const OVERSIZE_TX_BYTES: Option<usize> = Some(1600);

    fn open(pools: &mut [BufferPool]) -> OpenPort {
        open_af_xdp(XdpMode::Generic, pools)
    }
}

/// Buffers of several chunks, and frames that need them.
struct NativeJumbo;

impl OnVeth for NativeJumbo {
    const MTU_BYTES: usize = 9000;
    const MAX_FRAME_BYTES: usize = 7000;
    const OVERSIZE_RX_BYTES: Option<usize> = Some(9000);

    fn geometry() -> RegionGeometry {
        RegionGeometry { buffers: 2048, stride_bytes: 8192, headroom_bytes: 256 }
    }

    fn open(pools: &mut [BufferPool]) -> OpenPort {
        open_af_xdp(XdpMode::Native, pools)
    }
}

port_conforms!(generator, GeneratorLab);
port_conforms!(sink, SinkLab);
port_conforms!(pcap, PcapLab);
port_conforms!(fault_without_faults_around_pcap, FaultLab<PcapLab, false>);
port_conforms!(fault_with_delay_around_pcap, FaultLab<PcapLab, true>);
port_conforms!(fault_with_delay_around_generator, FaultLab<GeneratorLab, true>);
port_conforms!(af_xdp_native_on_veth, VethLab<Native>);
port_conforms!(af_xdp_generic_on_veth, VethLab<Generic>);
port_conforms!(af_xdp_native_with_jumbo_frames, VethLab<NativeJumbo>);
port_conforms!(fault_with_delay_around_af_xdp, FaultLab<VethLab<Native>, true>);
