//! The boundary of an isolated NF: what it sees of packets, and what others see of what it writes.

use nflib::descriptor::{ActionCode, Delivery};

use super::bench::{Bench, TestNf, back};

fn seen(nf: &TestNf, delivery: &Delivery) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(delivery.len_bytes)];
    assert!(nf.region.read(delivery.buffer, delivery.offset_bytes, &mut bytes));
    bytes
}

#[test]
fn a_packet_reaches_an_isolated_nf_with_its_bytes_and_leaves_it_with_what_it_made_of_them() {
    let mut bench = Bench::new(&[1, 2, 3]);
    let mut first = bench.attach_isolated(1);
    let mut second = bench.attach(2);
    let mut third = bench.attach_isolated(3);
    // As a run, and one by one.
    for count in [40, 1] {
        bench.inject(count);
        bench.turn();
        let got = first.receive();
        for (delivery, n) in got.iter().zip(0..) {
            assert_eq!(seen(&first, delivery), [n; 60]);
            assert!(first.region.write(delivery.buffer, delivery.offset_bytes, &[n + 1; 20]));
        }
        // One longer at its front, one shorter.
        let longer = Delivery { offset_bytes: 250, len_bytes: 66, ..got[0] };
        assert!(first.region.write(longer.buffer, 250, b"header"));
        first.give_back(&[back(&longer, ActionCode::Next, 0)]);
        for delivery in &got[1..] {
            let shorter = Delivery { len_bytes: 30, ..*delivery };
            first.give_back(&[back(&shorter, ActionCode::Next, 0)]);
        }
        bench.turn();
        for delivery in &second.receive() {
            second.pass(delivery, ActionCode::Next, 0);
        }
        bench.turn();
        for delivery in &third.receive() {
            third.pass(delivery, ActionCode::Next, 0);
        }
        bench.turn();
        let sent = bench.sent();
        assert_eq!(sent.len(), usize::from(count));
        assert_eq!(sent[0].1, [&b"header"[..], &[1; 20], &[0; 40]].concat());
        for ((_, bytes), n) in sent[1..].iter().zip(1..) {
            assert_eq!(*bytes, [[n + 1; 20].as_slice(), &[n; 10]].concat());
        }
    }
    bench.assert_all_back();
}

#[test]
fn an_isolated_nf_sees_no_other_packet_and_what_it_writes_later_reaches_nobody() {
    let mut bench = Bench::new(&[1, 2]);
    let mut nf = bench.attach_isolated(1);
    let mut next = bench.attach(2);
    bench.inject(2);
    bench.turn();
    let got = nf.receive();
    nf.pass(&got[0], ActionCode::Next, 0);
    bench.turn();
    let at_next = next.receive();
    for buffer in 0..bench.buffers() as u32 {
        let mut bytes = [0; 2048];
        assert!(nf.region.read(buffer, 0, &mut bytes));
        let given = got.iter().any(|delivery| delivery.buffer == buffer);
        assert!(given || bytes == [0; 2048], "buffer {buffer} was not given to it");
        assert!(nf.region.write(buffer, 0, &[0xee; 2048]));
    }
    assert_eq!(seen(&next, &at_next[0]), [0; 60]);
    next.pass(&at_next[0], ActionCode::Next, 0);
    bench.turn();
    assert_eq!(bench.sent()[0].1, [0; 60]);
    // What it holds still it may change, and nothing else.
    nf.pass(&got[1], ActionCode::Next, 0);
    bench.turn();
    let at_next = next.receive();
    assert_eq!(seen(&next, &at_next[0]), [0xee; 60]);
    next.pass(&at_next[0], ActionCode::Drop, 0);
    bench.turn();
    bench.assert_all_back();
}
