//! Any bytes through the header parser and every field setter.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nflib::headers::fuzz::fuzz_one(data));
