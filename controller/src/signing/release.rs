//! Releases: a publisher says "this manifest is digits@3". Pure.

use edgefleet_shared::{
    bundle::{Manifest, ManifestError},
    time::Timestamp,
    trust::{
        Envelope, KeyId, Release, SigningKey, TrustError,
        envelope::{RELEASE_TYPE, seal},
    },
};

/// Why there is no signed release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    #[error("the manifest is not usable:{}", list(wrong))]
    Manifest { wrong: Vec<ManifestError> },
    #[error("no key was given to sign with")]
    NoKey,
    #[error("the present release.json cannot be read; remove it to start anew")]
    Present { source: TrustError },
}

fn list(wrong: &[ManifestError]) -> String {
    wrong.iter().map(|error| format!("\n  {error}")).collect()
}

/// A signed release, and who signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRelease {
    pub envelope: Vec<u8>,
    pub release: Release,
    pub signers: Vec<KeyId>,
    /// True if the signatures joined those of an earlier envelope.
    pub extended: bool,
}

/// Signs the bundle whose manifest has these exact bytes. Signatures join those of `present` if it is about
/// the same manifest; otherwise it is replaced.
///
/// # Errors
/// [`ReleaseError`].
pub fn sign(
    manifest: &[u8],
    present: Option<&[u8]>,
    keys: &[SigningKey],
    now: Timestamp,
) -> Result<SignedRelease, ReleaseError> {
    if keys.is_empty() {
        return Err(ReleaseError::NoKey);
    }
    let parsed = Manifest::parse(manifest).map_err(|wrong| ReleaseError::Manifest { wrong })?;
    let keys: Vec<&SigningKey> = keys.iter().collect();
    let fresh = Release {
        bundle: parsed.name(),
        manifest: Manifest::digest_of(manifest),
        length: manifest.len() as u64,
        hardware: parsed.compat.hardware,
        issued: now,
    };
    let present = present.map(read).transpose().map_err(|source| ReleaseError::Present { source })?;
    let (envelope, release, extended) = match present {
        Some((mut envelope, payload, old)) if (Release { issued: now, ..old.clone() }) == fresh => {
            keys.iter().for_each(|key| envelope.add_signature(key, &payload));
            (envelope.to_bytes(), old, true)
        }
        _ => (seal(RELEASE_TYPE, &fresh, &keys), fresh, false),
    };
    let signers = Envelope::parse(&envelope)
        .map(|envelope| envelope.signatures.into_iter().map(|signature| signature.keyid).collect())
        .unwrap_or_default();
    Ok(SignedRelease { envelope, release, signers, extended })
}

fn read(raw: &[u8]) -> Result<(Envelope, Vec<u8>, Release), TrustError> {
    let envelope = Envelope::parse(raw)?;
    if envelope.payload_type != RELEASE_TYPE {
        return Err(TrustError::WrongType { wanted: RELEASE_TYPE, found: envelope.payload_type });
    }
    let payload = envelope.payload()?;
    let release =
        serde_json::from_slice(&payload).map_err(|e| TrustError::Malformed { reason: e.to_string() })?;
    Ok((envelope, payload, release))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap()
    }

    fn manifest(version: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits");
        let out = dir.path().join("out");
        crate::registry::builder::build(&models.join(version), &out).unwrap();
        std::fs::read(out.join("manifest.json")).unwrap()
    }

    #[test]
    fn a_second_publisher_adds_to_the_first_signature() {
        let bytes = manifest("v1");
        let at = Timestamp::from_secs;
        let first = sign(&bytes, None, &[key()], at(10)).unwrap();
        assert_eq!((first.signers.len(), first.extended), (1, false));
        let second = sign(&bytes, Some(&first.envelope), &[key()], at(20)).unwrap();
        assert_eq!((second.signers.len(), second.extended), (2, true));
        assert_eq!(second.release.issued, at(10), "the signed document is still the first one");
        let other = sign(&manifest("v2"), Some(&second.envelope), &[key()], at(30)).unwrap();
        assert_eq!(
            (other.signers.len(), other.extended),
            (1, false),
            "signatures never move to another manifest"
        );
    }

    #[test]
    fn nothing_is_signed_without_a_sound_manifest_and_a_key() {
        assert_eq!(sign(&manifest("v1"), None, &[], Timestamp::EPOCH), Err(ReleaseError::NoKey));
        assert!(matches!(sign(b"{}", None, &[key()], Timestamp::EPOCH), Err(ReleaseError::Manifest { .. })));
        let broken = sign(&manifest("v1"), Some(b"junk"), &[key()], Timestamp::EPOCH);
        assert!(matches!(broken, Err(ReleaseError::Present { .. })));
    }
}
