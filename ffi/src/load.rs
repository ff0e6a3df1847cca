//! Loading libdpdk and the shim at run time.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use thiserror::Error;

use crate::sys::Api;

/// The shim: a shared object that needs libdpdk.
static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libmillrace_dpdk.so"));

/// Why DPDK cannot be used.
#[derive(Clone, Debug, Error)]
#[error(
    "libdpdk 22.11 could not be loaded ({reason}); `apt-get install libdpdk-dev` (or the librte-* \
     packages), or use backend = \"af_xdp\""
)]
pub struct LoadError {
    /// What the dynamic linker or the system said.
    pub reason: String,
}

/// The table of DPDK's and the shim's functions. Loads them when it is called first; they stay
/// loaded to the end of the process.
///
/// # Errors
/// [`LoadError`] when libdpdk, or a function of it, is missing. The answer does not change later.
pub fn api() -> Result<&'static Api, LoadError> {
    static API: OnceLock<Result<Api, LoadError>> = OnceLock::new();
    API.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<Api, LoadError> {
    let failed = |reason: String| LoadError { reason };
    let file = shim_file().map_err(|error| failed(format!("memfd for the shim: {error}")))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the file holds the object that build.rs compiled from shim.c and is sealed against
    // change. Its initialisers, and libdpdk's, only register handlers in lists of their own.
    // Global, so that the drivers EAL loads later resolve against this one copy of libdpdk.
    let library = unsafe { Library::open(Some(&OsString::from(&path)), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|error| failed(reason_of(&error, &path)))?;
    // SAFETY: the names and types come from the very headers the shim was compiled against, and
    // the shim depends on the libraries of that ABI version (librte_*.so.23).
    unsafe { Api::from_library(library) }.map_err(|error| failed(reason_of(&error, &path)))
}

/// The dynamic linker's words without the path of our own file, which would tell nobody anything.
fn reason_of(error: &libloading::Error, path: &str) -> String {
    let text =
        std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    text.trim_start_matches(path).trim_start_matches(": ").to_owned()
}

/// The shim as a sealed file in memory: no path on disk that someone else could have written.
fn shim_file() -> io::Result<File> {
    let mut file = memfd("millrace-dpdk-shim")?;
    file.write_all(SHIM)?;
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: plain integers to a descriptor we own; the result is checked.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn memfd(name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    // MFD_EXEC says that the file may hold code; kernels before 6.3 do not know the flag.
    for flags in [libc::MFD_EXEC, 0] {
        // SAFETY: `name` is a C string that lives through the call; the result is checked.
        let fd = unsafe {
            libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        };
        if fd >= 0 {
            // SAFETY: a descriptor just made, owned by no one else.
            return Ok(unsafe { File::from_raw_fd(fd) });
        }
    }
    Err(io::Error::last_os_error())
}

/// Takes what DPDK has logged since the last call, where `mr_log_capture` was called.
#[must_use]
pub fn take_log(api: &Api) -> String {
    let mut text = vec![0_u8; 8192];
    // SAFETY: the buffer is writable for the length given, and the shim writes no more than that.
    let len = unsafe { api.mr_log_take(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(len);
    String::from_utf8_lossy(&text).into_owned()
}
