//! Processes of a measurement: they end with it, however it ends.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::time::TimeSpec;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::Trouble;

/// How long a process may take to end when it is asked to.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long a process may take to say something.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A process of ours, with its output.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts `program`. Its stderr goes to a file in `dir`, which is quoted if it fails.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when it cannot be started.
    pub fn start<S: Into<OsString>>(
        dir: &Path,
        program: &Path,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Self, Trouble> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed =
            |error: std::io::Error| Trouble::Failed(format!("{}: {error}", program.display()));
        let count = fs::read_dir(dir).map_or(0, Iterator::count);
        let log = dir.join(format!("{count}-{name}.log"));
        // Ends with this process even when that is killed and can do nothing about it. The helper
        // becomes the program, so the process id is the program's.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "--"])
            .arg(program)
            .args(args.into_iter().map(Into::into))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).map_err(failed)?);
        let mut child = with_signals(|| command.spawn()).map_err(failed)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Self { name, child, log, stdin, stdout })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all its threads, nanoseconds.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when it has ended.
    pub fn cpu_ns(&self) -> Result<u64, Trouble> {
        let clock = clock_getcpuclockid(self.raw_pid()).and_then(clock_gettime);
        let time = clock.map_err(|_| self.died())?;
        Ok(time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned())
    }

    /// Says something to it.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when it does not listen.
    pub fn say(&mut self, line: &str) -> Result<(), Trouble> {
        let said =
            self.stdin.as_mut().map(|stdin| writeln!(stdin, "{line}").and_then(|()| stdin.flush()));
        match said {
            Some(Ok(())) => Ok(()),
            _ => Err(self.died()),
        }
    }

    /// Its next line of output; waits for it.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when there is none any more, or none for very long.
    pub fn next_line(&mut self) -> Result<String, Trouble> {
        let mut line = String::new();
        if let Some(stdout) = self.stdout.as_ref().filter(|stdout| stdout.buffer().is_empty()) {
            let mut events = [PollFd::new(stdout.get_ref().as_fd(), PollFlags::POLLIN)];
            if ppoll(&mut events, Some(TimeSpec::from_duration(ANSWER_LIMIT)), None) == Ok(0) {
                return Err(self.died());
            }
        }
        let read = self.stdout.as_mut().map(|stdout| stdout.read_line(&mut line));
        match read {
            Some(Ok(1..)) => Ok(line.trim_end().to_owned()),
            _ => Err(self.died()),
        }
    }

    /// An error when it has ended.
    ///
    /// # Errors
    /// [`Trouble::Failed`] with the last thing it said.
    pub fn still_runs(&mut self) -> Result<(), Trouble> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            _ => Err(self.died()),
        }
    }

    /// Waits for its end, and for all output that is left.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when it says that it failed.
    pub fn wait(mut self) -> Result<Vec<String>, Trouble> {
        drop(self.stdin.take());
        let stdout = self.stdout.take();
        let lines = stdout.map(|stdout| stdout.lines().map_while(Result::ok).collect());
        match self.child.wait() {
            Ok(status) if status.success() => Ok(lines.unwrap_or_default()),
            _ => Err(self.died()),
        }
    }

    /// Asks it to end, and takes what output is left.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when it says that it failed.
    pub fn stop(self) -> Result<Vec<String>, Trouble> {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    fn signal(&self, signal: Signal) {
        // Not waited for yet, so the number is still its own.
        let _ = kill(self.raw_pid(), signal);
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// It ended, or does not do what it should: the last that it said.
    fn died(&self) -> Trouble {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let said = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
        let said = said.unwrap_or("it said nothing");
        Trouble::Failed(format!("{} failed: {said}", self.name))
    }
}

/// Runs it with the signals let through that this program takes from a descriptor: a child inherits what
/// is blocked, and could not be asked to end.
fn with_signals<T>(run: impl FnOnce() -> T) -> T {
    let before = SigSet::thread_get_mask();
    // Neither call can fail with a valid set; if it did, the child would be killed in the end.
    let _ = SigSet::empty().thread_set_mask();
    let result = run();
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
    result
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        self.signal(Signal::SIGTERM);
        let asked = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if asked.elapsed() > END_LIMIT {
                self.signal(Signal::SIGKILL);
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(dir: &Path, script: &str) -> Process {
        Process::start(dir, Path::new("/bin/sh"), ["-c", script]).unwrap()
    }

    #[test]
    fn what_a_process_says_comes_line_by_line_and_it_hears_what_is_said_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell(dir.path(), "read line; echo \"heard $line\"; echo bye");
        process.say("hello").unwrap();
        assert_eq!(process.next_line().unwrap(), "heard hello");
        assert_eq!(process.wait().unwrap(), ["bye"]);
    }

    #[test]
    fn one_that_fails_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell(dir.path(), "echo first >&2; echo no such core >&2; exit 3");
        let error = process.wait().unwrap_err();
        assert_eq!(error.to_string(), "sh failed: no such core");
    }

    #[test]
    fn a_process_ends_with_its_handle() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell(dir.path(), "exec sleep 1000");
        let pid = process.raw_pid();
        assert!(kill(pid, None).is_ok());
        drop(process);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }

    #[test]
    fn cpu_time_is_that_of_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut busy = shell(dir.path(), "while true; do i=$((i + 1)); done");
        let idle = shell(dir.path(), "exec sleep 1000");
        while busy.cpu_ns().unwrap() < 50_000_000 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(idle.cpu_ns().unwrap() < 50_000_000);
        busy.still_runs().unwrap();
    }
}
