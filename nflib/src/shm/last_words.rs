//! The last words of a process that panics, or is struck by a signal.
//!
//! They are written into shared memory, at the start of a [black box](super::black_box), in which they
//! outlive the process:
//!
//! ```text
//! byte 0      signal    w0 state, w1 signal, w2 its code, w3 address, w4 program counter, w5 time_ns,
//!                       w6 number of frames; from w8 on the frames
//! byte 1024   panic     w0 state, w1 time_ns, w2 number of frames, w3 and w4 lengths of location and
//!                       message, bytes; from w8 on the frames
//! byte 2048   location  text, 512 bytes at most
//! byte 2560   message   text, 3,584 bytes at most
//! byte 6144   modules   w0 length, bytes; then text: lines of /proc/self/maps, those of code in files
//! ```
//! A state is 0 for nothing, 1 while the words are written, 2 when they are there, 3 when the frames are,
//! too. Frames are addresses inside of the calls that were under way, innermost first.
//!
//! The frames are found by `_Unwind_Backtrace`, by the tables for unwinding that every Rust program has:
//! release builds have no frame pointers. It takes no lock and no memory with the C library of 2022 and
//! later. Before it is tried in a signal handler everything else is written; should it fail, the process
//! dies of that, by the same signal, and should it never return, SIGALRM ends it.
//!
//! Afterwards goes what would have gone without: the previous panic hook, the previous signal action.

use std::io;
use std::panic::PanicHookInfo;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use super::Mapping;

const SIGNAL_AT_BYTES: usize = 0;
const PANIC_AT_BYTES: usize = 1024;
const LOCATION_AT_BYTES: usize = 2048;
const MAX_LOCATION_BYTES: usize = 512;
const MESSAGE_AT_BYTES: usize = LOCATION_AT_BYTES + MAX_LOCATION_BYTES;
const MAX_MESSAGE_BYTES: usize = 3584;
const MODULES_AT_BYTES: usize = 6144;
const MAX_MODULES_BYTES: usize = LEN_BYTES - MODULES_AT_BYTES - WORD_BYTES;
/// All of it.
const LEN_BYTES: usize = 20_480;
const WORD_BYTES: usize = 8;
const FRAMES_AT_WORD: usize = 8;
/// Most frames that are kept.
const MAX_FRAMES: usize = 96;

const BEING_WRITTEN: u64 = 1;
const WRITTEN: u64 = 2;
const WITH_FRAMES: u64 = 3;

/// How long the walk up the stack may take in a signal handler, seconds.
const WALK_LIMIT_S: u32 = 2;
/// Stack of the signal handlers, bytes, with a page below it that ends the process.
const HANDLER_STACK_BYTES: usize = 128 << 10;
const GUARD_BYTES: usize = 4096;

/// The signals that a process dies of by its own fault.
const SIGNALS: [libc::c_int; 5] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// What was found of a process's last words. All of it is that process's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastWords {
    /// Of the signal that struck it.
    pub signal: Option<SignalWords>,
    /// Of its last panic, which may have been caught.
    pub panic: Option<PanicWords>,
    /// What code was mapped where when it attached, as lines of /proc/PID/maps.
    pub modules: String,
}

/// Where a signal struck.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignalWords {
    /// Its number.
    pub signal: i32,
    /// Its `si_code`: above 0 when the kernel says that the process itself is at fault.
    pub code: i32,
    /// The address that was used (`si_addr`).
    pub address: u64,
    /// The instruction.
    pub pc: u64,
    /// When, nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// The calls under way, innermost first; those of the handler itself come before that of `pc`.
    pub frames: Vec<u64>,
}

/// What a panic said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PanicWords {
    /// When, nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// `file:line:column`.
    pub location: String,
    /// Its message.
    pub message: String,
    /// The calls under way, innermost first, the hook's own among them.
    pub frames: Vec<u64>,
}

/// Where the words go: the address of a mapping's first byte, or 0.
static TO: AtomicUsize = AtomicUsize::new(0);
/// A signal's words are being written, or are there.
static STRUCK: AtomicBool = AtomicBool::new(false);
/// A panic's words are being written.
static PANICKING: AtomicBool = AtomicBool::new(false);
/// What was done about the signals before, in the order of [`SIGNALS`].
static BEFORE: [AtomicPtr<libc::sigaction>; SIGNALS.len()] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; SIGNALS.len()];

/// The memory that the words are written to or read from.
#[derive(Clone, Copy)]
struct Paper(NonNull<u8>);

impl Paper {
    /// The paper that words go to now.
    fn current() -> Option<Self> {
        NonNull::new(TO.load(Ordering::Acquire) as *mut u8).map(Self)
    }

    fn word(&self, at_bytes: usize) -> &AtomicU64 {
        assert!(at_bytes.is_multiple_of(WORD_BYTES) && at_bytes + WORD_BYTES <= LEN_BYTES);
        // SAFETY: aligned, and inside the first `LEN_BYTES` of a mapping, which every black box has. It is
        // mapped as long as it is current, and, for a reader, as long as its owner is borrowed. The other
        // process's accesses are what an atomic is for.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            self.0.add(at_bytes).cast::<AtomicU64>().as_ref()
        }
    }

    fn get(&self, part: usize, word: usize) -> u64 {
        self.word(part + word * WORD_BYTES).load(Ordering::Relaxed)
    }

    fn set(&self, part: usize, word: usize, value: u64) {
        self.word(part + word * WORD_BYTES).store(value, Ordering::Relaxed);
    }

    fn set_state(&self, part: usize, state: u64) {
        self.word(part).store(state, Ordering::Release);
    }

    /// Writes as much of a text as fits; returns how many bytes. Needs no memory.
    fn write_text(&self, at_bytes: usize, text: &str, max_bytes: usize) -> u64 {
        let text = &text.as_bytes()[..text.len().min(max_bytes)];
        for (at, chunk) in text.chunks(WORD_BYTES).enumerate() {
            let mut word = [0; WORD_BYTES];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(at_bytes + at * WORD_BYTES)
                .store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        text.len() as u64
    }

    fn read_text(&self, at_bytes: usize, len: u64, max_bytes: usize) -> String {
        let len = usize::try_from(len).unwrap_or(max_bytes).min(max_bytes);
        let words = 0..len.div_ceil(WORD_BYTES);
        let mut bytes: Vec<u8> =
            words.flat_map(|word| self.get(at_bytes, word).to_le_bytes()).collect();
        bytes.truncate(len);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn read_frames(&self, part: usize, count: u64) -> Vec<u64> {
        let count = usize::try_from(count).unwrap_or(MAX_FRAMES).min(MAX_FRAMES);
        (0..count).map(|frame| self.get(part, FRAMES_AT_WORD + frame)).collect()
    }
}

/// Reads what the process wrote at the start of a black box.
pub(super) fn read(mapping: &Mapping) -> LastWords {
    let paper = Paper(mapping.base());
    let state = |part| match paper.word(part).load(Ordering::Acquire) {
        state @ WRITTEN..=WITH_FRAMES => Some(state == WITH_FRAMES),
        _ => None,
    };
    let frames = |part, there: bool, word| match there {
        true => paper.read_frames(part, paper.get(part, word)),
        false => Vec::new(),
    };
    let of_signal = |word| paper.get(SIGNAL_AT_BYTES, word);
    let signal = state(SIGNAL_AT_BYTES).map(|there| SignalWords {
        signal: of_signal(1) as i32,
        code: of_signal(2) as i32,
        address: of_signal(3),
        pc: of_signal(4),
        time_ns: of_signal(5),
        frames: frames(SIGNAL_AT_BYTES, there, 6),
    });
    let of_panic = |word| paper.get(PANIC_AT_BYTES, word);
    let panic = state(PANIC_AT_BYTES).map(|there| PanicWords {
        time_ns: of_panic(1),
        location: paper.read_text(LOCATION_AT_BYTES, of_panic(3), MAX_LOCATION_BYTES),
        message: paper.read_text(MESSAGE_AT_BYTES, of_panic(4), MAX_MESSAGE_BYTES),
        frames: frames(PANIC_AT_BYTES, there, 2),
    });
    let len = paper.get(MODULES_AT_BYTES, 0);
    let modules = paper.read_text(MODULES_AT_BYTES + WORD_BYTES, len, MAX_MODULES_BYTES);
    LastWords { signal, panic, modules }
}

/// Last words go to this mapping, which begins with room for them.
pub(super) fn go_to(mapping: &Mapping) {
    let paper = Paper(mapping.base());
    let modules = modules().unwrap_or_default();
    let len = paper.write_text(MODULES_AT_BYTES + WORD_BYTES, &modules, MAX_MODULES_BYTES);
    paper.set(MODULES_AT_BYTES, 0, len);
    TO.store(mapping.base().as_ptr() as usize, Ordering::Release);
}

/// Last words do not go to this mapping any more, if they did.
pub(super) fn go_no_more_to(mapping: &Mapping) {
    let base = mapping.base().as_ptr() as usize;
    let _ = TO.compare_exchange(base, 0, Ordering::AcqRel, Ordering::Relaxed);
}

/// The lines of /proc/self/maps that are of code in files, as many as there is room for.
fn modules() -> io::Result<String> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let is_code = |line: &&str| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(1).is_some_and(|access| access.contains('x'))
            && fields.nth(3).is_some_and(|path| path.starts_with('/'))
    };
    let mut text = String::new();
    for line in maps.lines().filter(is_code) {
        if text.len() + line.len() >= MAX_MODULES_BYTES {
            break;
        }
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

/// From now on this process leaves last words: at each panic, and when one of SIGSEGV, SIGBUS, SIGILL,
/// SIGFPE and SIGABRT strikes. They go to the black box that
/// [`take_last_words`](super::BlackBox::take_last_words) names; without one, all is as it was. To be called
/// by the thread that is to have room for it when its stack is full; once is enough.
///
/// # Errors
/// Those of mmap(2), sigaltstack(2) and sigaction(2).
pub fn leave_last_words() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            note_panic(info);
            previous(info);
        }));
        // What is to be loaded for it is loaded now.
        walk(|_| false);
        result = use_own_stack().and_then(|()| catch_signals());
    });
    result
}

fn use_own_stack() -> io::Result<()> {
    let len = GUARD_BYTES + HANDLER_STACK_BYTES;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping at an address of the kernel's choice, checked before use, whose first page
    // is then made inaccessible. It is never unmapped, for a handler may need it at any time.
    unsafe {
        let base = libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0);
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if libc::mprotect(base, GUARD_BYTES, libc::PROT_NONE) != 0 {
            return Err(io::Error::last_os_error());
        }
        let stack = libc::stack_t {
            ss_sp: base.cast::<u8>().add(GUARD_BYTES).cast(),
            ss_flags: 0,
            ss_size: HANDLER_STACK_BYTES,
        };
        if libc::sigaltstack(&raw const stack, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn catch_signals() -> io::Result<()> {
    for (signal, before) in SIGNALS.into_iter().zip(&BEFORE) {
        // SAFETY: both actions are plain data, all zero is a valid one. The handler makes only
        // async-signal-safe calls (see the module's text for the walk). What was before is kept for ever.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let old = Box::into_raw(Box::new(std::mem::zeroed::<libc::sigaction>()));
            if libc::sigaction(signal, &raw const action, old) != 0 {
                drop(Box::from_raw(old));
                return Err(io::Error::last_os_error());
            }
            before.store(old, Ordering::Release);
        }
    }
    Ok(())
}

extern "C" fn on_signal(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes both to a handler with SA_SIGINFO.
    let (code, address, pc) =
        unsafe { ((*info).si_code, (*info).si_addr() as usize, program_counter(context)) };
    if let Some(paper) = Paper::current()
        && !STRUCK.swap(true, Ordering::AcqRel)
    {
        note_signal(paper, signal, code, address as u64, pc);
    }
    // SAFETY: plain values, pointers to actions that are never freed, and async-signal-safe calls.
    unsafe {
        let at = SIGNALS.iter().position(|known| *known == signal);
        let before = at.map_or(std::ptr::null_mut(), |at| BEFORE[at].load(Ordering::Acquire));
        // The instruction that is at fault is made again, and meets what was there before. What somebody
        // sent would not come again; and what Rust does about it then would let the process live.
        if code > 0
            && !before.is_null()
            && libc::sigaction(signal, before, std::ptr::null_mut()) == 0
        {
            return;
        }
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// The instruction that was under way when a signal came.
///
/// # Safety
/// `context` is what the kernel passed to a handler with SA_SIGINFO.
unsafe fn program_counter(context: *mut libc::c_void) -> u64 {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: as the caller says, there is a ucontext_t.
    #[cfg(target_arch = "x86_64")]
    return unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] }.cast_unsigned();
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    return unsafe { (*context).uc_mcontext.pc };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return {
        let _ = context;
        0
    };
}

fn note_signal(paper: Paper, signal: libc::c_int, code: libc::c_int, address: u64, pc: u64) {
    const AT: usize = SIGNAL_AT_BYTES;
    paper.set_state(AT, BEING_WRITTEN);
    paper.set(AT, 1, u64::from(signal.cast_unsigned()));
    paper.set(AT, 2, u64::from(code.cast_unsigned()));
    paper.set(AT, 3, address);
    paper.set(AT, 4, pc);
    paper.set(AT, 5, monotonic_ns());
    paper.set_state(AT, WRITTEN);
    // SAFETY: takes an integer; async-signal-safe.
    unsafe { libc::alarm(WALK_LIMIT_S) };
    write_frames(paper, AT, 6);
    // SAFETY: as above.
    unsafe { libc::alarm(0) };
    paper.set_state(AT, WITH_FRAMES);
}

fn note_panic(info: &PanicHookInfo<'_>) {
    const AT: usize = PANIC_AT_BYTES;
    let Some(paper) = Paper::current() else { return };
    if PANICKING.swap(true, Ordering::AcqRel) {
        return;
    }
    paper.set_state(AT, BEING_WRITTEN);
    paper.set(AT, 1, monotonic_ns());
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    paper.set(AT, 3, paper.write_text(LOCATION_AT_BYTES, &location, MAX_LOCATION_BYTES));
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(a value that is no text)");
    paper.set(AT, 4, paper.write_text(MESSAGE_AT_BYTES, message, MAX_MESSAGE_BYTES));
    paper.set_state(AT, WRITTEN);
    write_frames(paper, AT, 2);
    paper.set_state(AT, WITH_FRAMES);
    PANICKING.store(false, Ordering::Release);
}

fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of our own; async-signal-safe.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned().saturating_mul(1_000_000_000) + time.tv_nsec.cast_unsigned()
}

/// Writes the calls under way, and their number to the word `count_at`, one by one: as far as it gets.
fn write_frames(paper: Paper, part: usize, count_at: usize) {
    let mut count = 0;
    walk(|address| {
        paper.set(part, FRAMES_AT_WORD + count, address as u64);
        count += 1;
        paper.set(part, count_at, count as u64);
        count < MAX_FRAMES
    });
}

/// What the unwinder tells of a frame, and a place for what the visitor of frames needs.
type UnwindContext = libc::c_void;

unsafe extern "C" {
    // Of the library that Rust's own panics unwind by.
    fn _Unwind_Backtrace(
        visit: extern "C" fn(*mut UnwindContext, *mut libc::c_void) -> libc::c_int,
        data: *mut libc::c_void,
    ) -> libc::c_int;
    fn _Unwind_GetIPInfo(context: *mut UnwindContext, before: *mut libc::c_int) -> usize;
}

const URC_NO_REASON: libc::c_int = 0;
const URC_END_OF_STACK: libc::c_int = 5;

/// Calls `visit` with an address inside of each call under way, innermost first, until it says false.
/// Needs no memory, and must not panic.
fn walk<F: FnMut(usize) -> bool>(mut visit: F) {
    extern "C" fn on_frame<F: FnMut(usize) -> bool>(
        context: *mut UnwindContext,
        data: *mut libc::c_void,
    ) -> libc::c_int {
        let mut before = 0;
        // SAFETY: the context is the unwinder's own, for the length of this call; `data` is the visitor
        // below, which nobody else uses meanwhile.
        let (address, visit) =
            unsafe { (_Unwind_GetIPInfo(context, &raw mut before), &mut *data.cast::<F>()) };
        // A return address may be that of the next line, or of the next function.
        let inside = if before == 0 { address.wrapping_sub(1) } else { address };
        if address != 0 && visit(inside) { URC_NO_REASON } else { URC_END_OF_STACK }
    }
    // SAFETY: the visitor outlives the call, which uses it from this thread only.
    unsafe { _Unwind_Backtrace(on_frame::<F>, (&raw mut visit).cast()) };
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::shm::{BlackBox, RecorderTerms, Scribble};
    use proptest::prelude::*;

    fn empty() -> BlackBox {
        BlackBox::create(RecorderTerms { slots: 0, kept_bytes: 64, all: false }).unwrap()
    }

    #[test]
    fn a_panic_leaves_its_message_its_place_and_the_calls_under_way() {
        leave_last_words().unwrap();
        let black_box = empty();
        black_box.take_last_words();
        // Other tests of this process may panic meanwhile: theirs are overwritten by this one.
        let mut words = LastWords::default();
        for _ in 0..1000 {
            let caught = std::panic::catch_unwind(|| panic!("packet {} is too much", 17));
            assert!(caught.is_err());
            words = black_box.last_words();
            let is_ours = |panic: &PanicWords| panic.message == "packet 17 is too much";
            if words.panic.as_ref().is_some_and(is_ours) {
                break;
            }
        }
        let panic = words.panic.unwrap();
        assert_eq!(panic.message, "packet 17 is too much");
        assert!(panic.location.contains("last_words.rs:"), "{}", panic.location);
        assert!(panic.time_ns > 0 && panic.frames.len() > 3, "{panic:?}");
        assert_eq!(words.signal, None);
        // The calls are in this program, which is named among what is mapped.
        let own = std::env::current_exe().unwrap();
        let line = words.modules.lines().find(|line| line.ends_with(&*own.to_string_lossy()));
        let range = line.unwrap().split([' ', '-']).take(2);
        let range: Vec<_> = range.map(|n| u64::from_str_radix(n, 16).unwrap()).collect();
        assert!((range[0]..range[1]).contains(&panic.frames[0]), "{range:x?} {panic:x?}");
    }

    #[test]
    fn without_words_there_are_none_and_a_box_that_is_gone_gets_none() {
        let black_box = empty();
        assert_eq!(black_box.last_words(), LastWords::default());
        let other = empty();
        other.take_last_words();
        drop(other);
        assert_ne!(black_box.mapping().base().as_ptr() as usize, TO.load(Ordering::Relaxed));
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_at_its_room() {
        let black_box = empty();
        let paper = Paper(black_box.mapping().base());
        let text = "ü".repeat(MAX_LOCATION_BYTES);
        let len = paper.write_text(LOCATION_AT_BYTES, &text, MAX_LOCATION_BYTES);
        assert_eq!(len, MAX_LOCATION_BYTES as u64);
        assert_eq!(paper.get(MESSAGE_AT_BYTES, 0), 0, "nothing is written behind it");
        assert_eq!(
            paper.read_text(LOCATION_AT_BYTES, len, MAX_LOCATION_BYTES),
            "ü".repeat(MAX_LOCATION_BYTES / 2)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_words_or_none(
            words in proptest::collection::vec((0..LEN_BYTES / 4, any::<u32>()), 0..300),
            states in (0u32..5, 0u32..5),
        ) {
            let black_box = empty();
            let scribble = Scribble::over(black_box.fd()).unwrap();
            for (at, value) in words {
                scribble.store(4 * at, value);
            }
            scribble.store(SIGNAL_AT_BYTES, states.0);
            scribble.store(SIGNAL_AT_BYTES + 4, 0);
            scribble.store(PANIC_AT_BYTES, states.1);
            scribble.store(PANIC_AT_BYTES + 4, 0);
            let found = black_box.last_words();
            prop_assert_eq!(found.signal.is_some(), matches!(states.0, 2 | 3));
            prop_assert_eq!(found.panic.is_some(), matches!(states.1, 2 | 3));
            prop_assert!(found.signal.is_none_or(|signal| signal.frames.len() <= MAX_FRAMES));
            prop_assert!(found.panic.is_none_or(|panic| panic.frames.len() <= MAX_FRAMES));
        }
    }
}
