//! Any bytes, cut anywhere, as frames of the control socket.
#![no_main]

use nflib::control::{FrameReader, MAX_REQUEST_BYTES, Request};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let cut = data.first().map_or(0, |&at| usize::from(at).min(data.len()));
    let mut reader = FrameReader::new(MAX_REQUEST_BYTES);
    for part in [&data[..cut], &data[cut..]] {
        reader.extend(part);
        while let Ok(Some(_)) = reader.next_message::<Request>() {}
    }
});
