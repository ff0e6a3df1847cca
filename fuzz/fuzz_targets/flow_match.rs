//! Any lines of `field=value` as a match: a match, or an error of one line.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| millrace::flow::fuzz::fuzz_match(text));
