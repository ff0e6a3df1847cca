//! The configuration file: TOML, every key known, every mistake named in one line.
//!
//! `[manager]`, `[pool]` and `[[port]]` are read once, when the manager starts; `[[service]]`,
//! `[[chain]]` and `[[rule]]` make a [`Model`] and can be changed while packets flow. CONFIG.md is the
//! reference for people.
#![forbid(unsafe_code)]

mod journal;
mod port;
mod recorder;
mod restart;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use nflib::control::{ChangeOf, ServiceSpec};
use nflib::descriptor::PortId;
use nflib::resting::{DEFAULT_QUANTUM_PKTS, MAX_QUANTUM_PKTS, MIN_QUANTUM_PKTS};
use nflib::shm::channel::ChannelGeometry;
use nflib::shm::{HugePages, MAX_RECORDED_PKTS, RecorderTerms, RegionGeometry};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use toml::Spanned;

use crate::machine::Machine;
use crate::model::{Model, ModelError, ModelSpecs};
pub use journal::JournalSetting;
pub use port::{Backend, PortConfig};
use port::{RawPort, options};
pub use recorder::CrashDirSetting;

/// Most flows a worker can be told to remember: 10 GB of them.
const MAX_FLOW_CACHE: u32 = 1 << 26;
/// Shortest time between two packets that a worker marks for their latency: what is told of more would not
/// find room between two looks at it.
const MIN_LATENCY_INTERVAL_US: u32 = 50;

/// A whole configuration file.
#[derive(Clone, Debug)]
pub struct Config {
    /// Table `[manager]`.
    pub manager: ManagerConfig,
    /// Table `[pool]`.
    pub pool: PoolConfig,
    /// Tables `[[port]]`, in order; a port's number is its place here.
    pub ports: Vec<PortConfig>,
    /// Tables `[[service]]`, `[[chain]]` and `[[rule]]`, as written.
    pub specs: ModelSpecs,
    /// The same, checked and resolved.
    pub model: Model,
    /// What a person should know, and is no mistake.
    pub notes: Vec<String>,
}

/// Table `[manager]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManagerConfig {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// Group (name or number) that may use the socket; the socket's mode is 0660.
    pub socket_group: Option<String>,
    /// Number of workers, each a thread with its own share of buffers and queues.
    pub workers: u16,
    /// Core of each worker; empty leaves it to the scheduler.
    pub cores: Vec<u32>,
    /// What a worker does when there is nothing to do.
    pub poll: PollMode,
    /// Packets that a worker or an NF moves before it offers a core that others want, too, to them.
    pub quantum_pkts: u32,
    /// Slots of each ring between a worker and an NF; a power of two.
    pub ring_capacity: u32,
    /// How long packets inside may take to come out when the manager stops, ms.
    pub drain_ms: u64,
    /// How long an NF may leave a question of the manager unanswered before it is removed, ms.
    pub answer_limit_ms: u64,
    /// Receive nothing until every service that some chain names has had an NF once. For sources
    /// that cannot repeat what is lost, such as a generator that counts; afterwards an NF that goes
    /// is not waited for.
    pub wait_for_nfs: bool,
    /// Flows each worker remembers, 144 bytes each; 0 for none.
    pub flow_cache: u32,
    /// Know the flows even where no rule and no shared service asks for it: `millrace flow list` shows
    /// them, and each packet's headers are read for it.
    pub track_flows: bool,
    /// A worker marks one packet in so many microseconds, of which it is noted how long it waits and takes
    /// at each hop; 0: none.
    pub latency_interval_us: u32,
    /// Where what is wanted is written down for the next manager.
    pub journal: JournalSetting,
    /// Packets that the flight recorder of each NF keeps, unless its service says otherwise; 0: none.
    pub recorder_pkts: u32,
    /// First bytes of each that are kept.
    pub recorder_bytes: u16,
    /// Where what is left of NFs that crash is put.
    pub crash_dir: CrashDirSetting,
    /// Crashes that are kept; for one more the oldest goes.
    pub crash_bundles: u32,
    /// Bytes of crashes that are kept, all together; the newest is kept in any case.
    pub crash_bytes: u64,
}

impl ManagerConfig {
    /// What the flight recorder of an NF keeps, as far as its service does not say otherwise.
    #[must_use]
    pub fn recorder(&self) -> RecorderTerms {
        RecorderTerms { slots: self.recorder_pkts, kept_bytes: self.recorder_bytes, all: false }
    }
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            socket: nflib::control::DEFAULT_SOCKET.into(),
            socket_group: None,
            workers: 1,
            cores: Vec::new(),
            poll: PollMode::default(),
            quantum_pkts: DEFAULT_QUANTUM_PKTS,
            ring_capacity: 4096,
            drain_ms: 1000,
            answer_limit_ms: 30_000,
            wait_for_nfs: false,
            flow_cache: crate::classify::DEFAULT_FLOW_CACHE,
            track_flows: false,
            latency_interval_us: 1000,
            journal: JournalSetting::default(),
            recorder_pkts: 256,
            recorder_bytes: 128,
            crash_dir: CrashDirSetting::default(),
            crash_bundles: 16,
            crash_bytes: 64 << 20,
        }
    }
}

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PollMode {
    /// Spin shortly, then give the core away, then sleep until a port has something.
    #[default]
    Adaptive,
    /// Spin: lowest latency, takes a whole core.
    Busy,
}

/// Table `[pool]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// Buffers in the region, shared out evenly among the workers.
    pub buffers: u32,
    /// Size of one, headroom included. AF_XDP ports need 2048 or a multiple of 4096.
    pub buffer_bytes: u32,
    /// Bytes kept free before a received packet.
    pub headroom_bytes: u16,
    /// `try`, `require` or `off`.
    pub hugepages: HugePages,
    /// Most buffers that one isolated NF, or packets of one chain inside the trusted domain, may take
    /// up. In any case some stay free: one that hoards is stopped at half of the pool, or seven
    /// eighths.
    pub credit_pkts: Option<u32>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            buffers: 16_384,
            buffer_bytes: 2048,
            headroom_bytes: 256,
            hugepages: HugePages::Try,
            credit_pkts: None,
        }
    }
}

impl PoolConfig {
    /// The region's shape.
    #[must_use]
    pub fn geometry(&self) -> RegionGeometry {
        RegionGeometry {
            buffers: self.buffers,
            stride_bytes: self.buffer_bytes,
            headroom_bytes: self.headroom_bytes,
        }
    }
}

/// Why a configuration is refused. Names the file, the place and the remedy.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or a key or value that is not known.
    #[error("{path}:{line}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// Every key is known, but the whole makes no sense.
    #[error("{path}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// The file as written, before names are resolved.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    manager: ManagerConfig,
    #[serde(default)]
    pool: PoolConfig,
    #[serde(default)]
    port: Vec<Spanned<toml::Table>>,
    #[serde(default)]
    service: Vec<Spanned<toml::Table>>,
    #[serde(default)]
    chain: Vec<Spanned<toml::Table>>,
    #[serde(default)]
    rule: Vec<Spanned<toml::Table>>,
}

/// The form with one chain for all packets, which is no more.
#[derive(Deserialize)]
struct OldConfig {
    chain: Spanned<toml::Table>,
}

/// A text, and where in it things stand.
struct Source<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Source<'_> {
    fn error_at(&self, at: usize, message: String) -> ConfigError {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        ConfigError::Syntax { path: self.path.into(), line, message }
    }

    fn invalid(&self, message: String) -> ConfigError {
        ConfigError::Invalid { path: self.path.into(), message }
    }

    fn read(&self) -> Result<RawConfig, ConfigError> {
        toml::from_str(self.text).map_err(|error| match toml::from_str::<OldConfig>(self.text) {
            Ok(old) => self.error_at(
                old.chain.span().start,
                "[chain] is not known: write [[chain]] with name = \"default\" (wait_for_nfs \
                 belongs in [manager])"
                    .into(),
            ),
            Err(_) => {
                let at = error.span().map_or(0, |span| span.start);
                self.error_at(at, error.message().replace('\n', " "))
            }
        })
    }

    /// Reads tables of one kind; returns where each stands, too.
    fn tables<T: DeserializeOwned>(
        &self,
        kind: &str,
        tables: Vec<Spanned<toml::Table>>,
    ) -> Result<(Vec<T>, Vec<usize>), ConfigError> {
        let mut places = Vec::with_capacity(tables.len());
        let mut read = Vec::with_capacity(tables.len());
        for table in tables {
            let at = table.span().start;
            let table = table.into_inner();
            let name = table.get("name").and_then(toml::Value::as_str).map(str::to_owned);
            let spec = options(table).map_err(|error| {
                let which = name.map_or_else(|| format!("[[{kind}]]"), |n| format!("{kind} {n:?}"));
                self.error_at(at, format!("{which}: {error}"))
            })?;
            places.push(at);
            read.push(spec);
        }
        Ok((read, places))
    }

    fn ports(&self, tables: Vec<Spanned<toml::Table>>) -> Result<Vec<PortConfig>, ConfigError> {
        let mut ports = Vec::new();
        for table in tables {
            let at = table.span().start;
            let port = RawPort::read(table.into_inner()).map_err(|e| self.error_at(at, e))?;
            ports.push((at, port));
        }
        let names: Vec<_> = ports.iter().map(|(_, port)| port.name.clone()).collect();
        if let Some((at, name)) = names.iter().enumerate().find(|(at, n)| names[..*at].contains(n))
        {
            let message = format!("two ports are named {name:?}: names must differ");
            return Err(self.error_at(ports[at].0, message));
        }
        let resolve = |(at, port): (usize, RawPort)| {
            port.resolve(&names).map_err(|error| self.error_at(at, error))
        };
        ports.into_iter().map(resolve).collect()
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], one line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is for the messages.
    ///
    /// # Errors
    /// [`ConfigError`], one line.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::parse_after(text, path, None)
    }

    /// Checks the text of a file that shall follow on what runs: services, chains and rules that
    /// are in `previous` keep their numbers.
    ///
    /// # Errors
    /// [`ConfigError`], one line.
    pub fn parse_after(
        text: &str,
        path: &Path,
        previous: Option<&Model>,
    ) -> Result<Self, ConfigError> {
        let source = Source { text, path };
        let raw = source.read()?;
        let ports = source.ports(raw.port)?;
        let (services, service_places) = source.tables("service", raw.service)?;
        let (chains, chain_places) = source.tables("chain", raw.chain)?;
        let (rules, rule_places) = source.tables("rule", raw.rule)?;
        validate(&raw.manager, &raw.pool, &ports).map_err(|message| source.invalid(message))?;
        let core_notes = check_cores(&raw.manager, &services, Machine::this())
            .map_err(|(at, message)| source.error_at(service_places[at], message))?;
        let specs = ModelSpecs { services, chains, rules };
        let names: Vec<_> = ports.iter().map(|port| port.name.clone()).collect();
        let (model, mut notes) = Model::build(&specs, &names, previous).map_err(|error| {
            let ModelError { message, item, .. } = error;
            let place = item.and_then(|item| match item.of {
                ChangeOf::Service => service_places.get(item.at),
                ChangeOf::Chain => chain_places.get(item.at),
                ChangeOf::Rule => rule_places.get(item.at),
            });
            match place {
                Some(place) => source.error_at(*place, message),
                None => source.invalid(message),
            }
        })?;
        notes.extend(core_notes);
        Ok(Self { manager: raw.manager, pool: raw.pool, ports, specs, model, notes })
    }
}

fn validate(
    manager: &ManagerConfig,
    pool: &PoolConfig,
    ports: &[PortConfig],
) -> Result<(), String> {
    validate_manager(manager)?;
    pool.geometry().validate().map_err(|error| error.to_string())?;
    let workers = manager.workers;
    if pool.buffers < u32::from(workers) * 64 {
        let buffers = pool.buffers;
        return Err(format!(
            "pool.buffers is {buffers}: each of {workers} workers needs at least 64"
        ));
    }
    if pool.credit_pkts == Some(0) {
        return Err("pool.credit_pkts is 0, so no NF would get a packet: expected at least 1, or \
                    leave it out"
            .into());
    }
    if ports.is_empty() {
        return Err("no [[port]]: a manager needs at least one".into());
    }
    if ports.len() > usize::from(PortId::MAX) {
        return Err(format!("{} ports, at most {} are possible", ports.len(), PortId::MAX));
    }
    Ok(())
}

fn validate_manager(manager: &ManagerConfig) -> Result<(), String> {
    let ManagerConfig { workers, cores, ring_capacity, .. } = manager;
    if *workers == 0 {
        return Err("manager.workers is 0: at least 1 is needed".into());
    }
    if !cores.is_empty() && cores.len() != usize::from(*workers) {
        return Err(format!(
            "manager.cores names {} cores for {workers} workers: give one each, or none",
            cores.len()
        ));
    }
    let machine = Machine::this();
    if let Err(why) = cores.iter().try_for_each(|core| machine.check(*core)) {
        return Err(format!("manager.cores: {why}"));
    }
    let twice = (1..cores.len()).find(|at| cores[..*at].contains(&cores[*at]));
    if let Some(core) = twice.map(|at| cores[at]) {
        return Err(format!(
            "manager.cores: two workers would run on core {core}: give each one of its own"
        ));
    }
    if !(MIN_QUANTUM_PKTS..=MAX_QUANTUM_PKTS).contains(&manager.quantum_pkts) {
        return Err(format!(
            "manager.quantum_pkts is {}: expected {MIN_QUANTUM_PKTS} to {MAX_QUANTUM_PKTS}",
            manager.quantum_pkts
        ));
    }
    if manager.flow_cache > MAX_FLOW_CACHE {
        return Err(format!(
            "manager.flow_cache is {}: expected at most {MAX_FLOW_CACHE}",
            manager.flow_cache
        ));
    }
    validate_recorder(manager)?;
    if (1..MIN_LATENCY_INTERVAL_US).contains(&manager.latency_interval_us) {
        return Err(format!(
            "manager.latency_interval_us is {}: expected 0 (off) or at least \
             {MIN_LATENCY_INTERVAL_US}",
            manager.latency_interval_us
        ));
    }
    if !ring_capacity.is_power_of_two() || *ring_capacity > ChannelGeometry::MAX_RING_CAPACITY {
        return Err(format!(
            "manager.ring_capacity is {ring_capacity}: expected a power of two of at most {}",
            ChannelGeometry::MAX_RING_CAPACITY
        ));
    }
    Ok(())
}

fn validate_recorder(manager: &ManagerConfig) -> Result<(), String> {
    let ManagerConfig { recorder_pkts, recorder_bytes, crash_bundles, .. } = manager;
    let most = RecorderTerms::MAX_KEPT_BYTES;
    if *recorder_pkts > MAX_RECORDED_PKTS {
        return Err(format!(
            "manager.recorder_pkts is {recorder_pkts}: expected at most {MAX_RECORDED_PKTS}"
        ));
    }
    if !recorder_bytes.is_multiple_of(8) || !(8..=most).contains(recorder_bytes) {
        return Err(format!(
            "manager.recorder_bytes is {recorder_bytes}: expected a multiple of 8 from 8 to {most}"
        ));
    }
    if *crash_bundles == 0 {
        return Err(
            "manager.crash_bundles is 0: expected at least 1; crash_dir = \"off\" keeps none"
                .into(),
        );
    }
    Ok(())
}

/// Checks the cores of NFs against those of the workers. Returns what a person should know, and is no
/// mistake.
///
/// # Errors
/// The place of a service that asks for a core it cannot have, and why it cannot.
fn check_cores(
    manager: &ManagerConfig,
    services: &[ServiceSpec],
    machine: &Machine,
) -> Result<Vec<String>, (usize, String)> {
    let mut notes = Vec::new();
    let workers =
        || (0..).zip(&manager.cores).map(|(n, core): (u16, _)| (format!("worker {n}"), *core));
    for (at, service) in services.iter().enumerate() {
        let name = &service.name;
        let shared = workers().find(|(_, core)| service.cores.contains(core));
        match shared {
            Some((worker, core)) if manager.poll == PollMode::Busy => {
                return Err((
                    at,
                    format!(
                        "service {name:?}: cores: core {core} is {worker}'s alone, which never rests                          (manager.poll is \"busy\"): choose another core, or poll = \"adaptive\""
                    ),
                ));
            }
            Some((worker, core)) => {
                notes.push(format!("service {name:?} shares core {core} with {worker}"));
            }
            None => {}
        }
    }
    let nfs = services.iter().flat_map(|service| {
        service.cores.iter().map(move |core| (format!("service {:?}", service.name), *core))
    });
    notes.extend(machine.distance_note(&workers().chain(nfs).collect::<Vec<_>>()));
    Ok(notes)
}
