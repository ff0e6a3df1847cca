//! What clients and NFs ask, one by one.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;

use nflib::control::{Applied, AttachRequest, ErrorCode, ErrorReply, Reply, Request};

use super::connection::REQUESTS_A_ROUND;
use super::{Server, ServerError, refusal};
use crate::conductor::RequestId;
use crate::config::Config;
use crate::model::Model;
use crate::observe::Question;
use crate::registry::Leave;

/// Changes that wait to be carried out, at most.
const MAX_CHANGES_WAITING: usize = 4096;

/// Who waits for which change.
#[derive(Default)]
pub struct Asking {
    /// By request: on which connection, and since when, for those who keep such times.
    waiting: BTreeMap<RequestId, (u64, tracing::Span)>,
    last: RequestId,
}

impl Asking {
    fn begin(&mut self, connection: u64) -> RequestId {
        self.last += 1;
        let span = tracing::debug_span!("change", request = self.last);
        self.waiting.insert(self.last, (connection, span));
        self.last
    }

    /// A request of the manager's own.
    pub fn of_nobody(&mut self) -> RequestId {
        self.last += 1;
        self.last
    }

    /// The connection that waits for a request, which is done now.
    pub fn done(&mut self, id: RequestId) -> Option<u64> {
        self.waiting.remove(&id).map(|(connection, _)| connection)
    }
}

impl Server {
    /// Reads what there is from a connection and answers every whole message.
    pub(super) fn read_from(&mut self, id: u64, hung_up: bool) -> Result<(), ServerError> {
        let Some(connection) = self.connections.get_mut(id) else { return Ok(()) };
        connection.read(hung_up);
        let mut answered = 0;
        while let Some(connection) = self.connections.get_mut(id) {
            if answered == REQUESTS_A_ROUND {
                connection.leave_rest();
                break;
            }
            answered += 1;
            match connection.next_request() {
                Ok(Some(request)) => {
                    let instance = connection.instance;
                    let span =
                        tracing::debug_span!("request", op = name_of(&request), connection = id);
                    span.in_scope(|| self.answer(id, instance, request))?;
                }
                Ok(None) => break,
                Err(error) => {
                    connection.refuse(&error);
                    if let Some(instance) = connection.instance {
                        let why = format!("it does not keep to the protocol: {error}");
                        self.end_liar(instance, &why)?;
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, nf: Option<u32>, request: Request) -> Result<(), ServerError> {
        match (nf, request) {
            (None, Request::Attach(request)) => self.attach(id, &request),
            (Some(instance), Request::Detach) => {
                self.drain_nf(instance, Leave::Asked)?;
            }
            (Some(instance), Request::Synced { token }) => self.conductor.synced(instance, token),
            (Some(from), Request::Send { target, payload, token }) => {
                self.pass_on(from, &target, payload, token);
            }
            (Some(instance), Request::Answer { token, result }) => {
                self.answer_of(instance, token, result);
            }
            (_, Request::Status) => {
                let status = self.status()?;
                self.connections.send(id, &Reply::Status(Box::new(status)));
            }
            (None, request) => self.command(id, request)?,
            (Some(_), request) => {
                let what = format!("an NF cannot ask for that: {}", name_of(&request));
                self.connections.send(id, &refusal(ErrorCode::Forbidden, what));
            }
        }
        Ok(())
    }

    fn command(&mut self, id: u64, request: Request) -> Result<(), ServerError> {
        match request {
            Request::Apply { path, text, dry_run } => self.apply(id, &path, &text, dry_run),
            Request::Edit { edits } => {
                if self.draining {
                    self.connections
                        .send(id, &refusal(ErrorCode::Stopping, "the manager is stopping"));
                } else if let Some(error) = self.disturbs_upgrade(&edits) {
                    self.connections.send(id, &Reply::Error(error));
                } else if let Some(refusal) = self.too_many_changes() {
                    self.connections.send(id, &refusal);
                } else {
                    let asked = self.asking.begin(id);
                    self.conductor.ask_edits(asked, edits);
                }
            }
            Request::Upgrade { service, command, probation_ms } => {
                self.upgrade(id, &service, command, probation_ms);
            }
            Request::StopNf { instance } => {
                let told =
                    self.drain_nf(instance, Leave::Told("stopped by a command".to_owned()))?;
                let reply = if told {
                    Reply::Done
                } else {
                    let message = format!("there is no instance {instance}; see millrace nf list");
                    refusal(ErrorCode::NotFound, message)
                };
                self.connections.send(id, &reply);
            }
            Request::Flows { limit } => self.flows(id, limit)?,
            Request::Buffers { buffer } => self.buffers(id, buffer)?,
            Request::Explain { in_port, frame } => self.explain(id, in_port.as_deref(), &frame)?,
            Request::Crashes => self.list_crashes(id),
            Request::Crash { name } => self.show_crash(id, &name),
            Request::CapturePoints => self.ask_observer(id, Question::Points),
            Request::Capture(request) => self.ask_observer(id, Question::Capture(request)),
            Request::Captures => self.ask_observer(id, Question::Captures),
            Request::Trace(request) => self.trace(id, request),
            Request::Traces { id: trace } => self.ask_observer(id, Question::Traces(trace)),
            Request::ForgetTrace { id: trace } => {
                self.ask_observer(id, Question::ForgetTrace(trace));
            }
            Request::Latency => self.ask_observer(id, Question::Latency),
            Request::Call { target, payload } => self.call(id, &target, &payload),
            Request::Shutdown { keep_nfs } => {
                tracing::info!(keep_nfs, "stopping by a command: draining");
                self.stopping = true;
                self.keep_nfs |= keep_nfs;
                self.wait_for_end.push(id);
                self.connections.send(id, &Reply::Done);
            }
            other => {
                let what = format!("only an attached NF can ask for that: {}", name_of(&other));
                self.connections.send(id, &refusal(ErrorCode::BadRequest, what));
            }
        }
        Ok(())
    }

    fn attach(&mut self, id: u64, request: &AttachRequest) {
        let peer = match self.connections.get_mut(id).map(|connection| connection.peer()) {
            Some(Ok(peer)) => peer,
            Some(Err(errno)) => {
                let message = format!("the peer's credentials cannot be read: {errno}");
                return self.connections.send(id, &refusal(ErrorCode::Forbidden, message));
            }
            None => return,
        };
        let core = request.core.or_else(|| self.core_of(peer.pid));
        let welcome = if self.draining {
            Err(ErrorReply { code: ErrorCode::Stopping, message: "the manager is stopping".into() })
        } else {
            self.conductor
                .service_of(request)
                .and_then(|service| {
                    self.may_attach(&service, peer.pid)?;
                    self.join_core(&service, request.core, peer.pid)
                })
                .and_then(|()| self.conductor.attach(request, peer, core, &mut self.fabric))
        };
        match welcome {
            Ok(welcome) => {
                let instance = welcome.attached.instance;
                let (service, name) = (welcome.attached.service, &request.name);
                tracing::info!(instance, service, name, "NF attached");
                self.connections.name(id, instance);
                self.supervisor.attached(peer.pid, instance);
                self.attached_while_upgrading(peer.pid, instance, service);
                let reply = Reply::Attached(welcome.attached);
                self.connections.send_with(id, &reply, welcome.fds);
            }
            Err(error) => {
                let (service, name) = (brief(&request.service.to_string()), brief(&request.name));
                tracing::warn!(service, name, %error, "NF refused");
                if self.supervisor.owner(peer.pid).is_none() {
                    self.supervisor.cores().release(peer.pid);
                }
                self.connections.send(id, &Reply::Error(error));
            }
        }
    }

    /// Compares a file with what runs, and makes it so.
    fn apply(&mut self, id: u64, path: &str, text: &str, dry_run: bool) {
        let invalid = |message: String| refusal(ErrorCode::Invalid, message);
        let next = Config::parse_after(text, Path::new(path), Some(self.conductor.model()))
            .map_err(|error| error.to_string())
            .and_then(|next| match next.needs_restart(&self.config) {
                Some(why) => Err(why),
                None => Ok(next),
            });
        let next = match next {
            Ok(next) => next,
            Err(message) => return self.connections.send(id, &invalid(message)),
        };
        if dry_run {
            let changes = Model::diff(self.conductor.model(), &next.model);
            let generation = self.conductor.planner().current().generation;
            let applied = Applied { changes, notes: next.notes, generation, ..Applied::default() };
            return self.connections.send(id, &Reply::Applied(applied));
        }
        if self.draining {
            return self
                .connections
                .send(id, &refusal(ErrorCode::Stopping, "the manager is stopping"));
        }
        if let Some(refusal) = self.too_many_changes() {
            return self.connections.send(id, &refusal);
        }
        let asked = self.asking.begin(id);
        self.conductor.ask_specs(asked, next.specs);
    }

    fn too_many_changes(&self) -> Option<Reply> {
        let waiting = self.conductor.waiting_requests();
        (waiting >= MAX_CHANGES_WAITING).then(|| {
            let message = format!("{waiting} changes wait to be carried out: ask again later");
            refusal(ErrorCode::Exhausted, message)
        })
    }
}

/// The beginning of what somebody calls himself, for the log.
fn brief(name: &str) -> String {
    name.chars().take(64).collect()
}

/// The name of a request, as it is written.
fn name_of(request: &Request) -> String {
    let json = serde_json::to_value(request).unwrap_or_default();
    json.get("op").and_then(|op| op.as_str()).unwrap_or("?").to_owned()
}
