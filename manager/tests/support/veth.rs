//! A veth pair in a network namespace of its own: the port on one end, a packet socket on the other.
//!
//! The namespace belongs to the check's thread, so the kernel removes all of it with the thread.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use millrace::pool::BufferPool;
use millrace::ports::OpenPort;
use nflib::shm::RegionGeometry;

use super::lab::{Abilities, Lab, ShowsSent, TEST_ETHER_TYPE};

/// The port's end.
pub const PORT_INTERFACE: &str = "mrp0";
const PEER_INTERFACE: &str = "mrp1";

/// A back end that opens on [`PORT_INTERFACE`].
pub trait OnVeth {
    /// MTU of both ends, bytes.
    const MTU_BYTES: usize = 1500;
    /// See [`Abilities::max_frame_bytes`].
    const MAX_FRAME_BYTES: usize = 1514;
    /// See [`Abilities::oversize_rx_bytes`].
    const OVERSIZE_RX_BYTES: Option<usize> = None;
    /// See [`Abilities::oversize_tx_bytes`].
    const OVERSIZE_TX_BYTES: Option<usize> = None;

    /// See [`Lab::geometry`].
    fn geometry() -> RegionGeometry {
        RegionGeometry { buffers: 4096, stride_bytes: 2048, headroom_bytes: 256 }
    }

    /// Opens the port.
    fn open(pools: &mut [BufferPool]) -> OpenPort;
}

/// The lab of a back end on a veth pair.
pub struct VethLab<B> {
    peer: Peer,
    to_feed: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    back_end: PhantomData<B>,
}

impl<B: OnVeth> Lab for VethLab<B> {
    fn new() -> Result<Self, String> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .map_err(|errno| format!("no network namespace can be made: {errno}"))?;
        for scope in ["all", "default"] {
            // Without it neighbour discovery sends frames of its own; those count as noise.
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            let _ = std::fs::write(path, "1");
        }
        let mtu = B::MTU_BYTES;
        ip(&format!(
            "link add {PORT_INTERFACE} mtu {mtu} type veth peer name {PEER_INTERFACE} mtu {mtu}"
        ))?;
        ip(&format!("link set {PORT_INTERFACE} up"))?;
        ip(&format!("link set {PEER_INTERFACE} up"))?;
        let peer = Peer::open(PEER_INTERFACE).map_err(|error| format!("packet socket: {error}"))?;
        Ok(Self { peer, to_feed: VecDeque::new(), sent: Vec::new(), back_end: PhantomData })
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            shows_sent: ShowsSent::Soon,
            waits_for_buffers: false,
            max_frame_bytes: B::MAX_FRAME_BYTES,
            oversize_rx_bytes: B::OVERSIZE_RX_BYTES,
            oversize_tx_bytes: B::OVERSIZE_TX_BYTES,
            ..Abilities::FULL
        }
    }

    fn geometry(&self) -> RegionGeometry {
        B::geometry()
    }

    fn open(&mut self, pools: &mut [BufferPool], arrivals: &[Vec<u8>]) -> OpenPort {
        self.to_feed = arrivals.iter().cloned().collect();
        B::open(pools)
    }

    fn feed(&mut self, most: usize) -> usize {
        let feed = most.min(self.to_feed.len());
        for frame in self.to_feed.drain(..feed) {
            self.peer.send(&frame);
        }
        feed
    }

    fn sent(&mut self) -> Vec<Vec<u8>> {
        while let Some(frame) = self.peer.receive() {
            if !is_noise(&frame) {
                self.sent.push(frame);
            }
        }
        self.sent.clone()
    }

    fn is_noise(&self, frame: &[u8]) -> bool {
        is_noise(frame)
    }
}

fn is_noise(frame: &[u8]) -> bool {
    frame.get(12..14) != Some(&TEST_ETHER_TYPE[..])
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => Err(format!("ip {arguments}: {error}")),
    }
}

/// A packet socket (packet(7)) that sees what the interface receives, and never blocks.
struct Peer {
    socket: OwnedFd,
}

impl Peer {
    fn open(interface: &str) -> io::Result<Self> {
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: plain values.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nothing else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)?;
        let name = CString::new(interface)?;
        // SAFETY: a C string that lives through the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: a structure of integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every_protocol;
        address.sll_ifindex = index.cast_signed();
        // SAFETY: the address lives through the call and its size is given.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if bound == 0 { Ok(Self { socket }) } else { Err(io::Error::last_os_error()) }
    }

    fn send(&self, frame: &[u8]) {
        loop {
            // SAFETY: pointer and length are the slice's.
            let sent = unsafe {
                libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0)
            };
            if usize::try_from(sent) == Ok(frame.len()) {
                return;
            }
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        }
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 65_536];
        // SAFETY: pointer and length are the vector's.
        let got = unsafe {
            libc::recv(self.socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0)
        };
        frame.truncate(usize::try_from(got).ok()?);
        Some(frame)
    }
}

fn set_option(socket: &OwnedFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value lives through the call and its size is given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
