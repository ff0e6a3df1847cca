//! The `dpdk` back end: any poll-mode driver (PMD), by PCI address or vdev string.
//!
//! | file | subject |
//! |---|---|
//! | `eal` | starting DPDK's environment once, its log, its memory |
//! | `pool` | a worker's mempool, laid over its share of the region |
//! | `device` | finding, configuring, watching and closing one device |
//! | `queue` | bursts |
//! | `port` | the control side |
//! | `probe` | why a device cannot be opened, said before DPDK says something vaguer |
//! | `kernel_if` | the kernel interface below a vdev |
//!
//! libdpdk is loaded when the first `dpdk` port is opened; without such a port it need not be
//! installed.
//!
//! # Where the bytes are
//!
//! The mempool of a worker holds mbufs whose data lie in that worker's share of the packet region
//! (`rte_pktmbuf_pool_create_extbuf`), while the mbufs themselves are private to the manager: an NF
//! that overwrites everything it can reach cannot touch them. A device writes a frame straight into
//! the region and reads it from there; a packet's buffer number names its mbuf by a private table.
//!
//! Physical devices need an IOMMU (vfio-pci): they see the region at our own addresses. Emulated
//! NICs of QEMU cannot *send* a buffer that straddles two 2 MiB pages (about one in 900 of 2,368
//! bytes; it vanishes uncounted): with them, use buffers of 4,096 bytes, which never do.
//!
//! # Offloads
//!
//! No transmit offload is asked for: checksums leave as they are in the packet. Physical NICs and
//! `net_tap` deliver complete ones. `net_af_packet` reads what the kernel shows a packet socket,
//! and what a veth peer sends is not quite what a wire would carry:
//! - *partial checksums*: only the pseudo header is summed. They are completed in place on receive,
//!   as the `af_xdp` back end does, so that NFs see valid packets.
//! - *segments of up to 64 KB* (TSO, GRO): cut off by the kernel at the ring's frame size, so they
//!   are dropped and counted as `rx_too_large`. `ethtool -K <peer> tx off` turns TSO off as well.
//! - *VLAN tags* are taken out by the kernel and are put back by us, in place.
#![allow(unsafe_code)]

mod device;
mod eal;
mod kernel_if;
mod pool;
mod port;
mod probe;
mod queue;

use serde::Deserialize;

pub use eal::{Eal, EalOptions};

use super::{OpenPort, PortError, PortQueue};
use crate::pool::BufferPool;

/// A `dpdk` port in the configuration.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct DpdkOptions {
    /// A PCI address (`0000:01:00.0`) or a vdev (`net_af_packet0,iface=eth1`), with the driver's
    /// own arguments after a comma.
    pub device: String,
    /// Receive and transmit queues, each.
    #[serde(default = "default_queues")]
    pub queues: u16,
    /// Receive descriptors of each queue, moved into the driver's limits.
    #[serde(default = "default_descriptors")]
    pub rx_descriptors: u16,
    /// Transmit descriptors of each queue, moved into the driver's limits.
    #[serde(default = "default_descriptors")]
    pub tx_descriptors: u16,
    /// Longest network-layer packet; as the device has it when absent.
    #[serde(default)]
    pub mtu_bytes: Option<u16>,
    /// Receive frames for any address.
    #[serde(default = "default_promiscuous")]
    pub promiscuous: bool,
}

fn default_queues() -> u16 {
    1
}

fn default_descriptors() -> u16 {
    512
}

fn default_promiscuous() -> bool {
    true
}

impl DpdkOptions {
    /// One queue on `device`, everything else as the configuration's defaults.
    #[must_use]
    pub fn new(device: impl Into<String>) -> Self {
        Self {
            device: device.into(),
            queues: default_queues(),
            rx_descriptors: default_descriptors(),
            tx_descriptors: default_descriptors(),
            mtu_bytes: None,
            promiscuous: default_promiscuous(),
        }
    }
}

/// Opens a device. Queue `q` works on `pools[q % pools.len()]`, each of which
/// [`Eal::buffer_pool`] made.
///
/// # Errors
/// [`PortError`], one line that names the device, what is wrong and what to do.
pub fn open(
    name: &str,
    options: &DpdkOptions,
    eal: &Eal,
    pools: &mut [BufferPool],
) -> Result<OpenPort, PortError> {
    let pools = eal.mempools_of(&options.device, pools)?;
    let device = device::Device::open(eal, options, pools)?;
    tracing::info!(port = name, device = options.device, driver = device.driver, "opened");
    let queues = (0..options.queues)
        .map(|q| Box::new(queue::DpdkQueue::new(device.clone(), q)) as Box<dyn PortQueue>)
        .collect();
    Ok(OpenPort { port: Box::new(port::DpdkPort::new(device, options)), queues })
}
