use proptest::prelude::*;

use super::*;

const AIM: Adaptive = Adaptive { target: 1e-4, overhead_max: 0.5, floor: 1e-3 };

fn adaptive() -> Controller {
    Controller::new(20, Redundancy::Adaptive(AIM), Stride::Adaptive { max: 8 })
}

fn news(received: u32, lost: u32) -> News {
    let mut bursts = Bursts::default();
    bursts.0[0] = lost;
    News { received, lost, bursts }
}

proptest! {
    #[test]
    fn m_is_the_smallest_under_the_target_or_the_cap(
        k in 1..=64u8, loss in 0.0..0.4f64, target in 1e-6..1e-2f64, overhead_max in 0.1..1.0f64,
    ) {
        let aim = Adaptive { target, overhead_max, floor: 0.0 };
        let (m, cap) = (choose_m(k, loss, &aim), aim.m_max(k).max(1));
        let left = |m: u8| model::residual(k.into(), m.into(), loss);
        prop_assert!((1..=cap).contains(&m) && cap <= 16);
        prop_assert!(left(m) <= target || m == cap);
        prop_assert!(m == 1 || left(m - 1) > target);
    }

    #[test]
    fn more_loss_never_asks_for_less(k in 1..=64u8, a in 0.0..0.3f64, b in 0.0..0.3f64) {
        prop_assert!(choose_m(k, a.min(b), &AIM) <= choose_m(k, a.max(b), &AIM));
    }

    #[test]
    fn a_burst_within_the_percentile_hits_no_block_more_than_m_times(
        k in 1..=64u8, m in 1..=16u8, length in 1..=16usize,
    ) {
        let mut bursts = [0.0; BURST_BINS];
        bursts[length - 1] = 3.0;
        let stride = usize::from(choose_stride(k, m, &bursts, 32));
        prop_assert!(length.div_ceil(stride) <= usize::from(m));
        prop_assert!(stride * usize::from(k) <= SPAN_MAX_PKTS);
    }

    #[test]
    fn any_reports_leave_the_choice_in_its_range(
        reports in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<[u32; 16]>()), 0..50),
    ) {
        let mut controller = adaptive();
        for (received, lost, bursts) in reports {
            let choice = controller.observe(&News { received, lost, bursts: Bursts(bursts) });
            prop_assert!(choice.m <= 10 && (1..=8).contains(&choice.stride));
            prop_assert!(controller.loss().is_none_or(|loss| (0.0..=1.0).contains(&loss)));
        }
    }

    #[test]
    fn steady_loss_settles_on_one_choice(per_mille in 2..100u32) {
        let mut controller = adaptive();
        let mut observe = || controller.observe(&news(100_000 - 100 * per_mille, 100 * per_mille));
        let settled = (0..100).map(|_| observe()).last();
        for _ in 0..100 {
            prop_assert_eq!(Some(observe()), settled);
        }
    }
}

#[test]
fn a_rise_is_followed_at_once_and_a_fall_only_after_it_lasted() {
    let mut controller = adaptive();
    let before = controller.observe(&news(9_900, 100)).m;
    let after = controller.observe(&news(70_000, 30_000)).m;
    assert!(after > before, "{after} after {before}");
    let falls: Vec<u8> = (0..60).map(|_| controller.observe(&news(99_900, 100)).m).collect();
    assert_eq!(falls[0], after);
    assert!(falls.windows(2).all(|pair| pair[1] <= pair[0]), "{falls:?}");
    let changes = falls.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!((1..=7).contains(&changes), "{falls:?}");
}

#[test]
fn loss_that_wavers_around_the_floor_does_not_switch_on_and_off() {
    let mut controller = adaptive();
    let switches: Vec<bool> = (0..200)
        .map(|report| controller.observe(&news(100_000, if report % 2 == 0 { 80 } else { 120 })).m)
        .map(|m| m > 0)
        .collect();
    assert!(switches.windows(2).filter(|pair| pair[0] != pair[1]).count() <= 1, "{switches:?}");
}

#[test]
fn without_loss_no_parity_is_sent_and_with_loss_again() {
    let mut controller = adaptive();
    assert!(controller.choice().m > 0, "nothing is known yet");
    for _ in 0..PATIENCE_REPORTS {
        controller.observe(&news(10_000, 0));
    }
    assert_eq!(controller.choice(), Choice { m: 0, stride: 1 });
    assert!(controller.observe(&news(9_000, 1_000)).m > 0);
}

#[test]
fn a_report_without_packets_changes_nothing() {
    let mut controller = adaptive();
    let before = controller.choice();
    for _ in 0..20 {
        assert_eq!(controller.observe(&News::default()), before);
    }
    assert_eq!(controller.loss(), None);
}

#[test]
fn what_is_fixed_stays() {
    let mut controller = Controller::new(10, Redundancy::Fixed { m: 2 }, Stride::Fixed(4));
    for lost in [0, 10, 5_000] {
        let choice = controller.observe(&news(10_000, lost));
        assert_eq!(choice, Choice { m: 2, stride: 4 });
    }
    assert!(controller.loss().unwrap() > 0.1);
}

#[test]
fn one_burst_in_fifty_counts_for_the_stride_and_one_in_two_hundred_does_not() {
    let stride = |long: f64| {
        let mut bursts = [0.0; BURST_BINS];
        (bursts[0], bursts[7]) = (1000.0 - long, long);
        choose_stride(10, 2, &bursts, 32)
    };
    assert_eq!((stride(20.0), stride(5.0)), (4, 1));
}

#[test]
fn a_cap_of_thirty_percent_allows_three_for_ten() {
    let aim = |overhead_max| Adaptive { overhead_max, ..AIM };
    assert_eq!((aim(0.3).m_max(10), aim(0.29).m_max(10)), (3, 2));
    assert_eq!((aim(0.05).m_max(10), aim(5.0).m_max(64)), (0, 16));
}
