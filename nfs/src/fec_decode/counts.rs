//! What `fec-decode` counts besides what each peer's decoder does.
#![forbid(unsafe_code)]

use std::fmt;

/// Packets, since the NF was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Data packets that came and were let out.
    pub delivered_pkts: u64,
    /// Packets let out that were brought back or, with `--in-order`, had waited for their turn.
    pub recovered_pkts: u64,
    /// Congestion marks taken over from the outer header.
    pub ecn_marked_pkts: u64,
    /// Dropped: the outer header says congestion, and the inner packet cannot (RFC 6040).
    pub ecn_dropped_pkts: u64,
    /// Outer fields that nobody on the way should have written (RFC 6040, figure 4).
    pub ecn_alarm_pkts: u64,
    /// SYNs whose segment size was lowered.
    pub mss_clamped_pkts: u64,
    /// What came out of the tunnel is no IP packet: dropped.
    pub malformed_pkts: u64,
    /// For this end's port, from somebody who is no peer: dropped.
    pub stranger_pkts: u64,
    /// From a peer, with a wrong checksum, or without one where there must be one: dropped.
    pub damaged_pkts: u64,
    /// Reports from peers, handed on to the encoder.
    pub report_in_pkts: u64,
    /// Reports from peers that no encoder is known for: dropped.
    pub report_unrouted_pkts: u64,
    /// Reports sent.
    pub report_out_pkts: u64,
    /// Reports that could not be sent: no packet of the peer has come by a port.
    pub report_unsent_pkts: u64,
    /// ARP requests and neighbour solicitations answered.
    pub neighbour_pkts: u64,
    /// Not for this end: passed on, or dropped.
    pub other_pkts: u64,
    /// Dropped because headers did not fit in front.
    pub no_headroom_pkts: u64,
}

impl Counts {
    /// Each with its name.
    pub fn all(&self) -> [(&'static str, u64); 16] {
        [
            ("delivered", self.delivered_pkts),
            ("recovered", self.recovered_pkts),
            ("ecn-marked", self.ecn_marked_pkts),
            ("ecn-dropped", self.ecn_dropped_pkts),
            ("ecn-alarm", self.ecn_alarm_pkts),
            ("mss-clamped", self.mss_clamped_pkts),
            ("malformed", self.malformed_pkts),
            ("stranger", self.stranger_pkts),
            ("damaged", self.damaged_pkts),
            ("reports-in", self.report_in_pkts),
            ("reports-unrouted", self.report_unrouted_pkts),
            ("reports-out", self.report_out_pkts),
            ("reports-unsent", self.report_unsent_pkts),
            ("neighbour", self.neighbour_pkts),
            ("other", self.other_pkts),
            ("no-headroom", self.no_headroom_pkts),
        ]
    }
}

/// `name=count`, separated by blanks.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, count)) in self.all().into_iter().enumerate() {
            write!(f, "{}{name}={count}", if at > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}
