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

use nflib::control::{ServiceRef, StateSpec};
use nflib::descriptor::NO_PORT;
use nflib::headers::{ETHERNET_BYTES, Headers, Network, ethertype};
use nflib::settings::{self, Setting, Settings};
use nflib::{Action, Burst, Context, NetworkFunction, NfError, Packet, Setup};

use millrace_fec::decoder::Verdict;
use millrace_fec::wire::SOURCE_SHIM_BYTES;

use crate::fec::{self, End, Switch};
use crate::tunnel::ecn::{self, Combined, Ecn};
use crate::tunnel::outer::{self, Datagram, HEADER_BYTES_MAX};
use crate::tunnel::stock::Stock;
use crate::tunnel::{flow_hash, mss, neighbours};

use counts::Counts;
pub use options::Options;
use peers::{Back, Peers};

/// Buffers of parity packets that are kept for what they bring back: some blocks' worth. Those of packets
/// that wait for their turn come on top.
const LEFTOVERS_MAX: usize = 256;
/// Time between ticks.
const TICK_MS: u16 = 10;

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
    /// It was set up before: a manager that comes back finds it in the same run.
    began: bool,
}

impl FecDecode {
    /// # Errors
    /// One line about the first option that is wrong.
    pub fn new(options: &Options) -> Result<Self, NfError> {
        for &peer in &options.peers {
            fec::check_versions(options.end.local, peer)?;
        }
        let end = End::new(&options.end)?;
        let waiting = options.in_order.map_or(0, |bound| bound.pkts.into());
        let mut ethernet = [0; ETHERNET_BYTES];
        ethernet[..6].copy_from_slice(&options.next_hop_mac.0);
        ethernet[6..12].copy_from_slice(&options.inner_mac.unwrap_or(options.end.mac).0);
        Ok(Self {
            peers: Peers::new(options, &end, fec::run_number(None))?,
            stock: Stock::new(LEFTOVERS_MAX + waiting),
            ethernet,
            mss_clamp: options.end.mss_clamp == Switch::On,
            counts: Counts::default(),
            began: false,
            end,
            options: options.clone(),
        })
    }

    /// Where what is let out goes.
    fn onward(&self) -> Action {
        self.options.to_port.map_or(Action::Next, Action::Out)
    }

    fn judge(
        &mut self,
        packet: &mut Packet<'_>,
        from: &mut Option<usize>,
        ctx: &mut Context<'_>,
    ) -> Action {
        let headers = Headers::parse(packet.bytes());
        if let Some(outer) = outer::datagram(packet.bytes(), &headers)
            && outer.to == self.options.end.local
        {
            return self.receive(packet, &headers, outer, from, ctx);
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

    /// A datagram for this end. Notes from which peer it is.
    fn receive(
        &mut self,
        packet: &mut Packet<'_>,
        headers: &Headers,
        outer: Datagram,
        from: &mut Option<usize>,
        ctx: &mut Context<'_>,
    ) -> Action {
        *from = self.peers.find(outer.from);
        let Some(number) = *from else {
            self.counts.stranger_pkts += 1;
            return Action::Drop;
        };
        let absent = self.options.end.udp_checksum == outer::UdpChecksum::Off;
        if !outer::checksums_ok(packet.bytes(), headers, absent) {
            self.counts.damaged_pkts += 1;
            return Action::Drop;
        }
        let peer = self.peers.get_mut(number);
        let payload = &packet.bytes()[outer.payload.clone()];
        let verdict = peer.decoder.receive(ctx.now_ns(), payload);
        let is_its = matches!(verdict, Verdict::Deliver { .. } | Verdict::Held | Verdict::Repair);
        if is_its && packet.ingress_port() != NO_PORT {
            peer.back = Some(Back { port: packet.ingress_port(), mac: headers.src_mac });
        }
        match verdict {
            Verdict::Deliver { inner_offset } => {
                self.let_out(packet, outer.payload.start + inner_offset, &outer)
            }
            Verdict::Repair => self.stock.leave(packet, ctx),
            Verdict::Held => {
                peer.marks_owed += u32::from(owes_mark(payload, outer.tos));
                self.stock.leave(packet, ctx)
            }
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

    /// Lets the inner packet out that begins at `at` and ends with the outer payload, in its buffer.
    fn let_out(&mut self, packet: &mut Packet<'_>, at: usize, outer: &Datagram) -> Action {
        let inner = &mut packet.bytes_mut()[at..outer.payload.end];
        if !self.mark(inner, outer.tos) {
            return Action::Drop;
        }
        let ethernet = ethernet_for(self.ethernet, inner);
        let behind = packet.len() - outer.payload.end;
        if packet.trim_back(behind).is_err() || packet.pop_front(at).is_err() {
            return Action::Drop;
        }
        match packet.push_front(ETHERNET_BYTES) {
            Ok(front) => front.copy_from_slice(&ethernet),
            Err(_) => {
                self.counts.no_headroom_pkts += 1;
                return Action::Drop;
            }
        }
        if !self.finish(packet) {
            return Action::Drop;
        }
        self.counts.delivered_pkts += 1;
        self.onward()
    }

    /// Makes one of the two congestion fields. False when the packet has to be dropped.
    fn mark(&mut self, inner: &mut [u8], outer_tos: u8) -> bool {
        let before = Ecn::of(ecn::tos_of(inner));
        let (combined, alarm) = ecn::combine(before, Ecn::of(outer_tos));
        self.counts.ecn_alarm_pkts += u64::from(alarm);
        match combined {
            Combined::Drop => {
                self.counts.ecn_dropped_pkts += 1;
                return false;
            }
            Combined::Out(after) if after != before => {
                ecn::set(inner, after);
                self.counts.ecn_marked_pkts += u64::from(after == Ecn::Ce);
            }
            Combined::Out(_) => {}
        }
        true
    }

    /// The last that is done to a packet that is let out. False when it is none of IP.
    fn finish(&mut self, packet: &mut Packet<'_>) -> bool {
        let headers = Headers::parse(packet.bytes());
        if headers.network == Network::None {
            self.counts.malformed_pkts += 1;
            return false;
        }
        let mtu_bytes = self.end.inner_mtu_bytes.into();
        if self.mss_clamp && mss::clamp(packet.bytes_mut(), &headers, mtu_bytes) {
            self.counts.mss_clamped_pkts += 1;
        }
        packet.set_flow_hash(flow_hash(&headers));
        true
    }

    /// Lets out what a peer's decoder has brought back, or kept until its turn.
    fn let_out_recovered(&mut self, number: usize, ctx: &mut Context<'_>) {
        while let Some(inner) = self.peers.get_mut(number).decoder.next_recovered(ctx.now_ns()) {
            let ethernet = ethernet_for(self.ethernet, inner);
            let Some(id) = self.stock.make(ctx, &[&ethernet, inner]) else { continue };
            let Ok(mut packet) = ctx.held(id) else { continue };
            let mut action = Action::Drop;
            if self.finish(&mut packet) {
                self.pay_mark(number, &mut packet.bytes_mut()[ETHERNET_BYTES..]);
                self.counts.recovered_pkts += 1;
                action = self.onward();
            }
            // It is held: it was just made.
            let _ = ctx.release(id, action);
        }
    }

    /// Gives a packet a mark that is owed, if it takes marks.
    fn pay_mark(&mut self, number: usize, inner: &mut [u8]) {
        let peer = self.peers.get_mut(number);
        let takes = matches!(Ecn::of(ecn::tos_of(inner)), Ecn::Ect0 | Ecn::Ect1);
        if peer.marks_owed > 0 && takes {
            peer.marks_owed -= 1;
            ecn::set(inner, Ecn::Ce);
            self.counts.ecn_marked_pkts += 1;
        }
    }

    /// Sends the reports to a peer that are due.
    fn send_reports(&mut self, number: usize, ctx: &mut Context<'_>) {
        let peer = self.peers.get_mut(number);
        while let Some(payload) = peer.decoder.next_report(ctx.now_ns()) {
            let Some(back) = peer.back else {
                self.counts.report_unsent_pkts += 1;
                continue;
            };
            let header = &[0; HEADER_BYTES_MAX][..peer.encapsulation.header_bytes()];
            let Some(id) = self.stock.make(ctx, &[header, payload]) else { continue };
            let Ok(mut packet) = ctx.held(id) else { continue };
            peer.encapsulation.write(packet.bytes_mut(), 0);
            packet.bytes_mut()[..6].copy_from_slice(&back.mac);
            packet.set_flow_hash(peer.encapsulation.flow_hash());
            self.counts.report_out_pkts += 1;
            // It is held: it was just found.
            let _ = ctx.release(id, Action::Out(back.port));
        }
    }
}

/// The Ethernet header for an IP packet.
fn ethernet_for(mut header: [u8; ETHERNET_BYTES], inner: &[u8]) -> [u8; ETHERNET_BYTES] {
    let is_v6 = inner.first().is_some_and(|first| first >> 4 == 6);
    let kind = if is_v6 { ethertype::IPV6 } else { ethertype::IPV4 };
    header[12..].copy_from_slice(&kind.to_be_bytes());
    header
}

/// Whether a packet that waits for its turn was marked on the way, and takes marks: its outer header,
/// which says so, ends now.
fn owes_mark(payload: &[u8], outer_tos: u8) -> bool {
    let inner = payload.get(SOURCE_SHIM_BYTES..).unwrap_or_default();
    let takes = matches!(Ecn::of(ecn::tos_of(inner)), Ecn::Ect0 | Ecn::Ect1);
    takes && Ecn::of(outer_tos) == Ecn::Ce
}

impl Settings for FecDecode {
    const KEYS: &'static [Setting] = &[
        Setting { key: "mss-clamp", help: "lower the segment size of TCP peers: on or off" },
        Setting { key: "peers", help: "what came of each peer's packets; to read only" },
        Setting { key: "counts", help: "packets by what became of them; to read only" },
    ];

    fn get(&self, key: &str) -> String {
        match key {
            "mss-clamp" => settings::switch_text(self.mss_clamp),
            "peers" => self.peers.text(),
            _ => format!("{} no-buffer={}", self.counts, self.stock.no_buffer_pkts()),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        if key != "mss-clamp" {
            return Err("it can only be read".to_owned());
        }
        self.mss_clamp = settings::switch(value)?;
        Ok(())
    }
}

impl NetworkFunction for FecDecode {
    fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
        self.end.check_buffers(setup)?;
        self.stock.forget();
        if !std::mem::replace(&mut self.began, true) {
            let run = fec::run_number(setup.state.as_ref());
            self.peers = Peers::new(&self.options, &self.end, run)?;
        }
        self.peers.route_reports(&setup.jump_services);
        Ok(())
    }

    fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
        for at in 0..burst.len() {
            let Some(mut packet) = burst.packet(at) else { continue };
            let mut from = None;
            let action = self.judge(&mut packet, &mut from, ctx);
            burst.decide(at, action, ctx);
            // Only now: what it brought back may travel in its own buffer.
            if let Some(number) = from {
                self.let_out_recovered(number, ctx);
            }
        }
    }

    fn hold_limit_pkts(&self) -> usize {
        self.stock.hold_limit_pkts()
    }

    fn stock_pkts(&self) -> u32 {
        self.options.stock
    }

    fn state(&self) -> Option<StateSpec> {
        Some(fec::STATE)
    }

    fn jumps_to(&self) -> Vec<ServiceRef> {
        self.options.reports_to.clone()
    }

    fn tick_interval(&self) -> Option<Duration> {
        // In time for the shortest wait for a missing packet, give or take a quarter.
        let ms = self.options.in_order.map_or(TICK_MS, |bound| bound.ms.div_ceil(4).min(TICK_MS));
        Some(Duration::from_millis(ms.into()))
    }

    fn tick(&mut self, ctx: &mut Context<'_>) {
        for number in 0..self.peers.len() {
            let due_ns = self.peers.get_mut(number).decoder.deadline_ns();
            if due_ns.is_some_and(|due_ns| due_ns <= ctx.now_ns()) {
                self.let_out_recovered(number, ctx);
                self.send_reports(number, ctx);
            }
        }
        self.stock.age(ctx);
    }

    fn message(
        &mut self,
        _: Option<u32>,
        payload: &[u8],
        _: &mut Context<'_>,
    ) -> Result<Vec<u8>, String> {
        settings::answer(self, payload)
    }

    fn leaving(&mut self, ctx: &mut Context<'_>) {
        self.stock.give_up(ctx);
    }
}

#[cfg(test)]
mod tests;
