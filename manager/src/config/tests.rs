//! Whole files: what is read, and what each mistake is called.
#![forbid(unsafe_code)]

use super::*;
use crate::model::{End, Unmatched};

const GOOD: &str = r#"
    [manager]
    socket = "/tmp/x.sock"
    [[port]]
    name = "in"
    backend = "generator"
    egress = "out"
    [[port]]
    name = "out"
    backend = "sink"
    [[chain]]
    name = "default"
    services = [1, 2]
"#;

fn error_of(text: &str) -> String {
    let text = Config::parse(text, Path::new("m.toml")).unwrap_err().to_string();
    assert!(!text.contains('\n'), "an error is one line: {text}");
    assert!(text.starts_with("m.toml"), "an error names the file: {text}");
    text
}

#[test]
fn a_good_file_resolves_its_names() {
    let config = Config::parse(GOOD, Path::new("m.toml")).unwrap();
    assert_eq!(config.ports[0].egress, Some(1));
    let chain = config.model.default_chain().unwrap();
    assert_eq!((&chain.services[..], chain.end), (&[1, 2][..], End::Egress));
    assert_eq!(config.model.unmatched(), Unmatched::Chain(chain.id));
    assert!(config.notes.is_empty() && !config.manager.wait_for_nfs);
    assert_eq!(config.pool.buffers, 16_384);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let error = error_of("[manager]\nsockte = \"x\"\n");
    assert!(error.starts_with("m.toml:2:") && error.contains("sockte"), "{error}");
    let error = error_of(&GOOD.replace("egress", "egrees"));
    assert!(error.contains("port \"in\"") && error.contains("egrees"), "{error}");
}

#[test]
fn each_mistake_says_what_was_expected() {
    for (from, to, expected) in [
        ("egress = \"out\"", "egress = \"nope\"", "there are in, out"),
        ("\"generator\"", "\"genrator\"", "expected one of af_xdp"),
        ("name = \"out\"", "name = \"in\"", "names must differ"),
        ("name = \"in\"", "", "add name"),
        ("[manager]", "[manager]\nworkers = 0", "at least 1"),
        ("[manager]", "[manager]\ncores = [0, 0]", "give one each"),
        ("[manager]", "[manager]\ncores = [4000]", "no core 4000"),
        ("[manager]", "[manager]\nring_capacity = 100", "power of two"),
        ("[manager]", "[pool]\nbuffers = 3\n[manager]", "at least 64"),
        ("[manager]", "[pool]\nbuffer_bytes = 100\n[manager]", "multiple of 64"),
        ("[manager]", "[pool]\nhugepages = \"maybe\"\n[manager]", "maybe"),
        ("services = [1, 2]", "services = [70000]", "chain \"default\""),
        ("services = [1, 2]", "services = [65535]", "1 to 65534"),
    ] {
        let error = error_of(&GOOD.replacen(from, to, 1));
        assert!(error.contains(expected), "{to}: {error}");
    }
    assert!(error_of("").contains("at least one"));
}
