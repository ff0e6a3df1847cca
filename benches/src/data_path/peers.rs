//! The peers that are programs of their own.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::process::Process;
use super::{Bench, Trouble};

/// `peers/onvm_hop.c`, compiled.
#[cfg(feature = "dpdk")]
static ONVM_HOP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/onvm_hop"));

/// What OpenNetVM does for a hop.
#[derive(Clone, Copy, Debug)]
pub struct OnvmHop<'a> {
    /// Cores, one an NF.
    pub cores: &'a [u32],
    /// Whether each flush walks the buffers of all 128 possible NFs.
    pub walk_all: bool,
    /// `none`, `header` or `payload`.
    pub touch: &'a str,
    /// Length of a packet.
    pub packet_bytes: u32,
    /// Packets that circulate.
    pub in_flight: u32,
}

/// What it prints.
#[derive(Deserialize, Clone, Copy, Debug)]
pub struct OnvmFigures {
    /// Packets that its first NF took, in millions a second.
    pub mpps: f64,
    /// The same for each second of CPU time.
    pub mpps_cpu: f64,
}

impl OnvmHop<'_> {
    /// Runs it for a window.
    ///
    /// # Errors
    /// [`Trouble::NotAvailable`] without DPDK.
    #[cfg(feature = "dpdk")]
    pub fn run(&self, bench: &Bench) -> Result<OnvmFigures, Trouble> {
        use std::fs::{Permissions, set_permissions, write};
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::Builder::new().prefix("millrace-bench-").tempdir()?;
        let program = dir.path().join("onvm_hop");
        write(&program, ONVM_HOP)?;
        set_permissions(&program, Permissions::from_mode(0o700))?;
        let cores = self.cores.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let walk = if self.walk_all { "all" } else { "present" };
        let args = [
            ["--cores".to_owned(), cores],
            ["--walk".to_owned(), walk.to_owned()],
            ["--touch".to_owned(), self.touch.to_owned()],
            ["--packet-bytes".to_owned(), self.packet_bytes.to_string()],
            ["--in-flight".to_owned(), self.in_flight.to_string()],
            ["--seconds".to_owned(), bench.window.as_secs_f64().to_string()],
        ];
        let mut process = Process::start(dir.path(), &program, args.into_iter().flatten())?;
        let line = process.next_line().map_err(no_libdpdk)?;
        process.wait()?;
        serde_json::from_str(&line)
            .map_err(|error| Trouble::Failed(format!("onvm_hop printed {line:?}: {error}")))
    }

    /// # Errors
    /// [`Trouble::NotAvailable`] always.
    #[cfg(not(feature = "dpdk"))]
    #[allow(clippy::unused_self)]
    pub fn run(&self, _: &Bench) -> Result<OnvmFigures, Trouble> {
        Err(Trouble::NotAvailable("the peer needs DPDK, and this was built without it".into()))
    }
}

/// What the dynamic loader says where libdpdk is missing is no failure of ours.
#[cfg(feature = "dpdk")]
fn no_libdpdk(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Failed(what) if what.contains("shared libraries") => Trouble::NotAvailable(what),
        other => other,
    }
}

/// Where Debian puts it.
const TESTPMD: &str = "dpdk-testpmd";

/// `dpdk-testpmd` forwarding between ports made of `vdevs`, on one core; packets it forwarded, all
/// ports together, in millions a second of a window.
///
/// # Errors
/// [`Trouble::NotAvailable`] when it is not installed.
pub fn testpmd_mpps(bench: &Bench, vdevs: [&str; 2]) -> Result<f64, Trouble> {
    let main = bench.cores.manager;
    let forwarding = bench.second_core()?;
    if std::process::Command::new(TESTPMD).arg("--version").output().is_err() {
        let advice =
            "dpdk-testpmd is not installed: ./scripts/setup --tests, or apt-get install dpdk-dev";
        return Err(Trouble::NotAvailable(advice.into()));
    }
    let dir = tempfile::Builder::new().prefix("millrace-bench-").tempdir()?;
    let memory: &[&str] =
        if free_hugepages() >= 128 { &["--in-memory"] } else { &["--no-huge", "-m", "256"] };
    let lcores = format!("{main},{forwarding}");
    let prefix = format!("millrace-bench-{}", std::process::id());
    // Its output is a pipe, and would come when it ends.
    let mut args =
        vec!["-oL", TESTPMD, "-l", &lcores, "--no-pci", "--no-telemetry", "--file-prefix", &prefix];
    args.extend(memory);
    args.extend(vdevs.iter().flat_map(|vdev| ["--vdev", vdev]));
    args.extend(["--", "-i", "--auto-start", "--forward-mode=io", "--total-num-mbufs=16384"]);
    let mut testpmd = Process::start(dir.path(), Path::new("stdbuf"), args)?;
    bench.pause(bench.warm_up)?;
    let (before, began) = forwarded(&mut testpmd)?;
    bench.pause(bench.window)?;
    let (after, ended) = forwarded(&mut testpmd)?;
    testpmd.say("stop")?;
    testpmd.say("quit")?;
    testpmd.wait()?;
    Ok((after - before) as f64 / ended.duration_since(began).as_secs_f64() / 1e6)
}

/// Packets forwarded so far, and when that was.
fn forwarded(testpmd: &mut Process) -> Result<(u64, Instant), Trouble> {
    testpmd.say("show fwd stats all")?;
    let mut all_ports = false;
    loop {
        let line = testpmd.next_line()?;
        let at = Instant::now();
        all_ports |= line.contains("Accumulated forward statistics");
        if let Some(rest) = line.trim().strip_prefix("TX-packets:").filter(|_| all_ports) {
            let number = rest.split_whitespace().next().and_then(|word| word.parse().ok());
            let number =
                number.ok_or_else(|| Trouble::Failed(format!("testpmd printed {line:?}")))?;
            return Ok((number, at));
        }
    }
}

fn free_hugepages() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// What it costs to give a core from one process to another, nanoseconds: two processes that share it
/// wake each other by a pipe, in turn; half of a round.
///
/// # Errors
/// [`Trouble::Failed`] when that cannot be measured.
pub fn context_switch_ns(bench: &Bench, core: u32) -> Result<f64, Trouble> {
    let program = std::env::current_exe()?;
    let dir = tempfile::Builder::new().prefix("millrace-bench-").tempdir()?;
    let mut echo = Process::start(dir.path(), &program, ["echo", &core.to_string()])?;
    let ns = on_core(core, || -> Result<f64, Trouble> {
        let rounds = 20_000_u32;
        // The first round starts it.
        echo.say("")?;
        echo.next_line()?;
        let began = Instant::now();
        for _ in 0..rounds {
            echo.say("")?;
            echo.next_line()?;
        }
        Ok(began.elapsed().as_nanos() as f64 / f64::from(rounds) / 2.0)
    })??;
    drop(echo);
    bench.pause(Duration::ZERO)?;
    Ok(ns)
}

fn on_core<T>(core: u32, run: impl FnOnce() -> T) -> Result<T, Trouble> {
    let before = super::affinity()?;
    super::pin(core)?;
    let result = run();
    super::set_affinity(&before)?;
    Ok(result)
}
