//! Tables `[[port]]`: what stands behind a port.
#![forbid(unsafe_code)]

use nflib::descriptor::PortId;
use serde::de::DeserializeOwned;

#[cfg(feature = "dpdk")]
use crate::ports::dpdk;
use crate::ports::{af_xdp, fault, generator, looped, pcap, sink};

/// One table `[[port]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PortConfig {
    /// Its name, unique.
    pub name: String,
    /// Number of the port that packets leave by when they came in here and their chain ends.
    pub egress: Option<PortId>,
    /// What stands behind it.
    pub backend: Backend,
    /// Table `[port.fault]`: what goes wrong on purpose with packets that come in here.
    pub fault: Option<fault::FaultOptions>,
    /// The back end's options as written, to name one that was changed.
    pub(super) written: toml::Table,
}

/// What stands behind a port, with its options.
#[derive(Clone, Debug, PartialEq)]
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
    /// Gives back what is sent.
    Loop(looped::LoopOptions),
}

const BACKENDS: &str = "af_xdp, dpdk, pcap, generator, sink, loop";

/// A `[[port]]` whose egress is still a name.
pub(super) struct RawPort {
    pub name: String,
    egress: Option<String>,
    backend: Backend,
    fault: Option<fault::FaultOptions>,
    written: toml::Table,
}

impl RawPort {
    /// Reads one table: the keys common to all ports, then what is left as the back end's options.
    pub fn read(mut table: toml::Table) -> Result<Self, String> {
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
        let written = table.clone();
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
            "loop" => options(table).map(Backend::Loop),
            other => Err(format!("unknown backend {other:?}: expected one of {BACKENDS}")),
        }
        .map_err(in_port)?;
        Ok(Self { name, egress, backend, fault, written })
    }

    pub fn resolve(self, names: &[String]) -> Result<PortConfig, String> {
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
        Ok(PortConfig {
            name: self.name,
            egress,
            backend: self.backend,
            fault: self.fault,
            written: self.written,
        })
    }
}

fn take_string(table: &mut toml::Table, key: &str) -> Result<Option<String>, String> {
    match table.remove(key) {
        None => Ok(None),
        Some(toml::Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("{key} must be a string, found {}", other.type_str())),
    }
}

/// What a table says, every key of it known.
pub(super) fn options<T: DeserializeOwned>(table: toml::Table) -> Result<T, String> {
    table.try_into().map_err(|error: toml::de::Error| error.message().replace('\n', " "))
}
