//! `millrace top`: printed, as lines of JSON, and on a terminal.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{self, LocalModes, Winsize};

use crate::fake::{Fake, PATIENCE};
use crate::states::willing;

const LEAVE: &str = "\x1b[?1049l";

#[test]
fn one_view_is_printed_without_escape_codes() {
    let fake = Fake::new(willing());
    for (view, words) in [
        ("1", "left  up    1.00 kpps"),
        ("2", "fw            1        1"),
        ("3", " 7  -         0       100"),
        ("4", "service:1 (fw)  nf_drop"),
    ] {
        let said = fake.run(&["top", "--once", "--interval", "0.01", "--view", view]);
        assert!(said.text().contains(words), "{words:?} is missing in:\n{}", said.out);
        assert!(!said.out.contains('\x1b'), "{said:?}");
    }
}

#[test]
fn one_view_as_json_has_status_rates_and_cores() {
    let fake = Fake::new(willing());
    let value: serde_json::Value = fake.run_words("top --once --interval 0.01 --json").json();
    assert_eq!(value["status"]["pid"], 4711);
    assert_eq!(value["rates"]["ports"][0]["rx_pps"], 1000.0);
    assert!(
        value["cores"][0]["busy_share"].is_number() || value["cores"][0]["busy_share"].is_null()
    );
}

#[test]
fn lines_go_on_while_the_manager_goes_and_comes() {
    let fake = Fake::away();
    let mut child = fake.command(&["top", "--json", "--interval", "0.01"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert!(next()["away"].as_str().unwrap().contains("no manager at"));
    fake.listen(willing());
    while next()["rates"].is_null() {}
    std::fs::remove_file(fake.socket()).unwrap();
    assert_eq!(next()["status"]["pid"], 4711);
    drop(lines);
    // Its reader is gone, which is no fault.
    assert_eq!(end(&mut child).code(), Some(0));
}

#[test]
fn a_manager_that_says_nothing_is_told_from_one_that_is_away() {
    let (_never, answer) = std::sync::mpsc::channel::<()>();
    let answer = std::sync::Mutex::new(answer);
    let fake = Fake::new(move |_| {
        let _ = answer.lock().unwrap().recv();
        None
    });
    let said = fake.run_words("top --once --interval 0.01");
    assert!(said.complaint(1).contains("has not answered for 1 s"), "{said:?}");
}

/// `millrace top` on a pseudo-terminal.
struct Session {
    child: Child,
    person: OwnedFd,
    terminal: File,
    seen: String,
}

impl Session {
    fn start(fake: &Fake, interval_s: &str) -> Self {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        let mut command = fake.command(&["top", "--interval", interval_s]);
        command.stdin(terminal.try_clone().unwrap());
        let child = command.stdout(terminal.try_clone().unwrap()).spawn().unwrap();
        let mut session = Self { child, person, terminal, seen: String::new() };
        session.resize(100, 40);
        session
    }

    /// Waits until what is drawn from now on has these words, and no other frame's.
    #[track_caller]
    fn see(&mut self, words: &str) {
        self.seen.clear();
        let limit = Instant::now() + PATIENCE;
        while !self.seen.contains(words) {
            assert!(Instant::now() < limit, "{words:?} was not drawn; seen: {:?}", self.seen);
            self.read_for(100);
        }
    }

    fn read_for(&mut self, ms: u8) {
        use std::os::fd::AsFd as _;
        let mut fds = [PollFd::new(self.person.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(ms)).unwrap() > 0 {
            let mut bytes = [0; 65_536];
            match nix::unistd::read(&self.person, &mut bytes) {
                Ok(len) => self.seen += &String::from_utf8_lossy(&bytes[..len]),
                Err(Errno::EIO) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
    }

    fn press(&self, keys: &str) {
        nix::unistd::write(&self.person, keys.as_bytes()).unwrap();
    }

    fn resize(&mut self, columns: u16, rows: u16) {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        termios::tcsetwinsize(&self.person, size).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn is_cooked(&self) -> bool {
        let modes = termios::tcgetattr(&self.terminal).unwrap().local_modes;
        modes.contains(LocalModes::ICANON) && modes.contains(LocalModes::ECHO)
    }

    /// Waits for the end; the terminal must be as it was.
    #[track_caller]
    fn end(mut self) -> ExitStatus {
        self.seen.clear();
        let limit = Instant::now() + PATIENCE;
        let status = loop {
            self.read_for(10);
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < limit, "it does not end");
        };
        while !self.seen.contains(LEAVE) {
            assert!(Instant::now() < limit, "the screen is not left: {:?}", self.seen);
            self.read_for(10);
        }
        assert!(self.seen.ends_with(LEAVE), "{:?}", self.seen);
        assert!(self.seen.contains("\x1b[?25h"), "the cursor is back");
        assert!(self.is_cooked(), "echo and lines are back");
        status
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn end(child: &mut Child) -> ExitStatus {
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > limit {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn keys_choose_the_view_sort_and_pause_and_q_ends() {
    let fake = Fake::new(willing());
    let mut session = Session::start(&fake, "0.05");
    session.see("[1 all]");
    session.see("1.00 kpps");
    assert!(!session.is_cooked());
    session.press("2");
    session.see("[2 NFs]");
    session.press("s");
    session.see("order: name");
    session.press("p");
    session.see("PAUSED");
    session.press("p4");
    session.see("[4 drops]");
    session.press("q");
    assert_eq!(session.end().code(), Some(0));
}

#[test]
fn a_pause_asks_the_manager_no_more() {
    let fake = Fake::new(willing());
    let mut session = Session::start(&fake, "0.05");
    session.see("1.00 kpps");
    session.press("p");
    session.see("PAUSED");
    let asked = fake.asked().len();
    // A frame is drawn at each interval also meanwhile.
    for _ in 0..5 {
        session.see("PAUSED");
    }
    assert_eq!(fake.asked().len(), asked);
    session.press("p");
    let limit = Instant::now() + PATIENCE;
    while fake.asked().len() == asked {
        assert!(Instant::now() < limit, "it goes on");
        session.read_for(10);
    }
    session.press("\x03");
    assert_eq!(session.end().code(), Some(0));
}

#[test]
fn a_frame_fits_the_terminal_at_once_when_it_is_resized() {
    let fake = Fake::new(willing());
    // So slow that only the signal can bring the next frame.
    let mut session = Session::start(&fake, "3600");
    session.see("[1 all]");
    session.resize(30, 5);
    session.signal(Signal::SIGWINCH);
    session.see("\x1b[J");
    let frame = session.seen.rsplit("\x1b[H").next().unwrap().to_owned();
    let lines: Vec<_> = frame.split("\r\n").map(plain).collect();
    assert_eq!(lines.len(), 5, "{frame:?}");
    assert!(lines.iter().all(|line| line.chars().count() <= 30), "{lines:?}");
    assert_eq!(lines[0].chars().count(), 30, "the title is a bar");
    session.press("q");
    assert_eq!(session.end().code(), Some(0));
}

/// A drawn line without its escape codes.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            chars.by_ref().skip(1).find(char::is_ascii_alphabetic);
        } else {
            out.push(c);
        }
    }
    out
}

#[test]
fn a_signal_ends_it_and_the_terminal_is_given_back() {
    let fake = Fake::new(willing());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut session = Session::start(&fake, "0.05");
        session.see("1.00 kpps");
        session.signal(signal);
        assert_eq!(session.end().signal(), Some(signal as i32));
    }
}

#[test]
fn a_manager_that_is_away_is_said_and_waited_for() {
    let fake = Fake::away();
    let mut session = Session::start(&fake, "0.05");
    session.see("no manager at");
    fake.listen(willing());
    session.see("1.00 kpps");
    session.press("q");
    assert_eq!(session.end().code(), Some(0));
}

#[test]
fn a_manager_that_hangs_up_is_said_and_asked_again() {
    let fake = Fake::away();
    let answer = willing();
    let count = std::sync::atomic::AtomicU32::new(0);
    fake.listen(move |request| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if (5..8).contains(&n) { None } else { answer(request) }
    });
    let mut session = Session::start(&fake, "0.05");
    session.see("1.00 kpps");
    session.see("closed the connection");
    session.see("1.00 kpps");
    session.press("q");
    assert_eq!(session.end().code(), Some(0));
}
