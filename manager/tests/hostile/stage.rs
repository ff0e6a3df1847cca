//! Where an attack takes place: a manager, an NF under attack or beside it, and the bystander.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nflib::control::{ChainSpec, Edit, NfStatus, ServiceRef, Status};

use super::intruder::{Intruder, NAME, SERVICE};
use super::running::{
    LIMIT, MANAGER, Manager, assert_faultless, nf_program, nfs_of, until, verified,
};
use super::tables::{by_hand, chain, rule, service, sink};

/// Packets a second: enough to fill the intruder's ring in a moment, and few enough for a bystander
/// that has to wait for a core.
const RATE_PPS: u64 = 20_000;
const BYSTANDER_PPS: u64 = 1000;
/// Packets of the bystander that must come through after an attack.
const AFTERWARDS_PKTS: u64 = 200;

/// Where the intruder stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Alone in its chain, in a domain of its own.
    Isolated,
    /// Alone in its chain, in the domain that the bystander's NF is in, too.
    Trusted,
    /// Before an honest NF, to which it has a direct edge.
    Before,
    /// Behind an honest NF, from which it has a direct edge.
    Behind,
}

impl Place {
    fn services(self) -> &'static [&'static str] {
        match self {
            Self::Isolated | Self::Trusted => &[SERVICE],
            Self::Before => &[SERVICE, "victim"],
            Self::Behind => &["victim", SERVICE],
        }
    }

    fn tables(self) -> String {
        let evil = by_hand(SERVICE);
        let evil = if self == Self::Isolated { evil + "isolated = true\n" } else { evil };
        let neighbour =
            if self.services().len() > 1 { service("victim", 1) } else { String::new() };
        generator("in", "out", RATE_PPS)
            + &sink("out")
            + &generator("good-in", "good-out", BYSTANDER_PPS)
            + &sink("good-out")
            + &evil
            + &neighbour
            + &service("good", 1)
            + &chain("default", self.services())
            + &chain("bystander", &["good"])
            + &rule("bystander", 9, "in_port = \"good-in\"", "chain = \"bystander\"")
    }
}

fn generator(name: &str, egress: &str, rate_pps: u64) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nbackend = \"generator\"\nflows = 16\n\
         rate_pps = {rate_pps}\negress = \"{egress}\"\n"
    )
}

pub struct Stage {
    pub manager: Manager,
    log: tempfile::NamedTempFile,
}

/// A stage with an intruder that gets packets; `None` where the NF program is not built.
pub fn set(place: Place) -> Option<(Stage, Intruder)> {
    set_with(place, "", "")
}

/// The same, with further keys of `[manager]` and, at the end, of `[pool]`.
pub fn set_with(place: Place, keys: &str, pool: &str) -> Option<(Stage, Intruder)> {
    nf_program()?;
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(MANAGER);
    command.stderr(log.reopen().unwrap());
    let keys = format!("wait_for_nfs = true\nring_capacity = 2048\n{keys}");
    let manager = Manager::start_by(command, &keys, &format!("{pool}\n{}", place.tables()));
    let mut intruder = Intruder::attach(&manager);
    let stage = Stage { manager, log };
    stage.wait_until_all_run(&mut intruder);
    Some((stage, intruder))
}

impl Stage {
    /// Waits until every chain is complete and packets flow.
    pub fn wait_until_all_run(&self, intruder: &mut Intruder) {
        until("all NFs run", || {
            intruder.behave();
            let status = self.manager.status();
            let run = status.nfs.iter().all(|nf| nf.state == "running");
            let complete = status.chains.iter().all(|chain| chain.missing.is_empty());
            (run && complete && !status.plan.changing).then_some(())
        });
        until("packets flow", || (intruder.behave() > 0).then_some(()));
    }

    /// What the manager has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    /// Runs `attack` again and again for a while, at least once.
    pub fn keep_on(&self, during: Duration, mut attack: impl FnMut()) {
        let end = Instant::now() + during;
        loop {
            attack();
            if Instant::now() >= end {
                return;
            }
        }
    }

    pub fn record(&self, intruder: &Intruder) -> Option<NfStatus> {
        self.manager.status().nfs.into_iter().find(|nf| nf.instance == intruder.instance())
    }

    /// That the attack was counted, at least so many times, and reported with the NF's name.
    #[track_caller]
    pub fn assert_counted(&self, intruder: &Intruder, least: u64) {
        until("violations are counted", || {
            let violations = self.record(intruder).expect("it is still there").violations;
            (violations >= least).then_some(())
        });
        self.assert_reported("broke the rules");
    }

    /// That the intruder was taken out, and that this was reported with its name.
    #[track_caller]
    pub fn assert_removed(&self, intruder: &Intruder) {
        until("the intruder is removed", || self.record(intruder).is_none().then_some(()));
        self.assert_reported("removed");
    }

    #[track_caller]
    fn assert_reported(&self, words: &str) {
        let is_it =
            |line: &str| line.contains(words) && line.contains(NAME) && line.contains(SERVICE);
        let end = Instant::now() + LIMIT;
        while !self.log().lines().any(is_it) {
            assert!(Instant::now() < end, "no {words:?} in: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// That the intruder is still attached and nothing was counted against it.
    #[track_caller]
    pub fn assert_unharmed(&self, intruder: &Intruder) {
        assert_eq!(self.record(intruder).expect("it is still there").violations, 0);
    }

    /// That the bystander goes on, and missed nothing.
    #[track_caller]
    pub fn assert_bystander_well(&self) -> Status {
        let good = |status: &Status| verified(status, "good-out", "good");
        let before = good(&self.manager.status());
        until("the bystander's packets flow", || {
            (good(&self.manager.status()) >= before + AFTERWARDS_PKTS).then_some(())
        });
        let status = self.manager.status();
        assert_faultless(&status, "good-out");
        for drop in &status.drops {
            assert!(!drop.place.contains("good"), "{drop:?}");
        }
        let [nf] = nfs_of(&status, "good").collect::<Vec<_>>()[..] else { panic!("{status:?}") };
        assert_eq!((nf.violations, nf.instance), (0, nf.instance));
        let good = status.services.iter().find(|service| service.name == "good").unwrap();
        assert_eq!(good.restarts, 0);
        status
    }

    /// The intruder goes, everything comes back, and the manager ends in good order. What the
    /// manager said is returned.
    #[track_caller]
    pub fn end(self, intruder: Intruder) -> String {
        drop(intruder);
        self.assert_bystander_well();
        self.finish()
    }

    /// The same, when the intruder is gone already.
    #[track_caller]
    pub fn end_without(self) -> String {
        self.assert_bystander_well();
        self.finish()
    }

    /// The same, when the intruder hid packets of the trusted domain: those come back with the last
    /// NF of the domain.
    #[track_caller]
    pub fn end_with_domain(self, intruder: Intruder) -> String {
        drop(intruder);
        self.end_domain()
    }

    /// The same, when the intruder is gone already.
    #[track_caller]
    pub fn end_domain(self) -> String {
        self.assert_bystander_well();
        self.bypass();
        for service in ["good", "victim"] {
            // Not every stage has a victim.
            let service = ServiceRef::Name(service.into());
            let _ = self.manager.edit(vec![Edit::Scale { service, instances: 0 }]);
        }
        self.finish()
    }

    /// Puts no NF between the ports, so that NFs are left with what they have.
    fn bypass(&self) {
        let chain = |name: &str| Edit::SetChain {
            chain: ChainSpec { name: name.into(), end: "egress".into(), ..ChainSpec::default() },
            new: false,
        };
        self.manager.edit(vec![chain("default"), chain("bystander")]).unwrap();
    }

    /// The end of it, whatever the bystander saw.
    #[track_caller]
    pub fn finish(self) -> String {
        self.bypass();
        self.manager.assert_all_back();
        let said = self.log();
        assert!(!said.contains("panicked"), "{said}");
        self.manager.stop();
        said
    }
}

/// The most memory that a process has had in RAM so far, bytes (proc_pid_status(5)).
pub fn peak_bytes(pid: i32) -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let status = status.unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
