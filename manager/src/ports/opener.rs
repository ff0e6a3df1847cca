//! From a port's configuration to an open port, and to the pools its back end needs.
#![forbid(unsafe_code)]

use std::sync::Arc;

use nflib::shm::Region;

use super::{OpenPort, PortError, af_xdp, fault, generator, looped, pcap, sink};
use crate::config::{Backend, Config, PortConfig};
use crate::pool::BufferPool;

/// Opens ports, with what the back ends of one manager share.
pub struct Opener {
    force: bool,
    #[cfg(feature = "dpdk")]
    eal: Option<super::dpdk::Eal>,
}

impl Opener {
    /// Prepares for the ports of a configuration. DPDK is loaded only if a port asks for it.
    ///
    /// `force` allows a port to take the interface that carries the default route.
    ///
    /// # Errors
    /// [`PortError`] when libdpdk is missing or does not start.
    pub fn new(config: &Config, force: bool) -> Result<Self, PortError> {
        let _ = config; // Without DPDK there is nothing to prepare.
        Ok(Self {
            force,
            #[cfg(feature = "dpdk")]
            eal: start_eal(config)?,
        })
    }

    /// One pool for each worker, each with an equal share of the region; the last takes what is
    /// left over.
    ///
    /// # Errors
    /// [`PortError`] when DPDK cannot lay its pool over the region.
    pub fn pools(&self, region: &Arc<Region>, workers: u16) -> Result<Vec<BufferPool>, PortError> {
        let (buffers, workers) = (region.geometry().buffers, u32::from(workers));
        let share = buffers / workers;
        let shares = (0..workers).map(|worker| {
            let first = worker * share;
            (first, if worker + 1 == workers { buffers - first } else { share })
        });
        shares.map(|(first, count)| self.pool(region, first, count)).collect()
    }

    fn pool(&self, region: &Arc<Region>, first: u32, count: u32) -> Result<BufferPool, PortError> {
        #[cfg(feature = "dpdk")]
        if let Some(eal) = &self.eal {
            return eal.buffer_pool(region, first, count);
        }
        Ok(BufferPool::new(Arc::clone(region), first, count))
    }

    /// Opens one port.
    ///
    /// # Errors
    /// [`PortError`], as its back end says.
    pub fn open(&self, port: &PortConfig, pools: &mut [BufferPool]) -> Result<OpenPort, PortError> {
        let name = &port.name;
        let open = match &port.backend {
            #[cfg(feature = "dpdk")]
            Backend::Dpdk(options) => match &self.eal {
                Some(eal) => {
                    self.guard_default_route(&options.device)?;
                    super::dpdk::open(name, options, eal, pools)
                }
                None => unreachable!("EAL is started when a configuration has a dpdk port"),
            },
            Backend::AfXdp(options) => {
                let forced = self.force || options.allow_default_route;
                let options =
                    af_xdp::AfXdpOptions { allow_default_route: forced, ..options.clone() };
                af_xdp::open(name, &options, pools)
            }
            Backend::Pcap(options) => pcap::open(name, options, pools),
            Backend::Generator(options) => generator::open(name, options, pools),
            Backend::Sink(options) => sink::open(name, options, pools),
            Backend::Loop(options) => looped::open(name, options, pools),
        }?;
        match &port.fault {
            Some(options) => fault::wrap(name, options, open),
            None => Ok(open),
        }
    }
}

#[cfg(feature = "dpdk")]
impl Opener {
    /// Refuses a vdev over the kernel interface that carries the default route, unless forced.
    fn guard_default_route(&self, device: &str) -> Result<(), PortError> {
        for interface in kernel_interfaces(device).filter(|_| !self.force) {
            let carries = af_xdp::carries_default_route(interface).map_err(|source| {
                PortError::Os { device: device.into(), what: "asking for routes".into(), source }
            })?;
            if carries {
                return Err(PortError::Unsupported {
                    device: device.into(),
                    problem: format!(
                        "{interface} carries the default route, so this machine would lose its \
                         network; name another interface, or use --force"
                    ),
                });
            }
        }
        Ok(())
    }
}

/// Kernel interfaces that a vdev's arguments name (`net_af_packet0,iface=eth1`).
#[cfg(feature = "dpdk")]
fn kernel_interfaces(device: &str) -> impl Iterator<Item = &str> {
    device.split(',').skip(1).filter_map(|argument| {
        let (key, value) = argument.split_once('=')?;
        (key.ends_with("iface") || key == "remote").then_some(value)
    })
}

#[cfg(feature = "dpdk")]
fn start_eal(config: &Config) -> Result<Option<super::dpdk::Eal>, PortError> {
    let devices: Vec<String> = config
        .ports
        .iter()
        .filter_map(|port| match &port.backend {
            Backend::Dpdk(options) => Some(options.device.clone()),
            _ => None,
        })
        .collect();
    if devices.is_empty() {
        return Ok(None);
    }
    let options = super::dpdk::EalOptions {
        devices,
        buffers: config.pool.buffers,
        hugepages: config.pool.hugepages,
        extra_args: Vec::new(),
    };
    super::dpdk::Eal::init(&options).map(Some)
}

#[cfg(all(test, feature = "dpdk"))]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_interface_below_a_vdev_is_found_in_its_arguments() {
        let of = |device| kernel_interfaces(device).collect::<Vec<_>>();
        assert_eq!(of("net_af_packet0,iface=eth1,qpairs=2"), ["eth1"]);
        assert_eq!(of("net_pcap0,rx_iface=a,tx_iface=b"), ["a", "b"]);
        assert_eq!(of("net_tap0,iface=t0,remote=eth2"), ["t0", "eth2"]);
        assert!(of("0000:01:00.0,iface").is_empty() && of("net_null0").is_empty());
    }
}
