//! What a user sees who makes a mistake: one clear line on standard error and a non-zero exit.

#[path = "support/skip.rs"]
mod skip;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use skip::skip;

const MANAGER: &str = env!("CARGO_BIN_EXE_millrace-manager");
const MILLRACE: &str = env!("CARGO_BIN_EXE_millrace");

/// A directory with a configuration whose socket lies beside it.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a configuration: `head` may open `[pool]` and the like, `ports` is the rest.
    fn config(&self, head: &str, ports: &str) -> PathBuf {
        let path = self.path("m.toml");
        let socket = self.path("m.sock");
        let text = format!(
            "[manager]\nsocket = \"{}\"\ndrain_ms = 50\n{head}\n{ports}\n",
            socket.display()
        );
        std::fs::write(&path, text).unwrap();
        path
    }
}

const SINK: &str = "[[port]]\nname = \"s\"\nbackend = \"sink\"";
const SMALL: &str = "[pool]\nbuffers = 256\nhugepages = \"off\"";

/// Runs to the end, which must come by itself.
fn run(command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    wait(child.spawn().unwrap())
}

fn wait(mut child: Child) -> Output {
    let limit = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > limit {
            child.kill().unwrap();
            panic!("the command hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn manager(config: &Path) -> Output {
    run(Command::new(MANAGER).arg("--config").arg(config))
}

/// Asserts that the command failed with one line that has all of `words`.
#[track_caller]
fn assert_one_line(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it must fail; it said: {stderr}");
    assert!(output.status.code().is_some(), "it must exit, not be killed: {:?}", output.status);
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!(lines.len(), 1, "one line: {stderr}");
    for word in words {
        assert!(lines[0].contains(word), "{word:?} is missing in: {stderr}");
    }
}

#[test]
fn an_unknown_key_is_named_with_file_and_line() {
    let place = Place::new();
    let config = place.config("sockte = 1", SINK);
    assert_one_line(&manager(&config), &["m.toml:4", "sockte", "expected"]);
    let config = place.config(SMALL, &format!("{SINK}\nverfiy = true"));
    assert_one_line(&manager(&config), &["m.toml:7", "port \"s\"", "verfiy"]);
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    assert_one_line(
        &manager(Path::new("/nonexistent/m.toml")),
        &["/nonexistent/m.toml", "No such"],
    );
}

#[test]
fn a_port_on_an_interface_that_does_not_exist_is_named() {
    let place = Place::new();
    let ports = "[[port]]\nname = \"p\"\nbackend = \"af_xdp\"\ninterface = \"mr-nope0\"";
    let config = place.config(SMALL, ports);
    assert_one_line(&manager(&config), &["port \"p\"", "mr-nope0", "no such"]);
}

#[test]
fn too_few_hugepages_are_counted_when_they_are_required() {
    let place = Place::new();
    let config = place.config("[pool]\nbuffers = 8000000\nhugepages = \"require\"", SINK);
    assert_one_line(&manager(&config), &["hugepages", "needed", "free", "vm.nr_hugepages="]);
}

#[test]
fn a_region_larger_than_memory_is_refused_before_it_is_made() {
    let place = Place::new();
    let pool = "[pool]\nbuffers = 4000000000\nbuffer_bytes = 4096\nhugepages = \"off\"";
    assert_one_line(&manager(&place.config(pool, SINK)), &["MiB are needed", "pool.buffers"]);
}

#[test]
fn a_truncated_capture_is_named_with_its_place() {
    let place = Place::new();
    let capture = place.path("t.pcap");
    // A classic pcap header, and a record header that promises 100 bytes and has 4.
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1, 1, 0, 100, 100, 0xdead_beef] {
        bytes.extend(word.to_le_bytes());
    }
    std::fs::write(&capture, bytes).unwrap();
    let ports =
        format!("[[port]]\nname = \"p\"\nbackend = \"pcap\"\nreplay = \"{}\"", capture.display());
    assert_one_line(&manager(&place.config(SMALL, &ports)), &["port \"p\"", "t.pcap", "truncated"]);
}

#[test]
fn a_second_manager_on_the_same_socket_leaves_the_first_alone() {
    let place = Place::new();
    let config = place.config(SMALL, SINK);
    let mut first = Command::new(MANAGER);
    first.arg("--config").arg(&config).stdout(Stdio::piped()).stderr(Stdio::piped());
    let first = first.spawn().unwrap();
    let socket = place.path("m.sock");
    let limit = Instant::now() + Duration::from_secs(30);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < limit, "the first manager does not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = format!("pid {}", first.id());
    assert_one_line(&manager(&config), &["another manager", &pid, "m.sock"]);
    let status = run(Command::new(MILLRACE).arg("--socket").arg(&socket).arg("status"));
    assert!(status.status.success(), "the first manager still serves");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(first.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let output = wait(first);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("balanced"));
    assert!(!socket.exists(), "the socket's file goes with the manager");
}

#[test]
fn a_socket_that_a_dead_manager_left_is_replaced() {
    let place = Place::new();
    let config = place.config(SMALL, SINK);
    for _ in 0..3 {
        let mut child = Command::new(MANAGER)
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let limit = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(place.path("m.sock")).is_err() {
            assert!(Instant::now() < limit, "no manager came up in a dead one's place");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(place.path("m.sock").exists(), "kill -9 leaves the file behind");
    }
}

#[test]
fn a_file_that_is_no_socket_is_not_removed() {
    let place = Place::new();
    let config = place.config(SMALL, SINK);
    std::fs::write(place.path("m.sock"), "precious").unwrap();
    assert_one_line(&manager(&config), &["m.sock", "not a socket"]);
    assert_eq!(std::fs::read_to_string(place.path("m.sock")).unwrap(), "precious");
}

#[test]
fn a_command_without_a_manager_says_what_to_start() {
    let place = Place::new();
    for noun in [&["status"][..], &["port", "list"], &["nf", "list", "--json"], &["stats"]] {
        let socket = place.path("none.sock");
        let output = run(Command::new(MILLRACE).arg("--socket").arg(&socket).args(noun));
        assert_one_line(&output, &["no manager at", "none.sock", "millrace-manager"]);
    }
}

#[test]
fn a_group_that_does_not_exist_is_named() {
    let place = Place::new();
    let config = place.config(&format!("socket_group = \"no-such-group\"\n{SMALL}"), SINK);
    assert_one_line(&manager(&config), &["socket_group", "no-such-group"]);
}

#[test]
fn a_log_level_that_does_not_exist_is_named() {
    let place = Place::new();
    let config = place.config(SMALL, SINK);
    let mut command = Command::new(MANAGER);
    assert_one_line(
        &run(command.arg("--config").arg(&config).args(["--log", "!!"])),
        &["--log", "expected error, warn"],
    );
}

#[test]
fn check_reads_the_configuration_and_starts_nothing() {
    let place = Place::new();
    let config = place.config(SMALL, SINK);
    let output = run(Command::new(MANAGER).arg("--config").arg(&config).arg("--check"));
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("configuration is good"));
    assert!(!place.path("m.sock").exists());
    let bad = place.config("workers = 0", SINK);
    assert_one_line(
        &run(Command::new(MANAGER).arg("--config").arg(bad).arg("--check")),
        &["workers"],
    );
}

#[test]
fn more_workers_than_queues_are_refused_with_both_numbers() {
    let place = Place::new();
    let config = place.config(&format!("workers = 2\n{SMALL}"), SINK);
    assert_one_line(&manager(&config), &["port \"s\"", "1 queues", "2 workers"]);
}

#[test]
fn without_privilege_af_xdp_names_the_capabilities() {
    if !nix::unistd::geteuid().is_root() {
        return skip("needs root, to make an interface and to give root up");
    }
    let place = Place::new();
    let name = format!("mrbad{}", std::process::id() % 100_000);
    let veth = Veth::new(&name);
    let ports =
        format!("[[port]]\nname = \"p\"\nbackend = \"af_xdp\"\ninterface = \"{}\"", veth.name);
    let config = place.config(SMALL, &ports);
    // A copy that any user may run and read, in a directory any user may write.
    let binary = place.path("millrace-manager");
    std::fs::copy(MANAGER, &binary).unwrap();
    open_to_all(place.directory.path());
    let output = run(Command::new(&binary).arg("--config").arg(&config).uid(65_534).gid(65_534));
    assert_one_line(&output, &["port \"p\"", "permission denied", "CAP_NET_RAW"]);
}

#[test]
fn the_interface_with_the_default_route_is_refused_without_force() {
    if !nix::unistd::geteuid().is_root() {
        return skip("needs root, to make a network namespace with a default route");
    }
    let place = Place::new();
    let mut backends = vec!["backend = \"af_xdp\"\ninterface = \"mrdef0\""];
    if cfg!(feature = "dpdk") {
        backends.push("backend = \"dpdk\"\ndevice = \"net_af_packet0,iface=mrdef0\"");
    }
    for backend in backends {
        let config = place.config(SMALL, &format!("[[port]]\nname = \"p\"\n{backend}"));
        let script = format!(
            "ip link add mrdef0 type veth peer name mrdef1 && ip link set mrdef0 up && \
             ip link set mrdef1 up && ip addr add 10.99.9.1/24 dev mrdef0 && \
             ip route add default via 10.99.9.2 || exit 99; exec '{MANAGER}' --config '{}'",
            config.display()
        );
        let output = run(Command::new("unshare").args(["--net", "sh", "-c", &script]));
        assert_ne!(output.status.code(), Some(99), "the namespace could not be made");
        assert_one_line(&output, &["port \"p\"", "carries the default route", "--force"]);
    }
}

#[cfg(feature = "dpdk")]
#[test]
fn a_missing_libdpdk_is_said_in_one_line_and_only_when_a_port_needs_it() {
    if !nix::unistd::geteuid().is_root() {
        return skip("needs root, to hide libdpdk in a mount namespace");
    }
    let place = Place::new();
    let ports = "[[port]]\nname = \"p\"\nbackend = \"dpdk\"\ndevice = \"net_null0\"";
    let config = place.config(SMALL, ports);
    let hidden = |config: &Path, extra: &str| {
        let script = format!(
            "for f in $(ldconfig -p | grep -o '/[^ ]*librte_eth[^ ]*'); do \
             mount --bind /dev/null \"$f\" || exit 99; done; \
             exec '{MANAGER}' --config '{}' {extra}",
            config.display()
        );
        run(Command::new("unshare").args(["--mount", "sh", "-c", &script]))
    };
    let output = hidden(&config, "");
    if output.status.code() == Some(99) {
        return skip("this environment allows no bind mounts");
    }
    assert_one_line(&output, &["libdpdk", "apt-get install"]);
    let output = hidden(&place.config(SMALL, SINK), "--check");
    assert!(output.status.success(), "without a dpdk port, libdpdk is not missed");
}

#[cfg(not(feature = "dpdk"))]
#[test]
fn a_manager_built_without_dpdk_says_so() {
    let place = Place::new();
    let ports = "[[port]]\nname = \"p\"\nbackend = \"dpdk\"\ndevice = \"net_null0\"";
    assert_one_line(&manager(&place.config(SMALL, ports)), &["built without DPDK"]);
}

fn open_to_all(directory: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    for entry in std::fs::read_dir(directory).unwrap() {
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(entry.unwrap().path(), mode).unwrap();
    }
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).unwrap();
}

/// A pair of interfaces of our own that goes with this value.
struct Veth {
    name: String,
}

impl Veth {
    fn new(name: &str) -> Self {
        let peer = format!("{name}p");
        let status = Command::new("ip")
            .args(["link", "add", name, "type", "veth", "peer", "name", &peer])
            .status()
            .unwrap();
        assert!(status.success());
        for end in [name, &peer] {
            let _ = Command::new("ip").args(["link", "set", end, "up"]).status();
        }
        Self { name: name.to_owned() }
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.name]).status();
    }
}

#[test]
fn a_wanted_state_that_is_impossible_is_one_line_with_its_place() {
    let place = Place::new();
    let chain = |name: &str, rest: &str| format!("{SINK}\n[[chain]]\nname = \"{name}\"\n{rest}");
    for (tables, words) in [
        (
            format!("{}\n[[service]]\nname = \"nat\"", chain("default", "services = [\"fw\"]")),
            ["m.toml:10:", "no service \"fw\"", "there are nat"],
        ),
        (chain("a", "end = \"chain:a\""), ["m.toml:10:", "a → a", "another end"]),
        (
            chain("a", "[[chain]]\nname = \"a\""),
            ["m.toml:12:", "two chains are named \"a\"", "differ"],
        ),
        (
            chain("a", "[[rule]]\nname = \"r\"\nthen = { out = \"wan\" }"),
            ["m.toml:12:", "rule \"r\"", "no port \"wan\"; there are s"],
        ),
        (
            format!("{SINK}\n[chain]\nservices = [1]"),
            ["m.toml:10:", "[[chain]]", "name = \"default\""],
        ),
    ] {
        let config = place.config(SMALL, &tables);
        assert_one_line(&manager(&config), &words);
    }
}

#[test]
fn a_check_prints_what_to_know_and_starts_nothing() {
    let place = Place::new();
    let rules = "[[rule]]\nmatch = { in_port = \"s\" }\nthen = { drop = true }\n\
                 [[rule]]\nname = \"tcp\"\nmatch = { ip_proto = \"tcp\" }\nthen = { drop = true }";
    let config = place.config(SMALL, &format!("{SINK}\n{rules}"));
    let output = run(Command::new(MANAGER).arg("--config").arg(&config).arg("--check"));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !place.path("m.sock").exists());
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].contains("0 services, 0 chains, 2 rules"), "{said}");
    assert!(lines[1].starts_with("note: ") && lines[1].contains("(no_rule)"), "{said}");
    assert!(lines[2].contains("rules 0/0 in_port=s and tcp overlap"), "{said}");
    assert_eq!(lines.len(), 3, "{said}");
}
