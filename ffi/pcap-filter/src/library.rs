//! libpcap, loaded at run time: the few functions of it that are used, and what they may be given.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

use libloading::os::unix::Library;

use crate::{FilterError, MAX_STEPS, SNAP_BYTES, Step};

/// Debian's name, and others'.
const NAMES: [&str; 2] = ["libpcap.so.0.8", "libpcap.so.1"];
/// DLT_EN10MB.
const ETHERNET: c_int = 1;
/// PCAP_NETMASK_UNKNOWN.
const NO_NETMASK: c_uint = 0xffff_ffff;
/// The opcode of an unconditional jump.
const JUMP: u16 = 0x05;
/// Loads from here on are the kernel's: of what it knows beside the frame (SKF_AD_OFF).
const BESIDE_FRAME: u32 = 0xffff_f000;

/// Why an instruction of libpcap's cannot be run everywhere, if so.
pub(crate) fn unfit((code, _, _, constant): Step) -> Option<&'static str> {
    let loads_from_packet = matches!(code, 0x20 | 0x28 | 0x30);
    if loads_from_packet && constant >= BESIDE_FRAME {
        return Some("it asks for what is beside the frame, as `inbound` and `ifindex` do");
    }
    (code == JUMP && constant as usize > MAX_STEPS)
        .then_some("it compiles to a loop, as `protochain` does")
}

/// `struct bpf_insn`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    constant: u32,
}

/// `struct bpf_program`.
#[repr(C)]
struct Program {
    len: c_uint,
    instructions: *mut Instruction,
}

/// `pcap_t`, which only libpcap knows the inside of.
type Handle = c_void;

/// The functions, as pcap/pcap.h and pcap/bpf.h of libpcap 1.x declare them.
pub(crate) struct Libpcap {
    open_dead: unsafe extern "C" fn(c_int, c_int) -> *mut Handle,
    compile: unsafe extern "C" fn(*mut Handle, *mut Program, *const c_char, c_int, c_uint) -> c_int,
    geterr: unsafe extern "C" fn(*mut Handle) -> *mut c_char,
    freecode: unsafe extern "C" fn(*mut Program),
    close: unsafe extern "C" fn(*mut Handle),
    validate: unsafe extern "C" fn(*const Instruction, c_int) -> c_int,
    filter: unsafe extern "C" fn(*const Instruction, *const c_uchar, c_uint, c_uint) -> c_uint,
    // Keeps the functions where they are.
    _library: Library,
}

/// libpcap, loaded when it is asked for first; the answer does not change later.
pub(crate) fn get() -> Result<&'static Libpcap, FilterError> {
    static LIBPCAP: OnceLock<Result<Libpcap, String>> = OnceLock::new();
    LIBPCAP.get_or_init(load).as_ref().map_err(|reason| FilterError::Missing(reason.clone()))
}

fn load() -> Result<Libpcap, String> {
    let mut reasons = Vec::new();
    for name in NAMES {
        // SAFETY: the initialisers of libpcap, and of what it needs, have no preconditions.
        match unsafe { Library::new(name) } {
            Ok(library) => return functions(library).map_err(|error| reason_of(&error)),
            Err(error) => reasons.push(reason_of(&error)),
        }
    }
    Err(reasons.join("; "))
}

fn functions(library: Library) -> Result<Libpcap, libloading::Error> {
    // SAFETY: the types of the fields are those that the headers of libpcap 1.x declare for these
    // names; the library stays loaded for as long as they are kept.
    unsafe {
        Ok(Libpcap {
            open_dead: *library.get(b"pcap_open_dead\0")?,
            compile: *library.get(b"pcap_compile\0")?,
            geterr: *library.get(b"pcap_geterr\0")?,
            freecode: *library.get(b"pcap_freecode\0")?,
            close: *library.get(b"pcap_close\0")?,
            validate: *library.get(b"bpf_validate\0")?,
            filter: *library.get(b"bpf_filter\0")?,
            _library: library,
        })
    }
}

/// The dynamic linker's own words.
fn reason_of(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl Libpcap {
    /// Compiles a filter; the error is what libpcap says.
    pub(crate) fn compile(&self, text: &CStr) -> Result<Vec<Step>, String> {
        // SAFETY: takes two numbers; the result is checked.
        let handle = unsafe { (self.open_dead)(ETHERNET, SNAP_BYTES as c_int) };
        if handle.is_null() {
            return Err("no memory".to_owned());
        }
        let mut program = Program { len: 0, instructions: ptr::null_mut() };
        // SAFETY: the handle is open; `program` and `text` live through the call, which keeps neither.
        let failed =
            unsafe { (self.compile)(handle, &raw mut program, text.as_ptr(), 1, NO_NETMASK) } != 0;
        let answer = if failed {
            // SAFETY: the handle is open, and its message is a C string in it.
            let message = unsafe { CStr::from_ptr((self.geterr)(handle)) };
            Err(message.to_string_lossy().into_owned())
        } else {
            let steps = match program.len as usize {
                // Of none there may be no address.
                0 => &[][..],
                // SAFETY: compiling succeeded, so there are `len` instructions at `instructions`, until
                // they are freed below.
                len => unsafe { std::slice::from_raw_parts(program.instructions, len) },
            };
            let steps = steps.iter().map(|i| (i.code, i.if_true, i.if_false, i.constant)).collect();
            // SAFETY: what was compiled is freed once, and was copied before.
            unsafe { (self.freecode)(&raw mut program) };
            Ok(steps)
        };
        // SAFETY: the handle is open, and is used no more.
        unsafe { (self.close)(handle) };
        answer
    }

    /// Runs a program, if it is one that libpcap may be given.
    pub(crate) fn accepts(&self, steps: &[Step], packet: &[u8], len_bytes: u32) -> Option<bool> {
        let kept_bytes = c_uint::try_from(packet.len()).ok()?;
        let jumps_back =
            |&(code, _, _, constant): &Step| code == JUMP && constant as usize > MAX_STEPS;
        if steps.is_empty() || steps.len() > MAX_STEPS || steps.iter().any(jumps_back) {
            return None;
        }
        let program: Vec<_> = steps
            .iter()
            .map(|&(code, if_true, if_false, constant)| Instruction {
                code,
                if_true,
                if_false,
                constant,
            })
            .collect();
        // SAFETY: the program lies at the address in the length given.
        if unsafe { (self.validate)(program.as_ptr(), program.len() as c_int) } == 0 {
            return None;
        }
        // SAFETY: libpcap found the program valid: it stays inside the program and the scratch memory,
        // and compares each offset with the length of the packet, which lies at its address in that
        // length. All jumps go forward, so it ends.
        let kept =
            unsafe { (self.filter)(program.as_ptr(), packet.as_ptr(), len_bytes, kept_bytes) };
        Some(kept != 0)
    }
}
