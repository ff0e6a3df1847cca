//! What may be asked of the conductor, and its answers.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nflib::control::{Applied, Edit, ErrorCode, ErrorReply};
use nflib::descriptor::ServiceId;

use super::Conductor;
use crate::model::{Model, ModelSpecs};
use crate::registry::NfState;

/// How long a service may take to have the instances it was scaled to.
const SCALE_LIMIT: Duration = Duration::from_secs(30);

/// Names a request until it is answered.
pub type RequestId = u64;

/// A request that is done.
#[derive(Debug)]
pub struct Answer {
    /// Which.
    pub id: RequestId,
    /// What it did, or why nothing was changed.
    pub result: Result<Applied, ErrorReply>,
}

/// A change that was asked for and has not begun.
#[derive(Debug)]
pub(super) struct Pending {
    /// Who asked; `None`: the manager itself.
    pub id: Option<RequestId>,
    pub what: Asked,
}

#[derive(Debug)]
pub(super) enum Asked {
    /// Begin with this.
    First(Model),
    /// Put this in the place of what is.
    Specs(ModelSpecs),
    /// Change what is.
    Edits(Vec<Edit>),
}

impl Pending {
    /// What the configuration says at the start.
    pub fn first(model: Model) -> Self {
        Self { id: None, what: Asked::First(model) }
    }
}

/// A service that is on its way to the number of instances somebody waits for.
#[derive(Debug)]
pub(super) struct Scaling {
    pub id: RequestId,
    pub service: ServiceId,
    pub instances: u32,
    pub applied: Applied,
    pub began: Instant,
}

impl Conductor {
    /// Asks for changes, to be made as one.
    pub fn ask_edits(&mut self, id: RequestId, edits: Vec<Edit>) {
        self.pending.push_back(Pending { id: Some(id), what: Asked::Edits(edits) });
    }

    /// Asks for another wanted state as a whole.
    pub fn ask_specs(&mut self, id: RequestId, specs: ModelSpecs) {
        self.pending.push_back(Pending { id: Some(id), what: Asked::Specs(specs) });
    }

    /// Removes rules that nobody used for long enough, or that have lived long enough.
    pub fn expire_rules(&mut self, ids: &[u64]) {
        let known = ids.iter().copied().filter(|&id| self.model.rule(id).is_some());
        let edits: Vec<_> = known.map(|id| Edit::RemoveRule { id }).collect();
        if !edits.is_empty() {
            self.pending.push_back(Pending { id: None, what: Asked::Edits(edits) });
        }
    }

    /// Whom nobody waits for any more: a request whose asker has gone is still carried out.
    pub(super) fn answer(&mut self, id: Option<RequestId>, result: Result<Applied, ErrorReply>) {
        if let Some(id) = id {
            self.answers.push(Answer { id, result });
        }
    }

    /// NFs of a service that get flows, or are about to.
    fn present(&self, service: ServiceId) -> (usize, bool) {
        let nfs = || self.registry.nfs().filter(|nf| nf.service == service);
        let settled = nfs().all(|nf| matches!(nf.state, NfState::Running));
        (nfs().count(), settled)
    }

    /// Answers those who wait for instances, when they are there or take too long.
    pub(super) fn finish_scalings(&mut self, now: Instant) {
        let scalings = std::mem::take(&mut self.scalings);
        for mut scaling in scalings {
            let (present, settled) = self.present(scaling.service);
            let took = now.saturating_duration_since(scaling.began);
            if settled && present == scaling.instances as usize && !self.replan {
                scaling.applied.took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                scaling.applied.generation = self.planner.current().generation;
                self.answer(Some(scaling.id), Ok(scaling.applied));
            } else if took > SCALE_LIMIT {
                let message = format!(
                    "{present} instances are there after {} s, {} are wanted; the manager goes on \
                     trying: see millrace service list for the reason",
                    SCALE_LIMIT.as_secs(),
                    scaling.instances
                );
                let code = ErrorCode::Timeout;
                self.answer(Some(scaling.id), Err(ErrorReply { code, message }));
            } else {
                self.scalings.push(scaling);
            }
        }
    }
}
