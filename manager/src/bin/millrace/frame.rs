//! Frames to ask about: built from a five-tuple, read from hex, or taken from a capture file.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context as _, bail};
use millrace::ports::pcap::Capture;
pub use nflib::control::frame::from_tuple;

/// Longest capture file that is read, bytes: it is held in memory.
const CAPTURE_MAX_BYTES: u64 = 1 << 30;

/// The bytes behind `--hex`.
///
/// # Errors
/// One line.
pub fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    nflib::control::frame::from_hex(text).map_err(|error| format!("--hex: {error}"))
}

/// A frame of a capture file: `FILE`, its first, or `FILE:N`, its N-th, from 1.
///
/// # Errors
/// What is wrong with the file, or how many frames it has.
pub fn from_capture(argument: &str) -> anyhow::Result<Vec<u8>> {
    let (path, number) = match argument.rsplit_once(':') {
        // A file whose own name ends in a number is itself.
        Some((path, number)) if !Path::new(argument).exists() => match number.parse::<usize>() {
            Ok(number) if number > 0 => (path, number),
            _ => (argument, 1),
        },
        _ => (argument, 1),
    };
    let len_bytes = std::fs::metadata(path).with_context(|| path.to_owned())?.len();
    if len_bytes > CAPTURE_MAX_BYTES {
        bail!("{path}: {len_bytes} bytes, at most {CAPTURE_MAX_BYTES} are read: cut a part out");
    }
    let bytes = std::fs::read(path).with_context(|| path.to_owned())?;
    let capture = Capture::new(bytes).with_context(|| path.to_owned())?;
    let frames = capture.frames();
    match frames.get(number - 1) {
        Some(frame) => Ok(capture.bytes(frame).to_vec()),
        None => bail!("{path}: there is no frame {number}; the file has {}", frames.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_none_are_told_with_their_option() {
        assert!(from_hex("00f").unwrap_err().starts_with("--hex: 3 digits"));
    }

    #[test]
    fn a_frame_of_a_capture_is_found_by_its_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("two.pcap");
        let mut file =
            [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1].map(u32::to_le_bytes).concat();
        for byte in [1, 2] {
            file.extend([0_u32, 0, 60, 60].map(u32::to_le_bytes).concat());
            file.extend([byte; 60]);
        }
        std::fs::write(&path, file).unwrap();
        let path = path.display();
        assert_eq!(from_capture(&path.to_string()).unwrap(), [1; 60]);
        assert_eq!(from_capture(&format!("{path}:2")).unwrap(), [2; 60]);
        let error = from_capture(&format!("{path}:3")).unwrap_err();
        assert!(format!("{error:#}").ends_with("there is no frame 3; the file has 2"), "{error:#}");
        let error = from_capture("/nonexistent.pcap").unwrap_err();
        assert!(format!("{error:#}").starts_with("/nonexistent.pcap: "), "{error:#}");
    }
}
