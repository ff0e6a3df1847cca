//! Kernel network interfaces by AF_XDP sockets, with nothing but system calls underneath.
//!
//! ```text
//!   sys, abi      the calls and structures of the kernel
//!   mmap → ring   a socket's ring in memory, one half of it with cached indices
//!   umem          which buffer an address means; which buffers are posted
//!   socket        UMEM registration, rings, bind, kicks
//!   program       the XDP program and its BPF link
//!   netlink, interface, link    what the interface is, and whether it is still there
//!   fragments     frames of several chunks: gather on receive, scatter on transmit
//!   queue         bursts in and out          port  what `millrace port list` shows
//!   kernel_stats  the kernel's counters, and the warning that explains its drops
//!   open          the order of it all: checks, modes tried, fallbacks
//! ```
//! Each queue's socket registers the whole packet region as its UMEM, so the kernel writes received
//! frames into the very buffers that NFs read, and sends from them.
//!
//! # Modes
//! *native* runs in the driver, *generic* behind the stack on any interface; *zero-copy* lets the
//! NIC itself use our buffers. `auto` tries native zero-copy, native copy, generic copy, and says
//! what it got. Copy mode is bound by the kernel: of about 0.85 µs of worker time a 60-byte packet
//! takes from veth to veth, nine tenths are spent in system calls.
//!
//! # What veth needs
//! Partial checksums are completed on receive ([`checksum`](super::checksum)). VLAN tags that the
//! peer leaves to hardware are lost before XDP: `ethtool -K <peer> txvlan off`. In generic mode the
//! sender must segment: `ethtool -K <sender> tx off tso off gso off`.

mod abi;
mod fragments;
mod interface;
mod kernel_stats;
mod link;
mod mmap;
mod netlink;
mod open;
mod port;
mod program;
mod queue;
mod ring;
mod socket;
mod sys;
mod umem;

use serde::Deserialize;

pub use open::open;

/// Whether a default route, IPv4 or IPv6, leads through a kernel interface. False for one that does
/// not exist.
///
/// # Errors
/// Those of a netlink socket (rtnetlink(7)).
pub fn carries_default_route(interface: &str) -> std::io::Result<bool> {
    let mut netlink = netlink::Netlink::open()?;
    let link = netlink.links()?.into_iter().find(|link| link.name == interface);
    let Some(link) = link else { return Ok(false) };
    Ok(netlink.default_route_interfaces()?.contains(&link.index))
}

/// The settings of an `af_xdp` port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AfXdpOptions {
    /// Interface name, in the manager's network namespace.
    pub interface: String,
    /// Queues to open; all the interface has by default. Fewer are refused: a queue without a socket
    /// loses its packets.
    #[serde(default)]
    pub queues: Option<u16>,
    /// Where the XDP program runs.
    #[serde(default)]
    pub mode: XdpMode,
    /// Whether the device uses our buffers directly.
    #[serde(default)]
    pub zero_copy: ZeroCopy,
    /// Entries of each of the four rings, a power of two from 64 to 32,768.
    #[serde(default = "default_ring_descriptors")]
    pub ring_descriptors: u32,
    /// Polls the device from the worker instead of by interrupt. Set `napi_defer_hard_irqs` to 2 and
    /// `gro_flush_timeout` to 200000 in `/sys/class/net/<interface>/` with it.
    #[serde(default)]
    pub busy_poll: bool,
    /// Takes the interface even when the machine's default route leads through it.
    #[serde(default)]
    pub allow_default_route: bool,
    /// What to do with partial checksums; by the driver when not given.
    #[serde(default)]
    pub checksum: Option<ChecksumMode>,
    /// Receives frames for every hardware address.
    #[serde(default = "default_promiscuous")]
    pub promiscuous: bool,
}

fn default_ring_descriptors() -> u32 {
    2048
}

fn default_promiscuous() -> bool {
    true
}

impl AfXdpOptions {
    /// The defaults, for an interface.
    #[must_use]
    pub fn new(interface: &str) -> Self {
        Self {
            interface: interface.to_owned(),
            queues: None,
            mode: XdpMode::default(),
            zero_copy: ZeroCopy::default(),
            ring_descriptors: default_ring_descriptors(),
            busy_poll: false,
            allow_default_route: false,
            checksum: None,
            promiscuous: default_promiscuous(),
        }
    }
}

/// Where the XDP program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native when the driver can, else generic.
    #[default]
    Auto,
    /// In the driver, or fail.
    Native,
    /// Behind the kernel's stack entry; any interface, slower.
    Generic,
}

/// Whether the device uses our buffers directly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZeroCopy {
    /// When the driver can.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Or fail.
    Require,
}

/// What to do with a TCP or UDP checksum that the sender left to hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChecksumMode {
    /// Complete it on receive: the default for veth, tap and virtio.
    Complete,
    /// Leave it: the default for other drivers, whose frames came over a wire.
    Leave,
}
