//! Any payloads, at any times, into FEC decoders of every kind.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fec::decoder::fuzz::fuzz_one(data));
