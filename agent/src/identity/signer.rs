//! The device's key behind one narrow door, so that a TPM or secure element can take its place.

use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use rustls::{
    SignatureAlgorithm, SignatureScheme,
    pki_types::{PrivatePkcs8KeyDer, pem::PemObject},
    sign::{Signer, SigningKey},
};
use std::{fmt, sync::Arc};

/// What a device can do with its key: never hand it out.
pub trait DeviceSigner: Send + Sync + fmt::Debug {
    /// ECDSA P-256 with SHA-256 over `message`, as ASN.1 DER.
    ///
    /// # Errors
    /// [`SignerError`] if the home of the key does not answer.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError>;
    /// The uncompressed point: 65 bytes, the first is 4.
    fn public_key(&self) -> &[u8];
}

/// Why the device's key could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    #[error("the device key is not an ECDSA P-256 key in PKCS#8 PEM: {reason}")]
    Unreadable { reason: String },
    #[error("the system has no randomness to sign with")]
    NoRandomness,
}

/// A key in a file that only its owner may read.
pub struct FileSigner {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl FileSigner {
    /// A new key as PKCS#8 PEM.
    ///
    /// # Errors
    /// [`SignerError::NoRandomness`].
    pub fn generate_pem() -> Result<String, SignerError> {
        rcgen::KeyPair::generate().map(|pair| pair.serialize_pem()).map_err(|_| SignerError::NoRandomness)
    }
    /// # Errors
    /// [`SignerError::Unreadable`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, SignerError> {
        let unreadable = |reason: String| SignerError::Unreadable { reason };
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|e| unreadable(e.to_string()))?;
        let random = SystemRandom::new();
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der(), &random)
            .map(|pair| Self { pair, random })
            .map_err(|e| unreadable(e.to_string()))
    }
}
impl DeviceSigner for FileSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        let signature = self.pair.sign(&self.random, message).map_err(|_| SignerError::NoRandomness)?;
        Ok(signature.as_ref().to_vec())
    }
    fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }
}
impl fmt::Debug for FileSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileSigner") // never the key
    }
}

/// A signing request for this key. Its subject is a placeholder: the controller names devices.
///
/// # Errors
/// [`SignerError`].
pub fn signing_request(signer: &Arc<dyn DeviceSigner>) -> Result<String, SignerError> {
    let unreadable = |e: rcgen::Error| SignerError::Unreadable { reason: e.to_string() };
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "new-device");
    let request = params.serialize_request(&ForCsr(signer)).map_err(unreadable)?;
    request.pem().map_err(unreadable)
}

struct ForCsr<'a>(&'a Arc<dyn DeviceSigner>);
impl rcgen::PublicKeyData for ForCsr<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}
impl rcgen::SigningKey for ForCsr<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// The same key as TLS wants it.
#[derive(Debug, Clone)]
pub(super) struct ForTls(pub(super) Arc<dyn DeviceSigner>);
impl SigningKey for ForTls {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }
    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}
impl Signer for ForTls {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0.sign(message).map_err(|e| rustls::Error::General(e.to_string()))
    }
    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_signs_its_own_request_and_nothing_else_is_a_key() {
        let pem = FileSigner::generate_pem().unwrap();
        let signer: Arc<dyn DeviceSigner> = Arc::new(FileSigner::from_pem(pem.as_bytes()).unwrap());
        let csr = signing_request(&signer).unwrap();
        // from_pem checks the request's own signature.
        let parsed = rcgen::CertificateSigningRequestParams::from_pem(&csr).unwrap();
        assert_eq!(rcgen::PublicKeyData::der_bytes(&parsed.public_key), signer.public_key());
        for wrong in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert!(FileSigner::from_pem(wrong.as_bytes()).is_err());
        }
    }
}
