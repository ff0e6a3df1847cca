//! The encoders of a tunnel: one, or one for each differentiated services code point.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use millrace_fec::adapt::{self, Redundancy};
use millrace_fec::encoder::{Encoder, EncoderConfig, EncoderStats};
use millrace_fec::kernel::Kernel;
use millrace_fec::wire::{SOURCE_SHIM_BYTES, WireError};
use nflib::NfError;

use super::adaptive::Adaptive;
use super::options::{Options, SessionBy, Stride};
use crate::fec::End;

/// One for each code point.
const SESSIONS: usize = 64;
/// A type of service without its congestion field.
const DSCP: u8 = 0xfc;

/// An encoder and what its parity packets are marked with.
struct Session {
    encoder: Encoder,
    /// Type of service of the newest data packet, without its congestion field.
    tos: u8,
}

/// The encoders. One is made when the first packet of its session comes.
pub struct Coders {
    config: EncoderConfig,
    kernel: Kernel,
    epoch: u8,
    by: SessionBy,
    sessions: [Option<Box<Session>>; SESSIONS],
    /// Sessions that there are, a bit each.
    live: u64,
    /// Where `adaptive off` goes back to.
    fixed_m: u8,
}

impl Coders {
    /// # Errors
    /// One line about the first option that is wrong.
    pub fn new(options: &Options, end: &End) -> Result<Self, NfError> {
        let config = EncoderConfig {
            k: options.k,
            redundancy: redundancy(options.adaptive, options.m),
            stride: stride(options.stride),
            flush_ns: u64::from(options.flush_ms) * 1_000_000,
            inner_max_bytes: end.inner_mtu_bytes.into(),
            key: end.key.clone(),
            ..EncoderConfig::default()
        };
        config.check().map_err(|error| NfError::new(error.to_string()))?;
        Ok(Self {
            config,
            kernel: Kernel::best(),
            epoch: 0,
            by: options.session_by,
            sessions: std::array::from_fn(|_| None),
            live: 0,
            fixed_m: options.m,
        })
    }

    /// Names the run of the encoders, before their first packet.
    pub fn begin(&mut self, epoch: u8) {
        self.epoch = epoch;
    }

    /// Which session packets of this type of service belong to.
    #[must_use]
    pub fn session_of(&self, tos: u8) -> u8 {
        match self.by {
            SessionBy::None => 0,
            SessionBy::Dscp => tos >> 2,
        }
    }

    fn session(&mut self, number: u8) -> Option<&mut Session> {
        let place = self.sessions.get_mut(usize::from(number))?;
        if place.is_none() {
            let config = EncoderConfig { session: number.into(), ..self.config.clone() };
            // The configuration was checked.
            let encoder = Encoder::new(config, self.kernel, self.epoch).ok()?;
            *place = Some(Box::new(Session { encoder, tos: 0 }));
            self.live |= 1 << number;
        }
        place.as_deref_mut()
    }

    /// Codes packets of a session, the last of which has this type of service, and writes their shims.
    /// False when they cannot be coded; they have no shims then.
    pub fn add(
        &mut self,
        number: u8,
        now_ns: u64,
        packets: &[&[u8]],
        shims: &mut [[u8; SOURCE_SHIM_BYTES]],
        tos: u8,
    ) -> bool {
        let Some(session) = self.session(number) else { return false };
        session.tos = tos & DSCP;
        session.encoder.add(now_ns, packets, shims).is_ok()
    }

    /// Packets of a session until parity packets come, which are to be sent right behind the last.
    pub fn packets_to_parity(&mut self, number: u8) -> usize {
        self.session(number).map_or(usize::MAX, |session| session.encoder.packets_to_boundary())
    }

    /// The sessions that there are, a bit each.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.live
    }

    /// A session's next parity packet, if one is ready: a UDP payload, and its type of service.
    pub fn next_parity(&mut self, number: u8, now_ns: u64) -> Option<(&[u8], u8)> {
        let session = self.sessions.get_mut(usize::from(number))?.as_deref_mut()?;
        let tos = session.tos;
        session.encoder.next_repair(now_ns).map(|payload| (payload, tos))
    }

    /// Takes a report of the far end, for whichever session it is.
    ///
    /// # Errors
    /// It is none, or of no session that there is.
    pub fn report(&mut self, now_ns: u64, payload: &[u8]) -> Result<(), WireError> {
        let number = payload.get(2..4).and_then(|number| number.first_chunk());
        let number = u16::from_be_bytes(*number.ok_or(WireError::Short)?);
        let session = self.sessions.get_mut(usize::from(number)).and_then(Option::as_mut);
        session.ok_or(WireError::Session)?.encoder.report(now_ns, payload)
    }

    /// Closes all blocks, full or not.
    pub fn flush(&mut self) {
        self.each(Encoder::flush);
    }

    fn each(&mut self, mut act: impl FnMut(&mut Encoder)) {
        for session in self.sessions.iter_mut().flatten() {
            act(&mut session.encoder);
        }
    }

    /// k in use from the next block on.
    #[must_use]
    pub fn k(&self) -> u8 {
        self.config.k
    }

    /// m that is set; where redundancy is adaptive, the one to go back to.
    #[must_use]
    pub fn m(&self) -> u8 {
        self.fixed_m
    }

    /// What adaptive redundancy aims at.
    #[must_use]
    pub fn adaptive(&self) -> Option<Adaptive> {
        match self.config.redundancy {
            Redundancy::Fixed { .. } => None,
            Redundancy::Adaptive(aim) => {
                Some(Adaptive { target: aim.target, cap: aim.overhead_max, floor: aim.floor })
            }
        }
    }

    /// How far apart a block's packets are.
    #[must_use]
    pub fn stride(&self) -> Stride {
        match self.config.stride {
            adapt::Stride::Fixed(pkts) => Stride::Fixed(pkts),
            adapt::Stride::Adaptive { max } => Stride::Auto(max),
        }
    }

    /// Sets k.
    ///
    /// # Errors
    /// What was expected; nothing changes then, here and below.
    pub fn set_k(&mut self, k: u8) -> Result<(), String> {
        self.reconfigure(EncoderConfig { k, ..self.config.clone() })
    }

    /// Sets m, and ends adaptive redundancy.
    ///
    /// # Errors
    /// As above.
    pub fn set_m(&mut self, m: u8) -> Result<(), String> {
        let redundancy = Redundancy::Fixed { m };
        self.reconfigure(EncoderConfig { redundancy, ..self.config.clone() })?;
        self.fixed_m = m;
        Ok(())
    }

    /// Sets what adaptive redundancy aims at, or ends it.
    ///
    /// # Errors
    /// As above.
    pub fn set_adaptive(&mut self, adaptive: Option<Adaptive>) -> Result<(), String> {
        let redundancy = redundancy(adaptive, self.fixed_m);
        self.reconfigure(EncoderConfig { redundancy, ..self.config.clone() })
    }

    /// Sets how far apart a block's packets are.
    ///
    /// # Errors
    /// As above.
    pub fn set_stride(&mut self, to: Stride) -> Result<(), String> {
        self.reconfigure(EncoderConfig { stride: stride(to), ..self.config.clone() })
    }

    fn reconfigure(&mut self, config: EncoderConfig) -> Result<(), String> {
        config.check().map_err(|error| error.to_string())?;
        let EncoderConfig { k, redundancy, stride, .. } = config;
        self.each(|encoder| {
            // It was checked just now.
            let _ = encoder.reconfigure(k, redundancy, stride);
        });
        self.config = config;
        Ok(())
    }

    /// What is in use, and what the far end reports: a part for each session.
    #[must_use]
    pub fn now(&self) -> String {
        let mut text = String::new();
        for (number, session) in self.sessions.iter().enumerate() {
            let Some(session) = session else { continue };
            let EncoderStats { k, m, stride, loss, peer, .. } = session.encoder.stats();
            let loss = loss.map_or("unknown".to_owned(), |loss| format!("{loss:.6}"));
            let blank = if text.is_empty() { "" } else { "; " };
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "{blank}session={number} k={k} m={m} stride={stride} loss={loss} \
                 far-received={} far-lost={} far-recovered={} far-unrecovered={}",
                peer.received, peer.lost, peer.recovered, peer.unrecovered
            );
        }
        if text.is_empty() { "no packet yet".to_owned() } else { text }
    }
}

/// The numbers of the bits that are set.
pub fn numbers(mut bits: u64) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let number = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        // At most 63.
        (number < u64::BITS).then_some(number as u8)
    })
}

fn redundancy(adaptive: Option<Adaptive>, m: u8) -> Redundancy {
    match adaptive {
        None => Redundancy::Fixed { m },
        Some(Adaptive { target, cap, floor }) => {
            Redundancy::Adaptive(adapt::Adaptive { target, overhead_max: cap, floor })
        }
    }
}

fn stride(stride: Stride) -> adapt::Stride {
    match stride {
        Stride::Fixed(pkts) => adapt::Stride::Fixed(pkts),
        Stride::Auto(max) => adapt::Stride::Adaptive { max },
    }
}
