//! The listening socket.
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::ServerError;
use crate::config::ManagerConfig;

/// The listening socket; its file goes with it.
pub struct ControlSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds the socket with mode 0660, in the place of one that a dead manager left.
    ///
    /// # Errors
    /// [`ServerError::InUse`] when a manager answers there, and as the system says.
    pub fn bind(config: &ManagerConfig) -> Result<Self, ServerError> {
        let path = config.socket.clone();
        let fail = |what| {
            let socket = path.clone();
            move |source: io::Error| ServerError::Socket { socket, what, source }
        };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(directory).map_err(fail("cannot make its directory"))?;
        // Two managers that start at once take turns here; the lock goes with this function.
        let lock = std::fs::File::open(directory).map_err(fail("cannot open its directory"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| fail("cannot lock its directory")(errno.into()))?;
        remove_stale(&path)?;
        let listener = UnixListener::bind(&path).map_err(fail("cannot listen"))?;
        let socket = Self { listener, path: path.clone() };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660))
            .map_err(fail("cannot set its mode"))?;
        if let Some(group) = &config.socket_group {
            let gid = group_id(group)?;
            std::os::unix::fs::chown(&path, None, Some(gid))
                .map_err(fail("cannot give it to its group"))?;
        }
        socket.listener.set_nonblocking(true).map_err(fail("cannot be made non-blocking"))?;
        Ok(socket)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<(), ServerError> {
    // connect(2) refuses a plain file just as a socket nobody listens on: ask before removing.
    let is_socket = |meta: std::fs::Metadata| meta.file_type().is_socket();
    if std::fs::symlink_metadata(path).is_ok_and(|meta| !is_socket(meta)) {
        return Err(ServerError::NotASocket(path.into()));
    }
    match UnixStream::connect(path) {
        Ok(other) => {
            let pid = getsockopt(&other, PeerCredentials)
                .map_or_else(|_| String::new(), |peer| format!(" (pid {})", peer.pid()));
            Err(ServerError::InUse { socket: path.into(), pid })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.raw_os_error() == Some(Errno::ECONNREFUSED as i32) => {
            std::fs::remove_file(path).map_err(|source| ServerError::Socket {
                socket: path.into(),
                what: "cannot remove what a dead manager left",
                source,
            })
        }
        Err(source) => Err(ServerError::Socket {
            socket: path.into(),
            what: "cannot be asked whether a manager listens",
            source,
        }),
    }
}

fn group_id(group: &str) -> Result<u32, ServerError> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    match nix::unistd::Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid.as_raw()),
        _ => Err(ServerError::NoGroup(group.to_owned())),
    }
}
