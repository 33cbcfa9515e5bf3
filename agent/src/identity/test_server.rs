//! A certificate authority and an HTTPS server for tests of this module.

use super::signer::DeviceSigner;
use bytes::Bytes;
use edgefleet_shared::{digest::BlobDigest, time::Timestamp};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use std::{sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct Pki {
    ca: Arc<CertifiedIssuer<'static, KeyPair>>,
    /// Shown behind the leaf.
    shown_ca: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
    key: Vec<u8>,
    middle: Timestamp,
}

fn params(name: &str, middle: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (middle - DAY * 2).to_system_time().into();
    params.not_after = (middle + DAY * 90).to_system_time().into();
    params
}

impl Pki {
    /// Certificates from two days before `middle` to ninety after it; the server is `localhost`.
    pub(crate) fn valid_around(middle: Timestamp) -> Self {
        let mut ca = params("Test CA", middle);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = params("localhost", middle).signed_by(&key, &ca).unwrap();
        let shown_ca = CertificateDer::from(ca.der().to_vec());
        Self { ca: Arc::new(ca), shown_ca, leaf: leaf.der().clone(), key: key.serialize_der(), middle }
    }

    pub(crate) fn showing_ca_of(&self, other: &Self) -> Self {
        Self {
            ca: self.ca.clone(),
            shown_ca: other.shown_ca.clone(),
            leaf: self.leaf.clone(),
            key: self.key.clone(),
            middle: self.middle,
        }
    }

    pub(crate) fn ca_pem(&self) -> String {
        self.ca.pem()
    }
    pub(crate) fn ca_pin(&self) -> BlobDigest {
        BlobDigest::of(self.ca.der())
    }

    /// A device certificate for the key of `signer`, as PEM.
    pub(crate) fn issue(&self, name: &str, signer: &Arc<dyn DeviceSigner>) -> String {
        let csr = super::signer::signing_request(signer).unwrap();
        self.sign(name, &csr)
    }

    pub(crate) fn sign(&self, name: &str, csr: &str) -> String {
        let mut request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params = params(name, self.middle);
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.signed_by(&self.ca).unwrap().pem()
    }

    /// Client certificates are optional, ours the only CA, as the controller's listener does it. The
    /// server judges them by its own clock, which is the true time here.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.ca.der().to_vec())).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![self.leaf.clone(), self.shown_ca.clone()], key)
            .unwrap();
        Arc::new(config)
    }

    /// Serves HTTPS; `answer` gets path, body and whether the client showed a certificate. Returns
    /// the URL. Lives as long as the test's runtime.
    pub(crate) async fn serve<A>(&self, answer: A) -> String
    where
        A: Fn(&str, &[u8], bool) -> (StatusCode, Vec<u8>) + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let acceptor = TlsAcceptor::from(self.server());
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let shown = tls.get_ref().1.peer_certificates().is_some();
                    let service = service_fn(move |request: Request<Incoming>| {
                        let answer = answer.clone();
                        async move {
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await?.to_bytes();
                            let (status, body) = answer(&path, &body, shown);
                            let mut response = Response::new(Full::new(Bytes::from(body)));
                            *response.status_mut() = status;
                            Ok::<_, hyper::Error>(response)
                        }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    http.serve_connection(TokioIo::new(tls), service).await.ok();
                });
            }
        });
        url
    }
}
