//! The packet region as a UMEM: which buffer an address of the kernel's means, and who holds it.
//!
//! The whole region is registered on every socket, so an address is simply the byte's place in the
//! region. The kernel knows only *chunks* of 2,048 or 4,096 bytes; a buffer is one chunk or several
//! in a row, of which only the first is ever offered for receive.
#![forbid(unsafe_code)]

use std::sync::Arc;

use nflib::shm::{BufferIndex, Region};

use super::abi::XDP_PACKET_HEADROOM_BYTES;
use crate::pool::BufferPool;

/// How the region is cut into chunks, and the share of it that one queue may use.
#[derive(Clone, Debug)]
pub struct Umem {
    region: Arc<Region>,
    /// First buffer of the queue's pool.
    first: BufferIndex,
    /// Buffers in the pool.
    count: u32,
    stride_bytes: u32,
    chunk_shift: u32,
    chunks_per_buffer: u32,
    headroom_bytes: u32,
}

impl Umem {
    /// The UMEM over a pool's region.
    ///
    /// # Errors
    /// The sentence to tell the user, when the buffer size cannot be cut into chunks.
    pub fn new(pool: &BufferPool) -> Result<Self, String> {
        let geometry = pool.region().geometry();
        let stride_bytes = geometry.stride_bytes;
        let chunk_shift = match stride_bytes {
            2048 => 11,
            bytes if bytes.is_multiple_of(4096) => 12,
            found => {
                return Err(format!(
                    "af_xdp needs pool.buffer_bytes of 2048 or a multiple of 4096, found {found}"
                ));
            }
        };
        let chunk_bytes = 1u32 << chunk_shift;
        // XDP keeps 256 bytes of its own in front of the data; they serve as our headroom too.
        let headroom_bytes =
            u32::from(geometry.headroom_bytes).saturating_sub(XDP_PACKET_HEADROOM_BYTES);
        let usable = chunk_bytes.saturating_sub(XDP_PACKET_HEADROOM_BYTES + headroom_bytes);
        if usable < 1024 {
            return Err(format!(
                "pool.headroom_bytes of {} leaves {usable} bytes for a frame in a chunk of \
                 {chunk_bytes}; use {} at most",
                geometry.headroom_bytes,
                chunk_bytes - 1024
            ));
        }
        Ok(Self {
            region: Arc::clone(pool.region()),
            first: pool.first(),
            count: pool.count(),
            stride_bytes,
            chunk_shift,
            chunks_per_buffer: stride_bytes >> chunk_shift,
            headroom_bytes,
        })
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Bytes of a chunk, 2048 or 4096.
    pub fn chunk_bytes(&self) -> u32 {
        1 << self.chunk_shift
    }

    /// Bytes from one buffer to the next.
    pub fn stride_bytes(&self) -> u32 {
        self.stride_bytes
    }

    /// What to register as headroom, in addition to XDP's own 256 bytes.
    pub fn headroom_bytes(&self) -> u32 {
        self.headroom_bytes
    }

    /// The longest piece of a frame that one chunk takes in receive.
    pub fn receive_bytes(&self) -> u32 {
        self.chunk_bytes() - XDP_PACKET_HEADROOM_BYTES - self.headroom_bytes
    }

    /// The longest frame that one buffer takes in receive.
    pub fn max_frame_bytes(&self) -> u32 {
        self.stride_bytes - XDP_PACKET_HEADROOM_BYTES - self.headroom_bytes
    }

    /// True when buffers span chunks, so that frames may too.
    pub fn multi_chunk(&self) -> bool {
        self.chunks_per_buffer > 1
    }

    /// Buffers in the queue's share.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The number, within the share, of a buffer; `None` for one of another share.
    #[inline]
    pub fn slot(&self, index: BufferIndex) -> Option<usize> {
        let slot = index.wrapping_sub(self.first);
        (slot < self.count).then_some(slot as usize)
    }

    /// The buffer at a slot of the share.
    pub fn buffer(&self, slot: usize) -> BufferIndex {
        self.first + slot as u32
    }

    /// The address of byte `offset_bytes` of a buffer.
    #[inline]
    pub fn address(&self, index: BufferIndex, offset_bytes: u32) -> u64 {
        u64::from(index) * u64::from(self.stride_bytes) + u64::from(offset_bytes)
    }

    /// The buffer and the byte in it that an address of the kernel's means; `None` outside the
    /// region.
    #[inline]
    pub fn locate(&self, address: u64) -> Option<(BufferIndex, u32)> {
        let chunk = u32::try_from(address >> self.chunk_shift).ok()?;
        let index = if self.multi_chunk() { chunk / self.chunks_per_buffer } else { chunk };
        if index >= self.region.geometry().buffers {
            return None;
        }
        Some((index, (address - self.address(index, 0)) as u32))
    }
}

/// Which buffers of its pool a queue has posted, in private memory: what a ring says is checked
/// against this before it is believed, and at close it tells what to give back.
#[derive(Debug)]
pub struct Holdings {
    /// One byte a buffer: [`FREE`], [`RECEIVE`], or how many fragments are still being sent.
    state: Vec<u8>,
    receive: u32,
    transmit: u32,
}

const FREE: u8 = 0;
const RECEIVE: u8 = u8::MAX;

impl Holdings {
    /// Nothing posted.
    pub fn new(count: u32) -> Self {
        Self { state: vec![FREE; count as usize], receive: 0, transmit: 0 }
    }

    /// Buffers posted for receive.
    pub fn receive(&self) -> u32 {
        self.receive
    }

    /// Buffers being sent.
    pub fn transmit(&self) -> u32 {
        self.transmit
    }

    /// Slots of all that is posted, and whether for receive.
    pub fn posted(&self) -> impl Iterator<Item = (usize, bool)> + '_ {
        let posted = self.state.iter().enumerate().filter(|(_, state)| **state != FREE);
        posted.map(|(slot, state)| (slot, *state == RECEIVE))
    }

    /// True when the buffer is not posted.
    pub fn is_free(&self, slot: usize) -> bool {
        self.state[slot] == FREE
    }

    /// Notes that a buffer is offered for receive.
    #[inline]
    pub fn post_receive(&mut self, slot: usize) {
        debug_assert_eq!(self.state[slot], FREE);
        self.state[slot] = RECEIVE;
        self.receive += 1;
    }

    /// A filled buffer came back. False when it was never offered: the ring lies.
    #[inline]
    pub fn take_received(&mut self, slot: usize) -> bool {
        if self.state[slot] != RECEIVE {
            return false;
        }
        self.state[slot] = FREE;
        self.receive -= 1;
        true
    }

    /// Notes that a buffer goes out in `fragments` descriptors. False when it is posted already.
    #[inline]
    pub fn post_transmit(&mut self, slot: usize, fragments: usize) -> bool {
        if self.state[slot] != FREE || !(1..usize::from(RECEIVE)).contains(&fragments) {
            return false;
        }
        self.state[slot] = fragments as u8;
        self.transmit += 1;
        true
    }

    /// One descriptor of a buffer was sent: `Some(true)` when it was the last, `None` when the
    /// buffer was not being sent at all: the ring lies.
    #[inline]
    pub fn complete(&mut self, slot: usize) -> Option<bool> {
        match self.state[slot] {
            FREE | RECEIVE => None,
            left => {
                self.state[slot] = left - 1;
                if left == 1 {
                    self.transmit -= 1;
                }
                Some(left == 1)
            }
        }
    }

    /// Forgets everything posted, and returns its slots.
    pub fn take_all(&mut self) -> Vec<usize> {
        let held = (0..self.state.len()).filter(|&slot| self.state[slot] != FREE).collect();
        self.state.fill(FREE);
        (self.receive, self.transmit) = (0, 0);
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::shm::{HugePages, RegionGeometry};

    fn umem(stride_bytes: u32, headroom_bytes: u16) -> Result<Umem, String> {
        let geometry = RegionGeometry { buffers: 16, stride_bytes, headroom_bytes };
        let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
        Umem::new(&BufferPool::new(region, 4, 8))
    }

    #[test]
    fn every_address_of_a_buffer_leads_back_to_it() {
        for stride in [2048, 4096, 12288] {
            let umem = umem(stride, 256).unwrap();
            for index in 0..16 {
                for offset in [0, 256, stride / 2, stride - 1] {
                    assert_eq!(umem.locate(umem.address(index, offset)), Some((index, offset)));
                }
            }
            for outside in [u64::from(stride) * 16, u64::MAX, 1 << 40] {
                assert_eq!(umem.locate(outside), None);
            }
        }
    }

    #[test]
    fn a_buffer_of_another_share_has_no_slot() {
        let umem = umem(2048, 256).unwrap();
        assert_eq!(umem.slot(4), Some(0));
        assert_eq!(umem.slot(11), Some(7));
        assert_eq!((umem.slot(3), umem.slot(12)), (None, None));
    }

    #[test]
    fn buffer_sizes_that_cannot_be_chunks_are_refused() {
        let text = umem(2368, 256).unwrap_err();
        assert!(text.contains("2048 or a multiple of 4096, found 2368"), "{text}");
        assert!(umem(2048, 1600).unwrap_err().contains("headroom"));
        assert_eq!(umem(4096, 320).unwrap().headroom_bytes(), 64);
        assert_eq!(umem(12288, 256).unwrap().max_frame_bytes(), 12_032);
    }

    #[test]
    fn a_buffer_is_sent_when_its_last_fragment_is() {
        let mut held = Holdings::new(4);
        assert!(held.post_transmit(2, 3));
        assert!(!held.post_transmit(2, 1), "it is posted already");
        assert_eq!(held.complete(2), Some(false));
        assert_eq!(held.complete(2), Some(false));
        assert_eq!(held.complete(2), Some(true));
        assert_eq!(held.complete(2), None, "completed once too often");
        assert_eq!(held.transmit(), 0);
    }

    #[test]
    fn only_what_was_offered_can_be_received_and_only_once() {
        let mut held = Holdings::new(4);
        held.post_receive(1);
        assert!(!held.take_received(0));
        assert!(held.take_received(1));
        assert!(!held.take_received(1));
        held.post_receive(3);
        assert!(held.post_transmit(0, 2));
        assert_eq!(held.take_all(), [0, 3]);
        assert_eq!((held.receive(), held.transmit()), (0, 0));
    }
}
