//! Any bytes, cut anywhere, as frames of the control socket.
#![no_main]

use nflib::control::{FrameReader, MAX_REQUEST_BYTES, Reply, Request};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let cut = data.first().map_or(0, |&at| usize::from(at).min(data.len()));
    // As the manager reads what NFs and commands say, and as they read what it says.
    let mut requests = FrameReader::new(MAX_REQUEST_BYTES);
    let mut replies = FrameReader::new(MAX_REQUEST_BYTES);
    for part in [&data[..cut], &data[cut..]] {
        requests.extend(part);
        while let Ok(Some(_)) = requests.next_message::<Request>() {}
        replies.extend(part);
        while let Ok(Some(_)) = replies.next_message::<Reply>() {}
    }
});
