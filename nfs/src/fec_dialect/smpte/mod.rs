//! Adds the repair packets of SMPTE ST 2022-1 to RTP streams, or brings lost packets back by them.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use millrace_fec::dialect::ConfigError;
use millrace_fec::dialect::smpte::{
    COLUMN_PORT_OFFSET, Decoder, DecoderConfig, DecoderStats, Encoder, EncoderConfig, EncoderStats,
    Matrix, ROW_PORT_OFFSET, Verdict,
};
use millrace_fec::kernel::Kernel;
use nflib::settings::{self, Setting, Settings};
use nflib::{Action, Burst, Context, NetworkFunction, NfError, Setup};

use super::datagram::{Datagram, Template};
use super::sessions::{Session, Sessions};
use super::{Counts, add, send, text};
use crate::tunnel::stock::Stock;

/// Longest RTP packet: as long as an Ethernet frame lets it be, and its repair packet 16 bytes more.
const LONGEST_BYTES: usize = 1500;
/// How often buffers are looked through that are kept too long.
const TICK: Duration = Duration::from_millis(10);

/// Options of `fec-smpte`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What to do with the streams
    #[arg(long, value_enum)]
    pub mode: Mode,
    /// UDP port that media go to; repair packets of columns go two above it, those of rows four above
    #[arg(long, value_name = "PORT", default_value_t = 5000)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=65_531))]
    pub port: u16,
    /// With protect: L, packets from one to the next of a column, 1 to 20
    #[arg(long, value_name = "PACKETS", default_value_t = 5)]
    pub columns: u8,
    /// With protect: D, packets of a column, 4 to 20; L times D is at most 100
    #[arg(long, value_name = "PACKETS", default_value_t = 5)]
    pub rows: u8,
    /// With protect: no repair packets of rows, only of columns
    #[arg(long)]
    pub columns_only: bool,
    /// With repair: let repair packets pass, for others further on
    #[arg(long)]
    pub keep_repair: bool,
    /// Streams at a time; those beyond pass as they are
    #[arg(long, value_name = "STREAMS", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub streams: u32,
    /// Empty buffers to have in stock
    #[arg(long, value_name = "PACKETS", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub stock_pkts: u32,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Add repair packets
    Protect,
    /// Bring lost packets back, and take repair packets out
    Repair,
}

/// Source and destination of a stream, whose repair packets may come from another port.
type Stream = (IpAddr, IpAddr);

/// What of a stream a datagram is, by its port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Media,
    Repair,
}

/// What a stream has, by mode.
enum Coder {
    Protect(Encoder),
    /// With the headers of its newest media packet.
    Repair(Box<Decoder>, Option<(Template, u32)>),
}

impl Session for Coder {
    fn counts(&self) -> Counts {
        match self {
            Self::Protect(encoder) => {
                let EncoderStats { media_pkts, repair_pkts, unprotected_pkts, broken_matrices } =
                    encoder.stats();
                vec![
                    ("media", media_pkts),
                    ("repair", repair_pkts),
                    ("unprotected", unprotected_pkts),
                    ("broken_matrices", broken_matrices),
                ]
            }
            Self::Repair(decoder, _) => repair_counts(decoder.stats()),
        }
    }
}

fn repair_counts(stats: DecoderStats) -> Counts {
    vec![
        ("media", stats.media_pkts),
        ("column_repair", stats.column_repair_pkts),
        ("row_repair", stats.row_repair_pkts),
        ("recovered", stats.recovered_pkts),
        ("unrecovered", stats.unrecovered_pkts),
        ("duplicate", stats.duplicate_pkts),
        ("late", stats.late_pkts),
        ("implausible", stats.implausible_pkts),
        ("rejected", stats.rejected_pkts),
    ]
}

/// What streams are begun with.
#[derive(Clone, Copy)]
struct Config {
    mode: Mode,
    encoder: EncoderConfig,
    kernel: Kernel,
}

impl Config {
    fn begin(&self) -> Result<Coder, ConfigError> {
        Ok(match self.mode {
            Mode::Protect => Coder::Protect(Encoder::new(self.encoder, self.kernel)?),
            Mode::Repair => {
                let config = DecoderConfig { longest_bytes: LONGEST_BYTES };
                Coder::Repair(Box::new(Decoder::new(config, self.kernel)?), None)
            }
        })
    }
}

/// The NF.
pub struct Smpte {
    port: u16,
    keep_repair: bool,
    config: Config,
    streams: Sessions<Stream, Coder>,
    stock: Stock,
    stock_pkts: u32,
    identification: u16,
}

impl Smpte {
    /// # Errors
    /// The matrix is none of the standard's, as one line.
    pub fn new(options: &Options) -> Result<Self, NfError> {
        let matrix = Matrix::new(options.columns, options.rows, !options.columns_only)
            .map_err(|error| NfError::new(format!("fec-smpte: {error}")))?;
        Ok(Self {
            port: options.port,
            keep_repair: options.keep_repair,
            config: Config {
                mode: options.mode,
                encoder: EncoderConfig { matrix, longest_bytes: LONGEST_BYTES },
                kernel: Kernel::best(),
            },
            streams: Sessions::new(options.streams),
            stock: Stock::new(options.stock_pkts as usize),
            stock_pkts: options.stock_pkts,
            identification: 0,
        })
    }

    /// What of a stream a datagram is. To what is sent here for protection repair packets are added; those
    /// that others have added already are not touched.
    fn part(&self, datagram: &Datagram) -> Option<Part> {
        let repairs = [self.port + COLUMN_PORT_OFFSET, self.port + ROW_PORT_OFFSET];
        match datagram.ports.1 {
            port if port == self.port => Some(Part::Media),
            port if repairs.contains(&port) && self.config.mode == Mode::Repair => {
                Some(Part::Repair)
            }
            _ => None,
        }
    }

    /// Decides about a datagram of a stream, and sends what it makes possible.
    fn work(
        &mut self,
        part: Part,
        datagram: &Datagram,
        at: usize,
        burst: &mut Burst<'_>,
        ctx: &mut Context<'_>,
    ) {
        let Some(mut packet) = burst.packet(at) else { return };
        let stream = datagram.addresses;
        let session = match part {
            Part::Media => self.streams.of(stream, ctx.now_ns(), || self.config.begin().ok()),
            Part::Repair => self.streams.known(&stream),
        };
        let Some(coder) = session else {
            burst.decide(at, Action::Next, ctx);
            return;
        };
        let frame = packet.bytes();
        let headers = Template::of(datagram, frame).map(|headers| (headers, packet.flow_hash()));
        let payload = frame.get(datagram.payload.clone()).unwrap_or_default();
        let action = match (&mut *coder, part) {
            (Coder::Protect(encoder), _) => {
                // What is no RTP passes, too.
                let _ = encoder.add(payload);
                Action::Next
            }
            (Coder::Repair(decoder, template), Part::Media) => {
                template.clone_from(&headers);
                match decoder.media(payload) {
                    Ok(Verdict::Duplicate) => Action::Drop,
                    Ok(Verdict::Deliver) | Err(_) => Action::Next,
                }
            }
            (Coder::Repair(decoder, _), Part::Repair) => match decoder.repair(payload) {
                // It may be something else, although it comes to this port.
                Err(_) => Action::Next,
                Ok(()) if self.keep_repair => Action::Next,
                Ok(()) => self.stock.leave(&mut packet, ctx),
            },
        };
        burst.decide(at, action, ctx);
        self.send_made(stream, headers, ctx);
    }

    /// Sends repair packets, or packets brought back, right behind the packet that made them possible.
    fn send_made(
        &mut self,
        stream: Stream,
        headers: Option<(Template, u32)>,
        ctx: &mut Context<'_>,
    ) {
        let Self { streams, stock, identification, port, .. } = self;
        let mut send = |template: &mut Template, payload: &[u8], flow_hash: u32| {
            *identification = identification.wrapping_add(1);
            template.set_identification(*identification);
            send(stock, template, payload, flow_hash, ctx);
        };
        match (streams.known(&stream), headers) {
            (Some(Coder::Protect(encoder)), Some((mut template, flow_hash))) => {
                while let Some(repair) = encoder.next_repair() {
                    template.set_dst_port(*port + repair.direction.port_offset());
                    send(&mut template, repair.payload, flow_hash);
                }
            }
            (Some(Coder::Repair(decoder, Some((template, flow_hash)))), _) => {
                while let Some(payload) = decoder.next_recovered() {
                    send(template, payload, *flow_hash);
                }
            }
            _ => {}
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = self.streams.counts();
        add(&mut counts, &[("no_buffer_pkts", self.stock.no_buffer_pkts())]);
        counts
    }
}

impl Settings for Smpte {
    const KEYS: &'static [Setting] =
        &[Setting { key: "counts", help: "packets by what became of them, not to be set" }];

    fn get(&self, _: &str) -> String {
        text(&self.counts())
    }

    fn set(&mut self, _: &str, _: &str) -> Result<(), String> {
        Err("it only counts".to_owned())
    }
}

impl NetworkFunction for Smpte {
    fn setup(&mut self, setup: &Setup) -> Result<(), NfError> {
        setup.must_change_packets()?;
        self.stock.forget();
        Ok(())
    }

    fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
        for at in 0..burst.len() {
            let Some(packet) = burst.packet(at) else { continue };
            let datagram = Datagram::parse(packet.bytes());
            match datagram.and_then(|datagram| Some((self.part(&datagram)?, datagram))) {
                Some((part, datagram)) => self.work(part, &datagram, at, burst, ctx),
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
