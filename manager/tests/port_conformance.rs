//! One set of checks, run against every port back end.
//!
//! The checks are in `support/checks.rs`, what each back end needs around it in the labs beside it.

mod support;

use millrace::pool::BufferPool;
use millrace::ports::OpenPort;
use millrace::ports::af_xdp::{self, AfXdpOptions, XdpMode};
use nflib::shm::RegionGeometry;
use support::broken::{BrokenLab, Defect};
use support::checks;
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

/// A defect, the check that is to notice it, and words of what that says.
type Case = (Defect, fn(BrokenLab), &'static str);

#[test]
fn each_defect_of_a_port_is_noticed_by_a_check() {
    let cases: [Case; 7] = [
        (Defect::Reorders, checks::received_bytes_equal_the_injected_ones_in_order, "frame 0"),
        (
            Defect::DeliversTwice,
            checks::what_is_held_by_the_receiver_is_not_delivered_again,
            "was delivered while in use",
        ),
        (
            Defect::TakesHeadroom,
            checks::received_bytes_equal_the_injected_ones_in_order,
            "of headroom",
        ),
        (
            Defect::ClaimsMore,
            checks::transmit_takes_a_prefix_and_leaves_the_rest_untouched,
            "given",
        ),
        (
            Defect::IgnoresMovedStart,
            checks::frames_are_sent_from_wherever_their_start_was_moved,
            "left == right",
        ),
        (
            Defect::DropsSilently,
            checks::forwarded_packets_and_bytes_are_counted_exactly,
            "against received",
        ),
        (
            Defect::LosesABuffer,
            checks::closing_in_mid_traffic_returns_every_buffer,
            "all buffers are back in the pool",
        ),
    ];
    for (defect, check, words) in cases {
        let run = std::thread::spawn(move || check(BrokenLab::new(defect)));
        let panic = run.join().expect_err(&format!("{defect:?} went unnoticed"));
        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(text.contains(words), "{defect:?}: {text}");
    }
}
