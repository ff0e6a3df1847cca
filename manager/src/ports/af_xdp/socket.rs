//! An AF_XDP socket: UMEM registration, its four rings, bind, and the kicks.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::abi::*;
use super::mmap::RingMap;
use super::ring::{Consumer, Producer};
use super::sys;
use super::umem::Umem;

/// How long a bind may find the queue still taken. A driver lets go of a closed socket's queue only
/// after its deferred work has run, 5 to 20 ms later.
const REBIND_PATIENCE: Duration = Duration::from_secs(1);
const REBIND_PAUSE: Duration = Duration::from_millis(5);

/// The system call that failed while a socket was being made.
#[derive(Debug)]
pub struct SetupError {
    /// The call, for the message.
    pub what: &'static str,
    /// Its error.
    pub source: io::Error,
}

impl SetupError {
    fn at(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { what, source }
    }

    /// The error's number, or 0.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

/// Where and how to bind.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// Interface index.
    pub ifindex: u32,
    /// Queue of the interface.
    pub queue: u32,
    /// Entries of each ring, a power of two.
    pub descriptors: u32,
    /// Ask for zero-copy; else copy.
    pub zero_copy: bool,
    /// Poll the device from our own calls.
    pub busy_poll: bool,
}

/// What a kick says about the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// Done, or busy: try again at the next turn.
    Done,
    /// There is more to send than one call sends.
    More,
    /// The link is down; frames wait.
    Down,
    /// The device was removed, or the call fails for good.
    Gone,
}

/// A bound socket.
#[derive(Debug)]
pub struct XskSocket {
    fd: OwnedFd,
}

/// The four rings of a socket.
#[derive(Debug)]
pub struct Rings {
    /// Frames received.
    pub rx: Consumer<XdpDesc>,
    /// Frames to send.
    pub tx: Producer<XdpDesc>,
    /// Buffers to receive into.
    pub fill: Producer<u64>,
    /// Buffers sent.
    pub completion: Consumer<u64>,
}

impl XskSocket {
    /// Makes a socket over `umem` and binds it; returns when the kernel has accepted it.
    ///
    /// # Errors
    /// The call that failed. A queue that is taken is tried again for a second.
    pub fn open(umem: &Umem, binding: &Binding) -> Result<(Self, Rings), SetupError> {
        let fd = sys::socket(libc::AF_XDP, libc::SOCK_RAW, 0)
            .map_err(SetupError::at("socket(AF_XDP)"))?;
        let socket = Self { fd };
        socket.register(umem)?;
        let rings = socket.make_rings(binding.descriptors)?;
        if binding.busy_poll {
            socket.enable_busy_poll()?;
        }
        // Fewer calls for a burst; kernels before 6.17 do not know it and send 32 a call.
        let budget = binding.descriptors.min(256);
        let _ = sys::set_option(socket.fd(), libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget);
        socket.bind_patiently(umem, binding)?;
        Ok((socket, rings))
    }

    fn register(&self, umem: &Umem) -> Result<(), SetupError> {
        let registration = XdpUmemReg {
            addr: umem.region().base().as_ptr() as u64,
            len: umem.region().mapped_bytes() as u64,
            chunk_size: umem.chunk_bytes(),
            headroom: umem.headroom_bytes(),
            flags: 0,
            tx_metadata_len: 0,
        };
        self.set(XDP_UMEM_REG, &registration, "setsockopt(XDP_UMEM_REG)")
    }

    fn make_rings(&self, size: u32) -> Result<Rings, SetupError> {
        self.set(XDP_UMEM_FILL_RING, &size, "setsockopt(XDP_UMEM_FILL_RING)")?;
        self.set(XDP_UMEM_COMPLETION_RING, &size, "setsockopt(XDP_UMEM_COMPLETION_RING)")?;
        self.set(XDP_RX_RING, &size, "setsockopt(XDP_RX_RING)")?;
        self.set(XDP_TX_RING, &size, "setsockopt(XDP_TX_RING)")?;
        let offsets: XdpMmapOffsets = sys::get_option(self.fd(), libc::SOL_XDP, XDP_MMAP_OFFSETS)
            .map_err(SetupError::at("getsockopt(XDP_MMAP_OFFSETS)"))?;
        let map = |place, offset: XdpRingOffset, entry_bytes: usize| {
            let len_bytes = offset.desc as usize + size as usize * entry_bytes;
            RingMap::new(self.fd(), place, len_bytes).map_err(SetupError::at("mmap(AF_XDP ring)"))
        };
        let bad = || SetupError {
            what: "getsockopt(XDP_MMAP_OFFSETS)",
            source: io::Error::from(io::ErrorKind::InvalidData),
        };
        let rx = map(XDP_PGOFF_RX_RING, offsets.rx, size_of::<XdpDesc>())?;
        let tx = map(XDP_PGOFF_TX_RING, offsets.tx, size_of::<XdpDesc>())?;
        let fill = map(XDP_UMEM_PGOFF_FILL_RING, offsets.fill, size_of::<u64>())?;
        let sent = map(XDP_UMEM_PGOFF_COMPLETION_RING, offsets.completion, size_of::<u64>())?;
        Ok(Rings {
            rx: Consumer::new(rx, offsets.rx, size).ok_or_else(bad)?,
            tx: Producer::new(tx, offsets.tx, size).ok_or_else(bad)?,
            fill: Producer::new(fill, offsets.fill, size).ok_or_else(bad)?,
            completion: Consumer::new(sent, offsets.completion, size).ok_or_else(bad)?,
        })
    }

    /// Receive work moves to whoever calls [`kick_receive`](Self::kick_receive): 20 µs and 64 frames
    /// at most a call.
    fn enable_busy_poll(&self) -> Result<(), SetupError> {
        for (name, value) in
            [(SO_PREFER_BUSY_POLL, 1i32), (SO_BUSY_POLL, 20), (SO_BUSY_POLL_BUDGET, 64)]
        {
            sys::set_option(self.fd(), libc::SOL_SOCKET, name, &value)
                .map_err(SetupError::at("setsockopt(SO_PREFER_BUSY_POLL)"))?;
        }
        Ok(())
    }

    fn bind_patiently(&self, umem: &Umem, binding: &Binding) -> Result<(), SetupError> {
        let mut flags = XDP_USE_NEED_WAKEUP;
        flags |= if binding.zero_copy { XDP_ZEROCOPY } else { XDP_COPY };
        if umem.multi_chunk() {
            flags |= XDP_USE_SG;
        }
        let address = SockaddrXdp {
            family: libc::AF_XDP as u16,
            flags,
            ifindex: binding.ifindex,
            queue_id: binding.queue,
            shared_umem_fd: 0,
        };
        let started = Instant::now();
        loop {
            match sys::bind(self.fd(), &address) {
                Err(busy)
                    if busy.raw_os_error() == Some(libc::EBUSY)
                        && started.elapsed() < REBIND_PATIENCE =>
                {
                    std::thread::sleep(REBIND_PAUSE);
                }
                result => return result.map_err(SetupError::at("bind(AF_XDP)")),
            }
        }
    }

    fn set<T: sys::Plain>(
        &self,
        name: i32,
        value: &T,
        what: &'static str,
    ) -> Result<(), SetupError> {
        sys::set_option(self.fd(), libc::SOL_XDP, name, value).map_err(SetupError::at(what))
    }

    /// A socket that is none: every call on it fails.
    #[cfg(test)]
    pub fn fake(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the driver really moves packets without a copy, whatever was asked for.
    pub fn is_zero_copy(&self) -> bool {
        sys::get_option::<u32>(self.fd(), libc::SOL_XDP, XDP_OPTIONS)
            .is_ok_and(|options| options & XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// The kernel's counters for this socket.
    pub fn statistics(&self) -> Option<XdpStatistics> {
        sys::get_option(self.fd(), libc::SOL_XDP, XDP_STATISTICS).ok()
    }

    /// Makes the kernel look at the transmit ring.
    pub fn kick_transmit(&self) -> Kick {
        Self::judge(sys::send_kick(self.fd()))
    }

    /// Makes the kernel look at the fill ring, or poll the device when busy polling is on.
    pub fn kick_receive(&self) -> Kick {
        match Self::judge(sys::receive_kick(self.fd())) {
            Kick::More => Kick::Done,
            other => other,
        }
    }

    fn judge(result: io::Result<()>) -> Kick {
        let Err(error) = result else { return Kick::Done };
        match error.raw_os_error().unwrap_or(0) {
            libc::EAGAIN => Kick::More,
            libc::ENETDOWN => Kick::Down,
            libc::ENXIO | libc::ENODEV | libc::EBADF | libc::EOPNOTSUPP => Kick::Gone,
            // EBUSY, ENOBUFS, EINTR: nothing is lost, the frames are still in the ring.
            _ => Kick::Done,
        }
    }
}
