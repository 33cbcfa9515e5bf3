//! The few HTTPS calls an agent makes: one request, one connection, bounded in time and size.

use crate::causes::one_line as chain;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use std::{io, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Connect, send and receive together.
const WHOLE_CALL: Duration = Duration::from_secs(30);
/// Largest answer: an enrolment carries the whole chain of trust documents.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// Why a call had no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    #[error("`{url}` is not an address of the form https://host:port")]
    Url { url: String },
    #[error("could not connect to {host}:{port}")]
    Connect { host: String, port: u16, source: io::Error },
    #[error("the TLS handshake with {host}:{port} failed")]
    Handshake { host: String, port: u16, source: io::Error },
    #[error("{host}:{port} broke off the exchange: {reason}")]
    Exchange { host: String, port: u16, reason: String },
    #[error("{host}:{port} did not answer within {} s", WHOLE_CALL.as_secs())]
    Timeout { host: String, port: u16 },
}

impl HttpsError {
    /// What the handshake failed over, if that is what failed.
    pub fn tls(&self) -> Option<&rustls::Error> {
        match self {
            Self::Handshake { source, .. } => source.get_ref()?.downcast_ref(),
            _ => None,
        }
    }
}

/// POSTs JSON to `url` + `path` and returns status and body.
///
/// # Errors
/// [`HttpsError`]; an error status is an answer, not an error.
pub async fn post(
    config: &Arc<ClientConfig>,
    url: &str,
    path: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), HttpsError> {
    let bad_url = || HttpsError::Url { url: url.chars().take(200).collect() };
    let uri: Uri = url.parse().map_err(|_| bad_url())?;
    if uri.scheme_str() != Some("https") {
        return Err(bad_url());
    }
    let host = uri.host().ok_or_else(bad_url)?.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let name = ServerName::try_from(host.clone()).map_err(|_| bad_url())?;
    let authority = uri.authority().ok_or_else(bad_url)?.to_string();
    let prefix = uri.path().trim_end_matches('/');
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{prefix}{path}"))
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("edgefleet-agent/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| bad_url())?;
    let timeout = || HttpsError::Timeout { host: host.clone(), port };
    tokio::time::timeout(WHOLE_CALL, exchange(config, &host, port, name, request))
        .await
        .map_err(|_| timeout())?
}

async fn exchange(
    config: &Arc<ClientConfig>,
    host: &str,
    port: u16,
    name: ServerName<'static>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), HttpsError> {
    let named = || host.to_owned();
    let broke = |reason: String| HttpsError::Exchange { host: named(), port, reason };
    let tcp = TcpStream::connect((host, port)).await.map_err(|source| HttpsError::Connect {
        host: named(),
        port,
        source,
    })?;
    tcp.set_nodelay(true).ok(); // slower at worst
    let tls = TlsConnector::from(config.clone())
        .connect(name, tcp)
        .await
        .map_err(|source| HttpsError::Handshake { host: named(), port, source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| broke(chain(&e)))?;
    let driver = tokio::spawn(connection);
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|e| broke(chain(&e)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|e| broke(e.to_string()))?
            .to_bytes();
        Ok((status, body))
    }
    .await;
    driver.abort();
    answer
}
