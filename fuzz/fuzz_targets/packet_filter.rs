//! Any bytes as a packet filter and a packet: refused, or an answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nflib::observe::fuzz::fuzz_filter(data));
