//! A thousand instances, and a thousand services, of NFs that only say what must be said.

use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixStream;
use std::process::Command;

use nflib::control::{self, FrameReader, MAX_REPLY_BYTES, Reply, Request};

use super::raw::RawNf;
use super::running::{MANAGER, Manager, assert_nothing_lost, until};
use super::scale::wait_for_pkts;
use super::skip::skip;
use super::tables::{by_hand, chain, traffic};

const COUNT: usize = 1000;
/// Small rings: there are a thousand.
const KEYS: &str = "ring_capacity = 64";

/// A manager as a login shell starts it: the soft limit of open files is low, the hard one is not.
fn manager(tables: &str) -> Manager {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 1024 && exec \"$0\" \"$@\"", MANAGER]);
    Manager::start_by(command, KEYS, tables)
}

/// Whether this process may have so many sockets, and a manager so many files.
fn has_room() -> bool {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<usize>().ok());
    let (soft, hard) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(usize::MAX));
    if soft < COUNT + 100 || hard < 6 * COUNT {
        skip(&format!("{soft} open files are allowed, at most {hard}; ulimit -n 8192"));
        return false;
    }
    true
}

/// NFs that answer what the manager wants answered.
struct Crowd {
    nfs: Vec<(UnixStream, FrameReader)>,
    attached: usize,
    detached: usize,
}

impl Crowd {
    /// All ask at once, as when a machine starts.
    fn attach(manager: &Manager, services: impl Iterator<Item = String>) -> Self {
        let ask = |service: String| {
            let socket = RawNf::ask(manager, &service);
            socket.set_nonblocking(true).unwrap();
            (socket, FrameReader::new(MAX_REPLY_BYTES))
        };
        let mut crowd = Self { nfs: services.map(ask).collect(), attached: 0, detached: 0 };
        until("all are attached", || {
            crowd.serve();
            (crowd.attached == crowd.nfs.len()).then_some(())
        });
        crowd
    }

    /// Acts on everything that was said to anybody.
    fn serve(&mut self) {
        for (mut socket, reader) in self.nfs.iter_mut().map(|(socket, reader)| (&*socket, reader)) {
            let mut bytes = [0; 4096];
            // A plain read: descriptors that come along are closed unseen.
            match socket.read(&mut bytes) {
                Ok(0) => panic!("the manager hung up"),
                Ok(count) => reader.extend(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => panic!("{error}"),
            }
            while let Some(reply) = reader.next_message::<Reply>().unwrap() {
                match reply {
                    Reply::Sync { token } => {
                        control::send(socket, &Request::Synced { token }, &[]).unwrap();
                    }
                    Reply::Attached(_) => self.attached += 1,
                    Reply::Detached => self.detached += 1,
                    Reply::Error(error) => panic!("{error}"),
                    _ => {}
                }
            }
        }
    }

    /// All leave at once, in good order.
    fn leave(mut self, manager: &Manager) {
        for (socket, _) in &self.nfs {
            control::send(socket, &Request::Detach, &[]).unwrap();
        }
        until("all are told that nothing more comes", || {
            self.serve();
            (self.detached == self.nfs.len()).then_some(())
        });
        drop(self);
        until("none is left", || manager.status().nfs.is_empty().then_some(()));
    }
}

#[test]
fn a_thousand_instances_share_a_service_equally_and_all_leave() {
    if !has_room() {
        return;
    }
    let tables = traffic() + &by_hand("many") + &chain("many", &["many"]) + &chain("default", &[]);
    let manager = manager(&tables);
    wait_for_pkts(&manager, 100);
    let files_before = manager.open_files();
    let mut crowd = Crowd::attach(&manager, (0..COUNT).map(|_| "many".to_owned()));
    let status = until("all have their share", || {
        crowd.serve();
        let status = manager.status();
        let all = status.nfs.len() == COUNT && status.nfs.iter().all(|nf| nf.flow_share > 0.0);
        (all && !status.plan.changing).then_some(status)
    });
    let shares = || status.nfs.iter().map(|nf| nf.flow_share);
    assert!((shares().sum::<f64>() - 1.0).abs() < 1e-6);
    let (least, most) = (shares().fold(1.0, f64::min), shares().fold(0.0, f64::max));
    // 16 buckets each at least, and nobody has more than one more than another.
    assert!(most <= least * 17.0 / 16.0 + 1e-9, "{least} to {most}");
    assert_eq!(status.services[0].instances.len(), COUNT);

    crowd.leave(&manager);
    until("no file is left open", || (manager.open_files() <= files_before + 2).then_some(()));
    wait_for_pkts(&manager, 100);
    assert_nothing_lost(&manager.status(), &["out"]);
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn a_thousand_services_stand_in_long_chains_and_each_has_its_nf() {
    if !has_room() {
        return;
    }
    const LONG: usize = 100;
    let names: Vec<String> = (0..COUNT).map(|n| format!("s{n}")).collect();
    let services: String = names.iter().map(|name| by_hand(name)).collect();
    let chains: String = (0..)
        .zip(names.chunks(LONG))
        .map(|(n, part)| {
            let part: Vec<_> = part.iter().map(String::as_str).collect();
            chain(&format!("c{n}"), &part)
        })
        .collect();
    let manager = manager(&(traffic() + &services + &chains + &chain("default", &[])));
    until("all are there", || {
        let status = manager.status();
        ((status.services.len(), status.chains.len()) == (COUNT, COUNT / LONG + 1)).then_some(())
    });
    let mut crowd = Crowd::attach(&manager, names.iter().cloned());
    let status = until("each service has its NF", || {
        crowd.serve();
        let status = manager.status();
        let complete = status.chains.iter().all(|chain| chain.missing.is_empty());
        (complete && status.nfs.len() == COUNT && !status.plan.changing).then_some(status)
    });
    assert!(status.services.iter().all(|service| service.instances.len() == 1));
    let direct = status.nfs.iter().filter(|nf| nf.direct_to.len() == 1).count();
    assert!(direct > 0 && direct <= COUNT - COUNT / LONG, "{direct}");
    crowd.leave(&manager);
    wait_for_pkts(&manager, 100);
    assert_nothing_lost(&manager.status(), &["out"]);
    manager.assert_all_back();
    manager.stop();
}
