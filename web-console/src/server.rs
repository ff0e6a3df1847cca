//! The HTTP server: one thread that answers, until a signal.
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::access::{Access, TokenError};
use crate::connections;
use crate::demand::Demand;
use crate::guard::Names;
use crate::manager::Asker;
use crate::options::Options;
use crate::poller::{self, Poller};
use crate::reading::Reading;
use crate::record::Record;
use crate::routes::{Shared, router};
use crate::tls::{self, TlsError, TlsListener};

/// How long answers under way may take when the console stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Captures and files of crashes that may be under way at once: each takes a connection, and a pipe or a
/// thread.
const MAX_DOWNLOADS: usize = 8;

/// Why the server cannot start or go on.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another process listens there.
    #[error("{address} is in use: stop what listens there, or choose another port with --listen")]
    InUse {
        /// As asked for.
        address: SocketAddr,
    },
    /// A port below 1024, mostly.
    #[error(
        "{address}: permission denied: choose a port of 1024 or above with --listen; the console \
         needs no privilege"
    )]
    Forbidden {
        /// As asked for.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The token's file cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The thread that asks the manager is gone.
    #[error("the thread that asks the manager ended; this is a fault of millrace-web: see its log")]
    PollerLost,
}

impl ServerError {
    fn listen(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { address },
            io::ErrorKind::PermissionDenied => Self::Forbidden { address },
            _ => Self::Listen { address, source },
        }
    }

    fn os(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Os { what, source }
    }
}

/// A server that has its address and serves nobody yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Takes an address.
    ///
    /// # Errors
    /// [`ServerError`], one line.
    pub fn bind(address: SocketAddr) -> Result<Self, ServerError> {
        let failed = |source| ServerError::listen(address, source);
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens; the real port where port 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until SIGINT or SIGTERM; calls `ready` once these are heeded.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn run(self, options: &Options, ready: impl FnOnce()) -> Result<(), ServerError> {
        let tls = match (&options.tls_cert, &options.tls_key) {
            (Some(certificates), Some(key)) => Some(tls::acceptor(certificates, key)?),
            _ => None,
        };
        let access = match &options.token_file {
            Some(path) => Access::by_file(path, tls.is_some())?,
            None => Access::open(),
        };
        let names = Names {
            any_address: !self.address.ip().is_loopback(),
            hosts: options.host.clone(),
            tls: tls.is_some(),
        };
        // One thread: most answers are ready before they are asked for, and what has to wait for the
        // manager waits on threads of its own.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ServerError::os("async runtime"))?;
        let (demand, record) = (Arc::new(Demand::default()), Arc::new(Record::default()));
        let interval = options.interval();
        let socket = options.socket.clone();
        let poller = Poller::new(socket, interval, Arc::clone(&demand), Arc::clone(&record));
        let readings = poller::spawn(poller).map_err(ServerError::os("poller thread"))?;
        let (stop, stopping) = watch::channel(false);
        let shared = Shared {
            readings,
            stopping,
            demand,
            record,
            asker: Arc::new(Asker::new(options.socket.clone())),
            access: Arc::new(access),
            names: Arc::new(names),
            allow_changes: options.allow_changes,
            allow_captures: options.may_capture(),
            downloads: Arc::new(Semaphore::new(MAX_DOWNLOADS)),
            interval,
        };
        let ended = runtime.block_on(self.serve(shared, tls, stop, ready));
        // A change that the manager is still busy with is not waited for: it goes on by itself.
        runtime.shutdown_background();
        ended
    }

    async fn serve(
        self,
        shared: Shared,
        tls: Option<TlsAcceptor>,
        stop: watch::Sender<bool>,
        ready: impl FnOnce(),
    ) -> Result<(), ServerError> {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServerError::os("SIGINT"))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(ServerError::os("SIGTERM"))?;
        let listening = ServerError::os("listening socket");
        let listener = tokio::net::TcpListener::from_std(self.listener).map_err(&listening)?;
        let (readings, stopping) = (shared.readings.live.clone(), shared.stopping.clone());
        let app = router(shared);
        let server = match tls {
            Some(acceptor) => {
                let listener = TlsListener::new(listener, acceptor).map_err(&listening)?;
                tokio::spawn(connections::serve(listener, app, stopping))
            }
            None => tokio::spawn(connections::serve(listener, app, stopping)),
        };
        ready();
        let ended = tokio::select! {
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
            () = silence(readings) => Err(ServerError::PollerLost),
        };
        stop.send_replace(true);
        if tokio::time::timeout(DRAIN_LIMIT, server).await.is_err() {
            tracing::debug!("answers under way were cut off");
        }
        ended
    }
}

/// Ends when there will be no more readings.
async fn silence(mut readings: watch::Receiver<Reading>) {
    while readings.changed().await.is_ok() {}
}
