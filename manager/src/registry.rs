//! Which NFs are attached.
//!
//! An NF has an instance id, unique while the manager runs, and an NF number, its place in workers,
//! route table and doorbells, which is used again after it has gone: any number of NFs may come and
//! go.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use nflib::control::{AttachRequest, ErrorCode, ErrorReply, NfStatus, PROTOCOL_VERSION};
use nflib::descriptor::ServiceId;
use nflib::shm::channel::NfCounter;
use nflib::shm::{BlackBox, Channel, Doorbell, Doorbells, LAYOUT_VERSION, Region, TapFile};

use crate::crash::bundle::ProcessNote;
use crate::plan::NfNumber;
use crate::stats::{Counter, NfCounters};

/// Most NFs attached at a time.
pub const MAX_NFS: usize = 4096;
/// Longest name an NF may give itself, bytes.
const MAX_NAME_BYTES: usize = 64;

/// Why an NF leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It asked to, and waits for the word that nothing more will come.
    Asked,
    /// It is to be told to stop, for this reason.
    Told(String),
}

/// Where an NF stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NfState {
    /// Attached; no plan names it yet.
    Joining,
    /// Gets packets.
    Running,
    /// Attached, and to get no flows for now, nor to go.
    Standby,
    /// To be left out of the next plan, then to leave.
    Draining(Leave),
    /// Told that nothing more will come.
    Leaving,
}

impl NfState {
    fn name(&self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Running => "running",
            Self::Standby => "standby",
            Self::Draining(_) => "draining",
            Self::Leaving => "leaving",
        }
    }
}

/// One attached NF.
pub struct NfRecord {
    /// Its instance id.
    pub instance: u32,
    /// Its NF number.
    pub nf: NfNumber,
    /// The service it provides.
    pub service: ServiceId,
    /// Its place in the workers' counters of drops.
    pub slot: u16,
    /// What it calls itself.
    pub name: String,
    /// Its process.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// What is known of its process.
    pub process: ProcessNote,
    /// Readable when the process has ended; `None` if it had ended before we could ask.
    pub pidfd: Option<OwnedFd>,
    /// The rings.
    pub channel: Arc<Channel>,
    /// What it tells of packets.
    pub tap: Arc<TapFile>,
    /// What is found of it when it has crashed.
    pub black_box: Arc<BlackBox>,
    /// How to wake it.
    pub bell: Doorbell,
    /// The file of its doorbell, or of all of its domain.
    pub bells: Arc<Doorbells>,
    /// Each hand-over to and from it goes through the manager.
    pub isolated: bool,
    /// The packet region of its own, when packets are copied to and from it.
    pub own_region: Option<Arc<Region>>,
    /// It can read packets and not change them.
    pub read_only: bool,
    /// The core it was told to run on.
    pub core: Option<u32>,
    /// Services that it sends packets to by name.
    pub jumps: Vec<ServiceId>,
    /// Empty buffers it asked for.
    pub loan_pkts: u32,
    /// It has not got them yet: its chain is not complete.
    pub loan_due: bool,
    /// Where it stands.
    pub state: NfState,
    /// The last [`Sync`](nflib::control::Reply::Sync) it was sent, and the last it answered.
    pub sync_sent: u64,
    /// See `sync_sent`.
    pub sync_answered: u64,
    /// Since when it owes an answer.
    pub asked_since: Option<Instant>,
    /// By worker.
    pub counters: Vec<Arc<NfCounters>>,
    /// When it came.
    pub since: Instant,
    /// Violations that were reported.
    told_violations: u64,
}

impl NfRecord {
    fn sum(&self, of: impl Fn(&NfCounters) -> &Counter) -> u64 {
        self.counters.iter().map(|counters| of(counters).get()).sum()
    }

    /// Violations since the last call, and all of them; `None` when there are no new ones.
    pub fn new_violations(&mut self) -> Option<(u64, u64)> {
        let all = self.sum(|c| &c.violations);
        let new = all - std::mem::replace(&mut self.told_violations, all);
        (new > 0).then_some((new, all))
    }

    /// The NF as the status shows it. What it got and gave it counts itself, since neighbours hand it
    /// packets without the manager; an isolated one is counted by the manager.
    #[must_use]
    pub fn status(&self, service_name: &str) -> NfStatus {
        let counted = |of: fn(&NfCounters) -> &Counter, own: NfCounter| {
            if self.isolated { self.sum(of) } else { self.channel.nf_counter(own) }
        };
        let rx_pkts = counted(|c| &c.rx_pkts, NfCounter::RxPkts);
        let tx_pkts = counted(|c| &c.tx_pkts, NfCounter::TxPkts);
        NfStatus {
            instance: self.instance,
            service: self.service,
            service_name: service_name.to_owned(),
            state: self.state.name().to_owned(),
            core: self.core,
            direct_to: Vec::new(),
            flow_share: 0.0,
            credit_pkts: None,
            cost_ns: 0.0,
            name: self.name.clone(),
            pid: self.pid,
            uid: self.uid,
            rx_pkts,
            from_manager_pkts: self.sum(|c| &c.rx_pkts),
            to_manager_pkts: self.sum(|c| &c.tx_pkts),
            tx_pkts,
            drop_pkts: counted(|c| &c.drop_pkts, NfCounter::DropPkts),
            ring_full_pkts: self.sum(|c| &c.ring_full_pkts),
            // Two counters of another process, read one after the other.
            held_pkts: rx_pkts.saturating_sub(tx_pkts),
            violations: self.sum(|c| &c.violations),
            progress: self.channel.nf_counter(NfCounter::Progress),
            state_generation: 0,
            stuck: None,
            uptime_s: self.since.elapsed().as_secs_f64(),
        }
    }
}

/// Who asks, by the socket's credentials.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
}

/// What a new record is made of.
pub struct Newcomer {
    /// What it calls itself.
    pub name: String,
    /// The service it provides.
    pub service: ServiceId,
    /// The service's place in the workers' counters.
    pub slot: u16,
    /// See [`NfRecord::isolated`].
    pub isolated: bool,
    /// See [`NfRecord::own_region`].
    pub own_region: Option<Arc<Region>>,
    /// See [`NfRecord::read_only`].
    pub read_only: bool,
    /// Who it is.
    pub peer: Peer,
    /// Its rings.
    pub channel: Arc<Channel>,
    /// What it tells of packets.
    pub tap: Arc<TapFile>,
    /// What is found of it when it has crashed.
    pub black_box: Arc<BlackBox>,
    /// The core it is told to run on.
    pub core: Option<u32>,
    /// See [`NfRecord::jumps`].
    pub jumps: Vec<ServiceId>,
    /// See [`NfRecord::loan_pkts`].
    pub loan_pkts: u32,
}

/// The NFs attached now.
pub struct Registry {
    nfs: BTreeMap<u32, NfRecord>,
    by_number: Vec<Option<u32>>,
    domain_bells: Arc<Doorbells>,
    last_instance: u32,
    next_number: usize,
    /// Counts those who came and went.
    revision: u64,
}

impl Registry {
    /// No NF.
    ///
    /// # Errors
    /// As [`Doorbells::create`].
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            nfs: BTreeMap::new(),
            by_number: vec![None; MAX_NFS],
            domain_bells: Arc::new(Doorbells::create(MAX_NFS as u32)?),
            last_instance: 0,
            next_number: 0,
            revision: 0,
        })
    }

    /// The NFs, by instance id.
    pub fn nfs(&self) -> impl Iterator<Item = &NfRecord> {
        self.nfs.values()
    }

    /// The NFs, to change.
    pub fn nfs_mut(&mut self) -> impl Iterator<Item = &mut NfRecord> {
        self.nfs.values_mut()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nfs.len()
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nfs.is_empty()
    }

    /// Changes whenever an NF came or went.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The NF with an instance id.
    #[must_use]
    pub fn get(&self, instance: u32) -> Option<&NfRecord> {
        self.nfs.get(&instance)
    }

    /// The NF with an instance id, to change.
    pub fn get_mut(&mut self, instance: u32) -> Option<&mut NfRecord> {
        self.nfs.get_mut(&instance)
    }

    /// The NF with a number.
    #[must_use]
    pub fn by_number(&self, nf: NfNumber) -> Option<&NfRecord> {
        self.nfs.get(&(*self.by_number.get(usize::from(nf))?)?)
    }

    /// The NF with a number, to change.
    pub fn by_number_mut(&mut self, nf: NfNumber) -> Option<&mut NfRecord> {
        let instance = (*self.by_number.get(usize::from(nf))?)?;
        self.nfs.get_mut(&instance)
    }

    /// A number that nobody has and nothing leads to. Numbers are given in turn, so that one that was
    /// just freed rests for long.
    pub fn free_number(&mut self, is_in_use: impl Fn(NfNumber) -> bool) -> Option<NfNumber> {
        let at = (0..MAX_NFS)
            .map(|step| (self.next_number + step) % MAX_NFS)
            .find(|&at| self.by_number[at].is_none() && !is_in_use(at as NfNumber))?;
        self.next_number = at + 1;
        Some(at as NfNumber)
    }

    /// Writes an NF down.
    ///
    /// # Errors
    /// Those of memfd_create(2), for an isolated NF's own doorbell.
    pub fn insert(&mut self, nf: NfNumber, new: Newcomer) -> io::Result<&mut NfRecord> {
        let bells = if new.isolated {
            Arc::new(Doorbells::create(u32::from(nf) + 1)?)
        } else {
            Arc::clone(&self.domain_bells)
        };
        let no_bell = || io::Error::other("there are fewer doorbells than NFs");
        let bell = bells.bell(nf).ok_or_else(no_bell)?;
        self.last_instance += 1;
        let workers = new.channel.geometry().workers;
        let record = NfRecord {
            instance: self.last_instance,
            nf,
            service: new.service,
            slot: new.slot,
            name: new.name,
            pid: new.peer.pid,
            uid: new.peer.uid,
            process: ProcessNote::of(new.peer.pid, new.peer.uid),
            pidfd: nflib::shm::pidfd_open(new.peer.pid).ok(),
            channel: new.channel,
            tap: new.tap,
            black_box: new.black_box,
            bell,
            bells,
            isolated: new.isolated,
            own_region: new.own_region,
            read_only: new.read_only,
            core: new.core,
            jumps: new.jumps,
            loan_pkts: new.loan_pkts,
            loan_due: new.loan_pkts > 0,
            state: NfState::Joining,
            sync_sent: 0,
            sync_answered: 0,
            asked_since: None,
            counters: (0..workers).map(|_| Arc::default()).collect(),
            since: Instant::now(),
            told_violations: 0,
        };
        self.by_number[usize::from(nf)] = Some(self.last_instance);
        self.revision += 1;
        Ok(self.nfs.entry(self.last_instance).or_insert(record))
    }

    /// Forgets an NF.
    pub fn remove(&mut self, instance: u32) -> Option<NfRecord> {
        let record = self.nfs.remove(&instance)?;
        self.by_number[usize::from(record.nf)] = None;
        self.revision += 1;
        Some(record)
    }
}

/// Whether an NF's introduction can be accepted at all.
///
/// # Errors
/// The refusal to send to it.
pub fn check_introduction(request: &AttachRequest) -> Result<(), ErrorReply> {
    let refuse = |code, message| Err(ErrorReply { code, message });
    if request.protocol != PROTOCOL_VERSION || request.layout != LAYOUT_VERSION {
        return refuse(
            ErrorCode::Version,
            format!(
                "the NF speaks protocol {} with layout {}, this manager ({}) protocol \
                 {PROTOCOL_VERSION} with layout {LAYOUT_VERSION}: rebuild the NF against this \
                 release",
                request.protocol,
                request.layout,
                env!("CARGO_PKG_VERSION")
            ),
        );
    }
    if request.name.len() > MAX_NAME_BYTES || request.name.chars().any(char::is_control) {
        return refuse(
            ErrorCode::BadRequest,
            format!("an NF's name is at most {MAX_NAME_BYTES} printable bytes"),
        );
    }
    Ok(())
}
