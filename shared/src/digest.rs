//! SHA-256 digests, one type per kind of thing they name, so that they cannot be mixed up.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("a digest starts with `sha256:`")]
    MissingAlgorithm,
    #[error(
        "a digest has {wanted} lower-case hexadecimal digits after `sha256:`, this one has {found} characters"
    )]
    NotHex { found: usize, wanted: usize },
}

/// Hashes bytes as they stream past.
#[derive(Clone, Default)]
pub struct DigestHasher(Sha256);

impl DigestHasher {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// Reads exactly `out.len() * 2` lower-case hexadecimal digits.
pub fn decode_hex(text: &str, out: &mut [u8]) -> Option<()> {
    let nibble = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != out.len() * 2 {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (nibble(pair[0])? << 4) | nibble(pair[1])?;
    }
    Some(())
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn encode_hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Digest of `bytes`.
            pub fn of(bytes: &[u8]) -> Self {
                Self(Sha256::digest(bytes).into())
            }
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
            /// 64 lower-case hexadecimal digits, without the algorithm.
            pub fn to_hex(&self) -> String {
                encode_hex(&self.0)
            }
            /// The first 12 digits: enough for people to tell two apart.
            pub fn short(&self) -> String {
                encode_hex(&self.0[..6])
            }
        }
        impl FromStr for $name {
            type Err = DigestError;
            fn from_str(text: &str) -> Result<Self, DigestError> {
                let hex = text.strip_prefix("sha256:").ok_or(DigestError::MissingAlgorithm)?;
                let mut bytes = [0; 32];
                decode_hex(hex, &mut bytes)
                    .ok_or(DigestError::NotHex { found: hex.chars().count(), wanted: 64 })?;
                Ok(Self(bytes))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "sha256:{}", self.to_hex())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

digest!(
    /// SHA-256 of a blob's bytes, written `sha256:` and 64 lower-case hexadecimal digits.
    BlobDigest
);
digest!(
    /// Identity of a bundle: SHA-256 of its manifest's exact bytes.
    BundleDigest
);
digest!(
    /// SHA-256 of a signed envelope's exact bytes, as a desired state names it.
    EnvelopeDigest
);

impl From<BundleDigest> for BlobDigest {
    /// A manifest is stored and fetched as a blob.
    fn from(digest: BundleDigest) -> Self {
        Self(digest.0)
    }
}
impl From<EnvelopeDigest> for BlobDigest {
    /// A release envelope is stored and fetched as a blob.
    fn from(digest: EnvelopeDigest) -> Self {
        Self(digest.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_written_with_their_algorithm() {
        let text = BlobDigest::of(b"").to_string();
        assert_eq!(text, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(text.parse::<BlobDigest>().unwrap(), BlobDigest::of(b""));
        for bad in ["", "e3b0", "sha256:", "sha256:E3B0", "md5:00", &text.to_uppercase(), &format!("{text}0")]
        {
            assert!(bad.parse::<BlobDigest>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn streaming_and_whole_digests_agree() {
        let mut hasher = DigestHasher::new();
        hasher.update(b"ab");
        hasher.update(b"c");
        assert_eq!(BlobDigest::from_bytes(hasher.finish()), BlobDigest::of(b"abc"));
    }
}
