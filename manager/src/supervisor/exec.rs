//! The launcher: what happens between the manager and the program it starts.
//!
//! `millrace-manager __exec [OPTIONS] -- PROGRAM ARGS…` puts its own process into the state the
//! program shall have, and becomes the program by execve(2), so that its pid is the program's. It is
//! a program of its own, and no code between fork and exec, because after a fork of a process with
//! threads nearly nothing may be called; here all of it is ordinary, safe code.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use nflib::control::Confine;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid, setsid};

use super::files::Files;
use super::syscalls::{self, Refused};

/// First argument of the manager's program when it is to be the launcher.
pub const ARGUMENT: &str = "__exec";
/// Exit code of a launcher that could not start the program; env(1) and nohup(1) use it so.
pub const CANNOT_START: u8 = 125;

/// The state a program is started in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Lead a session of its own: no terminal, no SIGHUP when the one who started it leaves.
    pub session: bool,
    /// Cores it may run on; empty: unchanged.
    pub cores: Vec<u32>,
    /// User to become.
    pub account: Option<Account>,
    /// Give up every capability, and never gain privileges by exec (`no_new_privs`).
    pub confined: bool,
    /// How system calls and files are restricted; not at all unless `confined`.
    pub confine: Option<Confine>,
    /// Refuse changes of files' modes too: the packet region is to be read only.
    pub reader: bool,
    /// Files and folders that may be written all the same.
    pub writable: Vec<PathBuf>,
}

/// A user by numbers, as setresuid(2), setresgid(2) and setgroups(2) want it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Surroundings {
    /// The launcher's arguments for `program`, from [`ARGUMENT`] on; [`parse`](Self::parse) reads
    /// them.
    #[must_use]
    pub fn to_args(&self, program: &OsStr, args: &[OsString]) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec![ARGUMENT.into()];
        if self.session {
            line.push("--session".into());
        }
        if !self.cores.is_empty() {
            line.push(format!("--cores={}", join(&self.cores)).into());
        }
        if let Some(Account { uid, gid, groups }) = &self.account {
            line.push(format!("--account={uid}:{gid}:{}", join(groups)).into());
        }
        if self.confined {
            line.push("--confined".into());
        }
        if let Some(confine) = self.confine {
            line.push(format!("--confine={}", confine.name()).into());
        }
        if self.reader {
            line.push("--reader".into());
        }
        for path in &self.writable {
            let mut option = OsString::from("--writable=");
            option.push(path);
            line.push(option);
        }
        line.push("--".into());
        line.push(program.into());
        line.extend(args.iter().cloned());
        line
    }

    /// Reads what comes behind [`ARGUMENT`]: the surroundings, then program and arguments.
    ///
    /// # Errors
    /// One line.
    pub fn parse(
        args: impl IntoIterator<Item = OsString>,
    ) -> anyhow::Result<(Self, Vec<OsString>)> {
        let mut found = Self::default();
        let mut args = args.into_iter();
        for arg in args.by_ref() {
            let text = arg.to_str().context("an option is not UTF-8")?;
            match text.split_once('=').unwrap_or((text, "")) {
                ("--", _) => {
                    let command: Vec<OsString> = args.collect();
                    anyhow::ensure!(!command.is_empty(), "no program is named");
                    return Ok((found, command));
                }
                ("--session", _) => found.session = true,
                ("--confined", _) => found.confined = true,
                ("--reader", _) => found.reader = true,
                ("--cores", list) => found.cores = numbers(list)?,
                ("--confine", word) => found.confine = Some(confine(word)?),
                ("--writable", path) => found.writable.push(path.into()),
                ("--account", ids) => found.account = Some(account(ids)?),
                _ => bail!("unknown option {text:?}"),
            }
        }
        bail!("no program is named")
    }

    /// Takes on the surroundings. The order matters: groups before the user that may not set them,
    /// all that needs privilege before it is given up, and the filters last.
    fn enter(&self, program: &Path) -> anyhow::Result<()> {
        // The control thread blocks the signals that it takes from a descriptor, and a mask
        // survives exec: an NF that is asked to end must hear it.
        SigSet::empty().thread_set_mask().context("signal mask")?;
        close_inherited().context("open files")?;
        if self.session {
            setsid().context("setsid")?;
        }
        if !self.cores.is_empty() {
            let mut mask = CpuSet::new();
            for core in &self.cores {
                mask.set(*core as usize).with_context(|| format!("core {core}"))?;
            }
            sched_setaffinity(Pid::from_raw(0), &mask)
                .with_context(|| format!("cannot run on core {}", join(&self.cores)))?;
        }
        if self.confined {
            nflib::shm::clear_ambient_capabilities().context("ambient capabilities")?;
            // Or user 0 would have them all back by execve(2).
            nflib::shm::clear_bounding_capabilities().context("bounding capabilities")?;
        }
        if let Some(account) = &self.account {
            become_user(account).with_context(|| format!("cannot become user {}", account.uid))?;
        }
        if self.confined {
            nflib::shm::clear_capabilities().context("capabilities")?;
            nix::sys::prctl::set_no_new_privs().context("no_new_privs")?;
            self.restrict(program)?;
        }
        Ok(())
    }

    /// Restricts files and system calls, in this order: what sets up the one is a call of the other.
    fn restrict(&self, program: &Path) -> anyhow::Result<()> {
        let strict = match self.confine {
            None | Some(Confine::Off) => return Ok(()),
            Some(confine) => confine == Confine::Strict,
        };
        if nflib::shm::landlock_version() > 0 {
            let writable = self.writable.clone();
            Files { system_only: strict, writable }.enforce(program)?;
        }
        if let Some(steps) = syscalls::filter(Refused { network: strict, file_modes: self.reader })
        {
            nflib::shm::install_syscall_filter(&steps).context("seccomp")?;
        }
        Ok(())
    }
}

fn become_user(account: &Account) -> nix::Result<()> {
    let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    setgroups(&groups)?;
    setresgid(gid, gid, gid)?;
    // From 0 to another user: this drops every capability as well (capabilities(7)).
    setresuid(uid, uid, uid)
}

/// Closes all but standard input, output and error: whatever a library of the manager has left
/// open without close-on-exec (a VFIO group, say) is none of an NF's business.
fn close_inherited() -> std::io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // The one that read_dir had is in the list, and closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// Runs the launcher if this process was started as one: comes back only with the exit code of a
/// failure. To be called first in `main`, before anything else is open or running.
#[must_use]
pub fn run_if_asked() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ARGUMENT {
        return None;
    }
    let error = match Surroundings::parse(args).and_then(|(surroundings, command)| {
        surroundings.enter(Path::new(&command[0]))?;
        Ok(command)
    }) {
        Ok(command) => {
            let error = Command::new(&command[0]).args(&command[1..]).exec();
            anyhow::Error::new(error).context(command[0].display().to_string())
        }
        Err(error) => error,
    };
    eprintln!("cannot be started: {error:#}");
    Some(ExitCode::from(CANNOT_START))
}

fn account(ids: &str) -> anyhow::Result<Account> {
    let mut parts = ids.splitn(3, ':');
    let mut next = || parts.next().context("--account needs UID:GID:GROUPS");
    Ok(Account { uid: next()?.parse()?, gid: next()?.parse()?, groups: numbers(next()?)? })
}

fn confine(word: &str) -> anyhow::Result<Confine> {
    let all = [Confine::Strict, Confine::Default, Confine::Off];
    let found = all.into_iter().find(|confine| confine.name() == word);
    found.with_context(|| format!("--confine needs strict, default or off, not {word:?}"))
}

fn numbers(list: &str) -> anyhow::Result<Vec<u32>> {
    let parts = list.split(',').filter(|part| !part.is_empty());
    parts.map(|part| part.parse().with_context(|| format!("{part:?} is not a number"))).collect()
}

fn join(numbers: &[u32]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let account = Account { uid: 1, gid: 2, groups: vec![3, 4] };
        for surroundings in [
            Surroundings::default(),
            Surroundings {
                session: true,
                cores: vec![0, 5],
                account: Some(account.clone()),
                confined: true,
                confine: Some(Confine::Strict),
                reader: true,
                writable: vec!["/var/lib/nf".into(), "/a=b".into()],
            },
            Surroundings {
                account: Some(Account { groups: vec![], ..account }),
                ..Surroundings::default()
            },
        ] {
            let line = surroundings.to_args(OsStr::new("/bin/nf"), &["--".into(), "-x".into()]);
            assert_eq!(line[0], ARGUMENT);
            let (read, command) = Surroundings::parse(line.into_iter().skip(1)).unwrap();
            assert_eq!(read, surroundings);
            assert_eq!(command, ["/bin/nf", "--", "-x"]);
        }
    }

    #[test]
    fn nonsense_is_one_line() {
        for args in [
            &["--cores=x", "--", "p"][..],
            &["--what"],
            &["--"],
            &[],
            &["--account=1"],
            &["--confine=x"],
        ] {
            let error = Surroundings::parse(args.iter().map(OsString::from)).unwrap_err();
            assert_eq!(format!("{error:#}").lines().count(), 1, "{args:?}");
        }
    }
}
