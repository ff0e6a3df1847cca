//! The examples do what they say, and stay as short as promised.

use std::net::IpAddr;
use std::process::Command;

use nflib::testing::{FrameBuilder, TestBench};
use nflib::{Action, NetworkFunction as _};

#[allow(dead_code)]
#[path = "../examples/drop_odd.rs"]
mod drop_odd;

fn udp_to(port: u16) -> Vec<u8> {
    let [src, dst] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
    FrameBuilder::new().ip(src, dst).udp(1000, port).build()
}

#[test]
fn drop_odd_drops_odd_ports_and_nothing_else() {
    let mut bench = TestBench::new(drop_odd::DropOdd);
    assert_eq!(bench.feed_one(&udp_to(53)).unwrap().action, Action::Drop);
    assert_eq!(bench.feed_one(&udp_to(80)).unwrap().action, Action::Next);
    assert_eq!(bench.feed_one(&[0; 60]).unwrap().action, Action::Next);
    assert_eq!(bench.feed_one(&[]).unwrap().action, Action::Next);
    assert_eq!(drop_odd::DropOdd.tick_interval(), None);
}

#[test]
fn a_new_nf_takes_under_20_lines() {
    let lines = include_str!("../examples/drop_odd.rs").lines().count();
    assert!(lines < 20, "{lines} lines");
}

#[test]
fn an_example_without_arguments_says_what_is_missing_in_one_line() {
    let program = example("drop_odd");
    let output = Command::new(program).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.lines().count() == 1 && said.contains("--service"), "{said}");
}

/// Cargo builds the examples before it runs this test, next to the directory of test programs.
fn example(name: &str) -> std::path::PathBuf {
    let this = std::env::current_exe().unwrap();
    this.parent().and_then(|deps| deps.parent()).unwrap().join("examples").join(name)
}
