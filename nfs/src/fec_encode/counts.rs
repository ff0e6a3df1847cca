//! What `fec-encode` counts.
#![forbid(unsafe_code)]

use std::fmt;

use millrace_fec::wire::WireError;

/// Packets and bytes, since the NF was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Went through the tunnel.
    pub data_pkts: u64,
    /// Their bytes, from their IP header.
    pub data_bytes: u64,
    /// Parity packets sent.
    pub parity_pkts: u64,
    /// Their bytes, from their shim.
    pub parity_bytes: u64,
    /// Passed on as they are: no untagged IP packets, or in the tunnel already.
    pub passed_pkts: u64,
    /// The same, dropped.
    pub non_ip_dropped_pkts: u64,
    /// IP packets with impossible headers, dropped.
    pub malformed_pkts: u64,
    /// Too long, and cut.
    pub cut_pkts: u64,
    /// Too long, to be cut, and there was no buffer for the pieces: dropped.
    pub cut_failed_pkts: u64,
    /// Too long: the sender was told.
    pub too_big_answered_pkts: u64,
    /// Too long, and so many others were that the sender was not told.
    pub too_big_limited_pkts: u64,
    /// Too long, and of a kind that nobody is told about.
    pub too_big_silent_pkts: u64,
    /// SYNs whose segment size was lowered.
    pub mss_clamped_pkts: u64,
    /// Dropped because the outer headers did not fit in front.
    pub no_headroom_pkts: u64,
    /// Reports taken.
    pub report_pkts: u64,
    /// Packets for this end that come from somebody else, or damaged.
    pub report_refused_pkts: u64,
    /// Of the far end, and no report that can be used; by reason.
    pub report_bad_mac_pkts: u64,
    /// Not newer than the last.
    pub report_replayed_pkts: u64,
    /// Of another epoch or session, as after a restart.
    pub report_stray_pkts: u64,
    /// Anything else.
    pub report_malformed_pkts: u64,
}

impl Counts {
    /// Counts what came of a report.
    pub fn reported(&mut self, result: Result<(), WireError>) {
        let count = match result {
            Ok(()) => &mut self.report_pkts,
            Err(WireError::MacMissing | WireError::MacUnexpected | WireError::MacWrong) => {
                &mut self.report_bad_mac_pkts
            }
            Err(WireError::Replayed) => &mut self.report_replayed_pkts,
            Err(WireError::Epoch | WireError::Session) => &mut self.report_stray_pkts,
            Err(_) => &mut self.report_malformed_pkts,
        };
        *count += 1;
    }

    /// Each with its name.
    pub fn all(&self) -> [(&'static str, u64); 20] {
        [
            ("data", self.data_pkts),
            ("data-bytes", self.data_bytes),
            ("parity", self.parity_pkts),
            ("parity-bytes", self.parity_bytes),
            ("passed", self.passed_pkts),
            ("non-ip-dropped", self.non_ip_dropped_pkts),
            ("malformed", self.malformed_pkts),
            ("cut", self.cut_pkts),
            ("cut-failed", self.cut_failed_pkts),
            ("too-big-answered", self.too_big_answered_pkts),
            ("too-big-limited", self.too_big_limited_pkts),
            ("too-big-silent", self.too_big_silent_pkts),
            ("mss-clamped", self.mss_clamped_pkts),
            ("no-headroom", self.no_headroom_pkts),
            ("reports", self.report_pkts),
            ("reports-refused", self.report_refused_pkts),
            ("reports-bad-mac", self.report_bad_mac_pkts),
            ("reports-replayed", self.report_replayed_pkts),
            ("reports-stray", self.report_stray_pkts),
            ("reports-malformed", self.report_malformed_pkts),
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
