//! The AF_XDP back end on real veth pairs, against packet sockets at the peer.
//!
//! Every test has a network namespace of its own, which ends with its thread, and ends with all
//! buffers back in the pool ([`lab::TestPort::finish`]).
#![allow(clippy::print_stdout)]

#[path = "af_xdp/lab.rs"]
mod lab;
#[path = "support/skip.rs"]
mod skip;

use std::io::BufRead;
use std::net::UdpSocket;
use std::sync::Arc;

use lab::{Lab, Peer, frame, udp_frame};
use millrace::pool::BufferPool;
use millrace::ports::af_xdp::{self, AfXdpOptions, ChecksumMode, XdpMode, ZeroCopy};
use millrace::ports::checksum::ones_complement_sum;
use millrace::ports::{LinkState, PortError};
use millrace::stats::DropReason;
use nflib::shm::{HugePages, Region, RegionGeometry};

const BOTH_MODES: [XdpMode; 2] = [XdpMode::Native, XdpMode::Generic];

fn options(mode: XdpMode) -> AfXdpOptions {
    AfXdpOptions { mode, ..AfXdpOptions::new("mrx0") }
}

#[test]
fn received_frames_keep_their_bytes_and_their_order() {
    for mode in BOTH_MODES {
        let Some(lab) = Lab::new() else { return };
        lab.veth(1);
        let peer = Peer::open("mrx1");
        let mut port = lab.open(&options(mode), 2048);
        let mut got = Vec::new();
        for n in 0..200 {
            peer.send(&frame(n, 60 + usize::from(n) * 7));
            if n % 50 == 49 {
                got.extend(port.receive(50));
            }
        }
        for (n, packet) in got.iter().enumerate() {
            assert!(packet.offset_bytes >= 256, "headroom lies before the frame");
            assert!(port.bytes(packet) == frame(n as u16, 60 + n * 7), "{mode:?} frame {n}");
        }
        assert_eq!(port.counters(0).rx_pkts.get(), 200);
        port.free(&got);
        port.finish();
    }
}

#[test]
fn sent_frames_reach_the_peer_in_order_and_their_buffers_return() {
    for mode in BOTH_MODES {
        let Some(lab) = Lab::new() else { return };
        lab.veth(1);
        let peer = Peer::open("mrx1");
        let mut port = lab.open(&options(mode), 2048);
        let free_before = port.pool_free();
        for round in 0..5 {
            let packets: Vec<_> = (0..64)
                .map(|n| port.packet(&frame(round * 64 + n, 100 + usize::from(n))))
                .collect();
            assert_eq!(port.send(&packets), 64);
            for n in 0..64 {
                assert_eq!(peer.receive(), frame(round * 64 + n, 100 + usize::from(n)));
            }
        }
        port.turn();
        assert_eq!(port.counters(0).tx_pkts.get(), 320);
        assert_eq!(port.pool_free(), free_before, "sent buffers are back");
        port.finish();
    }
}

#[test]
fn the_mode_that_was_got_is_told() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    for (mode, driver) in [
        (XdpMode::Auto, "veth native copy"),
        (XdpMode::Native, "veth native copy"),
        (XdpMode::Generic, "veth generic copy"),
    ] {
        let port = lab.open(&options(mode), 2048);
        let info = port.open.port.info();
        assert_eq!(info.driver, driver);
        assert_eq!((info.link, info.mtu_bytes, info.queues), (LinkState::Up, 1500, 1));
        assert!(info.promiscuous && info.mac.is_some());
        port.finish();
    }
    let wants = AfXdpOptions { zero_copy: ZeroCopy::Require, ..options(XdpMode::Auto) };
    assert!(lab.try_open(&wants, 2048).is_err(), "veth has no zero-copy");
    lab.assert_nothing_attached();
}

#[test]
fn every_queue_receives_and_sends() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(2);
    let peer = Peer::open("mrx1");
    let mut port = lab.open(&options(XdpMode::Native), 2048);
    assert_eq!(port.open.port.info().queues, 2);
    // The kernel spreads flows over the peer's transmit queues, each of which ends at one of ours.
    for flow in 0..64 {
        peer.send(&udp_frame(1000 + flow));
    }
    let got = port.receive(64);
    let per_queue = [0, 1].map(|q| port.counters(q).rx_pkts.get());
    assert!(per_queue[0] > 0 && per_queue[1] > 0, "{per_queue:?}");
    for queue in 0..2 {
        let packet = port.packet(&frame(queue, 300));
        let sent = port.open.queues[usize::from(queue)].tx_burst(&mut port.pool, &[packet]);
        port.turn();
        assert_eq!((sent, peer.receive()), (1, frame(queue, 300)));
    }
    port.free(&got);
    port.finish();
}

#[test]
fn each_queue_draws_on_the_pool_of_its_worker() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(3);
    let geometry = RegionGeometry { buffers: 1024, stride_bytes: 2048, headroom_bytes: 256 };
    let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
    let mut pools = [0, 512].map(|first| BufferPool::new(Arc::clone(&region), first, 512));
    let mut open = af_xdp::open("test", &options(XdpMode::Native), &mut pools).unwrap();
    assert_eq!(pools.each_ref().map(BufferPool::free_buffers), [512 - 2 * 64, 512 - 64]);
    let peer = Peer::open("mrx1");
    (0..96).for_each(|flow| peer.send(&udp_frame(2000 + flow)));
    for (q, queue) in open.queues.iter_mut().enumerate() {
        let (pool, mut got) = (&mut pools[q % 2], Vec::new());
        queue.rx_burst(pool, &mut got);
        assert!(!got.is_empty(), "queue {q} received");
        let own = pool.first()..pool.first() + pool.count();
        assert!(got.iter().all(|packet| own.contains(&packet.buffer)), "queue {q}");
        assert_eq!(queue.tx_burst(pool, &got), got.len());
        queue.close(pool);
    }
    open.port.close();
    assert_eq!(pools.each_ref().map(BufferPool::free_buffers), [512, 512]);
}

#[test]
fn traffic_through_link_flaps_loses_no_buffer_and_accounts_for_every_packet() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    let peer = Peer::open("mrx1");
    let small = AfXdpOptions { ring_descriptors: 64, ..options(XdpMode::Native) };
    let mut port = lab.try_open_sized(&small, 4096, 300).unwrap();
    for round in 0..4u16 {
        // The kernel takes up to a second to let the peer send again after the link came up.
        let before = port.counters(0).rx_pkts.get();
        port.turn_until("a frame after the link came up", |port| {
            peer.try_send(&frame(0, 60));
            port.echo();
            port.counters(0).rx_pkts.get() > before
        });
        for n in 0..100 {
            peer.try_send(&frame(n, 60 + usize::from(round * n)));
            port.echo();
        }
        lab.run("ip link set mrx0 down");
        peer.try_send(&frame(0, 60));
        port.echo();
        lab.run("ip link set mrx0 up");
    }
    for queue in &mut port.open.queues {
        queue.close(&mut port.pool);
    }
    let counters = port.counters(0);
    assert!(counters.rx_pkts.get() >= 4, "{counters:?}");
    let gone = counters.tx_pkts.get() + counters.drops.total();
    assert_eq!(counters.rx_pkts.get(), gone, "{counters:?}");
    port.finish();
}

#[test]
fn a_sleeping_worker_is_woken_by_a_packet() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    let peer = Peer::open("mrx1");
    let mut port = lab.open(&options(XdpMode::Native), 2048);
    assert!(!lab::readable(port.open.queues[0].poll_fd().unwrap(), 20), "nothing to read yet");
    peer.send(&frame(1, 80));
    assert!(lab::readable(port.open.queues[0].poll_fd().unwrap(), 1000), "the packet wakes");
    let got = port.receive(1);
    port.free(&got);
    port.finish();
}

#[test]
fn busy_polling_receives_too() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    let peer = Peer::open("mrx1");
    let busy = AfXdpOptions { busy_poll: true, ..options(XdpMode::Native) };
    let mut port = lab.open(&busy, 2048);
    peer.send(&frame(1, 80));
    let got = port.receive(1);
    port.free(&got);
    port.finish();
}

#[test]
fn a_jumbo_frame_is_gathered_into_one_buffer_and_scattered_from_it() {
    for mode in BOTH_MODES {
        let Some(lab) = Lab::new() else { return };
        lab.veth(1);
        lab.run("ip link set mrx0 mtu 9000");
        lab.run("ip link set mrx1 mtu 9000");
        let peer = Peer::open("mrx1");
        let mut port = lab.open(&options(mode), 12288);
        for len in [60, 3840, 3841, 4096, 7680, 7681, 9014] {
            peer.send(&frame(len as u16, len));
            let got = port.receive(1);
            assert!(port.bytes(&got[0]) == frame(len as u16, len), "{mode:?} received {len}");
            assert_eq!(port.send(&got), 1);
            assert!(peer.receive() == frame(len as u16, len), "{mode:?} echoed {len}");
        }
        // Offsets that an NF may have moved a packet to: every way to lie across chunks.
        for offset in [0, 1, 1000, 3000, 3270] {
            let packet = port.packet_at(offset, &frame(offset, 9014));
            assert_eq!(port.send(&[packet]), 1);
            assert!(peer.receive() == frame(offset, 9014), "{mode:?} sent from {offset}");
        }
        let counters = port.counters(0);
        assert_eq!((counters.rx_pkts.get(), counters.tx_pkts.get()), (7, 12));
        assert_eq!(counters.drops.total(), 0);
        port.finish();
    }
}

#[test]
fn many_jumbo_frames_keep_the_rings_in_step() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    lab.run("ip link set mrx0 mtu 9000");
    lab.run("ip link set mrx1 mtu 9000");
    let peer = Peer::open("mrx1");
    let small = AfXdpOptions { ring_descriptors: 64, ..options(XdpMode::Native) };
    let mut port = lab.try_open_sized(&small, 12288, 256).unwrap();
    for round in 0..40 {
        for n in 0..8 {
            peer.send(&frame(round * 8 + n, 9000));
        }
        let got = port.receive(8);
        assert_eq!(port.send(&got), 8);
        for n in 0..8 {
            assert!(peer.receive() == frame(round * 8 + n, 9000), "round {round}");
        }
    }
    port.finish();
}

#[test]
fn a_frame_longer_than_the_buffer_is_dropped_under_its_reason() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    lab.run("ip link set mrx0 mtu 9000");
    lab.run("ip link set mrx1 mtu 9000");
    let peer = Peer::open("mrx1");
    let mut port = lab.open(&options(XdpMode::Native), 8192);
    peer.send(&frame(1, 9000));
    peer.send(&frame(2, 7000));
    let got = port.receive(1);
    assert!(port.bytes(&got[0]) == frame(2, 7000));
    let counters = port.counters(0);
    assert_eq!(counters.rx_pkts.get(), 2, "also what it dropped itself");
    assert_eq!(counters.drops.get(DropReason::RxTooLarge), 1);
    port.free(&got);
    port.finish();
}

#[test]
fn a_frame_longer_than_a_single_chunk_is_entered_in_the_ledger_as_too_large() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    lab.run("ip link set mrx0 mtu 3000");
    lab.run("ip link set mrx1 mtu 3000");
    let peer = Peer::open("mrx1");
    let mut port = lab.open(&options(XdpMode::Native), 2048);
    peer.send(&frame(1, 2500));
    peer.send(&frame(2, 1500));
    let got = port.receive(1);
    port.turn_until("rx_dropped", |port| port.hw_stat("xsk_rx_dropped") == 1);
    assert_eq!(port.counters(0).drops.get(DropReason::RxTooLarge), 1);
    assert_eq!(port.counters(0).rx_pkts.get(), 2, "it came, and it was dropped");
    let packet = port.packet(&frame(3, 1600));
    lab.run("ip link set mrx0 mtu 1500");
    port.turn_until("the new MTU", |port| port.open.port.info().mtu_bytes == 1500);
    assert_eq!(port.send(&[packet]), 1);
    assert_eq!(port.counters(0).drops.get(DropReason::TxTooLarge), 1);
    port.free(&got);
    port.finish();
}

#[test]
fn an_mtu_too_large_for_native_mode_is_named_and_auto_falls_back() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    lab.run("ip link set mrx0 mtu 9000");
    lab.run("ip link set mrx1 mtu 9000");
    let text = lab.try_open(&options(XdpMode::Native), 4096).err().unwrap().to_string();
    assert!(text.contains("MTU") && text.contains("12288"), "{text}");
    let port = lab.open(&options(XdpMode::Auto), 4096);
    assert_eq!(port.open.port.info().driver, "veth generic copy");
    port.finish();
}

#[test]
fn vlan_tags_in_a_frame_pass_both_ways() {
    for mode in BOTH_MODES {
        let Some(lab) = Lab::new() else { return };
        lab.veth(1);
        // A packet socket would have its tags taken off by the kernel; a port sees them.
        let far_options = AfXdpOptions { interface: "mrx1".into(), ..options(mode) };
        let (mut near, mut far) = (lab.open(&options(mode), 2048), lab.open(&far_options, 2048));
        let mut tagged = frame(9, 1514);
        for tag in [[0x81, 0x00, 0x00, 0x07], [0x88, 0xa8, 0x20, 0x05]] {
            tagged.truncate(1514);
            tagged.splice(12..12, tag);
            let packet = near.packet(&tagged);
            assert_eq!(near.send(&[packet]), 1);
            let got = far.receive(1);
            assert!(far.bytes(&got[0]) == tagged, "{mode:?}: there");
            assert_eq!(far.send(&got), 1);
            let back = near.receive(1);
            assert!(near.bytes(&back[0]) == tagged, "{mode:?}: and back");
            near.free(&back);
        }
        near.finish();
        far.finish();
    }
}

#[test]
fn a_link_that_goes_down_and_up_again_carries_on() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    let peer = Peer::open("mrx1");
    let mut port = lab.open(&options(XdpMode::Native), 2048);
    for end in ["mrx0", "mrx1"] {
        lab.run(&format!("ip link set {end} down"));
        port.turn_until("down", |port| port.open.port.info().link == LinkState::Down);
        let packet = port.packet(&frame(1, 100));
        assert_eq!(port.send(&[packet]), 1, "taken, and counted as dropped");
        lab.run(&format!("ip link set {end} up"));
        port.turn_until("up", |port| port.open.port.info().link == LinkState::Up);
    }
    assert_eq!(port.counters(0).drops.get(DropReason::TxPortDown), 2);
    assert_eq!(port.counters(0).tx_pkts.get(), 0);
    peer.drain();
    peer.send(&frame(2, 100));
    let got = port.receive(1);
    assert_eq!(port.send(&got), 1);
    assert_eq!(peer.receive(), frame(2, 100));
    port.finish();
}

#[test]
fn a_device_deleted_while_running_is_reported_and_hangs_nothing() {
    for mode in BOTH_MODES {
        let Some(lab) = Lab::new() else { return };
        lab.veth(1);
        let peer = Peer::open("mrx1");
        let mut port = lab.open(&options(mode), 2048);
        peer.send(&frame(1, 100));
        let got = port.receive(1);
        lab.run("ip link del mrx0");
        // Sent before anybody noticed, it stays in the ring: the kernel never takes it.
        let early = port.packet(&frame(2, 100));
        assert_eq!(port.send(&[early]), 1);
        port.turn_until("gone", |port| port.open.port.info().link == LinkState::Gone);
        let late: Vec<_> = (0..100).map(|n| port.packet(&frame(n, 100))).collect();
        assert_eq!(port.send(&late), 100);
        port.turn_until("the early one to be counted", |port| {
            port.counters(0).drops.get(DropReason::TxPortDown) == 101
        });
        assert_eq!(port.counters(0).tx_pkts.get(), 0);
        port.free(&got);
        port.finish();
    }
}

#[test]
fn a_udp_packet_that_left_its_checksum_to_hardware_gets_the_right_one() {
    for mode in BOTH_MODES {
        let Some(lab) = Lab::new() else { return };
        lab.veth(1);
        lab.run("ip addr add 10.9.0.1/24 dev mrx1");
        lab.run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:0b dev mrx1");
        let sender = UdpSocket::bind("10.9.0.1:0").unwrap();
        for (checksum, right) in [(ChecksumMode::Complete, true), (ChecksumMode::Leave, false)] {
            let options = AfXdpOptions { checksum: Some(checksum), ..options(mode) };
            let mut port = lab.open(&options, 2048);
            sender.send_to(b"a payload of odd length", "10.9.0.2:9").unwrap();
            let got = port.receive(1);
            let bytes = port.bytes(&got[0]);
            let udp = &bytes[34..];
            let mut covered = bytes[26..34].to_vec();
            covered.extend([0, 17, udp[4], udp[5]]);
            covered.extend(udp);
            assert_eq!(ones_complement_sum(&covered) == 0xffff, right, "{mode:?} {checksum:?}");
            port.free(&got);
            port.finish();
        }
    }
}

#[test]
fn what_cannot_be_sent_is_freed_and_counted_but_never_another_owners_buffer() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    let peer = Peer::open("mrx1");
    let mut port = lab.open(&options(XdpMode::Native), 2048);
    let short = port.packet(&[0; 10]);
    let long = port.packet(&frame(1, 1600));
    let mut astray = short;
    astray.buffer = 1 << 20;
    let mut outside = port.packet(&frame(2, 100));
    outside.offset_bytes = 2000;
    let free = port.pool_free();
    assert_eq!(port.send(&[short, long, astray, outside]), 4);
    assert_eq!(port.counters(0).drops.get(DropReason::TxTooLarge), 4);
    assert_eq!(port.counters(0).tx_pkts.get(), 0);
    assert_eq!(port.pool_free(), free + 3);
    assert!(peer.is_quiet());
    port.finish();
}

#[test]
fn a_full_transmit_ring_leaves_the_rest_with_the_caller() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    let small = AfXdpOptions { ring_descriptors: 64, ..options(XdpMode::Native) };
    let mut port = lab.open(&small, 2048);
    let mut packets: Vec<_> = (0..1000).map(|n| port.packet(&frame(n, 100))).collect();
    port.turn_until("all to be sent", |port| {
        let taken = port.open.queues[0].tx_burst(&mut port.pool, &packets);
        packets.drain(..taken);
        packets.is_empty()
    });
    assert_eq!(port.counters(0).tx_pkts.get(), 1000);
    port.finish();
}

#[test]
fn an_interface_is_taken_again_right_after_it_was_let_go() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    let peer = Peer::open("mrx1");
    for n in 0..10 {
        let mut port = lab.open(&options(XdpMode::Native), 2048);
        peer.send(&frame(n, 100));
        let got = port.receive(1);
        port.free(&got);
        port.finish();
    }
}

#[test]
fn each_wrong_setting_is_told_in_one_line() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    let base = options(XdpMode::Auto);
    let text = |options: &AfXdpOptions, stride| {
        let text = lab.try_open(options, stride).err().expect("must fail").to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    };
    let missing = text(&AfXdpOptions::new("mrx9"), 2048);
    assert!(missing.contains("mrx9: no such interface") && missing.contains("mrx0"), "{missing}");
    assert!(!missing.contains("lo,") && !missing.ends_with(" lo"), "{missing}");
    assert!(text(&AfXdpOptions::new("lo"), 2048).contains("loopback"));
    assert!(text(&base, 2368).contains("2048 or a multiple of 4096, found 2368"));
    let queues = text(&AfXdpOptions { queues: Some(3), ..base.clone() }, 2048);
    assert!(queues.contains("queues = 3") && queues.contains("ethtool -L"), "{queues}");
    let ring = text(&AfXdpOptions { ring_descriptors: 1000, ..base.clone() }, 2048);
    assert!(ring.contains("power of two"), "{ring}");
    lab.run("ip link set mrx0 down");
    assert!(text(&base, 2048).contains("ip link set mrx0 up"));
}

#[test]
fn the_interface_of_the_default_route_is_refused_unless_allowed() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    lab.run("ip addr add 10.9.0.1/24 dev mrx0");
    lab.run("ip route add default via 10.9.0.2 dev mrx0");
    let text = lab.try_open(&options(XdpMode::Auto), 2048).err().unwrap().to_string();
    assert!(text.contains("default route") && text.contains("--force"), "{text}");
    let forced = AfXdpOptions { allow_default_route: true, ..options(XdpMode::Auto) };
    lab.open(&forced, 2048).finish();
}

#[test]
fn a_program_that_is_attached_already_is_named_with_the_remedy() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    let first = lab.open(&options(XdpMode::Native), 2048);
    let error = lab.try_open(&options(XdpMode::Native), 2048).err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, PortError::Unsupported { .. }), "{text}");
    assert!(text.contains("another XDP program") && text.contains("xdp off"), "{text}");
    first.finish();
}

#[test]
fn without_privilege_the_error_names_the_capabilities() {
    let Some(lab) = Lab::new() else { return };
    lab.veth(1);
    lab::drop_capabilities_of_this_thread();
    let error = lab.try_open(&options(XdpMode::Auto), 2048).err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, PortError::Permission { .. }), "{text}");
    for capability in ["CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_BPF", "CAP_IPC_LOCK"] {
        assert!(text.contains(capability), "{text}");
    }
}

/// Set for the child that [`nothing_stays_attached_after_kill_9`] starts.
const HOLD: &str = "MILLRACE_TEST_HOLD_INTERFACE";

#[test]
fn nothing_stays_attached_after_kill_9() {
    if std::env::var_os(HOLD).is_some() {
        hold_the_interface_until_killed();
    }
    for mode in ["native", "generic"] {
        let Some(lab) = Lab::new() else { return };
        lab.veth(1);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nothing_stays_attached_after_kill_9", "--nocapture"])
            .env(HOLD, mode)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("holding")),
            "the child took the interface"
        );
        assert!(lab.run("ip -d link show mrx0").contains("xdp"), "{mode}: attached");
        child.kill().unwrap();
        child.wait().unwrap();
        // And it can be had again at once.
        let again = lab.open(&options(XdpMode::Native), 2048);
        again.finish();
        lab.assert_nothing_attached();
    }
}

fn hold_the_interface_until_killed() -> ! {
    let mode =
        if std::env::var(HOLD).unwrap() == "generic" { XdpMode::Generic } else { XdpMode::Native };
    let _port = Lab.open(&options(mode), 2048);
    println!("holding");
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

#[test]
fn unknown_settings_are_rejected_by_name() {
    let text = toml::from_str::<AfXdpOptions>("interface = \"x\"\nqueue = 1").unwrap_err();
    assert!(text.to_string().contains("queue"), "{text}");
    let full = "interface = \"x\"\nqueues = 2\nmode = \"native\"\nzero_copy = \"off\"\n\
                ring_descriptors = 512\nbusy_poll = true\nallow_default_route = true\n\
                checksum = \"leave\"\npromiscuous = false";
    let options: AfXdpOptions = toml::from_str(full).unwrap();
    assert_eq!((options.queues, options.zero_copy), (Some(2), ZeroCopy::Off));
}
