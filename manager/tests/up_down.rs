//! `millrace up` and `millrace down` with the real manager and real NFs.
#![forbid(unsafe_code)]

#[path = "support/skip.rs"]
mod skip;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nflib::control::{Status, request_status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skip::skip;

const MILLRACE: &str = env!("CARGO_BIN_EXE_millrace");
const LIMIT: Duration = Duration::from_secs(60);

/// Where what is left of crashed NFs is put.
const CRASHES: &str = "m.sock.crashes";

/// A folder with a configuration, and perhaps a manager.
struct Site {
    folder: tempfile::TempDir,
}

/// What a command said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Site {
    /// A site whose services are given as TOML.
    fn new(services: &str) -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap() };
        site.configure(services);
        site
    }

    fn configure(&self, services: &str) {
        let text = format!(
            "[manager]\nsocket = \"{}\"\nring_capacity = 1024\ndrain_ms = 500\n\
             [pool]\nbuffers = 4096\nhugepages = \"off\"\n\
             [[port]]\nname = \"in\"\nbackend = \"generator\"\nrate_pps = 1000\negress = \"out\"\n\
             [[port]]\nname = \"out\"\nbackend = \"sink\"\n{services}",
            self.socket().display()
        );
        std::fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("m.toml")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("m.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("m.log")).unwrap()
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(MILLRACE);
        command.arg("--socket").arg(self.socket()).args(words.split(' ')).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &str) -> Said {
        let done = self.command(words).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { code: done.status.code(), out: text(done.stdout), err: text(done.stderr) }
    }

    fn up(&self) -> Said {
        self.run(&format!("up {}", self.file().display()))
    }

    fn must_come_up(&self) -> Status {
        let said = self.up();
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{}", self.log());
        self.status()
    }

    fn must_go_down(&self) -> String {
        let said = self.run("down");
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{}", self.log());
        assert!(said.out.contains(" + held 0 (balanced)\n"), "{}", said.out);
        self.assert_nothing_left();
        said.out
    }

    fn status(&self) -> Status {
        request_status(&UnixStream::connect(self.socket()).unwrap()).unwrap()
    }

    /// Only what was written for people is left.
    fn assert_nothing_left(&self) {
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let name = entry.unwrap().file_name();
            let name = name.to_str().unwrap();
            let for_people = ["m.toml", "m.log", "m.log.1", CRASHES];
            assert!(for_people.contains(&name), "{name} is left behind");
        }
        assert_eq!(self.processes(), Vec::<i32>::new(), "a process is left behind");
    }

    /// Processes with this site's socket or file in their command line.
    fn processes(&self) -> Vec<i32> {
        let mine = self.folder.path().to_str().unwrap();
        let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains(mine).then_some(pid)
        });
        pids.collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // After a failed assertion; each of these is a process of this test.
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn have_nfs() -> bool {
    let there = Path::new(MILLRACE).with_file_name("millrace-nf").exists();
    if !there {
        skip("millrace-nf is not built: cargo build -p millrace-nfs");
    }
    there
}

fn service(name: &str, command: &str, instances: u32) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\ncommand = {command}\ninstances = {instances}\n\
         [[chain]]\nname = \"default\"\nservices = [\"{name}\"]\n"
    )
}

const FORWARD: &str = "[\"millrace-nf\", \"forward\"]";

fn nf_pids(status: &Status) -> Vec<i32> {
    let mut pids: Vec<_> = status.nfs.iter().map(|nf| nf.pid).collect();
    pids.sort_unstable();
    pids
}

#[test]
fn up_starts_a_manager_that_outlives_it_and_down_ends_it() {
    let site = Site::new("");
    let status = site.must_come_up();
    let session = std::fs::read_to_string(format!("/proc/{}/stat", status.pid)).unwrap();
    let session = session.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, status.pid.to_string(), "it leads a session of its own");
    let second = site.up();
    assert_eq!(second.code, Some(1));
    let already = format!("a manager runs at {} (pid {})", site.socket().display(), status.pid);
    assert!(second.err.contains(&already), "{}", second.err);
    assert_eq!(site.status().pid, status.pid, "and it is still the first");
    site.must_go_down();
    let none = site.run("down");
    assert_eq!(none.code, Some(1));
    assert!(none.err.starts_with("millrace: no manager at"), "{}", none.err);
}

#[test]
fn up_starts_every_instance_and_says_which() {
    if !have_nfs() {
        return;
    }
    let site = Site::new(&service("fw", FORWARD, 2));
    let said = site.run(&format!("--json up {}", site.file().display()));
    assert_eq!(said.code, Some(0), "{}", said.err);
    let up: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let pids = nf_pids(&site.status());
    assert_eq!(pids.len(), 2);
    let mut told: Vec<i32> = serde_json::from_value(up["services"][0]["pids"].clone()).unwrap();
    told.sort_unstable();
    assert_eq!(told, pids);
    until("packets flow", || (site.status().ports[1].tx_pkts > 100).then_some(()));
    let attached = format!("fw/{}: ", pids[0]);
    until("an NF's lines are in the manager's log", || {
        site.log().lines().any(|line| line.starts_with(&attached)).then_some(())
    });
    site.must_go_down();
}

#[test]
fn what_cannot_come_up_is_said_in_one_line_and_nothing_stays() {
    if !have_nfs() {
        return;
    }
    let site = Site::new(&service("fw", "[\"millrace-nf\", \"forward\", \"--nonsense\"]", 1));
    for (services, wait, expected) in [
        (service("fw", "[\"millrace-nf\", \"forward\", \"--nonsense\"]", 1), 60, "--nonsense"),
        (service("fw", "[\"no-such-nf\"]", 2), 1, "0 of 2 run: there is no program \"no-such-nf\""),
        (service("fw", "[\"sleep\", \"1000\"]", 1), 1, "0 of 1 run: exit code 1: "),
        ("[manager]\n".to_owned(), 60, "m.toml:"),
    ] {
        site.configure(&services);
        let said = site.run(&format!("up {} --wait {wait}", site.file().display()));
        assert_eq!(said.code, Some(1), "{}", said.out);
        assert_eq!(said.err.lines().count(), 1, "{}", said.err);
        assert!(said.err.contains(expected), "{}", said.err);
        site.assert_nothing_left();
    }
}

#[test]
fn what_the_manager_says_at_its_end_is_what_up_says() {
    let site = Site::new("");
    let text = std::fs::read_to_string(site.file()).unwrap();
    let text = text.replace("backend = \"sink\"", "backend = \"pcap\"\nreplay = \"/no/such.pcap\"");
    std::fs::write(site.file(), text).unwrap();
    let said = site.up();
    assert_eq!(said.code, Some(1));
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    assert!(said.err.contains("/no/such.pcap"), "{}", said.err);
    site.assert_nothing_left();
}

#[test]
fn a_killed_nf_is_started_again_and_the_service_scaled() {
    if !have_nfs() {
        return;
    }
    let site = Site::new(&service("fw", FORWARD, 2));
    let before = nf_pids(&site.must_come_up());
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).unwrap();
    let after = until("another takes its place", || {
        let pids = nf_pids(&site.status());
        (pids.len() == 2 && !pids.contains(&before[0])).then_some(pids)
    });
    assert!(after.contains(&before[1]), "the other one is untouched");
    until("it is counted", || (site.status().services[0].restarts == 1).then_some(()));
    until("what it left is there", || {
        let bundles = std::fs::read_dir(site.folder.path().join(CRASHES)).ok()?;
        (bundles.flatten().any(|bundle| bundle.path().join("crash.json").exists())).then_some(())
    });
    for instances in [4, 1, 0, 2] {
        let said = site.run(&format!("service scale fw {instances}"));
        assert_eq!(said.code, Some(0), "{}", said.err);
        until("as many run", || {
            let status = site.status();
            let count = site.processes().len();
            // The manager is one of them.
            (nf_pids(&status).len() == instances && count == instances + 1).then_some(())
        });
    }
    site.must_go_down();
}

#[test]
fn nfs_of_a_killed_manager_are_taken_on_by_the_next() {
    if !have_nfs() {
        return;
    }
    let site = Site::new(&service("fw", FORWARD, 2));
    let status = site.must_come_up();
    kill(Pid::from_raw(status.pid), Signal::SIGKILL).unwrap();
    until("it is gone", || UnixStream::connect(site.socket()).is_err().then_some(()));
    let again = site.must_come_up();
    assert_eq!(nf_pids(&again), nf_pids(&status), "the same, and no others");
    assert_eq!(site.processes().len(), 3);
    site.must_go_down();
}

#[test]
fn down_can_leave_the_nfs_to_the_next_manager_which_goes_on_with_what_was_wanted() {
    if !have_nfs() {
        return;
    }
    let site = Site::new(&service("fw", FORWARD, 1));
    site.must_come_up();
    for words in ["service scale fw 2", "rule add --priority 7 ip_proto=tcp then drop"] {
        assert_eq!(site.run(words).code, Some(0));
    }
    let before = site.status();
    let said = site.run("down --keep-nfs");
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{}", site.log());
    assert!(said.out.contains(" + held 0 (balanced)\n"), "{}", said.out);
    assert_eq!(site.processes().len(), 2, "the NFs wait");
    let after = site.must_come_up();
    until("both are there", || (nf_pids(&site.status()).len() == 2).then_some(()));
    assert_eq!(nf_pids(&site.status()), nf_pids(&before));
    assert_eq!((after.rules[0].id, &after.rules[0].spec), (1, &before.rules[0].spec));
    site.must_go_down();
    // A clean end of all is the end of what commands had changed.
    assert_eq!((site.must_come_up().rule_count, nf_pids(&site.status()).len()), (0, 1));
    site.must_go_down();
}

#[test]
fn a_service_is_upgraded_by_a_command_which_says_what_came_of_it() {
    if !have_nfs() {
        return;
    }
    let site = Site::new(&service("fw", FORWARD, 1));
    let before = nf_pids(&site.must_come_up());
    let upgrade = |command: &str| {
        let mut words = site.command("service upgrade fw --probation-ms 100 --command");
        let done = words.arg(command).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { code: done.status.code(), out: text(done.stdout), err: text(done.stderr) }
    };
    let said = upgrade("sh -c 'echo not today; exit 3'");
    assert_eq!((said.code, said.err.lines().count()), (Some(1), 1), "{}", said.err);
    let why = "service \"fw\" is not upgraded: a new instance has ended: exit code 3: not today; the \
               old instances serve on";
    assert!(said.err.contains(why), "{}", said.err);
    assert_eq!(nf_pids(&site.status()), before);
    let said = upgrade("millrace-nf forward --busy-ns 1");
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(
        said.out.starts_with("~ service fw: ") && said.out.contains(": 100.0 % of the flows moved")
    );
    let after = nf_pids(&site.status());
    assert!(after.len() == 1 && after != before);
    let said = upgrade("'millrace-nf");
    assert_eq!((said.code, said.err.lines().count()), (Some(2), 1), "{}", said.err);
    site.must_go_down();
}

#[test]
fn in_the_foreground_ctrl_c_drains_and_ends_it_all() {
    if !have_nfs() {
        return;
    }
    let site = Site::new(&service("fw", FORWARD, 1));
    let mut command = site.command(&format!("up --foreground {}", site.file().display()));
    let mut up = Up(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    until("it serves", || {
        let socket = UnixStream::connect(site.socket()).ok()?;
        (request_status(&socket).ok()?.nfs.len() == 1).then_some(())
    });
    kill(Pid::from_raw(up.0.id().cast_signed()), Signal::SIGINT).unwrap();
    let code = until("it ends", || up.0.try_wait().unwrap());
    assert_eq!(code.code(), Some(0));
    let out = std::io::read_to_string(up.0.stdout.take().unwrap()).unwrap();
    assert!(out.lines().any(|line| line.ends_with("held 0 (balanced)")), "{out}");
    site.assert_nothing_left();
}

/// A child that does not outlive its test.
struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
