//! Reports: what a decoder tells its encoder, so that redundancy follows loss.
//!
//! All counters are totals since the decoder met the session's epoch, modulo 2³²: an encoder takes
//! differences, and so a lost report loses nothing. A decoder that was restarted, or had to forget the
//! session, counts from zero again; the encoder sees it by the run, or by totals that go back.
#![forbid(unsafe_code)]

use crate::adapt::News;
use crate::mac::{Key, MAC_BYTES};
use crate::wire::{self, FLAG_MAC, Stream, TYPE_REPORT, VERSION, WireError};

/// Burst lengths that are told apart: 1 to 15, and 16 or more.
pub const BURST_BINS: usize = 16;
/// A report without its MAC.
pub const REPORT_BYTES: usize = 96;
/// A report with its MAC.
pub const REPORT_MAX_BYTES: usize = REPORT_BYTES + MAC_BYTES;

/// How many bursts of lost packets there were of each length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bursts(pub [u32; BURST_BINS]);

impl Bursts {
    /// Counts a burst of `length_pkts` packets, at least 1.
    pub fn add(&mut self, length_pkts: u64) {
        let bin = (length_pkts.max(1) - 1).min(BURST_BINS as u64 - 1) as usize;
        self.0[bin] = self.0[bin].wrapping_add(1);
    }

    /// What was added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|bin| self.0[bin].wrapping_sub(earlier.0[bin])))
    }
}

/// A report. What has been *settled* is past: the packet came, was recovered, or will do neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One run of the decoder: another after it was restarted.
    pub run: u8,
    /// Counts the reports of a run.
    pub number: u32,
    /// The newest sequence number known to exist.
    pub highest: u32,
    /// Settled: packets that came by themselves.
    pub received: u32,
    /// Settled: packets that did not, recovered or not.
    pub lost: u32,
    /// Packets recovered so far.
    pub recovered: u32,
    /// Settled: packets lost for good.
    pub unrecovered: u32,
    /// Settled: lengths of runs of lost packets.
    pub bursts: Bursts,
}

impl Report {
    /// Writes the report's bytes, with a MAC where there is a key; gives how many.
    pub fn write(
        &self,
        stream: Stream,
        key: Option<&Key>,
        to: &mut [u8; REPORT_MAX_BYTES],
    ) -> usize {
        to[..4].copy_from_slice(&wire::start(TYPE_REPORT, stream));
        let fields =
            [self.number, self.highest, self.received, self.lost, self.recovered, self.unrecovered];
        let (words, _) = to[4..].as_chunks_mut::<4>();
        for (word, field) in words.iter_mut().zip(fields) {
            *word = field.to_be_bytes();
        }
        words[6] = [if key.is_some() { FLAG_MAC } else { 0 }, self.run, 0, 0];
        for (word, count) in words[7..].iter_mut().zip(self.bursts.0) {
            *word = count.to_be_bytes();
        }
        let Some(key) = key else { return REPORT_BYTES };
        let (covered, mac) = to.split_at_mut(REPORT_BYTES);
        mac.copy_from_slice(&key.mac(covered));
        REPORT_MAX_BYTES
    }

    /// What this report adds to `earlier` ones of the same decoder; all of it when it counts from zero.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> News {
        let goes_back = |now: u32, then: u32| (now.wrapping_sub(then) as i32) < 0;
        let anew = self.run != earlier.run
            || goes_back(self.received, earlier.received)
            || goes_back(self.lost, earlier.lost);
        let from = if anew { Self::default() } else { *earlier };
        News {
            received: self.received.wrapping_sub(from.received),
            lost: self.lost.wrapping_sub(from.lost),
            bursts: self.bursts.since(&from.bursts),
        }
    }

    /// Reads a report.
    ///
    /// # Errors
    /// [`WireError`]: it is none, or its MAC is missing, unexpected or wrong.
    pub fn parse(payload: &[u8], key: Option<&Key>) -> Result<(Stream, Self), WireError> {
        let &[kind, epoch, s0, s1, ..] = payload else { return Err(WireError::Short) };
        if kind >> 4 != VERSION {
            return Err(WireError::Version);
        }
        if kind & 0x0f != TYPE_REPORT {
            return Err(WireError::Type);
        }
        if payload.len() < REPORT_BYTES {
            return Err(WireError::Short);
        }
        let (words, _) = payload[4..].as_chunks::<4>();
        let [flags, run, reserved @ ..] = words[6];
        if flags & !FLAG_MAC != 0 || reserved != [0; 2] {
            return Err(WireError::Reserved);
        }
        if wire::without_mac(payload, flags, key)?.len() != REPORT_BYTES {
            return Err(WireError::Long);
        }
        let word = |at: usize| u32::from_be_bytes(words[at]);
        let stream = Stream { epoch, session: u16::from_be_bytes([s0, s1]) };
        let report = Self {
            run,
            number: word(0),
            highest: word(1),
            received: word(2),
            lost: word(3),
            recovered: word(4),
            unrecovered: word(5),
            bursts: Bursts(std::array::from_fn(|bin| word(7 + bin))),
        };
        Ok((stream, report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream { epoch: 3, session: 0x0405 };

    fn report() -> Report {
        Report {
            run: 9,
            number: 1,
            highest: 0xfffffff0,
            received: 2,
            lost: 3,
            recovered: 4,
            unrecovered: 5,
            bursts: Bursts(std::array::from_fn(|bin| 100 + bin as u32)),
        }
    }

    #[test]
    fn a_report_that_was_written_is_read_back() {
        for key in [None, Some(Key::new([4; 16]))] {
            let mut bytes = [0xff; REPORT_MAX_BYTES];
            let len = report().write(STREAM, key.as_ref(), &mut bytes);
            assert_eq!(Report::parse(&bytes[..len], key.as_ref()), Ok((STREAM, report())));
            assert_eq!(wire::parse(&bytes[..len], key.as_ref()), Ok(wire::Packet::Report));
        }
    }

    #[test]
    fn what_is_no_report_is_rejected_by_its_name() {
        let mut bytes = [0; REPORT_MAX_BYTES];
        let len = report().write(STREAM, None, &mut bytes);
        for cut in 0..len {
            assert_eq!(Report::parse(&bytes[..cut], None), Err(WireError::Short), "{cut} bytes");
        }
        assert_eq!(Report::parse(&bytes[..len + 1], None), Err(WireError::Long));
        let key = Key::new([4; 16]);
        assert_eq!(Report::parse(&bytes[..len], Some(&key)), Err(WireError::MacMissing));
        for (at, value, error) in [
            (0, 0x23, WireError::Version),
            (0, 0x12, WireError::Type),
            (28, 2, WireError::Reserved),
            (28, 1, WireError::MacUnexpected),
            (30, 1, WireError::Reserved),
            (31, 1, WireError::Reserved),
        ] {
            let mut wrong = bytes;
            wrong[at] = value;
            assert_eq!(Report::parse(&wrong[..len], None), Err(error), "byte {at}");
        }
    }

    #[test]
    fn a_report_with_any_bit_flipped_fails_its_mac() {
        let key = Key::new([4; 16]);
        let mut bytes = [0; REPORT_MAX_BYTES];
        report().write(STREAM, Some(&key), &mut bytes);
        for bit in 0..8 * bytes.len() {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Report::parse(&damaged, Some(&key)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_is_new_is_the_difference_or_all_where_the_decoder_counts_from_zero() {
        let report = |run, received, lost| Report { run, received, lost, ..Default::default() };
        let news = |later: Report, earlier| {
            let news = later.since(&earlier);
            (news.received, news.lost)
        };
        assert_eq!(news(report(1, 5, 2), report(1, u32::MAX, 1)), (6, 1));
        assert_eq!(news(report(2, 500, 20), report(1, 100, 10)), (500, 20));
        assert_eq!(news(report(1, 50, 20), report(1, 100, 10)), (50, 20));
        assert_eq!(news(report(1, 500, 3), report(1, 100, 10)), (500, 3));
    }

    #[test]
    fn long_bursts_share_the_last_bin_and_differences_wrap() {
        let mut bursts = Bursts([u32::MAX; BURST_BINS]);
        let before = bursts;
        for length in [1, 1, 15, 16, 10_000] {
            bursts.add(length);
        }
        let since = bursts.since(&before);
        assert_eq!((since.0[0], since.0[14], since.0[15]), (2, 1, 2));
        assert_eq!(since.0.iter().sum::<u32>(), 5);
    }
}
