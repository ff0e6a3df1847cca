//! Packet sockets (packet(7)): whole frames on one interface, many a system call.
//!
//! `unsafe` because socket addresses and message headers are C structures.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt};

/// Most frames a system call moves.
pub const BURST_PKTS: usize = 64;
/// Longest frame received whole, bytes.
const FRAME_BYTES: usize = 2048;

/// A packet socket bound to an interface; it never blocks.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

/// What a socket counted since it was asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketCounts {
    /// Packets that came, dropped ones too.
    pub pkts: u64,
    /// Packets dropped because the socket's buffer was full.
    pub dropped_pkts: u64,
}

/// Room for the frames of one call, and their lengths.
#[derive(Debug)]
pub struct FrameBuffers {
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

impl FrameBuffers {
    /// Room for [`BURST_PKTS`] frames.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: vec![0; BURST_PKTS * FRAME_BYTES], lengths: Vec::with_capacity(BURST_PKTS) }
    }

    /// The frames of the last call; of one longer than 2,048 bytes the beginning.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let slots = self.bytes.chunks_exact(FRAME_BYTES);
        slots.zip(&self.lengths).map(|(slot, &len)| &slot[..len.min(FRAME_BYTES)])
    }
}

impl Default for FrameBuffers {
    fn default() -> Self {
        Self::new()
    }
}

impl PacketSocket {
    /// A socket that only sends.
    ///
    /// # Errors
    /// The system calls': no such interface, no CAP_NET_RAW.
    pub fn sender(interface: &str) -> io::Result<Self> {
        let socket = Self::open()?;
        socket.bind(interface, 0)?;
        Ok(socket)
    }

    /// A socket that sees what the interface receives, with so large a buffer.
    ///
    /// # Errors
    /// The system calls'; the buffer's size needs CAP_NET_ADMIN.
    pub fn receiver(interface: &str, buffer_bytes: usize) -> io::Result<Self> {
        let socket = Self::open()?;
        setsockopt(&socket.fd, sockopt::RcvBufForce, &buffer_bytes)?;
        socket.set_packet_option(libc::PACKET_IGNORE_OUTGOING, 1)?;
        // Bound last: it hears nothing before.
        socket.bind(interface, libc::ETH_P_ALL as u16)?;
        Ok(socket)
    }

    fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: plain values.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nothing else owns.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    fn bind(&self, interface: &str, ethertype: u16) -> io::Result<()> {
        let name = CString::new(interface)?;
        let index = nix::net::if_::if_nametoindex(name.as_c_str())?;
        // SAFETY: a structure of integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = index.cast_signed();
        // SAFETY: the address lives through the call and its size is given.
        let bound = unsafe {
            libc::bind(
                self.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn set_packet_option(&self, option: i32, value: i32) -> io::Result<()> {
        // SAFETY: the value lives through the call and its size is given.
        let done = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends the first frames, [`BURST_PKTS`] at most; returns how many the kernel took.
    ///
    /// # Errors
    /// The system call's, when not even one was taken: `WouldBlock`, or ENOBUFS from the interface.
    pub fn send_burst(&self, frames: &[Vec<u8>]) -> io::Result<usize> {
        let frames = &frames[..frames.len().min(BURST_PKTS)];
        // SAFETY: structures of integers and pointers, for which zero is a value.
        let mut parts: [libc::iovec; BURST_PKTS] = unsafe { zeroed() };
        // SAFETY: as above; null for no address and no control data.
        let mut messages: [libc::mmsghdr; BURST_PKTS] = unsafe { zeroed() };
        for ((frame, part), message) in frames.iter().zip(&mut parts).zip(&mut messages) {
            part.iov_base = frame.as_ptr().cast_mut().cast();
            part.iov_len = frame.len();
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: the first `frames.len()` messages name one part each, and each part a frame; all
        // three live through the call. The kernel only reads the frames.
        let sent = unsafe {
            libc::sendmmsg(
                self.fd.as_raw_fd(),
                messages.as_mut_ptr(),
                frames.len() as libc::c_uint,
                0,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Takes up to [`BURST_PKTS`] frames that came; returns how many. 0: none is there.
    ///
    /// # Errors
    /// The system call's.
    pub fn receive_burst(&self, into: &mut FrameBuffers) -> io::Result<usize> {
        into.lengths.clear();
        // SAFETY: structures of integers and pointers, for which zero is a value.
        let mut parts: [libc::iovec; BURST_PKTS] = unsafe { zeroed() };
        // SAFETY: as above; null for no address and no control data.
        let mut messages: [libc::mmsghdr; BURST_PKTS] = unsafe { zeroed() };
        let slots = into.bytes.chunks_exact_mut(FRAME_BYTES);
        for ((slot, part), message) in slots.zip(&mut parts).zip(&mut messages) {
            part.iov_base = slot.as_mut_ptr().cast();
            part.iov_len = slot.len();
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: each message names one part and each part a slot of its own of `into.bytes`, which
        // is borrowed for the call. No timeout is given.
        let got = unsafe {
            libc::recvmmsg(
                self.fd.as_raw_fd(),
                messages.as_mut_ptr(),
                BURST_PKTS as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let Ok(got) = usize::try_from(got) else {
            let error = io::Error::last_os_error();
            // The socket says once that its interface went down, and hears again when it is up.
            let nothing = [io::ErrorKind::WouldBlock, io::ErrorKind::NetworkDown];
            return if nothing.contains(&error.kind()) { Ok(0) } else { Err(error) };
        };
        into.lengths.extend(messages.iter().take(got).map(|message| message.msg_len as usize));
        Ok(got)
    }

    /// What the socket counted since it was asked last.
    ///
    /// # Errors
    /// The system call's.
    pub fn take_counts(&self) -> io::Result<SocketCounts> {
        let mut counts = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = size_of_val(&counts) as libc::socklen_t;
        // SAFETY: the structure lives through the call and its size is given.
        let done = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counts).cast(),
                &raw mut len,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(SocketCounts { pkts: counts.tp_packets.into(), dropped_pkts: counts.tp_drops.into() })
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
