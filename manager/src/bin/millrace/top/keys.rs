//! Keys, from the bytes a terminal sends.
#![forbid(unsafe_code)]

/// What a person wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// End.
    Quit,
    /// Stop looking, or go on.
    Pause,
    /// Another view, from 1.
    View(u8),
    /// The next order of rows.
    Sort,
    /// Scroll by so many lines.
    Scroll(i32),
    /// Back to the shell for a while (Ctrl-Z).
    Suspend,
}

/// The keys in some bytes; what means nothing is passed over.
pub fn parse(mut bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while let Some((&first, mut rest)) = bytes.split_first() {
        match first {
            b'q' | b'Q' | 3 | 4 => keys.push(Key::Quit),
            b'p' | b'P' | b' ' => keys.push(Key::Pause),
            b'1'..=b'4' => keys.push(Key::View(first - b'0')),
            b's' | b'S' => keys.push(Key::Sort),
            b'j' => keys.push(Key::Scroll(1)),
            b'k' => keys.push(Key::Scroll(-1)),
            26 => keys.push(Key::Suspend),
            0x1b => {
                let (key, behind) = escape(rest);
                keys.extend(key);
                rest = behind;
            }
            _ => {}
        }
        bytes = rest;
    }
    keys
}

/// What follows an ESC: a control sequence (ECMA-48, section 5.4) is taken as a whole, so that its
/// letters and digits are no keys.
fn escape(bytes: &[u8]) -> (Option<Key>, &[u8]) {
    let [b'[' | b'O', rest @ ..] = bytes else { return (None, bytes) };
    let Some(end) = rest.iter().position(|byte| (0x40..=0x7e).contains(byte)) else {
        return (None, &[]);
    };
    let key = match &rest[..=end] {
        b"A" => Some(Key::Scroll(-1)),
        b"B" => Some(Key::Scroll(1)),
        b"5~" => Some(Key::Scroll(-10)),
        b"6~" => Some(Key::Scroll(10)),
        _ => None,
    };
    (key, &rest[end + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_known() {
        use Key::{Pause, Quit, Scroll, Sort, Suspend, View};
        for (bytes, key) in [
            (&b"q"[..], Quit),
            (b"\x03", Quit),
            (b"p", Pause),
            (b"1", View(1)),
            (b"4", View(4)),
            (b"s", Sort),
            (b"\x1b[A", Scroll(-1)),
            (b"\x1bOB", Scroll(1)),
            (b"\x1b[6~", Scroll(10)),
            (b"\x1a", Suspend),
        ] {
            assert_eq!(parse(bytes), [key]);
        }
        assert_eq!(parse(b"2s\x1b[Bq"), [View(2), Sort, Scroll(1), Quit]);
    }

    #[test]
    fn what_means_nothing_is_passed_over_whole() {
        for bytes in [&b"x5"[..], b"\x1b", b"\x1b[1;2C", b"\x1b[", b"\x1b[4~", "ü".as_bytes()] {
            assert_eq!(parse(bytes), [], "{bytes:?}");
        }
    }
}
