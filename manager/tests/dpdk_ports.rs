//! The `dpdk` back end on drivers that need no hardware. One EAL serves the whole test binary.
#![cfg(feature = "dpdk")]

#[path = "support/skip.rs"]
mod skip;

use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use millrace::pool::BufferPool;
use millrace::ports::dpdk::{DpdkOptions, Eal, EalOptions, open};
use millrace::ports::{LinkState, MAX_BURST_PKTS, OpenPort, PortError, PortPacket};
use millrace::stats::DropReason;
use nflib::shm::{HugePages, Region, RegionGeometry};
use skip::skip;

const HEADROOM_BYTES: u16 = 256;
const ENOUGH: Duration = Duration::from_secs(5);

fn eal() -> Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    let options =
        EalOptions { buffers: 65_536, hugepages: HugePages::Off, ..EalOptions::default() };
    EAL.get_or_init(|| Eal::init(&options).expect("EAL starts on ordinary pages")).clone()
}

/// A region with one pool per worker.
struct Rig {
    region: Arc<Region>,
    pools: Vec<BufferPool>,
}

impl Rig {
    fn new(workers: u32, buffers_each: u32, stride_bytes: u32) -> Self {
        let geometry = RegionGeometry {
            buffers: workers * buffers_each,
            stride_bytes,
            headroom_bytes: HEADROOM_BYTES,
        };
        let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
        let pools = (0..workers)
            .map(|w| eal().buffer_pool(&region, w * buffers_each, buffers_each).unwrap())
            .collect();
        Self { region, pools }
    }

    fn small() -> Self {
        Self::new(1, 2048, 2368)
    }

    fn open(&mut self, device: &str) -> OpenPort {
        self.open_with(&DpdkOptions::new(device))
    }

    fn open_with(&mut self, options: &DpdkOptions) -> OpenPort {
        open("test", options, &eal(), &mut self.pools).unwrap()
    }

    /// A packet in a buffer of the first pool.
    fn packet(&mut self, frame: &[u8]) -> PortPacket {
        let buffer = self.pools[0].take_one().expect("a free buffer");
        assert!(self.region.write(buffer, HEADROOM_BYTES, frame));
        let len_bytes = u16::try_from(frame.len()).unwrap();
        PortPacket { buffer, offset_bytes: HEADROOM_BYTES, len_bytes, flow_hash: 0 }
    }

    fn bytes(&self, packet: &PortPacket) -> Vec<u8> {
        let mut bytes = vec![0; packet.len_bytes.into()];
        assert!(self.region.read(packet.buffer, packet.offset_bytes, &mut bytes));
        bytes
    }

    /// Sends one frame on the port's first queue.
    fn send(&mut self, port: &mut OpenPort, frame: &[u8]) {
        let packet = self.packet(frame);
        assert_eq!(port.queues[0].tx_burst(&mut self.pools[0], &[packet]), 1);
    }

    /// Receives from every queue until a frame of ours has come, frees all, and returns it.
    fn receive(&mut self, port: &mut OpenPort) -> Option<Vec<u8>> {
        let end = Instant::now() + ENOUGH;
        while Instant::now() < end {
            let mut got = Vec::new();
            for queue in &mut port.queues {
                queue.rx_burst(&mut self.pools[0], &mut got);
                queue.maintain(&mut self.pools[0]);
            }
            let frames: Vec<_> = got.iter().map(|packet| self.bytes(packet)).collect();
            let buffers: Vec<_> = got.iter().map(|packet| packet.buffer).collect();
            self.pools[0].give(&buffers);
            if let Some(ours) = frames.into_iter().find(|frame| is_ours(frame)) {
                return Some(ours);
            }
        }
        None
    }

    fn close(&mut self, mut port: OpenPort) {
        let workers = self.pools.len();
        for (q, queue) in port.queues.iter_mut().enumerate() {
            queue.close(&mut self.pools[q % workers]);
        }
        port.port.close();
    }

    /// What every scenario ends with.
    fn assert_all_buffers_are_back(&self) {
        for pool in &self.pools {
            assert_eq!(pool.free_buffers(), pool.count() as usize, "buffers are missing");
        }
    }
}

/// A broadcast frame of the local experimental EtherType (IEEE 802, 0x88b5).
fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, seed, 0x88, 0xb5]);
    frame.extend((frame.len()..len).map(|i| (i as u8).wrapping_mul(31) ^ seed));
    frame
}

/// The same frame behind a VLAN tag (IEEE 802.1Q).
fn tagged(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = frame(len, seed);
    frame.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
    frame
}

/// The kernel sends frames of its own on a new interface.
fn is_ours(frame: &[u8]) -> bool {
    frame[12..14] == [0x88, 0xb5] || frame[12..14] == [0x81, 0x00]
}

#[test]
fn packets_from_net_null_go_back_to_it_and_every_one_is_counted() {
    let mut rig = Rig::small();
    let mut port = rig.open("net_null0");
    let mut packets = Vec::new();
    port.queues[0].rx_burst(&mut rig.pools[0], &mut packets);
    assert_eq!(packets.len(), MAX_BURST_PKTS);
    assert!(packets.iter().all(|p| p.offset_bytes == HEADROOM_BYTES && p.len_bytes == 64));
    assert_eq!(port.queues[0].tx_burst(&mut rig.pools[0], &packets), packets.len());
    let counters = port.queues[0].counters();
    assert_eq!((counters.rx_pkts.get(), counters.tx_pkts.get()), (64, 64));
    assert_eq!((counters.rx_bytes.get(), counters.tx_bytes.get()), (4096, 4096));
    let info = port.port.info();
    assert_eq!((info.driver.as_str(), info.link), ("net_null", LinkState::Up));
    assert!(port.port.hw_stats().contains(&("rx_good_packets".into(), 64)));
    rig.close(port);
    rig.assert_all_buffers_are_back();
}

#[test]
fn what_goes_into_net_ring_comes_out_in_the_same_buffers_unchanged() {
    let mut rig = Rig::small();
    let mut port = rig.open("net_ring1");
    let frames: Vec<_> = (0..40).map(|i| frame(60 + usize::from(i) * 20, i)).collect();
    let sent: Vec<_> = frames.iter().map(|frame| rig.packet(frame)).collect();
    assert_eq!(port.queues[0].tx_burst(&mut rig.pools[0], &sent), sent.len());
    let mut got = Vec::new();
    port.queues[0].rx_burst(&mut rig.pools[0], &mut got);
    assert_eq!(got, sent, "same buffers, offsets and lengths: nothing was copied");
    for (packet, frame) in got.iter().zip(&frames) {
        assert_eq!(rig.bytes(packet), *frame);
    }
    let buffers: Vec<_> = got.iter().map(|packet| packet.buffer).collect();
    rig.pools[0].give(&buffers);
    rig.close(port);
    rig.assert_all_buffers_are_back();
}

#[test]
fn packets_left_in_a_device_when_it_closes_return_to_the_pool() {
    let mut rig = Rig::small();
    let mut port = rig.open("net_ring2");
    for seed in 0..100 {
        rig.send(&mut port, &frame(100, seed));
    }
    assert_eq!(rig.pools[0].free_buffers(), 1948);
    rig.close(port);
    rig.assert_all_buffers_are_back();
    let again = rig.open("net_ring2");
    rig.close(again);
}

#[test]
fn a_header_pushed_into_all_of_the_headroom_is_sent_in_place() {
    let mut rig = Rig::small();
    let mut port = rig.open("net_ring3");
    let mut packet = rig.packet(&frame(200, 1));
    packet.offset_bytes = 0;
    packet.len_bytes = 456;
    for turn in 0..2 {
        assert_eq!(port.queues[0].tx_burst(&mut rig.pools[0], &[packet]), 1);
        let mut got = Vec::new();
        port.queues[0].rx_burst(&mut rig.pools[0], &mut got);
        assert_eq!(got, [packet], "turn {turn}");
        assert_eq!(rig.bytes(&got[0])[256..], frame(200, 1));
    }
    rig.pools[0].give(&[packet.buffer]);
    rig.close(port);
    rig.assert_all_buffers_are_back();
}

#[test]
fn a_frame_beyond_the_mtu_is_dropped_counted_and_freed() {
    let mut rig = Rig::small();
    let mut port = rig.open("net_ring4");
    assert_eq!(port.port.info().mtu_bytes, 1500);
    let packets: Vec<_> = [frame(1514, 1), frame(1515, 2), tagged(1514, 3), frame(14, 4)]
        .iter()
        .map(|frame| rig.packet(frame))
        .collect();
    let short = PortPacket { len_bytes: 13, ..packets[3] };
    let packets = [packets[0], packets[1], packets[2], short];
    assert_eq!(port.queues[0].tx_burst(&mut rig.pools[0], &packets), 4);
    let counters = port.queues[0].counters().clone();
    assert_eq!(counters.tx_pkts.get(), 2);
    assert_eq!(counters.drops.get(DropReason::TxTooLarge), 2);
    rig.close(port);
    rig.assert_all_buffers_are_back();
}

#[test]
fn a_frame_longer_than_a_buffer_is_dropped_on_receipt_counted_and_freed() {
    let mut rig = Rig::new(1, 1024, 1024);
    let mut port = rig.open("net_null5,size=900");
    let mut got = Vec::new();
    port.queues[0].rx_burst(&mut rig.pools[0], &mut got);
    assert!(got.is_empty());
    let counters = port.queues[0].counters().clone();
    assert_eq!(counters.drops.get(DropReason::RxTooLarge), 64);
    assert_eq!(counters.rx_pkts.get(), 64, "they count as received");
    rig.close(port);
    rig.assert_all_buffers_are_back();
}

#[test]
fn jumbo_frames_pass_where_the_buffers_are_large_enough() {
    let mut rig = Rig::new(1, 256, 9536);
    let options = DpdkOptions { mtu_bytes: Some(9000), ..DpdkOptions::new("net_ring6") };
    let mut port = rig.open_with(&options);
    let jumbo = frame(9014, 5);
    rig.send(&mut port, &jumbo);
    assert_eq!(rig.receive(&mut port), Some(jumbo));
    rig.close(port);
    rig.assert_all_buffers_are_back();

    let mut small = Rig::small();
    let error = open("jumbo", &options, &eal(), &mut small.pools).err().unwrap().to_string();
    assert!(error.contains("an MTU of 9000 needs 9022 bytes in one buffer"), "{error}");
    assert!(error.contains("raise pool.buffer_bytes by "), "{error}");
}

#[test]
fn queues_take_turns_over_the_workers_pools() {
    let mut rig = Rig::new(2, 1024, 2368);
    let options = DpdkOptions { queues: 4, ..DpdkOptions::new("net_null7") };
    let mut port = rig.open_with(&options);
    assert_eq!(port.queues.len(), 4);
    for q in 0..4 {
        let (worker, mut got) = (q % 2, Vec::new());
        port.queues[q].rx_burst(&mut rig.pools[worker], &mut got);
        assert_eq!(got.len(), MAX_BURST_PKTS);
        let first = rig.pools[worker].first();
        assert!(got.iter().all(|p| (first..first + 1024).contains(&p.buffer)));
        assert_eq!(port.queues[q].tx_burst(&mut rig.pools[worker], &got), got.len());
    }
    rig.close(port);
    rig.assert_all_buffers_are_back();
}

#[test]
fn two_threads_poll_their_own_queues_and_nothing_is_lost() {
    let mut rig = Rig::new(2, 1024, 2368);
    let options = DpdkOptions { queues: 2, ..DpdkOptions::new("net_null8") };
    let OpenPort { mut port, queues } = rig.open_with(&options);
    let workers: Vec<_> = queues
        .into_iter()
        .zip(rig.pools.drain(..))
        .map(|(mut queue, mut pool)| {
            std::thread::spawn(move || {
                let mut packets = Vec::new();
                for _ in 0..1000 {
                    queue.rx_burst(&mut pool, &mut packets);
                    let taken = queue.tx_burst(&mut pool, &packets);
                    packets.drain(..taken);
                    queue.maintain(&mut pool);
                }
                assert!(packets.is_empty());
                queue.close(&mut pool);
                (pool, queue.counters().tx_pkts.get())
            })
        })
        .collect();
    for worker in workers {
        let (pool, sent) = worker.join().unwrap();
        assert_eq!(sent, 64_000);
        rig.pools.push(pool);
    }
    port.close();
    rig.assert_all_buffers_are_back();
}

#[test]
fn a_capture_is_replayed_and_another_recorded_by_net_pcap() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.pcap"), dir.path().join("out.pcap"));
    let frames: Vec<_> = (0..10).map(|i| frame(64 + usize::from(i) * 100, i)).collect();
    std::fs::write(&input, capture(&frames)).unwrap();
    let mut rig = Rig::small();
    let mut port =
        rig.open(&format!("net_pcap9,rx_pcap={},tx_pcap={}", input.display(), output.display()));
    let mut packets = Vec::new();
    port.queues[0].rx_burst(&mut rig.pools[0], &mut packets);
    assert_eq!(packets.len(), frames.len());
    assert_eq!(port.queues[0].tx_burst(&mut rig.pools[0], &packets), packets.len());
    rig.close(port);
    rig.assert_all_buffers_are_back();
    assert_eq!(frames_of(&std::fs::read(&output).unwrap()), frames);
}

/// A capture file (pcap 2.4, little-endian, Ethernet).
fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for frame in frames {
        for word in [0, 0, frame.len() as u32, frame.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

fn frames_of(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    file = &file[24..];
    while file.len() >= 16 {
        let len = u32::from_le_bytes(file[8..12].try_into().unwrap()) as usize;
        frames.push(file[16..16 + len].to_vec());
        file = &file[16 + len..];
    }
    frames
}

/// Runs a scenario in a network namespace of its own thread, which the kernel removes with it.
fn in_namespace(scenario: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            return skip(&format!("no network namespace without privilege ({errno})"));
        }
        scenario();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {args}");
}

fn veth(mtu_bytes: u16) {
    ip(&format!("link add mrd0 mtu {mtu_bytes} type veth peer name mrd1 mtu {mtu_bytes}"));
    ip("link set mrd0 up");
    ip("link set mrd1 up");
}

fn wait_for_link(port: &OpenPort, wanted: LinkState) {
    let end = Instant::now() + ENOUGH;
    while port.port.info().link != wanted {
        assert!(Instant::now() < end, "the link is {:?}", port.port.info().link);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn frames_cross_a_veth_pair_through_net_af_packet_with_their_vlan_tags() {
    in_namespace(|| {
        veth(1500);
        let mut rig = Rig::small();
        let mut left = rig.open("net_af_packet10,iface=mrd0");
        let mut right = rig.open("net_af_packet11,iface=mrd1");
        for sent in [frame(60, 1), frame(1514, 2), tagged(1000, 3), tagged(1514, 4)] {
            rig.send(&mut left, &sent);
            assert_eq!(rig.receive(&mut right).as_ref(), Some(&sent));
            rig.send(&mut right, &sent);
            assert_eq!(rig.receive(&mut left).as_ref(), Some(&sent));
        }
        rig.close(left);
        rig.close(right);
        rig.assert_all_buffers_are_back();
    });
}

#[test]
fn a_checksum_that_the_sender_left_to_the_device_is_right_when_an_nf_sees_it() {
    in_namespace(|| {
        veth(1500);
        ip("addr add 10.7.0.1/24 dev mrd1");
        ip("neigh add 10.7.0.2 lladdr 02:00:00:00:00:02 dev mrd1 nud permanent");
        let mut rig = Rig::small();
        let mut port = rig.open("net_af_packet14,iface=mrd0");
        let socket = std::net::UdpSocket::bind("10.7.0.1:7000").unwrap();
        let end = Instant::now() + ENOUGH;
        let mut seen = None;
        while seen.is_none() && Instant::now() < end {
            socket.send_to(b"checksum me", "10.7.0.2:7001").unwrap();
            let mut got = Vec::new();
            port.queues[0].rx_burst(&mut rig.pools[0], &mut got);
            port.queues[0].maintain(&mut rig.pools[0]);
            seen = got.iter().map(|packet| rig.bytes(packet)).find(|frame| is_udp(frame));
            rig.pools[0].give(&got.iter().map(|packet| packet.buffer).collect::<Vec<_>>());
        }
        let frame = seen.expect("the datagram came");
        // RFC 768: addresses, protocol, length, then the datagram; a right checksum sums to all ones.
        let datagram = &frame[34..34 + usize::from(frame[39])];
        let mut words = frame[26..34].to_vec();
        words.extend([0, 17, 0, frame[39]]);
        words.extend(datagram);
        words.resize(words.len().next_multiple_of(2), 0);
        let sum: u32 = words.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        rig.close(port);
        rig.assert_all_buffers_are_back();
    });
}

fn is_udp(frame: &[u8]) -> bool {
    frame.len() > 42 && frame[12..14] == [8, 0] && frame[23] == 17
}

#[test]
fn jumbo_frames_cross_a_veth_pair_through_several_queues() {
    in_namespace(|| {
        veth(9000);
        let mut rig = Rig::new(1, 512, 9536);
        let mut left = rig.open("net_af_packet12,iface=mrd0");
        let options = DpdkOptions { queues: 2, ..DpdkOptions::new("net_af_packet13,iface=mrd1") };
        let mut right = rig.open_with(&options);
        assert_eq!(left.port.info().mtu_bytes, 9000);
        for seed in 0..20 {
            let sent = frame(9014, seed);
            rig.send(&mut left, &sent);
            assert_eq!(rig.receive(&mut right), Some(sent));
        }
        rig.close(left);
        rig.close(right);
        rig.assert_all_buffers_are_back();
    });
}

#[test]
fn packets_for_a_port_whose_link_is_down_or_device_gone_are_counted_and_freed() {
    in_namespace(|| {
        veth(1500);
        let mut rig = Rig::small();
        let mut port = rig.open("net_af_packet14,iface=mrd0");
        wait_for_link(&port, LinkState::Up);
        ip("link set mrd1 down");
        wait_for_link(&port, LinkState::Down);
        rig.send(&mut port, &frame(100, 1));
        assert_eq!(port.queues[0].counters().drops.get(DropReason::TxPortDown), 1);
        ip("link set mrd1 up");
        wait_for_link(&port, LinkState::Up);
        rig.send(&mut port, &frame(100, 2));
        assert_eq!(port.queues[0].counters().tx_pkts.get(), 1);
        ip("link del mrd0");
        wait_for_link(&port, LinkState::Gone);
        rig.send(&mut port, &frame(100, 3));
        assert_eq!(port.queues[0].counters().drops.get(DropReason::TxPortDown), 2);
        rig.close(port);
        rig.assert_all_buffers_are_back();
    });
}

#[test]
fn a_tap_made_by_net_tap_carries_frames_to_and_from_the_kernel() {
    in_namespace(|| {
        let mut rig = Rig::small();
        let mut tap = rig.open("net_tap15,iface=mrdtap");
        ip("link set mrdtap up");
        wait_for_link(&tap, LinkState::Up);
        let mut kernel = rig.open("net_af_packet15,iface=mrdtap");
        wait_for_link(&kernel, LinkState::Up);
        let down = frame(500, 1);
        rig.send(&mut kernel, &down);
        assert_eq!(rig.receive(&mut tap), Some(down));
        let up = frame(700, 2);
        rig.send(&mut tap, &up);
        assert_eq!(rig.receive(&mut kernel), Some(up));
        rig.close(kernel);
        rig.close(tap);
        rig.assert_all_buffers_are_back();
    });
}

#[test]
fn a_device_that_cannot_be_opened_is_answered_in_one_clear_line() {
    let mut rig = Rig::small();
    let first = rig.open("net_null16");
    for (device, queues, words) in [
        ("net_bogus0", 1, "no such PCI address or vdev; there are: net_af_packetN"),
        ("0000:ff:1f.7", 1, "no such PCI device; there "),
        ("net_null16", 1, "already open"),
        ("net_null17,sise=5", 1, "DPDK does not take it ("),
        ("net_pcap17,rx_pcap=/nonexistent.pcap", 1, "no such capture file"),
        ("net_ring17", 2000, "2000 queues asked for, it has "),
        ("net_ring17", 0, "at least 1 queue"),
        ("net_af_xdp17,iface=lo", 1, "use backend = \"af_xdp\""),
    ] {
        let options = DpdkOptions { queues, ..DpdkOptions::new(device) };
        let error = open("bad", &options, &eal(), &mut rig.pools).err().unwrap().to_string();
        assert!(error.starts_with(device) && error.contains(words), "{error}");
        assert!(!error.contains('\n'), "{error}");
        eprintln!("{error}");
    }
    rig.close(first);
    rig.assert_all_buffers_are_back();
}

#[test]
fn a_pool_that_is_no_mempool_is_refused() {
    let geometry = RegionGeometry { buffers: 64, stride_bytes: 2048, headroom_bytes: 256 };
    let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
    let mut pools = [BufferPool::new(region, 0, 64)];
    let error = open("x", &DpdkOptions::new("net_null18"), &eal(), &mut pools).err().unwrap();
    assert!(matches!(error, PortError::Unsupported { .. }), "{error}");
}

#[test]
fn a_second_eal_in_one_process_is_refused() {
    _ = eal();
    let error = Eal::init(&EalOptions::default()).err().unwrap().to_string();
    assert!(error.contains("once in a process"), "{error}");
}
