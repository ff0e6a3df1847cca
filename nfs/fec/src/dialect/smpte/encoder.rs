//! Makes the repair packets of a stream of RTP packets, which it leaves alone.
#![forbid(unsafe_code)]

use super::{
    Direction, Fields, Matrix, PacketError, REPAIR_HEADER_BYTES, RTP_BYTES, RepairHeader, Rtp, xor,
};
use crate::dialect::{ConfigError, LATE_MAX_PKTS, longest};
use crate::kernel::Kernel;

/// What an encoder is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderConfig {
    /// The matrix.
    pub matrix: Matrix,
    /// Longest RTP packet that is protected.
    pub longest_bytes: usize,
}

/// Counts of an encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncoderStats {
    /// Media packets that became part of a matrix.
    pub media_pkts: u64,
    /// Repair packets made.
    pub repair_pkts: u64,
    /// Media packets that did not: no RTP, too long, or behind others that came before.
    pub unprotected_pkts: u64,
    /// Matrices that were begun anew since a media packet was missing here already.
    pub broken_matrices: u64,
}

/// A repair packet to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair<'a> {
    /// What it is the sum of, which says to which port it goes.
    pub direction: Direction,
    /// UDP payload.
    pub payload: &'a [u8],
}

/// The sum of a row or a column, as far as it has come.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    base: u16,
    fields: Fields,
    /// Longest so far, behind the fixed RTP header.
    bytes: usize,
}

/// The sending side of one stream.
#[derive(Debug)]
pub struct Encoder {
    matrix: Matrix,
    longest_bytes: usize,
    kernel: Kernel,
    /// The row's sum, then those of the columns; their bytes lie in `payloads` in the same order.
    sums: Vec<Sum>,
    payloads: Vec<u8>,
    stride_bytes: usize,
    /// Number of the media packet that is to come.
    next: Option<u16>,
    /// Packets behind it, one after the other.
    late_in_a_row: u32,
    /// Where it stands in the matrix.
    row: u8,
    column: u8,
    timestamp: [u8; 4],
    /// Numbers of the repair packets to come, of columns and of rows.
    sequences: [u16; 2],
    row_ready: bool,
    column_ready: Option<u8>,
    stats: EncoderStats,
}

impl Encoder {
    /// An encoder for one stream.
    ///
    /// # Errors
    /// [`ConfigError::Longest`]
    pub fn new(config: EncoderConfig, kernel: Kernel) -> Result<Self, ConfigError> {
        let longest_bytes = longest(config.longest_bytes)?;
        let stride_bytes = REPAIR_HEADER_BYTES + longest_bytes - RTP_BYTES;
        let sums = 1 + usize::from(config.matrix.columns);
        Ok(Self {
            matrix: config.matrix,
            longest_bytes,
            kernel,
            sums: vec![Sum::default(); sums],
            payloads: vec![0; sums * stride_bytes],
            stride_bytes,
            next: None,
            late_in_a_row: 0,
            row: 0,
            column: 0,
            timestamp: [0; 4],
            sequences: [0; 2],
            row_ready: false,
            column_ready: None,
            stats: EncoderStats::default(),
        })
    }

    /// Takes a media packet, which goes out as it is. When it completes a row or a column, there are
    /// repair packets to take before the next.
    ///
    /// # Errors
    /// [`PacketError::NotRtp`], [`PacketError::Long`]
    pub fn add(&mut self, payload: &[u8]) -> Result<(), PacketError> {
        (self.row_ready, self.column_ready) = (false, None);
        let rtp = Rtp::parse(payload, self.longest_bytes)
            .inspect_err(|_| self.stats.unprotected_pkts += 1)?;
        if !self.find_place(rtp.sequence()) {
            self.stats.unprotected_pkts += 1;
            return Ok(());
        }
        self.sum_up(&rtp);
        self.stats.media_pkts += 1;
        self.step();
        Ok(())
    }

    /// False for a packet behind the one to come; a gap before it begins a new matrix.
    fn find_place(&mut self, sequence: u16) -> bool {
        let ahead = self.next.map_or(0, |next| sequence.wrapping_sub(next));
        if ahead >= 1 << 15 {
            self.late_in_a_row += 1;
            if self.late_in_a_row < LATE_MAX_PKTS {
                return false;
            }
        }
        self.late_in_a_row = 0;
        if ahead != 0 {
            self.stats.broken_matrices += 1;
            (self.row, self.column) = (0, 0);
        }
        self.next = Some(sequence.wrapping_add(1));
        true
    }

    fn sum_up(&mut self, rtp: &Rtp<'_>) {
        let Self { kernel, sums, payloads, stride_bytes, .. } = self;
        let (row, columns) = payloads.split_at_mut(*stride_bytes);
        let column = &mut columns[usize::from(self.column) * *stride_bytes..][..*stride_bytes];
        let (row_sum, column_sums) = sums.split_at_mut(1);
        let column_sum = &mut column_sums[usize::from(self.column)];
        begin_or_grow(self.column == 0, &mut row_sum[0], row, rtp);
        begin_or_grow(self.row == 0, column_sum, column, rtp);
        let bytes = rtp.rest.len();
        let mut to = [row, column].map(|payload| &mut payload[REPAIR_HEADER_BYTES..][..bytes]);
        if self.matrix.row_repair {
            kernel.accumulate(&[1, 1], &[rtp.rest], &mut to);
        } else {
            kernel.accumulate(&[1], &[rtp.rest], &mut to[1..]);
        }
        let [.., t0, t1, t2, t3, _, _, _, _] = *rtp.packet;
        self.timestamp = [t0, t1, t2, t3];
    }

    /// To the next place of the matrix, and of what is complete by now.
    fn step(&mut self) {
        if self.row + 1 == self.matrix.rows {
            self.column_ready = Some(self.column);
        }
        self.column += 1;
        if self.column == self.matrix.columns {
            self.row_ready = self.matrix.row_repair;
            self.column = 0;
            self.row = (self.row + 1) % self.matrix.rows;
        }
    }

    /// The next repair packet that the last media packet made complete. Valid, like those that are not
    /// taken, until the next media packet.
    pub fn next_repair(&mut self) -> Option<Repair<'_>> {
        let Matrix { columns, rows, .. } = self.matrix;
        let (direction, at, offset, count) = if std::mem::take(&mut self.row_ready) {
            (Direction::Row, 0, 1, columns)
        } else {
            let column = self.column_ready.take()?;
            (Direction::Column, 1 + usize::from(column), columns, rows)
        };
        let Sum { base, fields, bytes } = self.sums[at];
        let payload = &mut self.payloads[at * self.stride_bytes..];
        let header = RepairHeader { direction, base, offset, count, fields };
        let sequence = &mut self.sequences[usize::from(direction == Direction::Row)];
        header.write(payload.first_chunk_mut()?, *sequence, self.timestamp);
        *sequence = sequence.wrapping_add(1);
        self.stats.repair_pkts += 1;
        Some(Repair { direction, payload: &payload[..REPAIR_HEADER_BYTES + bytes] })
    }

    /// What it has counted.
    #[must_use]
    pub fn stats(&self) -> EncoderStats {
        self.stats
    }
}

/// Adds a packet's fields, and makes room for its bytes; what stood there is of an earlier sum.
fn begin_or_grow(begins: bool, sum: &mut Sum, payload: &mut [u8], rtp: &Rtp<'_>) {
    if begins {
        *sum = Sum { base: rtp.sequence(), ..Sum::default() };
    }
    xor(&mut sum.fields, &rtp.fields());
    if rtp.rest.len() > sum.bytes {
        payload[REPAIR_HEADER_BYTES..][sum.bytes..rtp.rest.len()].fill(0);
        sum.bytes = rtp.rest.len();
    }
}
