//! What the packets hold: a frame made up, or the frames of a capture file in turn.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nflib::testing::FrameBuilder;
use pcap_parser::pcapng::Block;
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{Linktype, PcapBlockOwned, PcapError, create_reader};
use thiserror::Error;

/// Shortest frame, bytes: Ethernet's, without the frame check sequence.
pub const MIN_FRAME_BYTES: u16 = 60;
/// Ethernet, IPv4 and UDP headers of the frame made up.
const HEADERS_BYTES: usize = 14 + 20 + 8;
/// Longest record that a capture may hold, bytes; libpcap's limit is a quarter of it.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// Why a capture file is no use here.
#[derive(Debug, Error)]
pub enum ContentError {
    /// It cannot be read.
    #[error("--pcap {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is none, or damaged.
    #[error("--pcap {path}: {what}; expected a whole capture of Ethernet, pcap or pcapng")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// It has no frame.
    #[error("--pcap {0}: there is no frame in it; expected at least one")]
    Empty(PathBuf),
}

/// A UDP datagram in IPv4 in Ethernet, so many bytes long, with right checksums.
pub fn made_up(len_bytes: u16) -> Vec<u8> {
    let payload = usize::from(len_bytes).saturating_sub(HEADERS_BYTES);
    FrameBuilder::new()
        // Addresses for benchmarks, RFC 2544.
        .ip([198, 18, 0, 1].into(), [198, 19, 0, 1].into())
        .udp(9, 9)
        .payload(&vec![0; payload])
        .build()
}

/// The first frames of a capture file, at most so many.
///
/// # Errors
/// [`ContentError`], one line.
pub fn from_capture(path: &Path, most: usize) -> Result<Vec<Vec<u8>>, ContentError> {
    let read = |source| ContentError::Read { path: path.into(), source };
    let malformed = |what: String| ContentError::Malformed { path: path.into(), what };
    let file = File::open(path).map_err(read)?;
    if file.metadata().map_err(read)?.is_dir() {
        return Err(read(io::ErrorKind::IsADirectory.into()));
    }
    let mut reader =
        create_reader(MAX_RECORD_BYTES, file).map_err(|error| malformed(explain(&error)))?;
    let (mut frames, mut links) = (Vec::new(), Vec::new());
    while frames.len() < most {
        match reader.next() {
            Ok((read_bytes, block)) => {
                frames.extend(frame_of(&block, &mut links).map_err(malformed)?);
                reader.consume(read_bytes);
            }
            Err(PcapError::Eof) => break,
            Err(PcapError::Incomplete(_)) => {
                reader.refill().map_err(|error| malformed(explain(&error)))?;
            }
            Err(error) => return Err(malformed(explain(&error))),
        }
    }
    if frames.is_empty() { Err(ContentError::Empty(path.into())) } else { Ok(frames) }
}

/// The frame in a block, if it is of the kind that holds one. `links` are the link types of the
/// interfaces met so far.
fn frame_of(
    block: &PcapBlockOwned<'_>,
    links: &mut Vec<Linktype>,
) -> Result<Option<Vec<u8>>, String> {
    let check = |links: &[Linktype], interface: u32| match links.get(interface as usize) {
        Some(&Linktype::ETHERNET) => Ok(()),
        Some(other) => Err(format!("link type {}", other.0)),
        None => Err(format!("a packet of interface {interface}, which no block describes")),
    };
    let bytes = match block {
        PcapBlockOwned::LegacyHeader(header) => {
            links.push(header.network);
            return check(links, 0).map(|()| None);
        }
        PcapBlockOwned::Legacy(record) => record.data,
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            links.clear();
            return Ok(None);
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
            links.push(interface.linktype);
            return Ok(None);
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            check(links, packet.if_id)?;
            packet.packet_data()
        }
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            check(links, 0)?;
            packet.packet_data()
        }
        PcapBlockOwned::NG(_) => return Ok(None),
    };
    Ok((!bytes.is_empty()).then(|| bytes.to_vec()))
}

fn explain<I>(error: &PcapError<I>) -> String {
    match error {
        PcapError::Eof => "it is empty".to_owned(),
        PcapError::Incomplete(_) | PcapError::UnexpectedEof => "it is cut off".to_owned(),
        PcapError::HeaderNotRecognized => "it is no capture file".to_owned(),
        PcapError::BufferTooSmall => format!("a record longer than {MAX_RECORD_BYTES} bytes"),
        PcapError::ReadError => "it cannot be read to its end".to_owned(),
        PcapError::NomError(..) | PcapError::OwnedNomError(..) => "it is damaged".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use nflib::headers::{Headers, checksum};

    use super::*;

    fn classic(link: u32, frames: &[&[u8]]) -> Vec<u8> {
        let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        file.extend([2, 0, 4, 0]);
        for field in [0, 0, 65_535, link] {
            file.extend(u32::to_le_bytes(field));
        }
        for frame in frames {
            for field in [0, 0, frame.len() as u32, frame.len() as u32] {
                file.extend(u32::to_le_bytes(field));
            }
            file.extend(*frame);
        }
        file
    }

    fn next_generation(frames: &[&[u8]]) -> Vec<u8> {
        let block = |kind: u32, mut body: Vec<u8>| {
            body.resize(body.len().next_multiple_of(4), 0);
            let len = (body.len() as u32 + 12).to_le_bytes();
            [&kind.to_le_bytes()[..], &len, &body, &len].concat()
        };
        let words = |words: &[u32]| words.iter().copied().flat_map(u32::to_le_bytes).collect();
        let mut file = block(0x0a0d_0d0a, words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]));
        file.extend(block(1, words(&[1, 65_535])));
        for frame in frames {
            let len = frame.len() as u32;
            let mut body: Vec<u8> = words(&[0, 0, 0, len, len]);
            body.extend(*frame);
            file.extend(block(6, body));
        }
        file
    }

    fn read(file: &[u8], most: usize) -> Result<Vec<Vec<u8>>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.pcap");
        std::fs::write(&path, file).unwrap();
        from_capture(&path, most).map_err(|error| error.to_string())
    }

    #[test]
    fn the_frame_made_up_is_as_long_as_asked_and_whole() {
        for len_bytes in [60, 64, 65, 1514, 9000] {
            let frame = made_up(len_bytes);
            assert_eq!(frame.len(), usize::from(len_bytes));
            let headers = Headers::parse(&frame);
            assert_eq!(headers.ports(), Some((9, 9)));
            assert_eq!(checksum::ipv4_ok(&frame, &headers), Some(true));
            assert_eq!(checksum::transport_ok(&frame, &headers), Some(true));
        }
    }

    #[test]
    fn both_formats_give_their_first_frames() {
        let frames: [&[u8]; 3] = [&[1; 60], &[2; 61], &[3; 1514]];
        for file in [classic(1, &frames), next_generation(&frames)] {
            assert_eq!(read(&file, 10).unwrap(), frames);
            assert_eq!(read(&file, 2).unwrap(), frames[..2]);
        }
    }

    #[test]
    fn what_is_no_capture_of_ethernet_is_refused_in_one_line_that_says_why() {
        let whole = classic(1, &[&[1; 60]]);
        let cases: [(&[u8], &str); 6] = [
            (b"", "it is empty"),
            (b"PK\x03\x04 and so on, longer than any header", "no capture file"),
            (&whole[..50], "it is cut off"),
            (&whole[..10], "it is cut off"),
            (&classic(113, &[&[1; 60]]), "link type 113"),
            (&classic(1, &[]), "there is no frame in it"),
        ];
        for (file, expected) in cases {
            let error = read(file, 8).unwrap_err();
            assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
            assert!(error.contains("some.pcap"), "{error}");
        }
        let missing = from_capture(Path::new("/nonexistent/a.pcap"), 1).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/a.pcap"), "{missing}");
        assert!(from_capture(Path::new("/"), 1).is_err());
    }
}
