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

    /// What a dead NF leaves between an input and an output, and who stands in for it at its input.
    fn reclaim(input: &HeapRing, output: &HeapRing, stands_in: bool) -> Vec<BufferIndex> {
        let remains = Remains::of(input.clone());
        let (read, waiting) = if stands_in {
            remains.drain::<Delivery>().unwrap()
        } else {
            remains.unreleased::<Delivery>().unwrap()
        };
        let passed_on = Remains::of(output.clone()).unsettled::<Delivery>().unwrap();
        let passed_on = passed_on.iter().map(|packet| packet.buffer).collect();
        still_there(buffers(&waiting), buffers(&read), &passed_on)
    }

    fn waiting_in(ring: &HeapRing) -> Vec<BufferIndex> {
        let (read, waiting) = Remains::of(ring.clone()).unreleased::<Delivery>().unwrap();
        // Nobody reads here: the manager's end, after both are dead.
        assert!(read.is_empty());
        buffers(&waiting)
    }

    /// Two NFs with an edge between them and two packets; each dies after each number of its steps, and
    /// the manager takes back what the first to be noticed had while the other one goes on.
    fn two_deaths(first_noticed: bool) {
        for steps_a in 0..=4 {
            for steps_b in 0..=8 {
                loom::model(move || {
                    let ring = || HeapRing::new(2, 0);
                    let (input, edge, back) = (ring(), ring(), ring());
                    let mut manager = Producer::<Delivery, _>::new(input.clone());
                    let packets = [1, 2].map(|buffer| Delivery { buffer, ..Delivery::default() });
                    assert_eq!(manager.push_burst(&packets), Ok(2));
                    let run = |input: &HeapRing, output: &HeapRing, steps| {
                        let (input, output) = (input.clone(), output.clone());
                        thread::spawn(move || pass_on(input, output, steps))
                    };
                    let nf_b = run(&edge, &back, steps_b);
                    let nf_a = run(&input, &edge, steps_a);
                    let mut all = Vec::new();
                    if first_noticed {
                        nf_a.join().unwrap();
                        all.extend(reclaim(&input, &edge, false));
                        nf_b.join().unwrap();
                        all.extend(reclaim(&edge, &back, true));
                    } else {
                        nf_b.join().unwrap();
                        all.extend(reclaim(&edge, &back, true));
                        nf_a.join().unwrap();
                        // What it pushed to the dead one since; what it has itself.
                        let (read, waiting) =
                            Remains::of(edge.clone()).drain::<Delivery>().unwrap();
                        all.extend(buffers(&read));
                        all.extend(buffers(&waiting));
                        all.extend(reclaim(&input, &edge, false));
                    }
                    all.extend(waiting_in(&back));
                    all.sort_unstable();
                    assert_eq!(all, [1, 2], "dead after steps {steps_a} and {steps_b}");
                });
            }
        }
    }

    #[test]
    fn two_nfs_die_at_any_step_the_one_before_noticed_first_and_each_packet_is_found_once() {
        two_deaths(true);
    }

    #[test]
    fn two_nfs_die_at_any_step_the_one_behind_noticed_first_and_each_packet_is_found_once() {
        two_deaths(false);
    }
}
