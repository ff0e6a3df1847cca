//! The kernel's numbers and structures that AF_XDP needs, from its UAPI headers.
//!
//! Sources: `linux/if_xdp.h`, `linux/bpf.h`, `linux/if_link.h`, `linux/ethtool.h`. Written down here
//! so that no header and no C compiler is needed to build; each is part of the stable ABI.
#![forbid(unsafe_code)]

/// `struct sockaddr_xdp`: where a socket binds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SockaddrXdp {
    pub family: u16,
    pub flags: u16,
    pub ifindex: u32,
    pub queue_id: u32,
    pub shared_umem_fd: u32,
}

/// `struct xdp_umem_reg` up to `flags`, the size that every kernel with `flags` takes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct XdpUmemReg {
    pub addr: u64,
    pub len: u64,
    pub chunk_size: u32,
    pub headroom: u32,
    pub flags: u32,
    /// `tx_metadata_len` since Linux 6.8; the tail padding before it.
    pub tx_metadata_len: u32,
}

/// `struct xdp_ring_offset`: where one ring's words lie in its mapping, bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct XdpRingOffset {
    pub producer: u64,
    pub consumer: u64,
    pub desc: u64,
    pub flags: u64,
}

/// `struct xdp_mmap_offsets`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct XdpMmapOffsets {
    pub rx: XdpRingOffset,
    pub tx: XdpRingOffset,
    pub fill: XdpRingOffset,
    pub completion: XdpRingOffset,
}

/// `struct xdp_desc`: one chunk-sized piece of a frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpDesc {
    pub addr: u64,
    pub len: u32,
    pub options: u32,
}

/// `struct xdp_statistics`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpStatistics {
    pub rx_dropped: u64,
    pub rx_invalid_descs: u64,
    pub tx_invalid_descs: u64,
    pub rx_ring_full: u64,
    pub rx_fill_ring_empty_descs: u64,
    pub tx_ring_empty_descs: u64,
}

pub const XDP_MMAP_OFFSETS: i32 = 1;
pub const XDP_RX_RING: i32 = 2;
pub const XDP_TX_RING: i32 = 3;
pub const XDP_UMEM_REG: i32 = 4;
pub const XDP_UMEM_FILL_RING: i32 = 5;
pub const XDP_UMEM_COMPLETION_RING: i32 = 6;
pub const XDP_STATISTICS: i32 = 7;
pub const XDP_OPTIONS: i32 = 8;
/// Linux 6.17: how many descriptors one `sendto` sends in copy mode; 32 before.
pub const XDP_MAX_TX_SKB_BUDGET: i32 = 9;

pub const XDP_OPTIONS_ZEROCOPY: u32 = 1 << 0;

pub const XDP_COPY: u16 = 1 << 1;
pub const XDP_ZEROCOPY: u16 = 1 << 2;
pub const XDP_USE_NEED_WAKEUP: u16 = 1 << 3;
/// Linux 6.6: frames of several chunks.
pub const XDP_USE_SG: u16 = 1 << 4;

/// Descriptor option: the frame goes on in the next descriptor.
pub const XDP_PKT_CONTD: u32 = 1 << 0;
/// Ring flag: the kernel sleeps and wants a system call.
pub const XDP_RING_NEED_WAKEUP: u32 = 1 << 0;

pub const XDP_PGOFF_RX_RING: i64 = 0;
pub const XDP_PGOFF_TX_RING: i64 = 0x8000_0000;
pub const XDP_UMEM_PGOFF_FILL_RING: i64 = 0x1_0000_0000;
pub const XDP_UMEM_PGOFF_COMPLETION_RING: i64 = 0x1_8000_0000;

/// What the kernel keeps free at the start of every receive chunk, bytes.
pub const XDP_PACKET_HEADROOM_BYTES: u32 = 256;
/// Most fragments of one frame in copy mode (`MAX_SKB_FRAGS`).
pub const MAX_FRAGMENTS: usize = 17;

pub const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
pub const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

pub const BPF_MAP_CREATE: i32 = 0;
pub const BPF_MAP_UPDATE_ELEM: i32 = 2;
pub const BPF_PROG_LOAD: i32 = 5;
pub const BPF_LINK_CREATE: i32 = 28;
pub const BPF_MAP_TYPE_XSKMAP: u32 = 17;
pub const BPF_PROG_TYPE_XDP: u32 = 6;
/// `enum bpf_attach_type`: BPF_XDP.
pub const BPF_ATTACH_XDP: u32 = 37;
/// Program may see frames of several fragments (Linux 5.18).
pub const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// What the program returns for a frame that no socket takes.
pub const XDP_ACTION_DROP: i32 = 1;

pub const SO_BUSY_POLL: i32 = 46;
pub const SO_PREFER_BUSY_POLL: i32 = 69;
pub const SO_BUSY_POLL_BUDGET: i32 = 70;

pub const SIOCETHTOOL: u64 = 0x8946;
pub const ETHTOOL_GSET: u32 = 0x01;
pub const ETHTOOL_GDRVINFO: u32 = 0x03;
pub const ETHTOOL_GFLAGS: u32 = 0x25;
pub const ETHTOOL_GCHANNELS: u32 = 0x3c;
/// `ETH_FLAG_RXVLAN` of `ETHTOOL_GFLAGS`.
pub const ETH_FLAG_RXVLAN: u32 = 1 << 8;

pub const IFLA_ADDRESS: u16 = 1;
pub const IFLA_IFNAME: u16 = 3;
pub const IFLA_MTU: u16 = 4;
pub const IFLA_STATS64: u16 = 23;
pub const IFLA_NUM_TX_QUEUES: u16 = 31;
pub const IFLA_XDP: u16 = 43;
pub const IFLA_XDP_ATTACHED: u16 = 2;
pub const IFLA_XDP_PROG_ID: u16 = 4;
pub const RTA_OIF: u16 = 4;
pub const RTA_MULTIPATH: u16 = 9;
