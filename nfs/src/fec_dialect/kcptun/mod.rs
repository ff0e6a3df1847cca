//! Adds kcptun's forward error correction to KCP sessions, or takes it off and brings lost packets back.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use millrace_fec::dialect::ConfigError;
use millrace_fec::dialect::kcptun::{
    Decoder, DecoderConfig, DecoderStats, Encoder, EncoderConfig, EncoderStats, Envelope,
    OVERHEAD_BYTES, Verdict,
};
use millrace_fec::kernel::Kernel;
use nflib::settings::{self, Setting, Settings};
use nflib::{Action, Burst, Context, NetworkFunction, NfError, Packet, Setup};

use super::datagram::{Datagram, Template};
use super::sessions::{Session, Sessions};
use super::{Counts, add, send, text};
use crate::tunnel::stock::Stock;

/// Longest KCP packet: kcptun's `--mtu` is at most this.
const LONGEST_BYTES: usize = 1500;
/// How often buffers are looked through that are kept too long.
const TICK: Duration = Duration::from_millis(10);

/// Options of `fec-kcptun`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What to do with the datagrams
    #[arg(long, value_enum)]
    pub mode: Mode,
    /// UDP port of the kcptun server: datagrams to it and from it are looked at
    #[arg(long, value_name = "PORT", default_value_t = 29_900)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Data packets of a block, as kcptun's option of that name: 1 to 64
    #[arg(long, value_name = "PACKETS", default_value_t = 10)]
    pub datashard: usize,
    /// Parity packets of a block, as kcptun's option of that name: 1 to 16
    #[arg(long, value_name = "PACKETS", default_value_t = 3)]
    pub parityshard: usize,
    /// The same as kcptun's: what is encrypted cannot be worked on
    #[arg(long, value_enum, default_value_t = Crypt::None)]
    pub crypt: Crypt,
    /// Blocks that are kept while packets of them are missing
    #[arg(long, value_name = "BLOCKS", default_value_t = 16)]
    pub blocks: usize,
    /// Sessions at a time, each one direction of a client; those beyond pass as they are
    #[arg(long, value_name = "SESSIONS", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub sessions: u32,
    /// Empty buffers to have in stock
    #[arg(long, value_name = "PACKETS", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub stock_pkts: u32,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Add it to sessions that have none
    Add,
    /// Take it off, and bring lost packets back
    Strip,
}

/// What stands before the framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Crypt {
    /// A checksum
    None,
    /// Nothing
    Null,
}

/// One direction of a client: source and destination.
type Flow = ((IpAddr, u16), (IpAddr, u16));

/// What a session has, by mode.
enum Coder {
    Add(Encoder),
    Strip(Box<Decoder>),
}

impl Session for Coder {
    fn counts(&self) -> Counts {
        match self {
            Self::Add(encoder) => {
                let EncoderStats { data_pkts, parity_pkts, unprotected_pkts } = encoder.stats();
                vec![
                    ("data", data_pkts),
                    ("parity", parity_pkts),
                    ("unprotected", unprotected_pkts),
                ]
            }
            Self::Strip(decoder) => strip_counts(decoder.stats()),
        }
    }
}

fn strip_counts(stats: DecoderStats) -> Counts {
    vec![
        ("data", stats.data_pkts),
        ("parity", stats.parity_pkts),
        ("plain", stats.plain_pkts),
        ("recovered", stats.recovered_pkts),
        ("unrecovered", stats.unrecovered_pkts),
        ("duplicate", stats.duplicate_pkts),
        ("late", stats.late_pkts),
        ("out_of_step", stats.out_of_step_pkts),
        ("implausible", stats.implausible_pkts),
        ("rejected", stats.rejected_pkts),
    ]
}

/// What sessions are begun with.
#[derive(Clone, Copy)]
struct Config {
    mode: Mode,
    encoder: EncoderConfig,
    decoder: DecoderConfig,
    kernel: Kernel,
}

impl Config {
    fn begin(&self) -> Result<Coder, ConfigError> {
        Ok(match self.mode {
            Mode::Add => Coder::Add(Encoder::new(self.encoder, self.kernel)?),
            Mode::Strip => Coder::Strip(Box::new(Decoder::new(self.decoder, self.kernel)?)),
        })
    }
}

/// The NF.
pub struct Kcptun {
    port: u16,
    config: Config,
    sessions: Sessions<Flow, Coder>,
    stock: Stock,
    stock_pkts: u32,
    identification: u16,
}

impl Kcptun {
    /// # Errors
    /// k, m or the number of blocks is out of range, as one line.
    pub fn new(options: &Options) -> Result<Self, NfError> {
        let Options { datashard: k, parityshard: m, blocks, .. } = *options;
        let envelope = match options.crypt {
            Crypt::None => Envelope::Checksum,
            Crypt::Null => Envelope::Bare,
        };
        let config = Config {
            mode: options.mode,
            encoder: EncoderConfig { k, m, envelope, longest_bytes: LONGEST_BYTES },
            decoder: DecoderConfig { k, m, envelope, longest_bytes: LONGEST_BYTES, blocks },
            kernel: Kernel::best(),
        };
        config.begin().map_err(|error| NfError::new(format!("fec-kcptun: {error}")))?;
        Ok(Self {
            port: options.port,
            config,
            sessions: Sessions::new(options.sessions),
            stock: Stock::new(options.stock_pkts as usize),
            stock_pkts: options.stock_pkts,
            identification: 0,
        })
    }

    /// Decides about a datagram of a session, and sends what it makes possible.
    fn work(
        &mut self,
        datagram: &Datagram,
        at: usize,
        burst: &mut Burst<'_>,
        ctx: &mut Context<'_>,
    ) {
        let Some(mut packet) = burst.packet(at) else { return };
        let ((src, dst), (src_port, dst_port)) = (datagram.addresses, datagram.ports);
        let flow = ((src, src_port), (dst, dst_port));
        let template = Template::of(datagram, packet.bytes());
        let flow_hash = packet.flow_hash();
        let begin = || self.config.begin().ok();
        let action = match self.sessions.of(flow, ctx.now_ns(), begin) {
            None => Action::Next,
            Some(Coder::Add(encoder)) => add_framing(encoder, &self.config, datagram, &mut packet),
            Some(Coder::Strip(decoder)) => {
                match strip_framing(decoder, &self.config, datagram, &mut packet) {
                    // Its buffer does for what it brings back.
                    None => self.stock.leave(&mut packet, ctx),
                    Some(action) => action,
                }
            }
        };
        burst.decide(at, action, ctx);
        if let Some(template) = template {
            self.send_made(flow, template, flow_hash, ctx);
        }
    }

    /// Sends parity packets, or packets brought back, right behind the packet that made them possible.
    fn send_made(
        &mut self,
        flow: Flow,
        mut template: Template,
        flow_hash: u32,
        ctx: &mut Context<'_>,
    ) {
        let Some(session) = self.sessions.known(&flow) else { return };
        loop {
            let payload = match session {
                Coder::Add(encoder) => encoder.next_parity(),
                Coder::Strip(decoder) => decoder.next_recovered(),
            };
            let Some(payload) = payload else { return };
            self.identification = self.identification.wrapping_add(1);
            template.set_identification(self.identification);
            send(&mut self.stock, &template, payload, flow_hash, ctx);
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = self.sessions.counts();
        add(&mut counts, &[("no_buffer_pkts", self.stock.no_buffer_pkts())]);
        counts
    }
}

/// Puts the framing into a packet; one that is not to be protected, or has no room for it, stays as it is.
fn add_framing(
    encoder: &mut Encoder,
    config: &Config,
    datagram: &Datagram,
    packet: &mut Packet<'_>,
) -> Action {
    let payload = packet.bytes().get(datagram.payload.clone()).unwrap_or_default();
    let padding = packet.len() - datagram.payload.end;
    if encoder.check(payload).is_err()
        || packet.headroom_bytes() < OVERHEAD_BYTES
        || packet.trim_back(padding).is_err()
        || packet.push_front(OVERHEAD_BYTES).is_err()
    {
        return Action::Next;
    }
    let front = datagram.payload.start + config.encoder.envelope.bytes();
    let frame = packet.bytes_mut();
    frame.copy_within(OVERHEAD_BYTES..OVERHEAD_BYTES + front, 0);
    let is_sealed = encoder.seal(&mut frame[datagram.payload.start..]).is_ok();
    if is_sealed && datagram.finish(frame) { Action::Next } else { Action::Drop }
}

/// Takes the framing out of a packet; `None` for one that has done its work.
fn strip_framing(
    decoder: &mut Decoder,
    config: &Config,
    datagram: &Datagram,
    packet: &mut Packet<'_>,
) -> Option<Action> {
    let payload = packet.bytes().get(datagram.payload.clone()).unwrap_or_default();
    match decoder.receive(payload) {
        Verdict::Plain => return Some(Action::Next),
        Verdict::Parity => return None,
        Verdict::Duplicate | Verdict::Reject(_) => return Some(Action::Drop),
        Verdict::Deliver { .. } => {}
    }
    let envelope = config.decoder.envelope;
    let front = datagram.payload.start + envelope.bytes();
    let padding = packet.len() - datagram.payload.end;
    packet.bytes_mut().copy_within(..front, OVERHEAD_BYTES);
    if packet.trim_back(padding).is_err() || packet.pop_front(OVERHEAD_BYTES).is_err() {
        return Some(Action::Drop);
    }
    let frame = packet.bytes_mut();
    let is_sealed = envelope.seal(&mut frame[datagram.payload.start..]).is_ok();
    Some(if is_sealed && datagram.finish(frame) { Action::Next } else { Action::Drop })
}

impl Settings for Kcptun {
    const KEYS: &'static [Setting] =
        &[Setting { key: "counts", help: "packets by what became of them, not to be set" }];

    fn get(&self, _: &str) -> String {
        text(&self.counts())
    }

    fn set(&mut self, _: &str, _: &str) -> Result<(), String> {
        Err("it only counts".to_owned())
    }
}

impl NetworkFunction for Kcptun {
    fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
        setup.must_change_packets()?;
        self.stock.forget();
        Ok(())
    }

    fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
        for at in 0..burst.len() {
            let Some(packet) = burst.packet(at) else { continue };
            let is_ours =
                |datagram: &Datagram| [datagram.ports.0, datagram.ports.1].contains(&self.port);
            match Datagram::parse(packet.bytes()).filter(is_ours) {
                Some(datagram) => self.work(&datagram, at, burst, ctx),
                None => _ = burst.decide(at, Action::Next, ctx),
            }
        }
    }

    fn hold_limit_pkts(&self) -> usize {
        self.stock.hold_limit_pkts()
    }

    fn stock_pkts(&self) -> u32 {
        self.stock_pkts
    }

    fn tick_interval(&self) -> Option<Duration> {
        Some(TICK)
    }

    fn tick(&mut self, ctx: &mut Context<'_>) {
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
