//! A manager and its NFs, as real processes, and what they did in a window of time.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nflib::control::{self, MAX_REPLY_BYTES, NfStatus, Reply, Request, ServiceRef, Status, Target};
use tempfile::TempDir;

use super::process::Process;
use super::{Bench, Trouble};

/// How long anything that takes milliseconds may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A running manager with its NFs. Everything ends with it.
pub struct Lab<'a> {
    bench: &'a Bench,
    dir: TempDir,
    // NFs before the manager: dropped in this order.
    nfs: Vec<Process>,
    manager: Process,
}

/// Counters at a moment.
#[derive(Clone, Debug, Default)]
struct Sample {
    at_ns: u64,
    tx_pkts: u64,
    drops: BTreeMap<String, u64>,
    /// Of each NF, in the order in which they were started.
    nfs: Vec<NfSample>,
    manager_cpu_ns: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct NfSample {
    rx_pkts: u64,
    from_manager_pkts: u64,
    cpu_ns: u64,
}

/// What happened between two moments.
#[derive(Clone, Debug)]
pub struct Window {
    /// Its length, seconds.
    pub seconds: f64,
    /// Packets sent by all ports.
    pub tx_pkts: u64,
    /// CPU time of the manager, seconds.
    pub manager_cpu_s: f64,
    /// Each NF, in the order in which they were started.
    pub nfs: Vec<NfWindow>,
    /// Drops by `place:reason`; only what is not zero.
    pub drops: BTreeMap<String, u64>,
}

/// What an NF did.
#[derive(Clone, Copy, Debug)]
pub struct NfWindow {
    /// Packets it took.
    pub pkts: u64,
    /// Of those, packets that came by the manager.
    pub from_manager_pkts: u64,
    /// CPU time it used, seconds.
    pub cpu_s: f64,
}

impl Window {
    /// CPU time of all NFs, seconds.
    #[must_use]
    pub fn nfs_cpu_s(&self) -> f64 {
        self.nfs.iter().map(|nf| nf.cpu_s).sum()
    }

    /// Packets that the last NF took, in millions for each second of the NFs' CPU time: on a core that
    /// does nothing else, the rate.
    #[must_use]
    pub fn rounds_mpps_cpu(&self) -> f64 {
        let rounds = self.nfs.last().map_or(0, |nf| nf.pkts);
        rounds as f64 / self.nfs_cpu_s().max(1e-9) / 1e6
    }

    /// Packets that the last NF took, in millions a second.
    #[must_use]
    pub fn rounds_mpps(&self) -> f64 {
        self.nfs.last().map_or(0, |nf| nf.pkts) as f64 / self.seconds / 1e6
    }

    /// Packets sent by all ports, in millions a second.
    #[must_use]
    pub fn tx_mpps(&self) -> f64 {
        self.tx_pkts as f64 / self.seconds / 1e6
    }

    /// Share of the packets that NFs took which came by the manager.
    #[must_use]
    pub fn by_manager_share(&self) -> f64 {
        let sum = |of: fn(&NfWindow) -> u64| self.nfs.iter().map(of).sum::<u64>() as f64;
        sum(|nf| nf.from_manager_pkts) / sum(|nf| nf.pkts).max(1.0)
    }
}

impl<'a> Lab<'a> {
    /// Starts a manager: `config` is what stands besides the tables `[manager]` and `[pool]`.
    ///
    /// # Errors
    /// [`Trouble`] when it does not start.
    pub fn start(bench: &'a Bench, config: &str) -> Result<Self, Trouble> {
        Self::with_rings(bench, 4096, config)
    }

    /// As [`start`](Self::start), with rings of so many slots.
    ///
    /// # Errors
    /// [`Trouble`] when it does not start.
    pub fn with_rings(bench: &'a Bench, ring_capacity: u32, config: &str) -> Result<Self, Trouble> {
        Self::with_manager(bench, &format!("ring_capacity = {ring_capacity}"), config)
    }

    /// As [`start`](Self::start), with these lines more in the table `[manager]`.
    ///
    /// # Errors
    /// [`Trouble`] when it does not start.
    pub fn with_manager(bench: &'a Bench, manager: &str, config: &str) -> Result<Self, Trouble> {
        let dir = tempfile::Builder::new().prefix("millrace-bench-").tempdir()?;
        let file = dir.path().join("config.toml");
        let socket = dir.path().join("manager.sock");
        let core = bench.cores.manager;
        fs::write(
            &file,
            format!(
                "[manager]\nsocket = {socket:?}\ncores = [{core}]\n\
                 {manager}\n[pool]\nbuffers = 16384\nhugepages = \"try\"\n{config}"
            ),
        )?;
        let args = ["--config".into(), file.into_os_string()];
        let manager = Process::start(dir.path(), &bench.programs.manager, args)?;
        let mut lab = Self { bench, dir, nfs: Vec::new(), manager };
        let began = Instant::now();
        while lab.status().is_err() {
            lab.wait_a_little(began, "the manager answers")?;
        }
        Ok(lab)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("manager.sock")
    }

    fn wait_a_little(&mut self, began: Instant, what: &str) -> Result<(), Trouble> {
        self.manager.still_runs()?;
        for nf in &mut self.nfs {
            nf.still_runs()?;
        }
        if began.elapsed() > LIMIT {
            return Err(Trouble::Failed(format!("not within {} s: {what}", LIMIT.as_secs())));
        }
        self.bench.pause(Duration::from_millis(5))
    }

    /// Starts an NF, `millrace-nf NAME --service SERVICE …`, on a core, and waits until packets may come
    /// to it.
    ///
    /// # Errors
    /// [`Trouble::NotAvailable`] when there is no such NF.
    pub fn nf(&mut self, core: u32, words: &[&str]) -> Result<&mut Process, Trouble> {
        let (name, options) = words.split_first().ok_or(Trouble::Failed("no NF named".into()))?;
        self.bench.programs.need_nf(name, options)?;
        let mut args: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        args.extend(["--core".into(), core.to_string(), "--log".into(), "warn".into()]);
        args.extend(["--socket".into(), self.socket().to_string_lossy().into_owned()]);
        let nf = Process::start(self.dir.path(), &self.bench.programs.nf, args)?;
        let pid = nf.pid();
        self.nfs.push(nf);
        let began = Instant::now();
        loop {
            let status = self.status()?;
            let is_there = of_pid(&status, pid).is_some_and(|nf| nf.state == "running");
            if is_there && !status.plan.changing {
                break;
            }
            self.wait_a_little(began, "an NF joins")?;
        }
        self.nfs.last_mut().ok_or(Trouble::Failed("no NF".into()))
    }

    /// What the manager shows.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when it does not answer.
    pub fn status(&self) -> Result<Status, Trouble> {
        let failed =
            |error: &dyn std::fmt::Display| Trouble::Failed(format!("the manager: {error}"));
        let socket = UnixStream::connect(self.socket()).map_err(|error| failed(&error))?;
        socket.set_read_timeout(Some(LIMIT))?;
        control::send(&socket, &Request::Status, &[]).map_err(|error| failed(&error))?;
        match control::recv(&socket, MAX_REPLY_BYTES).map_err(|error| failed(&error))?.0 {
            Reply::Status(status) => Ok(*status),
            other => Err(failed(&format!("{other:?}"))),
        }
    }

    /// Hands words to every NF of a service, and returns what one of them answers.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when there is no answer.
    pub fn call(&self, service: u16, words: &str) -> Result<String, Trouble> {
        let failed =
            |error: &dyn std::fmt::Display| Trouble::Failed(format!("service {service}: {error}"));
        let socket = UnixStream::connect(self.socket()).map_err(|error| failed(&error))?;
        socket.set_read_timeout(Some(LIMIT))?;
        let target = Target::Service(ServiceRef::Id(service));
        let request = Request::Call { target, payload: words.as_bytes().to_vec() };
        control::send(&socket, &request, &[]).map_err(|error| failed(&error))?;
        match control::recv(&socket, MAX_REPLY_BYTES).map_err(|error| failed(&error))?.0 {
            Reply::Called { mut answers } => match answers.pop() {
                Some((_, Ok(answer))) => Ok(String::from_utf8_lossy(&answer).into_owned()),
                Some((_, Err(error))) => Err(failed(&error)),
                None => Err(failed(&"nobody answers")),
            },
            other => Err(failed(&format!("{other:?}"))),
        }
    }

    fn sample(&self) -> Result<Sample, Trouble> {
        let status = self.status()?;
        let of_nf = |nf: &Process| -> Result<NfSample, Trouble> {
            let cpu_ns = nf.cpu_ns()?;
            let status = of_pid(&status, nf.pid());
            let status = status.ok_or_else(|| Trouble::Failed("an NF has left".into()))?;
            let (rx_pkts, from_manager_pkts) = (status.rx_pkts, status.from_manager_pkts);
            Ok(NfSample { rx_pkts, from_manager_pkts, cpu_ns })
        };
        let name = |drop: &control::DropStatus| format!("{}:{}", drop.place, drop.reason);
        Ok(Sample {
            at_ns: status.at_ns,
            tx_pkts: status.ports.iter().map(|port| port.tx_pkts).sum(),
            drops: status.drops.iter().map(|drop| (name(drop), drop.pkts)).collect(),
            nfs: self.nfs.iter().map(of_nf).collect::<Result<_, _>>()?,
            manager_cpu_ns: self.manager.cpu_ns()?,
        })
    }

    /// Waits until everything runs evenly, then measures for a window.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn measure(&self) -> Result<Window, Trouble> {
        self.bench.pause(self.bench.warm_up)?;
        self.measure_for(self.bench.window)
    }

    /// What happens from now on, for so long.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn measure_for(&self, time: Duration) -> Result<Window, Trouble> {
        let before = self.sample()?;
        self.bench.pause(time)?;
        let after = self.sample()?;
        let seconds = |ns: u64| ns as f64 / 1e9;
        let nf = |(before, after): (&NfSample, &NfSample)| NfWindow {
            pkts: after.rx_pkts - before.rx_pkts,
            from_manager_pkts: after.from_manager_pkts - before.from_manager_pkts,
            cpu_s: seconds(after.cpu_ns - before.cpu_ns),
        };
        let dropped = |(name, pkts): (&String, &u64)| {
            let more = pkts - before.drops.get(name).unwrap_or(&0);
            (more > 0).then(|| (name.clone(), more))
        };
        Ok(Window {
            seconds: seconds(after.at_ns - before.at_ns),
            tx_pkts: after.tx_pkts - before.tx_pkts,
            manager_cpu_s: seconds(after.manager_cpu_ns - before.manager_cpu_ns),
            nfs: before.nfs.iter().zip(&after.nfs).map(nf).collect(),
            drops: after.drops.iter().filter_map(dropped).collect(),
        })
    }

    /// Ends it all in good order; what the last NF printed. The manager fails here when its books do not
    /// balance.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn finish(self) -> Result<Vec<String>, Trouble> {
        let Self { dir, nfs, manager, .. } = self;
        let mut printed = Vec::new();
        // The one started last makes the packets: it goes first, and takes them out.
        for nf in nfs.into_iter().rev() {
            let lines = nf.stop()?;
            if printed.is_empty() {
                printed = lines;
            }
        }
        manager.stop()?;
        drop(dir);
        Ok(printed)
    }
}

fn of_pid(status: &Status, pid: u32) -> Option<&NfStatus> {
    status.nfs.iter().find(|nf| u32::try_from(nf.pid) == Ok(pid))
}
