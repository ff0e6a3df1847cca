//! What an NF changed of a packet's bytes.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::ops::Range;

use nflib::control::ByteChange;

use super::fields::{Field, fields_of};
use super::journeys::View;

/// How far from its begin a header may have been put in or taken out, bytes: behind Ethernet, tags and IPv6.
const MAX_SEAM: usize = 64;
/// Longest field that is shown as a whole where one byte of it changed.
const MAX_WHOLE: usize = 16;

/// Bytes that were added in front (negative: taken away), and those that are others than before, ascending. Only
/// what was kept of both is compared.
///
/// Where bytes came to the front or went, the rest may have stayed in its place or been moved to close
/// up: a tag is put behind the addresses, which move. So the seam is sought at which least has changed.
#[must_use]
pub fn changes(before: &View, after: &View) -> (i32, Vec<ByteChange>) {
    let moved = i32::from(before.offset_bytes) - i32::from(after.offset_bytes);
    let seams = 0..=MAX_SEAM.min(before.kept.len()).min(after.kept.len());
    let best =
        seams.map(|seam| Seam { at: seam, moved }).min_by_key(|seam| seam.cost(before, after));
    let changes = best.map(|seam| seam.changes(before, after)).unwrap_or_default();
    (moved, changes)
}

/// Where bytes were put in or taken out, and how many.
#[derive(Clone, Copy)]
struct Seam {
    at: usize,
    moved: i32,
}

impl Seam {
    fn added(self) -> usize {
        usize::try_from(self.moved).unwrap_or(0)
    }

    fn removed(self) -> usize {
        usize::try_from(-self.moved).unwrap_or(0)
    }

    /// Where a byte of the packet as it left was before; `None`: it was added.
    fn origin(self, at: usize) -> Option<usize> {
        match at {
            at if at < self.at => Some(at),
            at if at < self.at + self.added() => None,
            at => Some(at - self.added() + self.removed()),
        }
    }

    fn cost(self, before: &View, after: &View) -> usize {
        let differs = |&(at, byte): &(usize, &u8)| {
            let was = self.origin(at).map(|at| before.kept.get(at));
            was.flatten().is_some_and(|was| was != byte)
        };
        after.kept.iter().enumerate().filter(differs).count()
    }

    fn changes(self, before: &View, after: &View) -> Vec<ByteChange> {
        let mut changes = Vec::new();
        let fields = fields_of(&after.kept);
        let is_changed = |at: usize| {
            let was = self.origin(at).and_then(|at| before.kept.get(at));
            was.is_some_and(|&was| was != after.kept[at])
        };
        let was = |range: Range<usize>| -> Vec<u8> {
            range.filter_map(|at| before.kept.get(self.origin(at)?).copied()).collect()
        };
        let change = |range: Range<usize>, field: Option<&Field>| ByteChange {
            at_bytes: range.start as u16,
            before: hex(&was(range.clone())),
            after: hex(&after.kept[range]),
            field: field.map(|field| field.name.to_owned()),
        };
        let mut at = 0;
        while at < after.kept.len() {
            if at == self.at {
                changes.extend(self.put_in_or_taken_out(before, after, &fields));
            }
            if self.origin(at).is_none() {
                at = (self.at + self.added()).min(after.kept.len());
                continue;
            }
            let field = fields.iter().find(|field| (field.at..field.at + field.len).contains(&at));
            // A field across the seam is no field of one of the two packets.
            let whole = field.map(|field| field.at..field.at + field.len).filter(|range| {
                range.start == at
                    && range.len() <= MAX_WHOLE
                    && !(range.start < self.at && self.at < range.end)
                    && was(range.clone()).len() == range.len()
            });
            match whole {
                Some(range) => {
                    if range.clone().any(is_changed) {
                        changes.push(change(range.clone(), field));
                    }
                    at = range.end;
                }
                None if is_changed(at) => {
                    // To the next byte that stayed, field that begins, or seam.
                    let stops = |&at: &usize| {
                        !is_changed(at)
                            || at == self.at
                            || fields.iter().any(|field| field.at == at)
                    };
                    let end = (at + 1..after.kept.len()).find(stops).unwrap_or(after.kept.len());
                    changes.push(change(at..end, field));
                    at = end;
                }
                None => at += 1,
            }
        }
        if self.at == after.kept.len() {
            changes.extend(self.put_in_or_taken_out(before, after, &fields));
        }
        changes.extend(self.at_the_end(before, after));
        changes
    }

    /// What was put in or taken out at the seam.
    fn put_in_or_taken_out(
        self,
        before: &View,
        after: &View,
        fields: &[Field],
    ) -> Option<ByteChange> {
        let part = |bytes: &[u8], len: usize| -> Vec<u8> {
            bytes[self.at.min(bytes.len())..(self.at + len).min(bytes.len())].to_vec()
        };
        let added = part(&after.kept, self.added());
        let removed = part(&before.kept, self.removed());
        let field = match (added.is_empty(), removed.is_empty()) {
            (true, true) => return None,
            (false, _) => layers(fields, self.at..self.at + added.len()),
            (true, false) => layers(&fields_of(&before.kept), self.at..self.at + removed.len()),
        };
        let (before, after) = (hex(&removed), hex(&added));
        Some(ByteChange { at_bytes: self.at as u16, before, after, field })
    }

    /// What the packet has more or less at its end than before, where all of it was kept.
    fn at_the_end(self, before: &View, after: &View) -> Option<ByteChange> {
        let is_whole = |view: &View| view.kept.len() == usize::from(view.len_bytes);
        let end = self.origin(after.kept.len())?;
        if is_whole(before) && end > before.kept.len() {
            let at = after
                .kept
                .len()
                .saturating_sub(end - before.kept.len())
                .max(self.at + self.added());
            let more = after.kept.get(at..).filter(|more| !more.is_empty())?;
            return Some(ByteChange {
                at_bytes: at as u16,
                after: hex(more),
                ..Default::default()
            });
        }
        let less = before.kept.get(end..).filter(|less| is_whole(after) && !less.is_empty())?;
        let at_bytes = after.kept.len() as u16;
        Some(ByteChange { at_bytes, before: hex(less), ..Default::default() })
    }
}

/// The headers that lie in a range: `ipv4+udp`.
fn layers(fields: &[Field], range: Range<usize>) -> Option<String> {
    let mut layers: Vec<_> = fields
        .iter()
        .filter(|field| field.at >= range.start && field.at + field.len <= range.end)
        .map(Field::layer)
        .collect();
    layers.dedup();
    (!layers.is_empty()).then(|| layers.join("+"))
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(offset_bytes: u16, bytes: &[u8]) -> View {
        View { offset_bytes, len_bytes: bytes.len() as u16, kept: bytes.into() }
    }

    /// Ethernet, IPv4, UDP, and a little data.
    fn frame() -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0xaa, 0xbb, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x12, 0x34, 0, 53, 0, 12, 0, 0, 0xde, 0xad, 0xbe, 0xef]);
        frame
    }

    fn told(changes: &[ByteChange]) -> Vec<(u16, &str, &str, Option<&str>)> {
        changes.iter().map(|c| (c.at_bytes, &*c.before, &*c.after, c.field.as_deref())).collect()
    }

    #[test]
    fn a_router_changes_addresses_ttl_and_checksum() {
        let mut after = frame();
        after[5] = 9;
        after[22] = 63;
        after[24] = 0xab;
        let (moved, changes) = changes(&whole(256, &frame()), &whole(256, &after));
        assert_eq!(moved, 0);
        let expected = [
            (0, "020000000001", "020000000009", Some("eth.dst")),
            (22, "40", "3f", Some("ipv4.ttl")),
            (24, "aabb", "abbb", Some("ipv4.checksum")),
        ];
        assert_eq!(told(&changes), expected);
    }

    #[test]
    fn a_tag_is_put_in_behind_the_addresses_and_taken_out_there() {
        let mut tagged = frame();
        tagged.splice(12..12, [0x81, 0, 0, 100]);
        let (moved, put) = changes(&whole(256, &frame()), &whole(252, &tagged));
        assert_eq!((moved, told(&put)), (4, vec![(12, "", "81000064", Some("vlan"))]));
        let (moved, taken) = changes(&whole(252, &tagged), &whole(256, &frame()));
        assert_eq!((moved, told(&taken)), (-4, vec![(12, "81000064", "", Some("vlan"))]));
    }

    #[test]
    fn an_outer_header_is_named_by_what_it_is_made_of() {
        let mut outer = frame()[..42].to_vec();
        outer[0] = 7;
        outer.extend(frame());
        let (moved, put) = changes(&whole(256, &frame()), &whole(214, &outer));
        assert_eq!((moved, put.len()), (42, 1));
        assert_eq!((put[0].at_bytes, put[0].field.as_deref()), (0, Some("eth+ipv4+udp")));
    }

    #[test]
    fn payload_that_changed_has_no_name_and_only_its_changed_bytes() {
        let mut after = frame();
        after[43] ^= 0xff;
        after[44] ^= 0xff;
        let (_, changes) = changes(&whole(256, &frame()), &whole(256, &after));
        assert_eq!(told(&changes), [(43, "adbe", "5241", None)]);
    }

    #[test]
    fn what_was_not_kept_is_not_compared() {
        let before = View { kept: frame()[..20].into(), ..whole(256, &frame()) };
        let mut after = frame();
        after[22] = 63;
        assert_eq!(changes(&before, &whole(256, &after)).1, []);
        let nothing = View { kept: Box::default(), ..whole(256, &frame()) };
        assert_eq!(changes(&nothing, &nothing), (0, Vec::new()));
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
            .collect()
    }

    /// The packet as it left, by what is said to have changed.
    fn patched(before: &[u8], changes: &[ByteChange]) -> Vec<u8> {
        let (mut out, mut at) = (Vec::new(), 0);
        for change in changes {
            let same = usize::from(change.at_bytes) - out.len();
            out.extend(&before[at..at + same]);
            at += same + change.before.len() / 2;
            assert_eq!(bytes(&change.before), before[at - change.before.len() / 2..at]);
            out.extend(bytes(&change.after));
        }
        out.extend(&before[at..]);
        out
    }

    proptest! {
        #[test]
        fn the_changes_make_of_the_packet_before_the_one_after(
            start in prop::collection::vec(any::<u8>(), 0..30),
            edits in prop::collection::vec((0usize..80, any::<u8>()), 0..6),
            seam in 0usize..50,
            moved in -20i32..20,
            tail in -8i32..8,
        ) {
            let mut before = frame();
            before.extend(&start);
            let mut after = before.clone();
            let seam = seam.min(after.len());
            if moved > 0 {
                after.splice(seam..seam, (0..moved as u8).map(|byte| byte ^ 0x5a));
            } else {
                let end = (seam + moved.unsigned_abs() as usize).min(after.len());
                after.drain(seam..end);
            }
            let offset = 256 - (after.len() as i32 - before.len() as i32);
            match usize::try_from(tail) {
                Ok(more) => after.extend(vec![0xee; more]),
                Err(_) => after.truncate(after.len() - (tail.unsigned_abs() as usize).min(after.len())),
            }
            for (at, byte) in edits {
                if let Some(place) = after.get_mut(at) {
                    *place = byte;
                }
            }
            let (told_moved, changes) =
                changes(&whole(256, &before), &whole(offset as u16, &after));
            prop_assert_eq!(told_moved, 256 - offset);
            prop_assert_eq!(patched(&before, &changes), after);
        }

        #[test]
        fn any_two_views_can_be_compared(
            before: Vec<u8>, after: Vec<u8>, offsets: (u16, u16), lens: (u16, u16),
        ) {
            let view = |offset_bytes, len_bytes, kept: &[u8]| View { offset_bytes, len_bytes, kept: kept.into() };
            let _ = changes(&view(offsets.0, lens.0, &before), &view(offsets.1, lens.1, &after));
        }
    }
}
