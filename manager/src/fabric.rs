//! The parts of a running manager, put together: region, pools, ports, workers.
//!
//! A fabric is what the control thread holds of the data path: handles and counters. The packets,
//! buffers and queues themselves belong to the workers' threads.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use nflib::descriptor::{ChainId, PortId};
use nflib::shm::channel::ChannelGeometry;
use nflib::shm::{
    AlarmSender, BufferIndex, Channel, MarkTable, PageKind, RecorderTerms, Region, RegionError,
    TapFile, nudge, worker_alarm,
};
use thiserror::Error;

use crate::alarm::{OrderSender, order_channel};
use crate::change::{Change, Outcome};
use crate::classify::{Classifier, RuleChanges, RuleCount};
use crate::config::{Config, PortConfig};
use crate::flow::{self, Expired, Flow, FlowKey, TableStep};
use crate::numa;
use crate::plan::delta::PathDelta;
use crate::plan::{NfNumber, Plan};
use crate::poll_loop::{self, LoopOptions, Order, Report, Snapshot};
use crate::pool::BufferPool;
use crate::ports::opener::Opener;
use crate::ports::{OpenPort, Port, PortError, PortQueue};
use crate::stats::{DropCounters, QueueCounters, WorkerCounters};
use crate::worker::{Census, NewNf, Observation, Worker, WorkerPort};

/// How long a worker may take to obey; an order wakes it.
const ORDER_LIMIT: Duration = Duration::from_secs(5);
/// How long the answer to an order may take before the scheduler is made to think of the worker.
const NUDGE_AFTER: Duration = Duration::from_micros(100);
/// How often it is made to, for one order: over more time than its longest slice.
const NUDGES: u32 = 50;

/// Why the data path could not be started.
#[derive(Debug, Error)]
pub enum FabricError {
    /// The packet region.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// A port.
    #[error("port {name:?}: {source}")]
    Port {
        /// Its name in the configuration.
        name: String,
        /// What is wrong.
        source: PortError,
    },
    /// What all ports of one kind share.
    #[error(transparent)]
    Backend(#[from] PortError),
    /// A port has too few queues for the workers.
    #[error(
        "port {name:?} has {queues} queues and there are {workers} workers: each worker needs a \
         queue of every port; lower manager.workers or raise the port's queues"
    )]
    Queues {
        /// The port.
        name: String,
        /// Its queues.
        queues: usize,
        /// The workers.
        workers: u16,
    },
    /// What packets are looked at by could not be made.
    #[error("no memory for marks and event rings: {0}")]
    Observation(std::io::Error),
    /// A thread could not be started or pinned.
    #[error("worker {worker}: {what}: {source}")]
    Thread {
        /// The worker.
        worker: u16,
        /// The call.
        what: &'static str,
        /// Its error.
        source: std::io::Error,
    },
    /// A worker's thread ended or hangs. A defect of ours; the manager must stop.
    #[error("worker {worker} does not answer any more")]
    WorkerLost {
        /// The worker.
        worker: u16,
    },
}

/// A port as the control thread sees it.
pub struct FabricPort {
    /// Name in the configuration.
    pub name: String,
    /// Number of the egress port.
    pub egress: Option<PortId>,
    /// Control side of the back end.
    pub port: Box<dyn Port>,
    /// Counters of its queues.
    pub counters: Vec<Arc<QueueCounters>>,
}

struct WorkerHandle {
    number: u16,
    core: Option<u32>,
    /// Its thread's id; `None` when it did not even start.
    tid: Option<i32>,
    orders: OrderSender<Order>,
    alarm: AlarmSender,
    reports: Receiver<Report>,
    counters: Arc<WorkerCounters>,
    /// What it tells of packets.
    tap: Arc<TapFile>,
    thread: Option<JoinHandle<()>>,
    last_books: Option<Snapshot>,
    /// Drops at each service, by its slot; the worker has the first `told_services` of them.
    service_drops: Vec<Arc<DropCounters>>,
    told_services: usize,
    /// A change was ordered and its outcome has not come.
    changing: bool,
}

/// A worker's counters and place, for the status.
pub struct WorkerView<'a> {
    /// Its number.
    pub number: u16,
    /// The core it is pinned to.
    pub core: Option<u32>,
    /// Its counters.
    pub counters: &'a WorkerCounters,
    /// Drops at each service, by its slot.
    pub service_drops: &'a [Arc<DropCounters>],
}

/// The running data path.
pub struct Fabric {
    region: Arc<Region>,
    marks: Arc<MarkTable>,
    channel_geometry: ChannelGeometry,
    quantum_pkts: u32,
    recorder: RecorderTerms,
    ports: Vec<FabricPort>,
    workers: Vec<WorkerHandle>,
    /// What workers said while something else was waited for.
    inbox: Inbox,
}

#[derive(Default)]
struct Inbox {
    broken: Vec<NfNumber>,
    outcomes: Vec<Outcome>,
    /// Rules that have run out, by the worker that says so.
    expired: Vec<(u16, Expired)>,
}

impl Fabric {
    /// Makes the region, opens the ports and starts the workers.
    ///
    /// # Errors
    /// [`FabricError`]; whatever was opened is closed again.
    pub fn start(config: &Config, force: bool) -> Result<Self, FabricError> {
        let region = Arc::new(Region::create(config.pool.geometry(), config.pool.hugepages)?);
        let workers = config.manager.workers;
        let opener = Opener::new(config, force)?;
        let mut pools = opener.pools(&region, workers)?;
        let mut ports = Vec::new();
        let mut queues_of: Vec<Vec<WorkerPort>> = (0..workers).map(|_| Vec::new()).collect();
        for port in &config.ports {
            let open = opener
                .open(port, &mut pools)
                .map_err(|source| FabricError::Port { name: port.name.clone(), source })?;
            ports.push(hand_out_queues(port, open, &mut queues_of, &mut pools)?);
        }
        let marks = MarkTable::create(config.pool.buffers).map_err(FabricError::Observation)?;
        let mut fabric = Self {
            region,
            marks,
            channel_geometry: ChannelGeometry {
                workers,
                ring_capacity: config.manager.ring_capacity,
                buffers: config.pool.buffers,
            },
            quantum_pkts: config.manager.quantum_pkts,
            recorder: config.manager.recorder(),
            ports,
            workers: Vec::new(),
            inbox: Inbox::default(),
        };
        for (number, (pool, ports)) in (0..workers).zip(pools.into_iter().zip(queues_of)) {
            fabric.start_worker(number, pool, ports, config)?;
        }
        fabric.warn_of_far_memory();
        Ok(fabric)
    }

    /// Says what is on another NUMA node than the worker that works with it.
    fn warn_of_far_memory(&self) {
        let place = |worker: &WorkerHandle| {
            let core = worker.core?;
            Some((worker.number, core, numa::node_of_core(core)?))
        };
        let workers: Vec<_> = self.workers.iter().filter_map(place).collect();
        let region = numa::node_of_mapping(self.region.base().as_ptr() as usize);
        let ports = self.ports.iter();
        let ports: Vec<_> =
            ports.filter_map(|port| Some((port.name.as_str(), port.port.numa_node()?))).collect();
        for line in numa::mismatches(&workers, region, &ports) {
            tracing::warn!("{line}");
        }
    }

    fn start_worker(
        &mut self,
        number: u16,
        pool: BufferPool,
        ports: Vec<WorkerPort>,
        config: &Config,
    ) -> Result<(), FabricError> {
        let core = config.manager.cores.get(usize::from(number)).copied();
        let counters = Arc::new(WorkerCounters::default());
        let classifier = Classifier::new(config.manager.flow_cache, config.manager.track_flows);
        let mut worker = Worker::new(pool, ports, classifier, Arc::clone(&counters));
        let tap = TapFile::create().map_err(FabricError::Observation)?;
        worker.watch_with(Arc::clone(&self.marks), &tap);
        if let Some(limit_pkts) = config.pool.credit_pkts {
            worker
                .set_credit_limit(limit_pkts.div_ceil(u32::from(config.manager.workers)) as usize);
        }
        let (their_reports, reports) = crossbeam_channel::unbounded();
        let options = LoopOptions {
            number,
            poll: config.manager.poll,
            wait_for_nfs: config.manager.wait_for_nfs,
            quantum_pkts: config.manager.quantum_pkts,
        };
        let fail = |what| move |source| FabricError::Thread { worker: number, what, source };
        let (orders, their_orders) = order_channel().map_err(fail("cannot make an alarm"))?;
        let (alarm, their_alarm) = worker_alarm().map_err(fail("cannot make an alarm"))?;
        let (pinned, pin_result) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let result = core.map_or(Ok(()), pin_to).map(|()| nix::unistd::gettid().as_raw());
                let failed = result.is_err();
                let _ = pinned.send(result);
                if !failed {
                    poll_loop::run(worker, options, &their_orders, &their_alarm, &their_reports);
                }
            })
            .map_err(fail("cannot start a thread"))?;
        let tid = match pin_result.recv() {
            Ok(result) => Some(result.map_err(fail("cannot run on its core"))?),
            Err(_) => None,
        };
        self.workers.push(WorkerHandle {
            number,
            core,
            tid,
            orders,
            alarm,
            reports,
            counters,
            tap,
            thread: Some(thread),
            last_books: None,
            service_drops: Vec::new(),
            told_services: 0,
            changing: false,
        });
        Ok(())
    }

    /// By what NFs wake the workers; empty when there are more workers than can be woken.
    #[must_use]
    pub fn alarms(&self) -> Vec<BorrowedFd<'_>> {
        let can_be_woken = self.workers.len() <= usize::from(Channel::MAX_WAKING_WORKERS);
        let workers = self.workers.iter().filter(|_| can_be_woken);
        workers.map(|worker| worker.alarm.fd()).collect()
    }

    /// The packet region.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Which packets are marked.
    #[must_use]
    pub fn marks(&self) -> &Arc<MarkTable> {
        &self.marks
    }

    /// What each worker tells of packets.
    pub fn worker_taps(&self) -> impl Iterator<Item = &Arc<TapFile>> {
        self.workers.iter().map(|worker| &worker.tap)
    }

    /// Has the workers look at other things from now on.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn observe(&mut self, observation: &Arc<Observation>) -> Result<(), FabricError> {
        for worker in &mut self.workers {
            worker.order(Order::Observe(Arc::clone(observation)), &mut self.inbox)?;
        }
        Ok(())
    }

    /// Whether the region lies on hugepages.
    #[must_use]
    pub fn hugepages(&self) -> bool {
        self.region.pages() == PageKind::Huge2M
    }

    /// Layout of the channels NFs get.
    #[must_use]
    pub fn channel_geometry(&self) -> ChannelGeometry {
        self.channel_geometry
    }

    /// What the flight recorder of an NF keeps, unless its service says otherwise.
    #[must_use]
    pub fn recorder(&self) -> RecorderTerms {
        self.recorder
    }

    /// Packets to take before a shared core is offered to others.
    #[must_use]
    pub fn quantum_pkts(&self) -> u32 {
        self.quantum_pkts
    }

    /// The ports, by number.
    #[must_use]
    pub fn ports(&self) -> &[FabricPort] {
        &self.ports
    }

    /// The workers.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView<'_>> {
        self.workers.iter().map(|worker| WorkerView {
            number: worker.number,
            core: worker.core,
            counters: &worker.counters,
            service_drops: &worker.service_drops,
        })
    }

    /// Buffers of each worker's share: buffer `b` is worker `b / share`'s.
    #[must_use]
    pub fn worker_buffers(&self) -> u32 {
        self.region.geometry().buffers / (self.workers.len() as u32).max(1)
    }

    /// Where drops at a service are counted at a worker; made when first asked for.
    fn service_drops(worker: &mut WorkerHandle, slot: u16) -> Arc<DropCounters> {
        let count = worker.service_drops.len().max(usize::from(slot) + 1);
        worker.service_drops.resize_with(count, Arc::default);
        Arc::clone(&worker.service_drops[usize::from(slot)])
    }

    /// Lets an NF in at every worker. `nf` makes what one worker needs, given where its service's
    /// drops are counted; `slot` is the service's.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn add_nf(
        &mut self,
        slot: u16,
        nf: impl Fn(usize, Arc<DropCounters>) -> NewNf,
    ) -> Result<(), FabricError> {
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let drops = Self::service_drops(worker, slot);
            worker.order(Order::AddNf(Box::new(nf(number, drops))), &mut self.inbox)?;
        }
        Ok(())
    }

    /// Delivers nothing more to an NF.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn close_nf(&mut self, nf: NfNumber) -> Result<(), FabricError> {
        for worker in &mut self.workers {
            worker.order(Order::CloseNf(nf), &mut self.inbox)?;
        }
        Ok(())
    }

    /// Takes an NF that is gone out of every worker; an isolated one holds no buffer afterwards.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn remove_nf(&mut self, nf: NfNumber) -> Result<(), FabricError> {
        for worker in &mut self.workers {
            worker.order(Order::RemoveNf(nf), &mut self.inbox)?;
        }
        // What was reported of it before must not hit the next NF with this number.
        self.inbox.broken.retain(|&reported| reported != nf);
        Ok(())
    }

    /// Takes back buffers that a dead NF of the trusted domain had, of the service in `slot`, each at
    /// its worker.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn reclaim(&mut self, slot: u16, buffers: &[BufferIndex]) -> Result<(), FabricError> {
        let share = self.worker_buffers();
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let own: Vec<_> =
                buffers.iter().copied().filter(|b| (b / share) as usize == number).collect();
            if !own.is_empty() {
                let drops = Self::service_drops(worker, slot);
                worker.order(Order::Reclaim(own, slot, drops), &mut self.inbox)?;
            }
        }
        Ok(())
    }

    /// Takes back everything the trusted domain holds: its last NF, of the service in `slot`, is
    /// gone.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn reclaim_domain(&mut self, slot: u16) -> Result<(), FabricError> {
        for worker in &mut self.workers {
            let drops = Self::service_drops(worker, slot);
            worker.order(Order::ReclaimDomain(drops), &mut self.inbox)?;
        }
        Ok(())
    }

    /// Lends an NF empty buffers for packets of a chain, as many of each worker's as of any other's.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn lend(&mut self, nf: NfNumber, pkts: u32, chain: ChainId) -> Result<(), FabricError> {
        let workers = self.workers.len() as u32;
        for (number, worker) in (0..).zip(&mut self.workers) {
            let share = pkts / workers + u32::from(number < pkts % workers);
            worker.order(Order::Lend(nf, share, chain), &mut self.inbox)?;
        }
        Ok(())
    }

    /// Orders every worker to follow a plan. `services` is the number of service slots it may name.
    /// Outcomes come by [`take_outcomes`](Self::take_outcomes); until all are there no other change
    /// may be ordered.
    pub fn begin_change(
        &mut self,
        plan: &Arc<Plan>,
        delta: &Arc<PathDelta>,
        services: usize,
        mut rules: impl FnMut() -> RuleChanges,
    ) {
        for worker in &mut self.workers {
            worker
                .service_drops
                .resize_with(services.max(worker.service_drops.len()), Arc::default);
            let new_services = worker.service_drops[worker.told_services..].to_vec();
            worker.told_services = worker.service_drops.len();
            let change = Change {
                plan: Arc::clone(plan),
                delta: Arc::clone(delta),
                rules: rules(),
                new_services,
            };
            // A worker that has stopped follows no plan any more.
            worker.changing = worker.last_books.is_none()
                && worker.orders.send(Order::Change(Box::new(change))).is_ok();
        }
    }

    /// True while a worker has not completed the last change.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.workers.iter().any(|worker| worker.changing && worker.last_books.is_none())
    }

    /// Outcomes of the change under way that have come since the last call.
    pub fn take_outcomes(&mut self) -> Vec<Outcome> {
        self.listen();
        std::mem::take(&mut self.inbox.outcomes)
    }

    fn listen(&mut self) {
        for worker in &mut self.workers {
            while let Ok(report) = worker.reports.try_recv() {
                worker.note(report, &mut self.inbox);
            }
        }
    }

    /// The books of all workers together, each taken between two turns of its loop.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn snapshot(&mut self) -> Result<Snapshot, FabricError> {
        let mut sum = Snapshot::default();
        for worker in &mut self.workers {
            let books = match worker.last_books.clone() {
                Some(last) => last,
                None => match worker.order(Order::Snapshot, &mut self.inbox)? {
                    Some(Report::Snapshot(books)) => books,
                    _ => worker.last_books.clone().unwrap_or_default(),
                },
            };
            sum += &books;
        }
        Ok(sum)
    }

    /// Where each worker's buffers are, between two turns of its loop; nothing of a worker that has
    /// stopped.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn census(&mut self) -> Result<Vec<Census>, FabricError> {
        let mut all = Vec::new();
        for worker in &mut self.workers {
            if let Some(Report::Census(census)) = worker.order(Order::Census, &mut self.inbox)? {
                all.push(*census);
            }
        }
        Ok(all)
    }

    /// NFs that broke their rings since the last call.
    pub fn take_broken(&mut self) -> Vec<NfNumber> {
        self.listen();
        self.inbox.broken.sort_unstable();
        self.inbox.broken.dedup();
        std::mem::take(&mut self.inbox.broken)
    }

    /// What rules have seen, all workers together: packets and bytes are sums, the age is that of the
    /// oldest copy, the idle time that of the one used last.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn count_rules(&mut self, ids: &[u64]) -> Result<Vec<RuleCount>, FabricError> {
        let ids: Arc<[u64]> = ids.into();
        let mut sums: Vec<Option<RuleCount>> = vec![None; ids.len()];
        for worker in &mut self.workers {
            let order = Order::CountRules(Arc::clone(&ids));
            let Some(Report::RuleCounts(counts)) = worker.order(order, &mut self.inbox)? else {
                continue;
            };
            for (sum, count) in sums.iter_mut().zip(counts) {
                let Some(count) = count else { continue };
                *sum = Some(sum.map_or(count, |sum| RuleCount {
                    pkts: sum.pkts + count.pkts,
                    bytes: sum.bytes + count.bytes,
                    age_ns: sum.age_ns.max(count.age_ns),
                    idle_ns: sum.idle_ns.min(count.idle_ns),
                }));
            }
        }
        Ok(sums.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// The flows with most packets, of all workers, and how many flows are known.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn top_flows(&mut self, limit: usize) -> Result<(Vec<(Flow, u64)>, u64), FabricError> {
        let (mut all, mut total) = (Vec::new(), 0);
        for worker in &mut self.workers {
            let order = Order::TopFlows(limit);
            if let Some(Report::TopFlows(flows, known)) = worker.order(order, &mut self.inbox)? {
                all.extend(flows);
                total += known;
            }
        }
        all.sort_by_key(|(flow, _)| std::cmp::Reverse(flow.pkts));
        all.truncate(limit);
        Ok((all, total))
    }

    /// Which rules a packet would meet, by what the first worker follows now.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn explain(
        &mut self,
        key: &FlowKey,
    ) -> Result<(flow::Outcome, Vec<TableStep>), FabricError> {
        let Some(worker) = self.workers.first_mut() else { return Ok(Default::default()) };
        match worker.order(Order::Explain(Box::new(*key)), &mut self.inbox)? {
            Some(Report::Explained(outcome, steps)) => Ok((outcome, steps)),
            _ => Ok(Default::default()),
        }
    }

    /// Rules that have run out, with the worker that says so.
    pub fn take_expired(&mut self) -> Vec<(u16, Expired)> {
        self.listen();
        std::mem::take(&mut self.inbox.expired)
    }

    /// How many workers there are.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// Tells every worker to stop receiving and to end when nothing is inside, or after `limit`.
    pub fn drain(&self, limit: Duration) {
        for worker in &self.workers {
            let _ = worker.orders.send(Order::Drain(limit));
        }
    }

    /// True when every worker has ended.
    pub fn stopped(&mut self) -> bool {
        self.listen();
        self.workers.iter().all(|worker| worker.last_books.is_some())
    }

    /// First worker whose thread is gone without having said so.
    #[must_use]
    pub fn lost_worker(&self) -> Option<u16> {
        let lost = |worker: &&WorkerHandle| {
            worker.last_books.is_none()
                && worker.reports.is_empty()
                && worker.thread.as_ref().is_some_and(JoinHandle::is_finished)
        };
        self.workers.iter().find(lost).map(|worker| worker.number)
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.drain(Duration::ZERO);
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
        for port in &mut self.ports {
            port.port.close();
        }
    }
}

impl WorkerHandle {
    /// Gives an order and waits until it is carried out. A worker that has stopped obeys nothing
    /// more, which is no error.
    fn order(&mut self, order: Order, inbox: &mut Inbox) -> Result<Option<Report>, FabricError> {
        if self.last_books.is_some() || self.orders.send(order).is_err() {
            return Ok(None);
        }
        let mut nudges = self.tid.map_or(0, |_| NUDGES);
        loop {
            let limit = if nudges > 0 { NUDGE_AFTER } else { ORDER_LIMIT };
            match self.reports.recv_timeout(limit) {
                Ok(answer) if answer.is_answer() => return Ok(Some(answer)),
                Ok(stopped @ Report::Stopped(_)) => {
                    self.note(stopped, inbox);
                    return Ok(None);
                }
                Ok(other) => self.note(other, inbox),
                Err(RecvTimeoutError::Timeout) if nudges > 0 => {
                    // It may wait for a core that a program has for a whole tick, one that starts say.
                    // Without the privilege it goes on waiting.
                    nudges =
                        if self.tid.is_some_and(|tid| nudge(tid).is_ok()) { nudges - 1 } else { 0 };
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(FabricError::WorkerLost { worker: self.number });
                }
            }
        }
    }

    fn note(&mut self, report: Report, inbox: &mut Inbox) {
        match report {
            Report::Broken(nfs) => inbox.broken.extend(nfs),
            Report::Changed(outcome) => {
                self.changing = false;
                inbox.outcomes.push(outcome);
            }
            Report::Stopped(books) => self.last_books = Some(books),
            Report::Expired(expired) => {
                inbox.expired.extend(expired.into_iter().map(|expired| (self.number, expired)));
            }
            // Dropped here, where there is time for it; answers come to who asked.
            _ => {}
        }
    }
}

/// Gives queue `q` to worker `q % workers`.
fn hand_out_queues(
    config: &PortConfig,
    open: OpenPort,
    workers: &mut [Vec<WorkerPort>],
    pools: &mut [BufferPool],
) -> Result<FabricPort, FabricError> {
    let OpenPort { port, mut queues } = open;
    if queues.len() < workers.len() {
        for (queue, number) in queues.iter_mut().zip(0..) {
            let at: usize = number;
            queue.close(&mut pools[at % workers.len()]);
        }
        return Err(FabricError::Queues {
            name: config.name.clone(),
            queues: queues.len(),
            workers: u16::try_from(workers.len()).unwrap_or(u16::MAX),
        });
    }
    let counters = queues.iter().map(|queue| Arc::clone(queue.counters())).collect();
    let mut shares: Vec<Vec<Box<dyn PortQueue>>> = workers.iter().map(|_| Vec::new()).collect();
    for (number, queue) in queues.into_iter().enumerate() {
        let share = number % shares.len();
        shares[share].push(queue);
    }
    for (worker, share) in workers.iter_mut().zip(shares) {
        worker.push(WorkerPort::new(share, config.egress));
    }
    Ok(FabricPort { name: config.name.clone(), egress: config.egress, port, counters })
}

fn pin_to(core: u32) -> std::io::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(core as usize)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    Ok(())
}
