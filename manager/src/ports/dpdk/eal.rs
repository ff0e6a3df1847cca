//! DPDK's environment abstraction layer (EAL): started once, never stopped.

use std::ffi::{CString, c_char};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Duration;

use dpdk_sys::sys::Api;
use nflib::shm::{BufferIndex, HugePages, PageKind, Region};

use super::device::Device;
use super::pool::{Mempool, MempoolStore};
use super::probe;
use crate::pool::BufferPool;
use crate::ports::PortError;

/// How often the link of every open device is looked at.
const WATCH_PERIOD: Duration = Duration::from_millis(50);
/// What one mbuf takes outside the region: header, mempool bookkeeping, a slot in the ring.
const BYTES_PER_MBUF: usize = 320;
/// Memory for drivers' rings and bookkeeping, per device.
const BYTES_PER_DEVICE: usize = 8 << 20;
/// Memory for EAL itself.
const BYTES_BASE: usize = 24 << 20;

/// What EAL must know before it starts.
#[derive(Clone, Debug, Default)]
pub struct EalOptions {
    /// Every device that will be opened, as in [`super::DpdkOptions::device`]. EAL touches no
    /// other PCI device.
    pub devices: Vec<String>,
    /// Buffers of the region, to know how many mbufs there will be.
    pub buffers: u32,
    /// Where mbufs and descriptor rings lie. The region has its own setting.
    pub hugepages: HugePages,
    /// Further EAL arguments, last on its command line.
    pub extra_args: Vec<String>,
}

/// The running environment. Clones are handles to the same one.
#[derive(Clone)]
pub struct Eal {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) api: &'static Api,
    /// Serialises whatever changes devices or regions. DPDK's control functions are not safe
    /// against each other.
    state: Mutex<State>,
}

/// What is registered with EAL.
#[derive(Default)]
pub(super) struct State {
    regions: Vec<Arc<Region>>,
    mempools: Vec<Weak<Mempool>>,
    devices: Vec<Weak<Device>>,
    /// Ports whose device can see the regions by DMA. The mapping belongs to the VFIO container
    /// that all devices share: mapping twice is harmless, unmapping is for the last port only.
    pub(super) dma_users: u32,
}

impl Eal {
    /// Starts EAL. Once per process.
    ///
    /// Memory is anonymous and there is no telemetry socket and no shared configuration, so a
    /// second manager can run beside, and a killed one leaves nothing but the empty directory
    /// `/run/dpdk/rte` that EAL makes whatever it is told.
    ///
    /// # Errors
    /// [`PortError::Unsupported`] when libdpdk is missing, EAL refuses to start or was started
    /// before.
    pub fn init(options: &EalOptions) -> Result<Self, PortError> {
        static STARTED: AtomicBool = AtomicBool::new(false);
        let api = dpdk_sys::api().map_err(|error| {
            unsupported(options.devices.first().map_or("dpdk", String::as_str), error.to_string())
        })?;
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(unsupported("dpdk", "EAL can be started once in a process".into()));
        }
        let args = arguments(options);
        tracing::debug!(?args, "starting EAL");
        let shared = Arc::new(Shared { api, state: Mutex::default() });
        let (done, started) = mpsc::channel();
        let for_thread = Arc::downgrade(&shared);
        // EAL makes the thread that starts it its main lcore, with a cache in every mempool. On a
        // thread of its own, the callers keep their affinity, and no buffer waits in the cache of
        // a thread that handles no packets.
        std::thread::Builder::new()
            .name("millrace-eal".into())
            .spawn(move || {
                let result = start(api, &args);
                let ok = result.is_ok();
                if done.send(result).is_ok() && ok {
                    watch(&for_thread);
                }
            })
            .map_err(|source| PortError::Os {
                device: "dpdk".into(),
                what: "starting a thread".into(),
                source,
            })?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self { shared }),
            Ok(Err(reason)) => Err(unsupported("dpdk", reason)),
            Err(_) => Err(unsupported("dpdk", "EAL ended the thread that started it".into())),
        }
    }

    /// A worker's pool over `first..first + count` of the region, kept in a DPDK mempool so that
    /// drivers can allocate from it and free to it.
    ///
    /// # Errors
    /// [`PortError::Unsupported`] when DPDK has no memory for it or cannot use the region.
    pub fn buffer_pool(
        &self,
        region: &Arc<Region>,
        first: BufferIndex,
        count: u32,
    ) -> Result<BufferPool, PortError> {
        self.register(region)?;
        let mempool = Arc::new(Mempool::create(self.shared.api, region, first, count)?);
        self.shared.lock().mempools.push(Arc::downgrade(&mempool));
        let store = Box::new(MempoolStore::new(mempool));
        Ok(BufferPool::with_store(region.clone(), first, count, store))
    }

    /// Tells EAL of the region's memory. It stays registered: devices may hold it mapped.
    fn register(&self, region: &Arc<Region>) -> Result<(), PortError> {
        let mut state = self.shared.lock();
        if state.regions.iter().any(|known| Arc::ptr_eq(known, region)) {
            return Ok(());
        }
        let page_bytes = match region.pages() {
            PageKind::Huge2M => 2 << 20,
            PageKind::Ordinary => 4096,
        };
        // SAFETY: the memory is mapped for `mapped_bytes`, a multiple of its page size, and stays
        // so: `regions` keeps the region alive as long as EAL.
        let errno = unsafe {
            self.shared.api.mr_extmem_register(
                region.base().as_ptr().cast(),
                region.mapped_bytes(),
                page_bytes,
            )
        };
        if errno != 0 {
            let why = self.shared.why(errno);
            return Err(unsupported(
                "dpdk",
                format!("the packet region was not registered: {why}"),
            ));
        }
        state.regions.push(region.clone());
        Ok(())
    }

    /// The mempools behind `pools`.
    pub(super) fn mempools_of(
        &self,
        device: &str,
        pools: &[BufferPool],
    ) -> Result<Vec<Arc<Mempool>>, PortError> {
        let state = self.shared.lock();
        let known = || state.mempools.iter().filter_map(Weak::upgrade);
        let found: Option<Vec<_>> =
            pools.iter().map(|pool| known().find(|mempool| mempool.lies_under(pool))).collect();
        match found {
            Some(mempools) if !mempools.is_empty() => Ok(mempools),
            _ => Err(unsupported(device, "its worker's buffer pool is not a DPDK mempool".into())),
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What DPDK said since the last call, and the name of `errno` (0 for none), in one line.
    pub(super) fn why(&self, errno: i32) -> String {
        explain(self.api, errno)
    }

    /// Throws away what DPDK logged about an earlier matter, or hands it to our own debug log.
    pub(super) fn forget_log(&self) {
        for line in dpdk_sys::take_log(self.api).lines() {
            tracing::debug!(target: "dpdk", "{line}");
        }
    }
}

impl State {
    pub(super) fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    pub(super) fn watch(&mut self, device: &Arc<Device>) {
        self.devices.retain(|known| known.strong_count() > 0);
        self.devices.push(Arc::downgrade(device));
    }
}

pub(super) fn unsupported(device: &str, problem: String) -> PortError {
    PortError::Unsupported { device: device.to_owned(), problem }
}

fn explain(api: &Api, errno: i32) -> String {
    let log = dpdk_sys::take_log(api);
    let says_something =
        |line: &&str| !line.is_empty() && !line.contains("attach device on primary process");
    let mut said: Vec<&str> = log.lines().map(str::trim).filter(says_something).collect();
    said.dedup();
    // The cause comes first, then each layer says that it failed too.
    said.truncate(3);
    let mut text = said.join("; ");
    // Many drivers return a bare -1, which is not EPERM.
    if errno.abs() > 1 {
        let name = std::io::Error::from_raw_os_error(errno.abs());
        let separator = if text.is_empty() { "" } else { " — " };
        _ = write!(text, "{separator}{name}");
    }
    if text.is_empty() { "DPDK gave no reason".into() } else { text }
}

/// Runs on the thread that becomes EAL's main lcore.
fn start(api: &Api, args: &[String]) -> Result<(), String> {
    let owned: Vec<CString> = args
        .iter()
        .map(|arg| CString::new(arg.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|_| "an EAL argument holds a zero byte".to_owned())?;
    // EAL keeps pointers into its arguments, and lives as long as the process.
    let argv: Vec<*mut c_char> = owned.into_iter().map(CString::into_raw).collect();
    let argv = argv.leak();
    let argc = i32::try_from(argv.len()).map_err(|_| "too many EAL arguments".to_owned())?;
    // SAFETY: no argument; from here on DPDK's log goes to memory.
    let captured = unsafe { api.mr_log_capture() };
    if captured != 0 {
        return Err("DPDK's log could not be captured".into());
    }
    // SAFETY: `argv` holds `argc` C strings that are never freed. `Eal::init` calls this once.
    let parsed = unsafe { api.rte_eal_init(argc, argv.as_mut_ptr()) };
    if parsed < 0 {
        // SAFETY: reads this thread's error number.
        let errno = unsafe { api.mr_errno() };
        return Err(format!("EAL did not start ({}): {}", args.join(" "), explain(api, errno)));
    }
    Ok(())
}

/// Keeps every device's link state fresh, so that a queue reads it in one load.
fn watch(shared: &Weak<Shared>) {
    loop {
        std::thread::sleep(WATCH_PERIOD);
        // EAL's main thread must not end: it holds lcore 0.
        let Some(shared) = shared.upgrade() else { continue };
        let state = shared.lock();
        let devices: Vec<_> = state.devices.iter().filter_map(Weak::upgrade).collect();
        for device in &devices {
            device.refresh_link(&state);
        }
        // In this order: the last handle to a device closes it, which takes the lock.
        drop(state);
        drop(devices);
    }
}

/// EAL's command line (DPDK 22.11, Getting Started Guide for Linux, "EAL parameters").
fn arguments(options: &EalOptions) -> Vec<String> {
    // Devices see the region at our own addresses: without an IOMMU that cannot be, and then the
    // driver says so when it is probed.
    let mut args: Vec<String> =
        ["millrace", "--no-telemetry", "--iova-mode=va", "--log-level=notice"]
            .map(str::to_owned)
            .into();
    args.push(format!("--lcores=0@({})", allowed_cpus()));
    let pci: Vec<_> = options.devices.iter().filter(|device| probe::is_pci(device)).collect();
    if pci.is_empty() {
        args.push("--no-pci".into());
    }
    for device in pci {
        args.push("-a".into());
        args.push(probe::full_pci_name(device));
    }
    let needed = BYTES_BASE
        + options.buffers as usize * BYTES_PER_MBUF
        + options.devices.len() * BYTES_PER_DEVICE;
    let enough_huge = free_hugepage_bytes() >= needed;
    let huge = match options.hugepages {
        HugePages::Off => false,
        HugePages::Try => enough_huge,
        HugePages::Require => true,
    };
    if huge {
        args.push("--in-memory".into());
    } else {
        // EAL refuses `--in-memory` together with `--no-huge`; this is as free of files.
        args.push("--no-shconf".into());
        args.push("--no-huge".into());
        args.push("-m".into());
        args.push(needed.div_ceil(1 << 20).to_string());
    }
    args.extend(options.extra_args.iter().cloned());
    args
}

/// The CPUs this process may run on, as EAL's list. EAL pins its main thread, which only watches
/// links; it may do that anywhere.
fn allowed_cpus() -> String {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let cpus: Vec<String> = set
        .map(|set| {
            (0..nix::sched::CpuSet::count())
                .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
                .map(|cpu| cpu.to_string())
                .collect()
        })
        .unwrap_or_default();
    if cpus.is_empty() { "0".into() } else { cpus.join(",") }
}

fn free_hugepage_bytes() -> usize {
    let number = |key: &str, text: &str| -> usize {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|word| word.parse().ok())
            .unwrap_or(0)
    };
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    number("HugePages_Free:", &text) * number("Hugepagesize:", &text) * 1024
}
