//! One device: found, configured, started, watched and closed.

use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use dpdk_sys::sys::{self, Api};

use super::DpdkOptions;
use super::eal::{Eal, Shared, State, unsupported};
use super::kernel_if::KernelInterface;
use super::pool::Mempool;
use super::probe;
use crate::ports::{LinkState, PortError};

/// Ethernet header.
const ETHERNET_BYTES: u32 = 14;
/// Room for two VLAN tags on top of the MTU.
const TAGS_BYTES: u32 = 8;
/// A key under which both directions of a connection hash alike (Woo and Park, "Scalable TCP
/// session monitoring with symmetric receive-side scaling", 2012): it repeats every 16 bits.
const SYMMETRIC_KEY: [u8; 2] = [0x6d, 0x5a];

/// What the control side, the queues and the watching thread share.
pub(super) struct Device {
    pub(super) api: &'static Api,
    eal: Arc<Shared>,
    /// As configured.
    pub(super) device: String,
    pub(super) driver: String,
    pub(super) port_id: u16,
    pub(super) mac: Option<String>,
    pub(super) mtu_bytes: u16,
    pub(super) queues: u16,
    /// Where it is plugged in; vdevs are nowhere.
    pub(super) numa_node: Option<u32>,
    /// Longest frame that is received.
    pub(super) max_frame_bytes: u16,
    pools: Vec<Arc<Mempool>>,
    promised_per_queue: u32,
    kernel: Option<KernelInterface>,
    dma_mapped: bool,
    open: AtomicBool,
    open_queues: AtomicU16,
    link: AtomicU8,
}

impl Device {
    /// Probes, configures and starts a device.
    pub(super) fn open(
        eal: &Eal,
        options: &DpdkOptions,
        pools: Vec<Arc<Mempool>>,
    ) -> Result<Arc<Self>, PortError> {
        let device = options.device.as_str();
        if options.queues == 0 {
            return Err(unsupported(device, "a port needs at least 1 queue".into()));
        }
        probe::check(device)?;
        let mut state = eal.shared.lock();
        eal.shared.forget_log();
        let usable_bytes = usable_bytes(&pools[0]);
        let full = probe::with_derived_arguments(device, options.queues, usable_bytes);
        let port_id = attach(&eal.shared, device, &full, &state)?;
        let opening = Opening { eal: &eal.shared, options, port_id };
        // From here on an error leaves the device as it was found.
        match opening.configure(pools, usable_bytes, &mut state) {
            Ok(opened) => {
                let opened = Arc::new(opened);
                opened.refresh_link(&state);
                state.watch(&opened);
                Ok(opened)
            }
            Err(error) => {
                detach(eal.shared.api, port_id);
                Err(error)
            }
        }
    }

    pub(super) fn pool(&self, queue: u16) -> &Arc<Mempool> {
        &self.pools[usize::from(queue) % self.pools.len()]
    }

    /// Link state as last seen; at most one watch period old.
    #[inline]
    pub(super) fn link(&self) -> LinkState {
        match self.link.load(Ordering::Relaxed) {
            0 => LinkState::Up,
            1 => LinkState::Down,
            _ => LinkState::Gone,
        }
    }

    /// Looks at the link. The state's lock keeps the device from being closed meanwhile.
    pub(super) fn refresh_link(&self, _locked: &State) {
        if !self.open.load(Ordering::Relaxed) {
            return;
        }
        let state = match &self.kernel {
            Some(interface) => interface.link(),
            None => self.driver_link().0,
        };
        self.link.store(state as u8, Ordering::Relaxed);
    }

    /// State and speed in Mbit/s as the driver tells.
    fn driver_link(&self) -> (LinkState, Option<u32>) {
        let mut link = sys::rte_eth_link::default();
        // SAFETY: the port is open (the caller holds the lock); both calls only fill `link`.
        let (removed, failed) = unsafe {
            (
                self.api.rte_eth_dev_is_removed(self.port_id) == 1,
                self.api.rte_eth_link_get_nowait(self.port_id, &raw mut link) != 0,
            )
        };
        if removed || failed {
            return (LinkState::Gone, None);
        }
        let known = link.link_speed != 0 && link.link_speed != sys::MR_SPEED_UNKNOWN;
        let speed_mbps = known.then_some(link.link_speed);
        if link.link_status() == 1 { (LinkState::Up, speed_mbps) } else { (LinkState::Down, None) }
    }

    /// Speed and promiscuous mode now; `None` when the device is closed.
    pub(super) fn speed_and_promiscuous(&self) -> Option<(Option<u32>, bool)> {
        let state = self.eal.lock();
        if !self.open.load(Ordering::Relaxed) {
            return None;
        }
        self.refresh_link(&state);
        // SAFETY: the port is open and the lock is held.
        let promiscuous = unsafe { self.api.rte_eth_promiscuous_get(self.port_id) } == 1;
        Some((self.driver_link().1, promiscuous))
    }

    /// The driver's counters by its own names.
    pub(super) fn statistics(&self) -> Vec<(String, u64)> {
        let _state = self.eal.lock();
        if !self.open.load(Ordering::Relaxed) {
            return Vec::new();
        }
        // SAFETY: the port is open and the lock is held. The first call only counts; the others
        // fill arrays of the length they are told, and return how many there are.
        unsafe {
            let count = self.api.rte_eth_xstats_get_names(self.port_id, std::ptr::null_mut(), 0);
            let Ok(len) = usize::try_from(count) else { return Vec::new() };
            let mut names = vec![sys::rte_eth_xstat_name::default(); len];
            let mut values = vec![sys::rte_eth_xstat::default(); len];
            let room = count.cast_unsigned();
            let named = self.api.rte_eth_xstats_get_names(self.port_id, names.as_mut_ptr(), room);
            let valued = self.api.rte_eth_xstats_get(self.port_id, values.as_mut_ptr(), room);
            if named != count || valued != count {
                return Vec::new();
            }
            values
                .iter()
                .filter_map(|stat| {
                    let name = names.get(usize::try_from(stat.id).ok()?)?;
                    let text = CStr::from_ptr(name.name.as_ptr());
                    Some((text.to_string_lossy().into_owned(), stat.value))
                })
                .collect()
        }
    }

    /// One queue is done; the last one stops the device, which frees what its rings hold.
    pub(super) fn queue_closed(&self) {
        if self.open_queues.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.close();
        }
    }

    /// Stops and releases the device, once; every buffer in its rings returns to its mempool.
    pub(super) fn close(&self) {
        if !self.open.swap(false, Ordering::AcqRel) {
            return;
        }
        let mut state = self.eal.lock();
        // SAFETY: the port was open until now and the lock is held. No queue polls it: the
        // control side closes last, and each queue counts itself out before.
        unsafe {
            self.api.rte_eth_dev_stop(self.port_id);
        }
        self.release(&mut state);
        detach(self.api, self.port_id);
        self.eal.forget_log();
    }

    /// Gives up what a stopped device has been granted: memory mapped for it, buffers promised.
    fn release(&self, state: &mut State) {
        if self.dma_mapped {
            state.dma_users -= 1;
            if state.dma_users == 0 {
                unmap_for_dma(self.api, self.port_id, state);
            }
        }
        for queue in 0..self.queues {
            self.pool(queue).release_promise(self.promised_per_queue);
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.close();
    }
}

/// Bytes for a frame in a buffer, behind the driver's headroom or the region's, the larger.
fn usable_bytes(pool: &Mempool) -> u32 {
    let geometry = pool.region().geometry();
    let headroom = geometry.headroom_bytes.max(sys::MR_DRIVER_HEADROOM_BYTES);
    geometry.stride_bytes.saturating_sub(headroom.into())
}

/// Makes DPDK take the device, if it has not at EAL's start; returns the port's number.
fn attach(eal: &Shared, device: &str, full: &str, _locked: &State) -> Result<u16, PortError> {
    let zero_byte = |_| unsupported(device, "a zero byte in the name".into());
    let name = CString::new(probe::device_name(full)).map_err(zero_byte)?;
    let devargs = CString::new(full).map_err(zero_byte)?;
    let api = eal.api;
    let mut port_id = 0;
    // SAFETY: C strings that live through the calls, and a number to write to.
    let (found, started) = unsafe {
        let found = api.rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut port_id) == 0;
        (found, found && is_configured(api, port_id))
    };
    if started {
        return Err(unsupported(device, "already open; a device is one port only".into()));
    }
    if found {
        return Ok(port_id);
    }
    // SAFETY: as above.
    let (failed, missing) = unsafe {
        let failed = api.rte_dev_probe(devargs.as_ptr());
        (failed, api.rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut port_id) != 0)
    };
    if failed != 0 || missing {
        return Err(probe::refused(device, &eal.why(failed)));
    }
    Ok(port_id)
}

/// A port that is configured has queues.
///
/// # Safety
/// `port_id` names an attached port.
unsafe fn is_configured(api: &Api, port_id: u16) -> bool {
    let mut info = sys::rte_eth_dev_info::default();
    // SAFETY: fills `info`.
    unsafe { api.rte_eth_dev_info_get(port_id, &raw mut info) == 0 && info.nb_rx_queues > 0 }
}

/// Lets go of a stopped or never started port.
fn detach(api: &Api, port_id: u16) {
    let mut info = sys::rte_eth_dev_info::default();
    // SAFETY: the port exists and is not started; the device outlives the port, and removing it
    // makes its name free for another opening.
    unsafe {
        let known = api.rte_eth_dev_info_get(port_id, &raw mut info) == 0;
        api.rte_eth_dev_close(port_id);
        if known && !info.device.is_null() {
            api.rte_dev_remove(info.device);
        }
    }
}

fn unmap_for_dma(api: &Api, port_id: u16, state: &State) {
    let mut info = sys::rte_eth_dev_info::default();
    // SAFETY: the port is stopped, so its device reads and writes nothing any more.
    unsafe {
        if api.rte_eth_dev_info_get(port_id, &raw mut info) != 0 {
            return;
        }
        for region in state.regions() {
            let base = region.base().as_ptr();
            api.rte_dev_dma_unmap(info.device, base.cast(), base as u64, region.mapped_bytes());
        }
    }
}

/// The steps between probe and start.
struct Opening<'a> {
    eal: &'a Arc<Shared>,
    options: &'a DpdkOptions,
    port_id: u16,
}

impl Opening<'_> {
    fn configure(
        &self,
        pools: Vec<Arc<Mempool>>,
        usable_bytes: u32,
        state: &mut State,
    ) -> Result<Device, PortError> {
        let api = self.eal.api;
        let info = self.device_info()?;
        // SAFETY: a driver's name is a static C string.
        let driver = unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned();
        let kernel = self.kernel_interface()?;
        let mtu_bytes = self.mtu(kernel.as_ref(), usable_bytes)?;
        let max_frame = u32::from(mtu_bytes) + ETHERNET_BYTES + TAGS_BYTES;
        let descriptors = self.configure_queues(&info, mtu_bytes)?;
        let mut device = Device {
            api,
            eal: self.eal.clone(),
            device: self.options.device.clone(),
            driver,
            port_id: self.port_id,
            mac: self.mac(),
            mtu_bytes,
            queues: self.options.queues,
            numa_node: self.numa_node(),
            max_frame_bytes: u16::try_from(max_frame.min(usable_bytes)).unwrap_or(u16::MAX),
            pools,
            promised_per_queue: 0,
            kernel,
            dma_mapped: false,
            open: AtomicBool::new(false),
            open_queues: AtomicU16::new(self.options.queues),
            link: AtomicU8::new(LinkState::Down as u8),
        };
        match self.bring_up(&info, &mut device, descriptors, state) {
            Ok(()) => {
                device.open.store(true, Ordering::Release);
                Ok(device)
            }
            Err(error) => {
                device.release(state);
                Err(error)
            }
        }
    }

    /// What the device is granted is noted in it at once, so that it can be taken back.
    fn bring_up(
        &self,
        info: &sys::rte_eth_dev_info,
        device: &mut Device,
        (rx_descriptors, tx_descriptors): (u16, u16),
        state: &mut State,
    ) -> Result<(), PortError> {
        device.dma_mapped = self.map_for_dma(info, state)?;
        state.dma_users += u32::from(device.dma_mapped);
        device.promised_per_queue = self.promise(&device.pools, rx_descriptors, tx_descriptors)?;
        self.set_up_queues(info, device, rx_descriptors, tx_descriptors)?;
        self.start(device)
    }

    fn device(&self) -> &str {
        &self.options.device
    }

    /// The error of a DPDK call that returned `code`, or nothing for 0 and more.
    fn check(&self, what: &str, code: i32) -> Result<(), PortError> {
        if code >= 0 {
            return Ok(());
        }
        Err(unsupported(self.device(), format!("{what}: {}", self.eal.why(code))))
    }

    fn device_info(&self) -> Result<sys::rte_eth_dev_info, PortError> {
        let mut info = sys::rte_eth_dev_info::default();
        // SAFETY: fills `info`.
        let code = unsafe { self.eal.api.rte_eth_dev_info_get(self.port_id, &raw mut info) };
        self.check("rte_eth_dev_info_get", code)?;
        let most = info.max_rx_queues.min(info.max_tx_queues);
        if self.options.queues > most {
            let problem = format!("{} queues asked for, it has {most}", self.options.queues);
            return Err(unsupported(self.device(), problem));
        }
        Ok(info)
    }

    /// The interface below a vdev that does not report the link itself.
    fn kernel_interface(&self) -> Result<Option<KernelInterface>, PortError> {
        if !self.device().starts_with("net_af_packet") {
            return Ok(None);
        }
        let name = probe::argument(self.device(), "iface").unwrap_or_default();
        KernelInterface::open(name).map(Some).map_err(|source| PortError::Os {
            device: self.device().to_owned(),
            what: "socket".into(),
            source,
        })
    }

    /// The MTU: as asked for, else as the interface or the driver has it and the buffers allow.
    fn mtu(&self, kernel: Option<&KernelInterface>, usable_bytes: u32) -> Result<u16, PortError> {
        let most = usable_bytes.saturating_sub(ETHERNET_BYTES + TAGS_BYTES);
        let Some(wanted) = self.options.mtu_bytes else {
            let mut mtu = 0;
            // SAFETY: fills `mtu`.
            let code = unsafe { self.eal.api.rte_eth_dev_get_mtu(self.port_id, &raw mut mtu) };
            self.check("rte_eth_dev_get_mtu", code)?;
            let mtu = kernel.and_then(|interface| interface.mtu_bytes().ok()).unwrap_or(mtu);
            return Ok(u16::try_from(most.min(mtu.into())).unwrap_or(mtu));
        };
        if u32::from(wanted) > most {
            let needed = u32::from(wanted) + ETHERNET_BYTES + TAGS_BYTES;
            return Err(unsupported(
                self.device(),
                format!(
                    "an MTU of {wanted} needs {needed} bytes in one buffer, which has \
                     {usable_bytes} behind its headroom; raise pool.buffer_bytes by {}",
                    (needed - usable_bytes).next_multiple_of(64)
                ),
            ));
        }
        // The kernel's interface keeps its MTU where the driver cannot set it; it must not be
        // larger than what we accept, and may be smaller.
        // SAFETY: plain numbers; the port is not started.
        let code = unsafe { self.eal.api.rte_eth_dev_set_mtu(self.port_id, wanted) };
        let has = kernel.and_then(|interface| interface.mtu_bytes().ok());
        if code < 0 && code != -libc::ENOTSUP && has.is_some_and(|has| has < wanted) {
            let why = self.eal.why(code);
            let problem = format!(
                "the driver does not set an MTU of {wanted} ({why}); `ip link set dev {} mtu \
                 {wanted}` does",
                probe::argument(self.device(), "iface").unwrap_or("IFACE")
            );
            return Err(unsupported(self.device(), problem));
        }
        self.eal.forget_log();
        Ok(wanted)
    }

    fn configure_queues(
        &self,
        info: &sys::rte_eth_dev_info,
        mtu_bytes: u16,
    ) -> Result<(u16, u16), PortError> {
        let api = self.eal.api;
        let mut conf = sys::rte_eth_conf::default();
        // A vdev over a kernel interface may report limits smaller than what that interface has;
        // its frames are bounded by the interface and by our own check.
        let most = info.max_rx_pktlen.saturating_sub(ETHERNET_BYTES + 4).min(info.max_mtu.into());
        conf.rxmode.mtu = u32::from(mtu_bytes).min(most).max(info.min_mtu.into());
        conf.txmode.offloads = info.tx_offload_capa & sys::MR_TX_OFFLOAD_FAST_FREE;
        let hashable =
            info.flow_type_rss_offloads & (sys::MR_RSS_IP | sys::MR_RSS_TCP | sys::MR_RSS_UDP);
        let hash_offload = info.rx_offload_capa & sys::MR_RX_OFFLOAD_RSS_HASH;
        let mut key: Vec<u8> =
            SYMMETRIC_KEY.iter().copied().cycle().take(info.hash_key_size.into()).collect();
        if hashable != 0 && (self.options.queues > 1 || hash_offload != 0) {
            conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
            conf.rxmode.offloads = hash_offload;
            conf.rx_adv_conf.rss_conf.rss_hf = hashable;
            if !key.is_empty() {
                conf.rx_adv_conf.rss_conf.rss_key = key.as_mut_ptr();
                conf.rx_adv_conf.rss_conf.rss_key_len = info.hash_key_size;
            }
        }
        let queues = self.options.queues;
        // SAFETY: `conf` and the key it points to live through the calls, which copy them.
        let configure = |conf: &sys::rte_eth_conf| unsafe {
            api.rte_eth_dev_configure(self.port_id, queues, queues, &raw const *conf)
        };
        let mut code = configure(&conf);
        if code < 0 && !conf.rx_adv_conf.rss_conf.rss_key.is_null() {
            conf.rx_adv_conf.rss_conf.rss_key = std::ptr::null_mut();
            conf.rx_adv_conf.rss_conf.rss_key_len = 0;
            code = configure(&conf);
            key.clear();
        }
        if self.options.queues > 1 && probe::is_pci(self.device()) {
            self.warn_of_spreading(hashable, &key);
        }
        self.check(&format!("{queues} queues could not be configured"), code)?;
        let (mut rx, mut tx) = (self.options.rx_descriptors, self.options.tx_descriptors);
        // SAFETY: fills the two numbers.
        let code =
            unsafe { api.rte_eth_dev_adjust_nb_rx_tx_desc(self.port_id, &raw mut rx, &raw mut tx) };
        self.check("descriptors", code)?;
        Ok((rx, tx))
    }

    /// Says when the two directions of a connection may come to different workers.
    fn warn_of_spreading(&self, hashable: u64, key: &[u8]) {
        let device = self.device();
        if hashable == 0 {
            tracing::warn!(device, "the driver does not spread flows over queues: one gets all");
        } else if key.is_empty() {
            tracing::warn!(
                device,
                "the driver takes no hash key of ours: the two directions of a connection may come \
                 to different workers; with NFs that need both, use one worker"
            );
        }
    }

    /// Lets the device read and write the regions. Without it a device behind an IOMMU delivers
    /// descriptors whose bytes never arrive, and reports nothing.
    fn map_for_dma(&self, info: &sys::rte_eth_dev_info, state: &State) -> Result<bool, PortError> {
        let mut mapped = false;
        for region in state.regions() {
            let base = region.base().as_ptr();
            let len = region.mapped_bytes();
            // SAFETY: memory of a registered region, which stays mapped as long as EAL lives;
            // the device exists.
            let (code, errno) = unsafe {
                let code = self.eal.api.rte_dev_dma_map(info.device, base.cast(), base as u64, len);
                (code, self.eal.api.mr_errno())
            };
            if code == 0 {
                mapped = true;
            } else if probe::is_pci(self.device()) && errno != libc::ENOTSUP {
                return Err(unsupported(
                    self.device(),
                    format!(
                        "the packet region of {} MiB could not be mapped for DMA: {}; raise the \
                         limit of locked memory (ulimit -l) and check the IOMMU",
                        len >> 20,
                        self.eal.why(errno)
                    ),
                ));
            }
        }
        self.eal.forget_log();
        Ok(mapped)
    }

    /// Checks that the pools can fill every descriptor ring. Drivers without hardware hold no
    /// buffers between bursts.
    fn promise(&self, pools: &[Arc<Mempool>], rx: u16, tx: u16) -> Result<u32, PortError> {
        if !probe::is_pci(self.device()) {
            return Ok(0);
        }
        let per_queue = u32::from(rx) + u32::from(tx);
        for queue in 0..usize::from(self.options.queues) {
            let pool = &pools[queue % pools.len()];
            let promised = pool.promise(per_queue);
            if promised + 512 > pool.count() {
                for undone in 0..=queue {
                    pools[undone % pools.len()].release_promise(per_queue);
                }
                return Err(unsupported(
                    self.device(),
                    format!(
                        "the descriptor rings of a worker's queues may hold {promised} buffers \
                         and the worker has {}; raise pool.buffers or lower rx_descriptors and \
                         tx_descriptors",
                        pool.count()
                    ),
                ));
            }
        }
        Ok(per_queue)
    }

    fn numa_node(&self) -> Option<u32> {
        // SAFETY: a plain number of an attached port. Negative where the node is not known.
        let socket = unsafe { self.eal.api.rte_eth_dev_socket_id(self.port_id) };
        u32::try_from(socket).ok().filter(|_| probe::is_pci(self.device()))
    }

    fn mac(&self) -> Option<String> {
        let mut address = sys::rte_ether_addr::default();
        // SAFETY: fills `address`.
        let code = unsafe { self.eal.api.rte_eth_macaddr_get(self.port_id, &raw mut address) };
        let text: Vec<_> = address.addr_bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        (code == 0).then(|| text.join(":"))
    }

    fn set_up_queues(
        &self,
        info: &sys::rte_eth_dev_info,
        device: &Device,
        rx: u16,
        tx: u16,
    ) -> Result<(), PortError> {
        let api = self.eal.api;
        let socket = sys::MR_SOCKET_ANY.cast_unsigned();
        let mut tx_conf = info.default_txconf;
        tx_conf.offloads = info.tx_queue_offload_capa & sys::MR_TX_OFFLOAD_FAST_FREE;
        for queue in 0..self.options.queues {
            let mempool = device.pool(queue).raw();
            // SAFETY: the mempool outlives the device, which holds an Arc to it; a null
            // configuration means the driver's defaults.
            let code = unsafe {
                let mempool = api.mr_pool_mempool(mempool);
                let conf = std::ptr::null();
                api.rte_eth_rx_queue_setup(self.port_id, queue, rx, socket, conf, mempool)
            };
            self.check(&format!("receive queue {queue}"), code)?;
            // SAFETY: `tx_conf` is read during the call.
            let code = unsafe {
                api.rte_eth_tx_queue_setup(self.port_id, queue, tx, socket, &raw const tx_conf)
            };
            self.check(&format!("transmit queue {queue}"), code)?;
        }
        Ok(())
    }

    fn start(&self, device: &Device) -> Result<(), PortError> {
        let api = self.eal.api;
        // SAFETY: every queue is set up.
        let code = unsafe { api.rte_eth_dev_start(self.port_id) };
        self.check("the device does not start", code)?;
        let mut queue = sys::rte_eth_rxq_info::default();
        // SAFETY: fills `queue`. Drivers that do not implement it leave it zero.
        let scattered = unsafe {
            api.rte_eth_rx_queue_info_get(self.port_id, 0, &raw mut queue) == 0
                && queue.scattered_rx != 0
        };
        if scattered {
            // SAFETY: started above.
            unsafe { api.rte_eth_dev_stop(self.port_id) };
            let usable = usable_bytes(device.pool(0));
            let problem = format!(
                "the driver would spread frames of MTU {} over several buffers of {usable} \
                 usable bytes; raise pool.buffer_bytes (drivers round down to 1024 or a power of \
                 two) or lower mtu_bytes",
                device.mtu_bytes
            );
            return Err(unsupported(self.device(), problem));
        }
        // SAFETY: the port is started. A vdev that knows no such mode receives everything anyway.
        unsafe {
            if self.options.promiscuous {
                api.rte_eth_promiscuous_enable(self.port_id);
            } else {
                api.rte_eth_promiscuous_disable(self.port_id);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Toeplitz hash, as the "Receive Side Scaling" specification of NDIS defines it.
    fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
        let key_bit = |at: usize| key[at / 8] >> (7 - at % 8) & 1;
        let window =
            |at: usize| (at..at + 32).fold(0_u32, |w, bit| w << 1 | u32::from(key_bit(bit)));
        let bits = (0..input.len() * 8).filter(|bit| input[bit / 8] >> (7 - bit % 8) & 1 == 1);
        bits.fold(0, |hash, bit| hash ^ window(bit))
    }

    fn key(len: usize) -> Vec<u8> {
        SYMMETRIC_KEY.iter().copied().cycle().take(len).collect()
    }

    #[test]
    fn the_hash_under_test_is_toeplitz() {
        // The specification's first IPv4 example with ports.
        let key = [
            0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3,
            0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3,
            0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
        ];
        let input = [66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6];
        assert_eq!(toeplitz(&key, &input), 0x51cc_c178);
    }

    proptest! {
        #[test]
        fn both_directions_of_a_connection_hash_alike(
            (from4, to4) in any::<([u8; 4], [u8; 4])>(),
            (from6, to6) in any::<([u8; 16], [u8; 16])>(),
            (sport, dport) in any::<([u8; 2], [u8; 2])>(),
        ) {
            let key = key(40);
            for (from, to) in [(&from4[..], &to4[..]), (&from6[..], &to6[..])] {
                let there = toeplitz(&key, &[from, to, &sport, &dport].concat());
                let back = toeplitz(&key, &[to, from, &dport, &sport].concat());
                prop_assert_eq!(there, back);
                let (there, back) = (toeplitz(&key, &[from, to].concat()), toeplitz(&key, &[to, from].concat()));
                prop_assert_eq!(there, back, "without transport ports");
            }
        }
    }
}
