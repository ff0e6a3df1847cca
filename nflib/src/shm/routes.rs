//! The route table: which NF comes next, for every packet, without asking the manager.
//!
//! ```text
//! byte 0       header   magic, layout version, sizes; the manager writes it once
//! byte 4096    routes   MAX_ROUTES × u64        hop_count << 32 | first_hop
//! then         hops     MAX_HOPS × u64          service << 32 | an NF's number, or a set of NFs
//! then         sets     MAX_SET_ENTRIES × u16   NF numbers, a power of two for each set
//! ```
//! A *route* is one version of a chain, resolved to instances. It never changes while a packet
//! travels it: the manager writes a new route beside the old one, lets new packets take the new one,
//! and uses the old one's place again when its last packet has come out. So a reader needs no lock,
//! no version check and no retry: the ring that brought the descriptor ordered the route's words
//! before it.
//!
//! Only the manager can write: NFs get a descriptor that was opened for reading.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;

use super::channel::LAYOUT_VERSION;
use super::mapping::Mapping;
use super::sync::{AtomicU16, AtomicU64, Ordering};
use crate::descriptor::{RouteId, ServiceId};

/// Says that a file is a route table: "MILLROUT" in ASCII, little endian.
const MAGIC: u64 = u64::from_le_bytes(*b"MILLROUT");

/// Routes there can be at a time.
pub const MAX_ROUTES: usize = 1 << 16;
/// Hops of all routes together.
pub const MAX_HOPS: usize = 1 << 20;
/// Entries of all sets together.
pub const MAX_SET_ENTRIES: usize = 1 << 22;
/// Stands where no NF is: the service has no instance.
pub const NO_NF: u16 = u16::MAX;

const ROUTES_OFFSET_BYTES: usize = 4096;
const HOPS_OFFSET_BYTES: usize = ROUTES_OFFSET_BYTES + MAX_ROUTES * 8;
const SETS_OFFSET_BYTES: usize = HOPS_OFFSET_BYTES + MAX_HOPS * 8;
const LEN_BYTES: usize = SETS_OFFSET_BYTES + MAX_SET_ENTRIES * 2;

const _: () = assert!(LEN_BYTES.is_multiple_of(4096) && SETS_OFFSET_BYTES.is_multiple_of(64));

/// The bucket of a flow in a set of 2^`log2` entries (Fibonacci hashing, Knuth vol. 3, 6.4): the
/// NIC's hash may be good in some of its bits only.
#[must_use]
#[inline]
pub fn bucket_of(flow_hash: u32, log2: u32) -> u32 {
    if log2 == 0 { 0 } else { flow_hash.wrapping_mul(0x9E37_79B1) >> (32 - log2.min(32)) }
}

/// Where a hop leads, as the lower half of a word of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopEntry {
    /// To this NF; [`NO_NF`] when the service has none.
    Nf(u16),
    /// To one of a set of NFs, by the bucket of the flow.
    Set {
        /// Where the set's entries begin, as a number of entries.
        first: u32,
        /// Binary logarithm of their number; at most 16.
        log2: u32,
    },
}

impl HopEntry {
    const SINGLE: u32 = 1 << 31;
    const FIRST_BITS: u32 = 24;

    fn encode(self) -> u32 {
        match self {
            Self::Nf(nf) => Self::SINGLE | u32::from(nf),
            Self::Set { first, log2 } => {
                (log2 & 0x1f) << Self::FIRST_BITS | (first & ((1 << Self::FIRST_BITS) - 1))
            }
        }
    }

    #[inline]
    fn decode(word: u32) -> Self {
        if word & Self::SINGLE == 0 {
            let first = word & ((1 << Self::FIRST_BITS) - 1);
            Self::Set { first, log2: word >> Self::FIRST_BITS & 0x1f }
        } else {
            Self::Nf(word as u16)
        }
    }
}

/// Words of the mapped table. Every access is bounds-checked by the slice-like getters below.
#[derive(Debug)]
struct Words(Mapping);

impl Words {
    #[inline]
    fn route(&self, at: RouteId) -> &AtomicU64 {
        // SAFETY: a RouteId is below MAX_ROUTES (16 bits), so the word lies in the mapping of
        // LEN_BYTES bytes, aligned to 8; concurrent writes are what an atomic is for.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            self.0
                .base()
                .add(ROUTES_OFFSET_BYTES + usize::from(at) * 8)
                .cast::<AtomicU64>()
                .as_ref()
        }
    }

    #[inline]
    fn hop(&self, at: usize) -> Option<&AtomicU64> {
        if at >= MAX_HOPS {
            return None;
        }
        // SAFETY: as above; `at` was checked.
        #[allow(clippy::cast_ptr_alignment)]
        Some(unsafe { self.0.base().add(HOPS_OFFSET_BYTES + at * 8).cast::<AtomicU64>().as_ref() })
    }

    #[inline]
    fn entry(&self, at: usize) -> Option<&AtomicU16> {
        if at >= MAX_SET_ENTRIES {
            return None;
        }
        // SAFETY: as above; `at` was checked.
        #[allow(clippy::cast_ptr_alignment)]
        Some(unsafe { self.0.base().add(SETS_OFFSET_BYTES + at * 2).cast::<AtomicU16>().as_ref() })
    }

    fn header(&self, word: usize) -> &AtomicU64 {
        assert!(word < ROUTES_OFFSET_BYTES / 8);
        // SAFETY: as above; `word` was checked.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            self.0.base().add(word * 8).cast::<AtomicU64>().as_ref()
        }
    }

    fn expected_header() -> [u64; 3] {
        [MAGIC, u64::from(LAYOUT_VERSION), LEN_BYTES as u64]
    }

    #[inline]
    fn nf_at(&self, entry: HopEntry, flow_hash: u32) -> u16 {
        match entry {
            HopEntry::Nf(nf) => nf,
            HopEntry::Set { first, log2 } => self
                .entry(first as usize + bucket_of(flow_hash, log2) as usize)
                .map_or(NO_NF, |word| word.load(Ordering::Relaxed)),
        }
    }
}

/// The table as an NF sees it.
#[derive(Debug)]
pub struct RouteTable(Words);

impl RouteTable {
    /// Maps the manager's table for reading.
    ///
    /// # Errors
    /// InvalidData for a file of another size or layout, else those of mmap(2).
    pub fn from_fd(fd: &OwnedFd) -> io::Result<Self> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let size = nix::sys::stat::fstat(fd)?.st_size;
        if usize::try_from(size).ok() != Some(LEN_BYTES) {
            return Err(invalid(format!("a route table of {size} bytes, expected {LEN_BYTES}")));
        }
        let words = Words(Mapping::read_only(fd, LEN_BYTES)?);
        for (at, expected) in Words::expected_header().into_iter().enumerate() {
            let found = words.header(at).load(Ordering::Relaxed);
            if found != expected {
                return Err(invalid(format!(
                    "route table: word {at} is {found:#x}, expected {expected:#x}; manager and NF \
                     must be of one release"
                )));
            }
        }
        Ok(Self(words))
    }

    /// The NF at position `hop` of a route, for a flow. `None` at the route's end, and where the
    /// service has no instance: then the manager decides.
    #[must_use]
    #[inline]
    pub fn nf_at(&self, route: RouteId, hop: u8, flow_hash: u32) -> Option<u16> {
        let entry = HopEntry::decode(self.hop_word(route, hop)? as u32);
        Some(self.0.nf_at(entry, flow_hash)).filter(|&nf| nf != NO_NF)
    }

    /// The service at position `hop` of a route. `None` at the route's end.
    #[must_use]
    #[inline]
    pub fn service_at(&self, route: RouteId, hop: u8) -> Option<ServiceId> {
        Some((self.hop_word(route, hop)? >> 32) as ServiceId)
    }

    /// The first position at which a route visits a service. `None` when it does not.
    #[must_use]
    pub fn hop_of(&self, route: RouteId, service: ServiceId) -> Option<u8> {
        let hops = (0..=u8::MAX).map_while(|hop| Some((hop, self.service_at(route, hop)?)));
        hops.into_iter().find(|&(_, found)| found == service).map(|(hop, _)| hop)
    }

    #[inline]
    fn hop_word(&self, route: RouteId, hop: u8) -> Option<u64> {
        let word = self.0.route(route).load(Ordering::Relaxed);
        let (first_hop, count) = (word as u32 as usize, (word >> 32) as usize);
        let hop = usize::from(hop);
        if hop >= count {
            return None;
        }
        Some(self.0.hop(first_hop + hop)?.load(Ordering::Relaxed))
    }
}

/// The table as the manager writes it.
#[derive(Debug)]
pub struct RouteTableWriter {
    fd: OwnedFd,
    words: Words,
}

impl RouteTableWriter {
    /// Makes an empty table.
    ///
    /// # Errors
    /// Those of memfd_create(2) and mmap(2).
    pub fn create() -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"millrace-routes", flags)?;
        nix::unistd::ftruncate(&fd, libc::off_t::try_from(LEN_BYTES).unwrap_or(libc::off_t::MAX))?;
        let words = Words(Mapping::new(&fd, LEN_BYTES, false)?);
        // Ours is the only writable mapping there will ever be.
        let seals = SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_FUTURE_WRITE
            | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        for (at, value) in Words::expected_header().into_iter().enumerate() {
            words.header(at).store(value, Ordering::Relaxed);
        }
        Ok(Self { fd, words })
    }

    /// A descriptor of the file that allows reading only, to hand to NFs.
    ///
    /// # Errors
    /// Those of open(2) under /proc.
    pub fn read_only_fd(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd());
        Ok(open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// The file itself.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Writes a set's entries from entry `first` on. Out of range: ignored.
    pub fn write_set(&self, first: u32, nfs: &[u16]) {
        for (at, &nf) in (first as usize..).zip(nfs) {
            if let Some(word) = self.words.entry(at) {
                word.store(nf, Ordering::Relaxed);
            }
        }
    }

    /// Writes a route: its hops, each with the service it visits, from word `first_hop` of the hops
    /// on, then the route itself.
    /// The caller makes sure that no packet travels a route of that number.
    pub fn write_route(&self, route: RouteId, first_hop: u32, hops: &[(ServiceId, HopEntry)]) {
        for (at, (service, hop)) in (first_hop as usize..).zip(hops) {
            if let Some(word) = self.words.hop(at) {
                let value = u64::from(*service) << 32 | u64::from(hop.encode());
                word.store(value, Ordering::Relaxed);
            }
        }
        let word = (hops.len() as u64) << 32 | u64::from(first_hop);
        // Release: a reader that follows the route sees its hops and sets.
        self.words.route(route).store(word, Ordering::Release);
    }
}

/// What an NF maps is what the manager wrote; used by tests and by the manager to explain.
impl RouteTableWriter {
    /// A reader over a mapping of its own.
    ///
    /// # Errors
    /// As [`RouteTable::from_fd`].
    pub fn reader(&self) -> io::Result<Arc<RouteTable>> {
        Ok(Arc::new(RouteTable::from_fd(&self.read_only_fd()?)?))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_route_leads_from_hop_to_hop_to_its_end() {
        let writer = RouteTableWriter::create().unwrap();
        let reader = writer.reader().unwrap();
        assert_eq!(reader.nf_at(3, 0, 1), None, "an unwritten route has no hops");
        writer.write_set(4096, &[10, 11, 12, 13]);
        let set = HopEntry::Set { first: 4096, log2: 2 };
        let hops = [(1, HopEntry::Nf(7)), (2, set), (u16::MAX, HopEntry::Nf(NO_NF))];
        writer.write_route(3, 500, &hops);
        assert_eq!(reader.nf_at(3, 0, 99), Some(7));
        for hash in [0, 1, 77, u32::MAX] {
            let expected = 10 + bucket_of(hash, 2) as u16;
            assert_eq!(reader.nf_at(3, 1, hash), Some(expected));
        }
        assert_eq!(reader.nf_at(3, 2, 0), None, "no instance");
        assert_eq!(reader.nf_at(3, 3, 0), None, "the end");
    }

    #[test]
    fn a_service_is_found_at_its_first_position() {
        let writer = RouteTableWriter::create().unwrap();
        let reader = writer.reader().unwrap();
        assert_eq!((reader.hop_of(9, 0), reader.service_at(9, 0)), (None, None));
        let hops = [5, 0, u16::MAX, 0, 5].map(|service| (service, HopEntry::Nf(1)));
        writer.write_route(9, 70, &hops);
        let found = [5, 0, u16::MAX, 1].map(|service| reader.hop_of(9, service));
        assert_eq!(found, [Some(0), Some(1), Some(2), None]);
        assert_eq!((reader.service_at(9, 3), reader.service_at(9, 5)), (Some(0), None));
        let longest = vec![(2, HopEntry::Nf(1)); 300];
        writer.write_route(8, 100, &longest);
        assert_eq!((reader.hop_of(8, 2), reader.hop_of(8, 3)), (Some(0), None));
    }

    #[test]
    fn what_an_nf_gets_cannot_be_mapped_for_writing() {
        let writer = RouteTableWriter::create().unwrap();
        let fd = writer.read_only_fd().unwrap();
        assert!(Mapping::new(&fd, LEN_BYTES, false).is_err());
        // Not even by opening the file again: it is sealed.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if let Ok(again) = open(path.as_str(), OFlag::O_RDWR, Mode::empty()) {
            assert!(Mapping::new(&again, LEN_BYTES, false).is_err());
        }
    }

    #[test]
    fn places_outside_the_table_are_nowhere() {
        let writer = RouteTableWriter::create().unwrap();
        let reader = writer.reader().unwrap();
        writer.write_set(MAX_SET_ENTRIES as u32, &[1]);
        let set = HopEntry::Set { first: MAX_SET_ENTRIES as u32 - 1, log2: 4 };
        writer.write_route(0, MAX_HOPS as u32 - 1, &[(1, set), (2, HopEntry::Nf(1))]);
        assert_eq!(reader.nf_at(0, 1, 0), None);
        assert_eq!(reader.nf_at(0, 0, u32::MAX), None);
    }

    proptest! {
        #[test]
        fn an_entry_survives_its_word(nf: u16, first in 0..MAX_SET_ENTRIES as u32, log2 in 0u32..=16) {
            for entry in [HopEntry::Nf(nf), HopEntry::Set { first, log2 }] {
                prop_assert_eq!(HopEntry::decode(entry.encode()), entry);
            }
        }

        #[test]
        fn a_bucket_lies_in_its_set(hash: u32, log2 in 0u32..=16) {
            prop_assert!(bucket_of(hash, log2) < 1 << log2);
        }
    }
}
