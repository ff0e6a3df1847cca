//! The XDP program that hands frames to our sockets: six instructions, loaded by bpf(2) itself and
//! attached by a BPF link, which the kernel detaches when the last descriptor is closed. So nothing
//! stays on the interface after the process, however it ended.
//!
//! A frame on a queue that has no socket is **dropped**, not passed to the host: an interface given
//! to the data path must never let the host's own stack route or answer a frame a second time.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::abi::*;
use super::sys;

/// Where on the receive path the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// After the kernel has made an skb; any interface can.
    Generic,
}

impl AttachMode {
    /// The word in options and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// The map from queue to socket, and the program that looks it up.
#[derive(Debug)]
pub struct Redirect {
    map: OwnedFd,
    program: OwnedFd,
}

/// An attached program; dropping it detaches.
#[derive(Debug)]
pub struct XdpLink {
    _fd: OwnedFd,
}

/// An instruction of `struct bpf_insn`: 8 bytes.
fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> [u32; 2] {
    let registers = if cfg!(target_endian = "little") { dst | src << 4 } else { dst << 4 | src };
    let head = [code, registers, offset.to_ne_bytes()[0], offset.to_ne_bytes()[1]];
    [u32::from_ne_bytes(head), immediate as u32]
}

/// ```text
/// r2 = ctx->rx_queue_index
/// r1 = map                      (two slots: a 64-bit immediate, BPF_PSEUDO_MAP_FD)
/// r3 = XDP_DROP                 what bpf_redirect_map returns when the queue has no socket
/// call bpf_redirect_map
/// exit
/// ```
fn redirect_program(map: BorrowedFd<'_>) -> [[u32; 2]; 6] {
    const RX_QUEUE_INDEX_OFFSET: i16 = 16;
    const BPF_FUNC_REDIRECT_MAP: i32 = 51;
    [
        instruction(0x61, 2, 1, RX_QUEUE_INDEX_OFFSET, 0),
        instruction(0x18, 1, 1, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(0xb7, 3, 0, 0, XDP_ACTION_DROP),
        instruction(0x85, 0, 0, 0, BPF_FUNC_REDIRECT_MAP),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

impl Redirect {
    /// Makes the map for `queues` queues and loads the program; `fragments` lets it see frames of
    /// several chunks.
    pub fn load(queues: u32, fragments: bool) -> io::Result<Self> {
        // map_type, key_size, value_size, max_entries
        let attributes = [BPF_MAP_TYPE_XSKMAP, 4, 4, queues];
        // SAFETY: the attributes hold no address.
        let map = unsafe { sys::bpf_fd(BPF_MAP_CREATE, &attributes) }?;
        let program = Self::load_program(map.as_fd(), fragments)?;
        Ok(Self { map, program })
    }

    fn load_program(map: BorrowedFd<'_>, fragments: bool) -> io::Result<OwnedFd> {
        let code = redirect_program(map);
        let license = c"BSD";
        let [code_low, code_high] = sys::words(code.as_ptr() as u64);
        let [license_low, license_high] = sys::words(license.as_ptr() as u64);
        let flags = if fragments { BPF_F_XDP_HAS_FRAGS } else { 0 };
        let name = *b"millrace_xsk\0\0\0\0";
        let name =
            |at: usize| u32::from_ne_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        let attributes = [
            BPF_PROG_TYPE_XDP,
            code.len() as u32,
            code_low,
            code_high,
            license_low,
            license_high,
            0, // log_level, log_size, log_buf, kern_version
            0,
            0,
            0,
            0,
            flags,
            name(0),
            name(4),
            name(8),
            name(12),
            0, // prog_ifindex
            BPF_ATTACH_XDP,
        ];
        // SAFETY: the two addresses lead to `code`, of the length given, and to a C string; both
        // outlive the call.
        unsafe { sys::bpf_fd(BPF_PROG_LOAD, &attributes) }
    }

    /// Frames of `queue` go to `socket` from now on. The kernel takes the entry out by itself when
    /// the socket is closed.
    pub fn set_socket(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let key = queue;
        let value = socket.as_raw_fd();
        let [key_low, key_high] = sys::words(std::ptr::from_ref(&key) as u64);
        let [value_low, value_high] = sys::words(std::ptr::from_ref(&value) as u64);
        // map_fd, padding, key, value, flags
        let attributes =
            [self.map.as_raw_fd() as u32, 0, key_low, key_high, value_low, value_high, 0, 0];
        // SAFETY: the addresses lead to a key and a value of 4 bytes each, as the map was made for.
        unsafe { sys::bpf(BPF_MAP_UPDATE_ELEM, &attributes) }.map(drop)
    }

    /// Attaches the program to an interface.
    pub fn attach(&self, ifindex: u32, mode: AttachMode) -> io::Result<XdpLink> {
        let flags = match mode {
            AttachMode::Native => XDP_FLAGS_DRV_MODE,
            AttachMode::Generic => XDP_FLAGS_SKB_MODE,
        };
        // prog_fd, target_ifindex, attach_type, flags
        let attributes = [self.program.as_raw_fd() as u32, ifindex, BPF_ATTACH_XDP, flags];
        // SAFETY: the attributes hold no address.
        let fd = unsafe { sys::bpf_fd(BPF_LINK_CREATE, &attributes) }?;
        Ok(XdpLink { _fd: fd })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_encoded_as_the_bpf_instruction_set_says() {
        let [low, high] = instruction(0x61, 2, 1, 16, 0);
        assert_eq!(
            low.to_ne_bytes(),
            [0x61, if cfg!(target_endian = "little") { 0x12 } else { 0x21 }, 16, 0]
        );
        assert_eq!(high, 0);
        assert_eq!(instruction(0xb7, 3, 0, 0, -1)[1], u32::MAX);
    }
}
