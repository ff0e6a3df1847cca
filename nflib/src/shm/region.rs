//! The packet region: one shared memory file cut into equal buffers.
//!
//! ```text
//! 0          stride_bytes        2 × stride_bytes                     buffers × stride_bytes
//! ├─ buffer 0 ─┼─── buffer 1 ───┼─ …                                                    ┤
//!              ├ headroom ┤ data … ┤
//! ```
//! The region holds packet bytes and nothing else: no header, no list, no lock. Who owns a buffer
//! is written down in the manager's private memory, so nothing an NF scribbles here can corrupt it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{BufferIndex, Mapping, PageKind};

const HUGE_PAGE_BYTES: usize = 2 << 20;
const ORDINARY_PAGE_BYTES: usize = 4096;

/// How a region is cut up. Sent to an NF when it attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionGeometry {
    /// Number of buffers.
    pub buffers: u32,
    /// Bytes from one buffer's start to the next one's; a multiple of 64.
    pub stride_bytes: u32,
    /// Bytes kept free before the data of a received packet, for headers pushed later.
    pub headroom_bytes: u16,
}

impl RegionGeometry {
    /// Largest stride: offsets and lengths in a descriptor are 16 bits wide.
    pub const MAX_STRIDE_BYTES: u32 = 65_536 - 64;

    /// Bytes of all buffers together.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.buffers as usize * self.stride_bytes as usize
    }

    /// The longest packet that fits in one buffer behind the headroom.
    #[must_use]
    pub fn max_packet_bytes(&self) -> u32 {
        self.stride_bytes.saturating_sub(u32::from(self.headroom_bytes))
    }

    /// True when `offset..offset + len` of buffer `index` lies inside that buffer.
    ///
    /// The check for every descriptor that came from another process.
    #[must_use]
    #[inline]
    pub fn contains(&self, index: BufferIndex, offset_bytes: u16, len_bytes: u16) -> bool {
        index < self.buffers && u32::from(offset_bytes) + u32::from(len_bytes) <= self.stride_bytes
    }

    /// Checks the shape itself.
    ///
    /// # Errors
    /// [`RegionError::Geometry`] naming the first rule that is broken.
    pub fn validate(&self) -> Result<(), RegionError> {
        let fail = |why: String| Err(RegionError::Geometry(why));
        if self.buffers == 0 {
            return fail("a region needs at least 1 buffer".into());
        }
        if self.stride_bytes == 0 || !self.stride_bytes.is_multiple_of(64) {
            return fail(format!(
                "a buffer of {} bytes is not a multiple of 64",
                self.stride_bytes
            ));
        }
        if self.stride_bytes > Self::MAX_STRIDE_BYTES {
            return fail(format!(
                "a buffer of {} bytes is larger than {}",
                self.stride_bytes,
                Self::MAX_STRIDE_BYTES
            ));
        }
        if u32::from(self.headroom_bytes) + 64 > self.stride_bytes {
            return fail(format!(
                "a headroom of {} bytes leaves no room for a packet in a buffer of {} bytes",
                self.headroom_bytes, self.stride_bytes
            ));
        }
        Ok(())
    }
}

/// Whether the region asks for hugepages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// Use them when enough are free, else ordinary pages with a notice.
    #[default]
    Try,
    /// Fail when too few are free.
    Require,
    /// Use ordinary pages.
    Off,
}

/// Why a region could not be made or mapped.
#[derive(Debug, Error)]
pub enum RegionError {
    /// The shape is impossible.
    #[error("packet region: {0}")]
    Geometry(String),
    /// Hugepages were required and too few are free.
    #[error(
        "packet region: {needed} hugepages of 2 MiB are needed and {free} are free; reserve them \
         with `sysctl vm.nr_hugepages={needed}` or set pool.hugepages = \"try\""
    )]
    NoHugePages {
        /// Pages the region takes.
        needed: usize,
        /// Pages free now.
        free: usize,
    },
    /// More than the machine has.
    #[error(
        "packet region: {needed_mib} MiB are needed and {available_mib} MiB of memory are \
         available; lower pool.buffers or pool.buffer_bytes"
    )]
    TooLarge {
        /// Size of the region.
        needed_mib: usize,
        /// `MemAvailable` of `/proc/meminfo`.
        available_mib: usize,
    },
    /// A file handed over as a region is not one.
    #[error("packet region: the file is {found_bytes} bytes long, expected {expected_bytes}")]
    WrongSize {
        /// From `fstat`.
        found_bytes: u64,
        /// From the geometry.
        expected_bytes: u64,
    },
    /// A system call failed.
    #[error("packet region: {what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
}

impl RegionError {
    fn os(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Os { what, source: errno.into() }
    }
}

/// The packet region, mapped in this process.
#[derive(Debug)]
pub struct Region {
    fd: OwnedFd,
    mapping: Mapping,
    geometry: RegionGeometry,
    pages: PageKind,
    writable: bool,
}

impl Region {
    /// Makes a region and faults every page of it in. Only the manager does this.
    ///
    /// The file is sealed against shrinking and growing: no process that maps it can take pages
    /// away from another by truncating it (memfd_create(2), F_ADD_SEALS).
    ///
    /// # Errors
    /// See [`RegionError`]. With [`HugePages::Try`], want of hugepages is not an error; ask
    /// [`pages`](Self::pages) what was got.
    pub fn create(geometry: RegionGeometry, huge: HugePages) -> Result<Self, RegionError> {
        geometry.validate()?;
        match huge {
            HugePages::Off => Self::create_on(geometry, PageKind::Ordinary),
            HugePages::Require => Self::create_on(geometry, PageKind::Huge2M),
            HugePages::Try => match Self::create_on(geometry, PageKind::Huge2M) {
                Err(RegionError::NoHugePages { .. }) => {
                    Self::create_on(geometry, PageKind::Ordinary)
                }
                other => other,
            },
        }
    }

    /// Makes a region on ordinary pages that come when they are first touched, for packets that are
    /// copied there.
    ///
    /// # Errors
    /// See [`RegionError`].
    pub fn create_sparse(geometry: RegionGeometry) -> Result<Self, RegionError> {
        geometry.validate()?;
        Self::create_with(geometry, PageKind::Ordinary, false)
    }

    fn create_on(geometry: RegionGeometry, pages: PageKind) -> Result<Self, RegionError> {
        Self::create_with(geometry, pages, true)
    }

    fn create_with(
        geometry: RegionGeometry,
        pages: PageKind,
        populate: bool,
    ) -> Result<Self, RegionError> {
        let file_bytes = file_bytes(&geometry, pages);
        let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        if pages == PageKind::Huge2M {
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        }
        check_memory(pages, file_bytes)?;
        let fd = memfd_create(c"millrace-region", flags).map_err(|errno| match (pages, errno) {
            (PageKind::Huge2M, Errno::ENOENT | Errno::EINVAL | Errno::ENODEV | Errno::ENOSYS) => {
                no_huge_pages(file_bytes)
            }
            _ => RegionError::os("memfd_create")(errno),
        })?;
        let len = libc::off_t::try_from(file_bytes)
            .map_err(|_| RegionError::Geometry("larger than a file can be".into()))?;
        nix::unistd::ftruncate(&fd, len).map_err(RegionError::os("ftruncate"))?;
        let mapping = Mapping::new(&fd, file_bytes, populate).map_err(|source| {
            match (pages, source.raw_os_error()) {
                (PageKind::Huge2M, Some(libc::ENOMEM)) => no_huge_pages(file_bytes),
                _ => RegionError::Os { what: "mmap", source },
            }
        })?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(RegionError::os("F_ADD_SEALS"))?;
        // Who is given a descriptor to read by must not open the file anew by it, to write.
        nix::sys::stat::fchmod(&fd, Mode::S_IRUSR).map_err(RegionError::os("fchmod"))?;
        Ok(Self { fd, mapping, geometry, pages, writable: true })
    }

    /// A descriptor of the same file that can be read and mapped to read, and nothing else. The file's
    /// mode lets nobody but its owner open it by that one, and the owner to read only; who could change
    /// the mode is its owner, whom the launcher of NFs keeps from it.
    ///
    /// # Errors
    /// Those of open(2), on /proc.
    pub fn read_only_fd(&self) -> io::Result<OwnedFd> {
        Ok(std::fs::File::open(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))?.into())
    }

    /// Maps a region that the manager made, from its descriptor and geometry.
    ///
    /// # Errors
    /// [`RegionError::WrongSize`] when the file does not hold that many buffers.
    pub fn from_fd(fd: OwnedFd, geometry: RegionGeometry) -> Result<Self, RegionError> {
        // The pages are there already; entering them now keeps page faults off the packet path.
        Self::map(fd, geometry, |fd, len_bytes| Ok((Mapping::new(fd, len_bytes, true)?, true)))
    }

    /// As [`from_fd`](Self::from_fd), for a region made by [`create_sparse`](Self::create_sparse).
    ///
    /// # Errors
    /// As there.
    pub fn from_fd_sparse(fd: OwnedFd, geometry: RegionGeometry) -> Result<Self, RegionError> {
        Self::map(fd, geometry, |fd, len_bytes| Ok((Mapping::new(fd, len_bytes, false)?, true)))
    }

    /// As [`from_fd`](Self::from_fd), to read only.
    ///
    /// # Errors
    /// As there.
    pub fn from_fd_read_only(fd: OwnedFd, geometry: RegionGeometry) -> Result<Self, RegionError> {
        Self::map(fd, geometry, |fd, len_bytes| Ok((Mapping::read_only(fd, len_bytes)?, false)))
    }

    /// Checks the file's size and maps it; `map` says also whether it is writable.
    fn map(
        fd: OwnedFd,
        geometry: RegionGeometry,
        map: impl Fn(&OwnedFd, usize) -> io::Result<(Mapping, bool)>,
    ) -> Result<Self, RegionError> {
        geometry.validate()?;
        let stat = nix::sys::stat::fstat(&fd).map_err(RegionError::os("fstat"))?;
        let block = usize::try_from(stat.st_blksize).unwrap_or(ORDINARY_PAGE_BYTES);
        let pages = if block >= HUGE_PAGE_BYTES { PageKind::Huge2M } else { PageKind::Ordinary };
        let expected = file_bytes(&geometry, pages);
        let found_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if found_bytes != expected as u64 {
            return Err(RegionError::WrongSize { found_bytes, expected_bytes: expected as u64 });
        }
        let (mapping, writable) =
            map(&fd, expected).map_err(|source| RegionError::Os { what: "mmap", source })?;
        Ok(Self { fd, mapping, geometry, pages, writable })
    }

    /// How the region is cut up.
    #[must_use]
    #[inline]
    pub fn geometry(&self) -> &RegionGeometry {
        &self.geometry
    }

    /// Which pages it lies on.
    #[must_use]
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// Whether this process may write the buffers.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The file, to hand to an NF or to a driver.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// First byte of the mapping.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// Bytes mapped, rounded up to whole pages.
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        self.mapping.len_bytes()
    }

    /// Address of byte `offset_bytes` of buffer `index`, or `None` outside the region.
    ///
    /// The pointer is valid to the end of the buffer while the region is mapped. Other processes
    /// may write the bytes at any time: read and write through the pointer, never make a reference. To
    /// write only where the region [is writable](Self::is_writable).
    #[must_use]
    #[inline]
    pub fn ptr(&self, index: BufferIndex, offset_bytes: u16) -> Option<NonNull<u8>> {
        if !self.geometry.contains(index, offset_bytes, 0) {
            return None;
        }
        let at = index as usize * self.geometry.stride_bytes as usize + usize::from(offset_bytes);
        // SAFETY: `contains` bounds `at` by buffers × stride, which the mapping covers.
        Some(unsafe { self.mapping.base().add(at) })
    }

    /// Copies bytes out of a buffer. Returns false, and copies nothing, when they are not inside it.
    #[must_use]
    pub fn read(&self, index: BufferIndex, offset_bytes: u16, out: &mut [u8]) -> bool {
        let Ok(len) = u16::try_from(out.len()) else { return false };
        if !self.geometry.contains(index, offset_bytes, len) {
            return false;
        }
        let Some(from) = self.ptr(index, offset_bytes) else { return false };
        // SAFETY: `contains` says the source range is inside the buffer; `out` is private memory,
        // so the two cannot overlap. A peer writing meanwhile can only change the values copied.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), out.as_mut_ptr(), out.len()) };
        true
    }

    /// Copies bytes of a buffer to the same place of the same buffer of another region. Returns false,
    /// and copies nothing, when the range is not inside both, or the other can be read only.
    #[inline]
    #[must_use]
    pub fn copy_to(
        &self,
        to: &Self,
        index: BufferIndex,
        offset_bytes: u16,
        len_bytes: u16,
    ) -> bool {
        let fits = self.geometry.contains(index, offset_bytes, len_bytes)
            && to.geometry.contains(index, offset_bytes, len_bytes);
        let (Some(from), Some(into)) = (self.ptr(index, offset_bytes), to.ptr(index, offset_bytes))
        else {
            return false;
        };
        if !fits || !to.writable {
            return false;
        }
        // SAFETY: both ranges lie inside a buffer by `contains`, of two mappings that differ, as `self`
        // and `to` are two regions or the copy is of a range onto itself, which `copy` allows. A peer
        // writing meanwhile can only change the values copied.
        unsafe { std::ptr::copy(from.as_ptr(), into.as_ptr(), usize::from(len_bytes)) };
        true
    }

    /// Copies bytes into a buffer. Returns false, and copies nothing, when they do not fit in it, or the
    /// region can be read only.
    #[must_use]
    pub fn write(&self, index: BufferIndex, offset_bytes: u16, bytes: &[u8]) -> bool {
        let Ok(len) = u16::try_from(bytes.len()) else { return false };
        if !self.writable || !self.geometry.contains(index, offset_bytes, len) {
            return false;
        }
        let Some(to) = self.ptr(index, offset_bytes) else { return false };
        // SAFETY: as in `read`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        true
    }
}

fn file_bytes(geometry: &RegionGeometry, pages: PageKind) -> usize {
    let page = match pages {
        PageKind::Huge2M => HUGE_PAGE_BYTES,
        PageKind::Ordinary => ORDINARY_PAGE_BYTES,
    };
    geometry.len_bytes().next_multiple_of(page)
}

fn no_huge_pages(file_bytes: usize) -> RegionError {
    RegionError::NoHugePages {
        needed: file_bytes / HUGE_PAGE_BYTES,
        free: meminfo("HugePages_Free:").unwrap_or(0),
    }
}

/// Says no before the kernel's out-of-memory killer would.
fn check_memory(pages: PageKind, file_bytes: usize) -> Result<(), RegionError> {
    match pages {
        PageKind::Huge2M => {
            let free = meminfo("HugePages_Free:").unwrap_or(0);
            let surplus_allowed = std::fs::read_to_string("/proc/sys/vm/nr_overcommit_hugepages")
                .ok()
                .and_then(|text| text.trim().parse::<usize>().ok())
                .unwrap_or(0);
            if free + surplus_allowed < file_bytes / HUGE_PAGE_BYTES {
                return Err(no_huge_pages(file_bytes));
            }
        }
        PageKind::Ordinary => {
            let available_kib = meminfo("MemAvailable:").unwrap_or(usize::MAX);
            if file_bytes / 1024 > available_kib {
                return Err(RegionError::TooLarge {
                    needed_mib: file_bytes >> 20,
                    available_mib: available_kib / 1024,
                });
            }
        }
    }
    Ok(())
}

/// A number of `/proc/meminfo`, in the file's own unit.
fn meminfo(key: &str) -> Option<usize> {
    std::fs::read_to_string("/proc/meminfo")
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix(key))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> RegionGeometry {
        RegionGeometry { buffers: 8, stride_bytes: 2048, headroom_bytes: 256 }
    }

    #[test]
    fn two_mappings_see_the_same_bytes_at_the_same_index() {
        let ours = Region::create(small(), HugePages::Off).unwrap();
        let theirs = Region::from_fd(ours.fd().try_clone_to_owned().unwrap(), small()).unwrap();
        assert!(ours.write(3, 256, b"millrace"));
        let mut seen = [0; 8];
        assert!(theirs.read(3, 256, &mut seen));
        assert_eq!(&seen, b"millrace");
        assert_ne!(ours.base(), theirs.base());
    }

    #[test]
    fn a_range_that_leaves_its_buffer_is_refused() {
        let region = Region::create(small(), HugePages::Off).unwrap();
        assert!(!region.write(0, 2047, b"ab"));
        assert!(!region.read(8, 0, &mut [0]));
        assert!(region.ptr(7, 2048).is_some(), "one past the end has an address, but no bytes");
        assert!(region.ptr(8, 0).is_none());
    }

    #[test]
    fn who_gets_a_descriptor_to_read_by_sees_the_bytes_and_cannot_map_them_to_write() {
        let ours = Region::create(small(), HugePages::Off).unwrap();
        assert!(ours.write(3, 256, b"millrace"));
        let theirs = Region::from_fd_read_only(ours.read_only_fd().unwrap(), small()).unwrap();
        let mut seen = [0; 8];
        assert!(theirs.read(3, 256, &mut seen) && &seen == b"millrace");
        assert!(!theirs.is_writable() && !theirs.write(3, 256, b"another!"));
        let error = Region::from_fd(ours.read_only_fd().unwrap(), small()).unwrap_err();
        assert!(
            matches!(&error, RegionError::Os { what: "mmap", source }
                if source.raw_os_error() == Some(libc::EACCES)),
            "{error}"
        );
    }

    #[test]
    fn bytes_are_copied_to_the_same_place_of_another_region_and_only_inside_a_buffer() {
        let (ours, theirs) = (
            Region::create(small(), HugePages::Off).unwrap(),
            Region::create_sparse(small()).unwrap(),
        );
        assert!(ours.write(3, 256, b"millrace"));
        assert!(ours.copy_to(&theirs, 3, 258, 4));
        let mut seen = [9; 8];
        assert!(theirs.read(3, 256, &mut seen));
        assert_eq!(&seen, b"\0\0llra\0\0");
        assert!(!ours.copy_to(&theirs, 8, 0, 1) && !ours.copy_to(&theirs, 0, 2047, 2));
        let reader = Region::from_fd_read_only(theirs.read_only_fd().unwrap(), small()).unwrap();
        assert!(!ours.copy_to(&reader, 3, 256, 8));
    }

    #[test]
    fn the_file_cannot_be_shrunk_or_grown() {
        let region = Region::create(small(), HugePages::Off).unwrap();
        assert_eq!(nix::unistd::ftruncate(region.fd(), 4096), Err(Errno::EPERM));
        assert_eq!(nix::unistd::ftruncate(region.fd(), 1 << 24), Err(Errno::EPERM));
    }

    #[test]
    fn a_region_larger_than_memory_is_refused_before_it_is_made() {
        let huge = RegionGeometry { buffers: u32::MAX, stride_bytes: 8192, headroom_bytes: 256 };
        let error = Region::create(huge, HugePages::Off).unwrap_err();
        assert!(matches!(error, RegionError::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains("lower pool.buffers"));
    }

    #[test]
    fn a_file_of_another_size_is_not_taken_for_a_region() {
        let region = Region::create(small(), HugePages::Off).unwrap();
        let more = RegionGeometry { buffers: 64, ..small() };
        let error = Region::from_fd(region.fd().try_clone_to_owned().unwrap(), more).unwrap_err();
        assert!(matches!(error, RegionError::WrongSize { .. }), "{error}");
    }

    #[test]
    fn impossible_geometries_are_named() {
        for (stride_bytes, headroom_bytes, word) in
            [(100, 0, "multiple of 64"), (1 << 17, 0, "larger than"), (256, 256, "headroom")]
        {
            let geometry = RegionGeometry { buffers: 1, stride_bytes, headroom_bytes };
            let text = geometry.validate().unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
    }
}
