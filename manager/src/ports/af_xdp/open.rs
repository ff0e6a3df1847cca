//! Opening a port: the checks, the modes tried in order, and the sentence for each way it can fail.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::interface::Interface;
use super::kernel_stats::{DropAdvice, DropLedger};
use super::link::LinkStatus;
use super::netlink::Netlink;
use super::port::{Hold, XdpPort};
use super::program::{AttachMode, Redirect, XdpLink};
use super::queue::{QueueSetup, XdpQueue};
use super::socket::{Binding, Kick, Rings, SetupError, XskSocket};
use super::sys;
use super::umem::Umem;
use super::{AfXdpOptions, ChecksumMode, XdpMode, ZeroCopy};
use crate::pool::BufferPool;
use crate::ports::{OpenPort, PortError};

/// How long a program left by a process that is just dying may stand in the way.
const ATTACH_PATIENCE: Duration = Duration::from_secs(1);

/// Opens an interface: takes it from the host's stack until the port is closed or the process ends.
///
/// Queue `q` uses `pools[q % pools.len()]`; at most a quarter of a pool is kept offered for
/// receive by this port. `name` is the port's name in the log.
///
/// # Errors
/// A [`PortError`] with one line: what was found, what was expected, what to do. Nothing stays
/// attached and no buffer is taken when it fails.
pub fn open(
    name: &str,
    options: &AfXdpOptions,
    pools: &mut [BufferPool],
) -> Result<OpenPort, PortError> {
    sys::raise_memlock_limit();
    let device = options.interface.as_str();
    let mut netlink =
        Netlink::open().map_err(|source| os(device, "socket(NETLINK_ROUTE)", source))?;
    let interface = Interface::find(&mut netlink, device)?;
    may_take(&interface, options, &mut netlink)?;
    let queues = queue_count(&interface, options)?;
    let umems = umems(device, pools)?;
    let taken = take(&interface, options, &umems, queues)?;
    let link = LinkStatus::watch(interface.link.index)
        .map_err(|source| os(device, "netlink(RTM_GETLINK)", source))?;
    let promiscuous = if options.promiscuous { promiscuous(&interface) } else { None };
    let mode = format!("{} {}", interface.driver, taken.way.name());
    tracing::info!("port {name}: {device} opened, {mode}, {queues} queue(s)");
    notices(&interface, taken.way, &umems[0]);
    let link = Arc::new(link);
    let queues: Vec<_> = queue_setups(&interface, options, taken.way, taken.sockets, &umems, &link);
    let kernel = queues.iter().map(|setup| Arc::clone(&setup.kernel)).collect();
    let count = pools.len();
    let queues = queues
        .into_iter()
        .enumerate()
        .map(|(q, setup)| Box::new(XdpQueue::new(setup, &mut pools[q % count])) as _)
        .collect();
    let hold = Some(Hold { _program: taken.link, promiscuous });
    Ok(OpenPort { port: Box::new(XdpPort { interface, mode, link, kernel, hold }), queues })
}

fn os(device: &str, what: &str, source: io::Error) -> PortError {
    PortError::Os { device: device.to_owned(), what: what.to_owned(), source }
}

fn unsupported(device: &str, problem: impl Into<String>) -> PortError {
    PortError::Unsupported { device: device.to_owned(), problem: problem.into() }
}

/// Refuses what must not or cannot be taken.
fn may_take(
    interface: &Interface,
    options: &AfXdpOptions,
    netlink: &mut Netlink,
) -> Result<(), PortError> {
    let device = options.interface.as_str();
    if interface.link.loopback {
        return Err(unsupported(
            device,
            "the loopback interface cannot be a port; use a veth pair",
        ));
    }
    if !options.ring_descriptors.is_power_of_two()
        || !(64..=32_768).contains(&options.ring_descriptors)
    {
        return Err(unsupported(
            device,
            format!(
                "ring_descriptors must be a power of two from 64 to 32768, found {}",
                options.ring_descriptors
            ),
        ));
    }
    if options.mode == XdpMode::Generic && options.zero_copy == ZeroCopy::Require {
        return Err(unsupported(
            device,
            "zero_copy = \"require\" needs native mode; set mode = \"auto\" or \"native\"",
        ));
    }
    let defaults = netlink
        .default_route_interfaces()
        .map_err(|source| os(device, "netlink(RTM_GETROUTE)", source))?;
    if defaults.contains(&interface.link.index) && !options.allow_default_route {
        return Err(unsupported(
            device,
            format!(
                "{device} carries the default route; taking it would cut this machine off; to do \
                 so all the same, use --force"
            ),
        ));
    }
    if !interface.link.admin_up {
        return Err(unsupported(
            device,
            format!("the interface is down; run `ip link set {device} up` first"),
        ));
    }
    Ok(())
}

/// Every queue that receives must have a socket, and every socket a transmit queue.
fn queue_count(interface: &Interface, options: &AfXdpOptions) -> Result<u32, PortError> {
    let device = options.interface.as_str();
    let rx = interface.rx_channels;
    let wanted = options.queues.map_or(rx, u32::from);
    if wanted != rx {
        return Err(unsupported(
            device,
            format!(
                "the interface receives on {rx} queue(s) and queues = {wanted}; every queue needs a \
                 socket: leave `queues` out, or run `ethtool -L {device} combined {wanted}` (on \
                 veth: `rx {wanted} tx {wanted}`)"
            ),
        ));
    }
    let tx = interface.tx_channels.max(interface.link.tx_queues);
    if tx < rx {
        return Err(unsupported(
            device,
            format!(
                "the interface has {rx} receive queues and {tx} transmit queue(s); it needs as many \
                 of both (for a veth: `ip link add … numtxqueues {rx} numrxqueues {rx}`)"
            ),
        ));
    }
    Ok(rx)
}

fn umems(device: &str, pools: &[BufferPool]) -> Result<Vec<Umem>, PortError> {
    if pools.is_empty() {
        return Err(unsupported(device, "no buffer pool was given; a port needs at least one"));
    }
    pools
        .iter()
        .map(|pool| Umem::new(pool).map_err(|problem| unsupported(device, problem)))
        .collect()
}

/// One way to drive an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    attach: AttachMode,
    zero_copy: bool,
}

impl Way {
    fn name(self) -> String {
        let copy = if self.zero_copy { "zero-copy" } else { "copy" };
        format!("{} {copy}", self.attach.name())
    }
}

/// The ways to try, best first.
fn ways(options: &AfXdpOptions) -> Vec<Way> {
    let way = |attach, zero_copy| Way { attach, zero_copy };
    let mut ways = vec![
        way(AttachMode::Native, true),
        way(AttachMode::Native, false),
        way(AttachMode::Generic, false),
    ];
    ways.retain(|way| match options.mode {
        XdpMode::Auto => true,
        XdpMode::Native => way.attach == AttachMode::Native,
        XdpMode::Generic => way.attach == AttachMode::Generic,
    });
    ways.retain(|way| match options.zero_copy {
        ZeroCopy::Auto => true,
        ZeroCopy::Off => !way.zero_copy,
        ZeroCopy::Require => way.zero_copy,
    });
    ways
}

/// A queue's socket and rings.
type BoundQueue = (XskSocket, Rings, Binding);

/// An interface with our program on it and a socket on every queue.
struct Taken {
    way: Way,
    link: XdpLink,
    sockets: Vec<BoundQueue>,
}

/// Why one way did not work.
enum Refusal {
    /// Another way may.
    Next(PortError),
    /// No way will.
    Final(PortError),
}

/// Tries one way after the other; says which failed and why.
fn take(
    interface: &Interface,
    options: &AfXdpOptions,
    umems: &[Umem],
    queues: u32,
) -> Result<Taken, PortError> {
    let mut last = None;
    for way in ways(options) {
        match try_way(interface, options, umems, queues, way) {
            Ok(taken) => return Ok(taken),
            Err(Refusal::Final(error)) => return Err(error),
            Err(Refusal::Next(error)) => {
                tracing::info!("{}: not {}: {error}", options.interface, way.name());
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| unsupported(&options.interface, "no mode is left to try")))
}

fn try_way(
    interface: &Interface,
    options: &AfXdpOptions,
    umems: &[Umem],
    queues: u32,
    way: Way,
) -> Result<Taken, Refusal> {
    let device = options.interface.as_str();
    let fragments = umems[0].multi_chunk();
    let redirect = Redirect::load(queues, fragments)
        .map_err(|source| Refusal::Final(load_refusal(device, fragments, source)))?;
    // Some drivers take a zero-copy socket only with a program on; so that comes first.
    let link = attach_patiently(&redirect, interface, way)
        .map_err(|source| attach_refusal(interface, way, source))?;
    let mut sockets = Vec::new();
    for queue in 0..queues {
        let binding = Binding {
            ifindex: interface.link.index,
            queue,
            descriptors: options.ring_descriptors,
            zero_copy: way.zero_copy,
            busy_poll: options.busy_poll,
        };
        let umem = &umems[queue as usize % umems.len()];
        let (socket, rings) = XskSocket::open(umem, &binding)
            .map_err(|error| socket_refusal(device, queue, error))?;
        check_obtained(device, &socket, way)?;
        redirect.set_socket(queue, socket.fd()).map_err(|source| {
            Refusal::Final(refused(device, "bpf(BPF_MAP_UPDATE_ELEM)", source))
        })?;
        sockets.push((socket, rings, binding));
    }
    Ok(Taken { way, link, sockets })
}

/// Attaches, waiting out a predecessor whose program is just being detached.
fn attach_patiently(redirect: &Redirect, interface: &Interface, way: Way) -> io::Result<XdpLink> {
    let started = Instant::now();
    loop {
        match redirect.attach(interface.link.index, way.attach) {
            Err(error) if is_taken(&error) && started.elapsed() < ATTACH_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

/// A bind that asked for zero-copy may have been given copy; and some drivers accept a bind and
/// then fail the first send.
fn check_obtained(device: &str, socket: &XskSocket, way: Way) -> Result<(), Refusal> {
    if way.zero_copy && !socket.is_zero_copy() {
        return Err(Refusal::Next(unsupported(device, "the driver gave copy mode for zero-copy")));
    }
    if socket.kick_transmit() == Kick::Gone {
        return Err(Refusal::Next(unsupported(device, "the driver failed the first send")));
    }
    Ok(())
}

/// Programs that see frames of several chunks came with Linux 5.18, sockets that take them with 6.6.
fn load_refusal(device: &str, fragments: bool, source: io::Error) -> PortError {
    if fragments && source.raw_os_error() == Some(libc::EINVAL) {
        return unsupported(
            device,
            "this kernel cannot receive frames of several chunks (Linux 6.6 can); set \
             pool.buffer_bytes = 4096",
        );
    }
    refused(device, "bpf(BPF_PROG_LOAD)", source)
}

fn attach_refusal(interface: &Interface, way: Way, source: io::Error) -> Refusal {
    let device = interface.link.name.as_str();
    if is_taken(&source) {
        // Asked again: it may have come after our first look.
        let program = Netlink::open()
            .and_then(|mut netlink| netlink.links())
            .ok()
            .and_then(|links| links.into_iter().find(|link| link.index == interface.link.index))
            .and_then(|link| link.xdp_program)
            .map_or_else(String::new, |id| format!(" (id {id})"));
        return Refusal::Final(unsupported(
            device,
            format!(
                "another XDP program{program} is attached; stop the program that owns it, or run \
                 `ip link set {device} xdp off xdpgeneric off` (`bpftool net` shows who)"
            ),
        ));
    }
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            Refusal::Final(refused(device, "bpf(BPF_LINK_CREATE)", source))
        }
        Some(libc::ERANGE) => {
            let mtu = interface.link.mtu_bytes;
            let problem = format!(
                "the MTU ({mtu}, or the veth peer's) is too large for native mode with frames in one \
                 buffer chunk; lower it to 3498, or set pool.buffer_bytes = 12288"
            );
            tracing::warn!("{device}: {problem}");
            Refusal::Next(unsupported(device, problem))
        }
        _ => {
            let what = format!("bpf(BPF_LINK_CREATE, {})", way.attach.name());
            Refusal::Next(os(device, &what, source))
        }
    }
}

fn socket_refusal(device: &str, queue: u32, error: SetupError) -> Refusal {
    let what = error.what;
    match error.errno() {
        libc::EPERM | libc::EACCES => Refusal::Final(refused(device, what, error.source)),
        libc::ENOBUFS if what.contains("XDP_UMEM_REG") => {
            Refusal::Final(refused(device, "locking the packet region in memory", error.source))
        }
        libc::ENETDOWN => Refusal::Final(unsupported(
            device,
            format!("the interface is down; run `ip link set {device} up` first"),
        )),
        libc::EBUSY => Refusal::Final(unsupported(
            device,
            format!("queue {queue} is taken by another AF_XDP socket; stop its owner"),
        )),
        libc::EAFNOSUPPORT => Refusal::Final(unsupported(
            device,
            "the kernel has no AF_XDP (CONFIG_XDP_SOCKETS); use the dpdk back end",
        )),
        _ => Refusal::Next(os(device, what, error.source)),
    }
}

/// The error for a call that the kernel refused: who may, or the bare call.
fn refused(device: &str, what: &str, source: io::Error) -> PortError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOBUFS) => PortError::Permission {
            device: device.to_owned(),
            what: what.to_owned(),
            remedy: "run as root, or grant the manager CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF and \
                     CAP_IPC_LOCK (`setcap cap_net_raw,cap_net_admin,cap_bpf,cap_ipc_lock+ep \
                     millrace-manager`)"
                .into(),
        },
        _ => os(device, what, source),
    }
}

/// Keeps the interface promiscuous for as long as the socket lives; a packet socket of no protocol
/// receives nothing.
fn promiscuous(interface: &Interface) -> Option<OwnedFd> {
    sys::promiscuous_socket(interface.link.index)
        .inspect_err(|error| {
            tracing::warn!("{}: cannot set promiscuous mode: {error}", interface.link.name);
        })
        .ok()
}

/// Says beforehand what is known to bite on this kind of device.
fn notices(interface: &Interface, way: Way, umem: &Umem) {
    let device = interface.link.name.as_str();
    let longest = longest_frame_bytes(umem);
    if interface.link.mtu_bytes + 18 > longest {
        tracing::warn!(
            "{device}: the MTU of {} allows frames longer than the {longest} bytes that fit in a \
             buffer, which the kernel will drop; lower the MTU or raise pool.buffer_bytes",
            interface.link.mtu_bytes
        );
    }
    if interface.strips_vlan {
        tracing::warn!(
            "{device}: the NIC takes VLAN tags off received frames; `ethtool -K {device} rxvlan \
             off` keeps them"
        );
    }
    if interface.driver == "veth" {
        tracing::info!(
            "{device}: VLAN tags that the peer leaves to hardware are lost; `ethtool -K <peer> \
             txvlan off` keeps them"
        );
    }
    if way.attach == AttachMode::Generic {
        tracing::info!(
            "{device}: generic mode does not see segments over {longest} bytes; the sender must cut \
             them: `ethtool -K <sender's interface> tx off tso off gso off`"
        );
    }
}

/// The longest frame that is delivered.
fn longest_frame_bytes(umem: &Umem) -> u32 {
    if umem.multi_chunk() { umem.max_frame_bytes() } else { umem.receive_bytes() }
}

/// What each queue is made of.
fn queue_setups(
    interface: &Interface,
    options: &AfXdpOptions,
    way: Way,
    sockets: Vec<BoundQueue>,
    umems: &[Umem],
    link: &Arc<LinkStatus>,
) -> Vec<QueueSetup> {
    let complete_checksums = match options.checksum {
        Some(mode) => mode == ChecksumMode::Complete,
        None => interface.is_software(),
    };
    let generic = way.attach == AttachMode::Generic;
    let count = sockets.len();
    let setup = |(q, (socket, rings, binding)): (usize, BoundQueue)| {
        let umem = umems[q % umems.len()].clone();
        let longest = longest_frame_bytes(&umem);
        QueueSetup {
            fill_target: fill_target(&umem, &binding, count.div_ceil(umems.len())),
            advice: DropAdvice::new(&interface.link.name, binding.queue, longest, generic),
            ledger: (!binding.zero_copy).then(|| DropLedger::new(umem.multi_chunk())),
            socket,
            rings,
            binding,
            umem,
            link: Arc::clone(link),
            kernel: Arc::default(),
            complete_checksums,
        }
    };
    sockets.into_iter().enumerate().map(setup).collect()
}

/// Buffers that a queue keeps offered: a full ring, but all queues of the port together never more
/// than a quarter of the pool, so that other ports and the NFs have theirs.
fn fill_target(umem: &Umem, binding: &Binding, queues_on_pool: usize) -> u32 {
    let share = umem.count() / 4 / u32::try_from(queues_on_pool).unwrap_or(u32::MAX);
    share.clamp(1, binding.descriptors)
}
