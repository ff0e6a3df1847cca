//! The control side of an AF_XDP port.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::interface::Interface;
use super::kernel_stats::KernelStats;
use super::link::LinkStatus;
use super::netlink::Netlink;
use super::program::XdpLink;
use crate::ports::{Port, PortInfo};

/// What holds the interface: dropping it detaches the program and ends promiscuous mode.
pub struct Hold {
    /// The attached program.
    pub _program: XdpLink,
    /// The packet socket that keeps the interface promiscuous.
    pub promiscuous: Option<OwnedFd>,
}

/// An interface taken by AF_XDP.
pub struct XdpPort {
    pub interface: Interface,
    /// e.g. `veth native copy`.
    pub mode: String,
    pub link: Arc<LinkStatus>,
    /// One for each queue.
    pub kernel: Vec<Arc<KernelStats>>,
    pub hold: Option<Hold>,
}

impl Port for XdpPort {
    fn info(&self) -> PortInfo {
        self.link.poll();
        let mac = self.interface.link.mac.map(|mac| {
            let [a, b, c, d, e, f] = mac;
            format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
        });
        PortInfo {
            backend: "af_xdp".into(),
            device: self.interface.link.name.clone(),
            driver: self.mode.clone(),
            link: self.link.state(),
            speed_mbps: self.interface.speed_mbps,
            mac,
            mtu_bytes: self.link.mtu_bytes(),
            promiscuous: self.hold.as_ref().is_some_and(|hold| hold.promiscuous.is_some()),
            queues: u16::try_from(self.kernel.len()).unwrap_or(u16::MAX),
        }
    }

    /// The sockets' counters summed over the queues, as of the last 10 ms, then the interface's own.
    fn hw_stats(&self) -> Vec<(String, u64)> {
        let mut sums = KernelStats::default().read();
        for queue in &self.kernel {
            for (sum, (_, value)) in sums.iter_mut().zip(queue.read()) {
                sum.1 += value;
            }
        }
        let links = Netlink::open().and_then(|mut netlink| netlink.links()).unwrap_or_default();
        let index = self.interface.link.index;
        let device = links.into_iter().find(|link| link.index == index);
        sums.into_iter()
            .chain(device.into_iter().flat_map(|link| link.stats))
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    fn close(&mut self) {
        self.hold = None;
    }
}
