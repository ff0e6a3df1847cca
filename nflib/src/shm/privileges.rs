//! Giving up privileges, by calls that have no safe wrapper in the libraries used.

use std::io;

/// One instruction of a classic BPF program, as seccomp(2) reads it.
pub type FilterStep = libc::sock_filter;

/// Empties the calling thread's ambient capabilities, which alone survive an exec without root: what
/// is started next has none of a manager's that got them so (`AmbientCapabilities=` of systemd).
///
/// # Errors
/// As prctl(2) says.
pub fn clear_ambient_capabilities() -> io::Result<()> {
    const CLEAR_ALL: libc::c_ulong = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    const NONE: libc::c_ulong = 0;
    // SAFETY: takes integers only, as wide as prctl(2) reads them; unused ones are 0 as it demands.
    let done = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, CLEAR_ALL, NONE, NONE, NONE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Empties the calling thread's bounding set, without which an exec as user 0 would bring every
/// capability back. Returns false when the thread may not (no CAP_SETPCAP): it then has none that
/// `no_new_privs` does not keep it from gaining.
///
/// # Errors
/// As prctl(2) says.
pub fn clear_bounding_capabilities() -> io::Result<bool> {
    // The kernel says which is the last it knows; 64 is what the set has room for.
    for capability in 0..64 as libc::c_ulong {
        // SAFETY: takes integers only, as wide as prctl(2) reads them.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if done != 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINVAL) if capability > 0 => return Ok(true),
                Some(libc::EPERM) => return Ok(false),
                _ => return Err(error),
            }
        }
    }
    Ok(true)
}

/// Empties the calling thread's effective, permitted and inheritable sets.
///
/// # Errors
/// As capset(2) says.
pub fn clear_capabilities() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h: two words a set.
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let sets = [0_u32; 6];
    // SAFETY: both point to as many words as capset(2) reads for this version, and it writes to the
    // header only, and only when the version were one it does not know.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the kernel run every system call of this thread, and of what it starts, past a filter
/// (seccomp(2)). There is no way back. The thread must have set `no_new_privs`.
///
/// # Errors
/// EACCES without `no_new_privs`; EINVAL for a program that is none, or a kernel without filters.
pub fn install_syscall_filter(steps: &[FilterStep]) -> io::Result<()> {
    let len = u16::try_from(steps.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: steps.as_ptr().cast_mut() };
    // SAFETY: the program points to `len` steps, which the kernel copies and checks before this
    // returns, and does not write to.
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The version of Landlock that this kernel has; 0: none, or it was not switched on at boot.
#[must_use]
pub fn landlock_version() -> u32 {
    const ASK_VERSION: libc::c_ulong = 1;
    let none = std::ptr::null::<u8>();
    // SAFETY: with this flag the call takes no ruleset and makes nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, ASK_VERSION) };
    u32::try_from(version).unwrap_or(0)
}
