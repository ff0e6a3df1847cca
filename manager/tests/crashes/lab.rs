//! A manager with one NF, and a file of packets of which it dies.

use std::path::Path;

use millrace::crash::evidence::PacketKind;
use millrace::crash::reading::Bundle;
use nflib::control::{CrashStatus, Reply, Request};
use nflib::testing::FrameBuilder;

use super::running::{Manager, until};

/// What the packet says that the NF dies of.
pub const POISON: &str = "to be or not to be";
/// Packets of the file, and which of them is the poison, from 1 on.
pub const PKTS: usize = 40;
pub const KILLER: usize = 23;

/// Frame `number` of the file, from 1 on; longer than what the recorder keeps.
pub fn frame(number: usize) -> Vec<u8> {
    let text = if number == KILLER { POISON } else { "harmless" };
    let ends = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let payload = format!("{number:05}{text:>220}");
    let port = 1000 + number as u16;
    FrameBuilder::new().ip(ends.0, ends.1).udp(port, 2000).payload(payload.as_bytes()).build()
}

/// A capture file of these frames.
fn write_capture(path: &Path, frames: impl Iterator<Item = Vec<u8>>) {
    let mut file = Vec::new();
    for field in [0xa1b2_3c4d, 0x0004_0002, 0, 0, 65_535, 1_u32] {
        file.extend(field.to_le_bytes());
    }
    for frame in frames {
        let len = frame.len() as u32;
        for field in [0, 0, len, len] {
            file.extend(field.to_le_bytes());
        }
        file.extend(frame);
    }
    std::fs::write(path, file).unwrap();
}

/// The tables: the file comes in by `in`, passes `mid`, and leaves by `out`.
pub struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_capture(&folder.path().join("in.pcap"), (1..=PKTS).map(frame));
        Self { folder }
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// With these keys of the service beside its command.
    pub fn tables(&self, by: &str, keys: &str) -> String {
        let command = format!(
            "command = [\"millrace-nf\", \"forward\", \"--log\", \"error\", \"--crash-on\", \"{POISON}\", \
             \"--crash-by\", \"{by}\"]\n{keys}"
        );
        self.tables_with(&command)
    }

    pub fn tables_with(&self, service: &str) -> String {
        format!(
            "[[port]]\nname = \"in\"\nbackend = \"pcap\"\nreplay = \"{}\"\negress = \"out\"\n\
             [[port]]\nname = \"out\"\nbackend = \"sink\"\n\
             [[service]]\nname = \"mid\"\n{service}\n\
             [[chain]]\nname = \"default\"\nservices = [\"mid\"]\n",
            self.path("in.pcap").display()
        )
    }

    pub fn start(&self, by: &str, keys: &str) -> Manager {
        Manager::start("wait_for_nfs = true", &self.tables(by, keys))
    }
}

pub fn crashes(manager: &Manager) -> Vec<CrashStatus> {
    match manager.ask(&Request::Crashes) {
        Reply::Crashes { crashes } => crashes,
        other => panic!("{other:?}"),
    }
}

/// The first crash, once it is written down.
#[track_caller]
pub fn first_crash(manager: &Manager) -> (CrashStatus, Bundle) {
    let crash = until("a crash is written down", || crashes(manager).into_iter().next());
    let bundle = Bundle::read(Path::new(&crash.path)).unwrap();
    (crash, bundle)
}

/// The bytes of the packets of a kind.
pub fn bytes_of(bundle: &Bundle, kind: PacketKind) -> Vec<Vec<u8>> {
    let packets = bundle.packets().filter(|(note, _)| note.kind == kind);
    packets.map(|(_, bytes)| bytes.to_vec()).collect()
}
