//! What `fec-encode` and `fec-decode` have in common: the options of a tunnel's end, and how long a
//! packet may be that goes through it.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use millrace_fec::mac::{Key, MAC_BYTES};
use millrace_fec::wire::{REPAIR_SHIM_BYTES, SOURCE_SHIM_BYTES};
use nflib::control::StateSpec;
use nflib::headers::ETHERNET_BYTES;
use nflib::{Inherited, NfError, Setup, State};

use crate::tunnel::options::{self, Mac};
use crate::tunnel::outer::{UdpChecksum, ip_udp_bytes};

/// What every link must carry that carries IPv6 (RFC 8200 section 5).
const IPV6_LINK_BYTES: usize = 1280;

/// Options of either end.
#[derive(Args, Clone, Debug)]
pub struct EndOptions {
    /// Address and UDP port of this end
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = options::end)]
    pub local: SocketAddr,
    /// Ethernet address of this end, on the link
    #[arg(long, value_name = "MAC")]
    pub mac: Mac,
    /// Longest IP packet that the path between the ends carries
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    pub mtu: u16,
    /// Lower the segment size that TCP peers agree on to what the tunnel carries
    #[arg(long, value_enum, value_name = "ON|OFF", default_value_t = Switch::On)]
    pub mss_clamp: Switch,
    /// When outer packets have a UDP checksum
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = UdpChecksum::Auto)]
    pub udp_checksum: UdpChecksum,
    /// File with the key that both ends share, 32 hexadecimal digits: parity packets and reports of
    /// whoever does not have it are refused
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

/// An end whose options were checked.
#[derive(Clone, Debug)]
pub struct End {
    /// The shared key, if there is one.
    pub key: Option<Key>,
    /// Longest packet that goes through the tunnel, bytes, from its IP header.
    pub inner_mtu_bytes: u16,
    /// Longest inner packet that can come from a far end, whatever its key, bytes.
    pub inner_most_bytes: u16,
    /// Longest outer packet, bytes, from its IP header.
    pub mtu_bytes: u16,
}

impl End {
    /// # Errors
    /// One line about the first option that is wrong.
    pub fn new(options: &EndOptions) -> Result<Self, NfError> {
        let key = options.key_file.as_deref().map(read_key).transpose()?;
        let inner_mtu_bytes = inner_mtu_bytes(options.mtu, options.local.ip(), key.is_some())?;
        let headers = ip_udp_bytes(options.local.ip()) + SOURCE_SHIM_BYTES;
        // No more than the MTU, and the MTU is enough.
        let inner_most_bytes = (usize::from(options.mtu) - headers) as u16;
        Ok(Self { key, inner_mtu_bytes, inner_most_bytes, mtu_bytes: options.mtu })
    }

    /// Whether buffers are cut so that the longest packets fit, with the outer headers before them.
    ///
    /// # Errors
    /// They are not.
    pub fn check_buffers(&self, setup: &Setup) -> Result<(), NfError> {
        setup.must_change_packets()?;
        let longest = setup.region.max_packet_bytes() as usize;
        if longest < usize::from(self.mtu_bytes) + ETHERNET_BYTES {
            return Err(NfError::new(format!(
                "--mtu {}: at most {} fit into a buffer; make pool.buffer_bytes larger",
                self.mtu_bytes,
                longest.saturating_sub(ETHERNET_BYTES)
            )));
        }
        Ok(())
    }
}

/// What an end keeps for its successor: the number of its run, a word.
pub const STATE: StateSpec = StateSpec { words: 1, version: 1 };

/// The number of this run, by which the far end tells that what counts has begun anew: the one after that
/// of the NF before, or by the clock where there was none.
#[must_use]
pub fn run_number(state: Option<&State>) -> u8 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let before = state.filter(|state| state.inherited() != Inherited::Nothing);
    let run = before.map_or(seconds, |state| state.get(0).wrapping_add(1)) as u8;
    if let Some(state) = state {
        state.change(|words| words.set(0, run.into()));
    }
    run
}

/// That both ends' addresses are of one IP version.
///
/// # Errors
/// They are not.
pub fn check_versions(local: SocketAddr, peer: SocketAddr) -> Result<(), NfError> {
    if local.is_ipv4() == peer.is_ipv4() {
        return Ok(());
    }
    let what = format!("--local {local} and --peer {peer}: expected addresses of one IP version");
    Err(NfError::new(what))
}

/// Bytes that the longest outer packet, a parity packet, is longer than the longest inner one.
fn overhead_bytes(local: IpAddr, has_key: bool) -> usize {
    let parity = REPAIR_SHIM_BYTES + if has_key { MAC_BYTES } else { 0 };
    ip_udp_bytes(local) + parity.max(SOURCE_SHIM_BYTES)
}

fn inner_mtu_bytes(mtu: u16, local: IpAddr, has_key: bool) -> Result<u16, NfError> {
    let overhead = overhead_bytes(local, has_key);
    let left = usize::from(mtu).saturating_sub(overhead);
    if left < IPV6_LINK_BYTES {
        return Err(NfError::new(format!(
            "--mtu {mtu}: the tunnel's own headers take {overhead} bytes of it and leave {left}, and a \
             link must carry {IPV6_LINK_BYTES} (RFC 8200 section 5); expected at least {}",
            IPV6_LINK_BYTES + overhead
        )));
    }
    // No more than `mtu`.
    Ok(left as u16)
}

fn read_key(path: &Path) -> Result<Key, NfError> {
    let at = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        NfError::new(format!("--key-file {at}: {error}; expected a file with a key"))
    })?;
    Key::from_hex(&text).map_err(|error| NfError::new(format!("--key-file {at}: {error}")))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use nflib::shm::StateFile;

    use super::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    #[test]
    fn what_is_left_of_the_mtu_is_what_a_parity_packet_leaves() {
        // IP and UDP, a shim of 16 bytes, a MAC of 8.
        for (local, has_key, expected) in [
            (V4, false, 1500 - 28 - 16),
            (V4, true, 1500 - 28 - 16 - 8),
            (V6, false, 1500 - 48 - 16),
            (V6, true, 1500 - 48 - 16 - 8),
        ] {
            assert_eq!(inner_mtu_bytes(1500, local, has_key).unwrap(), expected);
        }
    }

    #[test]
    fn an_mtu_that_leaves_less_than_ipv6_needs_is_refused_with_the_smallest_that_does_not() {
        for (local, has_key) in [(V4, false), (V4, true), (V6, false), (V6, true)] {
            let least = 1280 + overhead_bytes(local, has_key);
            assert_eq!(inner_mtu_bytes(least as u16, local, has_key).unwrap(), 1280);
            for mtu in [0, 576, least as u16 - 1] {
                let error = inner_mtu_bytes(mtu, local, has_key).unwrap_err().to_string();
                assert!(error.contains(&format!("expected at least {least}")), "{error}");
                assert!(error.contains(&format!("--mtu {mtu}")) && error.lines().count() == 1);
            }
        }
    }

    #[test]
    fn a_key_is_read_and_what_is_none_is_refused_with_the_file_s_name() {
        let file = |text: &str| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            write!(file, "{text}").unwrap();
            file
        };
        let good = file("000102030405060708090a0b0c0d0e0f\n");
        assert_eq!(read_key(good.path()).unwrap(), Key::new(std::array::from_fn(|at| at as u8)));
        for text in ["", "0001", "000102030405060708090a0b0c0d0e0g", "00:01:02"] {
            let bad = file(text);
            let error = read_key(bad.path()).unwrap_err().to_string();
            assert!(error.contains(&*bad.path().to_string_lossy()), "{error}");
            assert!(error.contains("32 hexadecimal digits") && error.lines().count() == 1);
        }
        let error = read_key("/nonexistent/key".as_ref()).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/key") && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn each_run_has_a_number_of_its_own_and_a_successor_the_next() {
        let file = StateFile::create(1).unwrap();
        let fd = file.fd().try_clone_to_owned().unwrap();
        let run = |generation| run_number(Some(&State::from_fd(&fd, 1, generation).unwrap()));
        let first = run(1);
        assert_eq!([run(2), run(3)], [1, 2].map(|more| first.wrapping_add(more)));
    }

    #[test]
    fn ends_of_two_ip_versions_are_refused() {
        let ends = ["192.0.2.1:1", "198.51.100.1:1", "[2001:db8::1]:1"];
        let [a, b, c]: [SocketAddr; 3] = ends.map(|end| end.parse().unwrap());
        assert!(check_versions(a, b).is_ok());
        assert!(check_versions(a, c).unwrap_err().to_string().contains("one IP version"));
    }
}
