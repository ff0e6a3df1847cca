//! What `millrace-nf` says to a person, and how it ends.

use std::process::{Command, Output};

fn millrace_nf(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-nf"));
    command.args(args).env_remove("MILLRACE_SOCKET").output().unwrap()
}

/// The one line of stderr.
fn complaint(output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn without_a_name_it_says_how_it_is_used() {
    let output = millrace_nf(&[]);
    assert_eq!(output.status.code(), Some(2));
    let said = complaint(&output);
    assert!(said.contains("usage: millrace-nf <NAME>") && said.contains("forward"), "{said}");
}

#[test]
fn an_unknown_name_is_named_in_one_line() {
    let output = millrace_nf(&["forwrad", "--service", "1"]);
    assert_eq!(output.status.code(), Some(2));
    let said = complaint(&output);
    assert!(said.contains("'forwrad'") && said.contains("forward"), "{said}");
}

#[test]
fn help_lists_every_nf() {
    let output = millrace_nf(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("Network functions:") && said.contains("forward  "), "{said}");
}

#[test]
fn forward_without_arguments_says_what_is_missing() {
    let output = millrace_nf(&["forward"]);
    assert_eq!(output.status.code(), Some(2));
    let said = complaint(&output);
    assert!(said.contains("--service <SERVICE>"), "{said}");
}

#[test]
fn a_limit_that_is_none_is_refused_in_one_line() {
    for (option, value) in [
        ("--packet-limit", "0"),
        ("--time-limit-s", "soon"),
        ("--core", "-1"),
        ("--to-port", "256"),
        ("--busy-ns", "1000001"),
    ] {
        let option_is = format!("{option}={value}");
        let output = millrace_nf(&["forward", "--service", "1", &option_is]);
        assert_eq!(output.status.code(), Some(2));
        let said = complaint(&output);
        assert!(said.contains(value) && said.contains(option), "{said}");
    }
}

#[test]
fn what_a_speed_test_cannot_do_is_refused_in_one_line_that_names_the_option() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pcap");
    std::fs::write(&empty, b"").unwrap();
    let cases = [
        (["--touch", "nonsense"], 2, "none, header, payload"),
        (["--packets-in-flight", "0"], 2, "0"),
        (["--packet-bytes", "59"], 2, "60"),
        (["--packet-bytes", "65536"], 2, "65536"),
        (["--sample", "-1"], 2, "-1"),
        (["--print-every", "0"], 2, "0"),
        (["--pcap", "/nonexistent/some.pcap"], 1, "/nonexistent/some.pcap"),
        (["--pcap", empty.to_str().unwrap()], 1, "it is empty"),
    ];
    for ([option, value], code, expected) in cases {
        let option_is = format!("{option}={value}");
        let output = millrace_nf(&["speed-test", "--service", "1", "--no-wait", &option_is]);
        assert_eq!(output.status.code(), Some(code), "{option_is}");
        let said = complaint(&output);
        assert!(said.contains(expected) && said.contains(option), "{said}");
    }
    for both in [["--latency", "--sample=5"], ["--pcap=x", "--packet-bytes=64"]] {
        let output = millrace_nf(&["speed-test", "--service=1", both[0], both[1]]);
        assert_eq!(output.status.code(), Some(2));
        assert!(complaint(&output).contains("cannot be used with"));
    }
}

#[test]
fn forward_goes_to_a_port_or_to_a_service_and_not_to_both() {
    let output = millrace_nf(&["forward", "--service=1", "--to-port=1", "--to-service=2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("--to-service"));
}

#[test]
fn without_a_manager_no_wait_fails_in_one_line_that_names_the_socket() {
    let socket = "/nonexistent/millrace.sock";
    let output = millrace_nf(&["forward", "--service", "1", "--no-wait", "--socket", socket]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains(socket));
}

#[test]
fn a_core_that_there_is_not_is_refused_before_a_manager_is_looked_for() {
    let output = millrace_nf(&["forward", "--service", "1", "--core", "1023"]);
    assert_eq!(output.status.code(), Some(1));
    let said = complaint(&output);
    assert!(said.contains("core 1023 cannot be used") && said.contains("may use"), "{said}");
}

#[test]
fn the_socket_can_be_named_by_the_environment() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-nf"));
    command.args(["forward", "--service", "1", "--no-wait"]);
    let output = command.env("MILLRACE_SOCKET", "/nonexistent/by-env.sock").output().unwrap();
    assert!(complaint(&output).contains("/nonexistent/by-env.sock"));
}

#[test]
fn a_log_level_that_is_none_is_refused_in_one_line() {
    let output = millrace_nf(&["forward", "--service", "1", "--no-wait", "--log", "loud=very"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("loud=very"));
}

#[test]
fn a_chain_names_the_nf_that_is_wrong_in_one_line() {
    for (list, what) in [
        ("forward,forwrad", "NF 2"),
        ("forward,,forward", "NF 2 has no name"),
        ("forward --busy-ns nonsense", "NF 1"),
        ("forward --core 1", "--core"),
        ("firewall --rule 'deny tpc'", "expected a protocol"),
    ] {
        let output = millrace_nf(&["chain", list, "--service", "1", "--no-wait"]);
        assert_eq!(output.status.code(), Some(2), "{list}");
        let said = complaint(&output);
        assert!(said.contains(what), "{list}: {said}");
    }
    let list = "speed-test,forward";
    let output = millrace_nf(&["chain", list, "--service", "1", "--no-wait"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("can only be the last"));
}

#[test]
fn a_firewall_names_the_rule_that_is_wrong_in_one_line() {
    for (option, what) in [
        ("--rule=deny tcp to any 70000", "a transport port"),
        ("--rule=permit tcp", "expected allow or deny"),
        ("--default=maybe", "expected allow or deny"),
    ] {
        let output = millrace_nf(&["firewall", "--service", "1", "--no-wait", option]);
        assert_eq!(output.status.code(), Some(2), "{option}");
        let said = complaint(&output);
        assert!(said.contains(what), "{option}: {said}");
    }
    let output =
        millrace_nf(&["firewall", "--service=1", "--no-wait", "--rules-file=/nonexistent/rules"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("/nonexistent/rules: "));
}

/// Options that each end of an FEC tunnel needs, without `left_out`, and `more`.
fn fec(nf: &str, left_out: &str, more: &[&str]) -> Output {
    let required = [
        ("--local", "192.0.2.1:4950"),
        ("--peer", "198.51.100.1:4950"),
        ("--mac", "02:00:00:00:00:0a"),
        ("--next-hop-mac", "02:00:00:00:00:0b"),
    ];
    let given = required.iter().filter(|(option, _)| *option != left_out);
    let given = given.flat_map(|(option, value)| [*option, *value]);
    let fixed = [nf, "--service", "1", "--no-wait", "--socket", "/nonexistent/millrace.sock"];
    millrace_nf(&fixed.into_iter().chain(given).chain(more.iter().copied()).collect::<Vec<_>>())
}

#[test]
fn either_end_of_an_fec_tunnel_is_ready_with_what_is_required() {
    for nf in ["fec-encode", "fec-decode"] {
        // The first thing that it misses is a manager.
        let output = fec(nf, "", &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(complaint(&output).contains("/nonexistent/millrace.sock"));
        for option in ["--local", "--peer", "--mac", "--next-hop-mac"] {
            let output = fec(nf, option, &[]);
            assert_eq!(output.status.code(), Some(2));
            assert!(complaint(&output).contains(option), "{nf} {option}");
        }
    }
}

#[test]
fn an_fec_tunnel_that_cannot_be_is_refused_in_one_line_that_says_what_can() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "no key").unwrap();
    let key = key.to_str().unwrap();
    let both: [(&[&str], i32, &str); 8] = [
        (&["--mtu", "1323"], 1, "expected at least 1324"),
        (&["--mtu", "70000"], 2, "70000"),
        (&["--key-file", "/nonexistent/key"], 1, "/nonexistent/key"),
        (&["--key-file", key], 1, "32 hexadecimal digits"),
        (&["--udp-checksum", "sometimes"], 2, "auto, on, off"),
        (&["--mss-clamp", "maybe"], 2, "on, off"),
        (&["--to-port", "256"], 2, "256"),
        (&["--stock", "1"], 2, "--stock"),
    ];
    let encode: [(&[&str], i32, &str); 9] = [
        (&["-k", "0"], 2, "1..=64"),
        (&["-k", "65"], 2, "1..=64"),
        (&["-m", "17"], 2, "1..=16"),
        (&["-m", "2", "--adaptive", "target=1e-4"], 2, "cannot be used with"),
        (&["--adaptive", "target=2"], 2, "a target above 0"),
        (&["-k", "2", "--adaptive", "target=1e-4,cap=0.3"], 1, "1/k or more"),
        (&["-k", "64", "--stride", "32"], 1, "stride 32 with k = 64"),
        (&["--stride", "far"], 2, "auto:MOST"),
        (&["--flush-ms", "101"], 2, "1..=100"),
    ];
    let decode: [(&[&str], i32, &str); 6] = [
        (&["--peer", "[2001:db8::1]:4950"], 1, "one IP version"),
        (&["--peer", "198.51.100.1:4950"], 1, "given twice"),
        (&["--in-order", "5"], 2, "PACKETS,MS"),
        (&["--memory-mib", "0"], 2, "--memory-mib"),
        (&["--report-ms", "99"], 2, "100..=1000"),
        (&["--reports-to", "a", "--reports-to", "b"], 1, "--reports-to 2 times"),
    ];
    let encode = both.iter().chain(&encode).map(|case| ("fec-encode", case));
    let decode = both.iter().chain(&decode).map(|case| ("fec-decode", case));
    for (nf, (options, code, expected)) in encode.chain(decode) {
        let output = fec(nf, "", options);
        assert_eq!(output.status.code(), Some(*code), "{nf} {options:?}: {output:?}");
        let said = complaint(&output);
        assert!(said.contains(expected), "{nf} {options:?}: {said}");
    }
    for (option, value) in [
        ("--local", "192.0.2.1"),
        ("--peer", "0.0.0.0:4950"),
        ("--mac", "ff:ff:ff:ff:ff:ff"),
        ("--next-hop-mac", "02:00"),
    ] {
        let output = fec("fec-encode", option, &[option, value]);
        assert_eq!(output.status.code(), Some(2));
        let said = complaint(&output);
        assert!(said.contains(option) && said.contains("expected"), "{said}");
    }
}
