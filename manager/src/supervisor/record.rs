//! What a manager writes down about the NFs it started, for the manager after it.
//!
//! Beside the control socket lies a folder `<socket>.nfs` with two files an NF: `NAME-N.json`, this
//! record, and `NAME-N.log`, what it prints. A manager that was killed leaves its NFs running; they
//! wait for the next one, which finds them here and takes them on instead of starting others.
#![forbid(unsafe_code)]

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Wanted;

/// One NF, as the next manager must know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its process.
    pub pid: i32,
    /// When the process started, clock ticks since boot: with `boot`, what tells it from another
    /// with the same number (field 22 of /proc/PID/stat, proc(5)).
    pub start_ticks: u64,
    /// The kernel's id of this boot.
    pub boot: String,
    /// The core it was given.
    pub core: Option<u32>,
    /// What it was started for.
    pub wanted: Wanted,
}

impl Record {
    /// A record of a process that exists now, if only until it is reaped: it may be over sooner than
    /// it is noted.
    ///
    /// # Errors
    /// When /proc cannot be read, or has no such process.
    pub fn of(pid: i32, core: Option<u32>, wanted: &Wanted) -> io::Result<Self> {
        let (_, start_ticks) = state_and_start(pid)?;
        Ok(Self { pid, start_ticks, boot: boot_id()?, core, wanted: wanted.clone() })
    }

    /// Whether its process is still there, and still the same.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let runs = |(state, ticks)| !matches!(state, 'Z' | 'X') && ticks == self.start_ticks;
        state_and_start(self.pid).is_ok_and(runs) && boot_id().is_ok_and(|boot| boot == self.boot)
    }
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// State and start time of a process, also of one that has ended and only waits to be reaped.
fn state_and_start(pid: i32) -> io::Result<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything, also parentheses and spaces.
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let state = fields.next().and_then(|state| state.chars().next());
    let ticks = fields.nth(18).and_then(|field| field.parse().ok());
    state.zip(ticks).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The folder with records and output of a manager's NFs.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder that belongs to a control socket; nothing is made yet.
    #[must_use]
    pub fn of_socket(socket: &Path) -> Self {
        let mut path = socket.as_os_str().to_owned();
        path.push(".nfs");
        Self { path: path.into() }
    }

    /// Where it is.
    #[cfg(test)]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it if it is not there. What another user could write to is refused: its files say
    /// which processes to take for ours.
    ///
    /// # Errors
    /// One line.
    pub fn make(&self) -> Result<(), String> {
        let path = self.path.display();
        match DirBuilder::new().mode(0o750).create(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(format!("{path}: cannot make the folder for NFs' output: {error}"));
            }
            _ => {}
        }
        let meta = std::fs::symlink_metadata(&self.path).map_err(|e| format!("{path}: {e}"))?;
        let ours = meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0;
        if !meta.is_dir() || !ours {
            return Err(format!(
                "{path}: expected a folder that only this manager's user may write to; remove it"
            ));
        }
        Ok(())
    }

    /// The file for an NF's output.
    #[must_use]
    pub fn output(&self, stem: &str) -> PathBuf {
        self.path.join(format!("{stem}.log"))
    }

    fn record(&self, stem: &str) -> PathBuf {
        self.path.join(format!("{stem}.json"))
    }

    /// Writes a record; it is there whole or not at all.
    ///
    /// # Errors
    /// As the system says.
    pub fn write(&self, stem: &str, record: &Record) -> io::Result<()> {
        let new = self.path.join(format!("{stem}.new"));
        std::fs::write(&new, serde_json::to_vec(record)?)?;
        std::fs::rename(new, self.record(stem))
    }

    /// Removes a record; what the NF printed stays.
    pub fn forget(&self, stem: &str) {
        let _ = std::fs::remove_file(self.record(stem));
    }

    /// Every record whose NF still runs, with its stem, by name. Others are removed.
    pub fn living(&self) -> Vec<(String, Record)> {
        // Nothing is believed, or removed, in a folder that is not ours.
        if !self.path.exists() || self.make().is_err() {
            return Vec::new();
        }
        let mut living = Vec::new();
        for path in self.files() {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            let record =
                std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            match record {
                Some(record) if Record::is_alive(&record) => living.push((stem.to_owned(), record)),
                _ => self.forget(stem),
            }
        }
        living.sort_by(|a, b| a.0.cmp(&b.0));
        living
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        std::fs::read_dir(&self.path).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()))
    }

    /// Removes the folder and all that is ours in it.
    pub fn remove(&self) {
        if !self.path.exists() || self.make().is_err() {
            return;
        }
        for file in self.files() {
            let ours = file.extension().is_some_and(|e| e == "json" || e == "log" || e == "new");
            if ours {
                let _ = std::fs::remove_file(file);
            }
        }
        let _ = std::fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn folder() -> (tempfile::TempDir, Folder) {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::of_socket(&directory.path().join("m.sock"));
        folder.make().unwrap();
        (directory, folder)
    }

    #[test]
    fn a_record_is_of_one_process_and_no_other_with_its_number() {
        let (_directory, folder) = folder();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        let record = Record::of(pid, Some(3), &Wanted::default()).unwrap();
        folder.write("nf-0", &record).unwrap();
        let reused = Record { start_ticks: record.start_ticks - 1, ..record.clone() };
        folder.write("nf-1", &reused).unwrap();
        let rebooted = Record { boot: "another".into(), ..record.clone() };
        folder.write("nf-2", &rebooted).unwrap();
        std::fs::write(folder.path().join("nf-3.json"), "{ nonsense").unwrap();
        assert_eq!(folder.living(), [("nf-0".to_owned(), record.clone())]);
        child.kill().unwrap();
        // Not reaped yet, and dead all the same.
        while record.is_alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(folder.living().is_empty());
        assert_eq!(folder.files().count(), 0, "records of the dead are removed");
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_not_believed() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_directory, folder) = folder();
        let record = Record::of(std::process::id().cast_signed(), None, &Wanted::default());
        folder.write("nf-0", &record.unwrap()).unwrap();
        assert_eq!(folder.living().len(), 1);
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path(), open).unwrap();
        assert!(folder.make().unwrap_err().contains("only this manager's user"));
        assert!(folder.living().is_empty());
    }
}
