//! First contact: from a join code to an identity, over HTTPS to a server known only by a digest.

use super::{
    ControllerFile, Identity,
    folder::{self, FolderError},
    https::{self, HttpsError},
    signer::{DeviceSigner, SignerError, signing_request},
    time::TrustedClock,
    tls::{self, TlsError},
};
use crate::store::trust_state::{TrustStore, TrustStoreError};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use edgefleet_shared::{
    digest::BlobDigest,
    enroll::{ENROLL_SCHEMA, EnrollRequest, EnrollResponse, Enrolled, JoinCode},
    ids::DeviceId,
    reported::Facts,
    trust::{DeviceTrust, Envelope, Trust, TrustError},
};
use hyper::StatusCode;
use rustls::CertificateError;
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A controller may ask for no longer pause than this between two questions.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Below the data directory: what the device remembers of trust.
pub const TRUST_FOLDER: &str = "trust";

/// How to enrol.
pub struct EnrollOptions {
    /// The agent's data directory.
    pub data: PathBuf,
    /// For people; the controller may change it.
    pub name: Option<String>,
    /// Take the place of an identity that is there. Its key is used again, so that it stays the same
    /// device.
    pub force: bool,
    /// How long to wait for a person to approve.
    pub wait: Duration,
    pub facts: Facts,
}

/// Why a device is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error("this device is already enrolled as `{device}` at {url}")]
    AlreadyEnrolled { device: DeviceId, url: String },
    #[error("the server at {url} is not the one the join code names")]
    WrongServer { url: String },
    #[error("could not ask {url}")]
    Unreachable { url: String, source: HttpsError },
    #[error("the certificate of {url} is not valid at {now}, the time this device goes by")]
    Clock { url: String, now: String, source: HttpsError },
    #[error("{url} refused the invite ({status}): {reason}")]
    Refused { url: String, status: u16, code: String, reason: String },
    #[error("{url} answered {status}, which no controller should: {reason}")]
    Answer { url: String, status: u16, reason: String },
    #[error("the answer of {url} does not hold together: {reason}")]
    Inconsistent { url: String, reason: String },
    #[error("the chain of trust documents from {url} does not hold")]
    Trust { url: String, source: TrustError },
    #[error("nobody approved this device within {} s", waited.as_secs())]
    NotApproved { waited: Duration },
    #[error("could not use the device's key")]
    Signer(#[from] SignerError),
    #[error("could not prepare the connection")]
    Tls(#[from] TlsError),
    #[error("could not store the identity")]
    Folder(#[from] FolderError),
    #[error("could not store the trust documents")]
    TrustStore(#[from] TrustStoreError),
}

impl EnrollError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::AlreadyEnrolled { .. } => {
                "nothing needs doing; `--force` enrols it again with the same key".into()
            }
            Self::WrongServer { url } => format!(
                "something else answers at {url}, or the controller was set up anew: compare with \
                 `edgefleet device invite` and get a new join code"
            ),
            Self::Unreachable { url, .. } => {
                format!("check that {url} can be reached from here and that `edgefleet serve` runs")
            }
            Self::Clock { .. } => "set this device's clock, or the controller's if that one is wrong".into(),
            Self::Refused { code, .. } => match code.as_str() {
                code if code.contains("expired") => {
                    "the invite has expired: make a new one with `edgefleet device invite`"
                }
                code if code.contains("used") || code.contains("exhausted") || code.contains("budget") => {
                    "the invite was used up: make a new one with `edgefleet device invite --uses N`"
                }
                code if code.contains("revoked") => {
                    "the invite was revoked: ask whoever runs the fleet for another"
                }
                _ => "make a new invite with `edgefleet device invite`",
            }
            .into(),
            Self::Answer { url, .. } | Self::Inconsistent { url, .. } | Self::Trust { url, .. } => {
                format!("do not retry blindly: look at the log of the controller at {url}")
            }
            Self::NotApproved { .. } => {
                "approve it with `edgefleet device approve`, then run the same command again".into()
            }
            Self::Signer(_) | Self::Tls(_) => {
                "report this together with the output of `edgefleet-agent version`".into()
            }
            Self::Folder(_) | Self::TrustStore(_) => {
                "check owner, permissions and free space of the data directory".into()
            }
        }
    }
}

/// Enrols this device, waiting for approval if a person has to give it; `progress` hears of that.
///
/// # Errors
/// [`EnrollError`]; an earlier identity is untouched then.
pub async fn enroll(
    code: &JoinCode,
    options: &EnrollOptions,
    clock: &Arc<TrustedClock>,
    mut progress: impl FnMut(&str),
) -> Result<Identity, EnrollError> {
    let before = folder::load(&options.data);
    let (reuse, device) = match before {
        Ok(Some(known)) if !options.force => {
            let (device, url) = (known.controller.device, known.controller.url);
            return Err(EnrollError::AlreadyEnrolled { device, url });
        }
        Ok(Some(known)) => {
            (Some(folder::place(&options.data).join("key.pem")), Some(known.controller.device))
        }
        Ok(None) => (None, None),
        // An unreadable identity is replaced only when asked to.
        Err(e) if !options.force => return Err(e.into()),
        Err(_) => (None, None),
    };
    let (staging, signer) = folder::prepare(&options.data, reuse.as_deref())?;
    let signer: Arc<dyn DeviceSigner> = Arc::new(signer);
    let request = EnrollRequest {
        schema: ENROLL_SCHEMA,
        invite: code.invite.clone(),
        secret: code.secret.clone(),
        csr: signing_request(&signer)?,
        device,
        name: options.name.clone(),
        facts: options.facts.clone(),
    };
    let started = tokio::time::Instant::now();
    let enrolled = loop {
        match ask(code, &request, clock).await? {
            EnrollResponse::Enrolled(enrolled) => break *enrolled,
            EnrollResponse::Pending { retry_after_secs } => {
                let pause = Duration::from_secs(retry_after_secs.max(1)).min(LONGEST_PAUSE);
                let waited = started.elapsed();
                if waited + pause > options.wait {
                    return Err(EnrollError::NotApproved { waited });
                }
                progress(&format!("waiting for approval, asking again in {} s", pause.as_secs()));
                tokio::time::sleep(pause).await;
            }
        }
    };
    let identity = check(code, enrolled, signer, clock)?;
    // Before the identity: an agent that finds an identity without trust state takes it for lost.
    store_trust(&options.data, &identity)?;
    folder::commit(&options.data, &staging, &identity)?;
    Ok(identity)
}

/// Starts the trust state from the pinned chain. Enrolling again with the same root of trust keeps
/// what the device remembers: forgetting its generation would let old assignments be replayed.
fn store_trust(data: &Path, identity: &Identity) -> Result<(), EnrollError> {
    let dir = data.join(TRUST_FOLDER);
    let before = TrustStore::open(&dir, rand::random()).ok();
    let kept = before.filter(|store| {
        let known = identity.trust.iter().filter_map(|raw| Envelope::parse(raw).ok()?.payload().ok());
        let known = known.filter_map(|payload| serde_json::from_slice::<Trust>(&payload).ok());
        known.into_iter().any(|document| document == store.trust().trust)
    });
    let mut store = match (kept, identity.trust.first()) {
        (Some(store), _) => store,
        (None, Some(first)) => TrustStore::create(&dir, first, identity.controller.trust_pin)?,
        (None, None) => return Ok(()), // `check` walked the chain: there is a first one
    };
    for raw in &identity.trust {
        // Those at or below the current version are refused, as they should be.
        if let Err(refused) = store.advance(raw)? {
            tracing::debug!(%refused, "a trust document that is known already");
        }
    }
    Ok(())
}

async fn ask(
    code: &JoinCode,
    request: &EnrollRequest,
    clock: &Arc<TrustedClock>,
) -> Result<EnrollResponse, EnrollError> {
    let url = || code.url.clone();
    let (config, missed) = tls::pinned(code.ca_pin, clock)?;
    let body = serde_json::to_vec(request).unwrap_or_default(); // plain data: cannot fail
    let (status, body) = match https::post(&config, &code.url, "/api/v1/enroll", body).await {
        Ok(answer) => answer,
        Err(_) if missed.happened() => return Err(EnrollError::WrongServer { url: url() }),
        Err(source) if source.tls().is_some_and(is_about_time) => {
            return Err(EnrollError::Clock { url: url(), now: clock.now().to_string(), source });
        }
        Err(source) => return Err(EnrollError::Unreachable { url: url(), source }),
    };
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|e| EnrollError::Answer {
            url: url(),
            status: status.as_u16(),
            reason: e.to_string(),
        });
    }
    let (code_text, reason) = refusal(status, &body);
    if status.is_client_error() {
        return Err(EnrollError::Refused { url: url(), status: status.as_u16(), code: code_text, reason });
    }
    Err(EnrollError::Answer { url: url(), status: status.as_u16(), reason })
}

fn is_about_time(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
        )
    )
}

/// Code and message of an error answer, whichever of the usual forms it has.
pub(super) fn refusal(status: StatusCode, body: &[u8]) -> (String, String) {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Fields {
        code: String,
        message: String,
        detail: String,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Body {
        Nested { error: Fields },
        Flat(Fields),
    }
    let fields = match serde_json::from_slice(body) {
        Ok(Body::Nested { error } | Body::Flat(error)) => error,
        Err(_) => Fields::default(),
    };
    let message = [fields.message, fields.detail].into_iter().find(|text| !text.is_empty());
    let code = match status {
        _ if !fields.code.is_empty() => fields.code,
        StatusCode::GONE => "expired".into(),
        _ => String::new(),
    };
    let message =
        message.unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned());
    (code, message.chars().take(400).collect())
}

/// Believes nothing in the answer that can be checked against the join code or against itself.
fn check(
    code: &JoinCode,
    enrolled: Enrolled,
    signer: Arc<dyn DeviceSigner>,
    clock: &Arc<TrustedClock>,
) -> Result<Identity, EnrollError> {
    let wrong = |reason: String| EnrollError::Inconsistent { url: code.url.clone(), reason };
    let ca = tls::certificates(&enrolled.ca, "the controller's CA")?;
    if !ca.iter().any(|der| BlobDigest::of(der) == code.ca_pin) {
        return Err(wrong("its CA is not the one the join code names".into()));
    }
    certificate_is_for(&enrolled.certificate, Some(&enrolled.device), &signer).map_err(wrong)?;
    let mut trust = Vec::with_capacity(enrolled.trust.len().min(64));
    for document in &enrolled.trust {
        trust.push(BASE64.decode(document).map_err(|e| wrong(format!("a trust document: {e}")))?);
    }
    let controller = ControllerFile {
        schema: 1,
        device: enrolled.device,
        url: code.url.clone(),
        mqtt_host: enrolled.mqtt_host,
        mqtt_port: enrolled.mqtt_port,
        ca_pin: code.ca_pin,
        trust_pin: code.trust_pin,
    };
    let identity = Identity { controller, signer, certificate: enrolled.certificate, ca: enrolled.ca, trust };
    let chain: DeviceTrust =
        identity.first_trust().map_err(|source| EnrollError::Trust { url: code.url.clone(), source })?;
    clock.raise(chain.floor);
    identity.tls(clock)?; // a certificate that TLS cannot use is found now, not at the first start
    Ok(identity)
}

/// Whether the leaf of `pem` names `device` (if given) and holds the signer's public key.
pub(super) fn certificate_is_for(
    pem: &str,
    device: Option<&DeviceId>,
    signer: &Arc<dyn DeviceSigner>,
) -> Result<(), String> {
    let chain = tls::certificates(pem, "the device certificate").map_err(|e| e.to_string())?;
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).map_err(|e| e.to_string())?;
    if leaf.public_key().subject_public_key.data.as_ref() != signer.public_key() {
        return Err("its certificate is for another key".into());
    }
    let name = leaf.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    match device {
        Some(device) if name != Some(device.as_str()) => {
            Err(format!("its certificate names {name:?} instead of `{device}`"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "enroll_tests.rs"]
mod tests;
