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
            match tcp("grpc.listen", address).await {
                Ok((listener, at)) => {
                    serving.push(listener.into());
                    bound.grpc = Some(at);
                }
                // Nobody has chosen this port, and the other ones speak gRPC too.
                Err(RunError::Listen { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse && !config.grpc_is_chosen =>
                {
                    tracing::warn!(%address, "the port for gRPC is taken; it is spoken on {http_at} all the same");
                }
                Err(error) => return Err(error),
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    async fn open(more: &[(&'static str, &str)]) -> Result<Listeners, RunError> {
        let free = [("http.listen", "127.0.0.1:0"), ("metrics.listen", "127.0.0.1:0")];
        let flags = free.iter().chain(more).map(|(key, value)| (*key, (*value).to_owned()));
        Listeners::open(&config::load(None, [], flags).unwrap()).await
    }

    #[tokio::test]
    async fn a_port_that_nobody_chose_may_be_taken_and_one_that_was_chosen_may_not() {
        let default = config::load(None, [], []).unwrap().grpc_listen.unwrap();
        // Whoever has it: it is taken.
        let _taken = TcpListener::bind(default).await;
        let opened = open(&[]).await.unwrap();
        assert_eq!((opened.serving.len(), opened.bound.grpc), (1, None));
        let refused = open(&[("grpc.listen", &default.to_string())]).await.err().unwrap();
        assert!(matches!(&refused, RunError::Listen { key: "grpc.listen", .. }), "{refused}");
        assert!(refused.hint().unwrap().contains("another `grpc.listen`"), "{refused:?}");
        let opened = open(&[("grpc.listen", "127.0.0.1:0")]).await.unwrap();
        assert!(opened.serving.len() == 2 && opened.bound.grpc.is_some());
    }
}
