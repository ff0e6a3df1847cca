//! The far ends, each with a decoder of its own.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::net::SocketAddr;

use millrace_fec::decoder::{Decoder, DecoderConfig, DecoderConfigError, DecoderStats, InOrder};
use millrace_fec::kernel::Kernel;
use nflib::descriptor::PortId;
use nflib::headers::MacAddr;
use nflib::{NfError, ServiceId};

use super::options::{Options, PEERS_MAX};
use crate::fec::End;
use crate::tunnel::outer::{Encapsulation, Ends};

/// Where packets to a peer go: back where its own came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Back {
    /// The port.
    pub port: PortId,
    /// The Ethernet address on its link.
    pub mac: MacAddr,
}

/// A far end.
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// What is known of its packets.
    pub decoder: Decoder,
    /// The way back to it, once a packet of it came by a port.
    pub back: Option<Back>,
    /// Outer headers to it, but for the Ethernet destination.
    pub encapsulation: Encapsulation,
    /// Congestion marks of packets that wait to be let out in order: as many of those that are let out
    /// get one.
    pub marks_owed: u32,
    /// The service that gets its reports.
    pub reports_to: Option<ServiceId>,
}

/// All far ends.
pub struct Peers(Vec<Peer>);

impl Peers {
    /// # Errors
    /// One line about the first option that is wrong.
    pub fn new(options: &Options, end: &End, run: u8) -> Result<Self, NfError> {
        let count = options.peers.len();
        if count > PEERS_MAX {
            return Err(NfError::new(format!("{count} peers; expected at most {PEERS_MAX}")));
        }
        let to = options.reports_to.len();
        if to > 1 && to != count {
            let what =
                format!("--reports-to {to} times; expected once, or for each of {count} peers");
            return Err(NfError::new(what));
        }
        let config = DecoderConfig { run, ..config(options, end, count) };
        let kernel = Kernel::best();
        let mut peers: Vec<Peer> = Vec::with_capacity(count);
        for &address in &options.peers {
            if peers.iter().any(|peer| peer.address == address) {
                return Err(NfError::new(format!("--peer {address} is given twice")));
            }
            let decoder = Decoder::new(config.clone(), kernel)
                .map_err(|error| NfError::new(complaint(options, &error)))?;
            let (local, local_mac) = (options.end.local, options.end.mac.0);
            // Of the Ethernet destination it is told with each packet.
            let ends = Ends { local, peer: address, local_mac, next_hop_mac: [0; 6] };
            peers.push(Peer {
                address,
                decoder,
                back: None,
                encapsulation: Encapsulation::new(&ends, options.end.udp_checksum),
                marks_owed: 0,
                reports_to: None,
            });
        }
        Ok(Self(peers))
    }

    /// Says which services get the peers' reports: one for all, or one for each, in order.
    pub fn route_reports(&mut self, services: &[ServiceId]) {
        let last = services.last().copied();
        for (at, peer) in self.0.iter_mut().enumerate() {
            peer.reports_to = services.get(at).copied().or(last);
        }
    }

    /// Which peer has this address.
    #[must_use]
    pub fn find(&self, address: SocketAddr) -> Option<usize> {
        self.0.iter().position(|peer| peer.address == address)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// One of them, by its number, which [`find`](Self::find) gave or which is below
    /// [`len`](Self::len).
    pub fn get_mut(&mut self, number: usize) -> &mut Peer {
        &mut self.0[number]
    }

    /// What their decoders count, a part for each.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for peer in &self.0 {
            let blank = if text.is_empty() { "" } else { "; " };
            // Writing to a String cannot fail, here and below.
            let _ = write!(text, "{blank}peer={}", peer.address);
            let stats = peer.decoder.stats();
            for (name, count) in named(&stats) {
                let _ = write!(text, " {name}={count}");
            }
            for (reason, count) in stats.rejected.by_name().filter(|(_, count)| *count > 0) {
                let _ = write!(text, " rejected-{}={count}", reason.replace('_', "-"));
            }
        }
        text
    }
}

/// What is wrong, by the option that says it.
fn complaint(options: &Options, error: &DecoderConfigError) -> String {
    let (mib, peers) = (options.memory_mib, options.peers.len());
    match error {
        DecoderConfigError::Memory { bytes, session_bytes } => format!(
            "--memory-mib {mib}: {bytes} bytes for each of {peers} peers; expected at least \
             {session_bytes}, which one session takes"
        ),
        other => other.to_string(),
    }
}

fn config(options: &Options, end: &End, peers: usize) -> DecoderConfig {
    DecoderConfig {
        inner_max_bytes: end.inner_most_bytes.into(),
        window_bytes: options.window_kib as usize * 1024,
        memory_bytes: (options.memory_mib as usize * (1 << 20)) / peers.max(1),
        report_ns: u64::from(options.report_ms) * 1_000_000,
        in_order: options.in_order.map(|bound| InOrder {
            bound_pkts: bound.pkts.into(),
            bound_ns: u64::from(bound.ms) * 1_000_000,
        }),
        key: end.key.clone(),
        ..DecoderConfig::default()
    }
}

/// A decoder's counts, with their names.
fn named(stats: &DecoderStats) -> [(&'static str, u64); 20] {
    [
        ("received", stats.received),
        ("lost", stats.lost),
        ("recovered", stats.recovered),
        ("unrecovered", stats.unrecovered),
        ("late", stats.late),
        ("duplicate", stats.duplicate),
        ("rejected", stats.rejected.total()),
        ("parity", stats.repairs),
        ("parity-unused", stats.repairs_unused),
        ("parity-late", stats.repairs_late),
        ("blocks", stats.blocks),
        ("blocks-solved", stats.blocks_solved),
        ("blocks-failed", stats.blocks_failed),
        ("blocks-overrun", stats.blocks_overrun),
        ("blocks-bad", stats.blocks_bad),
        ("skipped", stats.skipped),
        ("undelivered", stats.undelivered),
        ("sessions", stats.sessions),
        ("epochs", stats.epochs),
        ("reports", stats.reports),
    ]
}
