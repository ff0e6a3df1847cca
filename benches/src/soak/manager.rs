//! The manager under test, and what is asked of it.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nflib::control::{self, Applied, Edit, ErrorReply, MAX_REPLY_BYTES, Reply, Request, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::world::{BUFFERS, World};
use crate::data_path::Trouble;
use crate::data_path::process::Process;

/// How long the manager may take to answer: a scaling has 30 s of its own.
const ANSWER_LIMIT: Duration = Duration::from_secs(45);

/// Where it is asked; another thread may have one of its own.
#[derive(Clone, Debug)]
pub struct Control {
    socket: PathBuf,
}

impl Control {
    fn ask(&self, request: &Request) -> Result<Reply, Trouble> {
        let failed =
            |error: &dyn std::fmt::Display| Trouble::Failed(format!("the manager: {error}"));
        let socket = UnixStream::connect(&self.socket).map_err(|error| failed(&error))?;
        socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        control::send(&socket, request, &[]).map_err(|error| failed(&error))?;
        Ok(control::recv(&socket, MAX_REPLY_BYTES).map_err(|error| failed(&error))?.0)
    }

    /// Everything there is to see.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when it does not answer.
    pub fn status(&self) -> Result<Status, Trouble> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            other => Err(Trouble::Failed(format!("the manager: {other:?}"))),
        }
    }

    /// Makes what runs be this world.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn apply(
        &self,
        world: &World,
        empty: bool,
    ) -> Result<Result<Applied, ErrorReply>, Trouble> {
        let text = text(&self.socket, world, empty);
        let request = Request::Apply { path: "soak.toml".to_owned(), text, dry_run: false };
        applied(self.ask(&request)?)
    }

    /// Makes one change.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn edit(&self, edit: Edit) -> Result<Result<Applied, ErrorReply>, Trouble> {
        applied(self.ask(&Request::Edit { edits: vec![edit] })?)
    }
}

fn applied(reply: Reply) -> Result<Result<Applied, ErrorReply>, Trouble> {
    match reply {
        Reply::Applied(applied) => Ok(Ok(applied)),
        Reply::Error(error) => Ok(Err(error)),
        other => Err(Trouble::Failed(format!("the manager: {other:?}"))),
    }
}

fn text(socket: &Path, world: &World, empty: bool) -> String {
    format!(
        "[manager]\nsocket = {socket:?}\nwait_for_nfs = true\nring_capacity = 2048\n[pool]\n\
         buffers = {BUFFERS}\nhugepages = \"off\"\n{}",
        world.tables(empty)
    )
}

/// A running manager. It and its NFs end with this.
pub struct Manager {
    // In this order: the folder goes last.
    process: Option<Process>,
    control: Control,
    dir: TempDir,
}

impl Manager {
    /// Starts one, of the programs beside this one.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when it does not start.
    pub fn start(world: &World) -> Result<Self, Trouble> {
        let dir = tempfile::Builder::new().prefix("millrace-soak-").tempdir()?;
        let socket = dir.path().join("m.sock");
        let file = dir.path().join("soak.toml");
        fs::write(&file, text(&socket, world, false))?;
        let program = std::env::current_exe()?.with_file_name("millrace-manager");
        let args = ["--log".into(), "warn".into(), "--config".into(), file.into_os_string()];
        let process = Process::start(dir.path(), &program, args)?;
        let mut manager = Self { process: Some(process), control: Control { socket }, dir };
        let began = Instant::now();
        while manager.control.status().is_err() {
            manager.still_runs()?;
            if began.elapsed() > ANSWER_LIMIT {
                return Err(Trouble::Failed("the manager does not answer".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(manager)
    }

    /// Where it is asked.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// An error when it has ended.
    ///
    /// # Errors
    /// [`Trouble::Failed`] with its last words.
    pub fn still_runs(&mut self) -> Result<(), Trouble> {
        self.process.as_mut().map_or(Ok(()), Process::still_runs)
    }

    /// Its memory that is not shared with NFs, KiB.
    #[must_use]
    pub fn private_kib(&self) -> u64 {
        let pid = self.process.as_ref().map_or(0, Process::pid);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    /// Descriptors that it has open.
    #[must_use]
    pub fn open_files(&self) -> u64 {
        let pid = self.process.as_ref().map_or(0, Process::pid);
        fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |fds| fds.count() as u64)
    }

    /// Ends it, and returns its last books.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when it does not end well.
    pub fn finish(mut self) -> Result<Status, Trouble> {
        let failed =
            |error: &dyn std::fmt::Display| Trouble::Failed(format!("the manager: {error}"));
        let socket = UnixStream::connect(&self.control.socket).map_err(|error| failed(&error))?;
        socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        control::send(&socket, &Request::Shutdown { keep_nfs: false }, &[])
            .map_err(|error| failed(&error))?;
        let last = loop {
            match control::recv(&socket, MAX_REPLY_BYTES).map_err(|error| failed(&error))?.0 {
                Reply::Done => {}
                Reply::Status(status) => break *status,
                other => return Err(failed(&format!("{other:?}"))),
            }
        };
        match self.process.take() {
            Some(process) => process.wait().map(|_| last),
            None => Ok(last),
        }
    }

    /// NFs that a manager which did not end well has left: only those that it wrote down, and whose
    /// command line names this very socket.
    fn end_leftovers(&self) {
        let records = fs::read_dir(self.dir.path().join("m.sock.nfs")).into_iter().flatten();
        for record in records.filter_map(|entry| fs::read(entry.ok()?.path()).ok()) {
            let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
            let Some(pid) = record["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()) else {
                continue;
            };
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&*self.control.socket.to_string_lossy()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        drop(self.process.take());
        self.end_leftovers();
    }
}
