//! Sends IP packets through a UDP tunnel, with parity packets by which the far end brings lost ones back.
//!
//! First each packet of a burst is judged, and what goes into the tunnel is cut down to its IP packet
//! (`judging.rs`). Then the burst is gone through in stretches that end where a block is full: the
//! packets of each session are coded, all at once, get their outer headers, and leave, and behind them the
//! parity packets. No packet is held: what a block needs of it is in the library's sums by then.
#![forbid(unsafe_code)]

mod adaptive;
mod coders;
mod counts;
mod judging;
mod options;

use std::time::Duration;

use nflib::burst::MAX_BURST_PKTS;
use nflib::control::StateSpec;
use nflib::headers::ETHERNET_BYTES;
use nflib::settings::{self, Setting, Settings};
use nflib::{Action, Burst, Context, NetworkFunction, NfError, Packet, PacketId, Setup};

use millrace_fec::wire::SOURCE_SHIM_BYTES;

use crate::fec::{self, End, Switch};
use crate::tunnel::outer::{Encapsulation, Ends, HEADER_BYTES_MAX};
use crate::tunnel::stock::Stock;
use crate::tunnel::too_big;

use coders::Coders;
use counts::Counts;
pub use options::Options;

/// Parts of cut packets that may wait for the end of their burst.
const PIECES_MAX: usize = 4 * MAX_BURST_PKTS;
/// Packets that are coded at once, at most; often fewer, for parity packets are due before. Room for them is
/// made anew each time.
const STRETCH_MAX_PKTS: usize = 64;

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
    /// It was set up before: a manager that comes back finds it in the same run.
    began: bool,
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
            stock: Stock::new(0),
            pieces: Vec::with_capacity(PIECES_MAX),
            limiter: too_big::Limiter::new(),
            mss_clamp: options.end.mss_clamp == Switch::On,
            counts: Counts::default(),
            began: false,
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

    /// Codes and sends packets of a burst, from `from` on, up to where parity packets are due. Returns
    /// the position behind them.
    fn send_stretch(
        &mut self,
        burst: &mut Burst<'_>,
        fates: &[Fate],
        from: usize,
        ctx: &mut Context<'_>,
    ) -> usize {
        let (to, sessions) = self.stretch(fates, from);
        let mut shims = [Shim::default(); STRETCH_MAX_PKTS];
        for session in coders::numbers(sessions) {
            self.code(session, burst, &fates[..to], from, &mut shims, ctx.now_ns());
        }
        for at in from..to {
            let action = match (fates[at], burst.packet(at)) {
                (Fate::Past(action), _) => action,
                (Fate::Through { tos, .. }, Some(mut packet)) => {
                    self.wrap(&mut packet, &shims[at - from], tos)
                }
                (Fate::Through { .. }, None) => Action::Drop,
            };
            burst.decide(at, action, ctx);
        }
        self.send_parity(sessions, ctx);
        to
    }

    /// How far to go from `from` until the first session's parity packets are due, at most
    /// [`STRETCH_MAX_PKTS`], and which sessions have packets on the way: a bit each.
    fn stretch(&mut self, fates: &[Fate], from: usize) -> (usize, u64) {
        let mut left = [0_usize; 64];
        let mut sessions = 0;
        let end = fates.len().min(from + STRETCH_MAX_PKTS);
        for (at, fate) in fates[..end].iter().enumerate().skip(from) {
            let Fate::Through { session, .. } = *fate else { continue };
            let left = &mut left[usize::from(session) % 64];
            if sessions >> session & 1 == 0 {
                sessions |= 1 << session;
                *left = self.coders.packets_to_parity(session);
            }
            *left = left.saturating_sub(1);
            if *left == 0 {
                return (at + 1, sessions);
            }
        }
        (end, sessions)
    }

    /// Codes a session's packets of a stretch, all at once.
    fn code(
        &mut self,
        session: u8,
        burst: &Burst<'_>,
        fates: &[Fate],
        from: usize,
        shims: &mut [Shim; STRETCH_MAX_PKTS],
        now_ns: u64,
    ) {
        let mut packets: [&[u8]; STRETCH_MAX_PKTS] = [&[]; STRETCH_MAX_PKTS];
        let mut places = [0; STRETCH_MAX_PKTS];
        let (mut count, mut newest) = (0, 0);
        for (at, fate) in fates.iter().enumerate().skip(from) {
            if let Fate::Through { session: its, tos } = *fate
                && its == session
                && let Some(bytes) = burst.bytes(at)
            {
                (packets[count], places[count], newest) = (bytes, at - from, tos);
                count += 1;
            }
        }
        let mut coded = [Shim::default(); STRETCH_MAX_PKTS];
        self.coders.add(session, now_ns, &packets[..count], &mut coded[..count], newest);
        for (shim, place) in coded[..count].iter().zip(places) {
            shims[place] = *shim;
        }
    }

    /// Puts shim and outer headers in front of an inner packet.
    fn wrap(&mut self, packet: &mut Packet<'_>, shim: &Shim, tos: u8) -> Action {
        let inner_bytes = packet.len();
        if *shim == Shim::default() {
            // The encoder did not take it, though its length was looked at.
            self.counts.malformed_pkts += 1;
            return Action::Drop;
        }
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
        for Piece { id, session, tos } in pieces.drain(..) {
            let mut shim = [Shim::default()];
            let coded = ctx.held_bytes(id).is_ok_and(|bytes| {
                self.coders.add(session, ctx.now_ns(), &[bytes], &mut shim, tos)
            });
            let action = match ctx.held(id) {
                Ok(mut packet) if coded => self.wrap(&mut packet, &shim[0], tos),
                _ => Action::Drop,
            };
            // It is held: it was made in this burst.
            let _ = ctx.release(id, action);
            self.send_parity(1 << session, ctx);
        }
        self.pieces = pieces;
    }

    /// Sends the parity packets of these sessions, a bit each, that are ready.
    fn send_parity(&mut self, sessions: u64, ctx: &mut Context<'_>) {
        let (onward, now_ns) = (self.onward(), ctx.now_ns());
        let header = &[0; HEADER_BYTES_MAX][..self.encapsulation.header_bytes()];
        for session in coders::numbers(self.coders.live() & sessions) {
            while let Some((payload, tos)) = self.coders.next_parity(session, now_ns) {
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
}

impl Settings for FecEncode {
    const KEYS: &'static [Setting] = &[
        Setting { key: "k", help: "data packets of a block, 1 to 64" },
        Setting { key: "m", help: "parity packets of a block, 1 to 16; ends adaptive" },
        Setting { key: "adaptive", help: "off, or target=1e-4,cap=0.5,floor=1e-4" },
        Setting {
            key: "stride",
            help: "distance of a block's packets: 1 to 32, auto or auto:MOST",
        },
        Setting { key: "mss-clamp", help: "lower the segment size of TCP peers: on or off" },
        Setting { key: "now", help: "what is in use and reported, by session; to read only" },
        Setting { key: "counts", help: "packets by what became of them; to read only" },
    ];

    fn get(&self, key: &str) -> String {
        match key {
            "k" => self.coders.k().to_string(),
            "m" => self.coders.m().to_string(),
            "adaptive" => self.coders.adaptive().map_or("off".to_owned(), |aim| aim.to_string()),
            "stride" => self.coders.stride().to_string(),
            "mss-clamp" => settings::switch_text(self.mss_clamp),
            "now" => self.coders.now(),
            _ => format!("{} no-buffer={}", self.counts, self.stock.no_buffer_pkts()),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let small = |range: &str| value.parse().map_err(|_| format!("expected {range}"));
        match key {
            "k" => self.coders.set_k(small("1 to 64")?),
            "m" => self.coders.set_m(small("1 to 16")?),
            "adaptive" if value == "off" => self.coders.set_adaptive(None),
            "adaptive" => self.coders.set_adaptive(Some(value.parse()?)),
            "stride" => self.coders.set_stride(value.parse()?),
            "mss-clamp" => {
                self.mss_clamp = settings::switch(value)?;
                Ok(())
            }
            _ => Err("it can only be read".to_owned()),
        }
    }
}

impl NetworkFunction for FecEncode {
    fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
        self.end.check_buffers(setup)?;
        let need = self.front_bytes().saturating_sub(ETHERNET_BYTES);
        if usize::from(setup.region.headroom_bytes) < need {
            return Err(NfError::new(format!(
                "pool.headroom_bytes = {}: the outer headers need {need}",
                setup.region.headroom_bytes
            )));
        }
        self.stock.forget();
        if !std::mem::replace(&mut self.began, true) {
            self.coders.begin(fec::run_number(setup.state.as_ref()));
        }
        Ok(())
    }

    fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
        // What the timer closed goes before what comes.
        self.send_parity(u64::MAX, ctx);
        let mut fates = [Fate::Past(Action::Drop); MAX_BURST_PKTS];
        let fates = &mut fates[..burst.len()];
        for (at, fate) in fates.iter_mut().enumerate() {
            if let Some(mut packet) = burst.packet(at) {
                *fate = self.judge(&mut packet, ctx);
            }
        }
        let mut at = 0;
        while at < fates.len() {
            at = self.send_stretch(burst, fates, at, ctx);
        }
        if !self.pieces.is_empty() {
            self.send_pieces(ctx);
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

    fn tick_interval(&self) -> Option<Duration> {
        // Often enough that a block is closed at most a quarter late.
        Some(Duration::from_millis(self.options.flush_ms.into()) / 4)
    }

    fn tick(&mut self, ctx: &mut Context<'_>) {
        self.send_parity(u64::MAX, ctx);
    }

    fn message(
        &mut self,
        _: Option<u32>,
        payload: &[u8],
        ctx: &mut Context<'_>,
    ) -> Result<Vec<u8>, String> {
        if payload.starts_with(b"set") {
            // Blocks of the old shape end here, with their parity.
            self.coders.flush();
            self.send_parity(u64::MAX, ctx);
        }
        settings::answer(self, payload)
    }

    fn leaving(&mut self, ctx: &mut Context<'_>) {
        self.coders.flush();
        self.send_parity(u64::MAX, ctx);
        self.stock.give_up(ctx);
    }
}

#[cfg(test)]
mod tests;
