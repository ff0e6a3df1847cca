//! Connections of clients: how many at once, and how long one may leave a request unfinished.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, watch};

/// Connections at once: some hundred pages and programs, and half of the files that a process may have
/// open by default. More wait until one ends.
const MAX_CONNECTIONS: usize = 512;
/// How long the head of a request may take, also of the next one on a connection that is kept.
const HEAD_LIMIT: Duration = Duration::from_secs(20);
/// Longest head, bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Answers whoever comes until `stopping` turns true, then ends when the answers under way have.
pub async fn serve<L: Listener>(mut listener: L, app: Router, mut stopping: watch::Receiver<bool>) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(MAX_HEAD_BYTES);
    let (open, slots) = (GracefulShutdown::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, (stream, _)) = tokio::select! {
            next = next => next,
            // Resolves to an error when the sender is gone, which is as good a reason.
            _ = stopping.wait_for(|&stopping| stopping) => break,
        };
        let service = TowerToHyperService::new(app.clone());
        let connection = open.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    open.shutdown().await;
}
