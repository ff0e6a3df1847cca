//! System calls that an NF must not make, by their numbers, for a test that makes them.
#![allow(unsafe_code)]

/// A name, the call, and arguments with which it does no harm where it is not refused.
type Attempt = (&'static str, libc::c_long, [usize; 4]);

const NONE: usize = usize::MAX;

/// What is refused at all times. Those of [`TELLING`] would fail otherwise without the filter.
pub const FORBIDDEN: &[Attempt] = &[
    ("ptrace", libc::SYS_ptrace, [0x7fff, NONE, 0, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [0; 4]),
    ("process_vm_writev", libc::SYS_process_vm_writev, [0; 4]),
    ("process_madvise", libc::SYS_process_madvise, [NONE, 0, 0, 0]),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, [NONE, 0, 0, 0]),
    ("kcmp", libc::SYS_kcmp, [0; 4]),
    ("perf_event_open", libc::SYS_perf_event_open, [0; 4]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0; 4]),
    ("io_uring_enter", libc::SYS_io_uring_enter, [NONE, 0, 0, 0]),
    ("io_uring_register", libc::SYS_io_uring_register, [NONE, 0, 0, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, [NONE, 0, 0, 0]),
    ("bpf", libc::SYS_bpf, [NONE, 0, 0, 0]),
    ("mount", libc::SYS_mount, [0; 4]),
    ("umount2", libc::SYS_umount2, [0; 4]),
    ("pivot_root", libc::SYS_pivot_root, [0; 4]),
    ("chroot", libc::SYS_chroot, [0; 4]),
    ("fsopen", libc::SYS_fsopen, [0; 4]),
    ("open_tree", libc::SYS_open_tree, [NONE, 0, 0, 0]),
    ("setns", libc::SYS_setns, [NONE, 0, 0, 0]),
    ("unshare", libc::SYS_unshare, [0; 4]),
    ("clone into a user namespace", libc::SYS_clone, [CLONE_IMPOSSIBLE, 0, 0, 0]),
    ("clone3", libc::SYS_clone3, [0; 4]),
    ("add_key", libc::SYS_add_key, [0; 4]),
    ("keyctl", libc::SYS_keyctl, [NONE, 0, 0, 0]),
    ("kexec_load", libc::SYS_kexec_load, [0; 4]),
    ("init_module", libc::SYS_init_module, [0; 4]),
    ("finit_module", libc::SYS_finit_module, [NONE, 0, 0, 0]),
    ("reboot", libc::SYS_reboot, [0; 4]),
    ("swapon", libc::SYS_swapon, [0; 4]),
    ("settimeofday", libc::SYS_settimeofday, [0; 4]),
    ("punch by fallocate", libc::SYS_fallocate, [NONE, PUNCH, 0, 4096]),
    ("terminal input", libc::SYS_ioctl, [NONE, libc::TIOCSTI as usize, 0, 0]),
];

/// Those that need no privilege, so that only the filter refuses them with EPERM.
pub const TELLING: &[&str] = &[
    "ptrace",
    "process_vm_readv",
    "process_madvise",
    "pidfd_getfd",
    "io_uring_enter",
    "setns",
    "unshare",
    "clone into a user namespace",
    "keyctl",
    "punch by fallocate",
    "terminal input",
];

/// Not possible together, so that there is no second process where it is not refused.
const CLONE_IMPOSSIBLE: usize = (libc::CLONE_NEWUSER | libc::CLONE_FS) as usize;
const PUNCH: usize = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as usize;

/// Makes every forbidden call. The error is `errno`.
pub fn attempt_all() -> impl Iterator<Item = (&'static str, Result<(), i32>)> {
    FORBIDDEN.iter().map(|&(name, call, [a, b, c, d])| {
        // SAFETY: every pointer among the arguments is null or invalid, every descriptor is -1 and
        // every flag impossible or without effect, so the kernel changes nothing of this process.
        (name, checked(unsafe { libc::syscall(call, a, b, c, d, 0, 0) }))
    })
}

/// Takes the pages of a shared mapping of one's own file out of it.
pub fn punch_by_madvise() -> Result<(), i32> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = memfd_create(c"punched", MFdFlags::MFD_CLOEXEC).map_err(|errno| errno as i32)?;
    nix::unistd::ftruncate(&file, 4096).map_err(|errno| errno as i32)?;
    let mapping = nflib::shm::Mapping::new(&file, 4096, true).map_err(|_| -1)?;
    // SAFETY: the mapping is this function's own, and nobody looks at what is in it.
    let done = unsafe { libc::madvise(mapping.base().as_ptr().cast(), 4096, libc::MADV_REMOVE) };
    checked(done.into())
}

fn checked(result: libc::c_long) -> Result<(), i32> {
    if result >= 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}
