//! What the control thread does for the observer: names, rings, questions, and orders to those who look at
//! packets.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;

use nflib::control::{ErrorCode, Reply, TraceRequest};

use super::{Server, ServerError, refusal};
use crate::fabric::Fabric;
use crate::observe::{Command, DirectoryKeeper, Message, Observer, Question, traces};
use crate::plan::NfNumber;
use crate::status::now_ns;

/// Questions that wait for the observer, at most.
const MAX_ASKING: usize = 256;

/// The observer, and what it was told.
pub struct Observing {
    observer: Observer,
    names: DirectoryKeeper,
    /// The NFs it knows, with their instance ids.
    nfs: BTreeMap<NfNumber, u32>,
    registry_revision: u64,
    /// Questions that are not answered yet.
    asking: usize,
}

impl Observing {
    /// Starts the observer over the workers' rings.
    ///
    /// # Errors
    /// As the system says.
    pub fn start(fabric: &Fabric, latency_interval_us: u32) -> io::Result<Self> {
        let workers = fabric.worker_taps().cloned().collect();
        Ok(Self {
            observer: Observer::start(workers, latency_interval_us)?,
            names: DirectoryKeeper::default(),
            nfs: BTreeMap::new(),
            registry_revision: 0,
            asking: 0,
        })
    }

    /// Readable when the observer has something to say.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.observer.fd()
    }
}

impl Server {
    /// Tells the observer what has changed, and does what it says.
    pub(super) fn observe(&mut self) -> Result<(), ServerError> {
        self.tell_of_nfs();
        let directory = self.observing.names.update(&self.conductor, &self.fabric, now_ns());
        if let Some(directory) = directory {
            self.observing.observer.tell(Command::Directory(directory));
        }
        for message in self.observing.observer.take() {
            match message {
                Message::Answer { connection, reply, fd } => {
                    self.observing.asking -= 1;
                    self.connections.send_with(connection, &reply, fd.into_iter().collect());
                }
                // Workers that drain may have ended.
                Message::Observe(..) if self.draining => {}
                Message::Observe(observation, keep_bytes) => {
                    self.fabric.marks().keep(keep_bytes);
                    self.fabric.observe(&observation)?;
                }
                Message::Taps(instance, taps) => {
                    self.connections.send_to_nf(instance, &Reply::Taps { taps }, None);
                    self.conductor.ring(instance);
                }
            }
        }
        Ok(())
    }

    /// Hands the observer the rings of NFs that came, and has it forget those of NFs that went.
    fn tell_of_nfs(&mut self) {
        let registry = self.conductor.registry();
        let observing = &mut self.observing;
        if std::mem::replace(&mut observing.registry_revision, registry.revision())
            == registry.revision()
        {
            return;
        }
        let gone = |nf: &NfNumber, instance: &u32| {
            registry.by_number(*nf).is_none_or(|record| record.instance != *instance)
        };
        let observer = &observing.observer;
        observing.nfs.retain(|nf, instance| {
            let gone = gone(nf, instance);
            if gone {
                observer.tell(Command::NfGone(*nf));
            }
            !gone
        });
        for record in registry.nfs() {
            if observing.nfs.insert(record.nf, record.instance).is_none() {
                let tap = std::sync::Arc::clone(&record.tap);
                observer.tell(Command::NfCame(record.nf, record.instance, tap));
            }
        }
    }

    /// Passes a client's question on; the answer comes in a later round.
    pub(super) fn ask_observer(&mut self, connection: u64, question: Question) {
        if self.observing.asking >= MAX_ASKING {
            let message = format!("{MAX_ASKING} questions about packets wait: ask again later");
            return self.connections.send(connection, &refusal(ErrorCode::Exhausted, message));
        }
        self.observing.asking += 1;
        self.observing.observer.tell(Command::Ask { connection, question });
    }

    /// A client wants packets to be followed.
    pub(super) fn trace(&mut self, connection: u64, request: TraceRequest) {
        if self.draining {
            let refusal = refusal(ErrorCode::Stopping, "the manager is stopping");
            return self.connections.send(connection, &refusal);
        }
        let matches = traces::check(&request)
            .and_then(|()| Ok(self.conductor.model().match_of(&request.matches)?));
        match matches {
            Ok(matches) => {
                self.ask_observer(connection, Question::Trace(Box::new((request, matches))));
            }
            Err(error) => self.connections.send(connection, &Reply::Error(error)),
        }
    }
}
