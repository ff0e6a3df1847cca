//! The little of RTNETLINK that a port needs: interfaces, default routes, and link changes.
//!
//! Asked by netlink and not by `/sys` or `/proc`: those show the namespace they were mounted in, a
//! netlink socket the one it was made in. Messages as in netlink(7) and rtnetlink(7): every length
//! is checked, whatever comes.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

use super::abi::*;

/// The multicast group of link changes.
const RTMGRP_LINK: u32 = 1;
const NLMSG_HEADER_BYTES: usize = 16;
const IFINFO_BYTES: usize = 16;
const RTMSG_BYTES: usize = 12;
/// Larger than any link message.
const RECEIVE_BYTES: usize = 64 << 10;

/// An interface as RTM_NEWLINK describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Number in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: Option<[u8; 6]>,
    /// Longest network-layer packet, bytes.
    pub mtu_bytes: u32,
    /// Set up by the administrator.
    pub admin_up: bool,
    /// Carrier is there.
    pub carrier: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// Transmit queues allocated.
    pub tx_queues: u32,
    /// Id of the XDP program that is attached.
    pub xdp_program: Option<u32>,
    /// Kernel counters by name.
    pub stats: Vec<(&'static str, u64)>,
}

/// Something that happened to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is now like this.
    Changed(Link),
    /// It was removed, or moved to another namespace.
    Removed(u32),
    /// Messages were lost: ask again.
    Lost,
}

/// A netlink socket.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket for questions.
    pub fn open() -> io::Result<Self> {
        Self::with_groups(0)
    }

    /// A socket that also hears of every link change in this namespace.
    pub fn watching_links() -> io::Result<Self> {
        Self::with_groups(RTMGRP_LINK)
    }

    fn with_groups(groups: u32) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { fd, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Every interface of the namespace.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.dump(libc::RTM_GETLINK, &[0; IFINFO_BYTES], |kind, body| {
            if kind == libc::RTM_NEWLINK {
                links.extend(parse_link(body));
            }
        })?;
        Ok(links)
    }

    /// The interfaces that a default route leads to, IPv4 or IPv6.
    pub fn default_route_interfaces(&mut self) -> io::Result<BTreeSet<u32>> {
        let mut found = BTreeSet::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut question = [0; RTMSG_BYTES];
            question[0] = family as u8;
            self.dump(libc::RTM_GETROUTE, &question, |kind, body| {
                if kind == libc::RTM_NEWROUTE {
                    default_route_outputs(body, &mut found);
                }
            })?;
        }
        Ok(found)
    }

    /// Asks for a list and hands every message of the answer to `each`.
    fn dump(&mut self, kind: u16, body: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        const SEQUENCE: u32 = 1;
        let len = (NLMSG_HEADER_BYTES + body.len()) as u32;
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        let mut request = Vec::with_capacity(len as usize);
        request.extend_from_slice(&len.to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&flags.to_ne_bytes());
        request.extend_from_slice(&SEQUENCE.to_ne_bytes());
        request.extend_from_slice(&0u32.to_ne_bytes());
        request.extend_from_slice(body);
        send(self.fd.as_raw_fd(), &request, MsgFlags::empty())?;
        loop {
            let got = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            for message in Messages(&self.buffer[..got]) {
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        let number = read_i32(message.body, 0).unwrap_or(0);
                        if number == 0 {
                            return Ok(());
                        }
                        return Err(io::Error::from_raw_os_error(number.saturating_neg()));
                    }
                    _ => each(message.kind, message.body),
                }
            }
        }
    }

    /// What has happened since the last call; never blocks.
    pub fn events(&mut self, mut each: impl FnMut(LinkEvent)) {
        loop {
            let got = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(got) => got,
                Err(Errno::ENOBUFS) => {
                    each(LinkEvent::Lost);
                    continue;
                }
                Err(_) => return,
            };
            for message in Messages(&self.buffer[..got]) {
                // A bridge reports its ports' removal under its own family: not the device's.
                if message.body.first() != Some(&(libc::AF_UNSPEC as u8)) {
                    continue;
                }
                match (message.kind, parse_link(message.body)) {
                    (libc::RTM_NEWLINK, Some(link)) => each(LinkEvent::Changed(link)),
                    (libc::RTM_DELLINK, Some(link)) => each(LinkEvent::Removed(link.index)),
                    _ => {}
                }
            }
        }
    }
}

struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

/// The netlink messages in one datagram; ends at the first that does not fit.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let len = read_u32(self.0, 0)? as usize;
        let kind = read_u16(self.0, 4)?;
        let body = self.0.get(NLMSG_HEADER_BYTES..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Message { kind, body })
    }
}

/// The attributes (`struct rtattr`) in a message's tail.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        const NLA_TYPE_MASK: u16 = 0x3fff;
        let len = usize::from(read_u16(self.0, 0)?);
        let kind = read_u16(self.0, 2)? & NLA_TYPE_MASK;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let flags = read_u32(body, 8)?;
    let has = |flag: i32| flags & flag as u32 != 0;
    let mut link = Link {
        index: read_u32(body, 4)?,
        admin_up: has(libc::IFF_UP),
        carrier: has(libc::IFF_LOWER_UP),
        loopback: has(libc::IFF_LOOPBACK),
        ..Link::default()
    };
    for (kind, value) in Attributes(body.get(IFINFO_BYTES..)?) {
        match kind {
            IFLA_IFNAME => {
                let name = value.split(|&byte| byte == 0).next().unwrap_or(&[]);
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_MTU => link.mtu_bytes = read_u32(value, 0)?,
            IFLA_NUM_TX_QUEUES => link.tx_queues = read_u32(value, 0)?,
            IFLA_STATS64 => link.stats = parse_stats(value),
            IFLA_XDP => link.xdp_program = parse_xdp(value),
            _ => {}
        }
    }
    Some(link)
}

/// The head of `struct rtnl_link_stats64`.
fn parse_stats(value: &[u8]) -> Vec<(&'static str, u64)> {
    [
        "if_rx_packets",
        "if_tx_packets",
        "if_rx_bytes",
        "if_tx_bytes",
        "if_rx_errors",
        "if_tx_errors",
        "if_rx_dropped",
        "if_tx_dropped",
    ]
    .into_iter()
    .zip(value.chunks_exact(8))
    .map(|(name, word)| (name, u64::from_ne_bytes(word.try_into().unwrap_or_default())))
    .collect()
}

fn parse_xdp(value: &[u8]) -> Option<u32> {
    let find = |wanted| Attributes(value).find(|&(kind, _)| kind == wanted);
    let attached = find(IFLA_XDP_ATTACHED)?.1.first().copied()?;
    let id = find(IFLA_XDP_PROG_ID).and_then(|(_, id)| read_u32(id, 0)).unwrap_or(0);
    (attached != 0).then_some(id)
}

/// Notes the output interfaces of a route when it is a unicast default route.
fn default_route_outputs(body: &[u8], found: &mut BTreeSet<u32>) {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
    let (Some(&dst_len), Some(&kind)) = (body.get(1), body.get(7)) else { return };
    if dst_len != 0 || kind != libc::RTN_UNICAST {
        return;
    }
    for (kind, value) in Attributes(body.get(RTMSG_BYTES..).unwrap_or(&[])) {
        match kind {
            RTA_OIF => found.extend(read_u32(value, 0)),
            RTA_MULTIPATH => {
                // struct rtnexthop: len u16, flags u8, hops u8, ifindex i32
                let mut rest = value;
                while let (Some(len), Some(index)) = (read_u16(rest, 0), read_u32(rest, 4)) {
                    found.insert(index);
                    rest = rest.get(usize::from(len.max(8)).next_multiple_of(4)..).unwrap_or(&[]);
                }
            }
            _ => {}
        }
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    read_u32(bytes, at).map(u32::cast_signed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_loopback_interface_is_listed_with_its_mtu() {
        let links = Netlink::open().unwrap().links().unwrap();
        let lo = links.iter().find(|link| link.name == "lo").expect("every namespace has lo");
        assert!(lo.loopback && lo.index > 0 && lo.mtu_bytes > 0);
        assert_eq!(lo.stats.len(), 8);
        assert_eq!(lo.xdp_program, None);
    }

    #[test]
    fn every_nexthop_of_a_multipath_default_route_is_found() {
        let mut body = vec![0u8; RTMSG_BYTES];
        body[7] = libc::RTN_UNICAST;
        body.extend([28, 0, 9, 0]);
        body.extend([8, 0, 0, 0, 7, 0, 0, 0]);
        body.extend([16, 0, 0, 0, 9, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let mut found = BTreeSet::new();
        default_route_outputs(&body, &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [7, 9]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_or_endless_loop(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for message in Messages(&bytes) {
                let _ = parse_link(message.body);
            }
            let _ = parse_link(&bytes);
            default_route_outputs(&bytes, &mut BTreeSet::new());
        }
    }
}
