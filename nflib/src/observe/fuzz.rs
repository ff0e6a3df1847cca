//! What must hold for any bytes at all: the bodies of the fuzz targets and of property tests.
#![forbid(unsafe_code)]

use super::filter::Filter;
use crate::control::FilterStep;

/// The first byte says how many of the following eight-byte steps are a filter; the rest is a packet. The
/// filter is refused in one line, or gives the same answer twice.
///
/// # Panics
/// When a promise is broken.
pub fn fuzz_filter(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else { return };
    let (steps, _) = rest.as_chunks::<8>();
    let steps = &steps[..usize::from(count).min(steps.len())];
    let packet = &rest[8 * steps.len()..];
    let steps: Vec<FilterStep> = steps
        .iter()
        .map(|&[a, b, yes, no, c, d, e, f]| {
            (u16::from_le_bytes([a, b]), yes, no, u32::from_le_bytes([c, d, e, f]))
        })
        .collect();
    match Filter::new(&steps) {
        Ok(filter) => {
            let len_bytes = packet.len() as u32;
            assert_eq!(filter.accepts(packet, len_bytes), filter.accepts(packet, len_bytes));
            assert!(!steps.is_empty() || filter.accepts(packet, len_bytes));
        }
        Err(error) => assert!(!steps.is_empty() && !error.to_string().contains('\n'), "{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Steps of which many are right, so that filters come about.
    fn step() -> impl Strategy<Value = [u8; 8]> {
        let constant = prop_oneof![0_u32..40, any::<u32>()];
        (0_u8..=0xb7, 0_u8..4, 0_u8..4, constant, any::<bool>()).prop_map(
            |(code, yes, no, constant, ends)| {
                let [a, b, c, d] = constant.to_le_bytes();
                [if ends { 6 } else { code }, 0, yes, no, a, b, c, d]
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn any_bytes_are_a_filter_or_none(data in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz_filter(&data);
        }

        #[test]
        fn any_steps_are_a_filter_or_none(
            steps in prop::collection::vec(step(), 0..12),
            packet in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            fuzz_filter(&[&[steps.len() as u8][..], steps.as_flattened(), &packet].concat());
        }
    }
}
