//! Any text as a configuration: an error of one line, or a configuration.
#![no_main]

use std::path::Path;

use millrace::config::Config;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(error) = Config::parse(text, Path::new("fuzz.toml")) {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
});
