//! TLS of the MQTT port: who the peer is, read from its certificate and from nowhere else.

use edgefleet_shared::{
    ids::{DeviceId, IdError},
    time::Timestamp,
};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    time_provider::TimeProvider,
};
use std::{fmt, sync::Arc, time::Duration};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use crate::clock::Clock;

/// A [`Clock`] as rustls wants it.
pub struct ClockTime(pub Clock);

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}
impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis((self.0)().as_millis())))
    }
}

/// Why the MQTT port's TLS settings do not work.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the client CA certificates cannot verify anybody")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("the server certificate and key cannot be used")]
    Certificate(#[from] rustls::Error),
}

/// TLS 1.3 and 1.2 with a mandatory client certificate below `client_ca_roots`.
///
/// Sessions are never resumed: a resumed session would skip the check of the certificate, and the
/// handshake costs under 1 ms of CPU (broker research 5).
///
/// # Errors
/// [`TlsError`] if the roots are empty or the key does not fit the certificate.
pub fn mqtt_server_config(
    server_chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_ca_roots: RootCertStore,
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(client_ca_roots), Arc::clone(&provider))
            .build()?;
    let mut config = ServerConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(server_chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What the broker reads from a verified client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Common name; equals the one DNS name.
    pub identity: DeviceId,
    /// Serial number, big-endian, without leading zero bytes.
    pub serial: Vec<u8>,
    pub not_after: Timestamp,
}

/// Why a verified certificate names nobody.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("the peer sent no certificate")]
    Missing,
    #[error("the certificate cannot be parsed")]
    Malformed(#[source] x509_parser::error::X509Error),
    #[error("the certificate has {found} common names, not one")]
    CommonNames { found: usize },
    #[error("the common name is not an id")]
    NotAnId(#[source] IdError),
    #[error("the certificate's only DNS name must be its common name {expected}")]
    DnsName { expected: DeviceId },
}

impl PeerCertificate {
    pub fn of(connection: &ServerConnection) -> Result<Self, PeerError> {
        let chain = connection.peer_certificates().ok_or(PeerError::Missing)?;
        Self::parse(chain.first().ok_or(PeerError::Missing)?)
    }

    pub fn parse(der: &[u8]) -> Result<Self, PeerError> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der)
            .map_err(|error| PeerError::Malformed(error.into()))?;
        let names: Vec<&str> =
            certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).collect();
        let [name] = names[..] else { return Err(PeerError::CommonNames { found: names.len() }) };
        let identity: DeviceId = name.parse().map_err(PeerError::NotAnId)?;
        let alternative = certificate.subject_alternative_name().map_err(PeerError::Malformed)?;
        let dns: Vec<&str> = alternative
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(*name),
                _ => None,
            })
            .collect();
        if dns != [identity.as_str()] {
            return Err(PeerError::DnsName { expected: identity });
        }
        let not_after = certificate.validity().not_after.timestamp();
        Ok(Self {
            identity,
            serial: certificate.raw_serial().iter().copied().skip_while(|byte| *byte == 0).collect(),
            not_after: Timestamp::from_secs(u64::try_from(not_after).unwrap_or(0)),
        })
    }
}
