//! What a thread that polls rings does when it finds nothing, and how long it goes on when it does:
//! NFs and the manager's workers alike.
//!
//! - **Do all there is to do before the core is given away**, up to a quantum of packets.
//! - **Give it away only if somebody wants it.** [`CoreWatch`] asks the kernel now and then how often
//!   another thread took this one's place: on a core of its own a thread neither yields nor is told to.
//! - **On a shared core never spin**, on another one only for some microseconds. Who spins keeps the
//!   core from the one whose packets it waits for, and does not learn that there is one; a yield without
//!   effect costs little, and one with an effect is how [`CoreWatch`] learns.
//! - **Sleep when idle**, after about as long as a sleep and a wake-up cost.
//! - **A yield that took long was dear**: since Linux 6.18 a thread that yields pays a whole slice, so
//!   that beside others that never yield (a compiler, say) it would get next to nothing. For a while
//!   it then sleeps at once instead, which costs no slice: the scheduler gives a sleeper its share.
//! - **Who comes out of turn sleeps.** Threads that yield get the core in an order that the scheduler
//!   keeps for good, and that has nothing to do with who feeds whom: packets then wait for threads that
//!   have nothing to do with them, and fall apart into small lots, each of which costs a switch. The
//!   order is right where each thread comes soon after one that feeds it. One that finds that it does not
//!   sleeps until it is fed, and comes back near the one that feeds it, before or behind it by chance: all are
//!   right within some hundred turns, and then nobody sleeps any more. Soon, and not right after: a thread that
//!   stands between two that are right is the one that is wrong.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// Packets to take before the core is offered to others, unless told otherwise.
pub const DEFAULT_QUANTUM_PKTS: u32 = 4096;
/// Fewest that make sense: a burst.
pub const MIN_QUANTUM_PKTS: u32 = 32;
/// Most: as many as a ring of the usual size holds.
pub const MAX_QUANTUM_PKTS: u32 = 4096;

/// How long a thread alone on its core spins for work.
const SPIN_NS: u64 = 5_000;
/// How long a thread goes on looking, and yielding, before it sleeps: about as long as it takes a
/// sleeping neighbour on another core to wake up and to give back a first packet.
const YIELD_NS: u64 = 200_000;
/// A yield that took longer was dear.
const DEAR_YIELD: Duration = Duration::from_millis(1);
/// How long a thread does without yields after a dear one.
const DEAR_NS: u64 = 50_000_000;
/// Visits to the core after which their order is judged. Two found the right order for up to 16 threads
/// on Linux 6.18; four or more went round in circles from 12 threads on.
const ORDER_VISITS: u32 = 2;
/// Switches between two looks that say that the core is shared; one may be the kernel's own business.
const SHARED_SWITCHES: i64 = 2;
/// How long a core must have been this thread's alone to count as such.
const ALONE_NS: u64 = 100_000_000;

/// What a thread learns about its core.
#[derive(Debug)]
pub struct CoreWatch {
    switches: i64,
    cpu_ns: u64,
    shared: bool,
    shared_at_ns: u64,
}

impl CoreWatch {
    /// At first the core counts as shared, which is the cheaper mistake.
    #[must_use]
    pub fn new(now_ns: u64) -> Self {
        let (switches, cpu_ns) = usage();
        Self { switches, cpu_ns, shared: true, shared_at_ns: now_ns }
    }

    /// Asks the kernel: a system call, for every ten milliseconds or so. To be called by the thread
    /// itself. Returns the CPU time it got since the last call, ns: time in which others had the
    /// core is not in it.
    pub fn look(&mut self, now_ns: u64) -> u64 {
        let (switches, cpu_ns) = usage();
        self.note(switches, now_ns);
        cpu_ns.saturating_sub(std::mem::replace(&mut self.cpu_ns, cpu_ns))
    }

    fn note(&mut self, switches: i64, now_ns: u64) {
        let since = switches - std::mem::replace(&mut self.switches, switches);
        if since >= SHARED_SWITCHES {
            self.shared = true;
            self.shared_at_ns = now_ns;
        } else if now_ns.saturating_sub(self.shared_at_ns) > ALONE_NS {
            self.shared = false;
        }
    }

    /// Whether other threads want this core, too.
    #[inline]
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared
    }
}

/// How often another thread took this one's place while it could have run on (yields that had an
/// effect are counted, too), and its CPU time.
fn usage() -> (i64, u64) {
    match getrusage(UsageWho::RUSAGE_THREAD) {
        Ok(usage) => {
            let cpu = usage.user_time() + usage.system_time();
            let cpu_ns = u64::try_from(cpu.num_microseconds()).unwrap_or(0) * 1000;
            (usage.involuntary_context_switches(), cpu_ns)
        }
        Err(_) => (0, 0),
    }
}

/// What to do with a turn that found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Look again at once.
    Spin,
    /// Let others run, then look again.
    Yield,
    /// Sleep until woken.
    Sleep,
    /// Sleep until fed, by a thread of the same core, and soon.
    AwaitTurn,
}

/// Decides between looking again, yielding and sleeping.
#[derive(Debug, Default)]
pub struct Resting {
    idle_since_ns: Option<u64>,
    /// Yields are dear until then.
    dear_until_ns: u64,
    /// Visits to the core, and those of them that were out of turn, since the order was judged.
    visits: u32,
    out_of_turn: u32,
}

impl Resting {
    /// There was work.
    #[inline]
    pub fn worked(&mut self) {
        self.idle_since_ns = None;
    }

    /// A visit to the shared core begins: whether soon after a thread that feeds this one. To be
    /// called by threads that are woken by whoever feeds them.
    pub fn visit(&mut self, in_turn: bool) {
        self.visits += 1;
        self.out_of_turn += u32::from(!in_turn);
    }

    /// Whether this thread's place in the order is wrong, as far as the last visits tell.
    fn comes_out_of_turn(&mut self) -> bool {
        if self.visits < ORDER_VISITS {
            return false;
        }
        let visits = std::mem::take(&mut self.visits);
        2 * std::mem::take(&mut self.out_of_turn) >= visits
    }

    /// There was none, or, if `blocked`, none that could be done, since an output is full: then the
    /// core is offered once, for others to make room, and for no longer.
    pub fn next(&mut self, now_ns: u64, shared: bool, blocked: bool) -> Rest {
        let first = self.idle_since_ns.is_none();
        let since_ns = *self.idle_since_ns.get_or_insert(now_ns);
        let idle_ns = now_ns.saturating_sub(since_ns);
        if shared && !blocked && self.comes_out_of_turn() {
            return Rest::AwaitTurn;
        }
        match shared {
            false if idle_ns < SPIN_NS => Rest::Spin,
            _ if idle_ns >= YIELD_NS || self.is_dear(now_ns) => Rest::Sleep,
            true if blocked && !first => Rest::Sleep,
            _ => Rest::Yield,
        }
    }

    /// Whether to let others run after a quantum of work.
    #[must_use]
    pub fn yields_after_work(&self, now_ns: u64, shared: bool) -> bool {
        shared && !self.is_dear(now_ns)
    }

    fn is_dear(&self, now_ns: u64) -> bool {
        now_ns < self.dear_until_ns
    }

    /// Yields, and learns from how long it took.
    pub fn give_core_away(&mut self, now_ns: u64) {
        let begun = Instant::now();
        std::thread::yield_now();
        self.yielded(now_ns, begun.elapsed());
    }

    fn yielded(&mut self, now_ns: u64, took: Duration) {
        if took > DEAR_YIELD {
            let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.dear_until_ns = now_ns.saturating_add(took_ns).saturating_add(DEAR_NS);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_spins_shortly_then_yields_then_sleeps_and_does_not_interrupt_its_work() {
        let mut resting = Resting::default();
        let rests: Vec<_> = [0, SPIN_NS - 1, SPIN_NS, YIELD_NS - 1, YIELD_NS]
            .map(|at| resting.next(at, false, false))
            .into();
        assert_eq!(rests, [Rest::Spin, Rest::Spin, Rest::Yield, Rest::Yield, Rest::Sleep]);
        resting.worked();
        assert_eq!(resting.next(YIELD_NS, false, true), Rest::Spin);
        assert!(!resting.yields_after_work(0, false));
    }

    #[test]
    fn who_shares_yields_then_sleeps_and_never_spins() {
        let mut resting = Resting::default();
        let rests: Vec<_> = [0, YIELD_NS - 1, YIELD_NS, YIELD_NS * 9]
            .map(|at| resting.next(at, true, false))
            .into();
        assert_eq!(rests, [Rest::Yield, Rest::Yield, Rest::Sleep, Rest::Sleep]);
        assert!(resting.yields_after_work(0, true));
    }

    #[test]
    fn who_shares_and_cannot_pass_on_yields_once() {
        let mut resting = Resting::default();
        let rests: Vec<_> = [0, 1, 2].map(|at| resting.next(at, true, true)).into();
        assert_eq!(rests, [Rest::Yield, Rest::Sleep, Rest::Sleep]);
    }

    #[test]
    fn who_comes_out_of_turn_sleeps_until_it_is_fed_and_who_comes_in_turn_yields() {
        let rests = |in_turn: &[bool], shared, blocked| {
            let mut resting = Resting::default();
            let mut rest = |&in_turn| {
                resting.worked();
                resting.visit(in_turn);
                resting.next(0, shared, blocked)
            };
            in_turn.iter().map(&mut rest).collect::<Vec<_>>()
        };
        use Rest::{AwaitTurn, Spin, Yield};
        assert_eq!(rests(&[true; 4], true, false), [Yield; 4]);
        assert_eq!(rests(&[false; 4], true, false), [Yield, AwaitTurn, Yield, AwaitTurn]);
        let rested = rests(&[true, false, true, true], true, false);
        assert_eq!(rested, [Yield, AwaitTurn, Yield, Yield]);
        assert_eq!(rests(&[false; 4], true, true), [Yield; 4], "room comes from others");
        assert_eq!(rests(&[false; 4], false, false), [Spin; 4], "there are no turns");
    }

    #[test]
    fn after_a_dear_yield_there_is_none_for_a_while() {
        let mut resting = Resting::default();
        resting.yielded(0, DEAR_YIELD);
        assert_eq!(resting.next(10, true, false), Rest::Yield);
        resting.worked();
        resting.yielded(0, 2 * DEAR_YIELD);
        let over_ns = 2_000_000 + DEAR_NS;
        assert_eq!(resting.next(10, true, false), Rest::Sleep);
        assert!(!resting.yields_after_work(over_ns - 1, true));
        resting.worked();
        assert_eq!(resting.next(over_ns, true, false), Rest::Yield);
    }

    #[test]
    fn a_core_is_shared_while_others_take_it_and_for_a_while_after() {
        let mut watch = CoreWatch::new(0);
        let mut switches = watch.switches;
        assert!(watch.is_shared(), "until it is known");
        for (took, at_ns, shared) in [
            (0, ALONE_NS + 1, false),
            (1, ALONE_NS + 2, false),
            (5, ALONE_NS + 3, true),
            (0, 2 * ALONE_NS, true),
            (1, 2 * ALONE_NS + 4, false),
        ] {
            switches += took;
            watch.note(switches, at_ns);
            assert_eq!(watch.is_shared(), shared, "{took} switches, {at_ns}");
        }
    }

    #[test]
    fn cpu_time_is_what_this_thread_used_and_not_what_it_slept() {
        let mut watch = CoreWatch::new(0);
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(30));
        let slept_ns = watch.look(0);
        assert!(u128::from(slept_ns) * 2 < begun.elapsed().as_nanos(), "{slept_ns}");
        let mut worked_ns = 0;
        while worked_ns == 0 {
            std::hint::black_box((0..100_000u64).sum::<u64>());
            worked_ns = watch.look(0);
        }
    }
}
