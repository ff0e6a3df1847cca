//! Small XDP programs, loaded by bpf(2) itself: no compiler, no ELF file, no library.
//!
//! [`Source`] has the kernel make frames and send them out of an interface without leaving it
//! (`BPF_PROG_TEST_RUN` with live frames, Linux 5.18): several millions a second, where a packet
//! socket reaches 0.8. [`Drain`] counts nothing and drops all that an interface receives before the
//! kernel's stack sees it; the interface's own counters tell how much that was.
//!
//! All `unsafe` of the labs' XDP is here: bpf(2) takes addresses in a union of C structures.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

// linux/bpf.h: `enum bpf_cmd`, `enum bpf_prog_type`, `enum bpf_attach_type`, `enum bpf_func_id`,
// `enum xdp_action`, flags.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_ATTACH_XDP: u32 = 37;
const BPF_FUNC_REDIRECT: i32 = 23;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
const XDP_DROP: i32 = 1;
/// linux/if_link.h: the program runs in the driver.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Frames a call has the kernel make: a call takes some 50 to 100 ms, and only between two is the clock
/// looked at.
const PKTS_PER_CALL: u32 = 1 << 18;
/// Calls at a time. At its end a call waits for some 30 ms until its pool of pages can be given back (an
/// RCU grace period); another one's frames fill the pause, in which forwarders would drain their rings
/// and wait.
const THREADS: usize = 2;
/// Frames the kernel makes before it lets the receiving side work; its own default and most.
const KERNEL_BURST_PKTS: u32 = 64;

/// Longest frame: what the kernel leaves of a page for it.
pub const MAX_FRAME_BYTES: u16 = 3520;

/// An instruction of `struct bpf_insn`: 8 bytes.
fn instruction(code: u8, dst: u8, immediate: i32) -> [u32; 2] {
    let registers = if cfg!(target_endian = "little") { dst } else { dst << 4 };
    [u32::from_ne_bytes([code, registers, 0, 0]), immediate.cast_unsigned()]
}

/// `dst = immediate`
fn set(dst: u8, immediate: i32) -> [u32; 2] {
    instruction(0xb7, dst, immediate)
}

fn call(function: i32) -> [u32; 2] {
    instruction(0x85, 0, function)
}

fn exit() -> [u32; 2] {
    instruction(0x95, 0, 0)
}

/// `return bpf_redirect(ifindex, 0)`
fn redirect_to(ifindex: u32) -> [[u32; 2]; 4] {
    [set(1, ifindex.cast_signed()), set(2, 0), call(BPF_FUNC_REDIRECT), exit()]
}

/// `return XDP_DROP`
fn drop_all() -> [[u32; 2]; 2] {
    [set(0, XDP_DROP), exit()]
}

/// An address as the two words of a 64-bit attribute, in this machine's order.
fn words(address: usize) -> [u32; 2] {
    let [low, high] = [address as u32, (address as u64 >> 32) as u32];
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}

/// `bpf(2)` with the head of its union as 32-bit words, which the kernel may write back to.
///
/// # Safety
/// Every address among the words leads to memory of the length that the command expects.
unsafe fn bpf(command: libc::c_long, attributes: &mut [u32]) -> io::Result<libc::c_long> {
    // SAFETY: pointer and length describe `attributes`; the caller vouches for what it points to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            std::mem::size_of_val(attributes),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A descriptor that `bpf` has just returned.
fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn load(code: &[[u32; 2]]) -> io::Result<OwnedFd> {
    let license = c"BSD";
    let [code_low, code_high] = words(code.as_ptr() as usize);
    let [license_low, license_high] = words(license.as_ptr() as usize);
    let mut attributes =
        [BPF_PROG_TYPE_XDP, code.len() as u32, code_low, code_high, license_low, license_high];
    // SAFETY: the two addresses lead to `code`, of the length given, and to a C string; both outlive
    // the call.
    unsafe { bpf(BPF_PROG_LOAD, &mut attributes) }.map(owned)
}

/// What a source made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Made {
    /// Frames handed to the interface, whether it had room for them or not.
    pub pkts: u64,
    /// Time it took.
    pub time: Duration,
}

/// Copies of one frame, made in the kernel and sent out of an interface.
#[derive(Debug)]
pub struct Source {
    program: OwnedFd,
    frame: Vec<u8>,
}

impl Source {
    /// A source of `frame`s for the interface of this index, in this thread's network namespace.
    ///
    /// # Errors
    /// The system call's: no CAP_BPF and CAP_NET_ADMIN, most often.
    pub fn new(ifindex: u32, frame: Vec<u8>) -> io::Result<Self> {
        if frame.len() > usize::from(MAX_FRAME_BYTES) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        Ok(Self { program: load(&redirect_to(ifindex))?, frame })
    }

    /// Makes frames until `time` is over or `stop` says so.
    ///
    /// # Errors
    /// The system call's; `InvalidInput` where the kernel cannot (before Linux 5.18).
    pub fn run(&self, time: Duration, stop: impl Fn() -> bool + Sync) -> io::Result<Made> {
        let started = Instant::now();
        let goes_on = || started.elapsed() < time && !stop();
        let made: io::Result<u64> = std::thread::scope(|scope| {
            let threads = [(); THREADS].map(|()| scope.spawn(|| self.make_while(goes_on)));
            threads
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .sum()
        });
        Ok(Made { pkts: made?, time: started.elapsed() })
    }

    /// One thread's calls; returns the frames made.
    fn make_while(&self, goes_on: impl Fn() -> bool) -> io::Result<u64> {
        let mut pkts = 0;
        while goes_on() {
            match self.call() {
                Ok(()) => pkts += u64::from(PKTS_PER_CALL),
                // A signal; how many it was until then is not told.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pkts)
    }

    fn call(&self) -> io::Result<()> {
        let [frame_low, frame_high] = words(self.frame.as_ptr() as usize);
        let mut attributes = [
            self.program.as_raw_fd().cast_unsigned(),
            0, // retval
            self.frame.len() as u32,
            0, // data_size_out
            frame_low,
            frame_high,
            0, // data_out
            0,
            PKTS_PER_CALL,
            0, // duration, ctx_size_in, ctx_size_out
            0,
            0,
            0, // ctx_in, ctx_out
            0,
            0,
            0,
            BPF_F_TEST_XDP_LIVE_FRAMES,
            0, // cpu
            KERNEL_BURST_PKTS,
        ];
        // SAFETY: the one address leads to `frame`, of the length given, which outlives the call; the
        // kernel reads it only and writes results into `attributes`.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes) }.map(drop)
    }
}

/// Drops all that an interface receives, until it is dropped itself.
#[derive(Debug)]
pub struct Drain {
    _link: OwnedFd,
}

impl Drain {
    /// Attaches to the interface of this index, in this thread's network namespace. The link goes
    /// with the process, however that ends.
    ///
    /// # Errors
    /// The system call's.
    pub fn attach(ifindex: u32) -> io::Result<Self> {
        let program = load(&drop_all())?;
        // prog_fd, target_ifindex, attach_type, flags
        let fd = program.as_raw_fd().cast_unsigned();
        let mut attributes = [fd, ifindex, BPF_ATTACH_XDP, XDP_FLAGS_DRV_MODE];
        // SAFETY: the attributes hold no address.
        let link = unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }.map(owned)?;
        Ok(Self { _link: link })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_encoded_as_the_bpf_instruction_set_says() {
        let bytes = |code: &[[u32; 2]]| -> Vec<u8> {
            code.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
        };
        if cfg!(target_endian = "little") {
            assert_eq!(
                bytes(&redirect_to(0x0102)),
                [
                    [0xb7, 1, 0, 0, 2, 1, 0, 0],
                    [0xb7, 2, 0, 0, 0, 0, 0, 0],
                    [0x85, 0, 0, 0, 23, 0, 0, 0],
                    [0x95, 0, 0, 0, 0, 0, 0, 0],
                ]
                .concat()
            );
            let drop = bytes(&drop_all());
            assert_eq!(drop, [0xb7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn a_frame_longer_than_the_kernel_can_make_is_refused() {
        let frame = vec![0; usize::from(MAX_FRAME_BYTES) + 1];
        let error = Source::new(1, frame).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
