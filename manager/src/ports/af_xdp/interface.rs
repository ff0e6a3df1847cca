//! What an interface is: its driver, channels and speed, and whether we may take it.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use super::abi::*;
use super::netlink::{Link, Netlink};
use super::sys;
use crate::ports::PortError;

/// An interface that a port is about to take.
#[derive(Clone, Debug)]
pub struct Interface {
    /// What netlink says.
    pub link: Link,
    /// Kernel driver, e.g. `veth`; empty when it does not tell.
    pub driver: String,
    /// Receive queues in use, at least 1.
    pub rx_channels: u32,
    /// Transmit queues in use, at least 1.
    pub tx_channels: u32,
    /// Link speed, Mbit/s, where the driver tells.
    pub speed_mbps: Option<u32>,
    /// The NIC takes VLAN tags out of received frames, so that we would not see them.
    pub strips_vlan: bool,
}

impl Interface {
    /// Finds an interface by name and asks its driver.
    ///
    /// # Errors
    /// [`PortError::NotFound`] with the names there are.
    pub fn find(netlink: &mut Netlink, name: &str) -> Result<Self, PortError> {
        let os = |what: &str| {
            let (device, what) = (name.to_owned(), what.to_owned());
            move |source| PortError::Os { device, what, source }
        };
        let links = netlink.links().map_err(os("netlink(RTM_GETLINK)"))?;
        let Some(link) = links.iter().find(|link| link.name == name).cloned() else {
            return Err(not_found(name, &links));
        };
        let ask = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).map_err(os("socket(AF_INET)"))?;
        let driver = driver(&ask, name);
        let (rx_channels, tx_channels) = channels(&ask, name);
        // Software drivers have no wire: the peer's setting decides, see `notices`.
        let strips_vlan = !is_software(&driver)
            && question(&ask, name, ETHTOOL_GFLAGS, 8)
                .is_some_and(|answer| word(&answer, 4) & ETH_FLAG_RXVLAN != 0);
        let speed_mbps = speed(&ask, name);
        Ok(Self { link, driver, rx_channels, tx_channels, speed_mbps, strips_vlan })
    }

    /// True for drivers whose frames may come without their checksum filled in, because sender and
    /// receiver are the same machine.
    pub fn is_software(&self) -> bool {
        is_software(&self.driver)
    }
}

fn is_software(driver: &str) -> bool {
    ["veth", "tun", "virtio_net", "bridge", "macvlan", "ipvlan", "dummy"].contains(&driver)
}

fn not_found(name: &str, links: &[Link]) -> PortError {
    let names: Vec<_> =
        links.iter().filter(|link| !link.loopback).map(|link| link.name.as_str()).collect();
    let hint = if names.is_empty() {
        "; this network namespace has none but lo".into()
    } else {
        format!("; there are: {}", names.join(", "))
    };
    PortError::NotFound { device: name.to_owned(), what: "interface", hint }
}

/// Asks the driver; `None` when it does not know the question.
fn question(ask: &OwnedFd, name: &str, command: u32, len_bytes: usize) -> Option<Vec<u8>> {
    let mut answer = vec![0; len_bytes];
    answer[..4].copy_from_slice(&command.to_ne_bytes());
    sys::ethtool(ask.as_fd(), name, &mut answer).ok().map(|()| answer)
}

fn word(answer: &[u8], at: usize) -> u32 {
    answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// `struct ethtool_drvinfo`, 196 bytes: cmd, driver\[32\], …
fn driver(ask: &OwnedFd, name: &str) -> String {
    question(ask, name, ETHTOOL_GDRVINFO, 196).map_or_else(String::new, |answer| {
        let text = answer[4..36].split(|&byte| byte == 0).next().unwrap_or(&[]);
        String::from_utf8_lossy(text).into_owned()
    })
}

/// `struct ethtool_channels`, 36 bytes: cmd, max × 4, then rx, tx, other, combined. A driver that
/// cannot answer has one queue.
fn channels(ask: &OwnedFd, name: &str) -> (u32, u32) {
    question(ask, name, ETHTOOL_GCHANNELS, 36).map_or((1, 1), |answer| {
        let [rx, tx, combined] = [20, 24, 32].map(|at| word(&answer, at));
        ((rx + combined).max(1), (tx + combined).max(1))
    })
}

/// `struct ethtool_cmd`, 44 bytes: speed is the 16 bits at 12 and, above 65 Gbit/s, those at 28.
fn speed(ask: &OwnedFd, name: &str) -> Option<u32> {
    let answer = question(ask, name, ETHTOOL_GSET, 44)?;
    let half = |at: usize| u32::from(u16::from_ne_bytes([answer[at], answer[at + 1]]));
    let speed = half(12) | half(28) << 16;
    (speed != 0 && speed != u32::MAX && speed != 0xffff).then_some(speed)
}
