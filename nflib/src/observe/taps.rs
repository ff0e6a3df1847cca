//! The taps that are set at one writer.
#![forbid(unsafe_code)]

use super::{Filter, FilterError, MAX_KEPT_BYTES, MAX_TAPS, TapPoint, TapSpec};

struct Tap {
    at: TapPoint,
    bit: u32,
    /// `None`: all packets.
    filter: Option<Filter>,
    snap_bytes: u16,
}

/// Taps, ready to be held against packets.
#[derive(Default)]
pub struct TapSet {
    taps: Vec<Tap>,
}

/// What the taps want of one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Catch {
    /// The taps that took it, a bit each.
    pub taps: u32,
    /// First bytes to keep.
    pub snap_bytes: u16,
}

impl TapSet {
    /// Taps as they were asked for.
    ///
    /// # Errors
    /// [`FilterError`] when a filter is no valid program. Numbers that are too large are left out.
    pub fn new(specs: &[TapSpec]) -> Result<Self, FilterError> {
        let known = specs.iter().filter(|spec| usize::from(spec.id) < MAX_TAPS);
        let tap = |spec: &TapSpec| {
            let filter = match spec.filter.is_empty() {
                true => None,
                false => Some(Filter::new(&spec.filter)?),
            };
            let snap_bytes = spec.snap_bytes.min(MAX_KEPT_BYTES);
            Ok(Tap { at: spec.at, bit: 1 << spec.id, filter, snap_bytes })
        };
        Ok(Self { taps: known.map(tap).collect::<Result<_, _>>()? })
    }

    /// True when there is none.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.taps.is_empty()
    }

    /// True when one sits at such a place.
    #[must_use]
    pub fn any_at(&self, is_here: impl Fn(TapPoint) -> bool) -> bool {
        self.taps.iter().any(|tap| is_here(tap.at))
    }

    /// Which of those that sit here take a packet, and what of it.
    #[must_use]
    pub fn take(&self, is_here: impl Fn(TapPoint) -> bool, packet: &[u8]) -> Catch {
        let mut catch = Catch::default();
        for tap in self.taps.iter().filter(|tap| is_here(tap.at)) {
            let len_bytes = u32::try_from(packet.len()).unwrap_or(u32::MAX);
            if tap.filter.as_ref().is_none_or(|filter| filter.accepts(packet, len_bytes)) {
                catch.taps |= tap.bit;
                catch.snap_bytes = catch.snap_bytes.max(tap.snap_bytes);
            }
        }
        catch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(id: u8, at: TapPoint, snap_bytes: u16) -> TapSpec {
        TapSpec { id, at, filter: Vec::new(), snap_bytes }
    }

    #[test]
    fn a_packet_is_taken_by_the_taps_of_its_place_that_let_it_pass() {
        // ldb [0]; jeq #7; ret 1 or 0.
        let only_seven = vec![(0x30, 0, 0, 0), (0x15, 0, 1, 7), (0x06, 0, 0, 1), (0x06, 0, 0, 0)];
        let (here, there) = (TapPoint::NfOut, TapPoint::PortIn { port: 3 });
        let filtered = TapSpec { filter: only_seven, ..spec(4, here, 500) };
        let set = TapSet::new(&[spec(1, here, 96), spec(2, there, 1000), filtered]).unwrap();
        let is_here = |at| at == here;
        let take = |packet: &[u8]| set.take(is_here, packet);
        assert_eq!(take(&[7, 1]), Catch { taps: 1 << 1 | 1 << 4, snap_bytes: 500 });
        assert_eq!(take(&[8, 1]), Catch { taps: 1 << 1, snap_bytes: 96 });
        assert_eq!(set.take(|_| false, &[7]), Catch::default());
        assert!(set.any_at(is_here) && !set.any_at(|at| at == TapPoint::PortIn { port: 4 }));
    }

    #[test]
    fn what_is_wrong_with_a_tap_is_said_or_left_out() {
        assert!(TapSet::new(&[spec(32, TapPoint::NfOut, 1)]).unwrap().is_empty());
        let endless = TapSpec { filter: vec![(0x05, 0, 0, 9)], ..spec(0, TapPoint::NfOut, 1) };
        assert!(TapSet::new(&[endless]).is_err());
        let all = TapSet::new(&[spec(0, TapPoint::NfOut, u16::MAX)]).unwrap();
        assert_eq!(all.take(|_| true, &[]).snap_bytes, MAX_KEPT_BYTES);
    }
}
