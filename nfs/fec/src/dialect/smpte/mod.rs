//! SMPTE ST 2022-1, that is Pro-MPEG Code of Practice 3 release 2: repair packets for RTP (RFC 3550),
//! which are RFC 2733's with a longer header. What ffmpeg 5.1 (`prompeg`) and GStreamer 1.22
//! (`rtpst2022-1-fecenc`, `-fecdec`) send and take is read and written.
//!
//! Media packets are laid out, in the order of their sequence numbers, in a matrix of L columns and D
//! rows, one matrix after the other. The repair packet of a column is the sum of D packets, L apart; that
//! of a row the sum of L consecutive ones. Media go to a UDP port, repair packets of columns to the port
//! two above it, those of rows four above.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! ├───────────────────────────────────────────────────────────────┤
//! │ V=2 P X CC │ M │ PT (96) │ sequence number of the repair flow │ RTP header: P, X, CC and M are
//! │                           timestamp                           │ sums of those of the media
//! │                           SSRC (0)                            │
//! ├───────────────────────────────┬───────────────────────────────┤
//! │        SNBase low bits        │        length recovery        │ repair header: sums are those of
//! │E=1│ PT recovery │                 mask (0)                    │ lengths behind the fixed RTP
//! │                          TS recovery                          │ header, of payload types and of
//! │N=0│D│type=0│index=0│    offset    │      NA      │SNBase ext=0│ timestamps
//! ├───────────────────────────────────────────────────────────────┤
//! │ sum of what stands behind the fixed RTP headers               │
//! ```
//! Of a column D = 0, offset = L and NA = D; of a row D = 1, offset = 1 and NA = L.
#![forbid(unsafe_code)]

mod decoder;
mod encoder;

use thiserror::Error;

pub use decoder::{Decoder, DecoderConfig, DecoderStats, Verdict};
pub use encoder::{Encoder, EncoderConfig, EncoderStats, Repair};

/// From the media's UDP port to that of the columns' repair packets.
pub const COLUMN_PORT_OFFSET: u16 = 2;
/// From the media's UDP port to that of the rows' repair packets.
pub const ROW_PORT_OFFSET: u16 = 4;
/// RTP and repair header of a repair packet.
pub const REPAIR_HEADER_BYTES: usize = RTP_BYTES + HEADER_BYTES;

/// Length of the fixed RTP header.
const RTP_BYTES: usize = 12;
/// Length of the repair header.
const HEADER_BYTES: usize = 16;
/// Most columns, and most rows.
const SIDE_MAX: u8 = 20;
/// Least rows that have repair packets of columns, and least columns that have such of rows.
const SIDE_MIN: u8 = 4;
/// Most packets of a matrix.
const PACKETS_MAX: u16 = 100;
/// The payload type of repair packets.
const REPAIR_PAYLOAD_TYPE: u8 = 96;

/// A matrix that the standard does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MatrixError {
    /// L is out of range.
    #[error("L = {0} columns; expected 1 to {SIDE_MAX}")]
    Columns(u8),
    /// D is out of range.
    #[error("D = {0} rows; expected {SIDE_MIN} to {SIDE_MAX}")]
    Rows(u8),
    /// L · D is too much.
    #[error("L · D = {0} packets; expected {PACKETS_MAX} at most")]
    Packets(u16),
    /// Rows are too short to have repair packets of their own.
    #[error("repair packets of rows with L = {0} columns; expected {SIDE_MIN} columns at least")]
    RowRepair(u8),
}

/// The matrix of a stream, and whether rows have repair packets as columns have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    columns: u8,
    rows: u8,
    row_repair: bool,
}

impl Matrix {
    /// L columns of D rows, as ST 2022-1 has them: L from 1 to 20, D from 4 to 20, L · D at most 100,
    /// repair packets of rows from L = 4.
    ///
    /// # Errors
    /// [`MatrixError`]
    pub fn new(columns: u8, rows: u8, row_repair: bool) -> Result<Self, MatrixError> {
        if !(1..=SIDE_MAX).contains(&columns) {
            return Err(MatrixError::Columns(columns));
        }
        if !(SIDE_MIN..=SIDE_MAX).contains(&rows) {
            return Err(MatrixError::Rows(rows));
        }
        let packets = u16::from(columns) * u16::from(rows);
        if packets > PACKETS_MAX {
            return Err(MatrixError::Packets(packets));
        }
        if row_repair && columns < SIDE_MIN {
            return Err(MatrixError::RowRepair(columns));
        }
        Ok(Self { columns, rows, row_repair })
    }

    /// L.
    #[must_use]
    pub fn columns(&self) -> u8 {
        self.columns
    }

    /// D.
    #[must_use]
    pub fn rows(&self) -> u8 {
        self.rows
    }

    /// Whether rows have repair packets, too.
    #[must_use]
    pub fn row_repair(&self) -> bool {
        self.row_repair
    }

    /// Repair packets of a matrix.
    #[must_use]
    pub fn repair_pkts(&self) -> u32 {
        u32::from(self.columns) + if self.row_repair { u32::from(self.rows) } else { 0 }
    }
}

/// Of which packets a repair packet is the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Of a column.
    Column,
    /// Of a row.
    Row,
}

impl Direction {
    /// From the media's UDP port to that of these repair packets.
    #[must_use]
    pub fn port_offset(self) -> u16 {
        match self {
            Self::Column => COLUMN_PORT_OFFSET,
            Self::Row => ROW_PORT_OFFSET,
        }
    }
}

/// Why a packet is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum PacketError {
    /// No RTP, by its length or version.
    #[error("no RTP packet: shorter than its header, or of another version than 2")]
    NotRtp,
    /// Longer than what is kept.
    #[error("longer than the longest packet that is kept")]
    Long,
    /// A repair packet of another standard, or of a part of this one that nobody sends: without the
    /// longer header, with a mask, of another code than XOR.
    #[error("no repair packet of ST 2022-1")]
    NotRepair,
    /// NA and offset of a repair packet are none of a matrix.
    #[error("a repair packet of no possible matrix")]
    Matrix,
    /// What a repair packet is the sum of lies far from the media that came.
    #[error("a repair packet of media that are not near those that came")]
    FarAway,
}

/// What a packet puts into a sum beside the bytes behind its fixed header: P, X and CC; M and PT;
/// timestamp; length.
type Fields = [u8; 8];

/// An RTP packet.
#[derive(Clone, Copy, Debug)]
struct Rtp<'a> {
    packet: &'a [u8; RTP_BYTES],
    /// What stands behind the fixed header.
    rest: &'a [u8],
}

impl<'a> Rtp<'a> {
    /// Reads one of at most `longest_bytes`.
    fn parse(payload: &'a [u8], longest_bytes: usize) -> Result<Self, PacketError> {
        let (packet, rest) = payload.split_first_chunk().ok_or(PacketError::NotRtp)?;
        if packet[0] >> 6 != 2 {
            return Err(PacketError::NotRtp);
        }
        if payload.len() > longest_bytes {
            return Err(PacketError::Long);
        }
        Ok(Self { packet, rest })
    }

    fn sequence(&self) -> u16 {
        u16::from_be_bytes([self.packet[2], self.packet[3]])
    }

    fn fields(&self) -> Fields {
        let [first, second, _, _, t0, t1, t2, t3, ..] = *self.packet;
        // `LONGEST_BYTES_MAX` fits into 16 bits.
        let [l0, l1] = (self.rest.len() as u16).to_be_bytes();
        [first & 0x3f, second, t0, t1, t2, t3, l0, l1]
    }

    fn ssrc(&self) -> [u8; 4] {
        let [.., s0, s1, s2, s3] = *self.packet;
        [s0, s1, s2, s3]
    }
}

fn xor(sum: &mut Fields, fields: &Fields) {
    sum.iter_mut().zip(fields).for_each(|(to, from)| *to ^= from);
}

/// A repair packet's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RepairHeader {
    direction: Direction,
    /// Number of the first packet of the sum.
    base: u16,
    /// From one to the next.
    offset: u8,
    /// How many.
    count: u8,
    fields: Fields,
}

impl RepairHeader {
    /// Reads a repair packet of at most `longest_bytes`: its headers, and the sum behind them.
    fn parse(payload: &[u8], longest_bytes: usize) -> Result<(Self, &[u8]), PacketError> {
        let rtp = Rtp::parse(payload, longest_bytes)?;
        let (header, sum) =
            rtp.rest.split_first_chunk::<HEADER_BYTES>().ok_or(PacketError::NotRepair)?;
        let [b0, b1, l0, l1, pt, m0, m1, m2, t0, t1, t2, t3, kind, offset, count, _] = *header;
        // E is set, for this is the longer header. N and index are 0, and so is the type: XOR.
        if pt & 0x80 == 0 || [m0, m1, m2] != [0; 3] || kind & !0x40 != 0 {
            return Err(PacketError::NotRepair);
        }
        let direction = if kind == 0 { Direction::Column } else { Direction::Row };
        let fields =
            [rtp.packet[0] & 0x3f, rtp.packet[1] & 0x80 | pt & 0x7f, t0, t1, t2, t3, l0, l1];
        let header = Self { direction, base: u16::from_be_bytes([b0, b1]), offset, count, fields };
        if header.is_possible() { Ok((header, sum)) } else { Err(PacketError::Matrix) }
    }

    fn is_possible(&self) -> bool {
        let side = 1..=SIDE_MAX;
        side.contains(&self.count)
            && match self.direction {
                Direction::Column => {
                    side.contains(&self.offset)
                        && u16::from(self.offset) * u16::from(self.count) <= PACKETS_MAX
                }
                Direction::Row => self.offset == 1,
            }
    }

    /// Writes a repair packet's two headers.
    fn write(&self, to: &mut [u8; REPAIR_HEADER_BYTES], sequence: u16, timestamp: [u8; 4]) {
        let [first, second, t0, t1, t2, t3, l0, l1] = self.fields;
        let [n0, n1] = sequence.to_be_bytes();
        let [s0, s1, s2, s3] = timestamp;
        let [b0, b1] = self.base.to_be_bytes();
        let kind = if self.direction == Direction::Row { 0x40 } else { 0 };
        let marked = second & 0x80 | REPAIR_PAYLOAD_TYPE;
        *to = [
            0x80 | first,
            marked,
            n0,
            n1,
            s0,
            s1,
            s2,
            s3,
            0,
            0,
            0,
            0, //
            b0,
            b1,
            l0,
            l1,
            0x80 | second & 0x7f,
            0,
            0,
            0,
            t0,
            t1,
            t2,
            t3, //
            kind,
            self.offset,
            self.count,
            0,
        ];
    }

    /// The numbers of the packets of the sum.
    fn covered(&self) -> impl Iterator<Item = u16> + use<> {
        let Self { base, offset, count, .. } = *self;
        (0..u16::from(count)).map(move |at| base.wrapping_add(at * u16::from(offset)))
    }
}

/// Any bytes through a decoder and an encoder: for fuzzing and property tests. Packets, each behind its
/// length and a byte that says where it goes.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let kernel = crate::kernel::Kernel::scalar();
    let Ok(matrix) = Matrix::new(4, 4, true) else { return };
    let (Ok(mut decoder), Ok(mut encoder)) = (
        Decoder::new(DecoderConfig { longest_bytes: 256 }, kernel),
        Encoder::new(EncoderConfig { matrix, longest_bytes: 256 }, kernel),
    ) else {
        return;
    };
    let mut rest = data;
    while let Some((&[length, kind], more)) = rest.split_first_chunk() {
        let (packet, more) = more.split_at(more.len().min(length.into()));
        rest = more;
        if kind & 1 == 0 {
            let _ = decoder.media(packet);
        } else {
            let _ = decoder.repair(packet);
        }
        while let Some(recovered) = decoder.next_recovered() {
            assert!(Rtp::parse(recovered, 256).is_ok(), "what is brought back is RTP");
        }
        let _ = encoder.add(packet);
        while encoder.next_repair().is_some() {}
    }
}

#[cfg(test)]
mod tests;
