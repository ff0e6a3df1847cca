//! TLS: connections whose handshake is done, as axum accepts them.
//!
//! Handshakes go on beside each other, few at once and not for long, so that a client which never
//! ends one keeps nobody else out.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// How long a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES: usize = 64;

/// Why a certificate or key cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The file holds none that can be read.
    #[error("{option} {path}: {reason}")]
    File {
        /// The option that named it.
        option: &'static str,
        /// The path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not go together, or are of a kind that is not supported.
    #[error("--tls-cert and --tls-key cannot be used together: {0}")]
    Pair(tokio_rustls::rustls::Error),
}

/// A certificate chain and its key, both PEM.
///
/// # Errors
/// [`TlsError`].
pub fn acceptor(certificates: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let file = |option, path: &Path, reason: String| TlsError::File {
        option,
        path: path.to_owned(),
        reason,
    };
    let no_certificate = |reason| file("--tls-cert", certificates, reason);
    let chain = CertificateDer::pem_file_iter(certificates)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| no_certificate(error.to_string()))?;
    if chain.is_empty() {
        return Err(no_certificate("expected a certificate in PEM".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| file("--tls-key", key, error.to_string()))?;
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Pair)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Gives out connections whose handshake is done.
#[derive(Debug)]
pub struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    /// Begins to accept; must be called inside the runtime.
    ///
    /// # Errors
    /// When the listening socket does not tell its address.
    pub fn new(listener: TcpListener, acceptor: TlsAcceptor) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(HANDSHAKES);
        tokio::spawn(accept_all(listener, acceptor, sender));
        Ok(Self { ready, address })
    }
}

async fn accept_all(
    mut listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    // The semaphore is never closed; the sender is, when the server has stopped.
    while let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await {
        let (stream, peer) = tokio::select! {
            // axum's own: it waits a little where the system is out of files.
            accepted = Listener::accept(&mut listener) => accepted,
            () = ready.closed() => return,
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            let _permit = permit;
            match tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    // Nobody takes it any more: the server stops.
                    let _ = ready.send((stream, peer)).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS handshake"),
                Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task is gone: nothing more will come.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_or_key_is_named_with_its_option() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let error = acceptor(empty.path(), empty.path()).err().unwrap().to_string();
        assert!(error.starts_with("--tls-cert ") && error.lines().count() == 1, "{error}");
        let error = acceptor(Path::new("/nonexistent"), empty.path()).err().unwrap().to_string();
        assert!(error.starts_with("--tls-cert /nonexistent: "), "{error}");
    }
}
