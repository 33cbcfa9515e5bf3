//! TLS for listeners that other machines reach.

use super::Io;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_rustls::TlsAcceptor;

const MAX_PEM: u64 = 1 << 20;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("could not read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` holds no {wanted} in PEM", path.display())]
    Pem { wanted: &'static str, path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("`{}` holds no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("certificate `{}` cannot be used with its key", certificate.display())]
    Pair { certificate: PathBuf, source: rustls::Error },
}

/// Presents the chain in `certificate` with its `key`, both PEM, to clients of HTTP and gRPC.
///
/// # Errors
/// [`TlsError`].
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let read = |path: &Path| {
        crate::store::files::read_bounded(path, MAX_PEM)
            .map_err(|source| TlsError::Read { path: path.to_owned(), source })
    };
    let no_pem = |wanted, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { wanted, path, source }
    };
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(no_pem("certificate", certificate))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: certificate.to_owned() });
    }
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(no_pem("private key", key))?;
    let unusable = |source| TlsError::Pair { certificate: certificate.to_owned(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The connection, encrypted if the listener is; `None` if that fails or takes too long.
pub(super) async fn handshake(io: Io, tls: Option<TlsAcceptor>, patience: Duration) -> Option<Io> {
    match (io, tls) {
        (Io::Tcp(stream), Some(tls)) => match tokio::time::timeout(patience, tls.accept(stream)).await {
            Ok(Ok(stream)) => Some(Io::Tls(Box::new(stream))),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
            Err(_) => None,
        },
        (io, _) => Some(io),
    }
}
