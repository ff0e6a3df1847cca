//! One look at the manager and at the machine.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use nflib::control::rates::Rates;
use nflib::control::{ControlError, LatencyReport, Status};
use serde::Serialize;

use super::cores::{self, AllTicks, CoreLoad};
use crate::client::{Client, ClientError};
use crate::latency;

/// How long the manager may take, so that a key is never waited for longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// What was seen. The lines of `millrace top --json` are these.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Reading {
    /// The manager answered.
    Up(Box<Up>),
    /// It did not.
    Away {
        /// Why, in one line.
        away: String,
    },
}

/// An answer, and what can be told from it and the one before.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Up {
    /// The answer.
    pub status: Status,
    /// What moved; `None` until two answers of one manager can be compared.
    pub rates: Option<Rates>,
    /// The machine's cores.
    pub cores: Vec<CoreLoad>,
    /// How long packets take; `None` where the manager does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyReport>,
}

/// Asks one manager again and again, also when it goes and comes.
pub struct Watch {
    socket: PathBuf,
    client: Option<Client>,
    before: Option<Status>,
    ticks: AllTicks,
}

impl Watch {
    /// Nothing is asked yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), client: None, before: None, ticks: AllTicks::new() }
    }

    /// Asks once.
    pub fn read(&mut self) -> Reading {
        match self.ask() {
            Ok((status, latency)) => Reading::Up(Box::new(self.compare(status, latency))),
            Err(error) => {
                self.before = None;
                Reading::Away { away: error.to_string() }
            }
        }
    }

    fn ask(&mut self) -> Result<(Status, Option<LatencyReport>), ClientError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.socket)?,
        };
        let status = client.status_within(ANSWER_LIMIT)?;
        let latency = latency::within(&client, ANSWER_LIMIT);
        // Kept only after whole answers: a late one would otherwise answer the next question.
        let whole = match &latency {
            Ok(_) | Err(ClientError::Refused(_)) => true,
            Err(ClientError::Foreign { reason, .. }) => {
                matches!(reason, ControlError::Unexpected(_))
            }
            Err(_) => false,
        };
        self.client = whole.then_some(client);
        Ok((status, latency.ok()))
    }

    fn compare(&mut self, status: Status, latency: Option<LatencyReport>) -> Up {
        let ticks = cores::read();
        let rates = self.before.as_ref().and_then(|before| Rates::between(before, &status));
        let cores = cores::loads(&self.ticks, &ticks, &status);
        self.ticks = ticks;
        self.before = Some(status.clone());
        Up { status, rates, cores, latency }
    }
}
