//! What the supervisor tells, and what there is to see of it.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use nflib::descriptor::ServiceId;

use super::process::How;

/// Something happened. Its text is one line for the log; [`What::Said`]'s is the NF's own line
/// behind `service/pid:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whose.
    pub service: ServiceId,
    /// The service's name.
    pub name: String,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// An NF was started.
    Started {
        /// Its process.
        pid: i32,
        /// The core it was given.
        core: Option<u32>,
    },
    /// An NF that an earlier manager had started was found, and is looked after from now on.
    Adopted {
        /// Its process.
        pid: i32,
        /// Whether it is wanted; if not, it is surplus.
        wanted: bool,
    },
    /// An NF printed a line.
    Said {
        /// Its process.
        pid: i32,
        /// The line, without its end and without control characters.
        line: String,
    },
    /// An NF ended.
    Exited {
        /// Its process.
        pid: i32,
        /// How.
        how: How,
        /// When another takes its place; `None`: none does.
        will_restart_in: Option<Duration>,
        /// What it printed last.
        said: Option<String>,
    },
    /// An NF cannot be started now; told once for each reason.
    Waiting {
        /// Why, one line.
        why: String,
    },
    /// An NF will not be started until what is wanted of its service changes.
    GaveUp {
        /// Its process.
        pid: i32,
        /// Why, one line.
        why: String,
        /// The last lines it printed.
        said: Vec<String>,
    },
    /// An NF that was told to leave has not; this signal was sent.
    Pressed {
        /// Its process.
        pid: i32,
        /// `SIGTERM` or `SIGKILL`.
        signal: &'static str,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.what {
            What::Started { pid, core: Some(core) } => {
                write!(f, "{name}/{pid} started on core {core}")
            }
            What::Started { pid, core: None } => write!(f, "{name}/{pid} started"),
            What::Adopted { pid, wanted: true } => {
                write!(f, "{name}/{pid} runs already: an earlier manager started it")
            }
            What::Adopted { pid, wanted: false } => {
                write!(f, "{name}/{pid}, which an earlier manager started, is not wanted any more")
            }
            What::Said { pid, line } => write!(f, "{name}/{pid}: {line}"),
            What::Exited { pid, how, will_restart_in, said } => {
                write!(f, "{name}/{pid} has ended: {how}")?;
                if let Some(said) = said {
                    write!(f, ", its last words: {said}")?;
                }
                match will_restart_in {
                    None => Ok(()),
                    Some(Duration::ZERO) => write!(f, "; it is started again"),
                    Some(pause) => write!(f, "; it is started again in {pause:?}"),
                }
            }
            What::Waiting { why } => write!(f, "{name} cannot be started: {why}"),
            What::GaveUp { pid, why, .. } => write!(f, "{name}/{pid} is given up: {why}"),
            What::Pressed { pid, signal } => {
                write!(f, "{name}/{pid} was told to leave and has not: {signal}")
            }
        }
    }
}

/// How [`ServiceState::waiting`] begins where no further try is made.
pub const GIVEN_UP: &str = "given up: ";

/// How a service is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceState {
    /// Instances wanted.
    pub wanted: u32,
    /// Of these, those that run.
    pub running: u32,
    /// Of these, those that have left by their own will (a limit), or were told to.
    pub done: u32,
    /// Processes of the service that run and are not wanted: draining, or told to leave.
    pub leaving: u32,
    /// How often an instance was started after another had ended.
    pub restarts: u64,
    /// Why an instance that is wanted does not run and is not done; the first, if several.
    pub waiting: Option<String>,
}

/// A process that the supervisor looks after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NfProcess {
    /// It.
    pub pid: i32,
    /// Its service.
    pub service: ServiceId,
    /// The core it was given.
    pub core: Option<u32>,
    /// It is not, or no longer, one of those wanted.
    pub leaving: bool,
}
