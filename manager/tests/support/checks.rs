//! The checks, each written once and run against every back end.
//!
//! The rules of every moment (a burst's size, a packet's range, no buffer with two owners, the
//! books) are in the rig and hold in all of them; each check ends with all buffers in the pool.

use millrace::ports::LinkState;
use millrace::stats::DropReason;

use super::lab::{Lab, test_frame, test_frames};
use super::rig::Rig;
use super::skip::skip;

/// Runs one check, or says why it cannot run here.
///
/// On a thread of its own, so that a lab may move its thread into another network namespace.
pub fn run<L: Lab + 'static>(check: fn(L)) {
    let result = std::thread::spawn(move || match L::new() {
        Ok(lab) => check(lab),
        Err(reason) => skip(&reason),
    });
    if let Err(panic) = result.join() {
        std::panic::resume_unwind(panic);
    }
}

/// One test for each check, in a module named after the lab.
#[macro_export]
macro_rules! port_conforms {
    ($name:ident, $lab:ty) => {
        $crate::port_conforms!($name, $lab,
            a_port_says_what_it_is,
            received_bytes_equal_the_injected_ones_in_order,
            what_is_held_by_the_receiver_is_not_delivered_again,
            sent_frames_are_the_bytes_of_their_range_in_order,
            frames_are_sent_from_wherever_their_start_was_moved,
            transmit_takes_a_prefix_and_leaves_the_rest_untouched,
            forwarded_packets_and_bytes_are_counted_exactly,
            an_oversize_arrival_is_counted_under_its_reason,
            a_frame_too_long_to_send_is_freed_and_counted,
            an_empty_pool_keeps_the_books_and_recovers,
            closing_in_mid_traffic_returns_every_buffer,
        );
    };
    ($name:ident, $lab:ty, $($check:ident,)+) => {
        mod $name {
            use super::*;

            $(#[test]
            fn $check() {
                $crate::support::checks::run::<$lab>($crate::support::checks::$check);
            })+
        }
    };
}

fn rig<L: Lab>(lab: L, count: usize) -> Rig<L> {
    let frames = test_frames(count, lab.abilities().max_frame_bytes);
    Rig::new(lab, frames)
}

pub fn a_port_says_what_it_is<L: Lab>(lab: L) {
    let rig = rig(lab, 0);
    let info = rig.port.port.info();
    assert!(!info.backend.is_empty() && !info.device.is_empty() && !info.driver.is_empty());
    assert_eq!(usize::from(info.queues), rig.port.queues.len());
    assert_eq!(info.link, LinkState::Up);
    let mtu = info.mtu_bytes as usize;
    assert!(mtu + 14 >= rig.lab.abilities().max_frame_bytes, "{info:?}");
    if let Some(mac) = &info.mac {
        assert!(mac.len() == 17 && mac.split(':').count() == 6, "{mac}");
    }
    rig.finish();
}

pub fn received_bytes_equal_the_injected_ones_in_order<L: Lab>(lab: L) {
    let mut rig = rig(lab, 700);
    if rig.lab.abilities().receives {
        let mut came = 0;
        while came < rig.arrivals.len() {
            for packet in rig.receive(1) {
                let frame = rig.frame(&packet);
                assert_eq!(frame, rig.arrivals[came], "frame {came}");
                rig.free(&[packet]);
                came += 1;
            }
        }
    } else {
        for _ in 0..100 {
            assert_eq!(rig.turn(), []);
        }
    }
    rig.finish();
}

pub fn what_is_held_by_the_receiver_is_not_delivered_again<L: Lab>(lab: L) {
    let mut rig = rig(lab, 300);
    if rig.lab.abilities().receives {
        let packets = rig.receive(300);
        // Nothing wrote into the packets while later ones came.
        for (packet, expected) in packets.iter().zip(rig.arrivals.clone()) {
            assert_eq!(rig.frame(packet), expected);
        }
        rig.free(&packets);
    }
    rig.finish();
}

pub fn sent_frames_are_the_bytes_of_their_range_in_order<L: Lab>(lab: L) {
    let mut rig = rig(lab, 0);
    let abilities = rig.lab.abilities();
    let headroom = rig.pool[0].region().geometry().headroom_bytes;
    let frames = test_frames(300, abilities.max_frame_bytes);
    let packets: Vec<_> = frames.iter().map(|frame| rig.packet(frame, headroom)).collect();
    rig.send(&packets);
    rig.finish_having_sent(&frames);
}

pub fn frames_are_sent_from_wherever_their_start_was_moved<L: Lab>(lab: L) {
    let mut rig = rig(lab, 0);
    let geometry = *rig.pool[0].region().geometry();
    let headroom = geometry.headroom_bytes;
    let end = (geometry.stride_bytes - 200) as u16;
    // At the buffer's start, headers pushed, as received, headers popped, at its very end.
    let offsets = [0, headroom - 50, headroom - 1, headroom, headroom + 14, headroom + 33, end];
    let frames: Vec<_> = (0..70).map(|id| test_frame(id, 200)).collect();
    let packets: Vec<_> = frames
        .iter()
        .zip(offsets.iter().cycle())
        .map(|(frame, &offset)| rig.packet(frame, offset))
        .collect();
    rig.send(&packets);
    rig.finish_having_sent(&frames);
}

pub fn transmit_takes_a_prefix_and_leaves_the_rest_untouched<L: Lab>(lab: L) {
    let mut rig = rig(lab, 0);
    let headroom = rig.pool[0].region().geometry().headroom_bytes;
    let frames: Vec<_> = (0..400).map(|id| test_frame(id, 80)).collect();
    let packets: Vec<_> = frames.iter().map(|frame| rig.packet(frame, headroom)).collect();
    let mut sent = 0;
    rig.turn_until("400 packets taken", |rig| {
        sent += rig.offer(&packets[sent..]);
        for (packet, frame) in packets[sent..].iter().zip(&frames[sent..]) {
            assert_eq!(rig.frame(packet), *frame, "a packet that was not taken");
        }
        sent == packets.len()
    });
    rig.finish_having_sent(&frames);
}

pub fn forwarded_packets_and_bytes_are_counted_exactly<L: Lab>(lab: L) {
    let mut rig = rig(lab, 600);
    let mut forwarded = (0, 0);
    if rig.lab.abilities().receives {
        while forwarded.0 < 600 {
            let packets = rig.receive(1);
            forwarded.0 += packets.len() as u64;
            forwarded.1 += packets.iter().map(|packet| u64::from(packet.len_bytes)).sum::<u64>();
            rig.send(&packets);
        }
    }
    rig.turn_until("nothing held", |rig| rig.port.queues[0].held_pkts() == 0);
    let counters = rig.counters();
    assert_eq!((counters.rx_pkts.get(), counters.rx_bytes.get()), rig.received());
    assert_eq!((counters.tx_pkts.get(), counters.tx_bytes.get()), forwarded);
    assert_eq!(counters.drops.total(), 0);
    let forwarded = if forwarded.0 > 0 { rig.arrivals.clone() } else { Vec::new() };
    rig.finish_having_sent(&forwarded);
}

pub fn an_oversize_arrival_is_counted_under_its_reason<L: Lab>(lab: L) {
    let abilities = lab.abilities();
    let Some(oversize) = abilities.oversize_rx_bytes else {
        return rig(lab, 0).finish();
    };
    let mut frames = test_frames(40, abilities.max_frame_bytes);
    for (id, frame) in frames.iter_mut().enumerate().filter(|(id, _)| id % 4 == 2) {
        *frame = test_frame(id as u32, oversize);
    }
    let mut rig = Rig::new(lab, frames);
    let packets = rig.receive(30);
    let fitting = rig.arrivals.iter().filter(|frame| frame.len() < oversize);
    for (packet, expected) in packets.iter().zip(fitting) {
        assert_eq!(rig.frame(packet), *expected);
    }
    rig.turn_until("10 oversize frames counted", |rig| {
        rig.counters().drops.get(DropReason::RxTooLarge) >= 10
    });
    assert_eq!(rig.counters().drops.total(), 10);
    rig.free(&packets);
    rig.finish();
}

pub fn a_frame_too_long_to_send_is_freed_and_counted<L: Lab>(lab: L) {
    let mut rig = rig(lab, 0);
    let Some(oversize) = rig.lab.abilities().oversize_tx_bytes else { return rig.finish() };
    let headroom = rig.pool[0].region().geometry().headroom_bytes;
    let frames = [test_frame(0, 60), test_frame(1, oversize), test_frame(2, 60)];
    let packets: Vec<_> = frames.iter().map(|frame| rig.packet(frame, headroom)).collect();
    rig.send(&packets);
    rig.turn_until("the long one dropped", |rig| {
        rig.counters().drops.get(DropReason::TxTooLarge) == 1
    });
    assert_eq!(rig.counters().tx_pkts.get(), 2);
    let [first, _, last] = frames;
    rig.finish_having_sent(&[first, last]);
}

pub fn an_empty_pool_keeps_the_books_and_recovers<L: Lab>(lab: L) {
    let mut rig = rig(lab, 2000);
    if !rig.lab.abilities().receives {
        return rig.finish();
    }
    let mut hoard = Vec::new();
    rig.pool[0].take(usize::MAX, &mut hoard);
    rig.feed_left = 1500;
    let (mut kept, mut ids) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        for packet in rig.turn() {
            ids.push(rig.frame(&packet));
            kept.push(packet);
        }
    }
    rig.pool[0].give(&hoard);
    rig.free(&kept);
    // Whatever waits somewhere comes first; then the wire goes on.
    for _ in 0..20 {
        for packet in rig.turn() {
            ids.push(rig.frame(&packet));
            rig.free(&[packet]);
        }
    }
    rig.feed_left = usize::MAX;
    let last = rig.arrivals.last().cloned();
    while ids.last() != last.as_ref() {
        let packets = rig.receive(1);
        ids.extend(packets.iter().map(|packet| rig.frame(packet)));
        rig.free(&packets);
    }
    ids.retain(|frame| !rig.lab.is_noise(frame));
    if rig.lab.abilities().waits_for_buffers {
        assert_eq!(ids, rig.arrivals);
    } else {
        assert!(ids.ends_with(&rig.arrivals[1500..]), "once buffers are back, nothing is lost");
    }
    rig.finish();
}

pub fn closing_in_mid_traffic_returns_every_buffer<L: Lab>(lab: L) {
    let mut rig = rig(lab, 500);
    let headroom = rig.pool[0].region().geometry().headroom_bytes;
    let received = if rig.lab.abilities().receives { rig.receive(100) } else { Vec::new() };
    let made: Vec<_> = (0..64).map(|id| rig.packet(&test_frame(id, 100), headroom)).collect();
    rig.offer(&received[..received.len() / 2]);
    rig.offer(&made);
    rig.finish();
}
