//! A queue against a kernel that lies: its rings are in plain memory and say anything.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nflib::shm::{HugePages, Region, RegionGeometry};
use proptest::prelude::*;

use super::*;
use crate::ports::af_xdp::ring::{Consumer, Producer, fake};

const BUFFERS: u32 = 48;
const RING: u32 = 16;

/// The kernel's halves of the rings.
struct Kernel {
    rx: Producer<XdpDesc>,
    tx: Consumer<XdpDesc>,
    fill: Consumer<u64>,
    completion: Producer<u64>,
}

fn queue(stride_bytes: u32) -> (XdpQueue, Kernel, BufferPool) {
    let geometry = RegionGeometry { buffers: BUFFERS + 16, stride_bytes, headroom_bytes: 256 };
    let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
    let mut pool = BufferPool::new(region, 8, BUFFERS);
    let (rx_kernel, rx) = fake::pair(RING);
    let (tx, tx_kernel) = fake::pair(RING);
    let (fill, fill_kernel) = fake::pair(RING);
    let (completion_kernel, completion) = fake::pair(RING);
    let setup = QueueSetup {
        socket: XskSocket::fake(OwnedFd::from(std::fs::File::open("/dev/null").unwrap())),
        rings: Rings { rx, tx, fill, completion },
        binding: Binding {
            ifindex: 1,
            queue: 0,
            descriptors: RING,
            zero_copy: false,
            busy_poll: false,
        },
        umem: Umem::new(&pool).unwrap(),
        link: Arc::new(LinkStatus::watch(1).unwrap()),
        kernel: Arc::default(),
        advice: DropAdvice::new("fake", 0, 1792, false),
        ledger: None,
        fill_target: 12,
        complete_checksums: true,
    };
    let queue = XdpQueue::new(setup, &mut pool);
    let kernel =
        Kernel { rx: rx_kernel, tx: tx_kernel, fill: fill_kernel, completion: completion_kernel };
    (queue, kernel, pool)
}

/// What the kernel, or the worker, does next.
#[derive(Clone, Debug)]
enum Step {
    /// Fills an offered buffer as it should.
    Receive { len: u32, more: bool },
    /// Says it filled something.
    ReceiveLie { addr: u64, len: u32, options: u32 },
    /// Sends a frame as it should.
    Complete,
    /// Says it sent something.
    CompleteLie { addr: u64 },
    /// The worker takes a burst.
    Burst,
    /// The worker sends this many of the packets it has.
    Send { count: usize },
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..1 << 20, any::<u64>(), (0u64..64).prop_map(|n| n * 12288 + 256)]
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![0u32..4000, any::<u32>()];
    prop_oneof![
        4 => (0u32..3840, any::<bool>()).prop_map(|(len, more)| Step::Receive { len, more }),
        1 => (address(), len, any::<u32>())
            .prop_map(|(addr, len, options)| Step::ReceiveLie { addr, len, options }),
        2 => Just(Step::Complete),
        1 => address().prop_map(|addr| Step::CompleteLie { addr }),
        3 => Just(Step::Burst),
        2 => (1usize..8).prop_map(|count| Step::Send { count }),
    ]
}

/// The kernel's part of a step.
fn act(kernel: &mut Kernel, step: &Step) {
    match *step {
        Step::Receive { len, more } if kernel.rx.free(1) > 0 => {
            if let Some(addr) = kernel.fill.next() {
                kernel.rx.write(XdpDesc { addr: addr + 256, len, options: u32::from(more) });
            }
        }
        Step::ReceiveLie { addr, len, options } if kernel.rx.free(1) > 0 => {
            kernel.rx.write(XdpDesc { addr, len, options });
        }
        Step::Complete if kernel.completion.free(1) > 0 => {
            if let Some(desc) = kernel.tx.next() {
                kernel.completion.write(desc.addr);
            }
        }
        Step::CompleteLie { addr } if kernel.completion.free(1) > 0 => {
            kernel.completion.write(addr);
        }
        _ => {}
    }
    kernel.rx.publish();
    kernel.completion.publish();
    kernel.fill.release();
    kernel.tx.release();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_the_rings_say_no_buffer_is_lost_doubled_or_left(
        steps in prop::collection::vec(step(), 1..150), jumbo: bool,
    ) {
        let (mut queue, mut kernel, mut pool) = queue(if jumbo { 12288 } else { 4096 });
        let mut in_hand: Vec<PortPacket> = Vec::new();
        for step in &steps {
            act(&mut kernel, step);
            match *step {
                Step::Burst => {
                    queue.rx_burst(&mut pool, &mut in_hand);
                    queue.maintain(&mut pool);
                }
                Step::Send { count } => {
                    let count = count.min(in_hand.len());
                    let taken = queue.tx_burst(&mut pool, &in_hand[..count]);
                    in_hand.drain(..taken);
                }
                _ => {}
            }
            let geometry = pool.region().geometry();
            for packet in &in_hand {
                prop_assert!(geometry.contains(packet.buffer, packet.offset_bytes, packet.len_bytes));
                prop_assert!(packet.len_bytes >= 14);
            }
            let distinct: HashSet<_> = in_hand.iter().map(|packet| packet.buffer).collect();
            prop_assert_eq!(distinct.len(), in_hand.len(), "a buffer in two hands");
        }
        let counters = Arc::clone(queue.counters());
        let received = counters.rx_pkts.get();
        queue.link.mark_gone();
        queue.close(&mut pool);
        let out = counters.tx_pkts.get() + counters.drops.total() + in_hand.len() as u64;
        prop_assert_eq!(received, out, "{:?}", counters);
        let mut all: Vec<_> = in_hand.iter().map(|packet| packet.buffer).collect();
        pool.take(usize::MAX, &mut all);
        all.sort_unstable();
        prop_assert_eq!(all, (8..8 + BUFFERS).collect::<Vec<_>>());
    }
}

#[test]
fn entries_that_name_buffers_the_kernel_does_not_hold_are_counted_and_ignored() {
    let (mut queue, mut kernel, mut pool) = queue(4096);
    let offered = kernel.fill.next().unwrap();
    for addr in [offered + 256, offered + 256, u64::MAX, 0, 4096 * 8 * 5] {
        kernel.rx.write(XdpDesc { addr, len: 60, options: 0 });
    }
    kernel.rx.publish();
    let mut got = Vec::new();
    queue.rx_burst(&mut pool, &mut got);
    assert_eq!(got.len(), 1, "the one that was offered, once");
    assert_eq!(queue.bad_descriptors, 4);
    pool.give(&[got[0].buffer]);
    queue.close(&mut pool);
    assert_eq!(pool.free_buffers(), BUFFERS as usize);
}
