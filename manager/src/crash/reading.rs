//! Reads a bundle back, and makes of it the packets to replay.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;

use nflib::descriptor::PortId;
use thiserror::Error;

use super::bundle::{FILES, PacketNote, Report};
use super::evidence::PacketKind;
use crate::ports::pcap::Capture;

/// Longest file of a bundle that is read, bytes.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Why a bundle cannot be read; one line.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A file cannot be read.
    #[error("{file}: {source}")]
    File {
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// It is no file of a bundle of this release.
    #[error("{file}: {why}; expected a bundle as millrace crash save writes it")]
    Foreign {
        /// Which.
        file: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// A bundle.
#[derive(Debug)]
pub struct Bundle {
    /// `crash.json`.
    pub report: Report,
    /// `backtrace.txt`.
    pub backtrace: String,
    /// `log.txt`.
    pub log: String,
    capture: Capture,
}

/// A packet to replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayPacket {
    /// The number of the port it came in by; 0 for one that an NF made.
    pub in_port: PortId,
    /// Its bytes, as it came.
    pub bytes: Vec<u8>,
    /// Its last bytes are not known, and zeros.
    pub padded: bool,
    /// It was in hand.
    pub in_hand: bool,
}

impl Bundle {
    /// Reads the one in a folder.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn read(folder: &Path) -> Result<Self, ReadError> {
        let open = |file: &str| {
            let path = folder.join(file);
            let opened = std::fs::File::open(&path);
            opened.map_err(|source| ReadError::File { file: path.display().to_string(), source })
        };
        let files = FILES.map(open);
        let [report, backtrace, log, packets] = files;
        Self::from_files([report?, backtrace?, log?, packets?])
    }

    /// Reads one from its files, in the order of [`FILES`].
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn from_files(files: [impl Read; 4]) -> Result<Self, ReadError> {
        let mut contents = Vec::new();
        for (file, name) in files.into_iter().zip(FILES) {
            let mut bytes = Vec::new();
            file.take(MAX_FILE_BYTES)
                .read_to_end(&mut bytes)
                .map_err(|source| ReadError::File { file: name.to_owned(), source })?;
            contents.push(bytes);
        }
        let foreign = |at: usize, why: String| ReadError::Foreign { file: FILES[at], why };
        let capture = Capture::new(contents.pop().unwrap_or_default())
            .map_err(|error| foreign(3, error.to_string()))?;
        let report: Report =
            serde_json::from_slice(&contents[0]).map_err(|error| foreign(0, error.to_string()))?;
        if report.packets.len() != capture.frames().len() {
            let (noted, there) = (report.packets.len(), capture.frames().len());
            return Err(foreign(3, format!("{there} packets, and {} tells of {noted}", FILES[0])));
        }
        let text = |at: usize| String::from_utf8_lossy(&contents[at]).into_owned();
        Ok(Self { report, backtrace: text(1), log: text(2), capture })
    }

    /// The packets, with what is known of them.
    pub fn packets(&self) -> impl Iterator<Item = (&PacketNote, &[u8])> {
        let frames = self.capture.frames().iter().map(|frame| self.capture.bytes(frame));
        self.report.packets.iter().zip(frames)
    }

    /// The packets that the NF took, in order and as they came: first those recorded, then those in hand.
    /// Of these the NF may have changed some bytes; where they were recorded, too, those are taken.
    #[must_use]
    pub fn replay(&self) -> Vec<ReplayPacket> {
        let all: Vec<_> = self.packets().collect();
        let of_kind = |kind| {
            all.iter().copied().filter(move |(note, _): &(&PacketNote, _)| note.kind == kind)
        };
        let recorded: HashMap<_, _> = of_kind(PacketKind::Recorded)
            .filter_map(|(note, bytes)| Some((note.number?, bytes)))
            .collect();
        let in_hand: HashMap<_, _> = of_kind(PacketKind::InHand)
            .filter_map(|(note, bytes)| Some((note.number?, bytes)))
            .collect();
        let before = of_kind(PacketKind::Recorded)
            .filter(|(note, _)| note.number.is_none_or(|number| !in_hand.contains_key(&number)));
        let head =
            |note: &PacketNote| note.number.and_then(|number| recorded.get(&number)).copied();
        let before = before.map(|(note, bytes)| packet(note, bytes, None));
        let then = of_kind(PacketKind::InHand).map(|(note, bytes)| packet(note, bytes, head(note)));
        before.chain(then).filter(|packet| !packet.bytes.is_empty()).collect()
    }
}

fn packet(note: &PacketNote, found: &[u8], head: Option<&[u8]>) -> ReplayPacket {
    let mut bytes = found.to_vec();
    if let Some(head) = head.filter(|head| head.len() <= bytes.len()) {
        bytes[..head.len()].copy_from_slice(head);
    }
    let padded = bytes.len() < usize::from(note.len_bytes);
    bytes.resize(note.len_bytes.into(), 0);
    let in_hand = note.kind == PacketKind::InHand;
    ReplayPacket { in_port: note.in_port.unwrap_or(0), bytes, padded, in_hand }
}
