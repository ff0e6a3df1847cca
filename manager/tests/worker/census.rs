//! What a worker says of where its buffers are.

use millrace::worker::Whereabouts;
use nflib::descriptor::ActionCode;

use super::bench::Bench;

#[test]
fn a_buffer_that_a_port_forgets_or_frees_twice_is_found() {
    for (frees, lost, twice) in [(0, 3, 0), (1, 0, 0), (2, 0, 3)] {
        let mut bench = Bench::new(&[]);
        bench.wires[1].lock().unwrap().frees = Some(frees);
        bench.inject(3);
        bench.worker.turn(true);
        let census = bench.worker.census();
        let unknown = census.places.iter().filter(|place| **place == Whereabouts::Unknown);
        assert_eq!((unknown.count(), census.twice), (lost, twice), "freed {frees} times");
    }
}

#[test]
fn a_packet_with_an_nf_is_where_its_descriptor_went() {
    let mut bench = Bench::new(&[1]);
    let mut nf = bench.attach_isolated(1);
    bench.inject(1);
    bench.turn();
    let got = nf.receive();
    let at = |bench: &Bench| bench.worker.census().places[got[0].buffer as usize];
    let Whereabouts::Nf(holder, passage) = at(&bench) else { panic!("{:?}", at(&bench)) };
    assert_eq!((holder, passage.hop, passage.ingress), (nf.nf, 0, 0));
    nf.pass(&got[0], ActionCode::Drop, 0);
    bench.turn();
    assert_eq!(at(&bench), Whereabouts::Free);
}
