//! The kernel interface that a vdev stands on, asked directly: the driver does not pass its state
//! on.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use crate::ports::LinkState;

/// A kernel interface, in the network namespace of the thread that opened it.
pub(super) struct KernelInterface {
    name: String,
    /// Any socket will do: it carries the namespace.
    socket: UdpSocket,
}

impl KernelInterface {
    /// # Errors
    /// ENODEV when there is no interface of that name.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let interface = Self {
            name: name.to_owned(),
            socket: UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?,
        };
        interface.request(libc::SIOCGIFFLAGS)?;
        Ok(interface)
    }

    /// Longest network-layer packet.
    pub(super) fn mtu_bytes(&self) -> io::Result<u16> {
        let request = self.request(libc::SIOCGIFMTU)?;
        // SAFETY: SIOCGIFMTU fills the member `ifru_mtu` of the union (netdevice(7)).
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    pub(super) fn link(&self) -> LinkState {
        match self.request(libc::SIOCGIFFLAGS) {
            Ok(request) => {
                // SAFETY: SIOCGIFFLAGS fills the member `ifru_flags` of the union (netdevice(7)).
                let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
                let both = libc::IFF_UP | libc::IFF_RUNNING;
                if flags & both == both { LinkState::Up } else { LinkState::Down }
            }
            Err(_) => LinkState::Gone,
        }
    }

    fn request(&self, what: libc::c_ulong) -> io::Result<libc::ifreq> {
        // SAFETY: ifreq is plain data; all zeroes is a value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let room = request.ifr_name.len() - 1;
        if self.name.is_empty() || self.name.len() > room {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from.cast_signed();
        }
        // SAFETY: the descriptor is open and the request is one of the two above, which read the
        // name and write the union of an ifreq.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), what, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
    }
}
