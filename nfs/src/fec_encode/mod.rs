//! Sends IP packets through a UDP tunnel, with parity packets by which the far end brings lost ones back.
//!
//! A burst is gone through three times. First each packet is judged, and what goes into the tunnel is cut
//! down to its IP packet. Then the packets of each session are coded, all at once. Then they get their
//! outer headers and leave, and behind them the parity packets of the blocks they filled. No packet is
//! held: what a block needs of it is in the library's sums by then.
#![forbid(unsafe_code)]

mod adaptive;
mod coders;
mod counts;
mod options;

use std::time::Duration;

use nflib::burst::MAX_BURST_PKTS;
use nflib::descriptor::NO_PORT;
use nflib::headers::{Headers, Network, ethertype};
use nflib::settings::{self, Setting, Settings};
use nflib::{Action, Burst, Context, NetworkFunction, NfError, Packet, PacketId, Setup};

use millrace_fec::wire::SOURCE_SHIM_BYTES;

use crate::fec::{self, End, Switch};
use crate::tunnel::fragment::{self, Pieces};
use crate::tunnel::outer::{self, Encapsulation, Ends, HEADER_BYTES_MAX};
use crate::tunnel::stock::Stock;
use crate::tunnel::{ecn, mss, too_big};

use coders::Coders;
use counts::Counts;
pub use options::Options;

/// Parts of cut packets that may wait for the end of their burst.
const PIECES_MAX: usize = 4 * MAX_BURST_PKTS;

type Shim = [u8; SOURCE_SHIM_BYTES];

/// What becomes of a packet of the burst.
#[derive(Clone, Copy)]
enum Fate {
    /// It does not enter the tunnel.
    Past(Action),
    /// It is an IP packet now, to be coded in a session, with this type of service.
    Through { session: u8, tos: u8 },
}

/// A part of a packet that was cut, in a buffer of the stock.
#[derive(Clone, Copy)]
struct Piece {
    id: PacketId,
    session: u8,
    tos: u8,
}

/// The NF.
pub struct FecEncode {
    options: Options,
    end: End,
    encapsulation: Encapsulation,
    coders: Coders,
    stock: Stock,
    pieces: Vec<Piece>,
    limiter: too_big::Limiter,
    mss_clamp: bool,
    counts: Counts,
    leaving: bool,
}

impl FecEncode {
    /// # Errors
    /// One line about the first option that is wrong.
    pub fn new(options: &Options) -> Result<Self, NfError> {
        fec::check_versions(options.end.local, options.peer)?;
        let end = End::new(&options.end)?;
        let ends = Ends {
            local: options.end.local,
            peer: options.peer,
            local_mac: options.end.mac.0,
            next_hop_mac: options.next_hop_mac.0,
        };
        Ok(Self {
            encapsulation: Encapsulation::new(&ends, options.end.udp_checksum),
            coders: Coders::new(options, &end)?,
            stock: Stock::new(options.stock, 0),
            pieces: Vec::with_capacity(PIECES_MAX),
            limiter: too_big::Limiter::new(),
            mss_clamp: options.end.mss_clamp == Switch::On,
            counts: Counts::default(),
            leaving: false,
            end,
            options: options.clone(),
        })
    }

    /// Where what leaves the tunnel's end goes.
    fn onward(&self) -> Action {
        self.options.to_port.map_or(Action::Next, Action::Out)
    }

    /// Bytes of outer headers and shim in front of an inner packet.
    fn front_bytes(&self) -> usize {
        self.encapsulation.header_bytes() + SOURCE_SHIM_BYTES
    }

    /// Judges a packet, and cuts it down to the IP packet in it if it is to go through the tunnel.
    fn judge(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Fate {
        let headers = Headers::parse(packet.bytes());
        if headers.vlan_tags().is_empty() && is_ip(&headers) {
            if headers.network == Network::None {
                self.counts.malformed_pkts += 1;
                return Fate::Past(Action::Drop);
            }
            if let Some(fate) = self.own(packet.bytes(), &headers, ctx) {
                return fate;
            }
            return self.admit(packet, &headers, ctx);
        }
        if self.options.drop_non_ip {
            self.counts.non_ip_dropped_pkts += 1;
            return Fate::Past(Action::Drop);
        }
        self.counts.passed_pkts += 1;
        Fate::Past(self.onward())
    }

    /// What is the tunnel's own: reports from the far end, and what is in the tunnel already.
    fn own(&mut self, frame: &[u8], headers: &Headers, ctx: &Context<'_>) -> Option<Fate> {
        let outer = outer::datagram(frame, headers)?;
        let (local, peer) = (self.options.end.local, self.options.peer);
        if outer.from == local && outer.to == peer {
            self.counts.passed_pkts += 1;
            return Some(Fate::Past(self.onward()));
        }
        if outer.to != local {
            return None;
        }
        let absent = self.options.end.udp_checksum == outer::UdpChecksum::Off;
        if outer.from != peer || !outer::checksums_ok(frame, headers, absent) {
            self.counts.report_refused_pkts += 1;
        } else {
            let result = self.coders.report(ctx.now_ns(), &frame[outer.payload]);
            self.counts.reported(result);
        }
        Some(Fate::Past(Action::Drop))
    }

    fn admit(
        &mut self,
        packet: &mut Packet<'_>,
        headers: &Headers,
        ctx: &mut Context<'_>,
    ) -> Fate {
        if packet.headroom_bytes() + usize::from(headers.l3_offset) < self.front_bytes() {
            self.counts.no_headroom_pkts += 1;
            return Fate::Past(Action::Drop);
        }
        if self.mss_clamp && mss::clamp(packet.bytes_mut(), headers, self.inner_mtu_bytes()) {
            self.counts.mss_clamped_pkts += 1;
        }
        let (from, to) = (usize::from(headers.l3_offset), usize::from(headers.payload_end));
        let tos = ecn::tos_of(&packet.bytes()[from..to]);
        let session = self.coders.session_of(tos);
        if to - from > self.inner_mtu_bytes() {
            return self.too_big(packet, headers, session, tos, ctx);
        }
        if cut_to(packet, from, to) {
            Fate::Through { session, tos }
        } else {
            Fate::Past(Action::Drop)
        }
    }

    fn inner_mtu_bytes(&self) -> usize {
        self.end.inner_mtu_bytes.into()
    }

    /// An IPv4 packet that may be cut is cut. The sender of any other is told how long one may be.
    fn too_big(
        &mut self,
        packet: &mut Packet<'_>,
        headers: &Headers,
        session: u8,
        tos: u8,
        ctx: &mut Context<'_>,
    ) -> Fate {
        let (from, to) = (usize::from(headers.l3_offset), usize::from(headers.payload_end));
        if let Some(pieces) = Pieces::new(&packet.bytes()[from..to], self.inner_mtu_bytes()) {
            return self.cut(packet, (from, to), pieces, session, tos, ctx);
        }
        let port = packet.ingress_port();
        if port == NO_PORT || !too_big::may_answer(headers) {
            self.counts.too_big_silent_pkts += 1;
            return Fate::Past(Action::Drop);
        }
        if !self.limiter.allows(ctx.now_ns()) {
            self.counts.too_big_limited_pkts += 1;
            return Fate::Past(Action::Drop);
        }
        match too_big::make_answer(packet, headers, self.end.inner_mtu_bytes) {
            Ok(()) => {
                self.counts.too_big_answered_pkts += 1;
                Fate::Past(Action::Out(port))
            }
            Err(_) => {
                self.counts.no_headroom_pkts += 1;
                Fate::Past(Action::Drop)
            }
        }
    }

    /// Cuts a packet: its first piece stays in its buffer, the others go into buffers of the stock. All of
    /// them go, or none.
    fn cut(
        &mut self,
        packet: &mut Packet<'_>,
        (from, to): (usize, usize),
        mut pieces: Pieces,
        session: u8,
        tos: u8,
        ctx: &mut Context<'_>,
    ) -> Fate {
        let Some((header, first)) = pieces.next() else { return Fate::Past(Action::Drop) };
        let before = self.pieces.len();
        for (header, payload) in pieces {
            let payload = &packet.bytes()[from..to][payload];
            let made = (self.pieces.len() < PIECES_MAX)
                .then(|| self.stock.make(ctx, &[&header, payload]))
                .flatten();
            let Some(id) = made else {
                self.counts.cut_failed_pkts += 1;
                for piece in self.pieces.drain(before..) {
                    // It is held: it was just made.
                    let _ = ctx.release(piece.id, Action::Drop);
                }
                return Fate::Past(Action::Drop);
            };
            self.pieces.push(Piece { id, session, tos });
        }
        if !cut_to(packet, from, from + first.end) {
            return Fate::Past(Action::Drop);
        }
        packet.bytes_mut()[..fragment::HEADER_BYTES].copy_from_slice(&header);
        self.counts.cut_pkts += 1;
        Fate::Through { session, tos }
    }

    /// Codes the packets of one session.
    fn code(
        &mut self,
        session: u8,
        burst: &Burst<'_>,
        fates: &[Fate],
        shims: &mut [Shim],
        now_ns: u64,
    ) {
        let mut packets: [&[u8]; MAX_BURST_PKTS] = [&[]; MAX_BURST_PKTS];
        let mut places = [0; MAX_BURST_PKTS];
        let mut count = 0;
        for (at, fate) in fates.iter().enumerate() {
            if let Fate::Through { session: its, .. } = fate
                && *its == session
                && let Some(bytes) = burst.bytes(at)
            {
                (packets[count], places[count]) = (bytes, at);
                count += 1;
            }
        }
        let mut coded = [Shim::default(); MAX_BURST_PKTS];
        self.coders.add(session, now_ns, &packets[..count], &mut coded[..count]);
        for (shim, place) in coded[..count].iter().zip(places) {
            shims[place] = *shim;
        }
    }

    /// Puts shim and outer headers in front of an inner packet.
    fn wrap(&mut self, packet: &mut Packet<'_>, shim: &Shim, tos: u8) -> Action {
        let inner_bytes = packet.len();
        let Ok(front) = packet.push_front(self.front_bytes()) else {
            // There was room when it was judged.
            self.counts.no_headroom_pkts += 1;
            return Action::Drop;
        };
        front[self.encapsulation.header_bytes()..].copy_from_slice(shim);
        self.encapsulation.write(packet.bytes_mut(), tos);
        packet.set_flow_hash(self.encapsulation.flow_hash());
        self.counts.data_pkts += 1;
        self.counts.data_bytes += inner_bytes as u64;
        self.onward()
    }

    /// Codes and sends the later pieces of packets that were cut.
    fn send_pieces(&mut self, ctx: &mut Context<'_>) {
        let mut pieces = std::mem::take(&mut self.pieces);
        for piece in pieces.drain(..) {
            let mut shim = [Shim::default()];
            if let Ok(bytes) = ctx.held_bytes(piece.id) {
                self.coders.add(piece.session, ctx.now_ns(), &[bytes], &mut shim);
            }
            if let Ok(mut packet) = ctx.held(piece.id) {
                let action = self.wrap(&mut packet, &shim[0], piece.tos);
                // It is held: it was just found.
                let _ = ctx.release(piece.id, action);
            }
        }
        self.pieces = pieces;
    }

    /// Sends the parity packets that are ready.
    fn send_parity(&mut self, ctx: &mut Context<'_>) {
        let (onward, now_ns) = (self.onward(), ctx.now_ns());
        let header = &[0; HEADER_BYTES_MAX][..self.encapsulation.header_bytes()];
        while let Some((payload, tos)) = self.coders.next_parity(now_ns) {
            let Some(id) = self.stock.make(ctx, &[header, payload]) else { continue };
            let Ok(mut packet) = ctx.held(id) else { continue };
            self.encapsulation.write(packet.bytes_mut(), tos);
            packet.set_flow_hash(self.encapsulation.flow_hash());
            self.counts.parity_pkts += 1;
            self.counts.parity_bytes += (packet.len() - header.len()) as u64;
            // It is held: it was just found.
            let _ = ctx.release(id, onward);
        }
    }
}

/// Whether a frame says that it carries an IP packet.
fn is_ip(headers: &Headers) -> bool {
    matches!(headers.ethertype, ethertype::IPV4 | ethertype::IPV6)
}

/// Cuts a packet down to these bytes of it.
fn cut_to(packet: &mut Packet<'_>, from: usize, to: usize) -> bool {
    let behind = packet.len().saturating_sub(to);
    packet.trim_back(behind).is_ok() && packet.pop_front(from).is_ok()
}
