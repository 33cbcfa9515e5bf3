//! The second way for big blobs: HTTPS with ranges. Any failure falls back to blocks over MQTT.

use super::{
    part::PartFile,
    transfer::{TransferError, Watch},
};
use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::{desired::Transport, digest::BlobDigest};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use http_body_util::{BodyExt, BodyStream, Full, Limited};
use hyper::{Request, StatusCode, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{path::Path, time::Duration};

/// Longest time for an upload and its answer.
const UPLOAD: Duration = Duration::from_secs(120);
const MAX_ANSWER: usize = 4_096;
/// Silence after which a download over HTTPS is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// Why a range did not come. Says the address and the status, where there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RangeError(pub String);

pub type RangeStream = BoxStream<'static, Result<Bytes, RangeError>>;

/// Gives bytes `from..to` of a blob.
#[async_trait]
pub trait RangeSource: Send + Sync {
    /// # Errors
    /// [`RangeError`] before or within the stream; whoever reads checks length and digest.
    async fn get(&self, digest: BlobDigest, from: u64, to: u64) -> Result<RangeStream, RangeError>;
}

/// `GET {base}/api/v1/device/blobs/{digest}` with the device's certificate.
#[derive(Debug)]
pub struct HttpsSource {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
}

impl HttpsSource {
    /// `tls` presents the device's certificate and trusts the controller's CA only; `base` is
    /// `https://host:port`.
    pub fn new(tls: rustls::ClientConfig, base: &str) -> Self {
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { client, base: base.trim_end_matches('/').to_owned() }
    }

    /// `PUT {base}{path}`; the status, the seconds of `Retry-After` and the start of the answer.
    ///
    /// # Errors
    /// [`RangeError`] if there is no answer within two minutes.
    pub async fn put(
        &self,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Option<u64>, String), RangeError> {
        let text = format!("{}{path}", self.base);
        let uri: Uri = text.parse().map_err(|e| RangeError(format!("`{text}` is no address: {e}")))?;
        let request = Request::put(uri)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(Full::new(body))
            .map_err(|e| RangeError(format!("`{text}`: {e}")))?;
        let answer = async {
            let response = self.client.request(request).await;
            let response = response.map_err(|e| RangeError(format!("`{text}`: {e}")))?;
            let status = response.status();
            let after = response.headers().get(header::RETRY_AFTER);
            let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
            // Only for the log, so a longer one is as good as none.
            let said = Limited::new(response.into_body(), MAX_ANSWER).collect().await.ok();
            let said = said.map(|said| String::from_utf8_lossy(&said.to_bytes()).into_owned());
            Ok((status, after, said.unwrap_or_default()))
        };
        let late = |_| RangeError(format!("`{text}` did not answer in {} s", UPLOAD.as_secs()));
        tokio::time::timeout(UPLOAD, answer).await.map_err(late)?
    }
}

#[async_trait]
impl RangeSource for HttpsSource {
    async fn get(&self, digest: BlobDigest, from: u64, to: u64) -> Result<RangeStream, RangeError> {
        let text = format!("{}/api/v1/device/blobs/{digest}", self.base);
        let uri: Uri = text.parse().map_err(|e| RangeError(format!("`{text}` is no address: {e}")))?;
        let request = Request::get(uri)
            .header(header::RANGE, format!("bytes={from}-{}", to.saturating_sub(1)))
            .body(Full::default())
            .map_err(|e| RangeError(format!("`{text}`: {e}")))?;
        let response = tokio::time::timeout(SILENCE, self.client.request(request))
            .await
            .map_err(|_| RangeError(format!("`{text}` did not answer in {} s", SILENCE.as_secs())))?
            .map_err(|e| RangeError(format!("`{text}`: {e}")))?;
        let whole = from == 0 && response.status() == StatusCode::OK;
        if response.status() != StatusCode::PARTIAL_CONTENT && !whole {
            return Err(RangeError(format!("`{text}` answered {}", response.status())));
        }
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok());
            if !range.is_some_and(|range| range.starts_with(&format!("bytes {from}-"))) {
                return Err(RangeError(format!("`{text}` answered another range: {range:?}")));
            }
        }
        let stream =
            BodyStream::new(response.into_body().map_err(move |e| RangeError(format!("`{text}`: {e}"))))
                .try_filter_map(|frame| async move { Ok(frame.into_data().ok()) });
        Ok(stream.boxed())
    }
}

/// Whether a blob of `size` bytes is tried over HTTPS first.
pub fn prefers_https(transport: Transport, size: u64, https_above_bytes: u64) -> bool {
    match transport {
        Transport::Auto => size > https_above_bytes,
        Transport::Https => true,
        Transport::Mqtt => false,
    }
}

/// Fetches a blob of exactly `size` bytes to `target`, going on from where a former run stopped.
///
/// # Errors
/// [`TransferError`]; what was synced stays, for the next try or for the other way.
pub async fn blob(
    source: &dyn RangeSource,
    digest: BlobDigest,
    size: u64,
    target: &Path,
    watch: &dyn Watch,
) -> Result<(), TransferError> {
    let mut part = PartFile::open(target, digest, size).await?;
    watch.written(part.len());
    if part.len() < size {
        let pulled = pull(source, digest, size, &mut part, watch).await;
        if let Err(error) = pulled {
            if !matches!(error, TransferError::Part(_)) {
                part.sync().await?;
            }
            return Err(error);
        }
    }
    Ok(part.finish().await?)
}

async fn pull(
    source: &dyn RangeSource,
    digest: BlobDigest,
    size: u64,
    part: &mut PartFile,
    watch: &dyn Watch,
) -> Result<(), TransferError> {
    let failed = |e: RangeError| TransferError::Https { reason: e.0 };
    let mut stream = source.get(digest, part.len(), size).await.map_err(failed)?;
    while part.len() < size {
        let chunk = tokio::time::timeout(SILENCE, stream.next())
            .await
            .map_err(|_| TransferError::Timeout { object: digest.to_string() })?;
        let Some(chunk) = chunk else {
            let reason = format!("{digest} ended after {} of {size} bytes", part.len());
            return Err(TransferError::Https { reason });
        };
        let chunk = chunk.map_err(failed)?;
        watch.received(chunk.len() as u64);
        part.append(&chunk).await?;
        watch.written(part.len());
    }
    Ok(())
}

#[cfg(test)]
#[path = "https_tests.rs"]
mod tests;
