//! The core an NF runs on.
#![forbid(unsafe_code)]

use std::io;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::RunError;

/// Keeps the calling thread on one core.
///
/// # Errors
/// [`RunError::Core`], with the cores there are.
pub(super) fn run_on(core: u32) -> Result<(), RunError> {
    pin(core).map_err(|errno| RunError::Core {
        core,
        source: io::Error::from(errno),
        usable: usable_cores(),
    })
}

fn pin(core: u32) -> Result<(), Errno> {
    let mut only = CpuSet::new();
    only.set(core as usize)?;
    sched_setaffinity(Pid::from_raw(0), &only)
}

/// The cores this thread may use now, as `0-3,8`.
fn usable_cores() -> String {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return "unknown".to_owned() };
    let cores = (0..CpuSet::count()).filter(|&core| set.is_set(core) == Ok(true));
    core_list(cores.map(|core| core as u32))
}

/// Core numbers, given in rising order, as the kernel writes them: `0-3,8`.
pub fn core_list(cores: impl IntoIterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for core in cores {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => ranges.push((core, core)),
        }
    }
    let texts = ranges.into_iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_there_is_is_taken_and_no_other_is_left() {
        let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let core = (0..CpuSet::count()).rfind(|&core| set.is_set(core) == Ok(true)).unwrap();
        run_on(core as u32).unwrap();
        assert_eq!(usable_cores(), core.to_string());
    }

    #[test]
    fn a_core_that_there_is_not_is_one_line_that_says_which_there_are() {
        for core in [1023, 1024, u32::MAX] {
            let line = run_on(core).unwrap_err().to_string();
            assert_eq!(line.lines().count(), 1);
            assert!(line.contains(&core.to_string()) && line.contains(&usable_cores()), "{line}");
        }
    }
}
