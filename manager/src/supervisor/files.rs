//! Which files an NF may open, by Landlock: it may read, and write where its service says so.
//!
//! Landlock only ever takes away: what a file's mode refuses stays refused. Where the kernel lacks it,
//! or a part of it, the rest of the confinement holds by itself; the manager says so once.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetError, Scope,
};

/// The newest version whose rights are refused; an older kernel refuses what it knows.
const KNOWN: ABI = ABI::V6;
/// Devices that are no machine's part.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// What a program needs to run at all.
const SYSTEM: [&str; 9] =
    ["/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys"];

/// The files an NF may open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Only the system's own and the program may be read, not all but devices.
    pub system_only: bool,
    /// Files, and folders with all in them, that may be written, too.
    pub writable: Vec<PathBuf>,
}

impl Files {
    /// Takes all else away from this process and what it becomes. Also keeps it from signalling
    /// processes that it did not start, and (by ptrace(2), /proc/PID/mem and the like) from looking
    /// into them.
    ///
    /// # Errors
    /// A path that is to be writable and does not exist; otherwise as the kernel says. Not for want of
    /// Landlock.
    pub fn enforce(&self, program: &Path) -> anyhow::Result<()> {
        let read = AccessFs::from_read(KNOWN);
        let all = AccessFs::from_all(KNOWN);
        let mut rules = Ruleset::default()
            .handle_access(all)
            .and_then(|rules| rules.scope(Scope::AbstractUnixSocket | Scope::Signal))
            .and_then(Ruleset::create)
            .context("Landlock")?;
        let readable = if self.system_only {
            SYSTEM.iter().map(PathBuf::from).chain([program.to_owned()]).collect()
        } else {
            top_folders().context("/")?
        };
        for path in readable {
            rules = may(rules, &path, read).context("Landlock")?;
        }
        for device in DEVICES.iter().map(Path::new) {
            rules =
                may(rules, device, AccessFs::ReadFile | AccessFs::WriteFile).context("Landlock")?;
        }
        // Where its lines go; it may well open them again by their names in /dev or /proc.
        for output in ["/proc/self/fd/1", "/proc/self/fd/2"].map(Path::new) {
            if output.metadata().is_ok_and(|meta| meta.is_file()) {
                rules = may(rules, output, AccessFs::WriteFile.into()).context("Landlock")?;
            }
        }
        for path in &self.writable {
            std::fs::metadata(path).with_context(|| format!("writable {}", path.display()))?;
            // A file to write is no program, and no device.
            let access = all & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
            rules = may(rules, path, access).context("Landlock")?;
        }
        rules.restrict_self().context("Landlock")?;
        Ok(())
    }
}

/// All that lies in `/` but devices: Landlock has no rule that excepts something.
fn top_folders() -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir("/")?.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(entries.filter(|path| path != Path::new("/dev")).collect())
}

/// Allows `access` below a path; what cannot be opened cannot be used either.
fn may(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(fd) = PathFd::new(path) else { return Ok(rules) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(KNOWN) };
    rules.add_rule(PathBeneath::new(fd, access))
}
