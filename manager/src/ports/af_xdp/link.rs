//! The state of the link, shared by a port and its queues.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::netlink::{Link, LinkEvent, Netlink};
use crate::ports::LinkState;

const UP: u8 = 0;
const DOWN: u8 = 1;
const GONE: u8 = 2;

/// What the kernel last said about an interface. A socket on a deleted device never becomes
/// readable and says nothing by itself, so the link-change messages are listened to.
#[derive(Debug)]
pub struct LinkStatus {
    ifindex: u32,
    state: AtomicU8,
    mtu_bytes: AtomicU32,
    watch: Mutex<Netlink>,
}

impl LinkStatus {
    /// Starts watching; then looks once, so that no change between the two is missed.
    pub fn watch(ifindex: u32) -> io::Result<Self> {
        let watch = Mutex::new(Netlink::watching_links()?);
        let status =
            Self { ifindex, state: AtomicU8::new(DOWN), mtu_bytes: AtomicU32::new(0), watch };
        status.look()?;
        Ok(status)
    }

    /// Asks for the interface as it is now. [`poll`](Self::poll) does it when messages were lost.
    fn look(&self) -> io::Result<()> {
        match Netlink::open()?.links()?.iter().find(|link| link.index == self.ifindex) {
            Some(link) => self.note(link),
            None => self.mark_gone(),
        }
        Ok(())
    }

    fn note(&self, link: &Link) {
        let up = link.admin_up && link.carrier;
        self.mtu_bytes.store(link.mtu_bytes, Ordering::Relaxed);
        // Gone is for ever: the index may have been given to another device meanwhile.
        if self.state.load(Ordering::Relaxed) != GONE {
            self.state.store(if up { UP } else { DOWN }, Ordering::Relaxed);
        }
    }

    /// The device does not exist any more.
    pub fn mark_gone(&self) {
        self.state.store(GONE, Ordering::Relaxed);
    }

    /// Takes in what has happened since the last call. Never blocks: when another thread is at it,
    /// this one leaves it to that.
    pub fn poll(&self) {
        let Ok(mut watch) = self.watch.try_lock() else { return };
        let mut lost = false;
        watch.events(|event| match event {
            LinkEvent::Changed(link) if link.index == self.ifindex => self.note(&link),
            LinkEvent::Removed(index) if index == self.ifindex => self.mark_gone(),
            LinkEvent::Lost => lost = true,
            _ => {}
        });
        if lost {
            let _ = self.look();
        }
    }

    /// State as last heard.
    #[inline]
    pub fn state(&self) -> LinkState {
        match self.state.load(Ordering::Relaxed) {
            UP => LinkState::Up,
            DOWN => LinkState::Down,
            _ => LinkState::Gone,
        }
    }

    /// MTU as last heard, bytes.
    #[inline]
    pub fn mtu_bytes(&self) -> u32 {
        self.mtu_bytes.load(Ordering::Relaxed)
    }
}
