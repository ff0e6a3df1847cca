//! Any packets to SMPTE ST 2022-1's forward error correction, both ways.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fec::dialect::smpte::fuzz(data));
