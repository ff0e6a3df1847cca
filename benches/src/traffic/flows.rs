//! The flows of a run: their frames, and the order in which they send.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use fastrand::Rng;
use nflib::headers::{MacAddr, tcp_flags};
use nflib::testing::FrameBuilder;
use nflib::trail;

use super::label::{Kind, LABEL_BYTES, Label};

/// Steps that a packet's trail has room for.
pub const TRAIL_STEPS: u8 = 12;
/// Most flows of a kind: each has a transport port of its own.
pub const MAX_FLOWS: u32 = 60_000;
/// Bytes of filler, at most.
const MAX_FILLER_BYTES: usize = 256;
/// Most packets of one flow in a row.
const MAX_TRAIN_PKTS: u32 = 32;
/// Flows that send trains.
const MAX_HEAVY_FLOWS: u32 = 16;

/// Which kinds of flow a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    /// One.
    Only(Kind),
    /// Even flows are HTTP, odd ones UDP.
    Mix,
}

impl Kinds {
    /// The kind of a flow.
    #[must_use]
    pub fn of(self, flow: u32) -> Kind {
        match self {
            Self::Only(kind) => kind,
            Self::Mix if flow.is_multiple_of(2) => Kind::Http,
            Self::Mix => Kind::Udp,
        }
    }
}

/// Where frames come from and go to.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Source Ethernet address.
    pub src_mac: MacAddr,
    /// Destination Ethernet address.
    pub dst_mac: MacAddr,
    /// Source.
    pub src: Ipv4Addr,
    /// Destination of HTTP flows.
    pub to_http: Ipv4Addr,
    /// Destination of UDP flows.
    pub to_udp: Ipv4Addr,
}

/// The frame of a packet: Ethernet, IPv4, TCP or UDP with right checksums, trail, label, filler.
#[must_use]
pub fn frame(addresses: &Addresses, label: &Label, filler_bytes: usize) -> Vec<u8> {
    let mut payload =
        Vec::with_capacity(trail::len_bytes(TRAIL_STEPS) + LABEL_BYTES + filler_bytes);
    trail::begin(&mut payload, TRAIL_STEPS);
    label.write(&mut payload, filler_bytes);
    let own_port = 2000 + (label.flow % MAX_FLOWS) as u16;
    let frame = FrameBuilder::new().macs(addresses.src_mac, addresses.dst_mac);
    let to = |dst: Ipv4Addr| frame.ip(IpAddr::V4(addresses.src), IpAddr::V4(dst));
    let frame = match label.kind {
        Kind::Http => to(addresses.to_http).tcp(own_port, 80, tcp_flags::PSH | tcp_flags::ACK),
        Kind::Udp => to(addresses.to_udp).udp(own_port, 4000 + (label.flow % 97) as u16),
    };
    frame.payload(&payload).build()
}

/// Who sends next. Half of the packets come in trains, many of one flow in a row, from a few heavy
/// flows: a change that lets packets of a flow overtake one another is seen only where they follow
/// each other closely. The other half goes round all flows, so that none is silent for long.
#[derive(Debug)]
pub struct Schedule {
    rng: Rng,
    /// All flows in a random order.
    circle: Vec<u32>,
    at: usize,
    heavy_flows: u32,
    heavy: u32,
    train_left: u32,
    singles_left: u32,
}

impl Schedule {
    /// `flows` ≥ 1 flows; equal seeds give equal schedules.
    #[must_use]
    pub fn new(flows: u32, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut circle: Vec<_> = (0..flows.max(1)).collect();
        rng.shuffle(&mut circle);
        let heavy_flows = flows.clamp(1, MAX_HEAVY_FLOWS);
        Self { rng, circle, at: 0, heavy_flows, heavy: 0, train_left: 0, singles_left: 0 }
    }

    /// The next packet's flow, and how much filler it has, bytes.
    pub fn next_packet(&mut self) -> (u32, usize) {
        if self.train_left == 0 && self.singles_left == 0 {
            self.train_left = self.rng.u32(1..=MAX_TRAIN_PKTS);
            self.singles_left = self.train_left;
            self.heavy = self.rng.u32(..self.heavy_flows);
        }
        let flow = if self.train_left > 0 {
            self.train_left -= 1;
            self.heavy
        } else {
            self.singles_left -= 1;
            self.at = (self.at + 1) % self.circle.len();
            self.circle[self.at]
        };
        (flow, self.rng.usize(..=MAX_FILLER_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use nflib::headers::{Headers, checksum};
    use nflib::trail::Trail;

    use super::*;

    const ADDRESSES: Addresses = Addresses {
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        src: Ipv4Addr::new(10, 0, 0, 1),
        to_http: Ipv4Addr::new(10, 0, 0, 2),
        to_udp: Ipv4Addr::new(10, 0, 0, 3),
    };

    #[test]
    fn frames_have_right_checksums_and_say_what_they_are() {
        for flow in 0..200 {
            let kind = Kinds::Mix.of(flow);
            let label = Label {
                run_id: 7,
                flow,
                phase: 1,
                kind,
                number: u64::from(flow) * 1_000_003,
                sent_ns: 99,
            };
            let frame = frame(&ADDRESSES, &label, flow as usize);
            let headers = Headers::parse(&frame);
            assert_eq!(checksum::ipv4_ok(&frame, &headers), Some(true));
            assert_eq!(checksum::transport_ok(&frame, &headers), Some(true));
            let (to, is_80) = match kind {
                Kind::Http => (ADDRESSES.to_http, true),
                Kind::Udp => (ADDRESSES.to_udp, false),
            };
            assert_eq!(headers.addresses(), Some((ADDRESSES.src.into(), to.into())));
            assert_eq!(headers.ports().map(|(_, dst)| dst == 80), Some(is_80));
            let payload = headers.payload(&frame);
            let trail = Trail::read(payload).unwrap();
            assert_eq!(trail.steps().count(), 0);
            assert_eq!(Label::read(&payload[trail.len_bytes()..], 7), Ok(label));
        }
    }

    #[test]
    fn flows_of_a_kind_have_different_ports() {
        let ports = |flow| {
            let kind = Kinds::Only(Kind::Http).of(flow);
            let label = Label { run_id: 7, flow, phase: 0, kind, number: 0, sent_ns: 0 };
            Headers::parse(&frame(&ADDRESSES, &label, 0)).ports()
        };
        let all: std::collections::HashSet<_> = (0..MAX_FLOWS).step_by(59).map(ports).collect();
        assert_eq!(all.len(), (0..MAX_FLOWS).step_by(59).count());
    }

    #[test]
    fn a_seed_gives_the_same_schedule_and_another_seed_another() {
        let take = |seed| {
            let mut schedule = Schedule::new(100, seed);
            (0..1000).map(|_| schedule.next_packet()).collect::<Vec<_>>()
        };
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
    }

    #[test]
    fn no_flow_is_silent_for_long_and_some_send_trains() {
        let mut schedule = Schedule::new(200, 3);
        let sent: Vec<_> = (0..2000).map(|_| schedule.next_packet().0).collect();
        for window in sent.chunks(2 * (200 + MAX_TRAIN_PKTS as usize)).take(4) {
            let seen: std::collections::HashSet<_> = window.iter().collect();
            assert_eq!(seen.len(), 200);
        }
        assert!(sent.windows(4).any(|four| four.iter().all(|flow| flow == &four[0])));
    }

    #[test]
    fn one_flow_is_enough() {
        let mut schedule = Schedule::new(1, 3);
        assert!((0..100).all(|_| schedule.next_packet().0 == 0));
    }
}
