//! Frames of several chunks.
//!
//! The kernel gives a long frame as several descriptors, each in a buffer of its own. NFs and every
//! other back end know one frame as one range of one buffer, so on receive the continuation is
//! **gathered**: copied behind the first piece, whose buffer has room for it. This is the only place
//! where the data path copies payload, and only what exceeds the first chunk: about 5,200 bytes of a
//! 9,000-byte frame, measured as 0.1 µs a frame in cache and 0.45 µs out of it. On transmit nothing
//! is copied: the frame is described by one descriptor a chunk.
#![allow(unsafe_code)]

use nflib::shm::{BufferIndex, Region};

use super::abi::{MAX_FRAGMENTS, XDP_PKT_CONTD, XdpDesc};
use super::umem::Umem;

/// A piece of a frame, its range checked against its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The buffer.
    pub buffer: BufferIndex,
    /// Where the bytes start in it.
    pub offset_bytes: u32,
    /// How many.
    pub len_bytes: u32,
}

/// What became of a frame when its last piece was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// More pieces follow.
    Incomplete,
    /// The whole frame, in the first piece's buffer.
    Frame(Piece),
    /// It did not fit; the first piece, whose buffer is to be freed, and the frame's length.
    TooLarge(Piece, u32),
}

/// Puts pieces together.
#[derive(Debug, Default)]
pub struct Gather {
    /// The frame so far.
    frame: Option<Piece>,
    /// The length it would have.
    total_bytes: u32,
    overflowed: bool,
}

impl Gather {
    /// True between a first piece and the last.
    #[inline]
    pub fn in_progress(&self) -> bool {
        self.frame.is_some()
    }

    /// The buffer of an unfinished frame.
    pub fn first_buffer(&self) -> Option<BufferIndex> {
        self.frame.map(|frame| frame.buffer)
    }

    /// Gives the first buffer of an unfinished frame back, at close.
    pub fn abandon(&mut self) -> Option<BufferIndex> {
        self.frame.take().map(|frame| frame.buffer)
    }

    /// Adds the next piece; `last` ends the frame. A piece that is not the first is copied, and its
    /// buffer appended to `freed`.
    pub fn add(
        &mut self,
        region: &Region,
        piece: Piece,
        last: bool,
        freed: &mut Vec<BufferIndex>,
    ) -> Gathered {
        match &mut self.frame {
            None => {
                *self = Self { frame: Some(piece), total_bytes: 0, overflowed: false };
            }
            Some(frame) => {
                if !self.overflowed && append(region, *frame, piece) {
                    frame.len_bytes += piece.len_bytes;
                } else {
                    self.overflowed = true;
                }
                freed.push(piece.buffer);
            }
        }
        self.total_bytes = self.total_bytes.saturating_add(piece.len_bytes);
        match self.frame {
            Some(frame) if last => {
                self.frame = None;
                if self.overflowed {
                    Gathered::TooLarge(frame, self.total_bytes)
                } else {
                    Gathered::Frame(frame)
                }
            }
            _ => Gathered::Incomplete,
        }
    }
}

/// Copies `piece` behind `frame`; false when it does not fit in the frame's buffer.
fn append(region: &Region, frame: Piece, piece: Piece) -> bool {
    let stride = region.geometry().stride_bytes;
    let end = frame.offset_bytes + frame.len_bytes;
    if piece.buffer == frame.buffer
        || end + piece.len_bytes > stride
        || piece.offset_bytes + piece.len_bytes > stride
        || end == stride
    {
        return false;
    }
    let (Ok(to_offset), Ok(from_offset)) = (u16::try_from(end), u16::try_from(piece.offset_bytes))
    else {
        return false;
    };
    let (Some(to), Some(from)) =
        (region.ptr(frame.buffer, to_offset), region.ptr(piece.buffer, from_offset))
    else {
        return false;
    };
    // SAFETY: both ranges were just checked to end within their buffers, which differ.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), piece.len_bytes as usize);
    }
    true
}

/// The descriptors that describe a frame in place, one a chunk; at most [`MAX_FRAGMENTS`].
#[derive(Debug)]
pub struct Scatter {
    address: u64,
    left_bytes: u32,
    chunk_bytes: u32,
}

impl Scatter {
    /// Describes `piece`.
    #[inline]
    pub fn new(umem: &Umem, piece: Piece) -> Self {
        Self {
            address: umem.address(piece.buffer, piece.offset_bytes),
            left_bytes: piece.len_bytes,
            chunk_bytes: umem.chunk_bytes(),
        }
    }

    /// How many descriptors it takes, or `None` when the kernel would not take that many.
    #[inline]
    pub fn pieces(&self) -> Option<usize> {
        let into_chunk = (self.address & u64::from(self.chunk_bytes - 1)) as u32;
        let count = (into_chunk + self.left_bytes).div_ceil(self.chunk_bytes) as usize;
        (1..=MAX_FRAGMENTS).contains(&count).then_some(count)
    }
}

impl Iterator for Scatter {
    type Item = XdpDesc;

    #[inline]
    fn next(&mut self) -> Option<XdpDesc> {
        if self.left_bytes == 0 {
            return None;
        }
        let into_chunk = (self.address & u64::from(self.chunk_bytes - 1)) as u32;
        let len = self.left_bytes.min(self.chunk_bytes - into_chunk);
        let addr = self.address;
        self.address += u64::from(len);
        self.left_bytes -= len;
        // Built from nothing: a received descriptor's options must never leak into a sent one.
        let options = if self.left_bytes > 0 { XDP_PKT_CONTD } else { 0 };
        Some(XdpDesc { addr, len, options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::BufferPool;
    use nflib::shm::{HugePages, RegionGeometry};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn region() -> Arc<Region> {
        let geometry = RegionGeometry { buffers: 8, stride_bytes: 12288, headroom_bytes: 256 };
        Arc::new(Region::create(geometry, HugePages::Off).unwrap())
    }

    fn piece(buffer: BufferIndex, offset_bytes: u32, len_bytes: u32) -> Piece {
        Piece { buffer, offset_bytes, len_bytes }
    }

    #[test]
    fn pieces_end_up_behind_each_other_in_the_first_buffer() {
        let region = region();
        let bytes: Vec<u8> = (0..9000u32).map(|n| (n % 251) as u8).collect();
        let cuts = [0..3840, 3840..7680, 7680..9000];
        for (buffer, cut) in cuts.iter().enumerate() {
            assert!(region.write(buffer as u32, 256, &bytes[cut.clone()]));
        }
        let (mut gather, mut freed) = (Gather::default(), Vec::new());
        let first = gather.add(&region, piece(0, 256, 3840), false, &mut freed);
        assert_eq!(first, Gathered::Incomplete);
        assert!(gather.in_progress());
        gather.add(&region, piece(1, 256, 3840), false, &mut freed);
        let whole = gather.add(&region, piece(2, 256, 1320), true, &mut freed);
        assert_eq!(whole, Gathered::Frame(piece(0, 256, 9000)));
        assert_eq!(freed, [1, 2]);
        let mut seen = vec![0; 9000];
        assert!(region.read(0, 256, &mut seen));
        assert!(seen == bytes);
    }

    #[test]
    fn a_frame_longer_than_its_buffer_is_told_with_its_length() {
        let region = region();
        let (mut gather, mut freed) = (Gather::default(), Vec::new());
        for buffer in 0..4 {
            gather.add(&region, piece(buffer, 256, 3840), false, &mut freed);
        }
        let end = gather.add(&region, piece(4, 256, 100), true, &mut freed);
        assert_eq!(end, Gathered::TooLarge(piece(0, 256, 3 * 3840), 4 * 3840 + 100));
        assert_eq!(freed, [1, 2, 3, 4]);
        assert!(!gather.in_progress());
    }

    proptest! {
        #[test]
        fn a_scattered_frame_covers_its_bytes_once_and_no_piece_crosses_a_chunk(
            offset in 0u32..12288, len in 1u32..12288,
        ) {
            prop_assume!(offset + len <= 12288);
            let umem = Umem::new(&BufferPool::new(region(), 0, 8)).unwrap();
            let scatter = Scatter::new(&umem, piece(5, offset, len));
            let count = scatter.pieces().unwrap();
            let pieces: Vec<XdpDesc> = scatter.collect();
            prop_assert_eq!(pieces.len(), count);
            let mut at = umem.address(5, offset);
            for (n, piece) in pieces.iter().enumerate() {
                prop_assert_eq!(piece.addr, at);
                prop_assert_eq!(piece.addr >> 12, (piece.addr + u64::from(piece.len) - 1) >> 12);
                prop_assert_eq!(piece.options == XDP_PKT_CONTD, n + 1 < count);
                at += u64::from(piece.len);
            }
            prop_assert_eq!(at, umem.address(5, offset) + u64::from(len));
        }
    }
}
