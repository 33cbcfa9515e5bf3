//! Opens what the agent listens on.

use super::RunError;
use crate::{
    config::Config,
    serving::{
        http::Listener,
        listen::{SocketFile, acceptor},
    },
};
use std::{io, net::SocketAddr, path::PathBuf};
use tokio::net::TcpListener;

/// Open, not yet answered on.
pub(super) struct Listeners {
    pub(super) serving: Vec<Listener>,
    pub(super) metrics: Vec<Listener>,
    pub(super) bound: Bound,
}

/// Where: port 0 has become a real one.
pub(super) struct Bound {
    pub(super) http: SocketAddr,
    pub(super) grpc: Option<SocketAddr>,
    pub(super) remote: Option<SocketAddr>,
    pub(super) socket: Option<PathBuf>,
    pub(super) metrics: SocketAddr,
}

impl Listeners {
    /// # Errors
    /// [`RunError`] names the key whose address or file cannot be had.
    pub(super) async fn open(config: &Config) -> Result<Self, RunError> {
        let (http, http_at) = tcp("http.listen", config.http_listen).await?;
        let (metrics, metrics_at) = tcp("metrics.listen", config.metrics_listen).await?;
        let mut bound = Bound { http: http_at, grpc: None, remote: None, socket: None, metrics: metrics_at };
        let mut serving = vec![Listener::from(http)];
        if let Some(address) = config.grpc_listen {
            let (listener, at) = tcp("grpc.listen", address).await?;
            serving.push(listener.into());
            bound.grpc = Some(at);
        }
        if let Some(address) = config.remote_listen {
            let (listener, at) = tcp("remote.listen", address).await?;
            serving.push(match &config.remote_tls {
                Some(tls) => Listener::with_tls(listener, acceptor(&tls.certificate, &tls.key)?),
                None => listener.into(),
            });
            bound.remote = Some(at);
        }
        if let Some(path) = &config.socket {
            serving.push(SocketFile::listen(path, config.socket_mode).await?.into());
            bound.socket = Some(path.clone());
        }
        Ok(Self { serving, metrics: vec![metrics.into()], bound })
    }
}

async fn tcp(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), RunError> {
    let failed = |source: io::Error| RunError::Listen { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}
