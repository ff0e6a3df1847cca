//! SIGINT and SIGTERM as a flag to look at.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_stop(_: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// Catches SIGINT and SIGTERM: the first one sets the flag returned and interrupts a sleep, a
/// second one of the same kind ends the process as if it were not caught.
///
/// # Errors
/// Those of `sigaction(2)`.
pub fn catch_stop_signals() -> io::Result<&'static AtomicBool> {
    // No SA_RESTART: a sleep in futex or poll must end.
    let action =
        SigAction::new(SigHandler::Handler(on_stop), SaFlags::SA_RESETHAND, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler stores to an atomic and does nothing else, which is
        // async-signal-safe (signal-safety(7)).
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(&STOP)
}
