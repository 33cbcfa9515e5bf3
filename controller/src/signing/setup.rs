//! What `serve` does with keys at start: make all of them once, or take what a ceremony brought.
//!
//! Trust and publisher keys may be anywhere; only the controller's online key has to be here.

use super::{
    durable, key_file,
    key_file::KeyFileError,
    signer::{FileSigner, OnlineKey},
    trust_store::{TrustStore, TrustStoreError},
};
use bytes::Bytes;
use edgefleet_shared::{
    time::Timestamp,
    trust::{
        KeyId, RoleName, SigningKey, Trust,
        documents::{Role, Roles},
        envelope::{TRUST_TYPE, seal},
    },
};
use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long a trust document lasts: expiry is the main cause of outages, so it is long.
pub const TRUST_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3_600);

pub fn keys_dir(data: &Path) -> PathBuf {
    data.join("keys")
}
pub fn trust_dir(data: &Path) -> PathBuf {
    data.join("trust")
}
/// Where a role's private key is kept in the data folder, if it is kept there.
pub fn key_path(data: &Path, role: RoleName) -> PathBuf {
    keys_dir(data).join(format!("{role}.pk8"))
}

/// Why the controller cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Key(#[from] KeyFileError),
    #[error(transparent)]
    Trust(#[from] TrustStoreError),
    #[error("could not create `{}`", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(
        "`{}` has a controller key but no trust document; copy `trust/1.json` of the ceremony there, too",
        data.display()
    )]
    NoTrust { data: PathBuf },
    #[error("the controller key `{}` is missing, but trust {version} exists; restore it from a backup", path.display())]
    NoControllerKey { path: PathBuf, version: u64 },
    #[error(
        "the controller key `{key}` is not one of the controller role in trust {version}, so no device would obey"
    )]
    NotController { key: KeyId, version: u64 },
}

/// The controller's means to sign, and everything devices may ask about keys.
pub struct Setup {
    pub trust: Arc<TrustStore>,
    pub online: OnlineKey,
    /// Set on the very first start.
    pub created: Option<FirstKeys>,
}

/// The keys made on the first start, and what to do next. Print it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstKeys {
    pub data: PathBuf,
    pub trust: KeyId,
    pub publisher: KeyId,
    pub controller: KeyId,
}

impl fmt::Display for FirstKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Made signing keys in `{}`:", keys_dir(&self.data).display())?;
        for (role, id, does) in [
            (RoleName::Trust, &self.trust, "decides who else is trusted"),
            (RoleName::Publisher, &self.publisher, "signs bundles"),
            (RoleName::Controller, &self.controller, "signs what devices shall run"),
        ] {
            writeln!(f, "  {role:<10} {id}  {does}")?;
        }
        write!(
            f,
            "All three lie on this machine: whoever takes it over can publish. That is fine to begin with.\n\
             Next step: sign a bundle with `edgefleet model sign BUNDLE --key {}`;\n\
             for production make keys on a machine without network: `edgefleet keys new-trust --offline --out DIR`",
            key_path(&self.data, RoleName::Publisher).display()
        )
    }
}

/// Opens the signing set-up of a data folder, or makes it on the first start. A kill in between is
/// repaired by the next start.
///
/// # Errors
/// [`SetupError`].
pub fn open_or_create(data: &Path, now: Timestamp) -> Result<Setup, SetupError> {
    let controller = key_path(data, RoleName::Controller);
    if let Some(trust) = TrustStore::open(&trust_dir(data))? {
        let version = trust.current().version;
        if !controller.exists() {
            return Err(SetupError::NoControllerKey { path: controller, version });
        }
        let online = OnlineKey::new(Arc::new(FileSigner::open(&controller)?));
        let id = online.id();
        if !trust.current().role(RoleName::Controller).keys.contains(&id) {
            return Err(SetupError::NotController { key: id, version });
        }
        return Ok(Setup { trust: Arc::new(trust), online, created: None });
    }
    // The controller key is made last: alone, without the others, it can only come from a ceremony.
    let made_here = key_path(data, RoleName::Trust).exists() && key_path(data, RoleName::Publisher).exists();
    if controller.exists() && !made_here {
        return Err(SetupError::NoTrust { data: data.to_owned() });
    }
    let folder = keys_dir(data);
    durable::private_dir(&folder).map_err(|source| SetupError::Folder { path: folder, source })?;
    let key = |role| -> Result<SigningKey, KeyFileError> {
        let path = key_path(data, role);
        if path.exists() { key_file::read_private(&path) } else { key_file::create_private(&path) }
    };
    let (trust, publisher, controller) =
        (key(RoleName::Trust)?, key(RoleName::Publisher)?, key(RoleName::Controller)?);
    let document = first_trust(&[&trust], 1, &[&publisher], 1, &[&controller], TRUST_LIFETIME, now);
    let raw = Bytes::from(seal(TRUST_TYPE, &document, &[&trust]));
    let created = FirstKeys {
        data: data.to_owned(),
        trust: trust.public().id(),
        publisher: publisher.public().id(),
        controller: controller.public().id(),
    };
    Ok(Setup {
        trust: Arc::new(TrustStore::create(&trust_dir(data), raw)?),
        online: OnlineKey::new(Arc::new(FileSigner::from(controller))),
        created: Some(created),
    })
}

/// Version 1 from keys just made; unsigned.
pub(super) fn first_trust(
    trust: &[&SigningKey],
    trust_threshold: usize,
    publishers: &[&SigningKey],
    publisher_threshold: usize,
    controllers: &[&SigningKey],
    lifetime: Duration,
    now: Timestamp,
) -> Trust {
    let role = |keys: &[&SigningKey], threshold| Role {
        keys: keys.iter().map(|key| key.public().id()).collect(),
        threshold,
    };
    let all = trust.iter().chain(publishers).chain(controllers);
    Trust {
        version: 1,
        issued: now,
        expires: now + lifetime,
        keys: all.map(|key| (key.public().id(), key.public())).collect(),
        roles: Roles {
            trust: role(trust, trust_threshold),
            publisher: role(publishers, publisher_threshold),
            controller: role(controllers, 1),
        },
        floors: BTreeMap::new(),
    }
}
