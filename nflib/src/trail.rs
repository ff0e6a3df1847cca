//! A trail: the NFs that a packet met, written down in the packet itself.
//!
//! Whoever makes a packet puts an empty trail at the start of its TCP or UDP payload; each NF that
//! [`stamp`]s adds one step; whoever gets the packet reads what way it came. Labs use it to see a
//! chain from outside: the counters of a manager say what it believes, a trail what happened.
//!
//! ```text
//! byte 0       magic "MRTRAIL1"
//!      8       steps there is room for
//!      9       steps taken, also those that found no room
//!      10      0 (6 bytes)
//!      16 + 8n service id (2 bytes), route (2), instance (4), big endian
//! ```
#![forbid(unsafe_code)]

use crate::descriptor::{RouteId, ServiceId};
use crate::headers::{Headers, Transport, checksum};

/// What a trail begins with.
pub const MAGIC: [u8; 8] = *b"MRTRAIL1";
/// Bytes before the first step.
pub const HEADER_BYTES: usize = 16;
/// Bytes of a step.
pub const STEP_BYTES: usize = 8;

const ROOM_AT: usize = 8;
const TAKEN_AT: usize = 9;

/// One NF that a packet met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Step {
    /// The service it provides.
    pub service: ServiceId,
    /// The route on which the packet came: one version of a chain, the same for all its steps.
    pub route: RouteId,
    /// The NF.
    pub instance: u32,
}

/// Length of a trail with room for `steps`, bytes.
#[must_use]
pub const fn len_bytes(steps: u8) -> usize {
    HEADER_BYTES + steps as usize * STEP_BYTES
}

/// Appends an empty trail with room for `steps`.
pub fn begin(payload: &mut Vec<u8>, steps: u8) {
    payload.extend(MAGIC);
    payload.extend([steps, 0, 0, 0, 0, 0, 0, 0]);
    payload.resize(payload.len() + usize::from(steps) * STEP_BYTES, 0);
}

/// A trail that has been read.
#[derive(Clone, Copy, Debug)]
pub struct Trail<'p> {
    steps: &'p [u8],
    taken: u8,
    room: u8,
}

impl<'p> Trail<'p> {
    /// Reads the trail at the start of a payload; `None` when there is none, or only a part of it.
    #[must_use]
    pub fn read(payload: &'p [u8]) -> Option<Self> {
        let (header, rest) = payload.split_first_chunk::<HEADER_BYTES>()?;
        if header[..MAGIC.len()] != MAGIC {
            return None;
        }
        let (room, taken) = (header[ROOM_AT], header[TAKEN_AT]);
        let steps = rest.get(..usize::from(room) * STEP_BYTES)?;
        Some(Self { steps, taken, room })
    }

    /// The steps, first one first.
    pub fn steps(&self) -> impl Iterator<Item = Step> + 'p {
        let (steps, _) = self.steps.as_chunks::<STEP_BYTES>();
        steps.iter().take(usize::from(self.taken)).map(|&[s0, s1, r0, r1, i0, i1, i2, i3]| Step {
            service: u16::from_be_bytes([s0, s1]),
            route: u16::from_be_bytes([r0, r1]),
            instance: u32::from_be_bytes([i0, i1, i2, i3]),
        })
    }

    /// Steps that found no room.
    #[must_use]
    pub fn missing(&self) -> u8 {
        self.taken.saturating_sub(self.room)
    }

    /// Length of the trail, bytes: where the payload proper begins.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        len_bytes(self.room)
    }
}

/// Adds a step to the trail in the payload of a frame, and keeps the checksum of layer 4 in step. A
/// full trail only counts it. Returns whether there was a trail; without one nothing is changed.
pub fn stamp(frame: &mut [u8], step: Step) -> bool {
    let headers = Headers::parse(frame);
    let Some(trail) = Trail::read(headers.payload(frame)) else { return false };
    let Trail { taken, room, .. } = trail;
    let Some(checksum_at) = checksum_offset(frame, &headers) else { return false };
    let start = usize::from(headers.payload_offset);
    if taken < room {
        let mut bytes = [0; STEP_BYTES];
        bytes[..2].copy_from_slice(&step.service.to_be_bytes());
        bytes[2..4].copy_from_slice(&step.route.to_be_bytes());
        bytes[4..].copy_from_slice(&step.instance.to_be_bytes());
        replace(frame, start + len_bytes(taken), &bytes, checksum_at);
    }
    let counts = [room, taken.saturating_add(1)];
    replace(frame, start + ROOM_AT, &counts, checksum_at);
    true
}

/// Where the checksum of TCP or UDP lies; inner `None` for UDP that uses none, outer for what is
/// neither.
fn checksum_offset(frame: &[u8], headers: &Headers) -> Option<Option<usize>> {
    let within = match headers.transport {
        Transport::Tcp { .. } => 16,
        Transport::Udp { .. } => 6,
        _ => return None,
    };
    let at = usize::from(headers.l4_offset) + within;
    let unused = matches!(headers.transport, Transport::Udp { .. }) && frame[at..at + 2] == [0, 0];
    Some((!unused).then_some(at))
}

/// Puts `new` at `at`, an even number of bytes behind the start of layer 4.
fn replace(frame: &mut [u8], at: usize, new: &[u8], checksum_at: Option<usize>) {
    let (old, checksum) = (at..at + new.len(), checksum_at.map(|at| at..at + 2));
    if let Some(field) = checksum {
        let before = u16::from_be_bytes([frame[field.start], frame[field.start + 1]]);
        let mut after = checksum::update(before, &frame[old.clone()], new);
        if after == 0 {
            // UDP's 0 means "not used" (RFC 768); to TCP both zeroes of one's complement are equal.
            after = 0xffff;
        }
        frame[field].copy_from_slice(&after.to_be_bytes());
    }
    frame[old].copy_from_slice(new);
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::headers::tcp_flags;
    use crate::testing::FrameBuilder;

    fn frame(udp: bool, room: u8, data: &[u8]) -> Vec<u8> {
        let mut payload = Vec::new();
        begin(&mut payload, room);
        payload.extend(data);
        let ip = FrameBuilder::new()
            .ip(Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 0, 0, 2).into());
        let ip = if udp { ip.udp(7, 9) } else { ip.tcp(7, 80, tcp_flags::ACK) };
        ip.payload(&payload).build()
    }

    fn read(frame: &[u8]) -> (Vec<Step>, u8) {
        let headers = Headers::parse(frame);
        let trail = Trail::read(headers.payload(frame)).unwrap();
        (trail.steps().collect(), trail.missing())
    }

    proptest! {
        #[test]
        fn steps_are_read_as_they_were_stamped_and_the_checksum_stays_right(
            udp: bool,
            room in 0u8..10,
            data in proptest::collection::vec(any::<u8>(), 0..40),
            steps in proptest::collection::vec((any::<u16>(), any::<u16>(), any::<u32>()), 0..14),
        ) {
            let mut frame = frame(udp, room, &data);
            let steps: Vec<_> = steps
                .into_iter()
                .map(|(service, route, instance)| Step { service, route, instance })
                .collect();
            for &step in &steps {
                prop_assert!(stamp(&mut frame, step));
                let headers = Headers::parse(&frame);
                prop_assert_eq!(checksum::transport_ok(&frame, &headers), Some(true));
            }
            let kept = steps.len().min(usize::from(room));
            let (found, missing) = read(&frame);
            prop_assert_eq!(&found, &steps[..kept]);
            prop_assert_eq!(usize::from(missing), steps.len() - kept);
            prop_assert!(frame.ends_with(&data));
        }

        #[test]
        fn any_bytes_can_be_stamped(mut frame in proptest::collection::vec(any::<u8>(), 0..120)) {
            let before = frame.clone();
            if !stamp(&mut frame, Step::default()) {
                prop_assert_eq!(frame, before);
            }
        }
    }

    #[test]
    fn a_trail_cut_short_is_none_and_is_left_alone() {
        let mut payload = Vec::new();
        begin(&mut payload, 4);
        payload.pop();
        assert!(Trail::read(&payload).is_none());
        let cut = FrameBuilder::new()
            .ip(Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into())
            .udp(1, 2)
            .payload(&payload)
            .build();
        let mut stamped = cut.clone();
        assert!(!stamp(&mut stamped, Step::default()));
        assert_eq!(stamped, cut);
    }

    #[test]
    fn a_udp_checksum_that_is_not_used_stays_so() {
        let mut frame = frame(true, 2, b"x");
        let headers = Headers::parse(&frame);
        let at = usize::from(headers.l4_offset) + 6;
        frame[at..at + 2].fill(0);
        assert!(stamp(&mut frame, Step { service: 1, route: 2, instance: 3 }));
        assert_eq!(frame[at..at + 2], [0, 0]);
        assert_eq!(read(&frame).0, [Step { service: 1, route: 2, instance: 3 }]);
    }

    #[test]
    fn the_count_of_steps_stops_at_255() {
        let mut frame = frame(true, 0, b"");
        for _ in 0..300 {
            stamp(&mut frame, Step::default());
        }
        assert_eq!(read(&frame), (vec![], 255));
    }
}
