//! Filters in tcpdump's language (`tcp port 80 and host 10.0.0.1`, see pcap-filter(7)), compiled to classic
//! BPF by libpcap.
//!
//! Nothing links libpcap. It is loaded when a filter is compiled first, so a program that links this
//! crate starts on a machine without it, and can say what is missing. Filters are for Ethernet frames, as
//! they come without a device: what asks about one (`inbound`, `ifindex`) is refused.
//!
//! A host that is named in a filter is looked up while it is compiled, which may take seconds.
#![warn(unsafe_op_in_unsafe_fn)]

mod library;

use std::ffi::CString;

use thiserror::Error;

/// One instruction of a filter, as `struct bpf_insn` has it: code, jump if true, jump if false, constant.
pub type Step = (u16, u8, u8, u32);

/// Most instructions of a filter (the kernel's BPF_MAXINSNS).
pub const MAX_STEPS: usize = 4096;
/// Longest text of a filter, bytes. libpcap's compiler calls itself for what is nested: this bounds how
/// deep.
pub const MAX_TEXT_BYTES: usize = 8192;
/// Packets are at most this long for a filter, bytes.
pub const SNAP_BYTES: u32 = 65_535;

/// Why there is no compiled filter. One line each.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    /// libpcap is not on this machine, or is none that is known.
    #[error(
        "filters need libpcap, which could not be loaded ({0}): apt-get install libpcap0.8, or \
         capture without a filter"
    )]
    Missing(String),
    /// libpcap did not understand it, in its own words; or it means what cannot be told from a frame.
    #[error("the filter \"{text}\" cannot be used: {message}; man pcap-filter tells the language")]
    Refused {
        /// The filter, made printable.
        text: String,
        /// What libpcap said.
        message: String,
    },
    /// Longer than is read.
    #[error("a filter of {0} bytes, and at most {MAX_TEXT_BYTES} are compiled: shorten it")]
    TextTooLong(usize),
    /// Longer than is run.
    #[error("the filter compiles to {0} instructions, and at most {MAX_STEPS} are run: shorten it")]
    TooManySteps(usize),
    /// It holds a byte that no text of C can.
    #[error("the filter holds a NUL byte, expected a text like \"tcp port 80\"")]
    NulByte,
}

/// Compiles a filter for Ethernet frames. A blank text is the filter that takes all packets, and has no
/// instructions.
///
/// # Errors
/// [`FilterError`].
pub fn compile(text: &str) -> Result<Vec<Step>, FilterError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(FilterError::TextTooLong(text.len()));
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let words = CString::new(text).map_err(|_| FilterError::NulByte)?;
    let steps = library::get()?.compile(&words).map_err(|message| FilterError::Refused {
        text: one_line(text),
        message: one_line(&message),
    })?;
    if steps.len() > MAX_STEPS {
        return Err(FilterError::TooManySteps(steps.len()));
    }
    match steps.iter().find_map(|step| library::unfit(*step)) {
        Some(message) => {
            Err(FilterError::Refused { text: one_line(text), message: message.to_owned() })
        }
        None => Ok(steps),
    }
}

/// What libpcap's own interpreter makes of a packet of `len_bytes`, of which `packet` are the first bytes:
/// to compare others with. `None` for a program that libpcap finds invalid, or that jumps back.
///
/// # Errors
/// [`FilterError::Missing`].
pub fn libpcap_accepts(
    steps: &[Step],
    packet: &[u8],
    len_bytes: u32,
) -> Result<Option<bool>, FilterError> {
    Ok(library::get()?.accepts(steps, packet, len_bytes))
}

/// A text of others on one line, without control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether libpcap is here; says so if it is not.
    #[allow(clippy::print_stdout)] // shown by the test harness
    fn has_libpcap() -> bool {
        match compile("tcp") {
            Err(FilterError::Missing(reason)) => {
                let must_run = std::env::var_os("MILLRACE_MUST_RUN").is_some_and(|v| v == "1");
                assert!(!must_run, "this test must run here, and cannot: {reason}");
                println!("skipped: {reason}");
                false
            }
            _ => true,
        }
    }

    /// An Ethernet frame with IPv4 and TCP: 10.0.0.1:1024 to 10.0.0.2:80.
    fn frame() -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([4, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn a_filter_is_compiled_and_takes_what_it_says() {
        if !has_libpcap() {
            return;
        }
        let frame = frame();
        for (text, expected) in [
            ("tcp port 80 and host 10.0.0.1", true),
            ("tcp port 81", false),
            ("len > 1000", false),
            ("len = 54 and ip[8] = 64", true),
            ("ether src 02:00:00:00:00:02 and not udp", true),
            ("vlan 7", false),
        ] {
            let steps = compile(text).unwrap();
            assert_eq!(libpcap_accepts(&steps, &frame, 54).unwrap(), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_blank_filter_has_no_instructions() {
        assert_eq!(compile(" \t"), Ok(Vec::new()));
    }

    #[test]
    fn what_does_not_parse_is_refused_in_libpcaps_words() {
        if !has_libpcap() {
            return;
        }
        let error = compile("tcp prot 80").unwrap_err().to_string();
        assert!(error.contains("\"tcp prot 80\"") && error.contains("syntax error"), "{error}");
        for text in ["port 99999", "tcp and", "ip and arp", "(", "ether[0", "\u{7f}\n("] {
            let error = compile(text).unwrap_err();
            assert!(matches!(error, FilterError::Refused { .. }), "{text}: {error}");
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        }
        assert_eq!(compile("tcp\0udp"), Err(FilterError::NulByte));
    }

    #[test]
    fn what_compiles_and_could_not_be_run_is_refused() {
        if !has_libpcap() {
            return;
        }
        let refused = |text: &str| compile(text).unwrap_err().to_string();
        for text in ["inbound", "tcp and outbound", "ifindex 3"] {
            assert!(refused(text).contains("beside the frame"), "{text}: {}", refused(text));
        }
        assert!(refused("ip6 protochain 6").contains("loop"), "{}", refused("ip6 protochain 6"));
    }

    #[test]
    fn what_is_nested_deeply_or_long_ends_in_an_answer() {
        if !has_libpcap() {
            return;
        }
        let long = |part: &str| part.repeat(MAX_TEXT_BYTES / part.len());
        for text in [long("("), long("not "), long("tcp or "), long("ip[0]+"), long("1+")] {
            let _ = compile(&text);
            let _ = compile(&format!("{}ip", &text[..MAX_TEXT_BYTES - 2]));
        }
        let many: String = (1..1000).map(|port| format!("port {port} or ")).collect();
        assert!(matches!(compile(&many), Err(FilterError::TextTooLong(_))));
        let many: String = (1..500).map(|n| format!("ether[{n}]={} or ", n % 256)).collect();
        let steps = compile(&many[..many[..MAX_TEXT_BYTES].rfind(" or ").unwrap()]).unwrap();
        assert!(steps.len() > 500, "{}", steps.len());
    }

    #[test]
    fn libpcap_does_not_run_what_is_no_program() {
        if !has_libpcap() {
            return;
        }
        let frame = frame();
        let ret: Step = (0x06, 0, 0, 1);
        let accepts = |steps: &[Step]| libpcap_accepts(steps, &frame, 54).unwrap();
        assert_eq!(accepts(&[ret]), Some(true));
        assert_eq!(accepts(&[]), None);
        assert_eq!(accepts(&[(0x05, 0, 0, 7), ret]), None, "jumps out");
        assert_eq!(accepts(&[(0x05, 0, 0, u32::MAX), ret]), None, "jumps back");
        assert_eq!(accepts(&[(0x60, 0, 0, 16), ret]), None, "reads beyond the scratch memory");
        assert_eq!(accepts(&[(0x34, 0, 0, 0), ret]), None, "divides by zero");
    }
}
