//! What must hold for any bytes at all: the body of the fuzz target and of a property test.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{EditError, HeaderEditor, Headers, Network, checksum};

/// Parses any bytes, checks the promises of [`Headers`], then changes every field there is.
///
/// # Panics
/// When a promise is broken.
pub fn fuzz_one(data: &[u8]) {
    let headers = Headers::parse(data);
    check_offsets(data, &headers);
    let fill = data.last().copied().unwrap_or(0x5a);
    type Edit<'e> = &'e dyn Fn(&mut HeaderEditor<'_>) -> Result<(), EditError>;
    let v4 = IpAddr::from(Ipv4Addr::new(10, fill, 0, fill));
    let v6 = IpAddr::from(Ipv6Addr::from([fill; 16]));
    let edits: [Edit<'_>; 11] = [
        &|e| e.set_dst_mac([fill; 6]),
        &|e| e.set_src_mac([fill; 6]),
        &|e| e.set_vlan_id(u16::from(fill)),
        &|e| e.set_src_addr(v4),
        &|e| e.set_dst_addr(v4),
        &|e| e.set_src_addr(v6),
        &|e| e.set_dst_addr(v6),
        &|e| e.set_src_port(u16::from(fill) << 8),
        &|e| e.set_dst_port(u16::from(fill)),
        &|e| e.decrement_ttl().map(|_| ()),
        &|e| e.set_dscp(fill),
    ];
    for edit in edits {
        check_edit(data, &headers, edit);
    }
}

fn check_offsets(data: &[u8], headers: &Headers) {
    let end = usize::from(headers.payload_end);
    assert!(headers.l3_offset <= headers.l4_offset, "{headers:?}");
    assert!(headers.l4_offset <= headers.payload_offset, "{headers:?}");
    assert!(usize::from(headers.payload_offset) <= end && end <= data.len(), "{headers:?}");
    assert_eq!(headers.payload(data).len(), end - usize::from(headers.payload_offset));
    assert!(headers.ports().is_none() || headers.addresses().is_some());
}

/// A change that succeeds gives a frame that parses to the changed headers and whose checksums are
/// as right as before; one that fails changes nothing.
fn check_edit(
    data: &[u8],
    headers: &Headers,
    edit: &dyn Fn(&mut HeaderEditor<'_>) -> Result<(), EditError>,
) {
    let mut frame = data.to_vec();
    let mut edited = *headers;
    if edit(&mut edited.edit(&mut frame)).is_err() {
        assert_eq!(frame, data);
        assert_eq!(edited, *headers);
        return;
    }
    assert_eq!(Headers::parse(&frame), edited);
    if checksum::ipv4_ok(data, headers) == Some(true) {
        assert_eq!(checksum::ipv4_ok(&frame, &edited), Some(true));
    }
    if checksum::transport_ok(data, headers) == Some(true) {
        assert_eq!(checksum::transport_ok(&frame, &edited), Some(true));
    }
    // To an editor, a frame that was cut after parsing is an error and nothing worse.
    if !matches!(headers.network, Network::None) {
        let mut edited = *headers;
        let _ = edit(&mut edited.edit(&mut frame[..data.len() / 3]));
    }
}
