//! Messages to NFs: from their like, which get no answer, and from commands, which do.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nflib::control::{ErrorCode, MAX_MESSAGE_BYTES, Reply, SendRefusal, Target};

use super::{Server, refusal};

/// How long NFs may take to answer a command.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Commands that wait for answers at a time.
const MAX_CALLS: usize = 1024;

struct Call {
    /// Who asked.
    connection: u64,
    /// Who has not answered.
    waiting: Vec<u32>,
    answers: Vec<(u32, Result<Vec<u8>, String>)>,
    since: Instant,
}

/// Calls under way, by their token.
#[derive(Default)]
pub struct Calls {
    calls: BTreeMap<u64, Call>,
    last: u64,
}

impl Calls {
    fn answered(
        &mut self,
        token: u64,
        instance: u32,
        result: Result<Vec<u8>, String>,
    ) -> Option<(u64, Reply)> {
        let call = self.calls.get_mut(&token)?;
        let at = call.waiting.iter().position(|&waiting| waiting == instance)?;
        call.waiting.swap_remove(at);
        call.answers.push((instance, result));
        if !call.waiting.is_empty() {
            return None;
        }
        let mut call = self.calls.remove(&token)?;
        call.answers.sort_by_key(|(instance, _)| *instance);
        Some((call.connection, Reply::Called { answers: call.answers }))
    }

    /// An NF is gone: it will answer nothing more.
    pub fn gone(&mut self, instance: u32) -> Vec<(u64, Reply)> {
        let tokens: Vec<_> = self.calls.keys().copied().collect();
        let gone = |token| self.answered(token, instance, Err("it is gone".to_owned()));
        tokens.into_iter().filter_map(gone).collect()
    }

    /// Answers for those who have waited long enough.
    pub fn overdue(&mut self, now: Instant) -> Vec<(u64, Reply)> {
        let late: Vec<_> = self
            .calls
            .iter()
            .filter(|(_, call)| now.saturating_duration_since(call.since) > ANSWER_LIMIT)
            .flat_map(|(&token, call)| call.waiting.iter().map(move |&nf| (token, nf)))
            .collect();
        let silence = || Err(format!("no answer within {} s", ANSWER_LIMIT.as_secs()));
        late.into_iter().filter_map(|(token, nf)| self.answered(token, nf, silence())).collect()
    }
}

impl Server {
    /// The NFs that are meant.
    fn instances_of(&self, target: &Target) -> Vec<u32> {
        let registry = self.conductor.registry();
        match target {
            Target::Instance(instance) => {
                registry.get(*instance).map(|nf| nf.instance).into_iter().collect()
            }
            Target::Service(service) => {
                let Ok(service) = self.conductor.model().find_service(service) else {
                    return Vec::new();
                };
                let of_it = registry.nfs().filter(|nf| nf.service == service.id);
                of_it.map(|nf| nf.instance).collect()
            }
        }
    }

    /// An NF's message to others.
    pub(super) fn pass_on(&mut self, from: u32, target: &Target, payload: Vec<u8>, token: u64) {
        let result = if payload.len() > MAX_MESSAGE_BYTES {
            Err(SendRefusal::TooLong)
        } else {
            let instances = self.instances_of(target);
            let message = Reply::Message { from: Some(from), payload, token: None };
            let got = instances.iter().filter(|&&to| self.connections.pass_to_nf(to, &message));
            let got = got.count();
            for &to in &instances {
                self.conductor.ring(to);
            }
            match (instances.len(), got) {
                (0, _) => Err(SendRefusal::Absent),
                (_, 0) => Err(SendRefusal::Full),
                (_, got) => Ok(u32::try_from(got).unwrap_or(u32::MAX)),
            }
        };
        self.connections.send_to_nf(from, &Reply::Sent { token, result }, None);
    }

    /// A command's message to NFs.
    pub(super) fn call(&mut self, connection: u64, target: &Target, payload: &[u8]) {
        let refuse = |code, message: String| refusal(code, message);
        let instances = self.instances_of(target);
        let error = if payload.len() > MAX_MESSAGE_BYTES {
            Some(refuse(
                ErrorCode::BadRequest,
                format!(
                    "a message of {} bytes; at most {MAX_MESSAGE_BYTES} are possible",
                    payload.len()
                ),
            ))
        } else if instances.is_empty() {
            let what = match target {
                Target::Instance(instance) => format!("there is no instance {instance}"),
                Target::Service(service) => format!("service {service} has no instance"),
            };
            Some(refuse(ErrorCode::NotFound, format!("{what}; see millrace nf list")))
        } else if self.calls.calls.len() >= MAX_CALLS {
            Some(refuse(
                ErrorCode::Exhausted,
                format!("{MAX_CALLS} calls wait for answers already"),
            ))
        } else {
            None
        };
        if let Some(error) = error {
            return self.connections.send(connection, &error);
        }
        self.calls.last += 1;
        let token = self.calls.last;
        let call = Call {
            connection,
            waiting: instances.clone(),
            answers: Vec::new(),
            since: Instant::now(),
        };
        self.calls.calls.insert(token, call);
        for instance in instances {
            let message =
                Reply::Message { from: None, payload: payload.to_vec(), token: Some(token) };
            if self.connections.pass_to_nf(instance, &message) {
                self.conductor.ring(instance);
            } else {
                self.answer_of(instance, token, Err(SendRefusal::Full.to_string()));
            }
        }
    }

    /// An NF's answer to a command.
    pub(super) fn answer_of(&mut self, instance: u32, token: u64, result: Result<Vec<u8>, String>) {
        let result = result.map_err(|error| error.chars().filter(|c| !c.is_control()).collect());
        if let Some((connection, reply)) = self.calls.answered(token, instance, result) {
            self.connections.send(connection, &reply);
        }
    }
}
