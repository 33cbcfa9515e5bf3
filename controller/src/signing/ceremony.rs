//! `keys new-trust`: a hardened set of keys, made on a machine without network, as files to carry away.
//!
//! ```text
//! <out>/server/keys/controller.pk8, server/trust/1.json   copy `server/*` into the controller's data folder
//! <out>/trust-1.pk8 ... trust-N.pk8                       one USB stick each
//! <out>/publisher-NAME.pk8, publisher-NAME.pub            one person or CI system each
//! ```

use super::{
    durable, key_file,
    key_file::KeyFileError,
    setup::{first_trust, key_path, trust_dir},
    trust_store::{TrustStore, TrustStoreError},
};
use bytes::Bytes;
use edgefleet_shared::{
    digest::EnvelopeDigest,
    time::Timestamp,
    trust::{
        KeyId, RoleName, SigningKey,
        envelope::{TRUST_TYPE, seal},
    },
};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

const MAX_KEYS: usize = 16;

/// What to make.
#[derive(Clone, Debug)]
pub struct NewTrust {
    pub trust_keys: usize,
    pub trust_threshold: usize,
    /// Names of publishers, each `[a-z0-9-]`.
    pub publishers: Vec<String>,
    pub publisher_threshold: usize,
    pub lifetime: Duration,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct NewTrustSet {
    /// Copy its content into the controller's data folder before the first start.
    pub server: PathBuf,
    pub trust: Vec<(PathBuf, KeyId)>,
    pub publishers: Vec<(PathBuf, KeyId)>,
    pub controller: KeyId,
    pub pin: EnvelopeDigest,
    pub expires: Timestamp,
}

/// Why no keys were made.
#[derive(Debug, thiserror::Error)]
pub enum CeremonyError {
    #[error(
        "{threshold} of {keys} {role} signatures cannot be: the threshold is 1 to the number of keys, of which at most {MAX_KEYS} are allowed"
    )]
    Threshold { role: RoleName, keys: usize, threshold: usize },
    #[error("`{name}` is no name for a publisher; use lower-case letters, digits and `-`, each name once")]
    Name { name: String },
    #[error("`{}` is not empty; keys are only made in a new folder", path.display())]
    NotEmpty { path: PathBuf },
    #[error("could not create `{}`", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Key(#[from] KeyFileError),
    #[error(transparent)]
    Trust(#[from] TrustStoreError),
}

/// Makes all keys and version 1, signed by every trust key, in the new folder `out`.
///
/// # Errors
/// [`CeremonyError`].
pub fn new_trust(out: &Path, wanted: &NewTrust, now: Timestamp) -> Result<NewTrustSet, CeremonyError> {
    for (role, keys, threshold) in [
        (RoleName::Trust, wanted.trust_keys, wanted.trust_threshold),
        (RoleName::Publisher, wanted.publishers.len(), wanted.publisher_threshold),
    ] {
        if threshold == 0 || threshold > keys || keys > MAX_KEYS {
            return Err(CeremonyError::Threshold { role, keys, threshold });
        }
    }
    for (index, name) in wanted.publishers.iter().enumerate() {
        let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty()
            || name.len() > 64
            || !name.chars().all(sound)
            || wanted.publishers[..index].contains(name)
        {
            return Err(CeremonyError::Name { name: name.clone() });
        }
    }
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(CeremonyError::NotEmpty { path: out.to_owned() });
    }
    let server = out.join("server");
    let folder = |path: &Path| {
        durable::private_dir(path).map_err(|source| CeremonyError::Folder { path: path.to_owned(), source })
    };
    folder(out)?;
    folder(&server.join("keys"))?;
    let make = |name: String| -> Result<(PathBuf, SigningKey), KeyFileError> {
        let path = out.join(format!("{name}.pk8"));
        let key = key_file::create_private(&path)?;
        key_file::write_public(&path.with_extension("pub"), &key.public(), &name)?;
        Ok((path, key))
    };
    let trust: Vec<_> =
        (1..=wanted.trust_keys).map(|n| make(format!("trust-{n}"))).collect::<Result<_, _>>()?;
    let publishers: Vec<_> =
        wanted.publishers.iter().map(|name| make(format!("publisher-{name}"))).collect::<Result<_, _>>()?;
    let controller = key_file::create_private(&key_path(&server, RoleName::Controller))?;
    let signers: Vec<&SigningKey> = trust.iter().map(|(_, key)| key).collect();
    let publisher_keys: Vec<&SigningKey> = publishers.iter().map(|(_, key)| key).collect();
    let document = first_trust(
        &signers,
        wanted.trust_threshold,
        &publisher_keys,
        wanted.publisher_threshold,
        &[&controller],
        wanted.lifetime,
        now,
    );
    let raw = Bytes::from(seal(TRUST_TYPE, &document, &signers));
    let store = TrustStore::create(&trust_dir(&server), raw)?;
    let ids = |keys: Vec<(PathBuf, SigningKey)>| {
        keys.into_iter().map(|(path, key)| (path, key.public().id())).collect()
    };
    Ok(NewTrustSet {
        server,
        controller: controller.public().id(),
        pin: store.pin(),
        expires: document.expires,
        trust: ids(trust),
        publishers: ids(publishers),
    })
}
