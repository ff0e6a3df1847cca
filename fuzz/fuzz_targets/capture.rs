//! Any bytes as a capture file: an error, or frames that lie inside it.
#![no_main]

use millrace::ports::pcap::Capture;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(capture) = Capture::new(data.to_vec()) {
        for frame in capture.frames() {
            assert!(capture.bytes(frame).len() <= data.len());
        }
    }
});
