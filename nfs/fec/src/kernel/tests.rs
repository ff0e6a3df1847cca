//! Every kernel against products one by one, on symbols of all lengths and alignments.
#![forbid(unsafe_code)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::gf;

/// Bytes around a sum that must stay as they are.
const GUARD: u8 = 0xA5;

/// A symbol that begins anywhere in memory.
#[derive(Clone, Debug)]
struct Placed {
    offset: usize,
    bytes: Vec<u8>,
}

impl Placed {
    fn storage(&self) -> Vec<u8> {
        let mut storage = vec![GUARD; self.offset];
        storage.extend(&self.bytes);
        storage.extend([GUARD; 70]);
        storage
    }

    fn in_storage<'a>(&self, storage: &'a [u8]) -> &'a [u8] {
        &storage[self.offset..][..self.bytes.len()]
    }

    fn is_guarded(&self, storage: &[u8]) -> bool {
        let (before, rest) = storage.split_at(self.offset);
        before.iter().chain(&rest[self.bytes.len()..]).all(|&byte| byte == GUARD)
    }
}

/// Lengths: none, one byte, around the sizes of vectors and tiles, and others.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(0),
        Just(1),
        (0_usize..5, 0_usize..3)
            .prop_map(|(vectors, more)| (vectors * 64 + more).saturating_sub(1)),
        0_usize..700,
    ]
}

fn symbol(length: impl Strategy<Value = usize>) -> impl Strategy<Value = Placed> {
    (0_usize..70, length)
        .prop_flat_map(|(offset, length)| (Just(offset), vec(any::<u8>(), length)))
        .prop_map(|(offset, bytes)| Placed { offset, bytes })
}

fn coefficient() -> impl Strategy<Value = u8> {
    prop_oneof![1 => Just(0), 1 => Just(1), 6 => any::<u8>()]
}

#[derive(Clone, Debug)]
struct Case {
    coefficients: Vec<u8>,
    sources: Vec<Placed>,
    sums: Vec<Placed>,
}

fn case() -> impl Strategy<Value = Case> {
    let counts = (prop_oneof![0_usize..12, 0_usize..90], 0_usize..19);
    // As packets are, of different lengths, into sums as long as the longest; or anything.
    let lengths = prop_oneof![
        length().prop_map(|length| (0..=length, length..=length)),
        length().prop_map(|length| (length..=length, length..=length)),
        Just((0..=300, 0..=300)),
    ];
    (counts, lengths, any::<bool>()).prop_flat_map(|((k, m), (source, sum), ones)| {
        let coefficient = if ones { (0_u8..2).boxed() } else { coefficient().boxed() };
        (vec(coefficient, k * m), vec(symbol(source), k), vec(symbol(sum), m))
            .prop_map(|(coefficients, sources, sums)| Case { coefficients, sources, sums })
    })
}

impl Case {
    fn expected(&self, old: Old) -> Vec<Vec<u8>> {
        let rows = self.sums.iter().enumerate();
        rows.map(|(row, sum)| {
            let coefficients = &self.coefficients[row * self.sources.len()..];
            let mut bytes =
                if old == Old::Kept { sum.bytes.clone() } else { vec![0; sum.bytes.len()] };
            for (source, coefficient) in self.sources.iter().zip(coefficients) {
                for (to, from) in bytes.iter_mut().zip(&source.bytes) {
                    *to ^= gf::mul(*coefficient, *from);
                }
            }
            bytes
        })
        .collect()
    }

    fn check(&self, kernel: Kernel, old: Old) -> Result<(), TestCaseError> {
        let stored: Vec<_> = self.sources.iter().map(Placed::storage).collect();
        let sources: Vec<_> = self
            .sources
            .iter()
            .zip(&stored)
            .map(|(source, stored)| source.in_storage(stored))
            .collect();
        let mut stored: Vec<_> = self.sums.iter().map(Placed::storage).collect();
        let mut sums: Vec<_> = self
            .sums
            .iter()
            .zip(&mut stored)
            .map(|(sum, stored)| &mut stored[sum.offset..][..sum.bytes.len()])
            .collect();
        match old {
            Old::Kept => kernel.accumulate(&self.coefficients, &sources, &mut sums),
            Old::Lost => kernel.assign(&self.coefficients, &sources, &mut sums),
        }
        for ((sum, stored), expected) in self.sums.iter().zip(&stored).zip(self.expected(old)) {
            prop_assert_eq!(
                sum.in_storage(stored),
                &expected,
                "{} {:?}",
                kernel.name(),
                sum.offset
            );
            prop_assert!(sum.is_guarded(stored), "{} wrote beside the sum", kernel.name());
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_kernel_adds_products_of_symbols_of_any_length_and_place(case in case()) {
        for kernel in Kernel::available() {
            case.check(kernel, Old::Kept)?;
            case.check(kernel, Old::Lost)?;
        }
    }
}

#[test]
fn every_kernel_knows_every_product() {
    let source: Vec<u8> = (0..=255).collect();
    for kernel in Kernel::available() {
        for coefficient in 0..=255 {
            let mut sum = vec![0; 256];
            kernel.accumulate(&[coefficient], &[&source], &mut [&mut sum]);
            let expected: Vec<u8> = (0..=255).map(|from| gf::mul(coefficient, from)).collect();
            assert_eq!(sum, expected, "{} by {coefficient}", kernel.name());
        }
    }
}

#[test]
fn the_best_kernel_is_the_first_available_and_scalar_the_last() {
    let names: Vec<_> = Kernel::available().map(|kernel| kernel.name()).collect();
    assert_eq!(names.first(), Some(&Kernel::best().name()));
    assert_eq!(names.last(), Some(&"scalar"));
    #[cfg(target_arch = "x86_64")]
    assert_eq!(names.contains(&"avx2"), is_x86_feature_detected!("avx2"));
}

#[test]
fn coefficients_may_be_more_than_needed_and_sums_or_sources_none() {
    for kernel in Kernel::available() {
        let mut sum = [7; 3];
        kernel.accumulate(&[2, 3, 4], &[&[1, 1]], &mut [&mut sum]);
        assert_eq!(sum, [5, 5, 7]);
        kernel.accumulate(&[], &[], &mut [&mut sum]);
        assert_eq!(sum, [5, 5, 7]);
        kernel.accumulate(&[], &[&[1]], &mut []);
        kernel.assign(&[], &[], &mut [&mut sum]);
        assert_eq!(sum, [0; 3], "a sum of nothing is zero: {}", kernel.name());
    }
}

#[test]
#[should_panic(expected = "1 coefficients for 2 sources and 1 sums")]
fn too_few_coefficients_are_refused() {
    Kernel::best().accumulate(&[1], &[&[1], &[2]], &mut [&mut [0]]);
}

#[test]
fn a_tile_that_stops_at_a_short_source_has_been_added_to_no_sum_before() {
    // The first sum does not want the short source, and the second one meets it.
    for kernel in Kernel::available() {
        let (long, short) = ([3; 300], [5; 10]);
        let mut sums = [[7; 300]; 2];
        let [first, second] = &mut sums;
        kernel.accumulate(&[1, 0, 1, 1], &[&long, &short], &mut [first, second]);
        assert_eq!(sums[0], [7 ^ 3; 300], "{}", kernel.name());
        assert_eq!((sums[1][0], sums[1][299]), (7 ^ 3 ^ 5, 7 ^ 3), "{}", kernel.name());
    }
}
