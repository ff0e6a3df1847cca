//! DPDK's `rte_hash`, as a peer for benchmarks and for nothing else.

use std::ffi::{CString, c_char};
use std::ptr::NonNull;
use std::sync::OnceLock;

use crate::sys::{self, Api};
use crate::{LoadError, api};

/// A hash table from keys of one length to 64-bit values.
pub struct PeerHash {
    api: &'static Api,
    raw: NonNull<sys::rte_hash>,
    key_bytes: usize,
}

impl PeerHash {
    /// A table for `entries` keys of `key_bytes`. Starts EAL when it is the first, on hugepages when
    /// enough of them are free for `memory_mib`, else on ordinary ones.
    ///
    /// # Errors
    /// [`LoadError`] when libdpdk is missing, EAL does not start or has no memory.
    pub fn new(entries: u32, key_bytes: usize, memory_mib: u32) -> Result<Self, LoadError> {
        let api = api()?;
        start_eal(api, memory_mib)?;
        // SAFETY: plain numbers; the table is freed in `drop`.
        let raw = NonNull::new(unsafe { api.mr_hash_new(entries, key_bytes as u32) })
            .ok_or_else(|| LoadError { reason: "no memory for rte_hash".into() })?;
        Ok(Self { api, raw, key_bytes })
    }

    /// Adds a key, or replaces its value. Returns whether there was room.
    pub fn add(&mut self, key: &[u8], value: u64) -> bool {
        assert_eq!(key.len(), self.key_bytes);
        // SAFETY: the table reads `key_bytes` of the key and copies them.
        unsafe { self.api.mr_hash_add(self.raw.as_ptr(), key.as_ptr().cast(), value) == 0 }
    }

    /// Removes a key; returns whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        assert_eq!(key.len(), self.key_bytes);
        // SAFETY: the table reads `key_bytes` of the key.
        unsafe { self.api.mr_hash_del(self.raw.as_ptr(), key.as_ptr().cast()) == 0 }
    }

    /// Asks the kernel for huge pages behind what was added so far, where EAL has none.
    pub fn collapse_pages(&self) {
        // SAFETY: changes which pages EAL's memory lies on, and nothing in it.
        unsafe { self.api.mr_memory_collapse() };
    }

    /// The table's own hash of a key.
    #[must_use]
    pub fn hash_of(&self, key: &[u8]) -> u32 {
        assert_eq!(key.len(), self.key_bytes);
        // SAFETY: the table reads `key_bytes` of the key.
        unsafe { self.api.mr_hash_of(self.raw.as_ptr(), key.as_ptr().cast()) }
    }

    /// Looks up keys that lie one behind the other, in whole bursts, with `hashes` given or computed
    /// on the way; returns the sum of the values found. The loop runs in C.
    #[must_use]
    pub fn lookup(&self, keys: &[u8], hashes: Option<&[u32]>, burst: u32) -> u64 {
        assert!(burst > 0 && burst <= sys::MR_MAX_BURST);
        let count = keys.len() / self.key_bytes;
        assert!(hashes.is_none_or(|hashes| hashes.len() >= count), "fewer hashes than keys");
        let hashes = hashes.map_or(std::ptr::null(), <[u32]>::as_ptr);
        // SAFETY: `keys` holds `count` keys, `hashes` as many or is null, and a burst fits the
        // shim's arrays.
        unsafe {
            self.api.mr_hash_bench_lookup(
                self.raw.as_ptr(),
                keys.as_ptr().cast(),
                hashes,
                self.key_bytes as u32,
                count as u64,
                burst,
            )
        }
    }
}

impl Drop for PeerHash {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed here once.
        unsafe { self.api.mr_hash_delete(self.raw.as_ptr()) };
    }
}

/// Starts EAL without devices, files or telemetry. Once; the answer does not change later.
fn start_eal(api: &'static Api, memory_mib: u32) -> Result<(), LoadError> {
    static STARTED: OnceLock<Result<(), LoadError>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let huge = free_hugepages_mib() > u64::from(memory_mib);
        let memory = memory_mib.to_string();
        let mut args = vec!["millrace-bench", "--no-pci", "--no-telemetry", "-m", &memory];
        args.push("--log-level=critical");
        // EAL refuses `--in-memory` together with `--no-huge`; both leave no files.
        args.extend(if huge { &["--in-memory"][..] } else { &["--no-shconf", "--no-huge"] });
        let args: Vec<_> = args.into_iter().filter_map(|arg| CString::new(arg).ok()).collect();
        // EAL pins the thread that starts it.
        std::thread::scope(|scope| scope.spawn(|| init(api, &args)).join())
            .unwrap_or_else(|_| Err(LoadError { reason: "EAL panicked".into() }))
    });
    started.clone()
}

fn init(api: &Api, args: &[CString]) -> Result<(), LoadError> {
    let mut argv: Vec<*mut c_char> = args.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
    // SAFETY: as many C strings as said, which EAL only reorders, and which outlive the call; it
    // copies what it keeps.
    let code = unsafe { api.rte_eal_init(argv.len() as i32, argv.as_mut_ptr()) };
    if code < 0 {
        return Err(LoadError { reason: "EAL did not start".into() });
    }
    Ok(())
}

fn free_hugepages_mib() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free =
        info.lines().find_map(|line| line.strip_prefix("HugePages_Free:")?.trim().parse().ok());
    // Of 2 MiB, as everywhere on x86 unless somebody asked for others.
    free.unwrap_or(0_u64) * 2
}
