//! Process facts that have no safe wrapper in the libraries used.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A descriptor that becomes readable when process `pid` ends (pidfd_open(2)).
///
/// # Errors
/// ESRCH when there is no such process (any more).
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers; a non-negative result is a new descriptor of ours alone.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: as above.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Kills the process of a pidfd (pidfd_send_signal(2)), and never another one that got its number.
///
/// # Errors
/// ESRCH when it has ended, EPERM when it is another user's.
pub fn pidfd_kill(fd: &OwnedFd) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a descriptor, integers, and the null pointer that the call takes for "no siginfo".
    let done = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), libc::SIGKILL, no_info, 0)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the nice level of a process's main thread (setpriority(2)).
///
/// # Errors
/// ESRCH when there is no such process; EACCES without the privilege.
pub fn set_nice(pid: i32, nice: i32) -> io::Result<()> {
    let Ok(who) = libc::id_t::try_from(pid) else {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    };
    // SAFETY: takes integers only.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, who, nice) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the scheduler decide anew whether a thread that waits for a core gets it at once. It does so when
/// a priority changes, and otherwise, without a clock of its own for slices, at its next tick, which may
/// be 4 ms away. The nice level goes down by one and back (setpriority(2), of a thread).
///
/// # Errors
/// ESRCH when there is no such thread; EACCES without the privilege.
pub fn nudge(tid: i32) -> io::Result<()> {
    let Ok(who) = libc::id_t::try_from(tid) else {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    };
    // SAFETY: takes integers only. Of a thread that is gone it says -1, and the next call finds out.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, who) };
    set_nice(tid, nice - 1)?;
    set_nice(tid, nice)
}

/// The shortest slice that the scheduler grants.
pub const SHORT_SLICE_NS: u64 = 100_000;

/// Asks the scheduler to give the calling thread the core soon when it wakes up, for short slices of at
/// most `slice_ns` in return (sched_setattr(2); Linux 6.12 and later, others ignore it). No privilege is
/// needed, and no thread or process that is started afterwards inherits it.
///
/// # Errors
/// As sched_setattr(2).
pub fn ask_for_short_slices(slice_ns: u64) -> io::Result<()> {
    // SAFETY: integers only, of which zero is a value.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = size_of::<libc::sched_attr>() as u32;
    attr.sched_policy = libc::SCHED_OTHER.cast_unsigned();
    attr.sched_flags = libc::SCHED_FLAG_RESET_ON_FORK as u64;
    // SAFETY: takes integers only; 0 is the calling thread, whose nice level this is.
    attr.sched_nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    attr.sched_runtime = slice_ns;
    // SAFETY: the structure is valid for the call, and says its own size.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&attr), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;

    #[test]
    fn a_process_can_be_made_nicer_and_one_that_is_none_cannot() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        set_nice(pid, 7).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // proc_pid_stat(5): field 19, here counted from behind the name.
        let nice = stat.rsplit(')').next().unwrap().split_whitespace().nth(16);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(nice, Some("7"));
        assert_eq!(set_nice(-1, 0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn anybody_may_ask_for_short_slices() {
        std::thread::spawn(|| ask_for_short_slices(100_000)).join().unwrap().unwrap();
    }

    #[test]
    fn a_nudge_leaves_the_nice_level_as_it_was() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        set_nice(pid, 7).unwrap();
        let nudged = nudge(pid);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let nice = stat.rsplit(')').next().unwrap().split_whitespace().nth(16);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(nice, Some("7"));
        // Others than root may not go down.
        assert_eq!(nudged.is_ok(), nix::unistd::geteuid().is_root());
        assert_eq!(nudge(-1).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_pidfd_becomes_readable_when_its_process_ends() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let fd = pidfd_open(i32::try_from(child.id()).unwrap()).unwrap();
        let readable = || {
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
        };
        assert!(!readable());
        pidfd_kill(&fd).unwrap();
        child.wait().unwrap();
        assert!(readable());
        assert_eq!(pidfd_kill(&fd).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
