//! `millrace up`: a manager and its NFs, running or with a reason why not.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use millrace::config::Config;
use millrace::supervisor::exec::Surroundings;
use millrace::supervisor::{GIVEN_UP, find_program};
use nflib::control::{ServiceStatus, Status};
use nflib::shm::catch_stop_signals;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::client::{Client, ClientError, LOOK_LIMIT};
use crate::{Globals, down, print};

/// Between two looks at a manager that starts.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What a manager may take to end its NFs after draining, and some more.
const END_LIMIT: Duration = Duration::from_secs(20);

#[derive(Args)]
pub struct Options {
    /// The configuration file
    file: PathBuf,
    /// Run in this terminal; Ctrl-C drains, and ends it all
    #[arg(long)]
    foreground: bool,
    /// How long it may take until all that is wanted runs, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    wait: f64,
    /// Take an interface even if it carries the default route
    #[arg(long)]
    force: bool,
}

/// What runs now.
#[derive(Serialize)]
struct Up {
    pid: i32,
    socket: PathBuf,
    log: PathBuf,
    ports: Vec<String>,
    services: Vec<UpService>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct UpService {
    name: String,
    /// `None`: its NFs are started by hand.
    wanted: Option<u32>,
    pids: Vec<i32>,
}

/// Starts a manager by the file. If not all that is wanted comes to run, nothing stays.
pub fn run(globals: &Globals, options: &Options) -> anyhow::Result<()> {
    let limit = down::limit(options.wait)?;
    let config = Config::load(&options.file).context("configuration")?;
    let socket = config.manager.socket.clone();
    refuse_second(&socket)?;
    let own = std::env::current_exe().context("own program")?;
    let program = find_program("millrace-manager", &own, std::env::var_os("PATH").as_deref())
        .map_err(anyhow::Error::msg)?;
    let mut args = vec!["--config".into(), options.file.clone().into_os_string()];
    if options.force {
        args.push("--force".into());
    }
    if options.foreground {
        // The terminal is the manager's from here on, with Ctrl-C.
        let error = Command::new(&program).args(args).exec();
        return Err(error).context(program.display().to_string());
    }
    let log = socket.with_extension("log");
    let surroundings = Surroundings { session: true, ..Surroundings::default() };
    let output = open_log(&log)?;
    let interrupted = catch_stop_signals().context("signal handlers")?;
    let child = Command::new(&program)
        .args(surroundings.to_args(program.as_os_str(), &args))
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("log")?)
        .stderr(output)
        .spawn()
        .with_context(|| program.display().to_string())?;
    let services = config.model.services();
    let wanted = services.filter_map(|s| Some((s.name().to_owned(), s.wanted_instances()?)));
    let incomplete = wanted.collect();
    let mut starting = Starting { child, socket: &socket, log: &log, incomplete };
    let status = match starting.wait_until_all_runs(limit, interrupted) {
        Ok(status) => status,
        Err(error) => {
            let grace = Duration::from_millis(config.manager.drain_ms) + END_LIMIT;
            starting.stop(grace)?;
            return Err(error.context("nothing was started"));
        }
    };
    let up = Up::of(&status, socket.clone(), log.clone(), config.notes);
    print::either(globals.json, &up, || up.show())
}

fn refuse_second(socket: &Path) -> anyhow::Result<()> {
    let client = match Client::connect(socket) {
        Err(ClientError::Absent(_)) => return Ok(()),
        other => other?,
    };
    let who = client.status().map_or_else(|_| String::new(), |s| format!(" (pid {})", s.pid));
    bail!(
        "a manager runs at {}{who} already: change it with millrace apply, or end it with millrace \
         down",
        socket.display()
    )
}

/// A new log; the one before is kept beside it, with `.1` at its end.
fn open_log(path: &Path) -> anyhow::Result<File> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut before = path.as_os_str().to_owned();
    before.push(".1");
    let _ = std::fs::rename(path, before);
    let mut options = OpenOptions::new();
    options.append(true).create_new(true);
    options.open(path).with_context(|| path.display().to_string())
}

/// A manager that starts.
struct Starting<'a> {
    child: Child,
    socket: &'a Path,
    log: &'a Path,
    /// Services that were never seen complete, with the number of instances. One that was counts as
    /// complete: an NF with a limit may have left already.
    incomplete: BTreeMap<String, u32>,
}

impl Starting<'_> {
    fn wait_until_all_runs(
        &mut self,
        limit: Duration,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<Status> {
        let end = Instant::now() + limit;
        loop {
            if let Some(ended) = self.child.try_wait().context("millrace-manager")? {
                match last_words(self.log) {
                    Some(words) => bail!("{words}"),
                    None => bail!("millrace-manager ended ({ended}) and said nothing"),
                }
            }
            let status = self.look()?;
            let missing = status.as_ref().map(|status| self.missing(status));
            if let (Some(status), Some(None)) = (status, &missing) {
                return Ok(status);
            }
            let missing = missing.flatten();
            match &missing {
                Some(Missing { what, hopeless: true }) => bail!("{what}"),
                _ if interrupted.load(Ordering::Relaxed) => bail!("interrupted"),
                Some(Missing { what, .. }) if Instant::now() >= end => {
                    bail!("after {} s: {what}", limit.as_secs_f64())
                }
                None if Instant::now() >= end => {
                    bail!("the manager does not answer after {} s", limit.as_secs_f64())
                }
                _ => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// The manager's status, once it answers, and is the one that was started here.
    fn look(&self) -> anyhow::Result<Option<Status>> {
        let client = match Client::connect(self.socket) {
            Err(ClientError::Absent(_)) => return Ok(None),
            other => other?,
        };
        match client.status_within(LOOK_LIMIT) {
            Ok(status) if status.pid == self.child.id().cast_signed() => Ok(Some(status)),
            // Another was faster: this one will say so and end. Or it ends just now.
            Ok(_) | Err(ClientError::Closed(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What is missing still.
    fn missing(&mut self, status: &Status) -> Option<Missing> {
        let named = |name: &str| status.services.iter().find(|service| service.name == name);
        let running = |name: &str| named(name).map_or(0, |service| service.instances.len());
        self.incomplete.retain(|name, wanted| running(name) < *wanted as usize);
        let mut parts = Vec::new();
        let mut hopeless = false;
        for (name, wanted) in &self.incomplete {
            let why = named(name).and_then(|service| service.waiting.as_deref());
            let why = why.unwrap_or("it is not attached yet");
            hopeless |= why.starts_with(GIVEN_UP);
            parts.push(format!("service {name}: {} of {wanted} run: {why}", running(name)));
        }
        (!parts.is_empty()).then(|| Missing { what: parts.join("; "), hopeless })
    }

    /// Ends the manager, which ends its NFs.
    fn stop(&mut self, limit: Duration) -> anyhow::Result<()> {
        let pid = self.child.id().cast_signed();
        let end = Instant::now() + limit;
        let mut asked = false;
        while self.child.try_wait().context("millrace-manager")?.is_none() {
            if !std::mem::replace(&mut asked, true) {
                kill(Pid::from_raw(pid), Signal::SIGTERM).context("millrace-manager")?;
            }
            if Instant::now() >= end {
                self.child.kill().context("millrace-manager")?;
                self.child.wait().context("millrace-manager")?;
                bail!(
                    "the manager (pid {pid}) did not end within {} s and was killed; NFs it had \
                     started may run on: see {}.nfs",
                    limit.as_secs_f64(),
                    self.socket.display()
                );
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

/// What does not run that should.
struct Missing {
    what: String,
    /// Waiting is of no use.
    hopeless: bool,
}

/// The last line of a manager that ended, which says why.
fn last_words(log: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&std::fs::read(log).ok()?).into_owned();
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.strip_prefix("millrace-manager: ").unwrap_or(line).to_owned())
}

impl Up {
    fn of(status: &Status, socket: PathBuf, log: PathBuf, notes: Vec<String>) -> Self {
        let service = |service: &ServiceStatus| UpService {
            name: service.name.clone(),
            wanted: service.wanted,
            pids: status
                .nfs
                .iter()
                .filter(|nf| service.instances.contains(&nf.instance))
                .map(|nf| nf.pid)
                .collect(),
        };
        Self {
            pid: status.pid,
            socket,
            log,
            ports: status.ports.iter().map(|port| port.name.clone()).collect(),
            services: status.services.iter().map(service).collect(),
            notes,
        }
    }

    fn show(&self) -> String {
        let mut out = format!("manager   pid {}, log {}\n", self.pid, self.log.display());
        out += &format!("socket    {}\n", self.socket.display());
        out += &format!("ports     {}\n", self.ports.join(", "));
        for UpService { name, wanted, pids } in &self.services {
            let pids = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            out += &match wanted {
                None => format!("service   {name}: NFs are started by hand\n"),
                Some(0) => format!("service   {name}: none wanted\n"),
                Some(wanted) => format!("service   {name}: {wanted} (pid {pids})\n"),
            };
        }
        for note in &self.notes {
            out += &format!("note: {note}\n");
        }
        out
    }
}
