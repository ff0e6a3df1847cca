//! The packets that a dead NF has, copied before their buffers are free again.
//!
//! Which ones its rings tell, as they do for taking the buffers back: see `nflib::shm::remaining_buffers`.
//! Here it is done before anything is taken back, in the control thread, so that it is bounded.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};

use nflib::descriptor::{Delivery, Returned};
use nflib::observe::NOBODY;
use nflib::shm::{BlackBox, BufferIndex, Channel, NfCounter, Region};
use serde::{Deserialize, Serialize};

use crate::edges::Edges;
use crate::plan::NfNumber;
use crate::registry::NfRecord;

/// Most packets that are copied.
const MAX_COPIED_PKTS: usize = 256;
/// Most bytes that are copied: some tens of microseconds.
const MAX_COPIED_BYTES: usize = 512 << 10;

/// What a packet was to the NF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PacketKind {
    /// The NF had taken it before; as it came.
    #[default]
    Recorded,
    /// The NF had taken it and not passed it on: it is of the burst that it was at work on. As it was found.
    InHand,
    /// The NF kept it, or could not pass it on. As it was found.
    Held,
    /// The NF had not taken it yet.
    Waiting,
}

/// A packet as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What it was to the NF.
    pub kind: PacketKind,
    /// As it was delivered. Everything in it is the word of whoever pushed it.
    pub delivery: Delivery,
    /// Who pushed it, [`NOBODY`] for a worker.
    pub peer: NfNumber,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What the NF had.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The packets that were copied: first those in hand, then those held, then those that waited.
    pub packets: Vec<Found>,
    /// Packets of each kind that were there, copied or not.
    pub in_hand_pkts: u64,
    /// See `in_hand_pkts`.
    pub held_pkts: u64,
    /// See `in_hand_pkts`.
    pub waiting_pkts: u64,
}

impl Evidence {
    /// Looks at the rings of an NF that is gone, or is to go, and copies what it has.
    #[must_use]
    pub fn gather(record: &NfRecord, edges: &Edges, region: &Region) -> Self {
        let region = record.own_region.as_deref().unwrap_or(region);
        let rings = Rings::read(record.nf, &record.channel, edges);
        let mut copying = Copying { region, bytes_left: MAX_COPIED_BYTES, packets: Vec::new() };
        let in_hand: Vec<_> = rings.taken.iter().filter(|(p, _)| !rings.has_passed_on(p)).collect();
        let in_hand_buffers: HashSet<_> = in_hand.iter().map(|(packet, _)| packet.buffer).collect();
        for (packet, peer) in &in_hand {
            copying.copy(PacketKind::InHand, *packet, *peer);
        }
        let is_held =
            |b: &BufferIndex| !rings.passed_on.contains(b) && !in_hand_buffers.contains(b);
        let held: Vec<_> = record.channel.held_buffers().into_iter().filter(is_held).collect();
        copying.copy_held(&held, &record.black_box);
        for (packet, peer) in &rings.waiting {
            copying.copy(PacketKind::Waiting, *packet, *peer);
        }
        Self {
            packets: copying.packets,
            in_hand_pkts: in_hand.len() as u64,
            held_pkts: held.len() as u64,
            waiting_pkts: rings.waiting.len() as u64,
        }
    }
}

/// What the rings of an NF say.
#[derive(Default)]
struct Rings {
    /// Read and not released, with who pushed it.
    taken: Vec<(Delivery, NfNumber)>,
    waiting: Vec<(Delivery, NfNumber)>,
    passed_on: HashSet<BufferIndex>,
}

impl Rings {
    /// A ring with impossible indices tells nothing.
    fn read(nf: NfNumber, channel: &Channel, edges: &Edges) -> Self {
        let mut rings = Self::default();
        let lanes = 0..channel.geometry().workers;
        for (towards_nf, from_nf) in lanes.filter_map(|worker| channel.remains(worker)) {
            rings.note(towards_nf.unreleased(), NOBODY);
            let pushed = from_nf.unsettled::<Returned>().unwrap_or_default();
            rings.passed_on.extend(pushed.iter().map(|packet| packet.buffer));
        }
        for ((from, to), edge) in edges.iter() {
            if to == nf {
                rings.note(edge.ring.remains().unreleased(), from);
            }
            if from == nf {
                let pushed = edge.ring.remains().unsettled::<Delivery>().unwrap_or_default();
                rings.passed_on.extend(pushed.iter().map(|packet| packet.buffer));
            }
        }
        rings
    }

    fn note(&mut self, found: Option<(Vec<Delivery>, Vec<Delivery>)>, peer: NfNumber) {
        let Some((taken, waiting)) = found else { return };
        self.taken.extend(taken.into_iter().map(|packet| (packet, peer)));
        self.waiting.extend(waiting.into_iter().map(|packet| (packet, peer)));
    }

    fn has_passed_on(&self, packet: &Delivery) -> bool {
        self.passed_on.contains(&packet.buffer)
    }
}

struct Copying<'a> {
    region: &'a Region,
    bytes_left: usize,
    packets: Vec<Found>,
}

impl Copying<'_> {
    fn copy(&mut self, kind: PacketKind, delivery: Delivery, peer: NfNumber) {
        let Delivery { buffer, offset_bytes, len_bytes, .. } = delivery;
        let len = usize::from(len_bytes);
        if self.packets.len() >= MAX_COPIED_PKTS || len > self.bytes_left || delivery.is_loan() {
            return;
        }
        let mut bytes = vec![0; len];
        if self.region.read(buffer, offset_bytes, &mut bytes) {
            self.bytes_left -= len;
            self.packets.push(Found { kind, delivery, peer, bytes });
        }
    }

    /// Of packets in no ring only the numbers of their buffers are known. Where they lie in them the
    /// recorder may know; the NF may have moved them since.
    fn copy_held(&mut self, held: &[BufferIndex], black_box: &BlackBox) {
        if held.is_empty() {
            return;
        }
        let recorded = black_box.packets();
        let last: HashMap<_, _> = recorded.iter().map(|packet| (packet.buffer, packet)).collect();
        for packet in held.iter().filter_map(|buffer| last.get(buffer)) {
            let delivery = Delivery {
                buffer: packet.buffer,
                offset_bytes: packet.offset_bytes,
                len_bytes: packet.len_bytes,
                flow_hash: packet.flow_hash,
                route: packet.route,
                port: packet.ingress,
                hop: packet.hop,
            };
            self.copy(PacketKind::Held, delivery, packet.peer);
        }
    }
}

/// Packets that the NF had done with: those that it takes later have higher numbers. By the NF's own word.
#[must_use]
pub fn done_pkts(channel: &Channel) -> u64 {
    channel.nf_counter(NfCounter::RxPkts)
}
