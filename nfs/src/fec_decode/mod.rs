//! Takes IP packets out of a UDP tunnel, and brings lost ones back by its parity packets.
//!
//! A packet that comes is let out at once, in the buffer it came in. A parity packet ends here, and
//! leaves its buffer: when a block loses e packets, at least e of its parity packets must have come
//! before they can be brought back, so what is recovered travels in the buffers of the parity packets
//! that recovered it, and needs no others.
#![forbid(unsafe_code)]

mod counts;
mod options;
mod peers;

use std::time::Duration;

use nflib::control::ServiceRef;
use nflib::descriptor::NO_PORT;
use nflib::headers::{ETHERNET_BYTES, Headers, Network, ethertype};
use nflib::settings::{self, Setting, Settings};
use nflib::{Action, Burst, Context, NetworkFunction, NfError, Packet, Setup};

use millrace_fec::decoder::Verdict;

use crate::fec::{self, End, Switch};
use crate::tunnel::ecn::{self, Combined, Ecn};
use crate::tunnel::outer::{self, Datagram, HEADER_BYTES_MAX};
use crate::tunnel::stock::Stock;
use crate::tunnel::{flow_hash, mss, neighbours};

use counts::Counts;
pub use options::Options;
use peers::{Back, Peers};

/// Buffers of parity packets that are kept for what they bring back: some blocks' worth.
const LEFTOVERS_MAX: usize = 256;

/// The NF.
pub struct FecDecode {
    options: Options,
    end: End,
    peers: Peers,
    stock: Stock,
    /// Ethernet header of what is let out, but for its type.
    ethernet: [u8; ETHERNET_BYTES],
    mss_clamp: bool,
    counts: Counts,
}

impl FecDecode {
    /// # Errors
    /// One line about the first option that is wrong.
    pub fn new(options: &Options) -> Result<Self, NfError> {
        for &peer in &options.peers {
            fec::check_versions(options.end.local, peer)?;
        }
        let end = End::new(&options.end)?;
        let mut ethernet = [0; ETHERNET_BYTES];
        ethernet[..6].copy_from_slice(&options.next_hop_mac.0);
        ethernet[6..12].copy_from_slice(&options.inner_mac.unwrap_or(options.end.mac).0);
        Ok(Self {
            peers: Peers::new(options, &end)?,
            stock: Stock::new(options.stock, LEFTOVERS_MAX),
            ethernet,
            mss_clamp: options.end.mss_clamp == Switch::On,
            counts: Counts::default(),
            end,
            options: options.clone(),
        })
    }

    /// Where what is let out goes.
    fn onward(&self) -> Action {
        self.options.to_port.map_or(Action::Next, Action::Out)
    }

    fn judge(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
        let headers = Headers::parse(packet.bytes());
        if let Some(outer) = outer::datagram(packet.bytes(), &headers)
            && outer.to == self.options.end.local
        {
            return self.receive(packet, &headers, outer, ctx);
        }
        let (local, mac) = (self.options.end.local.ip(), self.options.end.mac.0);
        match neighbours::answer(packet, &headers, local, mac) {
            Ok(false) => {
                self.counts.other_pkts += 1;
                if self.options.drop_others { Action::Drop } else { Action::Next }
            }
            Ok(true) if packet.ingress_port() != NO_PORT => {
                self.counts.neighbour_pkts += 1;
                Action::Out(packet.ingress_port())
            }
            _ => Action::Drop,
        }
    }

    /// A datagram for this end.
    fn receive(
        &mut self,
        packet: &mut Packet<'_>,
        headers: &Headers,
        outer: Datagram,
        ctx: &mut Context<'_>,
    ) -> Action {
        let Some(peer) = self.peers.find(outer.from) else {
            self.counts.stranger_pkts += 1;
            return Action::Drop;
        };
        let absent = self.options.end.udp_checksum == outer::UdpChecksum::Off;
        if !outer::checksums_ok(packet.bytes(), headers, absent) {
            self.counts.damaged_pkts += 1;
            return Action::Drop;
        }
        let peer = self.peers.get_mut(peer);
        let verdict = peer.decoder.receive(ctx.now_ns(), &packet.bytes()[outer.payload.clone()]);
        if !matches!(verdict, Verdict::Reject(_)) {
            // The way back is the way that it came.
            peer.back = Some(Back { port: packet.ingress_port(), mac: headers.src_mac });
        }
        match verdict {
            Verdict::Deliver { inner } => {
                let at = outer.payload.start;
                self.let_out(packet, at + inner.start..at + inner.end, outer.tos)
            }
            Verdict::Repair | Verdict::Kept => self.stock.leave(packet, ctx),
            Verdict::Report => match peer.reports_to {
                Some(encoder) => {
                    self.counts.report_in_pkts += 1;
                    Action::ToService(encoder)
                }
                None => {
                    self.counts.report_unrouted_pkts += 1;
                    Action::Drop
                }
            },
            Verdict::Duplicate | Verdict::Late | Verdict::Reject(_) => Action::Drop,
        }
    }
}
