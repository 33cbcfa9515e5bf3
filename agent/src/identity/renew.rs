//! Keeps the device certificate alive: asks for a new one after two thirds of its life, and with
//! proof of the key alone once it has expired.

use super::{
    Identity,
    enroll::{certificate_is_for, refusal},
    folder::{self, FolderError},
    https::{self, HttpsError},
    signer::{SignerError, signing_request},
    time::TrustedClock,
    tls::{self, TlsError},
};
use edgefleet_shared::{
    enroll::{ENROLL_SCHEMA, RenewRequest, RenewResponse},
    time::Timestamp,
};
use std::{path::Path, sync::Arc, time::Duration};

/// How often a failed renewal is tried again; the certificate has a third of its life left for it.
pub const RETRY: Duration = Duration::from_secs(15 * 60);

/// Why the certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error("could not ask {url} for a new certificate")]
    Unreachable { url: String, source: HttpsError },
    #[error("{url} refused a new certificate ({status}): {reason}")]
    Refused { url: String, status: u16, reason: String },
    #[error("the answer of {url} does not hold together: {reason}")]
    Inconsistent { url: String, reason: String },
    #[error("could not use the device's key")]
    Signer(#[from] SignerError),
    #[error("could not prepare the connection")]
    Tls(#[from] TlsError),
    #[error("could not store the new certificate")]
    Folder(#[from] FolderError),
}

/// Life of a device certificate. Its start is backdated by years, so only the end tells its age.
const LIFE: Duration = Duration::from_secs(90 * 86_400);

/// When to renew a certificate valid from `start` to `end`: when a third of its life is left, moved by up
/// to 5 % of it so that devices enrolled together do not come together. `spread` is in 0.0..1.0.
pub fn due(start: Timestamp, end: Timestamp, spread: f64) -> Timestamp {
    let life = end.since(start).min(LIFE);
    let jitter = life.mul_f64(0.05 * spread.clamp(0.0, 1.0));
    end - life / 3 - jitter
}

/// Asks for a new certificate of the same key and stores it.
///
/// # Errors
/// [`RenewError`]; the old certificate stays in place then.
pub async fn renew(
    identity: &Identity,
    data: &Path,
    clock: &Arc<TrustedClock>,
) -> Result<Identity, RenewError> {
    let url = || identity.controller.url.clone();
    let expired = identity.validity()?.1 <= clock.now();
    let request = RenewRequest {
        schema: ENROLL_SCHEMA,
        csr: signing_request(&identity.signer)?,
        certificate: expired.then(|| identity.certificate.clone()),
    };
    let (config, path) = match expired {
        false => (identity.tls(clock)?, "/api/v1/device/renew"),
        true => (tls::enrolled(&identity.ca, None, clock)?, "/api/v1/renew-expired"),
    };
    let body = serde_json::to_vec(&request).unwrap_or_default(); // plain data: cannot fail
    let (status, body) = https::post(&config, &identity.controller.url, path, body)
        .await
        .map_err(|source| RenewError::Unreachable { url: url(), source })?;
    if !status.is_success() {
        let (_, reason) = refusal(status, &body);
        return Err(RenewError::Refused { url: url(), status: status.as_u16(), reason });
    }
    let inconsistent = |reason: String| RenewError::Inconsistent { url: url(), reason };
    let answer: RenewResponse = serde_json::from_slice(&body).map_err(|e| inconsistent(e.to_string()))?;
    certificate_is_for(&answer.certificate, Some(identity.device()), &identity.signer)
        .map_err(inconsistent)?;
    let renewed = Identity { certificate: answer.certificate, ca: answer.ca, ..identity.clone() };
    renewed.tls(clock)?;
    folder::store_certificate(data, &renewed.certificate, &renewed.ca)?;
    Ok(renewed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_near_two_thirds_of_the_life_and_never_later() {
        let (start, day) = (Timestamp::from_secs(1_000_000), Duration::from_secs(24 * 3600));
        let end = start + day * 90;
        assert_eq!(due(start, end, 0.0), start + day * 60);
        assert!(due(start, end, 1.0) > start + day * 55);
        for spread in [0.1, 0.5, 2.0] {
            assert!(due(start, end, spread) < start + day * 60);
        }
        let backdated = Timestamp::EPOCH;
        assert_eq!(due(backdated, end, 0.0), start + day * 60, "a backdated start says nothing");
        assert!(due(end, start, 0.5) <= start, "nonsense in, at once out");
    }
}
