//! An agent to send requests to, over its HTTP port.

use super::{ConfigArgs, Failure, status::reachable};
use crate::{run::addresses::Addresses, serving::local::Body, store::files};
use bytes::Bytes;
use edgefleet_shared::ids::SlotName;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Uri, client::conn::http1::SendRequest, header};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::net::TcpStream;

/// For one answer: a queue in front of a slow model takes its time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the largest answer.
const MAX_ANSWER: usize = 256 << 20;

/// Keeps its connections; cheap to clone.
#[derive(Clone)]
pub(super) struct Peer(Arc<Inner>);

struct Inner {
    host: String,
    port: u16,
    path: String,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Peer {
    /// `base`: `http://host:port`, or `local` for the agent that runs on the data folder of the settings.
    ///
    /// # Errors
    /// No agent runs there, or the address is none.
    pub(super) fn new(base: &str, slot: &SlotName, config: &ConfigArgs) -> Result<Self, Failure> {
        let base = match base {
            "local" => local(config)?,
            base => base.trim_end_matches('/').to_owned(),
        };
        let parsed = base.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("http"));
        let Some((host, port)) = parsed.as_ref().and_then(|uri| Some((uri.host()?, uri.port_u16()))) else {
            let error = anyhow::anyhow!("`{base}` is no address of an agent");
            return Err(Failure::usage(error, "write `local` or `http://127.0.0.1:8000`"));
        };
        Ok(Self(Arc::new(Inner {
            host: host.to_owned(),
            port: port.unwrap_or(80),
            path: format!("/v2/models/{slot}/infer"),
            idle: Mutex::default(),
        })))
    }

    /// The body of the answer; empty if it is not all JSON.
    ///
    /// # Errors
    /// What the agent says, or why it says nothing.
    pub(super) async fn ask(&self, body: Body) -> Result<Bytes, String> {
        let inner = &self.0;
        let mut request =
            Request::post(&inner.path).header(header::HOST, format!("{}:{}", inner.host, inner.port));
        let bytes = match body {
            Body::Json(bytes) => bytes,
            Body::Raw(bytes) => {
                request = request.header("inference-header-content-length", 0);
                bytes
            }
        };
        let request = request.body(Full::new(bytes)).map_err(|e| e.to_string())?;
        let exchange = async {
            let mut connection = self.connection().await?;
            let answer = connection.send_request(request).await.map_err(|e| e.to_string())?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| e.to_string())?.to_bytes();
            inner.idle.lock().push(connection);
            if !parts.status.is_success() {
                let said = serde_json::from_slice::<Value>(&body).ok();
                let said = said.as_ref().and_then(|said| said["error"].as_str());
                return Err(said.map_or_else(|| format!("it answered {}", parts.status), str::to_owned));
            }
            Ok((parts.headers, body))
        };
        let (headers, body) = tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))??;
        let is_json = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
        Ok(if is_json { body } else { Bytes::new() })
    }

    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let Inner { host, port, idle, .. } = &*self.0;
        loop {
            let Some(mut known) = idle.lock().pop() else { break };
            if known.ready().await.is_ok() {
                return Ok(known);
            }
        }
        let failed = |e: &dyn std::fmt::Display| format!("{host}:{port}: {e}");
        // An address of version 6 has brackets in a URI.
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((name, *port)).await.map_err(|e| failed(&e))?;
        tcp.set_nodelay(true).map_err(|e| failed(&e))?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|e| failed(&e))?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn local(config: &ConfigArgs) -> Result<String, Failure> {
    let config = config.load(vec![])?;
    let failed = |e: anyhow::Error| {
        let hint = format!("start it with `edgefleet-agent run --data {}`", config.data.display());
        Failure::hinted(e.context(format!("no agent runs on `{}`", config.data.display())), hint)
    };
    let bytes = files::read_bounded(&Addresses::path(&config.data), 1 << 16).map_err(|e| failed(e.into()))?;
    let addresses: Addresses = serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))?;
    Ok(format!("http://{}", reachable(addresses.http)))
}
