//! Keeps a copy of the media that pass, and brings lost ones back as repair packets allow, rows and
//! columns in turn until nothing more comes of it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::{
    Direction, PacketError, REPAIR_HEADER_BYTES, RTP_BYTES, RepairHeader, Rtp, SIDE_MAX, xor,
};
use crate::dialect::{ConfigError, LATE_MAX_PKTS, longest};
use crate::kernel::Kernel;

/// Media packets of which copies are kept: five of the largest matrices. Repair packets of a matrix are
/// sent by some during the next, and both may be out of order.
const MEDIA_KEPT: usize = 512;
/// Repair packets that are kept while two or more packets of their sum are missing.
const REPAIRS_KEPT: usize = 256;
/// How far beyond the newest media packet a sum may reach: those may all be lost.
const AHEAD_MAX: u16 = 128;

/// What a decoder is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderConfig {
    /// Longest RTP packet of which a copy is kept.
    pub longest_bytes: usize,
}

/// What is to be done with a media packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it out.
    Deliver,
    /// It, or what was brought back in its place, was let out before.
    Duplicate,
}

/// Counts of a decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecoderStats {
    /// Media packets that came and were let out.
    pub media_pkts: u64,
    /// Repair packets of columns that came.
    pub column_repair_pkts: u64,
    /// Repair packets of rows that came.
    pub row_repair_pkts: u64,
    /// Lost media packets brought back.
    pub recovered_pkts: u64,
    /// Lost media packets that were given up.
    pub unrecovered_pkts: u64,
    /// Media packets that came twice, or after they were brought back.
    pub duplicate_pkts: u64,
    /// Media packets so late that no copy is kept; they are let out.
    pub late_pkts: u64,
    /// Sums that came to no possible packet: forged or damaged.
    pub implausible_pkts: u64,
    /// Packets that were not taken.
    pub rejected_pkts: u64,
}

/// The place of a media packet.
#[derive(Clone, Copy, Debug, Default)]
struct Media {
    sequence: u16,
    /// Length of the copy; 0 when there is none.
    bytes: u16,
    /// The repair packets of its column and its row, plus one; 0 when there is none.
    repairs: [u16; 2],
}

/// The place of a repair packet.
#[derive(Clone, Copy, Debug)]
struct Kept {
    header: RepairHeader,
    /// Length of the sum.
    bytes: u16,
}

/// The receiving side of one stream.
#[derive(Debug)]
pub struct Decoder {
    longest_bytes: usize,
    kernel: Kernel,
    /// Places by sequence number; `packets` has their copies.
    media: Vec<Media>,
    packets: Vec<u8>,
    repairs: Vec<Option<Kept>>,
    sums: Vec<u8>,
    sum_max_bytes: usize,
    /// Where the next repair packet is kept.
    next_repair: usize,
    /// The newest place that is open; `None` before the first media packet.
    newest: Option<u16>,
    /// Places that are open.
    open: u16,
    late_in_a_row: u32,
    ssrc: [u8; 4],
    /// A packet being brought back.
    scratch: Vec<u8>,
    /// Numbers of packets brought back: whose sums are to be looked at, and that are to be taken.
    to_check: VecDeque<u16>,
    ready: VecDeque<u16>,
    stats: DecoderStats,
}

impl Decoder {
    /// A decoder for one stream.
    ///
    /// # Errors
    /// [`ConfigError::Longest`]
    pub fn new(config: DecoderConfig, kernel: Kernel) -> Result<Self, ConfigError> {
        let longest_bytes = longest(config.longest_bytes)?;
        let sum_max_bytes = longest_bytes - RTP_BYTES;
        Ok(Self {
            longest_bytes,
            kernel,
            media: vec![Media::default(); MEDIA_KEPT],
            packets: vec![0; MEDIA_KEPT * longest_bytes],
            repairs: vec![None; REPAIRS_KEPT],
            sums: vec![0; REPAIRS_KEPT * sum_max_bytes],
            sum_max_bytes,
            next_repair: 0,
            newest: None,
            open: 0,
            late_in_a_row: 0,
            ssrc: [0; 4],
            scratch: vec![0; sum_max_bytes],
            to_check: VecDeque::with_capacity(MEDIA_KEPT),
            ready: VecDeque::with_capacity(MEDIA_KEPT),
            stats: DecoderStats::default(),
        })
    }

    /// Takes a media packet. Afterwards there may be packets to take with
    /// [`next_recovered`](Self::next_recovered).
    ///
    /// # Errors
    /// [`PacketError::NotRtp`], [`PacketError::Long`]
    pub fn media(&mut self, payload: &[u8]) -> Result<Verdict, PacketError> {
        self.ready.clear();
        let rtp = Rtp::parse(payload, self.longest_bytes)
            .inspect_err(|_| self.stats.rejected_pkts += 1)?;
        let Some(at) = self.place(rtp.sequence()) else {
            self.stats.late_pkts += 1;
            return Ok(Verdict::Deliver);
        };
        if self.media[at].bytes != 0 {
            self.stats.duplicate_pkts += 1;
            return Ok(Verdict::Duplicate);
        }
        self.stats.media_pkts += 1;
        self.ssrc = rtp.ssrc();
        self.packets[at * self.longest_bytes..][..payload.len()].copy_from_slice(payload);
        self.media[at].bytes = payload.len() as u16;
        self.to_check.push_back(rtp.sequence());
        self.check();
        Ok(Verdict::Deliver)
    }

    /// Takes a repair packet, of a column or a row, whichever it says. Afterwards there may be packets to
    /// take with [`next_recovered`](Self::next_recovered).
    ///
    /// # Errors
    /// [`PacketError`]
    pub fn repair(&mut self, payload: &[u8]) -> Result<(), PacketError> {
        self.ready.clear();
        self.keep_repair(payload).inspect_err(|_| self.stats.rejected_pkts += 1)?;
        self.check();
        Ok(())
    }

    fn keep_repair(&mut self, payload: &[u8]) -> Result<(), PacketError> {
        let most = self.sum_max_bytes + REPAIR_HEADER_BYTES;
        let (header, sum) = RepairHeader::parse(payload, most)?;
        self.open_upto(&header)?;
        match header.direction {
            Direction::Column => self.stats.column_repair_pkts += 1,
            Direction::Row => self.stats.row_repair_pkts += 1,
        }
        let missing = header.covered().filter(|&one| !self.has(one)).count();
        if missing == 0 {
            return Ok(());
        }
        let at = self.next_repair;
        self.next_repair = (at + 1) % REPAIRS_KEPT;
        self.sums[at * self.sum_max_bytes..][..sum.len()].copy_from_slice(sum);
        self.repairs[at] = Some(Kept { header, bytes: sum.len() as u16 });
        for sequence in header.covered() {
            self.media[sequence as usize % MEDIA_KEPT].repairs[header.direction as usize] =
                at as u16 + 1;
        }
        if missing == 1 {
            self.solve(at);
        }
        Ok(())
    }

    /// Opens the places of a sum that are not yet, so that all of them are.
    fn open_upto(&mut self, header: &RepairHeader) -> Result<(), PacketError> {
        let newest = self.newest.ok_or(PacketError::FarAway)?;
        let last = header.covered().last().unwrap_or(header.base);
        let ahead = last.wrapping_sub(newest);
        let begins_near = newest.wrapping_sub(header.base) < self.open
            || header.base.wrapping_sub(newest) <= AHEAD_MAX;
        if !begins_near || (AHEAD_MAX + 1..1 << 15).contains(&ahead) {
            return Err(PacketError::FarAway);
        }
        if ahead <= AHEAD_MAX {
            (0..ahead).for_each(|step| self.open_place(newest.wrapping_add(step + 1)));
            self.newest = Some(last);
        }
        Ok(())
    }

    fn open_place(&mut self, sequence: u16) {
        let at = usize::from(sequence) % MEDIA_KEPT;
        if usize::from(self.open) < MEDIA_KEPT {
            self.open += 1;
        } else {
            self.stats.unrecovered_pkts += u64::from(self.media[at].bytes == 0);
        }
        self.media[at] = Media { sequence, ..Media::default() };
    }

    /// The place of a media packet, opened when it is new; `None` when it is too old.
    fn place(&mut self, sequence: u16) -> Option<usize> {
        let at = usize::from(sequence) % MEDIA_KEPT;
        let newest = self.newest.unwrap_or(sequence);
        let (ahead, behind) = (sequence.wrapping_sub(newest), newest.wrapping_sub(sequence));
        if self.newest.is_some() && behind < self.open {
            self.late_in_a_row = 0;
            return Some(at);
        }
        if ahead >= 1 << 15 {
            self.late_in_a_row += 1;
            if self.late_in_a_row < LATE_MAX_PKTS {
                return None;
            }
        }
        self.late_in_a_row = 0;
        if self.newest.is_none() || usize::from(ahead) >= MEDIA_KEPT {
            // The first of all, or of a sender that has started anew.
            self.start_anew();
            self.open_place(sequence);
        } else {
            (0..ahead).for_each(|step| self.open_place(newest.wrapping_add(step + 1)));
        }
        self.newest = Some(sequence);
        Some(at)
    }

    fn start_anew(&mut self) {
        if let Some(newest) = self.newest {
            let open = (0..self.open).map(|back| newest.wrapping_sub(back));
            self.stats.unrecovered_pkts += open.filter(|&one| !self.has(one)).count() as u64;
        }
        self.repairs.fill(None);
        (self.open, self.newest) = (0, None);
    }

    /// Whether there is a copy of a packet whose place is open.
    fn has(&self, sequence: u16) -> bool {
        let media = &self.media[usize::from(sequence) % MEDIA_KEPT];
        media.sequence == sequence && media.bytes != 0
    }

    /// Looks at the sums of each packet that is new, also of those that are brought back thereby.
    fn check(&mut self) {
        while let Some(sequence) = self.to_check.pop_front() {
            let repairs = self.media[usize::from(sequence) % MEDIA_KEPT].repairs;
            for at in repairs.into_iter().filter_map(|at| usize::from(at).checked_sub(1)) {
                let Some(kept) = self.repairs[at] else { continue };
                // Another may be kept there by now, which does no harm.
                match kept.header.covered().filter(|&one| !self.has(one)).count() {
                    0 => self.repairs[at] = None,
                    1 => self.solve(at),
                    _ => {}
                }
            }
        }
    }

    /// Brings back the one packet of a sum that is missing.
    fn solve(&mut self, at: usize) {
        let Some(Kept { header, bytes }) = self.repairs[at].take() else { return };
        let Some(sequence) = header.covered().find(|&one| !self.has(one)) else { return };
        match self.subtract(at, &header, sequence, bytes.into()) {
            Some(packet_bytes) => {
                self.media[usize::from(sequence) % MEDIA_KEPT].bytes = packet_bytes;
                self.stats.recovered_pkts += 1;
                self.to_check.push_back(sequence);
                self.ready.push_back(sequence);
            }
            None => self.stats.implausible_pkts += 1,
        }
    }

    /// Takes all other packets from a sum of `bytes`, and writes what is left, when it is plausible, to
    /// the missing packet's place. Returns its length.
    fn subtract(
        &mut self,
        at: usize,
        header: &RepairHeader,
        missing: u16,
        bytes: usize,
    ) -> Option<u16> {
        let mut fields = header.fields;
        let mut sources: [&[u8]; SIDE_MAX as usize] = [&[]; SIDE_MAX as usize];
        let (mut count, mut payload_types) = (0, 0u128);
        for one in header.covered().filter(|&one| one != missing) {
            let place = usize::from(one) % MEDIA_KEPT;
            let packet = &self.packets[place * self.longest_bytes..];
            let packet = packet.get(..self.media[place].bytes.into())?;
            let rtp = Rtp::parse(packet, self.longest_bytes).ok()?;
            if rtp.rest.len() > bytes {
                return None;
            }
            let own = rtp.fields();
            xor(&mut fields, &own);
            payload_types |= 1 << (own[1] & 0x7f);
            (sources[count], count) = (rtp.rest, count + 1);
        }
        let left = &mut self.scratch[..bytes];
        left.copy_from_slice(&self.sums[at * self.sum_max_bytes..][..bytes]);
        let ones = [1; SIDE_MAX as usize];
        self.kernel.accumulate(&ones[..count], &sources[..count], &mut [&mut *left]);

        let [first, second, t0, t1, t2, t3, l0, l1] = fields;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let (rest, padding) = left.split_at_checked(length)?;
        let is_one_of_theirs = count == 0 || payload_types >> (second & 0x7f) & 1 == 1;
        let has_its_csrcs = usize::from(first & 0x0f) * 4 <= length;
        if !is_one_of_theirs || !has_its_csrcs || padding.iter().any(|&byte| byte != 0) {
            return None;
        }
        let [n0, n1] = missing.to_be_bytes();
        let [s0, s1, s2, s3] = self.ssrc;
        let place = usize::from(missing) % MEDIA_KEPT * self.longest_bytes;
        let packet = &mut self.packets[place..][..RTP_BYTES + length];
        packet[..RTP_BYTES].copy_from_slice(&[
            0x80 | first,
            second,
            n0,
            n1,
            t0,
            t1,
            t2,
            t3,
            s0,
            s1,
            s2,
            s3,
        ]);
        packet[RTP_BYTES..].copy_from_slice(rest);
        Some((RTP_BYTES + length) as u16)
    }

    /// The next packet brought back, an RTP packet. To be taken before the next packet is given, which
    /// forgets it.
    pub fn next_recovered(&mut self) -> Option<&[u8]> {
        let sequence = self.ready.pop_front()?;
        let place = usize::from(sequence) % MEDIA_KEPT;
        Some(&self.packets[place * self.longest_bytes..][..self.media[place].bytes.into()])
    }

    /// What it has counted.
    #[must_use]
    pub fn stats(&self) -> DecoderStats {
        self.stats
    }
}
