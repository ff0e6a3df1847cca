//! A stream of pcapng, cut into its blocks, and what they count.
#![forbid(unsafe_code)]

use anyhow::bail;
use pcap_parser::pcapng::parse_block_le;
use pcap_parser::{Block, OptionCode, PcapNGOption};

/// Longest block that is read, bytes: a packet of the largest buffer with all its options is far shorter.
const MAX_BLOCK_BYTES: usize = 1 << 20;

/// Bytes that came, and were not taken yet.
#[derive(Default)]
pub struct Blocks {
    bytes: Vec<u8>,
    /// How many of them are whole blocks.
    whole: usize,
}

impl Blocks {
    /// Adds what came.
    ///
    /// # Errors
    /// When it is no pcapng.
    pub fn extend(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.bytes.extend_from_slice(bytes);
        while let Some(len) = length(&self.bytes[self.whole..])? {
            self.whole += len;
        }
        Ok(())
    }

    /// The blocks that are whole, one after the other.
    pub fn whole(&self) -> &[u8] {
        &self.bytes[..self.whole]
    }

    /// Forgets those.
    pub fn clear_whole(&mut self) {
        self.bytes.drain(..self.whole);
        self.whole = 0;
    }
}

/// The length of the block that bytes begin with, if all of it is there.
fn length(bytes: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(word) = bytes.get(4..).and_then(|rest| rest.first_chunk::<4>()) else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*word) as usize;
    if !(12..=MAX_BLOCK_BYTES).contains(&len) || !len.is_multiple_of(4) {
        bail!("what the manager sends is no pcapng: a block of {len} bytes");
    }
    Ok((bytes.len() >= len).then_some(len))
}

/// Each of some whole blocks.
pub fn each(mut bytes: &[u8], mut block: impl FnMut(Block<'_>)) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        match parse_block_le(bytes) {
            Ok((rest, parsed)) => {
                block(parsed);
                bytes = rest;
            }
            Err(error) => bail!("what the manager sends is no pcapng: {}", kind(&error)),
        }
    }
    Ok(())
}

fn kind<I>(error: &pcap_parser::nom::Err<pcap_parser::PcapError<I>>) -> &'static str
where
    I: Sized,
{
    match error {
        pcap_parser::nom::Err::Incomplete(_) => "a block ends too early",
        _ => "a block contradicts itself",
    }
}

/// The value of an option; empty, where there is none.
pub fn option<'a>(options: &'a [PcapNGOption<'_>], code: u16) -> &'a [u8] {
    let found = options.iter().find(|option| option.code == OptionCode(code));
    found.and_then(|option| option.value.get(..usize::from(option.len))).unwrap_or_default()
}

/// An option's number, little endian.
pub fn number(options: &[PcapNGOption<'_>], code: u16) -> u64 {
    let bytes = option(options, code);
    bytes.iter().take(8).rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// What has gone by of a capture.
#[derive(Default)]
pub struct Seen {
    /// Packets.
    pub pkts: u64,
    /// Packets, and losses that they told of, by interface.
    pub interfaces: Vec<(u64, u64)>,
    /// The time of the last packet, nanoseconds since 1970.
    pub last_unix_ns: u64,
    /// Losses that the end told of; `None`: it has not come.
    counted_lost_pkts: Option<u64>,
}

impl Seen {
    /// Takes note of a block.
    pub fn note(&mut self, block: &Block<'_>) {
        match block {
            Block::SectionHeader(_) => {}
            Block::InterfaceDescription(_) => self.interfaces.push((0, 0)),
            Block::EnhancedPacket(packet) => {
                self.pkts += 1;
                self.last_unix_ns = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                if let Some((pkts, lost_pkts)) = self.interfaces.get_mut(packet.if_id as usize) {
                    *pkts += 1;
                    *lost_pkts = lost_pkts.saturating_add(number(&packet.options, 4));
                }
            }
            Block::InterfaceStatistics(end) => {
                // isb_ifdrop and isb_osdrop: lost in a ring, and before the reader.
                let lost_pkts = number(&end.options, 5).saturating_add(number(&end.options, 7));
                let sum = self.counted_lost_pkts.unwrap_or(0);
                self.counted_lost_pkts = Some(sum.saturating_add(lost_pkts));
            }
            _ => {}
        }
    }

    /// Whether the capture ended as it ought to: one that has seen packets counts them at its end.
    pub fn is_complete(&self) -> bool {
        self.counted_lost_pkts.is_some() || self.interfaces.is_empty()
    }

    /// Packets lost, as far as is known.
    pub fn lost_pkts(&self) -> u64 {
        let told = self.interfaces.iter().map(|(_, lost_pkts)| *lost_pkts);
        self.counted_lost_pkts.unwrap_or_else(|| told.fold(0, u64::saturating_add))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace::observe::pcapng;

    fn file() -> Vec<u8> {
        let mut file = Vec::new();
        pcapng::section(&mut file, &pcapng::Section::default());
        pcapng::interface(&mut file, &pcapng::Interface::default());
        for lost_pkts in [None, Some(3)] {
            let packet = pcapng::Packet { bytes: b"abcde", lost_pkts, ..pcapng::Packet::default() };
            pcapng::packet(&mut file, &packet);
        }
        file
    }

    #[test]
    fn blocks_are_found_however_they_are_cut() {
        let file = file();
        for size in [1, 3, 7, file.len()] {
            let (mut blocks, mut found, mut seen) =
                (Blocks::default(), Vec::new(), Seen::default());
            for part in file.chunks(size) {
                blocks.extend(part).unwrap();
                each(blocks.whole(), |block| seen.note(&block)).unwrap();
                found.extend_from_slice(blocks.whole());
                blocks.clear_whole();
            }
            assert_eq!(found, file);
            assert_eq!((seen.pkts, seen.lost_pkts(), seen.is_complete()), (2, 3, false));
        }
    }

    #[test]
    fn the_end_counts_what_was_lost() {
        let mut file = file();
        let end = pcapng::Statistics {
            dropped_pkts: Some(4),
            lost_pkts: Some(5),
            ..pcapng::Statistics::default()
        };
        pcapng::statistics(&mut file, &end);
        let mut seen = Seen::default();
        each(&file, |block| seen.note(&block)).unwrap();
        assert!(seen.is_complete());
        assert_eq!(seen.lost_pkts(), 9);
    }

    #[test]
    fn what_is_no_pcapng_is_said_and_takes_no_memory() {
        for bytes in [&b"GET / HTTP/1.1"[..], &[0xff; 40], &[0; 12]] {
            assert!(Blocks::default().extend(bytes).is_err());
        }
        let mut file = file();
        file[28 + 8] ^= 0xff;
        let end = file.len() - 1;
        file[end] ^= 1;
        assert!(each(&file, |_| {}).is_err());
    }
}
