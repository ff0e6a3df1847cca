//! Writes blocks of a pcapng file (draft-ietf-opsawg-pcapng) behind what is in a vector already.
//!
//! A file is one [`section`], an [`interface`] before the first packet that names it, [`packet`]s, and at
//! the end [`statistics`] of each interface. Interfaces are numbered from 0 in the order in which they were
//! written. Numbers are little endian, times nanoseconds since 1970, packets Ethernet frames. Every call
//! adds one whole block, so whoever keeps the calls whole keeps the file readable.
#![forbid(unsafe_code)]

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINK_TYPE_ETHERNET: u16 = 1;
/// `if_tsresol`: times are in units of 10^-9 s.
const NANOSECONDS: u8 = 9;
/// Most bytes of an option's value that is written: what a page of a reader takes in, and far below
/// the 65,535 that the format allows.
const MAX_OPTION_BYTES: usize = 4096;

/// What a section tells about itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Section<'a> {
    /// The program that writes it (`shb_userappl`); empty: left out, as with all texts here.
    pub application: &'a str,
    /// The machine (`shb_hardware`).
    pub hardware: &'a str,
    /// Its operating system (`shb_os`).
    pub os: &'a str,
    /// For people (`opt_comment`).
    pub comment: &'a str,
}

/// A place that packets were captured at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interface<'a> {
    /// Its name (`if_name`).
    pub name: &'a str,
    /// For people (`if_description`).
    pub description: &'a str,
    /// The filter that packets had to pass, as written (`if_filter`).
    pub filter: &'a str,
    /// First bytes of a packet that are kept at most; 0: all.
    pub snap_bytes: u32,
}

/// Whether a packet was on its way in or out at its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Direction {
    /// Neither, or not known.
    #[default]
    Unknown = 0,
    /// In.
    Inbound = 1,
    /// Out.
    Outbound = 2,
}

/// A packet, as it was seen at one place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet<'a> {
    /// Number of the place's [`interface`].
    pub interface: u32,
    /// When, nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// Its first bytes.
    pub bytes: &'a [u8],
    /// Its length; taken for at least that of `bytes`.
    pub original_bytes: u32,
    /// Its way (`epb_flags`).
    pub direction: Direction,
    /// Packets lost at this place since the one before (`epb_dropcount`); `None`: not known.
    pub lost_pkts: Option<u64>,
    /// The same number for the same packet at several places (`epb_packetid`).
    pub id: Option<u64>,
    /// The port's queue that it came in by (`epb_queue`).
    pub queue: Option<u32>,
    /// `key=value` pairs (`opt_comment`).
    pub comment: &'a str,
}

/// What was counted at a place, from begin to end; `None`: not known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Number of the place's [`interface`].
    pub interface: u32,
    /// When this was counted, nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// When the capture began (`isb_starttime`).
    pub start_unix_ns: Option<u64>,
    /// When it ended (`isb_endtime`).
    pub end_unix_ns: Option<u64>,
    /// Packets that passed (`isb_ifrecv`).
    pub received_pkts: Option<u64>,
    /// Packets lost before the filter (`isb_ifdrop`).
    pub dropped_pkts: Option<u64>,
    /// Packets that the filter took (`isb_filteraccept`).
    pub accepted_pkts: Option<u64>,
    /// Of those, lost on their way to the file (`isb_osdrop`).
    pub lost_pkts: Option<u64>,
    /// Packets in the file (`isb_usrdeliv`).
    pub delivered_pkts: Option<u64>,
}

/// Begins a file.
pub fn section(out: &mut Vec<u8>, section: &Section<'_>) {
    let mut block = Block::begin(out, SECTION_HEADER);
    block.number32(BYTE_ORDER_MAGIC);
    block.number32(1); // version 1.0
    block.bytes(&[0xff; 8]); // how long the section will be is not known
    block.text(1, section.comment);
    block.text(2, section.hardware);
    block.text(3, section.os);
    block.text(4, section.application);
    block.end();
}

/// Describes the next interface.
pub fn interface(out: &mut Vec<u8>, interface: &Interface<'_>) {
    let mut block = Block::begin(out, INTERFACE_DESCRIPTION);
    block.number32(LINK_TYPE_ETHERNET.into());
    block.number32(interface.snap_bytes);
    block.text(2, interface.name);
    block.text(3, interface.description);
    block.option(9, &[NANOSECONDS]);
    if !interface.filter.is_empty() {
        // The first byte says that a text follows, not instructions.
        let text = cut(interface.filter, MAX_OPTION_BYTES - 1);
        block.option(11, &[&[0], text.as_bytes()].concat());
    }
    block.end();
}

/// A packet.
pub fn packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    let kept_bytes = u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX);
    let mut block = Block::begin(out, ENHANCED_PACKET);
    block.number32(packet.interface);
    block.time(packet.time_unix_ns);
    block.number32(kept_bytes);
    block.number32(packet.original_bytes.max(kept_bytes));
    block.bytes(packet.bytes);
    block.text(1, packet.comment);
    if packet.direction != Direction::Unknown {
        block.option(2, &(packet.direction as u32).to_le_bytes());
    }
    block.count(4, packet.lost_pkts);
    block.count(5, packet.id);
    if let Some(queue) = packet.queue {
        block.option(6, &queue.to_le_bytes());
    }
    block.end();
}

/// What was counted at an interface.
pub fn statistics(out: &mut Vec<u8>, counted: &Statistics) {
    let mut block = Block::begin(out, INTERFACE_STATISTICS);
    block.number32(counted.interface);
    block.time(counted.time_unix_ns);
    for (code, time_ns) in [(2, counted.start_unix_ns), (3, counted.end_unix_ns)] {
        if let Some(time_ns) = time_ns {
            block.option(code, &halves(time_ns));
        }
    }
    block.count(4, counted.received_pkts);
    block.count(5, counted.dropped_pkts);
    block.count(6, counted.accepted_pkts);
    block.count(7, counted.lost_pkts);
    block.count(8, counted.delivered_pkts);
    block.end();
}

/// A block that is being written. Its length stands at its begin and at its end.
struct Block<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    has_options: bool,
}

impl<'a> Block<'a> {
    fn begin(out: &'a mut Vec<u8>, kind: u32) -> Self {
        let start = out.len();
        out.extend(kind.to_le_bytes());
        out.extend([0; 4]);
        Self { out, start, has_options: false }
    }

    fn number32(&mut self, number: u32) {
        self.out.extend(number.to_le_bytes());
    }

    fn time(&mut self, time_ns: u64) {
        self.out.extend(halves(time_ns));
    }

    /// Bytes, filled up to a multiple of four.
    fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        let filling = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.extend_from_slice(&[0; 3][..filling]);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(MAX_OPTION_BYTES)];
        self.has_options = true;
        self.out.extend(code.to_le_bytes());
        self.out.extend((value.len() as u16).to_le_bytes());
        self.bytes(value);
    }

    fn text(&mut self, code: u16, text: &str) {
        if !text.is_empty() {
            self.option(code, cut(text, MAX_OPTION_BYTES).as_bytes());
        }
    }

    fn count(&mut self, code: u16, count: Option<u64>) {
        if let Some(count) = count {
            self.option(code, &count.to_le_bytes());
        }
    }

    fn end(self) {
        if self.has_options {
            self.out.extend([0; 4]); // opt_endofopt
        }
        let len_bytes = u32::try_from(self.out.len() - self.start + 4).unwrap_or(u32::MAX);
        self.out.extend(len_bytes.to_le_bytes());
        self.out[self.start + 4..self.start + 8].copy_from_slice(&len_bytes.to_le_bytes());
    }
}

/// A time as the format has it: the upper half first, each half little endian.
fn halves(time_ns: u64) -> [u8; 8] {
    time_ns.rotate_left(32).to_le_bytes()
}

/// As much of a text as fits, whole characters only.
fn cut(text: &str, max_bytes: usize) -> &str {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use pcap_parser::pcapng::{self as parsed, parse_block_le};
    use pcap_parser::{Block as Parsed, OptionCode, PcapNGOption};
    use proptest::prelude::*;

    use super::*;
    use crate::ports::pcap::Capture;

    fn blocks(mut file: &[u8]) -> Vec<Parsed<'_>> {
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let (rest, block) = parse_block_le(file).unwrap();
            blocks.push(block);
            file = rest;
        }
        blocks
    }

    fn values<'a>(options: &'a [PcapNGOption<'_>], code: u16) -> Vec<&'a [u8]> {
        let value = |o: &'a PcapNGOption<'_>| &o.value[..usize::from(o.len)];
        options.iter().filter(|o| o.code == OptionCode(code)).map(value).collect()
    }

    fn packet_of<'a>(block: &'a Parsed<'_>) -> &'a parsed::EnhancedPacketBlock<'a> {
        match block {
            Parsed::EnhancedPacket(packet) => packet,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_option_stands_under_its_code() {
        let mut file = Vec::new();
        let about =
            Section { application: "millrace", hardware: "x86", os: "Linux", comment: "why" };
        section(&mut file, &about);
        interface(
            &mut file,
            &Interface { name: "nf:a", description: "A", filter: "tcp", snap_bytes: 96 },
        );
        let seen = Packet {
            time_unix_ns: 0x1_0000_0002,
            bytes: b"abcde",
            original_bytes: 60,
            direction: Direction::Outbound,
            lost_pkts: Some(7),
            id: Some(8),
            queue: Some(9),
            comment: "chain=web",
            ..Packet::default()
        };
        packet(&mut file, &seen);
        let counted = Statistics {
            interface: 0,
            time_unix_ns: 0x1_0000_0003,
            start_unix_ns: Some(0x2_0000_0001),
            end_unix_ns: Some(0x1_0000_0003),
            received_pkts: Some(4),
            dropped_pkts: Some(5),
            accepted_pkts: Some(6),
            lost_pkts: Some(7),
            delivered_pkts: Some(8),
        };
        statistics(&mut file, &counted);

        let blocks = blocks(&file);
        let Parsed::SectionHeader(head) = &blocks[0] else { panic!("{:?}", blocks[0]) };
        assert_eq!((head.major_version, head.minor_version, head.section_len), (1, 0, -1));
        let texts: Vec<_> = (1..=4).flat_map(|code| values(&head.options, code)).collect();
        assert_eq!(texts, [&b"why"[..], b"x86", b"Linux", b"millrace"]);

        let Parsed::InterfaceDescription(place) = &blocks[1] else { panic!("{:?}", blocks[1]) };
        assert_eq!((place.snaplen, place.linktype.0), (96, 1));
        assert_eq!(place.ts_resolution(), Some(1_000_000_000));
        let texts: Vec<_> = [2, 3, 11].map(|code| values(&place.options, code)).concat();
        assert_eq!(texts, [&b"nf:a"[..], b"A", b"\0tcp"]);

        let packet = packet_of(&blocks[2]);
        assert_eq!((packet.if_id, packet.ts_high, packet.ts_low), (0, 1, 2));
        assert_eq!((packet.caplen, packet.origlen), (5, 60));
        let found: Vec<_> = [1, 2, 4, 5, 6].map(|code| values(&packet.options, code)).concat();
        let number = |n: u64| n.to_le_bytes();
        let expected =
            [&b"chain=web"[..], &number(2)[..4], &number(7), &number(8), &number(9)[..4]];
        assert_eq!(found, expected);

        let Parsed::InterfaceStatistics(end) = &blocks[3] else { panic!("{:?}", blocks[3]) };
        assert_eq!((end.if_id, end.ts_high, end.ts_low), (0, 1, 3));
        let found: Vec<_> = (4..=8).flat_map(|code| values(&end.options, code)).collect();
        assert_eq!(found, [4, 5, 6, 7, 8].map(number));
        assert_eq!(values(&end.options, 2), [[2, 0, 0, 0, 1, 0, 0, 0]]);
    }

    #[test]
    fn what_is_empty_or_unknown_is_left_out() {
        let mut file = Vec::new();
        section(&mut file, &Section::default());
        assert_eq!(file.len(), 28);
        file.clear();
        packet(&mut file, &Packet::default());
        assert_eq!(file.len(), 32);
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_characters() {
        let mut file = Vec::new();
        let comment = "ü".repeat(40_000);
        packet(&mut file, &Packet { comment: &comment[..], ..Packet::default() });
        let filter = format!("x{comment}");
        interface(&mut file, &Interface { filter: &filter, ..Interface::default() });
        let blocks = blocks(&file);
        let found = values(&packet_of(&blocks[0]).options, 1);
        assert_eq!(std::str::from_utf8(found[0]).unwrap(), "ü".repeat(2048));
        let Parsed::InterfaceDescription(place) = &blocks[1] else { panic!("{:?}", blocks[1]) };
        let found = values(&place.options, 11);
        assert_eq!(std::str::from_utf8(found[0]).unwrap(), format!("\0x{}", "ü".repeat(2047)));
    }

    fn frame() -> impl Strategy<Value = (u32, u64, Vec<u8>, u32, String)> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..200);
        (0_u32..3, any::<u64>(), bytes, 0_u32..400, "\\PC{0,20}")
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_by_the_pcap_port(
            frames in proptest::collection::vec(frame(), 0..20),
            names in proptest::collection::vec("\\PC{0,20}", 3),
        ) {
            let mut file = Vec::new();
            section(&mut file, &Section { comment: &names[0], ..Section::default() });
            for name in &names {
                interface(&mut file, &Interface { name, filter: name, ..Interface::default() });
            }
            for (interface, time_unix_ns, bytes, original_bytes, comment) in &frames {
                let (interface, time_unix_ns) = (*interface, *time_unix_ns);
                let original_bytes = *original_bytes;
                packet(&mut file, &Packet {
                    interface, time_unix_ns, bytes, original_bytes, comment, ..Packet::default()
                });
            }
            statistics(&mut file, &Statistics { delivered_pkts: Some(1), ..Statistics::default() });

            let capture = Capture::new(file.clone()).unwrap();
            prop_assert_eq!(capture.frames().len(), frames.len());
            for (found, (_, time_ns, bytes, original_bytes, _)) in capture.frames().iter().zip(&frames) {
                prop_assert_eq!(capture.bytes(found), &bytes[..]);
                prop_assert_eq!(found.time_ns, *time_ns);
                prop_assert_eq!(found.cut_off, (*original_bytes as usize) > bytes.len());
            }
            let blocks = blocks(&file);
            for (block, (interface, _, _, _, comment)) in blocks[4..].iter().zip(&frames) {
                let packet = packet_of(block);
                prop_assert_eq!(packet.if_id, *interface);
                prop_assert_eq!(values(&packet.options, 1).concat(), comment.as_bytes());
            }
        }
    }
}
