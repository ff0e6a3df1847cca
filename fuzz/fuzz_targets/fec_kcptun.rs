//! Any packets to kcptun's forward error correction, both ways.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fec::dialect::kcptun::fuzz(data));
