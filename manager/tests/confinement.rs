//! What a program that the launcher has started can and cannot do.
//!
//! The program is this test's own: `attempts`, which tries everything and prints how it went.
// Not `forbid`: the calls that must be refused are made in `support/syscall.rs`.
#![deny(unsafe_code)]

#[path = "support/skip.rs"]
mod skip;
#[path = "support/syscall.rs"]
mod syscall;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use millrace::supervisor::exec::{Account, Surroundings};
use nflib::control::Confine;
use nflib::shm::{HugePages, Region, RegionGeometry};
use skip::skip;

const LAUNCHER: &str = env!("CARGO_BIN_EXE_millrace-manager");
/// Tells [`attempts`] where to try to write, and that it is the program.
const FOLDER: &str = "MILLRACE_TEST_FOLDER";

/// What `attempts` found, by name: `ok`, or the error's number.
type Found = BTreeMap<String, String>;

fn confined(confine: Confine) -> Surroundings {
    Surroundings { confined: true, confine: Some(confine), ..Surroundings::default() }
}

/// A folder that everybody may write.
fn open_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let all = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder.path(), all).unwrap();
    folder
}

/// Runs `attempts` by the launcher.
fn attempt(surroundings: &Surroundings, folder: &Path) -> Found {
    attempt_with(surroundings, folder, Stdio::null())
}

fn attempt_with(surroundings: &Surroundings, folder: &Path, stdin: Stdio) -> Found {
    let program = std::env::current_exe().unwrap();
    let args = ["attempts", "--exact", "--nocapture"].map(OsString::from);
    let child = Command::new(LAUNCHER)
        .args(surroundings.to_args(program.as_os_str(), &args))
        .env(FOLDER, folder)
        .stdin(stdin)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let complaint = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{}: {said}\n{complaint}", child.status);
    let lines = said.lines().filter_map(|line| line.strip_prefix("tried "));
    lines.filter_map(|line| line.rsplit_once('=')).map(|(a, b)| (a.into(), b.into())).collect()
}

fn open_to_write(path: &str) -> std::io::Result<()> {
    std::fs::OpenOptions::new().read(true).write(true).open(path).map(|_| ())
}

/// The program itself; as a test of its own it does nothing.
#[test]
fn attempts() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out);
    let mut tell = |name: &str, result: Result<(), i32>| {
        let result = result.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
        let _ = writeln!(out, "tried {name}={result}");
    };
    for (name, result) in syscall::attempt_all() {
        tell(name, result);
    }
    tell("punch by madvise", syscall::punch_by_madvise());
    let io = |result: std::io::Result<()>| result.map_err(|e| e.raw_os_error().unwrap_or(-1));
    tell("write a file", io(std::fs::write(folder.join("new"), b"x")));
    tell("read a file", io(std::fs::read(folder.join("there")).map(|_| ())));
    tell("read the system's", io(std::fs::read("/etc/passwd").map(|_| ())));
    tell("read /proc", io(std::fs::read("/proc/self/status").map(|_| ())));
    tell("write /dev/null", io(std::fs::write("/dev/null", b"x")));
    tell("open a device", io(std::fs::read_dir("/dev").map(|_| ())));
    let parent = format!("/proc/{}/mem", nix::unistd::getppid());
    tell("open the parent's memory", io(std::fs::File::open(parent).map(|_| ())));
    let signal = nix::sys::signal::kill(nix::unistd::getppid(), None);
    tell("signal the parent", signal.map_err(|errno| errno as i32));
    tell("write standard input", io(open_to_write("/proc/self/fd/0")));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    tell("chmod standard input", io(std::fs::set_permissions("/proc/self/fd/0", mode)));
    tell("write it then", io(open_to_write("/proc/self/fd/0")));
    let mapped = nflib::shm::Mapping::new(std::io::stdin(), 4096, true).map(|_| ());
    tell("map standard input to write", io(mapped));
    tell("map it to read", io(nflib::shm::Mapping::read_only(std::io::stdin(), 4096).map(|_| ())));
    let unix = std::os::unix::net::UnixStream::pair().map(|_| ());
    tell("a Unix socket", io(unix));
    tell("a UDP socket", io(std::net::UdpSocket::bind("127.0.0.1:0").map(|_| ())));
    tell("a thread", io(std::thread::Builder::new().spawn(|| ()).map(|t| t.join().unwrap())));
    let child = Command::new("/bin/sh").args(["-c", "exit 0"]).status().map(|_| ());
    tell("a child", io(child));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
        let bits = u64::from_str_radix(line[1..].trim(), 16).unwrap();
        tell(set, if bits == 0 { Ok(()) } else { Err(bits.count_ones().cast_signed()) });
    }
}

fn folder_with_a_file() -> tempfile::TempDir {
    let folder = open_folder();
    std::fs::write(folder.path().join("there"), b"x").unwrap();
    folder
}

#[track_caller]
fn assert_found(found: &Found, names: &[&str], expected: &[&str]) {
    for name in names {
        let result = found.get(*name).unwrap_or_else(|| panic!("{name} was not tried: {found:?}"));
        assert!(expected.contains(&result.as_str()), "{name}: {result}; {found:#?}");
    }
}

const ORDINARY: [&str; 6] =
    ["read the system's", "read /proc", "write /dev/null", "a Unix socket", "a thread", "a child"];

#[test]
fn what_no_ordinary_nf_does_is_refused_and_what_all_do_is_not() {
    let folder = folder_with_a_file();
    for confine in [Confine::Default, Confine::Strict] {
        let found = attempt(&confined(confine), folder.path());
        for (name, ..) in syscall::FORBIDDEN {
            // EPERM; clone3 is "not there", so that the library takes clone instead.
            assert_found(&found, &[name], &["1", "38"]);
        }
        assert_found(&found, &["punch by madvise"], &["1"]);
        assert_found(&found, &ORDINARY, &["ok"]);
        let network = if confine == Confine::Strict { "1" } else { "ok" };
        assert_found(&found, &["a UDP socket"], &[network]);
    }
    let found = attempt(&confined(Confine::Off), folder.path());
    assert_found(&found, &["punch by madvise", "write a file", "a UDP socket"], &["ok"]);
    for name in syscall::TELLING {
        assert_ne!(found[*name], "1", "{name} is refused without the filter, too");
    }
}

#[test]
fn no_capability_is_left_in_any_set() {
    let folder = folder_with_a_file();
    for confine in [Confine::Default, Confine::Off] {
        let found = attempt(&confined(confine), folder.path());
        assert_found(&found, &["CapInh", "CapPrm", "CapEff", "CapAmb"], &["ok"]);
        if nix::unistd::geteuid().is_root() {
            assert_found(&found, &["CapBnd"], &["ok"]);
        } else {
            skip("CapBnd: only root can empty the bounding set");
        }
    }
}

#[test]
fn files_are_read_and_written_only_where_the_service_says_so() {
    if nflib::shm::landlock_version() == 0 {
        return skip("this kernel has no Landlock");
    }
    let folder = folder_with_a_file();
    let found = attempt(&confined(Confine::Default), folder.path());
    assert_found(&found, &["read a file"], &["ok"]);
    assert_found(&found, &["write a file", "open a device"], &["13"]);
    assert_found(&found, &["open the parent's memory"], &["13", "1"]);
    if nflib::shm::landlock_version() >= 6 {
        assert_found(&found, &["signal the parent"], &["1"]);
    }
    let strict = attempt(&confined(Confine::Strict), folder.path());
    assert_found(&strict, &["read a file", "write a file"], &["13"]);
    let writable = vec![folder.path().to_owned()];
    let allowed = Surroundings { writable, ..confined(Confine::Strict) };
    assert_found(&attempt(&allowed, folder.path()), &["read a file", "write a file"], &["ok"]);
}

#[test]
fn another_user_is_confined_just_as_well() {
    if !nix::unistd::geteuid().is_root() {
        return skip("only root can become another user");
    }
    let folder = folder_with_a_file();
    let account = Some(Account { uid: 54_321, gid: 54_321, groups: vec![] });
    let found = attempt(&Surroundings { account, ..confined(Confine::Default) }, folder.path());
    for (name, ..) in syscall::FORBIDDEN {
        assert_found(&found, &[name], &["1", "38"]);
    }
    assert_found(&found, &["CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"], &["ok"]);
    assert_found(&found, &ORDINARY, &["ok"]);
}

#[test]
fn a_path_to_write_that_does_not_exist_is_named() {
    if nflib::shm::landlock_version() == 0 {
        return skip("this kernel has no Landlock");
    }
    let writable = vec!["/no/such/folder".into()];
    let surroundings = Surroundings { writable, ..confined(Confine::Default) };
    let child = Command::new(LAUNCHER)
        .args(surroundings.to_args("/bin/true".as_ref(), &[]))
        .output()
        .unwrap();
    assert_eq!(child.status.code(), Some(125));
    let said = String::from_utf8(child.stderr).unwrap();
    assert!(said.contains("writable /no/such/folder: No such file"), "{said}");
    assert_eq!(said.lines().count(), 1);
}

/// A packet region, whose reader has it as standard input.
fn region() -> Region {
    let geometry = RegionGeometry { buffers: 8, stride_bytes: 2048, headroom_bytes: 256 };
    Region::create(geometry, HugePages::Off).unwrap()
}

#[test]
fn who_may_read_the_packet_region_cannot_make_it_one_that_it_may_write() {
    let folder = folder_with_a_file();
    let mut readers = vec![Surroundings { reader: true, ..confined(Confine::Default) }];
    if nix::unistd::geteuid().is_root() {
        // The file's mode is enough against another user.
        let account = Some(Account { uid: 54_321, gid: 54_321, groups: vec![] });
        readers.push(Surroundings { account, ..confined(Confine::Off) });
    }
    for reader in readers {
        let region = region();
        let fd = region.read_only_fd().unwrap();
        let found = attempt_with(&reader, folder.path(), fd.into());
        assert_found(&found, &["map it to read"], &["ok"]);
        let writes = ["write standard input", "write it then", "map standard input to write"];
        assert_found(&found, &writes, &["13"]);
        assert_found(&found, &["chmod standard input"], &["1"]);
    }
    // Its owner, of whom the launcher was not told that it is a reader, could.
    let owner = confined(Confine::Off);
    let fd = region().read_only_fd().unwrap();
    let found = attempt_with(&owner, folder.path(), fd.into());
    assert_found(&found, &["chmod standard input", "write it then"], &["ok"]);
}
