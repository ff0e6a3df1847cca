//! The folder with the bundles, and the thread that writes them.
//!
//! A bundle is a folder in it, `TIME-SERVICE-INSTANCE`; it is written under another name first, so that it is
//! there whole or not at all. Who may use the control socket gets the files by descriptors; the folder is the
//! manager's own, for there are payloads in it.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use nflib::control::CrashStatus;

use super::bundle::{FILES, Report, Scene};

/// Crashes that wait to be written, at most.
const MAX_WAITING: usize = 16;
/// How long the manager's end waits for what is being written.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Begins the name of a bundle that is being written.
const UNFINISHED: &str = ".new-";
/// Longest report that is read back, bytes.
const MAX_REPORT_BYTES: u64 = 16 << 20;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bundles.
    pub bundles: u32,
    /// Bytes of all their files; the newest bundle stays in any case.
    pub bytes: u64,
}

/// The folder.
pub struct Store {
    folder: PathBuf,
    bounds: Bounds,
    /// Oldest first.
    crashes: Mutex<Vec<CrashStatus>>,
}

impl Store {
    /// The folder at this path, with what an earlier manager left there. It is made when it is needed.
    #[must_use]
    pub fn open(folder: PathBuf, bounds: Bounds) -> Self {
        let mut crashes = Vec::new();
        if is_ours(&folder) {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(UNFINISHED) {
                    let _ = fs::remove_dir_all(entry.path());
                } else if let Some(crash) = read_back(&entry.path(), &name) {
                    crashes.push(crash);
                }
            }
        }
        crashes.sort_by_key(|crash| crash.time_unix_ns);
        Self { folder, bounds, crashes: Mutex::new(crashes) }
    }

    fn crashes(&self) -> MutexGuard<'_, Vec<CrashStatus>> {
        self.crashes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<CrashStatus> {
        self.crashes().clone()
    }

    /// A crash and its files, in the order in which it lists them.
    ///
    /// # Errors
    /// One line.
    pub fn files(&self, name: &str) -> Result<(CrashStatus, Vec<OwnedFd>), String> {
        let found = self.crashes().iter().find(|crash| crash.name == name).cloned();
        let crash =
            found.ok_or_else(|| format!("there is no crash {name:?}; see millrace crash list"))?;
        let folder = self.folder.join(&crash.name);
        let open = |(file, _): &(String, u64)| {
            let path = folder.join(file);
            let file = File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path);
            file.map(OwnedFd::from).map_err(|error| format!("{}: {error}", path.display()))
        };
        let files = crash.files.iter().map(open).collect::<Result<_, _>>()?;
        Ok((crash, files))
    }

    /// Writes a bundle, and removes the oldest that are too many.
    ///
    /// # Errors
    /// As the system says.
    pub fn keep(&self, scene: &Scene) -> io::Result<CrashStatus> {
        self.make()?;
        let name = self.free_name(scene);
        let unfinished = self.folder.join(format!("{UNFINISHED}{name}"));
        let path = self.folder.join(&name);
        DirBuilder::new().mode(0o750).create(&unfinished)?;
        let written = scene.write(&unfinished, &name, &path).and_then(|report| {
            fs::rename(&unfinished, &path)?;
            Ok(report.crash)
        });
        let crash = written.inspect_err(|_| {
            let _ = fs::remove_dir_all(&unfinished);
        })?;
        self.crashes().push(crash.clone());
        self.trim();
        Ok(crash)
    }

    fn make(&self) -> io::Result<()> {
        if !self.folder.exists() {
            DirBuilder::new().mode(0o750).recursive(true).create(&self.folder)?;
        }
        if is_ours(&self.folder) {
            return Ok(());
        }
        Err(io::Error::other("expected a folder that only this manager's user may write to"))
    }

    /// `20261130T132501Z-firewall-3`, with a number behind it should there be one of that name.
    fn free_name(&self, scene: &Scene) -> String {
        let safe = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
        let service: String = scene.service.name.chars().map(safe).take(64).collect();
        let time = utc(scene.time_unix_ns / 1_000_000_000);
        let name = format!("{time}-{service}-{}", scene.counters.instance);
        let mut names = std::iter::once(name.clone()).chain((2..).map(|n| format!("{name}-{n}")));
        names.find(|name| !self.folder.join(name).exists()).unwrap_or(name)
    }

    fn trim(&self) {
        let mut crashes = self.crashes();
        let bytes = |crash: &CrashStatus| crash.files.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let mut all_bytes: u64 = crashes.iter().map(bytes).sum();
        while crashes.len() > 1
            && (crashes.len() > self.bounds.bundles as usize || all_bytes > self.bounds.bytes)
        {
            let oldest = crashes.remove(0);
            all_bytes = all_bytes.saturating_sub(bytes(&oldest));
            remove(&self.folder.join(&oldest.name));
        }
    }
}

/// Removes what a bundle consists of, and nothing that somebody else has put there.
fn remove(bundle: &Path) {
    for file in FILES {
        let _ = fs::remove_file(bundle.join(file));
    }
    let _ = fs::remove_dir(bundle);
}

/// Whether a folder is there, and nobody else may write to it: what lies in it is believed.
fn is_ours(folder: &Path) -> bool {
    let is_ours = |meta: fs::Metadata| {
        meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0
    };
    fs::metadata(folder).is_ok_and(is_ours)
}

fn read_back(bundle: &Path, name: &str) -> Option<CrashStatus> {
    let path = bundle.join(FILES[0]);
    if fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?.len() > MAX_REPORT_BYTES {
        return None;
    }
    let report: Report = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let mut crash = report.crash;
    // Names of files are joined to a path.
    crash.files.retain(|(file, _)| FILES.contains(&file.as_str()));
    // It may have been moved here.
    (crash.name, crash.path) = (name.to_owned(), bundle.display().to_string());
    Some(crash)
}

/// A time as `20261130T132501Z`.
fn utc(unix_s: u64) -> String {
    let (days, s) = (unix_s / 86_400, unix_s % 86_400);
    // Days from 0000-03-01 on, in eras of 400 years; a year that begins in March has its leap day last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// The thread that writes bundles: no file system is waited for in the control thread.
pub struct Writer {
    scenes: Option<Sender<Box<Scene>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts it.
    ///
    /// # Errors
    /// As the system says.
    pub fn start(store: Arc<Store>) -> io::Result<Self> {
        let (scenes, received) = crossbeam_channel::bounded::<Box<Scene>>(MAX_WAITING);
        let thread = std::thread::Builder::new().name("crashes".into()).spawn(move || {
            // Packets first: names of functions are looked up here.
            let _ = nflib::shm::set_nice(nix::unistd::gettid().as_raw(), 10);
            for scene in received {
                let (service, instance) = (&scene.service.name, scene.counters.instance);
                match store.keep(&scene) {
                    Ok(crash) => {
                        let last_words = crash.last_words.as_deref().unwrap_or("none");
                        tracing::warn!(
                            instance,
                            service,
                            why = crash.why,
                            last_words,
                            "an NF crashed: millrace crash show {}",
                            crash.name
                        );
                    }
                    Err(error) => tracing::warn!(
                        instance, service, %error,
                        "an NF crashed ({}), and what is left of it cannot be written to {}",
                        scene.why, store.folder.display()
                    ),
                }
            }
        })?;
        Ok(Self { scenes: Some(scenes), thread: Some(thread) })
    }

    /// Has a bundle written.
    pub fn write(&self, scene: Scene) {
        let Some(scenes) = &self.scenes else { return };
        if let Err(TrySendError::Full(scene) | TrySendError::Disconnected(scene)) =
            scenes.try_send(Box::new(scene))
        {
            tracing::warn!(
                instance = scene.counters.instance,
                service = scene.service.name,
                "an NF crashed ({}): {MAX_WAITING} others wait to be written, it is left out",
                scene.why
            );
        }
    }
}

impl Drop for Writer {
    /// Waits for what is still to be written, for a while.
    fn drop(&mut self) {
        self.scenes = None;
        let Some(thread) = self.thread.take() else { return };
        let until = Instant::now() + END_LIMIT;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        for (unix_s, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (951_868_800, "20000301T000000Z"),
            (1_796_045_101, "20261130T132501Z"),
            (4_107_542_399, "21000228T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(utc(unix_s), text);
        }
    }
}
