//! Reads a whole capture file and finds its frames.
//!
//! Classic pcap (draft-ietf-opsawg-pcap) with micro- or nanoseconds in either byte order, and pcapng
//! (draft-ietf-opsawg-pcapng). The records are decoded by the `pcap-parser` crate; the walk from
//! record to record is here, because it must say where a file is cut off or damaged, and must say
//! so before any traffic starts.
#![forbid(unsafe_code)]

use pcap_parser::pcapng::{Block, parse_block_be, parse_block_le};
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{
    Linktype, PcapHeader, parse_pcap_frame, parse_pcap_frame_be, parse_pcap_frame_modified,
    parse_pcap_header,
};
use thiserror::Error;

/// Longest frame that a capture may hold, bytes: libpcap's own limit, beyond which a length is taken
/// for damage.
const MAX_FRAME_BYTES: u32 = 262_144;
const FILE_HEADER_BYTES: usize = 24;
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// One frame of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    at: u32,
    /// Length of what was captured, bytes.
    pub len_bytes: u32,
    /// True when the capture holds only the first bytes of the frame.
    pub cut_off: bool,
    /// When it was captured, in nanoseconds since 1970.
    pub time_ns: u64,
}

/// A capture file in memory, checked to its end.
#[derive(Debug)]
pub struct Capture {
    bytes: Vec<u8>,
    frames: Vec<Frame>,
}

/// What is wrong with a capture file, and where.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CaptureError {
    /// Neither pcap nor pcapng.
    #[error("not a capture file: it begins with {0}, expected the magic number of pcap or pcapng")]
    NotACapture(String),
    /// Ends too early.
    #[error(
        "truncated: {what} at byte {at} needs {needed_bytes} bytes and {left_bytes} are left; \
         capture it again, or keep its whole records with `tcpdump -r FILE -w NEW`"
    )]
    Truncated {
        /// What is cut off.
        what: String,
        /// Where it starts.
        at: usize,
        /// How long it says it is.
        needed_bytes: u64,
        /// How much of it there is.
        left_bytes: usize,
    },
    /// A record or block that makes no sense.
    #[error("malformed: {what} at byte {at}: {why}")]
    Malformed {
        /// What is damaged.
        what: String,
        /// Where it starts.
        at: usize,
        /// What was found.
        why: String,
    },
    /// Not Ethernet.
    #[error("link type {0}, expected 1 (Ethernet)")]
    LinkType(i32),
}

impl Capture {
    /// Finds the frames of a file of less than 4 GiB. Takes at most 24 bytes for each 16 of them.
    ///
    /// # Errors
    /// [`CaptureError`] for the first thing that is wrong anywhere in the file.
    pub fn new(bytes: Vec<u8>) -> Result<Self, CaptureError> {
        let magic = bytes.first_chunk::<4>().copied();
        let frames = match magic.map(u32::from_le_bytes) {
            Some(SECTION_HEADER) => NextGeneration::default().frames(&bytes)?,
            Some(0xa1b2_c3d4 | 0xa1b2_3c4d | 0xa1b2_cd34 | 0xd4c3_b2a1 | 0x4d3c_b2a1) => {
                classic_frames(&bytes)?
            }
            Some(_) | None => {
                let start = &bytes[..bytes.len().min(4)];
                let found: Vec<_> = start.iter().map(|byte| format!("{byte:02x}")).collect();
                let found = if found.is_empty() { "nothing".into() } else { found.join(" ") };
                return Err(CaptureError::NotACapture(found));
            }
        };
        Ok(Self { bytes, frames })
    }

    /// The frames in the order of the file.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The bytes of one of [`frames`](Self::frames).
    #[must_use]
    pub fn bytes(&self, frame: &Frame) -> &[u8] {
        let at = frame.at as usize;
        self.bytes.get(at..at + frame.len_bytes as usize).unwrap_or_default()
    }
}

fn classic_frames(bytes: &[u8]) -> Result<Vec<Frame>, CaptureError> {
    let Ok((records, header)) = parse_pcap_header(bytes) else {
        return Err(truncated("the file header", 0, FILE_HEADER_BYTES as u64, bytes.len()));
    };
    if header.network != Linktype::ETHERNET {
        return Err(CaptureError::LinkType(header.network.0));
    }
    let mut frames = Vec::new();
    let mut rest = records;
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let (behind, frame) = classic_record(&header, rest, frames.len() + 1, at)?;
        frames.push(frame);
        rest = behind;
    }
    Ok(frames)
}

fn classic_record<'a>(
    header: &PcapHeader,
    rest: &'a [u8],
    number: usize,
    at: usize,
) -> Result<(&'a [u8], Frame), CaptureError> {
    let what = format!("record {number}");
    let record_header_bytes = if header.is_modified_format() { 24 } else { 16 };
    let Some(captured) = rest.get(8..12).filter(|_| rest.len() >= record_header_bytes) else {
        return Err(truncated(&what, at, record_header_bytes as u64, rest.len()));
    };
    let captured_bytes = number32(captured, header.is_bigendian());
    if captured_bytes > MAX_FRAME_BYTES {
        let why =
            format!("a frame of {captured_bytes} bytes, at most {MAX_FRAME_BYTES} make sense");
        return Err(CaptureError::Malformed { what, at, why });
    }
    let parsed = match (header.is_bigendian(), header.is_modified_format()) {
        (true, _) => parse_pcap_frame_be(rest),
        (false, true) => parse_pcap_frame_modified(rest),
        (false, false) => parse_pcap_frame(rest),
    };
    let Ok((behind, record)) = parsed else {
        let needed_bytes = record_header_bytes as u64 + u64::from(captured_bytes);
        return Err(truncated(&what, at, needed_bytes, rest.len()));
    };
    let fraction_ns = if header.is_nanosecond_precision() { 1 } else { 1000 };
    let frame = Frame {
        at: (at + record_header_bytes) as u32,
        len_bytes: record.caplen,
        cut_off: record.caplen < record.origlen,
        time_ns: u64::from(record.ts_sec) * 1_000_000_000 + u64::from(record.ts_usec) * fraction_ns,
    };
    Ok((behind, frame))
}

/// What a pcapng section has said so far.
#[derive(Default)]
struct NextGeneration {
    big_endian: bool,
    interfaces: Vec<Interface>,
    frames: Vec<Frame>,
}

struct Interface {
    link_type: Linktype,
    ticks_per_s: u64,
}

impl NextGeneration {
    fn frames(mut self, bytes: &[u8]) -> Result<Vec<Frame>, CaptureError> {
        let mut at = 0;
        let mut number = 1;
        while at < bytes.len() {
            let what = format!("block {number}");
            let block = self.block(&what, at, &bytes[at..])?;
            self.read(&what, at, block)?;
            at += block.len();
            number += 1;
        }
        Ok(self.frames)
    }

    /// The bytes of the block that `rest` begins with.
    fn block<'a>(
        &mut self,
        what: &str,
        at: usize,
        rest: &'a [u8],
    ) -> Result<&'a [u8], CaptureError> {
        let Some((head, _)) = rest.split_first_chunk::<12>() else {
            return Err(truncated(what, at, 12, rest.len()));
        };
        if number32(&head[..4], false) == SECTION_HEADER {
            self.big_endian = match number32(&head[8..], false) {
                0x1a2b_3c4d => false,
                0x4d3c_2b1a => true,
                other => {
                    return Err(malformed(what, at, format!("byte-order magic {other:#010x}")));
                }
            };
        }
        let len_bytes = number32(&head[4..8], self.big_endian);
        if len_bytes < 12 || !len_bytes.is_multiple_of(4) {
            let why = format!("a length of {len_bytes}, expected a multiple of 4 from 12 on");
            return Err(malformed(what, at, why));
        }
        rest.get(..len_bytes as usize)
            .ok_or_else(|| truncated(what, at, len_bytes.into(), rest.len()))
    }

    fn read(&mut self, what: &str, at: usize, block: &[u8]) -> Result<(), CaptureError> {
        match number32(&block[..4], self.big_endian) {
            SECTION_HEADER => self.interfaces.clear(),
            INTERFACE_DESCRIPTION | SIMPLE_PACKET | ENHANCED_PACKET => {
                let parse = if self.big_endian { parse_block_be } else { parse_block_le };
                let (_, parsed) = parse(block)
                    .map_err(|_| malformed(what, at, "its fields contradict its length".into()))?;
                self.keep(what, at, &parsed)?;
            }
            OBSOLETE_PACKET => {
                let why = "an obsolete packet block; convert the file with `editcap`".into();
                return Err(malformed(what, at, why));
            }
            _ => {} // names, statistics, keys: not traffic
        }
        Ok(())
    }

    fn keep(&mut self, what: &str, at: usize, block: &Block<'_>) -> Result<(), CaptureError> {
        match block {
            Block::InterfaceDescription(interface) => self.interfaces.push(Interface {
                link_type: interface.linktype,
                ticks_per_s: interface.ts_resolution().filter(|&t| t > 0).unwrap_or(1_000_000),
            }),
            Block::EnhancedPacket(packet) => {
                let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let ticks_per_s = self.interface(what, at, packet.if_id)?.ticks_per_s;
                let time_ns = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_per_s);
                let time_ns = u64::try_from(time_ns).unwrap_or(u64::MAX);
                if packet.caplen > MAX_FRAME_BYTES {
                    let why = format!("a frame of {} bytes", packet.caplen);
                    return Err(malformed(what, at, why));
                }
                let data = packet.packet_data();
                self.push(at + 28, data.len(), packet.origlen, time_ns);
            }
            Block::SimplePacket(packet) => {
                self.interface(what, at, 0)?;
                let time_ns = self.frames.last().map_or(0, |frame| frame.time_ns);
                self.push(at + 12, packet.packet_data().len(), packet.origlen, time_ns);
            }
            _ => {}
        }
        Ok(())
    }

    fn interface(&self, what: &str, at: usize, id: u32) -> Result<&Interface, CaptureError> {
        let interface = self.interfaces.get(id as usize).ok_or_else(|| {
            malformed(what, at, format!("a packet of interface {id}, which no block describes"))
        })?;
        if interface.link_type != Linktype::ETHERNET {
            return Err(CaptureError::LinkType(interface.link_type.0));
        }
        Ok(interface)
    }

    fn push(&mut self, at: usize, len: usize, original_bytes: u32, time_ns: u64) {
        let len_bytes = len as u32;
        let cut_off = len_bytes < original_bytes;
        self.frames.push(Frame { at: at as u32, len_bytes, cut_off, time_ns });
    }
}

fn number32(bytes: &[u8], big_endian: bool) -> u32 {
    let word = bytes.first_chunk::<4>().copied().unwrap_or_default();
    if big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
}

fn truncated(what: &str, at: usize, needed_bytes: u64, left_bytes: usize) -> CaptureError {
    CaptureError::Truncated { what: what.into(), at, needed_bytes, left_bytes }
}

fn malformed(what: &str, at: usize, why: String) -> CaptureError {
    CaptureError::Malformed { what: what.into(), at, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A number as four bytes.
    type Order = fn(u32) -> [u8; 4];
    /// Frames as (seconds, nanoseconds, bytes).
    type Frames = Vec<(u32, u32, Vec<u8>)>;

    fn classic(order: Order, nanoseconds: bool, frames: &Frames) -> Vec<u8> {
        let magic = if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let mut file = order(magic).to_vec();
        let version = if order(1) == [0, 0, 0, 1] { [0, 2, 0, 4] } else { [2, 0, 4, 0] };
        file.extend(version);
        for field in [0, 0, 65_535, 1] {
            file.extend(order(field));
        }
        for (s, ns, bytes) in frames {
            let fraction = if nanoseconds { *ns } else { ns / 1000 };
            for field in [*s, fraction, bytes.len() as u32, bytes.len() as u32] {
                file.extend(order(field));
            }
            file.extend(bytes);
        }
        file
    }

    fn next_generation(order: Order, frames: &Frames) -> Vec<u8> {
        let block = |kind: u32, body: &[u8]| {
            let mut body = body.to_vec();
            body.resize(body.len().next_multiple_of(4), 0);
            let len = order(body.len() as u32 + 12);
            [&order(kind)[..], &len, &body, &len].concat()
        };
        let short = |n: u32| {
            let word = order(n);
            if word[0] == 0 && word[1] == 0 { [word[2], word[3]] } else { [word[0], word[1]] }
        };
        let version = [short(1), short(0)].concat();
        let section = [&order(0x1a2b_3c4d)[..], &version, &[0xff; 8]].concat();
        // if_tsresol = 9: nanoseconds.
        let options = [&short(9)[..], &short(1), &[9, 0, 0, 0], &[0; 4]].concat();
        let interface = [&short(1)[..], &[0, 0], &order(65_535), &options].concat();
        let mut file = [block(SECTION_HEADER, &section), block(5, &[1; 8])].concat();
        file.extend(block(1, &interface));
        for (s, ns, bytes) in frames {
            let time = u64::from(*s) * 1_000_000_000 + u64::from(*ns);
            let len = order(bytes.len() as u32);
            let (high, low) = (order((time >> 32) as u32), order(time as u32));
            file.extend(block(6, &[&order(0)[..], &high, &low, &len, &len, bytes].concat()));
        }
        file
    }

    fn some_frames() -> Frames {
        vec![(1, 1000, vec![1; 60]), (1, 2_000_000, vec![2; 61]), (2, 5000, vec![3; 1514])]
    }

    const ORDERS: [Order; 2] = [u32::to_le_bytes, u32::to_be_bytes];

    fn files(frames: &Frames) -> Vec<Vec<u8>> {
        let mut files = Vec::new();
        for order in ORDERS {
            files.push(classic(order, false, frames));
            files.push(classic(order, true, frames));
            files.push(next_generation(order, frames));
        }
        files
    }

    #[test]
    fn every_format_and_byte_order_gives_the_same_frames_and_times() {
        for file in files(&some_frames()) {
            let capture = Capture::new(file).unwrap();
            let found: Vec<_> = capture
                .frames()
                .iter()
                .map(|f| (f.time_ns, capture.bytes(f).to_vec(), f.cut_off))
                .collect();
            let expected: Vec<_> = some_frames()
                .into_iter()
                .map(|(s, ns, bytes)| (u64::from(s) * 1_000_000_000 + u64::from(ns), bytes, false))
                .collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_file_cut_anywhere_between_its_records_is_refused() {
        for file in files(&some_frames()) {
            let whole = Capture::new(file.clone()).unwrap().frames().len();
            for len in 0..file.len() {
                match Capture::new(file[..len].to_vec()) {
                    Ok(part) => assert!(part.frames().len() < whole, "at a record's end only"),
                    Err(CaptureError::Truncated { at, left_bytes, needed_bytes, .. }) => {
                        assert_eq!(at + left_bytes, len);
                        assert!(needed_bytes > left_bytes as u64);
                    }
                    Err(CaptureError::NotACapture(_)) => assert!(len < 4),
                    Err(other) => panic!("cut at {len}: {other}"),
                }
            }
        }
    }

    #[test]
    fn a_truncated_record_is_named_with_its_number_and_place() {
        let mut file = classic(u32::to_le_bytes, false, &some_frames());
        file.truncate(24 + 76 + 77 + 100);
        let error = Capture::new(file).unwrap_err().to_string();
        assert!(
            error.starts_with("truncated: record 3 at byte 177 needs 1530 bytes and 100 are left"),
            "{error}"
        );
    }

    #[test]
    fn other_files_other_link_types_and_mad_lengths_are_named() {
        let error = |file: &[u8]| Capture::new(file.to_vec()).unwrap_err().to_string();
        assert!(error(b"").contains("begins with nothing"));
        assert!(error(b"PK\x03\x04....").contains("begins with 50 4b 03 04"));
        let mut file = classic(u32::to_le_bytes, false, &some_frames());
        file[20] = 113;
        assert!(error(&file).contains("link type 113, expected 1 (Ethernet)"));
        file[20] = 1;
        file[24 + 8 + 3] = 0x7f;
        assert!(error(&file).contains("record 1 at byte 24: a frame of 2130706492 bytes"));
    }

    #[test]
    fn a_frame_of_which_only_the_first_bytes_were_captured_is_marked() {
        let mut file = classic(u32::to_le_bytes, false, &some_frames());
        file[24 + 12] = 200;
        let capture = Capture::new(file).unwrap();
        let marks: Vec<_> = capture.frames().iter().map(|frame| frame.cut_off).collect();
        assert_eq!(marks, [true, false, false]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn arbitrary_bytes_never_panic_and_never_ask_for_more_memory_than_the_file_warrants(
            start in prop::sample::select(files(&some_frames())),
            keep in 0_usize..200,
            noise in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut file = start[..keep.min(start.len())].to_vec();
            file.extend(noise);
            let len = file.len();
            if let Ok(capture) = Capture::new(file) {
                prop_assert!(capture.frames().len() <= len / 16);
                for frame in capture.frames() {
                    prop_assert_eq!(capture.bytes(frame).len(), frame.len_bytes as usize);
                }
            }
        }

        #[test]
        fn a_file_with_a_few_wrong_bytes_never_panics(
            file in prop::sample::select(files(&some_frames())),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut file = file;
            for (at, value) in damage {
                let at = at.index(file.len().min(400));
                file[at] = value;
            }
            if let Ok(capture) = Capture::new(file) {
                for frame in capture.frames() {
                    prop_assert_eq!(capture.bytes(frame).len(), frame.len_bytes as usize);
                }
            }
        }
    }
}
