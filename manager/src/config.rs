//! The configuration file: TOML, every key known, every mistake named in one line.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use nflib::descriptor::{PortId, ServiceId};
use nflib::shm::channel::ChannelGeometry;
use nflib::shm::{HugePages, RegionGeometry};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::chain::MAX_CHAIN_LEN;
#[cfg(feature = "dpdk")]
use crate::ports::dpdk;
use crate::ports::{af_xdp, fault, generator, pcap, sink};

/// A whole configuration file.
#[derive(Clone, Debug)]
pub struct Config {
    /// Table `[manager]`.
    pub manager: ManagerConfig,
    /// Table `[pool]`.
    pub pool: PoolConfig,
    /// Tables `[[port]]`, in order; a port's number is its place here.
    pub ports: Vec<PortConfig>,
    /// Table `[chain]`.
    pub chain: ChainConfig,
}

/// Table `[manager]`.
#[derive(Clone, Debug, Deserialize)]
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
    /// Slots of each ring between a worker and an NF; a power of two.
    pub ring_capacity: u32,
    /// How long packets inside may take to come out when the manager stops, ms.
    pub drain_ms: u64,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            socket: nflib::control::DEFAULT_SOCKET.into(),
            socket_group: None,
            workers: 1,
            cores: Vec::new(),
            poll: PollMode::default(),
            ring_capacity: 4096,
            drain_ms: 1000,
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
#[derive(Clone, Debug, Deserialize)]
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
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { buffers: 16_384, buffer_bytes: 2048, headroom_bytes: 256, hugepages: HugePages::Try }
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

/// One table `[[port]]`.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Its name, unique.
    pub name: String,
    /// Number of the port that packets leave by when they came in here and their chain ends.
    pub egress: Option<PortId>,
    /// What stands behind it.
    pub backend: Backend,
    /// Table `[port.fault]`: what goes wrong on purpose with packets that come in here.
    pub fault: Option<fault::FaultOptions>,
}

/// What stands behind a port, with its options.
#[derive(Clone, Debug)]
pub enum Backend {
    /// A kernel network interface, by AF_XDP sockets.
    AfXdp(af_xdp::AfXdpOptions),
    /// A DPDK poll-mode driver.
    #[cfg(feature = "dpdk")]
    Dpdk(dpdk::DpdkOptions),
    /// Replays a capture file, records another.
    Pcap(pcap::PcapOptions),
    /// Makes packets.
    Generator(generator::GeneratorOptions),
    /// Takes packets.
    Sink(sink::SinkOptions),
}

const BACKENDS: &str = "af_xdp, dpdk, pcap, generator, sink";

/// Table `[chain]`: the chain every packet takes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChainConfig {
    /// Service ids in order. Empty: packets go straight to their port's egress.
    pub services: Vec<ServiceId>,
    /// Receive nothing until every service has had an NF once. For sources that cannot repeat what
    /// is lost, such as a generator that counts; afterwards an NF that goes is not waited for.
    pub wait_for_nfs: bool,
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
    port: Vec<toml::Spanned<toml::Table>>,
    #[serde(default)]
    chain: ChainConfig,
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
        let syntax = |error: &toml::de::Error, at: usize| ConfigError::Syntax {
            path: path.into(),
            line: 1 + text[..at.min(text.len())].matches('\n').count(),
            message: error.message().replace('\n', " "),
        };
        let raw: RawConfig = toml::from_str(text)
            .map_err(|error| syntax(&error, error.span().map_or(0, |span| span.start)))?;
        let mut names = Vec::new();
        let mut wired = Vec::new();
        for table in raw.port {
            let at = table.span().start;
            let port = RawPort::read(table.into_inner()).map_err(|error| ConfigError::Syntax {
                path: path.into(),
                line: 1 + text[..at.min(text.len())].matches('\n').count(),
                message: error,
            })?;
            names.push(port.name.clone());
            wired.push(port);
        }
        let invalid = |message| ConfigError::Invalid { path: path.into(), message };
        if let Some((_, name)) = names.iter().enumerate().find(|(at, n)| names[..*at].contains(n)) {
            return Err(invalid(format!("two ports are named {name:?}: names must differ")));
        }
        let ports = wired
            .into_iter()
            .map(|port| port.resolve(&names))
            .collect::<Result<Vec<_>, _>>()
            .map_err(invalid)?;
        let config = Self { manager: raw.manager, pool: raw.pool, ports, chain: raw.chain };
        config.validate().map_err(invalid)?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), String> {
        self.validate_manager()?;
        self.pool.geometry().validate().map_err(|error| error.to_string())?;
        if self.ports.is_empty() {
            return Err("no [[port]]: a manager needs at least one".into());
        }
        if self.ports.len() > usize::from(PortId::MAX) {
            return Err(format!(
                "{} ports, at most {} are possible",
                self.ports.len(),
                PortId::MAX
            ));
        }
        if self.chain.services.len() > MAX_CHAIN_LEN {
            let len = self.chain.services.len();
            return Err(format!("chain.services has {len} entries, at most {MAX_CHAIN_LEN}"));
        }
        Ok(())
    }

    fn validate_manager(&self) -> Result<(), String> {
        let ManagerConfig { workers, cores, ring_capacity, .. } = &self.manager;
        if *workers == 0 {
            return Err("manager.workers is 0: at least 1 is needed".into());
        }
        if !cores.is_empty() && cores.len() != usize::from(*workers) {
            return Err(format!(
                "manager.cores names {} cores for {workers} workers: give one each, or none",
                cores.len()
            ));
        }
        let online = std::thread::available_parallelism().map_or(1, usize::from);
        if let Some(core) = cores.iter().find(|&&core| core as usize >= online) {
            return Err(format!(
                "manager.cores: there is no core {core}; this machine has cores 0 to {}",
                online - 1
            ));
        }
        if !ring_capacity.is_power_of_two() || *ring_capacity > ChannelGeometry::MAX_RING_CAPACITY {
            return Err(format!(
                "manager.ring_capacity is {ring_capacity}: expected a power of two of at most {}",
                ChannelGeometry::MAX_RING_CAPACITY
            ));
        }
        if self.pool.buffers < u32::from(*workers) * 64 {
            return Err(format!(
                "pool.buffers is {}: each of {workers} workers needs at least 64",
                self.pool.buffers
            ));
        }
        Ok(())
    }
}

/// A `[[port]]` whose egress is still a name.
struct RawPort {
    name: String,
    egress: Option<String>,
    backend: Backend,
    fault: Option<fault::FaultOptions>,
}

impl RawPort {
    /// Reads one table: the keys common to all ports, then what is left as the back end's options.
    fn read(mut table: toml::Table) -> Result<Self, String> {
        let name = take_string(&mut table, "name")?
            .ok_or("a [[port]] without a name: add name = \"…\"")?;
        let in_port = |error: String| format!("port {name:?}: {error}");
        let egress = take_string(&mut table, "egress").map_err(in_port)?;
        let kind = take_string(&mut table, "backend")
            .map_err(in_port)?
            .ok_or_else(|| in_port(format!("no backend: add backend = one of {BACKENDS}")))?;
        let fault = match table.remove("fault") {
            None => None,
            Some(toml::Value::Table(table)) => {
                let fault = options(table).map_err(|error| in_port(format!("fault: {error}")))?;
                Some(fault)
            }
            Some(_) => return Err(in_port("fault must be a table: [port.fault]".into())),
        };
        let backend = match kind.as_str() {
            "af_xdp" => options(table).map(Backend::AfXdp),
            #[cfg(feature = "dpdk")]
            "dpdk" => options(table).map(Backend::Dpdk),
            #[cfg(not(feature = "dpdk"))]
            "dpdk" => {
                Err("this manager was built without DPDK: rebuild with the default features, \
                           or use backend = \"af_xdp\""
                    .into())
            }
            "pcap" => options(table).map(Backend::Pcap),
            "generator" => options(table).map(Backend::Generator),
            "sink" => options(table).map(Backend::Sink),
            other => Err(format!("unknown backend {other:?}: expected one of {BACKENDS}")),
        }
        .map_err(in_port)?;
        Ok(Self { name, egress, backend, fault })
    }

    fn resolve(self, names: &[String]) -> Result<PortConfig, String> {
        let egress = match &self.egress {
            None => None,
            Some(egress) => {
                let at = names.iter().position(|name| name == egress).ok_or_else(|| {
                    format!(
                        "port {:?}: egress names port {egress:?}, which does not exist; there are {}",
                        self.name,
                        names.join(", ")
                    )
                })?;
                Some(PortId::try_from(at).map_err(|_| "more than 255 ports".to_owned())?)
            }
        };
        Ok(PortConfig { name: self.name, egress, backend: self.backend, fault: self.fault })
    }
}

fn take_string(table: &mut toml::Table, key: &str) -> Result<Option<String>, String> {
    match table.remove(key) {
        None => Ok(None),
        Some(toml::Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("{key} must be a string, found {}", other.type_str())),
    }
}

fn options<T: DeserializeOwned>(table: toml::Table) -> Result<T, String> {
    table.try_into().map_err(|error: toml::de::Error| error.message().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [manager]
        socket = "/tmp/x.sock"
        [[port]]
        name = "in"
        backend = "generator"
        egress = "out"
        [[port]]
        name = "out"
        backend = "sink"
        [chain]
        services = [1, 2]
    "#;

    fn error_of(text: &str) -> String {
        let text = Config::parse(text, Path::new("m.toml")).unwrap_err().to_string();
        assert!(!text.contains('\n'), "an error is one line: {text}");
        assert!(text.starts_with("m.toml"), "an error names the file: {text}");
        text
    }

    #[test]
    fn a_good_file_resolves_its_names() {
        let config = Config::parse(GOOD, Path::new("m.toml")).unwrap();
        assert_eq!(config.ports[0].egress, Some(1));
        assert_eq!(config.chain.services, [1, 2]);
        assert_eq!(config.pool.buffers, 16_384);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = error_of("[manager]\nsockte = \"x\"\n");
        assert!(error.starts_with("m.toml:2:") && error.contains("sockte"), "{error}");
        let error = error_of(&GOOD.replace("egress", "egrees"));
        assert!(error.contains("port \"in\"") && error.contains("egrees"), "{error}");
    }

    #[test]
    fn each_mistake_says_what_was_expected() {
        for (from, to, expected) in [
            ("egress = \"out\"", "egress = \"nope\"", "there are in, out"),
            ("\"generator\"", "\"genrator\"", "expected one of af_xdp"),
            ("name = \"out\"", "name = \"in\"", "names must differ"),
            ("name = \"in\"", "", "add name"),
            ("[manager]", "[manager]\nworkers = 0", "at least 1"),
            ("[manager]", "[manager]\ncores = [0, 0]", "give one each"),
            ("[manager]", "[manager]\ncores = [4000]", "no core 4000"),
            ("[manager]", "[manager]\nring_capacity = 100", "power of two"),
            ("[manager]", "[pool]\nbuffers = 3\n[manager]", "at least 64"),
            ("[manager]", "[pool]\nbuffer_bytes = 100\n[manager]", "multiple of 64"),
            ("[manager]", "[pool]\nhugepages = \"maybe\"\n[manager]", "maybe"),
            ("services = [1, 2]", "services = [70000]", "70000"),
        ] {
            let error = error_of(&GOOD.replacen(from, to, 1));
            assert!(error.contains(expected), "{to}: {error}");
        }
        assert!(error_of("").contains("at least one"));
    }
}
