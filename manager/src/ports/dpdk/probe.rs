//! Device names, and why a device cannot be opened: found out before DPDK is asked, whose own
//! messages rarely say what to do.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::eal::unsupported;
use super::kernel_if::KernelInterface;
use crate::ports::PortError;

/// Drivers without hardware, as DPDK names their devices, followed by a number.
const VDEV_DRIVERS: &[&str] =
    &["net_af_packet", "net_af_xdp", "net_tap", "net_pcap", "net_null", "net_ring", "net_memif"];
/// Kernel drivers whose DPDK driver works through them, so that nothing needs rebinding.
const BIFURCATED: &[&str] = &["mlx4_core", "mlx5_core", "mana"];
/// Bits of the capability sets (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// What DPDK calls the device: the string before the driver's arguments.
pub(super) fn device_name(device: &str) -> &str {
    device.split(',').next().unwrap_or(device)
}

/// A driver's argument of a vdev string.
pub(super) fn argument<'a>(device: &'a str, key: &str) -> Option<&'a str> {
    device
        .split(',')
        .skip(1)
        .find_map(|pair| pair.split_once('=').filter(|(k, _)| *k == key))
        .map(|(_, value)| value)
}

/// True for `0000:01:00.0` and `01:00.0`, with or without arguments.
pub(super) fn is_pci(device: &str) -> bool {
    let name = device_name(device);
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let Some((address, function)) = name.rsplit_once('.') else { return false };
    let parts: Vec<&str> = address.split(':').collect();
    hex(function) && (2..=3).contains(&parts.len()) && parts.iter().all(|part| hex(part))
}

/// The PCI address with its domain, arguments kept.
pub(super) fn full_pci_name(device: &str) -> String {
    let colons = device_name(device).matches(':').count();
    if colons == 1 { format!("0000:{device}") } else { device.to_owned() }
}

/// Fails with a clear line where the device cannot work.
pub(super) fn check(device: &str) -> Result<(), PortError> {
    if is_pci(device) { check_pci(device) } else { check_vdev(device) }
}

fn check_pci(device: &str) -> Result<(), PortError> {
    let full = full_pci_name(device);
    let path = Path::new(PCI_DEVICES).join(device_name(&full));
    if !path.exists() {
        return Err(PortError::NotFound {
            device: device.to_owned(),
            what: "PCI device",
            hint: there_are(&network_pci_devices()),
        });
    }
    let driver = link_target(&path.join("driver"));
    let bound = driver.as_deref().unwrap_or("no driver");
    if BIFURCATED.contains(&bound) {
        return Ok(());
    }
    if bound != "vfio-pci" {
        return Err(unsupported(
            device,
            format!(
                "bound to {bound}, not to vfio-pci; `modprobe vfio-pci && dpdk-devbind.py -b \
                 vfio-pci {}` binds it",
                device_name(&full)
            ),
        ));
    }
    check_vfio_group(device, &path)
}

/// A group's file may be opened by its owner only; without an IOMMU there is no group.
fn check_vfio_group(device: &str, path: &Path) -> Result<(), PortError> {
    let Some(group) = link_target(&path.join("iommu_group")) else {
        return Err(unsupported(
            device,
            "no IOMMU stands before it; boot with intel_iommu=on or amd_iommu=on (and enable it \
             in the firmware), or use backend = \"af_xdp\""
                .into(),
        ));
    };
    let node = PathBuf::from("/dev/vfio").join(group);
    let wanted = nix::unistd::AccessFlags::R_OK | nix::unistd::AccessFlags::W_OK;
    match nix::unistd::access(&node, wanted) {
        Err(nix::errno::Errno::EACCES | nix::errno::Errno::EPERM) => Err(PortError::Permission {
            device: device.to_owned(),
            what: format!("open {}", node.display()),
            remedy: format!("run as root, or `chown $USER {}`", node.display()),
        }),
        _ => Ok(()),
    }
}

fn check_vdev(device: &str) -> Result<(), PortError> {
    let name = device_name(device);
    let driver = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if !VDEV_DRIVERS.contains(&driver) {
        let known: Vec<String> = VDEV_DRIVERS.iter().map(|d| format!("{d}N")).collect();
        return Err(PortError::NotFound {
            device: device.to_owned(),
            what: "PCI address or vdev",
            hint: there_are(&known),
        });
    }
    match driver {
        "net_af_xdp" => Err(unsupported(
            device,
            "DPDK's AF_XDP driver needs its own packet memory; use backend = \"af_xdp\", which \
             receives into the region without it"
                .into(),
        )),
        "net_af_packet" => {
            check_interface(device)?;
            check_capability(device, CAP_NET_RAW, "CAP_NET_RAW")
        }
        "net_tap" => check_capability(device, CAP_NET_ADMIN, "CAP_NET_ADMIN"),
        "net_pcap" => check_capture(device),
        _ => Ok(()),
    }
}

/// Drivers report only that opening a socket failed, not that it was refused.
fn check_capability(device: &str, bit: u32, name: &str) -> Result<(), PortError> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    if effective.is_none_or(|set| set & (1 << bit) != 0) {
        return Ok(());
    }
    Err(PortError::Permission {
        device: device.to_owned(),
        what: format!("{name} is missing"),
        remedy: format!("run as root, or give the manager {name}"),
    })
}

fn check_interface(device: &str) -> Result<(), PortError> {
    let Some(name) = argument(device, "iface") else {
        return Err(unsupported(device, "the argument iface=NAME is missing".into()));
    };
    KernelInterface::open(name).map(|_| ()).map_err(|_| PortError::NotFound {
        device: device.to_owned(),
        what: "interface",
        hint: there_are(&entries("/sys/class/net")),
    })
}

fn check_capture(device: &str) -> Result<(), PortError> {
    match argument(device, "rx_pcap") {
        Some(file) if !Path::new(file).exists() => Err(PortError::NotFound {
            device: device.to_owned(),
            what: "capture file",
            hint: String::new(),
        }),
        _ => Ok(()),
    }
}

/// What DPDK's probe said, as one of our errors.
pub(super) fn refused(device: &str, why: &str) -> PortError {
    let denied = ["Operation not permitted", "Permission denied"];
    if denied.iter().any(|words| why.contains(words)) {
        return PortError::Permission {
            device: device.to_owned(),
            what: format!("DPDK: {why}"),
            remedy: "run as root".into(),
        };
    }
    let hint = if is_pci(device) {
        "check that it is bound to vfio-pci and not in use"
    } else {
        "check the arguments after the comma"
    };
    unsupported(device, format!("DPDK does not take it ({why}); {hint}"))
}

fn there_are(names: &[String]) -> String {
    if names.is_empty() {
        return "; there is none".into();
    }
    format!("; there are: {}", names.join(", "))
}

fn network_pci_devices() -> Vec<String> {
    let is_network = |name: &String| {
        std::fs::read_to_string(Path::new(PCI_DEVICES).join(name).join("class"))
            .is_ok_and(|class| class.starts_with("0x02"))
    };
    entries(PCI_DEVICES).into_iter().filter(is_network).collect()
}

fn entries(directory: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn link_target(path: &Path) -> Option<String> {
    Some(std::fs::read_link(path).ok()?.file_name()?.to_string_lossy().into_owned())
}

/// The vdev string with the arguments that follow from the port's configuration, where the user
/// has not given them. `usable_bytes` is the room for a frame in a buffer.
///
/// `net_af_packet` reads from a ring of frames that must fit in a buffer, whose size must divide
/// the ring's blocks, which are whole pages (Linux, Documentation/networking/packet_mmap).
pub(super) fn with_derived_arguments(device: &str, queues: u16, usable_bytes: u32) -> String {
    if is_pci(device) {
        return full_pci_name(device);
    }
    let mut full = device.to_owned();
    if !device.starts_with("net_af_packet") {
        return full;
    }
    let mut add = |key: &str, value: u32| {
        if argument(device, key).is_none() {
            full.push_str(&format!(",{key}={value}"));
        }
    };
    if queues > 1 {
        add("qpairs", queues.into());
    }
    if argument(device, "framesz").is_none() && argument(device, "blocksz").is_none() {
        const HEADER_BYTES: u32 = 32;
        const STEP_BYTES: u32 = 256;
        const PAGE_BYTES: u32 = 4096;
        let frame = (usable_bytes + HEADER_BYTES) / STEP_BYTES * STEP_BYTES;
        // The smallest whole number of pages that is a whole number of frames.
        let twos = frame.trailing_zeros().min(PAGE_BYTES.trailing_zeros());
        let block = (frame >> twos) * PAGE_BYTES;
        let per_block = block / frame;
        add("framesz", frame);
        add("blocksz", block);
        add("framecnt", 512 / per_block * per_block);
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_are_told_from_vdevs() {
        for device in ["0000:01:00.0", "01:00.0", "0000:3b:00.1,arg=1"] {
            assert!(is_pci(device), "{device}");
        }
        for device in ["net_null0", "net_pcap0,rx_pcap=/a:b.0", "eth0.5", ""] {
            assert!(!is_pci(device), "{device}");
        }
        assert_eq!(full_pci_name("01:00.0,a=b"), "0000:01:00.0,a=b");
        assert_eq!(full_pci_name("0001:01:00.0"), "0001:01:00.0");
    }

    #[test]
    fn what_does_not_exist_is_answered_with_what_does() {
        let error = check("net_bogus0").unwrap_err().to_string();
        assert!(
            error.starts_with("net_bogus0: no such PCI address or vdev; there are: "),
            "{error}"
        );
        let error = check("ffff:1f:1f.7").unwrap_err().to_string();
        assert!(error.contains("no such PCI device; there "), "{error}");
        let error = check("net_af_packet0,iface=mrd-none").unwrap_err().to_string();
        assert!(error.contains("no such interface; there are: "), "{error}");
        let error = check("net_af_packet0").unwrap_err().to_string();
        assert!(error.contains("iface=NAME is missing"), "{error}");
        let error = check("net_af_xdp0,iface=lo").unwrap_err().to_string();
        assert!(error.contains("backend = \"af_xdp\""), "{error}");
    }

    #[test]
    fn derived_frames_of_af_packet_divide_their_blocks_and_fit_a_buffer() {
        for usable in [1792_u32, 1920, 2112, 9984, 16_000] {
            let full = with_derived_arguments("net_af_packet0,iface=x", 2, usable);
            let number = |key| argument(&full, key).unwrap().parse::<u32>().unwrap();
            assert_eq!(number("qpairs"), 2);
            assert!(number("framesz") - 32 <= usable);
            assert_eq!(number("blocksz") % number("framesz"), 0);
            assert_eq!(number("blocksz") % 4096, 0);
            assert_eq!(number("framecnt") % (number("blocksz") / number("framesz")), 0);
        }
        let own = "net_af_packet0,iface=x,framesz=4096,blocksz=8192";
        assert_eq!(with_derived_arguments(own, 1, 2048), own);
    }
}
