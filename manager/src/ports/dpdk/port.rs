//! The control side of a device.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::DpdkOptions;
use super::device::Device;
use crate::ports::{LinkState, Port, PortInfo};

pub(super) struct DpdkPort {
    device: Arc<Device>,
    promiscuous: bool,
}

impl DpdkPort {
    pub(super) fn new(device: Arc<Device>, options: &DpdkOptions) -> Self {
        Self { device, promiscuous: options.promiscuous }
    }
}

impl Port for DpdkPort {
    fn info(&self) -> PortInfo {
        let now = self.device.speed_and_promiscuous();
        let link = if now.is_some() { self.device.link() } else { LinkState::Gone };
        let (speed_mbps, promiscuous) = now.unwrap_or((None, self.promiscuous));
        PortInfo {
            backend: "dpdk".into(),
            device: self.device.device.clone(),
            driver: self.device.driver.clone(),
            link,
            speed_mbps,
            mac: self.device.mac.clone(),
            mtu_bytes: self.device.mtu_bytes.into(),
            promiscuous,
            queues: self.device.queues,
        }
    }

    fn hw_stats(&self) -> Vec<(String, u64)> {
        self.device.statistics()
    }

    fn numa_node(&self) -> Option<u32> {
        self.device.numa_node
    }

    fn close(&mut self) {
        self.device.close();
    }
}
