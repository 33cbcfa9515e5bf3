//! Randomness, readable random ids, and secrets that are stored as hashes.
//!
//! Secrets here are drawn by us with at least 160 bits, so a plain SHA-256 protects them at rest: nobody
//! searches 2^160 values. Salting and slow hashing (argon2) are for secrets that people choose.

use edgefleet_shared::digest::BlobDigest;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system has no randomness to give")]
pub struct NoRandomness;

/// `N` bytes from the operating system.
///
/// # Errors
/// [`NoRandomness`].
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// RFC 4648 base32 in lower case without padding; 5 bits a character.
pub fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut text = String::with_capacity((bytes.len() * 8).div_ceil(5));
    let (mut buffer, mut bits) = (0u32, 0);
    for byte in bytes {
        buffer = (buffer << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(ALPHABET[(buffer >> bits) as usize & 31]));
        }
    }
    if bits > 0 {
        text.push(char::from(ALPHABET[(buffer << (5 - bits)) as usize & 31]));
    }
    text
}

/// `prefix` and 12 random base32 characters (60 bits): short enough to type. The store refuses the rare
/// double.
///
/// # Errors
/// [`NoRandomness`].
pub fn random_id(prefix: &str) -> Result<String, NoRandomness> {
    let text = base32(&random::<8>()?);
    Ok(format!("{prefix}{}", &text[..12]))
}

/// SHA-256 of a secret; the only form in which it is stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash(BlobDigest);

impl SecretHash {
    pub fn of(secret: &str) -> Self {
        Self(BlobDigest::of(secret.as_bytes()))
    }

    /// Takes the same time for every secret of one length.
    pub fn matches(&self, secret: &str) -> bool {
        let found = BlobDigest::of(secret.as_bytes());
        let pairs = self.0.as_bytes().iter().zip(found.as_bytes());
        std::hint::black_box(pairs.fold(0u8, |differs, (a, b)| differs | (a ^ b))) == 0
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_is_that_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "my"),
            ("fo", "mzxq"),
            ("foo", "mzxw6"),
            ("foob", "mzxw6yq"),
            ("foobar", "mzxw6ytboi"),
        ] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
        assert_eq!(random_id("dev-").unwrap().len(), 16);
    }

    #[test]
    fn only_the_secret_itself_matches_its_hash() {
        let hash = SecretHash::of("right");
        assert!(hash.matches("right"));
        for wrong in ["", "righ", "right ", "wrong"] {
            assert!(!hash.matches(wrong), "{wrong:?}");
        }
    }
}
