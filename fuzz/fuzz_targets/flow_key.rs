//! Any bytes through the flow table: key, hash, lookup with a cache and without.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace::flow::fuzz::fuzz_key(data));
