//! A lab: what a back end needs around it so that the checks can see both its sides.

use std::sync::Arc;

use millrace::pool::BufferPool;
use millrace::ports::OpenPort;
use nflib::shm::{Region, RegionGeometry};

/// IEEE 802's EtherType for local experiments: no other traffic on the machine uses it.
pub const TEST_ETHER_TYPE: [u8; 2] = [0x88, 0xb5];

/// When a lab can see what its port has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShowsSent {
    /// Shortly after.
    Soon,
    /// Once the port is closed.
    AtClose,
    /// Not at all.
    Never,
}

/// What a lab can show of its port.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// The port can receive at all.
    pub receives: bool,
    /// When the frames that were sent can be seen.
    pub shows_sent: ShowsSent,
    /// The source waits while no buffer is free; else packets are lost meanwhile.
    pub waits_for_buffers: bool,
    /// Longest frame to try, bytes.
    pub max_frame_bytes: usize,
    /// A length that arrives and fits no buffer, bytes, if such frames can be made to arrive.
    pub oversize_rx_bytes: Option<usize>,
    /// A length that fits a buffer but that the port cannot send, bytes, if there is one.
    pub oversize_tx_bytes: Option<usize>,
}

impl Abilities {
    /// Everything, with frames of an ordinary Ethernet.
    pub const FULL: Self = Self {
        receives: true,
        shows_sent: ShowsSent::Soon,
        waits_for_buffers: true,
        max_frame_bytes: 1514,
        oversize_rx_bytes: None,
        oversize_tx_bytes: None,
    };
}

/// One back end in its surroundings. A check gets a fresh one; dropping it cleans up.
pub trait Lab: Sized {
    /// Sets the surroundings up.
    ///
    /// # Errors
    /// What is missing here, when the lab cannot exist on this machine.
    fn new() -> Result<Self, String>;

    /// What can be seen and done here.
    fn abilities(&self) -> Abilities;

    /// The region to work with.
    fn geometry(&self) -> RegionGeometry {
        RegionGeometry { buffers: 1024, stride_bytes: 2048, headroom_bytes: 256 }
    }

    /// The worker's pool: all of the region.
    fn pool(&self, region: &Arc<Region>) -> BufferPool {
        BufferPool::new(Arc::clone(region), 0, region.geometry().buffers)
    }

    /// What will arrive when `wanted` is asked for.
    fn arrivals(&self, wanted: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        wanted
    }

    /// Opens the port, at which `arrivals` are to arrive: by themselves, or by [`feed`](Self::feed).
    fn open(&mut self, pools: &mut [BufferPool], arrivals: &[Vec<u8>]) -> OpenPort;

    /// Puts up to `most` of the arrivals on the wire, where that is somebody's work; returns how
    /// many.
    fn feed(&mut self, _most: usize) -> usize {
        0
    }

    /// Every frame that the port has sent so far.
    fn sent(&mut self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Whether a received frame is none of ours.
    fn is_noise(&self, _frame: &[u8]) -> bool {
        false
    }
}

/// Test frame number `id`: its number, then bytes that differ from frame to frame and place to
/// place.
pub fn test_frame(id: u32, len_bytes: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 0x0a, 0x02, 0, 0, 0, 0, 0x0b];
    frame.extend(TEST_ETHER_TYPE);
    frame.extend(id.to_be_bytes());
    let filler = (frame.len()..len_bytes).map(|at| (id as usize * 31 + at * 7) as u8);
    frame.extend(filler);
    frame
}

/// `count` test frames of lengths from 60 bytes to `max_bytes`, both of which occur.
pub fn test_frames(count: usize, max_bytes: usize) -> Vec<Vec<u8>> {
    let spread = max_bytes - 60 + 1;
    let len = |i: usize| if i == 1 { max_bytes } else { 60 + i * 97 % spread };
    (0..count).map(|i| test_frame(i as u32, len(i))).collect()
}
