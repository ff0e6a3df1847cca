//! Which packets a dead NF still had, from what its rings and its hold map tell.
//!
//! See the head of `ring.rs` for what the rings' words mean. The rule:
//!
//! ```text
//!   what waits unread in its input rings
//! ∪ ( what it had read there and not released  ∪  what its hold map names )
//!   ∖ what it had pushed to any of its output rings and not settled
//! ```
//! A packet that waits unread is the NF's even when it also stands among the unsettled pushes: then
//! it went out, and came back, within one burst. With the order that an NF keeps (`runtime::passage`
//! in this crate) the rule is exact at every instant.

use std::collections::HashSet;

use super::{BufferIndex, Remains, RingMemory};
use crate::descriptor::{Delivery, Returned};

/// The buffers of the packets that a dead NF still had, each once, by rising number.
///
/// `inputs` are its rings of packets delivered (lanes and in-edges), `outputs_delivery` its
/// out-edges, `outputs_returned` its rings back to the manager, `held` the buffers its hold map
/// names. To be called when nothing is pushed to its inputs any more.
///
/// The numbers were written by other processes: look each up before use. `None` when a ring has
/// indices that no process which keeps the rules can bring about.
#[must_use]
pub fn remaining_buffers<M: RingMemory>(
    inputs: &[&Remains<M>],
    outputs_delivery: &[&Remains<M>],
    outputs_returned: &[&Remains<M>],
    held: &[BufferIndex],
) -> Option<Vec<BufferIndex>> {
    let mut passed_on = HashSet::new();
    for output in outputs_delivery {
        passed_on.extend(output.unsettled::<Delivery>()?.iter().map(|packet| packet.buffer));
    }
    for output in outputs_returned {
        passed_on.extend(output.unsettled::<Returned>()?.iter().map(|packet| packet.buffer));
    }
    let (mut kept, mut unread) = (held.to_vec(), Vec::new());
    for input in inputs {
        let (taken, waiting) = input.unreleased::<Delivery>()?;
        kept.extend(taken.iter().map(|packet| packet.buffer));
        unread.extend(waiting.iter().map(|packet| packet.buffer));
    }
    Some(still_there(unread, kept, &passed_on))
}

/// The rule itself: what waits unread, and what was read or held and not passed on. Each once, by
/// rising number.
#[must_use]
pub fn still_there(
    unread: Vec<BufferIndex>,
    kept: Vec<BufferIndex>,
    passed_on: &HashSet<BufferIndex>,
) -> Vec<BufferIndex> {
    let mut remaining = unread;
    remaining.extend(kept.into_iter().filter(|buffer| !passed_on.contains(buffer)));
    remaining.sort_unstable();
    remaining.dedup();
    remaining
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::shm::{Consumer, HeapRing, Producer};

    fn delivery(buffer: BufferIndex) -> Delivery {
        Delivery { buffer, ..Delivery::default() }
    }

    #[test]
    fn what_was_passed_on_in_the_last_burst_is_not_there_and_all_else_is() {
        let (input, edge, back) = (HeapRing::new(8, 0), HeapRing::new(8, 0), HeapRing::new(8, 0));
        let mut to_nf = Producer::<Delivery, _>::new(input.clone());
        assert_eq!(to_nf.push_burst(&[1, 2, 3, 4, 5].map(delivery)), Ok(5));
        let mut nf_in = Consumer::<Delivery, _>::new(input.clone());
        assert_eq!(nf_in.read_burst(&mut [Delivery::default(); 4]), Ok(4));
        let mut nf_edge = Producer::<Delivery, _>::new(edge.clone());
        let mut nf_back = Producer::<Returned, _>::new(back.clone());
        assert_eq!(nf_edge.push_burst(&[delivery(2)]), Ok(1));
        let returned = |buffer| Returned { buffer, ..Returned::default() };
        assert_eq!(nf_back.push_burst(&[3, 8].map(returned)), Ok(2));
        let rule = |held: &[BufferIndex]| {
            remaining_buffers(
                &[&Remains::of(input.clone())],
                &[&Remains::of(edge.clone())],
                &[&Remains::of(back.clone())],
                held,
            )
        };
        // 8 was held and has just been pushed, 7 still is; 4 is both read and noted as held.
        assert_eq!(rule(&[4, 7, 8]), Some(vec![1, 4, 5, 7]));
        // 2 comes back before the burst is settled.
        assert_eq!(to_nf.push_burst(&[delivery(2)]), Ok(1));
        assert_eq!(rule(&[4, 7]), Some(vec![1, 2, 4, 5, 7]));
    }

    #[test]
    fn impossible_indices_give_no_answer() {
        use std::sync::atomic::Ordering;
        let ring = HeapRing::new(8, 0);
        ring.settled().store(100, Ordering::Relaxed);
        let nothing: [&Remains<HeapRing>; 0] = [];
        assert_eq!(remaining_buffers(&nothing, &[&Remains::of(ring.clone())], &[], &[]), None);
        assert_eq!(remaining_buffers(&nothing, &[], &[&Remains::of(ring)], &[]), None);
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use loom::thread;

    use super::*;
    use crate::shm::{Consumer, HeapRing, Producer};

    /// Two bursts through an NF that dies after so many steps.
    fn pass_on(input: HeapRing, output: HeapRing, steps: usize) {
        let mut input = Consumer::<Delivery, _>::new(input);
        let mut output = Producer::<Delivery, _>::new(output);
        let mut burst = [Delivery::default(); 2];
        let mut count = 0;
        for step in 0..steps {
            match step % 4 {
                0 => count = input.read_burst(&mut burst).unwrap(),
                // The ring has room for all there is.
                1 => assert_eq!(output.push_burst(&burst[..count]), Ok(count)),
                2 => input.release(),
                _ => output.settle(),
            }
        }
    }

    fn buffers(packets: &[Delivery]) -> Vec<BufferIndex> {
        packets.iter().map(|packet| packet.buffer).collect()
    }

    /// An NF between two rings, dead after each number of steps, in every order with a neighbour
    /// that pushes and one that takes: each packet is with exactly one of the three.
    #[test]
    fn wherever_an_nf_dies_each_packet_is_in_one_account() {
        for steps in 0..=8 {
            loom::model(move || {
                let (input, output) = (HeapRing::new(2, 0), HeapRing::new(2, 0));
                let mut before = Producer::<Delivery, _>::new(input.clone());
                let mut after = Consumer::<Delivery, _>::new(output.clone());
                let nf = {
                    let (input, output) = (input.clone(), output.clone());
                    thread::spawn(move || pass_on(input, output, steps))
                };
                let taker = thread::spawn(move || {
                    let mut got = [Delivery::default(); 2];
                    let count = after.pop_burst(&mut got).unwrap();
                    buffers(&got[..count])
                });
                for buffer in [1, 2] {
                    let packet = Delivery { buffer, ..Delivery::default() };
                    assert_eq!(before.push_burst(&[packet]), Ok(1));
                }
                nf.join().unwrap();
                let mut all = taker.join().unwrap();
                let output = Remains::of(output);
                let (_, waiting) = output.unreleased::<Delivery>().unwrap();
                all.extend(buffers(&waiting));
                let input = Remains::of(input);
                all.extend(remaining_buffers(&[&input], &[&output], &[], &[]).unwrap());
                all.sort_unstable();
                assert_eq!(all, [1, 2], "dead after step {steps}");
            });
        }
    }
    /// Two NFs in a row, each dead after each number of steps of a round, in every order with each
    /// other: each of two packets is with exactly one of the dead, or has come out behind them.
    #[test]
    fn wherever_two_neighbours_die_each_packet_is_in_one_account() {
        for (first_steps, second_steps) in (0..=4).flat_map(|a| (0..=4).map(move |b| (a, b))) {
            loom::model(move || {
                let rings = [2, 2, 2].map(|capacity| HeapRing::new(capacity, 0));
                let [input, edge, output] = rings;
                let packets = [1, 2].map(|buffer| Delivery { buffer, ..Delivery::default() });
                let mut before = Producer::<Delivery, _>::new(input.clone());
                assert_eq!(before.push_burst(&packets), Ok(2));
                let first = {
                    let (input, edge) = (input.clone(), edge.clone());
                    thread::spawn(move || pass_on(input, edge, first_steps))
                };
                pass_on(edge.clone(), output.clone(), second_steps);
                first.join().unwrap();
                let [input, edge, output] = [input, edge, output].map(Remains::of);
                let mut all = remaining_buffers(&[&input], &[&edge], &[], &[]).unwrap();
                all.extend(remaining_buffers(&[&edge], &[&output], &[], &[]).unwrap());
                let (_, out) = output.unreleased::<Delivery>().unwrap();
                all.extend(buffers(&out));
                all.sort_unstable();
                assert_eq!(all, [1, 2], "dead after steps {first_steps} and {second_steps}");
            });
        }
    }
}
