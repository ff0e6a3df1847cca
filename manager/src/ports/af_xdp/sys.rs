//! The four system calls that neither `std` nor `nix` wraps for us.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The result of a call that returns -1 for an error.
fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Plain-old-data that the kernel may read or fill byte by byte.
///
/// # Safety
/// The type is `repr(C)` or a primitive, has no padding, and every bit pattern is a valid value.
pub unsafe trait Plain: Copy + Default {}

macro_rules! plain {
    ($($type:ty),+ $(,)?) => {$(
        // SAFETY: an integer, or a repr(C) struct of integers without padding.
        unsafe impl Plain for $type {}
    )+};
}
plain!(
    u32,
    i32,
    super::abi::XdpUmemReg,
    super::abi::XdpMmapOffsets,
    super::abi::XdpStatistics,
    super::abi::SockaddrXdp,
    PacketMembership,
);

/// `socket(2)`.
pub fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd =
        check(i64::from(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) }))?;
    owned(fd)
}

/// Takes ownership of a descriptor that a call has just returned.
fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `setsockopt(2)` with a plain value.
pub fn set_option<T: Plain>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(i64::from(result)).map(drop)
}

/// `getsockopt(2)`; what an older kernel leaves out stays zero.
pub fn get_option<T: Plain>(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`; any bytes the kernel writes are a valid `T`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut len,
        )
    };
    check(i64::from(result)).map(|_| value)
}

/// `bind(2)` to any plain socket address.
pub fn bind<T: Plain>(fd: BorrowedFd<'_>, address: &T) -> io::Result<()> {
    // SAFETY: pointer and length describe `address`, which the kernel only reads.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(address).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(i64::from(result)).map(drop)
}

/// `sendto(2)` without data: "look at the transmit ring".
pub fn send_kick(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no buffer and no address are passed.
    let result = unsafe {
        libc::sendto(fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
    };
    check(result as i64).map(drop)
}

/// `recvfrom(2)` without data: "look at the fill ring", or one turn of busy polling.
pub fn receive_kick(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no buffer and no address are passed.
    let result = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    check(result as i64).map(drop)
}

/// `bpf(2)`; `attributes` is the union's head, as 32-bit words (shorter ones are zero-filled by
/// the kernel).
///
/// # Safety
/// Every address among the words points to memory of the length that the command expects.
pub unsafe fn bpf(command: i32, attributes: &[u32]) -> io::Result<i64> {
    // SAFETY: pointer and length describe `attributes`; the caller vouches for what it points to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            libc::c_long::from(command),
            attributes.as_ptr(),
            std::mem::size_of_val(attributes),
        )
    };
    check(result)
}

/// `bpf(2)` for a command that returns a descriptor.
///
/// # Safety
/// As [`bpf`].
pub unsafe fn bpf_fd(command: i32, attributes: &[u32]) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    owned(unsafe { bpf(command, attributes) }?)
}

/// An address as the two words of a 64-bit attribute, in this machine's order.
pub fn words(address: u64) -> [u32; 2] {
    let [low, high] = [address as u32, (address >> 32) as u32];
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}

/// `ioctl(SIOCETHTOOL)`: one question to the interface's driver. `answer` starts with the command
/// word and is filled in place.
pub fn ethtool(fd: BorrowedFd<'_>, interface: &str, answer: &mut [u8]) -> io::Result<()> {
    #[repr(C)]
    struct IfReq {
        name: [u8; libc::IFNAMSIZ],
        data: *mut u8,
        rest: [u8; 16],
    }
    let mut request = IfReq { name: [0; libc::IFNAMSIZ], data: answer.as_mut_ptr(), rest: [0; 16] };
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    request.name[..interface.len()].copy_from_slice(interface.as_bytes());
    // SAFETY: `request` is laid out as struct ifreq and outlives the call; the callers pass answers
    // as long as the structure of their command.
    let result = unsafe {
        libc::ioctl(fd.as_raw_fd(), super::abi::SIOCETHTOOL as libc::Ioctl, &raw mut request)
    };
    check(i64::from(result)).map(drop)
}

/// A packet socket that receives nothing (protocol 0) and keeps an interface promiscuous until it is
/// closed (packet(7), PACKET_ADD_MEMBERSHIP).
pub fn promiscuous_socket(ifindex: u32) -> io::Result<OwnedFd> {
    let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    let membership = PacketMembership {
        ifindex,
        kind: libc::PACKET_MR_PROMISC as u16,
        address_len: 0,
        address: [0; 8],
    };
    let option = libc::PACKET_ADD_MEMBERSHIP;
    set_option(std::os::fd::AsFd::as_fd(&fd), libc::SOL_PACKET, option, &membership)?;
    Ok(fd)
}

/// `struct packet_mreq`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PacketMembership {
    ifindex: u32,
    kind: u16,
    address_len: u16,
    address: [u8; 8],
}

/// Tries to lift the limit on locked memory, which UMEM registration counts against when the
/// process lacks CAP_IPC_LOCK. What cannot be had is told by the registration itself.
pub fn raise_memlock_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    let mut limit = unlimited;
    // SAFETY: each call gets a valid `rlimit` to read or to fill.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) == 0 {
            return;
        }
        if libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit);
        }
    }
}

/// Monotonic time to the kernel's tick (1 to 10 ms), nanoseconds. Costs no clock read.
pub fn coarse_now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}
