//! NFs that break the rules: what is said of them, and which are removed.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::{Server, ServerError};

/// How often NFs are judged: they may break rules millions of times a second.
const INTERVAL: Duration = Duration::from_secs(1);

impl Server {
    /// Says once in a while which NFs broke rules, and removes those that do not answer.
    pub(super) fn judge(&mut self, now: Instant) -> Result<(), ServerError> {
        if self.next_judgement.is_some_and(|next| now < next) {
            return Ok(());
        }
        self.next_judgement = Some(now + INTERVAL);
        self.conductor.report_violations();
        if self.draining {
            return Ok(());
        }
        let limit = Duration::from_millis(self.config.manager.answer_limit_ms);
        for instance in self.conductor.silent_for(limit, now) {
            self.end_liar(instance, &format!("it was asked to answer {limit:?} ago, and has not"))?;
        }
        Ok(())
    }

    /// Removes NFs that wrote impossible indices into their rings.
    pub(super) fn end_broken(&mut self) -> Result<(), ServerError> {
        for nf in self.fabric.take_broken() {
            let instance = self.conductor.registry().by_number(nf).map(|record| record.instance);
            if let Some(instance) = instance {
                self.end_liar(instance, "it broke its ring")?;
            }
        }
        Ok(())
    }

    /// Ends an NF that did what no NF does that keeps the rules.
    pub(super) fn end_liar(&mut self, instance: u32, why: &str) -> Result<(), ServerError> {
        if let Some(nf) = self.conductor.registry().get(instance) {
            let service = self.conductor.model().service(nf.service);
            let (service, name) = (service.map_or("", |service| service.name()), &nf.name);
            tracing::warn!(instance, service, name, why, "an NF broke the rules and is removed");
        }
        self.end_nf(instance, why)
    }
}
