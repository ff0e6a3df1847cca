//! What becomes of a packet that comes to `fec-encode`: into the tunnel, past it, or back.
#![forbid(unsafe_code)]

use nflib::descriptor::NO_PORT;
use nflib::headers::{Headers, Network, ethertype};
use nflib::{Action, Context, Packet};

use super::{Fate, FecEncode, PIECES_MAX, Piece};
use crate::tunnel::fragment::{self, Pieces};
use crate::tunnel::{ecn, mss, outer, too_big};

impl FecEncode {
    /// Judges a packet, and cuts it down to the IP packet in it if it is to go through the tunnel.
    pub(super) fn judge(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Fate {
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

    fn admit(&mut self, packet: &mut Packet<'_>, headers: &Headers, ctx: &mut Context<'_>) -> Fate {
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
