//! Empty buffers in stock, for the packets that an NF makes.
//!
//! They come from two sides. The manager lends some ([`NetworkFunction::loan_pkts`](nflib::NetworkFunction)).
//! And a packet that has been consumed leaves its buffer behind, which can carry the next packet made: it
//! has an ingress port and a place on its chain, so what is made in it goes the way of the packet that
//! was consumed. The manager waits 300 ms for packets of an older plan, so such a buffer is kept for
//! less than that.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use nflib::{Action, Context, Packet, PacketId};

/// How long the buffer of a consumed packet is kept.
const KEPT_NS: u64 = 200_000_000;

/// The buffer of a consumed packet.
#[derive(Debug)]
struct Leftover {
    id: PacketId,
    since_ns: u64,
}

/// The stock.
#[derive(Debug)]
pub struct Stock {
    lent: Vec<PacketId>,
    lent_max: usize,
    leftovers: VecDeque<Leftover>,
    leftovers_max: usize,
    no_buffer_pkts: u64,
}

impl Stock {
    /// A stock without any buffer, with room for as many of either kind.
    #[must_use]
    pub fn new(lent_max: u32, leftovers_max: usize) -> Self {
        Self {
            lent: Vec::with_capacity(lent_max as usize),
            lent_max: lent_max as usize,
            leftovers: VecDeque::with_capacity(leftovers_max),
            leftovers_max,
            no_buffer_pkts: 0,
        }
    }

    /// The most packets that the NF has to hold for it.
    #[must_use]
    pub fn hold_limit_pkts(&self) -> usize {
        self.lent_max + self.leftovers_max
    }

    /// Forgets all buffers, where the NF is set up anew: what it held before is held no more.
    pub fn forget(&mut self) {
        self.lent.clear();
        self.leftovers.clear();
    }

    /// Takes in a buffer that was lent; the action is what becomes of it.
    pub fn lend(&mut self, packet: &Packet<'_>, ctx: &Context<'_>) -> Action {
        if self.lent.len() == self.lent_max || ctx.hold_room() == 0 {
            return Action::Drop;
        }
        self.lent.push(packet.id());
        Action::Hold
    }

    /// Takes in what is left of a consumed packet; the action is what becomes of it.
    pub fn leave(&mut self, packet: &mut Packet<'_>, ctx: &Context<'_>) -> Action {
        let has_room = self.leftovers.len() < self.leftovers_max && ctx.hold_room() > 0;
        if !has_room || packet.trim_back(packet.len()).is_err() {
            return Action::Drop;
        }
        self.leftovers.push_back(Leftover { id: packet.id(), since_ns: ctx.now_ns() });
        Action::Hold
    }

    /// Makes a packet of these parts, one behind the other, in a buffer of the stock, and returns its
    /// name: it is held, to be finished and released. `None` where there is no buffer, or none that
    /// it fits into: it is lost, and counted.
    ///
    /// Leftovers go first: what is lent is for when there are none.
    pub fn make(&mut self, ctx: &mut Context<'_>, parts: &[&[u8]]) -> Option<PacketId> {
        let made = self.take_leftover(ctx, parts).or_else(|| self.take_lent(ctx, parts));
        self.no_buffer_pkts += u64::from(made.is_none());
        made
    }

    fn take_leftover(&mut self, ctx: &mut Context<'_>, parts: &[&[u8]]) -> Option<PacketId> {
        // The newest: so few are needed at once that those behind it grow old, and go.
        let id = self.leftovers.pop_back()?.id;
        fill(ctx, id, parts)
    }

    fn take_lent(&mut self, ctx: &mut Context<'_>, parts: &[&[u8]]) -> Option<PacketId> {
        let id = self.lent.pop()?;
        fill(ctx, id, parts)
    }

    /// Gives back the leftovers that are too old.
    pub fn age(&mut self, ctx: &mut Context<'_>) {
        let now_ns = ctx.now_ns();
        while let Some(oldest) = self.leftovers.front()
            && now_ns.saturating_sub(oldest.since_ns) >= KEPT_NS
        {
            give_back(ctx, oldest.id);
            self.leftovers.pop_front();
        }
    }

    /// Gives everything back.
    pub fn give_up(&mut self, ctx: &mut Context<'_>) {
        let lent = self.lent.drain(..);
        for id in lent.chain(self.leftovers.drain(..).map(|leftover| leftover.id)) {
            give_back(ctx, id);
        }
    }

    /// Buffers there are now.
    #[must_use]
    pub fn buffers(&self) -> usize {
        self.lent.len() + self.leftovers.len()
    }

    /// Packets that were lost for want of a buffer.
    #[must_use]
    pub fn no_buffer_pkts(&self) -> u64 {
        self.no_buffer_pkts
    }
}

/// Writes the parts into a held buffer; one that they do not fit into is given back.
fn fill(ctx: &mut Context<'_>, id: PacketId, parts: &[&[u8]]) -> Option<PacketId> {
    let mut packet = ctx.held(id).ok()?;
    let fits = parts.iter().all(|part| match packet.push_back(part.len()) {
        Ok(room) => {
            room.copy_from_slice(part);
            true
        }
        Err(_) => false,
    });
    if !fits {
        give_back(ctx, id);
    }
    fits.then_some(id)
}

fn give_back(ctx: &mut Context<'_>, id: PacketId) {
    // It is held: the stock names nothing else.
    let _ = ctx.release(id, Action::Drop);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nflib::NetworkFunction;
    use nflib::testing::{BenchOptions, TestBench};

    use super::*;

    /// Keeps every packet's buffer, and makes a packet of its own for each that begins with "make".
    struct Maker {
        stock: Stock,
        parts: Vec<Vec<u8>>,
    }

    impl NetworkFunction for Maker {
        fn process(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
            if !packet.bytes().starts_with(b"make") {
                return self.stock.leave(packet, ctx);
            }
            let parts: Vec<_> = self.parts.iter().map(Vec::as_slice).collect();
            if let Some(id) = self.stock.make(ctx, &parts) {
                ctx.release(id, Action::Next).unwrap();
            }
            Action::Drop
        }

        fn hold_limit_pkts(&self) -> usize {
            self.stock.hold_limit_pkts()
        }

        fn loan_pkts(&self) -> u32 {
            2
        }

        fn fill(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
            self.stock.lend(packet, ctx)
        }

        fn tick_interval(&self) -> Option<Duration> {
            Some(Duration::from_millis(10))
        }

        fn tick(&mut self, ctx: &mut Context<'_>) {
            self.stock.age(ctx);
        }

        fn leaving(&mut self, ctx: &mut Context<'_>) {
            self.stock.give_up(ctx);
        }
    }

    fn maker() -> TestBench<Maker> {
        let parts = vec![b"head".to_vec(), b"body".to_vec()];
        TestBench::new(Maker { stock: Stock::new(2, 3), parts })
    }

    fn made(bench: &mut TestBench<Maker>) -> Vec<Vec<u8>> {
        let out = bench.feed(&[b"make"]);
        out.into_iter().filter(|out| out.action == Action::Next).map(|out| out.bytes).collect()
    }

    #[test]
    fn packets_are_made_in_lent_buffers_until_there_are_none_and_then_counted() {
        let mut bench = maker();
        assert_eq!(bench.lend(2), []);
        assert_eq!(bench.nf().stock.buffers(), 2);
        assert_eq!(bench.lend(1)[0].action, Action::Drop, "there is no room for a third");
        for _ in 0..2 {
            assert_eq!(made(&mut bench), [b"headbody"]);
        }
        assert!(made(&mut bench).is_empty());
        assert_eq!(bench.nf().stock.no_buffer_pkts(), 1);
        assert_eq!(bench.held_pkts(), 0);
    }

    #[test]
    fn a_consumed_packet_s_buffer_is_used_before_a_lent_one() {
        let mut bench = maker();
        bench.lend(1);
        assert_eq!(bench.feed(&[[7; 900]]), []);
        assert_eq!(made(&mut bench), [b"headbody"]);
        assert_eq!((bench.nf().stock.lent.len(), bench.nf().stock.leftovers.len()), (1, 0));
    }

    #[test]
    fn of_consumed_packets_no_more_are_kept_than_there_is_room_for() {
        let mut bench = maker();
        let out = bench.feed(&[[7; 60]; 5]);
        assert_eq!(out.len(), 2);
        assert!(out.iter().all(|out| out.action == Action::Drop));
        assert_eq!(bench.nf().stock.buffers(), 3);
    }

    #[test]
    fn a_leftover_is_given_back_before_a_change_of_plan_stops_waiting_for_it() {
        let mut bench = maker();
        bench.lend(1);
        bench.feed(&[[7; 60]]);
        assert_eq!(bench.advance(Duration::from_millis(190)), []);
        let out = bench.advance(Duration::from_millis(40));
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].action, bench.nf().stock.buffers()), (Action::Drop, 1));
    }

    #[test]
    fn who_leaves_gives_everything_back() {
        let mut bench = maker();
        bench.lend(2);
        bench.feed(&[[7; 60]]);
        assert_eq!(bench.leave().len(), 3);
        assert_eq!(bench.held_pkts(), 0);
    }

    #[test]
    fn what_fits_into_no_buffer_costs_one_buffer_and_no_more() {
        let mut bench = maker();
        bench.lend(2);
        bench.nf_mut().parts[1] = vec![0; 4000];
        assert!(made(&mut bench).is_empty());
        let stock = &bench.nf().stock;
        assert_eq!((stock.no_buffer_pkts(), stock.buffers(), bench.held_pkts()), (1, 1, 1));
    }

    #[test]
    fn where_nothing_more_can_be_held_nothing_is_kept() {
        let options = BenchOptions { hold_limit_pkts: Some(1), ..BenchOptions::default() };
        let nf = Maker { stock: Stock::new(2, 3), parts: vec![b"x".to_vec()] };
        let mut bench = TestBench::with_options(nf, options).unwrap();
        assert_eq!(bench.lend(2).len(), 1);
        assert_eq!((bench.nf().stock.buffers(), bench.hold_overflow_pkts()), (1, 0));
    }
}
