//! The journal: what is wanted outlives the manager.
//!
//! Every change of the [`Model`] is added to a file before it is answered, and the next manager begins
//! with what the file says ([`Found`]). The file is begun anew, whole or not at all, at each
//! start and when it has grown: written beside, then renamed.
//!
//! A journal follows on a configuration file. When services, chains and rules in that file are others
//! than those it began with, and others than those applied last, somebody has written something new: the
//! file is followed then, and the journal is kept beside it, with `.old` at its end.
//!
//! Where it lies says what it is for. Beside the control socket (the default) it is for a manager that
//! dies: nothing waits for the disk, since the kernel keeps what was written, and a clean end removes
//! it. At a path of its own it outlives power cuts and clean ends too: no change is answered before
//! it is on the disk (fdatasync(2)).
#![forbid(unsafe_code)]

mod record;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use crate::config::Config;
use crate::model::{Model, Rule};
pub use record::Step;
use record::{Damage, Deadlines, Restored, Snapshot, digest, note_deadlines, note_file};

/// A file that grew by so many bytes, and to a multiple of its beginning, is begun anew.
const MIN_GROWTH_BYTES: u64 = 64 << 10;
/// The multiple.
const GROWTH: u64 = 4;

/// Why a journal cannot be used; one line each.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The system said no.
    #[error("journal {path}: {what}: {source}; mend that, or set manager.journal to another path")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Another manager writes it.
    #[error(
        "journal {0}: another manager writes it; give each a path of its own (manager.journal)"
    )]
    InUse(PathBuf),
    /// Somebody else could have written it.
    #[error(
        "journal {0}: expected a file of this manager's user that nobody else may write to; remove \
         it, or set manager.journal to another path"
    )]
    NotOurs(PathBuf),
    /// It cannot be gone by.
    #[error(
        "journal {path}: {why}; mend that, or move the file away to begin with the configuration \
         alone: mv {path} {path}.bad"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Rules that have their hard timeout from an earlier manager's time, and when it is over.
pub type Remaining = Vec<(Instant, Arc<Rule>)>;

/// The file, and what it says.
pub struct Journal {
    path: PathBuf,
    /// Open for appending, and locked.
    file: Flock<File>,
    /// Nothing is answered before it is on the disk, and the file outlives a clean end.
    lasting: bool,
    /// What the file says.
    model: Model,
    deadlines_ms: Deadlines,
    files: Vec<u64>,
    first_bytes: u64,
    bytes: u64,
    /// The file does not say all: a write failed.
    incomplete: bool,
}

/// How a manager begins.
pub struct Beginning {
    /// The journal, to go on with.
    pub journal: Journal,
    /// What is wanted.
    pub model: Model,
    /// Rules that end sooner than their timeout says.
    pub remaining: Remaining,
}

/// What an earlier manager's journal says, read and not touched yet: a manager that cannot start
/// changes nothing.
pub struct Found {
    path: PathBuf,
    lasting: bool,
    model: Model,
    deadlines_ms: Deadlines,
    files: Vec<u64>,
    /// An earlier manager's state is gone on with.
    restored: bool,
    /// What the journal says is not gone by, since the configuration is a new one.
    outdated: bool,
    /// Keeps others away until the new file is in its place.
    _earlier: Earlier,
}

impl Found {
    /// Reads the journal of an earlier manager, if there is one, and decides whether to go on with it
    /// or to follow the configuration. `lasting`: see the module's text.
    ///
    /// # Errors
    /// [`JournalError`], one line.
    pub fn read(path: &Path, lasting: bool, config: &Config) -> Result<Self, JournalError> {
        let ports: Vec<_> = config.ports.iter().map(|port| port.name.clone()).collect();
        let file = digest(&config.specs);
        let mut earlier = Earlier::read(path, &ports)?;
        let said = earlier.said.take();
        let restored = said.as_ref().is_some_and(|said| said.files.contains(&file));
        let outdated = said.is_some() && !restored;
        let (model, deadlines_ms, applied) = match said {
            Some(said) if restored => {
                tell_restored(path, &said);
                (said.model, said.deadlines_ms, said.files.last().copied())
            }
            // What stays wanted keeps its numbers.
            said => {
                let previous = said.as_ref().map(|said| &said.model);
                let followed = Model::build(&config.specs, &ports, previous);
                let model = followed.map_or_else(|_| config.model.clone(), |(model, _)| model);
                let mut deadlines_ms = Deadlines::new();
                note_deadlines(&mut deadlines_ms, &Model::default(), &model, unix_ms());
                (model, deadlines_ms, None)
            }
        };
        // The file this manager is started with comes first, the one applied last behind it.
        let mut files: Vec<_> = std::iter::once(file).chain(applied).collect();
        files.dedup();
        let path = path.to_owned();
        let _earlier = earlier;
        Ok(Self { path, lasting, model, deadlines_ms, files, restored, outdated, _earlier })
    }

    /// Begins a journal in the place of the earlier one.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn begin(self) -> Result<Beginning, JournalError> {
        let Self { path, lasting, model, deadlines_ms, files, restored, outdated, _earlier } = self;
        if outdated {
            keep_old(&path);
        }
        let snapshot = snapshot_of(&model, &deadlines_ms, &files);
        let (file, first_bytes) = begin_file(&path, snapshot, lasting)?;
        let now = (Instant::now(), unix_ms());
        let remaining = if restored { remaining(&model, &deadlines_ms, now) } else { Vec::new() };
        let journal = Journal {
            path,
            file,
            lasting,
            model: model.clone(),
            deadlines_ms,
            files,
            first_bytes,
            bytes: first_bytes,
            incomplete: false,
        };
        Ok(Beginning { journal, model, remaining })
    }
}

impl Journal {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a change that has made `model` of what was wanted. After a failure the next call writes
    /// everything anew.
    ///
    /// # Errors
    /// [`JournalError::Io`]; what is wanted is in force all the same.
    pub fn add(&mut self, steps: Vec<Step>, model: &Model) -> Result<(), JournalError> {
        let at_ms = unix_ms();
        for step in &steps {
            if let Step::Specs { specs } = step {
                note_file(&mut self.files, specs);
            }
        }
        note_deadlines(&mut self.deadlines_ms, &self.model, model, at_ms);
        self.model = model.clone();
        let grown = self.bytes - self.first_bytes;
        if self.incomplete || grown > MIN_GROWTH_BYTES.max(GROWTH * self.first_bytes) {
            return self.begin_anew();
        }
        let added = record::change_line(at_ms, steps).map_err(io::Error::from).and_then(|line| {
            // At once: what a death leaves of it is no whole line.
            self.file.write_all(&line)?;
            if self.lasting {
                self.file.sync_data()?;
            }
            self.bytes += line.len() as u64;
            Ok(())
        });
        self.incomplete = added.is_err();
        added.map_err(failed(&self.path, "cannot be written"))
    }

    fn begin_anew(&mut self) -> Result<(), JournalError> {
        self.incomplete = true;
        let snapshot = snapshot_of(&self.model, &self.deadlines_ms, &self.files);
        (self.file, self.first_bytes) = begin_file(&self.path, snapshot, self.lasting)?;
        self.bytes = self.first_bytes;
        self.incomplete = false;
        Ok(())
    }

    /// A clean end, after which the next manager is to begin with its configuration: removes the
    /// file, unless it is one that lasts.
    pub fn end(self) {
        if !self.lasting {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_file(with_ending(&self.path, ".old"));
        }
    }
}

/// What an earlier manager left; locked until it is dropped.
struct Earlier {
    said: Option<Restored>,
    _lock: Option<Flock<File>>,
}

impl Earlier {
    fn read(path: &Path, ports: &[String]) -> Result<Self, JournalError> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { said: None, _lock: None });
            }
            Err(error) => return Err(failed(path, "cannot be opened")(error)),
        };
        let meta = file.metadata().map_err(failed(path, "cannot be looked at"))?;
        // It says which programs are run, and as whom.
        let ours = meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0;
        if !meta.is_file() || !ours {
            return Err(JournalError::NotOurs(path.into()));
        }
        let mut file = lock(file, path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed(path, "cannot be read"))?;
        if bytes.is_empty() {
            return Ok(Self { said: None, _lock: Some(file) });
        }
        let damaged = |Damage(why)| JournalError::Damaged { path: path.into(), why };
        let said = record::read(&bytes, ports).map_err(damaged)?;
        Ok(Self { said: Some(said), _lock: Some(file) })
    }
}

/// Writes a file beside, and puts it in the place of the one that is there. Returns it, open for
/// appending and locked, and its size.
fn begin_file(
    path: &Path,
    snapshot: Snapshot,
    lasting: bool,
) -> Result<(Flock<File>, u64), JournalError> {
    let fail = |what| failed(path, what);
    let bytes = record::first_lines(snapshot).map_err(|e| fail("cannot be written")(e.into()))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(fail("cannot make its folder"))?;
    let new = with_ending(path, ".new");
    // A rest of an earlier try, which nobody reads; and never through somebody's link.
    let _ = fs::remove_file(&new);
    let mut options = OpenOptions::new();
    let file = options.append(true).create_new(true).mode(0o600).open(&new);
    let mut file = lock(file.map_err(fail("cannot be made"))?, path)?;
    file.write_all(&bytes).map_err(fail("cannot be written"))?;
    if lasting {
        file.sync_all().map_err(fail("cannot be written"))?;
    }
    fs::rename(&new, path).map_err(fail("cannot be put into its place"))?;
    if lasting {
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(fail("its folder cannot be written"))?;
    }
    Ok((file, bytes.len() as u64))
}

fn lock(file: File, path: &Path) -> Result<Flock<File>, JournalError> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => JournalError::InUse(path.into()),
        errno => failed(path, "cannot be locked")(errno.into()),
    })
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { path, what, source }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

fn snapshot_of(model: &Model, deadlines_ms: &Deadlines, files: &[u64]) -> Snapshot {
    Snapshot { model: model.numbered(), deadlines_ms: deadlines_ms.clone(), files: files.to_vec() }
}

fn tell_restored(path: &Path, said: &Restored) {
    let Restored { model, changes, torn_bytes, .. } = said;
    let (services, chains) = (model.services().len(), model.chains().len());
    let rules = model.rule_count();
    let path = path.display();
    tracing::info!(
        "restored from journal {path}: {services} services, {chains} chains, {rules} rules, \
         {changes} changes since it was begun"
    );
    if *torn_bytes > 0 {
        tracing::warn!(
            "journal {path}: {torn_bytes} bytes at its end are no whole line: a change that was \
             being written when the manager died, and never answered"
        );
    }
}

fn keep_old(path: &Path) {
    let old = with_ending(path, ".old");
    tracing::warn!(
        "the configuration has changed since journal {} was begun, and is followed; what was set \
         by commands is in {} only",
        path.display(),
        old.display()
    );
    // A copy of its own: until the new one is in its place, this one counts.
    let _ = fs::remove_file(&old);
    if let Err(error) = fs::hard_link(path, &old) {
        tracing::warn!("{}: {error}", old.display());
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// When, on this manager's clock, the rules run out.
fn remaining(model: &Model, deadlines_ms: &Deadlines, now: (Instant, u64)) -> Remaining {
    let due = |(id, end_ms): (&u64, &u64)| {
        let left = Duration::from_millis(end_ms.saturating_sub(now.1));
        Some((now.0.checked_add(left)?, Arc::clone(model.rule(*id)?)))
    };
    deadlines_ms.iter().filter_map(due).collect()
}
