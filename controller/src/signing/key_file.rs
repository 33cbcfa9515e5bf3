//! Keys in files: private ones as PKCS#8 (PEM, or DER as openssl writes it), public ones as one line of text.

use super::durable;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use edgefleet_shared::trust::{PublicKey, SigningKey, keys::KeyError};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use std::{
    io,
    path::{Path, PathBuf},
};

const MAX_KEY_BYTES: u64 = 16 * 1024;
const PEM_WIDTH: usize = 64;
/// First word of a public key's line.
const PUBLIC_PREFIX: &str = "ed25519";

/// Why a key could not be read or written. Never holds key material.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("could not read key `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("could not write key `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("key `{}` is not usable", path.display())]
    Form { path: PathBuf, source: KeyError },
    #[error("could not make a key")]
    Generate { source: KeyError },
    #[error(
        "`{text}` is no public key; write `{PUBLIC_PREFIX} BASE64`, the base64 alone, or name a .pub file"
    )]
    Public { text: String },
}

/// Reads a private key.
///
/// # Errors
/// [`KeyFileError`].
pub fn read_private(path: &Path) -> Result<SigningKey, KeyFileError> {
    let bytes = durable::read(path, MAX_KEY_BYTES)
        .map_err(|source| KeyFileError::Read { path: path.to_owned(), source })?;
    let key = match PrivatePkcs8KeyDer::from_pem_slice(&bytes) {
        Ok(der) => SigningKey::from_pkcs8(der.secret_pkcs8_der()),
        Err(_) => SigningKey::from_pkcs8(&bytes),
    };
    key.map_err(|source| KeyFileError::Form { path: path.to_owned(), source })
}

/// Makes a key and writes it to a new file, mode 0600.
///
/// # Errors
/// [`KeyFileError::Write`] also if the file exists: a key is never overwritten.
pub fn create_private(path: &Path) -> Result<SigningKey, KeyFileError> {
    let der = SigningKey::generate_pkcs8().map_err(|source| KeyFileError::Generate { source })?;
    let key = SigningKey::from_pkcs8(&der).map_err(|source| KeyFileError::Generate { source })?;
    let body = BASE64.encode(&der);
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in body.as_bytes().chunks(PEM_WIDTH) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    durable::write_new(path, pem.as_bytes(), 0o600)
        .map_err(|source| KeyFileError::Write { path: path.to_owned(), source })?;
    Ok(key)
}

/// A public key as its owner hands it over: `ed25519 BASE64 comment`.
pub fn public_line(key: &PublicKey, comment: &str) -> String {
    let base64 = serde_json::to_value(key).ok().and_then(|value| value.as_str().map(str::to_owned));
    format!("{PUBLIC_PREFIX} {} {comment}", base64.unwrap_or_default()) // a key always has a text
}

/// Writes a public key's line to a new file.
///
/// # Errors
/// [`KeyFileError::Write`].
pub fn write_public(path: &Path, key: &PublicKey, comment: &str) -> Result<(), KeyFileError> {
    let line = format!("{}\n", public_line(key, comment));
    durable::write_new(path, line.as_bytes(), 0o644)
        .map_err(|source| KeyFileError::Write { path: path.to_owned(), source })
}

/// A public key from its line, its base64, or the name of a file that holds one of them.
///
/// # Errors
/// [`KeyFileError::Public`].
pub fn parse_public(text: &str) -> Result<PublicKey, KeyFileError> {
    if let Some(key) = from_line(text) {
        return Ok(key);
    }
    let file = durable::read(Path::new(text), MAX_KEY_BYTES).ok().and_then(|b| String::from_utf8(b).ok());
    let no = || KeyFileError::Public { text: text.chars().take(80).collect() };
    file.as_deref().and_then(from_line).ok_or_else(no)
}

fn from_line(line: &str) -> Option<PublicKey> {
    let mut words = line.split_whitespace();
    let first = words.next()?;
    let base64 = if first == PUBLIC_PREFIX { words.next()? } else { first };
    serde_json::from_value(serde_json::Value::from(base64)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn private_keys_survive_the_round_trip_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pk8");
        let key = create_private(&path).unwrap();
        assert_eq!(read_private(&path).unwrap().public(), key.public());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(create_private(&path), Err(KeyFileError::Write { .. })), "never overwritten");
        assert_eq!(read_private(&path).unwrap().public(), key.public());
    }

    #[test]
    fn der_is_read_and_anything_else_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.der");
        std::fs::write(&path, SigningKey::generate_pkcs8().unwrap()).unwrap();
        assert!(read_private(&path).is_ok());
        for bad in [&b""[..], b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(read_private(&path), Err(KeyFileError::Form { .. })));
        }
        std::fs::write(&path, vec![0; 20_000]).unwrap();
        assert!(matches!(read_private(&path), Err(KeyFileError::Read { .. })));
    }

    #[test]
    fn public_keys_are_a_line_a_word_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let key = create_private(&dir.path().join("k")).unwrap().public();
        let line = public_line(&key, "anna");
        let file = dir.path().join("anna.pub");
        write_public(&file, &key, "anna").unwrap();
        for text in [&line, line.split(' ').nth(1).unwrap(), file.to_str().unwrap()] {
            assert_eq!(parse_public(text).unwrap(), key);
        }
        for bad in ["", "ed25519", "ed25519 AAAA", "/nowhere"] {
            assert!(parse_public(bad).is_err(), "{bad:?}");
        }
    }
}
