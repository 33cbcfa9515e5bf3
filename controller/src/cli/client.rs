//! The controller's API as commands use it: HTTPS with the fleet's own CA, a token, and problems as failures.

use super::failure::{Failure, sources};
use bytes::Bytes;
use edgefleet_shared::probe::ProbeVerdict;
use futures::Stream;
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, header};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{io, sync::Arc, time::Duration};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for an answer; a push waits for its probe.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Speaks to one controller.
#[derive(Clone, Debug)]
pub struct ApiClient {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// Why a request was not answered as wanted.
#[derive(Debug)]
pub enum ClientError {
    /// The controller said no.
    Problem(Box<ProblemAnswer>),
    /// It did not answer, or not as this program understands it.
    Failed(Failure),
}

/// A `application/problem+json` answer.
#[derive(Clone, Debug, Deserialize)]
pub struct ProblemAnswer {
    pub status: u16,
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub title: String,
    #[serde(default)]
    pub detail: String,
    #[serde(default)]
    pub hint: Option<String>,
    #[serde(default)]
    pub instance: Option<String>,
    /// Beside a refused check.
    #[serde(default)]
    pub verdict: Option<ProbeVerdict>,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Failed(failure) => failure,
            ClientError::Problem(problem) => {
                let text = if problem.detail.is_empty() { &problem.title } else { &problem.detail };
                let mut failure = Self::new(format!("{text} ({})", problem.code));
                if problem.status >= 500
                    && let Some(instance) = &problem.instance
                {
                    failure.causes.push(format!("the controller's log names it {instance}"));
                }
                failure.hint = problem.hint.clone();
                failure.code = Some(problem.code.clone());
                failure
            }
        }
    }
}

impl From<Failure> for ClientError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl ApiClient {
    /// `base`: `https://host:port`. `ca`: PEM of the only authority that is believed.
    ///
    /// # Errors
    /// [`Failure`] for an address that is not HTTPS or a PEM without certificates.
    pub fn new(base: &str, token: &str, ca: &[u8]) -> Result<Self, Failure> {
        let base = base.trim_end_matches('/').to_owned();
        let url = reqwest::Url::parse(&base)?;
        if url.scheme() != "https" || url.host_str().is_none() {
            return Err(Failure::usage(format!("`{base}` is not an address like https://controller:8443")));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca) {
            roots.add(
                certificate.map_err(|e| Failure::new(format!("the CA certificate is damaged: {e:?}")))?,
            )?;
        }
        if roots.is_empty() {
            return Err(Failure::new("the CA file holds no certificate"));
        }
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(ANSWER_LIMIT)
            .user_agent(concat!("edgefleet/", env!("CARGO_PKG_VERSION")));
        if matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            http = http.no_proxy(); // a proxy cannot reach this machine's own loopback
        }
        Ok(Self { http: http.build()?, base, token: token.to_owned() })
    }

    /// The controller's address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A request with the token; for what the other methods do not cover.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::GET, path)).await
    }

    /// Exact bytes of an answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, ClientError> {
        self.send(self.request(Method::GET, path)).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn post<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn put<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.json(self.request(Method::PUT, path).json(body)).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn patch<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.json(self.request(Method::PATCH, path).json(body)).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::DELETE, path)).await
    }

    /// Uploads a stream of exactly `length` bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        length: u64,
        stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<T, ClientError> {
        let request = self
            .request(Method::PUT, path)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, length)
            .body(Body::wrap_stream(stream));
        self.json(request).await
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let bytes = self.send(request).await?;
        // No content is the JSON null, so that `()` can be asked for.
        let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
        serde_json::from_slice(&bytes).map_err(|e| {
            let mut failure =
                Failure::new(format!("`{}` answered in a form this program does not know", self.base));
            failure.causes.push(e.to_string());
            failure.hint("do controller and command line have the same version?").into()
        })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Bytes, ClientError> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        let bytes = self.body(response).await?;
        if status.is_success() { Ok(bytes) } else { Err(self.refusal(status, &bytes)) }
    }

    /// An answer that is read piece by piece, whatever its length.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stream(&self, path: &str) -> Result<Response, ClientError> {
        let response = self.request(Method::GET, path).send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = self.body(response).await?;
        Err(self.refusal(status, &bytes))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<ProblemAnswer>(body) {
            Ok(problem) => ClientError::Problem(Box::new(problem)),
            Err(_) => Failure::new(format!("`{}` answered {status}", self.base))
                .hint("is this the controller's address?")
                .into(),
        }
    }

    async fn body(&self, mut response: Response) -> Result<Bytes, ClientError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(&e))? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(Failure::new(format!("the answer has more than {MAX_ANSWER_BYTES} bytes")).into());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        let what = if error.is_timeout() { "did not answer in time" } else { "could not be reached" };
        let mut failure = Failure::new(format!("the controller at `{}` {what}", self.base));
        failure.causes = sources(error);
        let certificate = failure.causes.iter().any(|cause| cause.contains("certificate"));
        let hint = if certificate {
            "the server is not the one whose CA was given: compare --ca with the controller's ca/ca.pem"
        } else {
            "is it running, and is the address right? `edgefleet serve` prints it"
        };
        failure.hint(hint).into()
    }
}
