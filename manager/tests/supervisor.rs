//! The supervisor with real processes: shell scripts in the place of NFs.
#![forbid(unsafe_code)]

#[path = "support/skip.rs"]
mod skip;

use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millrace::supervisor::{CoreMap, Event, GRACE, How, Supervisor, Wanted, What};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use skip::skip;

const LAUNCHER: &str = env!("CARGO_BIN_EXE_millrace-manager");
const LIMIT: Duration = Duration::from_secs(60);

/// A supervisor in a folder of its own, with a clock that can be put forward.
struct Bench {
    folder: tempfile::TempDir,
    supervisor: Supervisor,
    ahead: Duration,
    /// Events not looked at yet.
    news: VecDeque<Event>,
    /// Those that were.
    log: Vec<Event>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), all).unwrap();
        let supervisor = supervisor(folder.path(), CoreMap::of_this_thread());
        Self { folder, supervisor, ahead: Duration::ZERO, news: VecDeque::new(), log: Vec::new() }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("m.sock")
    }

    fn nfs_folder(&self) -> PathBuf {
        self.folder.path().join("m.sock.nfs")
    }

    /// An executable script.
    fn script(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// One service, named `nf`, of a shell script.
    fn wanted(&self, instances: u32, script: &str) -> Wanted {
        let command = vec![self.script("nf", &format!("#!/bin/sh\n{script}\n"))];
        Wanted { service: 1, name: "nf".into(), command, instances, ..Wanted::default() }
    }

    fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    fn turn(&mut self) {
        self.news.extend(self.supervisor.poll(self.now()));
    }

    /// The next event that gives what is looked for; those before it are passed over.
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&Event) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            while let Some(event) = self.news.pop_front() {
                let found = look(&event);
                self.log.push(event);
                if let Some(found) = found {
                    return found;
                }
            }
            assert!(Instant::now() < end, "not within {LIMIT:?}: {what}; so far: {:#?}", self.log);
            std::thread::sleep(Duration::from_millis(1));
            self.turn();
        }
    }

    fn started(&mut self) -> i32 {
        self.until("an NF is started", |event| match event.what {
            What::Started { pid, .. } => Some(pid),
            _ => None,
        })
    }

    fn said(&mut self) -> (i32, String) {
        self.until("an NF says something", |event| match &event.what {
            What::Said { pid, line } => Some((*pid, line.clone())),
            _ => None,
        })
    }

    fn exited(&mut self) -> (How, Option<Duration>, Option<String>) {
        self.until("an NF ends", |event| match &event.what {
            What::Exited { how, will_restart_in, said, .. } => {
                Some((*how, *will_restart_in, said.clone()))
            }
            _ => None,
        })
    }

    fn waiting(&mut self) -> String {
        self.until("an NF waits", |event| match &event.what {
            What::Waiting { why } => Some(why.clone()),
            _ => None,
        })
    }

    fn records(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.nfs_folder()).into_iter().flatten();
        let files = files.map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|e| e == "json")).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.supervisor.end_all(self.now());
        for _ in 0..5000 {
            self.ahead += GRACE;
            self.supervisor.poll(self.now());
            if self.supervisor.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn supervisor(folder: &Path, cores: CoreMap) -> Supervisor {
    Supervisor::new(folder.join("m.sock"), LAUNCHER.into(), cores).unwrap()
}

/// Whether there is such a process, be it a zombie.
fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn is_gone(pid: i32) -> bool {
    // A process whose parent is init is init's to reap.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_or(true, |stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

/// The value of a field of /proc/PID/status that an NF has printed.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.strip_prefix(name).unwrap_or_else(|| panic!("{name}: {status}")).trim()
}

fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

const SLEEP: &str = "exec sleep 1000";

#[test]
fn an_nf_is_told_where_to_go_and_its_lines_are_passed_on_behind_its_name() {
    let mut b = Bench::new();
    let mut wanted = b.wanted(1, "echo \"$@\"; echo oops >&2; exec sleep 1000");
    wanted.command.push("fast lane".into());
    wanted.packet_limit = Some(7);
    b.supervisor.set_wanted(&[wanted]);
    let pid = b.started();
    let (of, line) = b.said();
    let socket = b.socket();
    assert_eq!(of, pid);
    assert_eq!(
        line,
        format!("fast lane --service 1 --socket {} --packet-limit 7", socket.display())
    );
    b.until("standard error, too", |event| {
        (event.to_string() == format!("nf/{pid}: oops")).then_some(())
    });
}

#[test]
fn a_killed_nf_is_reaped_and_another_started() {
    let mut b = Bench::new();
    let wanted = b.wanted(2, SLEEP);
    b.supervisor.set_wanted(&[wanted]);
    let mut pids = vec![b.started(), b.started()];
    for (round, pause_ms) in [(1, 3), (2, 100), (3, 200)] {
        let pid = pids.pop().unwrap();
        kill_9(pid);
        let (how, again, _) = b.exited();
        let pause = Duration::from_millis(pause_ms);
        assert_eq!((how, again), (How::Signal(Signal::SIGKILL), Some(pause)));
        assert!(!exists(pid), "no zombie is left");
        b.ahead += pause;
        pids.push(b.started());
        assert_eq!(b.supervisor.state(1).unwrap().restarts, round);
        assert_eq!(b.records().len(), 2);
    }
}

#[test]
fn exit_codes_decide_what_comes_next() {
    let mut b = Bench::new();
    let wanted = b.wanted(1, "exit 0");
    b.supervisor.set_wanted(&[wanted]);
    assert_eq!(b.exited(), (How::Code(0), None, None));
    assert_eq!(b.supervisor.state(1).unwrap().done, 1);
    let again =
        Wanted { packet_limit: Some(1), ..b.wanted(1, "echo 'nf: no such flag' >&2; exit 2") };
    b.supervisor.set_wanted(&[again]);
    assert_eq!(b.exited(), (How::Code(2), None, Some("nf: no such flag".into())));
    let why = b.supervisor.state(1).unwrap().waiting;
    assert_eq!(why.as_deref(), Some("given up: exit code 2: nf: no such flag"));
    let again = b.wanted(1, "printf 'no room' >&2; exit 1");
    b.supervisor.set_wanted(&[again]);
    assert_eq!(b.exited(), (How::Code(1), Some(Duration::from_millis(3)), Some("no room".into())));
}

#[test]
fn an_nf_hears_sigterm_even_though_the_manager_blocks_it() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block().unwrap();
    let mut b = Bench::new();
    let wanted = b.wanted(1, "grep SigBlk /proc/self/status; exec sleep 1000");
    b.supervisor.set_wanted(&[wanted]);
    let pid = b.started();
    assert_eq!(field(&b.said().1, "SigBlk:"), "0000000000000000");
    b.supervisor.set_wanted(&[]);
    assert_eq!(b.supervisor.surplus(), [pid]);
    b.supervisor.released(pid, b.now());
    assert_eq!(b.exited().0, How::Signal(Signal::SIGTERM));
}

#[test]
fn one_that_ignores_sigterm_is_killed_after_its_grace() {
    let mut b = Bench::new();
    let wanted = b.wanted(1, "trap '' TERM; echo ready; while :; do sleep 1; done");
    b.supervisor.set_wanted(&[wanted]);
    let pid = b.started();
    b.said();
    b.supervisor.set_wanted(&[]);
    b.supervisor.released(pid, b.now());
    b.supervisor.poll(b.now());
    assert!(exists(pid));
    b.ahead += GRACE;
    assert_eq!(b.exited().0, How::Signal(Signal::SIGKILL));
    assert!(!exists(pid));
}

#[test]
fn what_an_nf_has_started_ends_with_it() {
    let mut b = Bench::new();
    let wanted = b.wanted(1, "sleep 1000 & echo $!; wait");
    b.supervisor.set_wanted(&[wanted]);
    let pid = b.started();
    let inner: i32 = b.said().1.parse().unwrap();
    assert_eq!(b.supervisor.owner(inner), Some(pid), "a script's NF is known as its own");
    assert_eq!(b.supervisor.owner(1), None);
    kill_9(pid);
    b.exited();
    let end = Instant::now() + LIMIT;
    while !is_gone(inner) {
        assert!(Instant::now() < end, "{inner} outlives its script");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_nf_gets_no_descriptor_no_privilege_and_the_cores_it_may_have() {
    // As a library might leave a device open: without close-on-exec.
    let file = std::fs::File::open("/dev/null").unwrap();
    let left_open = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_DUPFD(200)).unwrap();
    let mut b = Bench::new();
    let wanted = b.wanted(
        1,
        "echo /proc/$$/fd/*\ngrep NoNewPrivs /proc/self/status\ngrep Cpus_allowed_list \
         /proc/self/status\ngrep Seccomp: /proc/self/status\nexec sleep 1000",
    );
    let unpinned = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let unpinned = unpinned.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap();
    // DPDK's EAL pins the thread that starts it; NFs must not be pinned with it.
    let first = *b.supervisor.cores().usable().first().unwrap();
    let mut mask = nix::sched::CpuSet::new();
    mask.set(first as usize).unwrap();
    nix::sched::sched_setaffinity(Pid::from_raw(0), &mask).unwrap();
    b.supervisor.set_wanted(std::slice::from_ref(&wanted));
    let pid = b.started();
    let lines = [b.said().1, b.said().1, b.said().1, b.said().1];
    let open: Vec<&str> = lines[0].split(' ').map(|fd| fd.rsplit('/').next().unwrap()).collect();
    assert!(open.contains(&"2") && !open.contains(&left_open.to_string().as_str()), "{open:?}");
    assert_eq!(field(&lines[1], "NoNewPrivs:"), "1");
    assert_eq!(lines[2], unpinned.replace('\t', " "));
    assert_eq!(field(&lines[3], "Seccomp:"), "2", "a filter");
    assert!(exists(pid));
}

#[test]
fn an_nf_with_an_own_core_runs_on_it_and_is_told() {
    let mut b = Bench::new();
    let usable: Vec<u32> = b.supervisor.cores().usable().iter().copied().collect();
    if usable.len() < 2 {
        skip("one core only: none can be an NF's own");
        return;
    }
    b.supervisor.cores().take_for_workers(&usable[..1], false);
    let script = "grep Cpus_allowed_list /proc/self/status; echo $6; exec sleep 1000";
    let count = usable.len() as u32;
    let wanted = Wanted { own_core: true, ..b.wanted(count, script) };
    b.supervisor.set_wanted(&[wanted]);
    let (_, line) = b.said();
    let core = usable[1].to_string();
    assert_eq!(field(&line, "Cpus_allowed_list:"), core);
    assert!(b.log.iter().any(|e| e.to_string().ends_with(&format!("started on core {core}"))));
    assert_eq!(b.said().1, core);
    let why = b.supervisor.state(1).unwrap().waiting.unwrap();
    assert!(
        why.starts_with(&format!("no core is free: {} worker 0, {core} nf (pid", usable[0])),
        "{why}"
    );
}

#[test]
fn one_that_cannot_be_started_says_why_in_one_line() {
    let mut b = Bench::new();
    let good = b.wanted(1, SLEEP);
    let plain = b.folder.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let command = |program: &str| Wanted { command: vec![program.to_owned()], ..good.clone() };
    for (wanted, expected) in [
        (command("no-such-nf"), "there is no program \"no-such-nf\" in"),
        (command("/no/such/nf"), "/no/such/nf: No such file"),
        (command(plain.to_str().unwrap()), "not executable: chmod +x it"),
        (Wanted { user: Some("no-such-user".into()), ..good.clone() }, "there is no user"),
    ] {
        b.supervisor.set_wanted(&[wanted]);
        let why = b.waiting();
        assert!(why.contains(expected) && !why.contains('\n'), "{why}");
        assert_eq!(b.supervisor.state(1).unwrap().waiting, Some(why));
        assert!(b.supervisor.next_deadline().unwrap() > Instant::now());
    }
    // What only execve(2) can find out.
    let broken = b.script("broken", "#!/no/such/interpreter\n");
    b.supervisor.set_wanted(&[command(&broken)]);
    let (how, again, said) = b.exited();
    assert_eq!((how, again), (How::Code(125), Some(Duration::from_millis(3))));
    assert!(said.unwrap().starts_with(&format!("cannot be started: {broken}: No such file")));
}

#[test]
fn as_root_an_nf_becomes_another_user_who_can_open_the_socket() {
    if !nix::unistd::geteuid().is_root() {
        skip("only root can become another user");
        return;
    }
    let mut b = Bench::new();
    std::fs::write(b.socket(), "").unwrap();
    std::fs::set_permissions(b.socket(), std::fs::Permissions::from_mode(0o660)).unwrap();
    let script = "echo $(id -u):$(id -g):$(id -G):$(grep CapEff /proc/self/status):$(test -w $4 && echo yes)";
    let wanted =
        Wanted { user: Some("54321".into()), ..b.wanted(1, &format!("{script}\n{SLEEP}")) };
    b.supervisor.set_wanted(std::slice::from_ref(&wanted));
    let why = b.waiting();
    assert!(why.ends_with("belongs to group root: set manager.socket_group"), "{why}");
    std::os::unix::fs::chown(b.socket(), None, Some(54_322)).unwrap();
    b.ahead += Duration::from_secs(1);
    let (_, line) = b.said();
    assert_eq!(line, "54321:54321:54321 54322:CapEff: 0000000000000000:yes");
}

#[test]
fn nfs_outlive_their_supervisor_and_the_next_one_takes_them_on() {
    let mut b = Bench::new();
    let wanted = b.wanted(2, SLEEP);
    b.supervisor.set_wanted(std::slice::from_ref(&wanted));
    b.turn();
    let mut before: Vec<i32> = b.supervisor.nfs().map(|nf| nf.pid).collect();
    assert_eq!(before.len(), 2);
    b.supervisor = supervisor(b.folder.path(), CoreMap::of_this_thread()); // as after kill -9
    b.supervisor.set_wanted(std::slice::from_ref(&wanted));
    b.supervisor.poll(b.now());
    let after: Vec<i32> = b.supervisor.nfs().map(|nf| nf.pid).collect();
    before.sort_unstable();
    assert_eq!(after, before, "the same processes, and no others");
    kill_9(after[0]);
    b.exited();
    // Records of the dead, and of others that have their numbers, are not believed.
    let record = std::fs::read_to_string(&b.records()[0]).unwrap();
    let at = record.find("\"start_ticks\":").unwrap() + "\"start_ticks\":".len();
    let fake =
        record.replacen(&record[at..=at], "9", 1).replacen("start_ticks\":", "start_ticks\":9", 1);
    std::fs::write(b.nfs_folder().join("nf-7.json"), fake).unwrap();
    b.supervisor.poll(b.now() + Duration::from_secs(1));
    let now: Vec<i32> = b.supervisor.nfs().map(|nf| nf.pid).collect();
    b.supervisor = supervisor(b.folder.path(), CoreMap::of_this_thread());
    assert_eq!(b.supervisor.nfs().map(|nf| nf.pid).collect::<Vec<_>>(), now);
    assert!(!b.nfs_folder().join("nf-7.json").exists());
}

#[test]
fn the_end_of_an_adopted_nf_is_noticed_though_nobody_here_can_reap_it() {
    let mut b = Bench::new();
    let wanted = b.wanted(1, SLEEP);
    b.supervisor.set_wanted(std::slice::from_ref(&wanted));
    let first = b.started();
    let record = std::fs::read_to_string(&b.records()[0]).unwrap();
    // A stranger's child: its parent has ended.
    let orphan = std::process::Command::new("sh")
        .args(["-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"])
        .output()
        .unwrap();
    let orphan: i32 = String::from_utf8(orphan.stdout).unwrap().trim().parse().unwrap();
    let ticks = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().to_owned()
    };
    let record = record
        .replace(&format!("\"pid\":{first},"), &format!("\"pid\":{orphan},"))
        .replace(&ticks(first), &ticks(orphan));
    std::fs::write(b.nfs_folder().join("nf-1.json"), record).unwrap();
    b.supervisor = supervisor(b.folder.path(), CoreMap::of_this_thread());
    b.supervisor.set_wanted(&[Wanted { instances: 2, ..wanted }]);
    let adopted = b.until("it is adopted", |event| match event.what {
        What::Adopted { pid, wanted } if pid == orphan => Some(wanted),
        _ => None,
    });
    assert!(adopted);
    kill_9(orphan);
    assert_eq!(b.exited().0, How::Unknown);
}

#[test]
fn the_end_leaves_no_process_and_no_file() {
    let mut b = Bench::new();
    let wanted = b.wanted(3, "echo here; exec sleep 1000");
    b.supervisor.set_wanted(&[wanted]);
    b.supervisor.poll(b.now());
    let pids: Vec<i32> = b.supervisor.nfs().map(|nf| nf.pid).collect();
    assert_eq!((pids.len(), b.records().len()), (3, 3));
    b.supervisor.end_all(b.now());
    let end = Instant::now() + LIMIT;
    while !b.supervisor.is_empty() {
        b.supervisor.poll(b.now());
        assert!(Instant::now() < end, "they do not end by SIGTERM");
    }
    assert!(pids.iter().all(|pid| !exists(*pid)), "no zombie is left");
    assert!(!b.nfs_folder().exists());
}

#[test]
fn three_hundred_starts_leave_no_descriptor_open() {
    let mut b = Bench::new();
    let wanted = b.wanted(1, SLEEP);
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    b.supervisor.set_wanted(&[wanted]);
    let mut pid = b.started();
    let before = open();
    for _ in 0..300 {
        kill_9(pid);
        b.exited();
        b.ahead += Duration::from_secs(20);
        pid = b.started();
    }
    assert_eq!(open(), before);
    assert_eq!(b.records().len(), 1);
}
