//! A network namespace with a veth pair in it, a port on one end, a packet socket on the other.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::pool::BufferPool;
use millrace::ports::af_xdp::{self, AfXdpOptions};
use millrace::ports::{OpenPort, PortError, PortPacket};
use millrace::stats::QueueCounters;
use nflib::shm::{HugePages, Region, RegionGeometry};

use crate::skip::skip;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(5);

/// An Ethernet frame of a private type, numbered, `len` bytes long.
pub fn frame(number: u16, len: usize) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 0x0a, 0x02, 0, 0, 0, 0, 0x0b, 0x88, 0xb5];
    bytes.extend(number.to_be_bytes());
    bytes.extend((bytes.len()..len).map(|n| (n as u8).wrapping_mul(31) ^ number as u8));
    bytes
}

/// An IPv4 UDP frame (no checksum) from a port number: each is a flow of its own.
pub fn udp_frame(source_port: u16) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 0x0a, 0x02, 0, 0, 0, 0, 0x0b, 0x08, 0x00];
    bytes.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    bytes.extend(source_port.to_be_bytes());
    bytes.extend([0, 9, 0, 26, 0, 0]);
    bytes.extend([0x5a; 18]);
    bytes
}

/// The calling thread in a network namespace of its own, gone with the thread.
pub struct Lab;

impl Lab {
    /// `None`, with the reason printed, where namespaces may not be made.
    pub fn new() -> Option<Self> {
        // SAFETY: changes the namespace of this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let reason = io::Error::last_os_error();
            skip(&format!("no network namespace: {reason}"));
            return None;
        }
        for scope in ["all", "default"] {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
        }
        Some(Self)
    }

    /// Runs a command in the namespace.
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let output = Command::new(words.next().unwrap()).args(words).output().expect(line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Nothing of a port is left on `mrx0`. A moment is given: another test's command, between its
    /// fork and its exec, holds copies of the descriptors that were just closed.
    pub fn assert_nothing_attached(&self) {
        let started = Instant::now();
        loop {
            let shown = self.run("ip -d link show mrx0");
            if !shown.contains("xdp") && !shown.contains("promiscuity 1") {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{shown}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes `mrx0` (for the port) and `mrx1` (for the peer), up, with `queues` queues each.
    pub fn veth(&self, queues: u32) {
        let q = format!("numtxqueues {queues} numrxqueues {queues}");
        self.run(&format!("ip link add mrx0 {q} type veth peer name mrx1 {q}"));
        self.run("ip link set mrx0 up");
        self.run("ip link set mrx1 up");
    }

    /// Opens a port over a region of its own with buffers of `stride_bytes`.
    pub fn open(&self, options: &AfXdpOptions, stride_bytes: u32) -> TestPort {
        self.try_open(options, stride_bytes).expect("the port opens")
    }

    /// As [`open`](Self::open), for tests of what goes wrong.
    pub fn try_open(
        &self,
        options: &AfXdpOptions,
        stride_bytes: u32,
    ) -> Result<TestPort, PortError> {
        self.try_open_sized(options, stride_bytes, 2048)
    }

    /// With a number of buffers.
    pub fn try_open_sized(
        &self,
        options: &AfXdpOptions,
        stride_bytes: u32,
        buffers: u32,
    ) -> Result<TestPort, PortError> {
        let geometry = RegionGeometry { buffers, stride_bytes, headroom_bytes: 256 };
        let region = Arc::new(Region::create(geometry, HugePages::Off).expect("a region"));
        let mut pools = [BufferPool::new(Arc::clone(&region), 0, buffers)];
        let opened = af_xdp::open("test", options, &mut pools);
        let [pool] = pools;
        if opened.is_err() {
            assert_eq!(pool.free_buffers(), buffers as usize, "a failed open takes no buffer");
        }
        Ok(TestPort { region, pool, open: opened? })
    }
}

/// A port with the pool and region it was opened on.
pub struct TestPort {
    pub region: Arc<Region>,
    pub pool: BufferPool,
    pub open: OpenPort,
}

impl TestPort {
    /// One turn of a worker's loop without packets.
    pub fn turn(&mut self) {
        for queue in &mut self.open.queues {
            queue.maintain(&mut self.pool);
        }
    }

    /// Turns until `done` says so.
    pub fn turn_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            self.turn();
            assert!(started.elapsed() < PATIENCE, "still waiting for: {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Receives exactly `count` packets from all queues, and sees that no more come.
    pub fn receive(&mut self, count: usize) -> Vec<PortPacket> {
        let mut got = Vec::new();
        let started = Instant::now();
        while got.len() < count {
            self.poll(&mut got);
            assert!(started.elapsed() < PATIENCE, "{} of {count} packets came", got.len());
        }
        std::thread::sleep(Duration::from_millis(5));
        self.poll(&mut got);
        assert_eq!(got.len(), count, "no more than were sent");
        got
    }

    /// One burst from every queue.
    pub fn poll(&mut self, got: &mut Vec<PortPacket>) {
        for queue in &mut self.open.queues {
            queue.rx_burst(&mut self.pool, got);
            queue.maintain(&mut self.pool);
        }
    }

    /// Receives what there is and sends it back.
    pub fn echo(&mut self) {
        let mut got = Vec::new();
        self.poll(&mut got);
        let taken = self.send(&got);
        self.free(&got[taken..]);
    }

    /// A packet of these bytes in a buffer of the pool.
    pub fn packet(&mut self, bytes: &[u8]) -> PortPacket {
        self.packet_at(256, bytes)
    }

    /// As [`packet`](Self::packet), at an offset.
    pub fn packet_at(&mut self, offset_bytes: u16, bytes: &[u8]) -> PortPacket {
        let buffer = self.pool.take_one().expect("a free buffer");
        assert!(self.region.write(buffer, offset_bytes, bytes));
        PortPacket { buffer, offset_bytes, len_bytes: bytes.len() as u16, flow_hash: 0 }
    }

    /// Sends on queue 0 and turns once; returns how many were taken.
    pub fn send(&mut self, packets: &[PortPacket]) -> usize {
        let taken = self.open.queues[0].tx_burst(&mut self.pool, packets);
        self.turn();
        taken
    }

    /// A packet's bytes.
    pub fn bytes(&self, packet: &PortPacket) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(packet.len_bytes)];
        assert!(self.region.read(packet.buffer, packet.offset_bytes, &mut bytes));
        bytes
    }

    /// Gives packets' buffers back.
    pub fn free(&mut self, packets: &[PortPacket]) {
        let buffers: Vec<_> = packets.iter().map(|packet| packet.buffer).collect();
        self.pool.give(&buffers);
    }

    /// Free buffers of the pool.
    pub fn pool_free(&self) -> usize {
        self.pool.free_buffers()
    }

    /// A queue's counters.
    pub fn counters(&self, queue: usize) -> Arc<QueueCounters> {
        Arc::clone(self.open.queues[queue].counters())
    }

    /// A counter of the kernel by name, once it has been published.
    pub fn hw_stat(&self, name: &str) -> u64 {
        let stats = self.open.port.hw_stats();
        stats.iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("{name}")).1
    }

    /// Closes everything; **all buffers are back in the pool**, each once.
    pub fn finish(mut self) {
        for queue in &mut self.open.queues {
            queue.close(&mut self.pool);
        }
        self.open.port.close();
        let mut all = Vec::new();
        self.pool.take(usize::MAX, &mut all);
        all.sort_unstable();
        assert!(all == (0..self.pool.count()).collect::<Vec<_>>(), "all buffers are back, once");
    }
}

/// A packet socket on an interface.
pub struct Peer {
    fd: OwnedFd,
}

impl Peer {
    /// Opens it for every protocol, with a receive time limit.
    pub fn open(interface: &str) -> Self {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain socket calls; each pointer describes a live value of its length.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let fd = OwnedFd::from_raw_fd(fd);
            let name = std::ffi::CString::new(interface).unwrap();
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let one = 1i32;
            let size = 8i32 << 20;
            let limit = libc::timeval { tv_sec: 2, tv_usec: 0 };
            let set = |level, option, value: *const libc::c_void, len: usize| {
                let result =
                    libc::setsockopt(fd.as_raw_fd(), level, option, value, len as libc::socklen_t);
                assert_eq!(result, 0, "{}", io::Error::last_os_error());
            };
            const PACKET_IGNORE_OUTGOING: i32 = 23;
            set(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, (&raw const one).cast(), 4);
            set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const size).cast(), 4);
            set(
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const limit).cast(),
                size_of_val(&limit),
            );
            let result = libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            );
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            Self { fd }
        }
    }

    /// Sends one frame.
    pub fn send(&self, bytes: &[u8]) {
        // SAFETY: pointer and length are the slice's.
        let sent =
            unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
    }

    /// Sends one frame if the link allows it.
    pub fn try_send(&self, bytes: &[u8]) {
        // SAFETY: pointer and length are the slice's.
        unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    }

    /// The next frame, or an empty one after two seconds.
    pub fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        // SAFETY: pointer and length are the vector's.
        let got =
            unsafe { libc::recv(self.fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        bytes.truncate(usize::try_from(got).unwrap_or(0));
        bytes
    }

    /// Takes out what waits.
    pub fn drain(&self) {
        while !self.is_quiet() {}
    }

    /// True when no frame comes for a while.
    pub fn is_quiet(&self) -> bool {
        std::thread::sleep(Duration::from_millis(50));
        let mut byte = [0u8; 1];
        // SAFETY: pointer and length are the array's.
        let got = unsafe {
            libc::recv(self.fd.as_raw_fd(), byte.as_mut_ptr().cast(), 1, libc::MSG_DONTWAIT)
        };
        got < 0
    }
}

/// Whether a descriptor becomes readable within the time.
pub fn readable(fd: BorrowedFd<'_>, limit_ms: i32) -> bool {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live entry.
    unsafe { libc::poll(&raw mut entry, 1, limit_ms) == 1 && entry.revents & libc::POLLIN != 0 }
}

/// Takes every capability from the calling thread (capset(2)).
pub fn drop_capabilities_of_this_thread() {
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let header = [LINUX_CAPABILITY_VERSION_3, 0];
    let none = [0u32; 6];
    // SAFETY: header and data are laid out as the call expects and live through it.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
