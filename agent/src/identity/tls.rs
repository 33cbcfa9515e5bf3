//! TLS towards the controller: our CA alone, or at first contact the CA whose digest the join code
//! names; TLS 1.2 and 1.3 with ring; time by [`TrustedClock`].
//!
//! While the local clock is not believed, the only thing known is that it is *not before* the floor.
//! A certificate is then refused only if no time from the floor on makes it valid, so its own start
//! counts as "now" if that is later. Otherwise an agent built before the controller's certificate
//! was made could never enrol on a device without a clock.

use super::{
    signer::{DeviceSigner, ForTls},
    time::TrustedClock,
};
use edgefleet_shared::{digest::BlobDigest, reported::ClockQuality};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Why a TLS configuration could not be made from what the device has.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{what} is not PEM with a certificate in it: {reason}")]
    NotPem { what: &'static str, reason: String },
    #[error("the controller's CA certificate cannot be used")]
    Ca { source: rustls::Error },
    #[error("no TLS configuration can be made")]
    Config { source: rustls::Error },
}

/// Reads all certificates of a PEM text.
///
/// # Errors
/// [`TlsError::NotPem`], also if there is none. `what` names the text in it.
pub fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| TlsError::NotPem { what, reason: e.to_string() })?;
    match found.is_empty() {
        true => Err(TlsError::NotPem { what, reason: "it is empty".into() }),
        false => Ok(found),
    }
}

/// For an enrolled device: trusts `ca`, shows `chain`. Without a chain it shows nothing.
///
/// # Errors
/// [`TlsError`].
pub fn enrolled(
    ca: &str,
    chain: Option<(&str, Arc<dyn DeviceSigner>)>,
    clock: &Arc<TrustedClock>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for ca in certificates(ca, "the controller's CA")? {
        roots.add(ca).map_err(|source| TlsError::Ca { source })?;
    }
    let inner = web_pki(roots).map_err(|source| TlsError::Ca { source })?;
    let verifier = FloorVerifier { anchor: Anchor::Roots(inner), clock: clock.clone(), provider: provider() };
    let builder = ClientConfig::builder_with_details(provider(), clock.clone())
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Config { source })?
        .dangerous() // ours: webpki underneath, with another idea of "now"
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(Arc::new(match chain {
        None => builder.with_no_client_auth(),
        Some((pem, signer)) => {
            let key =
                CertifiedKey::new(certificates(pem, "the device certificate")?, Arc::new(ForTls(signer)));
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
    }))
}

/// Set when the server showed no CA with the wanted digest: it is somebody else.
#[derive(Debug, Clone, Default)]
pub struct PinMissed(Arc<AtomicBool>);
impl PinMissed {
    pub fn happened(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// For first contact: trusts whichever CA in the server's chain has the digest `pin`.
///
/// # Errors
/// [`TlsError::Config`].
pub fn pinned(
    pin: BlobDigest,
    clock: &Arc<TrustedClock>,
) -> Result<(Arc<ClientConfig>, PinMissed), TlsError> {
    let missed = PinMissed::default();
    let anchor = Anchor::Pin { pin, missed: missed.clone() };
    let verifier = FloorVerifier { anchor, clock: clock.clone(), provider: provider() };
    let config = ClientConfig::builder_with_details(provider(), clock.clone())
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Config { source })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok((Arc::new(config), missed))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn web_pki(roots: RootCertStore) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))
}

#[derive(Debug)]
enum Anchor {
    Roots(Arc<WebPkiServerVerifier>),
    Pin { pin: BlobDigest, missed: PinMissed },
}

#[derive(Debug)]
struct FloorVerifier {
    anchor: Anchor,
    clock: Arc<TrustedClock>,
    provider: Arc<CryptoProvider>,
}

impl FloorVerifier {
    /// The time to judge this chain by: see the head of this file.
    fn now(&self, now: UnixTime, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> UnixTime {
        if self.clock.quality() == ClockQuality::Plausible {
            return now;
        }
        let starts = std::iter::once(leaf).chain(others).filter_map(|der| {
            let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
            u64::try_from(certificate.validity().not_before.timestamp()).ok()
        });
        let latest = starts.max().unwrap_or(0);
        UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().max(latest)))
    }
}

impl ServerCertVerifier for FloorVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let now = self.now(now, leaf, others);
        match &self.anchor {
            Anchor::Roots(inner) => inner.verify_server_cert(leaf, others, name, ocsp, now),
            Anchor::Pin { pin, missed } => {
                let Some(ca) = others.iter().find(|der| BlobDigest::of(der) == *pin) else {
                    missed.0.store(true, Ordering::Relaxed);
                    return Err(CertificateError::UnknownIssuer.into());
                };
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone().into_owned())?;
                web_pki(roots)?.verify_server_cert(leaf, others, name, ocsp, now)
            }
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
