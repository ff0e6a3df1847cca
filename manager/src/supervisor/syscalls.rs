//! Which system calls an NF may make: a seccomp filter, as a list of what it may not.
//!
//! An ordinary NF (files, sockets, threads, memory) never meets the filter. What is refused looks into
//! other processes, changes the machine, or takes pages away from under the packet region: its file is
//! sealed against shrinking and growing, but a hole can be punched into it by whoever may write it. A
//! refused call fails with EPERM; nothing is killed.
//!
//! The program is classic BPF (seccomp(2)), straight down: a filter of a list has no loops, and the
//! kernel remembers for each call whether its arguments matter at all.
#![forbid(unsafe_code)]

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};
use nflib::shm::FilterStep;

/// As linux/audit.h has it: EM_X86_64 or EM_AARCH64, 64 bits, little endian.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: Option<u32> = Some(0xc000_00b7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: Option<u32> = None;

/// Calls by their x32 numbers are the same calls: refused as a whole, lest they get round the list.
#[cfg(target_arch = "x86_64")]
const FOREIGN_NUMBERS_FROM: u32 = 0x4000_0000;
#[cfg(not(target_arch = "x86_64"))]
const FOREIGN_NUMBERS_FROM: u32 = u32::MAX;

// Places in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Calls refused whatever their arguments.
const REFUSED: &[libc::c_long] = &[
    // Other processes' memory, registers and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    // What gets round this list, or stalls the kernel in the middle of a copy.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_bpf,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    // Keys.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

/// Calls refused to a reader besides: with them the owner of a file it may only read could make it
/// one that it may write.
const REFUSED_TO_READERS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    // `fchmodat2`, since Linux 6.6; the same number everywhere.
    452,
];

/// Namespaces are made by clone(2), too.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// What the filter is to refuse beyond the list that is always refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Sockets other than Unix ones.
    pub network: bool,
    /// Changes of a file's mode.
    pub file_modes: bool,
}

/// The filter, or `None` on a machine whose numbers of calls are not known here.
#[must_use]
pub fn filter(refused: Refused) -> Option<Vec<FilterStep>> {
    let architecture = ARCHITECTURE?;
    let mut steps = vec![
        load(ARCHITECTURE_AT),
        // 32-bit calls have numbers of their own.
        step(BPF_JMP | BPF_JEQ, architecture, 1, 0),
        give(ENOSYS),
        load(NUMBER_AT),
        step(BPF_JMP | BPF_JGE, FOREIGN_NUMBERS_FROM, 0, 1),
        give(ENOSYS),
    ];
    let readers = refused.file_modes.then_some(REFUSED_TO_READERS);
    for &call in REFUSED.iter().chain(readers.into_iter().flatten()) {
        steps.extend([step(BPF_JMP | BPF_JEQ, call as u32, 0, 1), give(EPERM)]);
    }
    // glibc falls back to clone(2), whose flags can be seen.
    steps.extend([step(BPF_JMP | BPF_JEQ, libc::SYS_clone3 as u32, 0, 1), give(ENOSYS)]);
    let any_of = |bits| step(BPF_JMP | BPF_JSET, bits, 0, 1);
    let other_than = |value| step(BPF_JMP | BPF_JEQ, value, 1, 0);
    let is = |value| step(BPF_JMP | BPF_JEQ, value, 0, 1);
    steps.extend(refuse_if(libc::SYS_clone, 0, any_of(NAMESPACES)));
    // Room may be asked for; holes, zeros and moved ranges change what others have mapped.
    let holes = !(libc::FALLOC_FL_KEEP_SIZE as u32);
    steps.extend(refuse_if(libc::SYS_fallocate, 1, any_of(holes)));
    steps.extend(refuse_if(libc::SYS_madvise, 2, is(libc::MADV_REMOVE as u32)));
    // What is typed into a terminal that was left open is its owner's command.
    steps.extend(refuse_if(libc::SYS_ioctl, 1, is(libc::TIOCSTI as u32)));
    if refused.network {
        steps.extend(refuse_if(libc::SYS_socket, 0, other_than(libc::AF_UNIX as u32)));
    }
    steps.push(give(libc::SECCOMP_RET_ALLOW));
    Some(steps)
}

/// Refuses `call` if its argument, of which the lower 32 bits count, stands the test; for every other
/// call the accumulator keeps the number.
fn refuse_if(call: libc::c_long, argument: u32, test: FilterStep) -> [FilterStep; 5] {
    [
        step(BPF_JMP | BPF_JEQ, call as u32, 0, 4),
        load(ARGUMENTS_AT + 8 * argument),
        test,
        give(EPERM),
        give(libc::SECCOMP_RET_ALLOW),
    ]
}

fn load(at: u32) -> FilterStep {
    step(BPF_LD | BPF_W | BPF_ABS, at, 0, 0)
}

fn give(verdict: u32) -> FilterStep {
    step(BPF_RET, verdict, 0, 0)
}

fn step(code: u32, k: u32, jt: u8, jf: u8) -> FilterStep {
    FilterStep { code: (code | BPF_K) as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel does.
    fn verdict(steps: &[FilterStep], architecture: u32, call: i64, arguments: [u64; 6]) -> u32 {
        let mut data = vec![call as u32, architecture, 0, 0];
        data.extend(arguments.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]));
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let FilterStep { code, jt, jf, k } = steps[at];
            let code = u32::from(code);
            let jump = |yes| 1 + usize::from(if yes { jt } else { jf });
            at += match code {
                _ if code == BPF_LD | BPF_W | BPF_ABS => {
                    accumulator = data[k as usize / 4];
                    1
                }
                _ if code == BPF_JMP | BPF_JEQ => jump(accumulator == k),
                _ if code == BPF_JMP | BPF_JGE => jump(accumulator >= k),
                _ if code == BPF_JMP | BPF_JSET => jump(accumulator & k != 0),
                _ if code == BPF_RET => return k,
                other => panic!("{other:#x}"),
            };
        }
    }

    fn asked(refused: Refused, call: i64, arguments: [u64; 6]) -> u32 {
        verdict(&filter(refused).unwrap(), ARCHITECTURE.unwrap(), call, arguments)
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const ALL: Refused = Refused { network: true, file_modes: true };

    #[test]
    fn what_is_listed_is_refused_and_ordinary_calls_are_not() {
        for call in REFUSED {
            assert_eq!(asked(Refused::default(), *call, [0; 6]), EPERM, "{call}");
        }
        for call in [libc::SYS_read, libc::SYS_mmap, libc::SYS_futex, libc::SYS_execve] {
            assert_eq!(asked(ALL, call, [u64::MAX; 6]), ALLOW, "{call}");
        }
        for call in REFUSED_TO_READERS {
            assert_eq!(asked(Refused::default(), *call, [0; 6]), ALLOW, "{call}");
            assert_eq!(asked(ALL, *call, [0; 6]), EPERM, "{call}");
        }
    }

    #[test]
    fn arguments_decide_where_a_call_is_harmless_without_them() {
        let first = |value: i32| [value as u64, 0, 0, 0, 0, 0];
        let second = |value: i32| [0, value as u64, 0, 0, 0, 0];
        let third = |value: i32| [0, 0, value as u64, 0, 0, 0];
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        for (call, arguments, expected) in [
            (libc::SYS_clone, first(libc::CLONE_VM | libc::CLONE_THREAD), ALLOW),
            (libc::SYS_clone, first(libc::CLONE_NEWUSER | libc::SIGCHLD), EPERM),
            (libc::SYS_clone3, first(0), ENOSYS),
            (libc::SYS_fallocate, second(0), ALLOW),
            (libc::SYS_fallocate, second(libc::FALLOC_FL_KEEP_SIZE), ALLOW),
            (libc::SYS_fallocate, second(punch), EPERM),
            (libc::SYS_fallocate, second(libc::FALLOC_FL_ZERO_RANGE), EPERM),
            (libc::SYS_madvise, third(libc::MADV_DONTNEED), ALLOW),
            (libc::SYS_madvise, third(libc::MADV_REMOVE), EPERM),
            (libc::SYS_socket, first(libc::AF_INET), ALLOW),
        ] {
            assert_eq!(asked(Refused::default(), call, arguments), expected, "{call}");
        }
        assert_eq!(asked(ALL, libc::SYS_socket, first(libc::AF_INET)), EPERM);
        assert_eq!(asked(ALL, libc::SYS_socket, first(libc::AF_UNIX)), ALLOW);
    }

    #[test]
    fn upper_halves_of_arguments_and_other_numberings_open_no_way_round() {
        let steps = filter(Refused::default()).unwrap();
        let here = ARCHITECTURE.unwrap();
        let disguised = [0, 0, 1 << 32 | libc::MADV_REMOVE as u64, 0, 0, 0];
        assert_eq!(verdict(&steps, here, libc::SYS_madvise, disguised), EPERM);
        // AUDIT_ARCH_I386, where 26 is ptrace.
        assert_eq!(verdict(&steps, 0x4000_0003, 26, [0; 6]), ENOSYS);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(verdict(&steps, here, libc::SYS_ptrace | 0x4000_0000, [0; 6]), ENOSYS);
    }
}
