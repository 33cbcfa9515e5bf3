//! Keys and signed documents for the tests of this program.

use edgefleet_shared::{
    desired::{Assigned, DESIRED_SCHEMA, Desired, SlotDesired},
    digest::{BundleDigest, EnvelopeDigest},
    ids::{AttemptId, DeviceId},
    time::Timestamp,
    trust::{
        Release, Role, SigningKey, Trust,
        documents::Roles,
        envelope::{DESIRED_TYPE, RELEASE_TYPE, TRUST_TYPE},
        seal,
    },
};
use std::{collections::BTreeMap, time::Duration};

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn today() -> Timestamp {
    "2026-11-23T08:00:00Z".parse().unwrap()
}
pub(crate) fn device() -> DeviceId {
    "dev-1".parse().unwrap()
}

/// One key per role.
pub(crate) struct Signers {
    pub root: SigningKey,
    pub publisher: SigningKey,
    pub controller: SigningKey,
}

impl Signers {
    pub(crate) fn new() -> Self {
        let key = || SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap();
        Self { root: key(), publisher: key(), controller: key() }
    }
    /// Keys that a second process shares: read from `dir`, made there if missing.
    #[cfg(feature = "failpoints")]
    pub(crate) fn kept_in(dir: &std::path::Path) -> Self {
        let key = |name: &str| {
            let path = dir.join(name);
            if !path.exists() {
                std::fs::write(&path, SigningKey::generate_pkcs8().unwrap()).unwrap();
            }
            SigningKey::from_pkcs8(&std::fs::read(path).unwrap()).unwrap()
        };
        Self { root: key("root"), publisher: key("publisher"), controller: key("controller") }
    }
    pub(crate) fn trust_document(&self, version: u64) -> Trust {
        let role = |key: &SigningKey| Role { keys: vec![key.public().id()], threshold: 1 };
        Trust {
            version,
            issued: today() - DAY,
            expires: today() + 365 * DAY,
            keys: [&self.root, &self.publisher, &self.controller]
                .map(|k| (k.public().id(), k.public()))
                .into(),
            roles: Roles {
                trust: role(&self.root),
                publisher: role(&self.publisher),
                controller: role(&self.controller),
            },
            floors: BTreeMap::new(),
        }
    }
    pub(crate) fn trust(&self, version: u64) -> Vec<u8> {
        seal(TRUST_TYPE, &self.trust_document(version), &[&self.root])
    }
    /// The release envelope of `digits@counter` with this manifest.
    pub(crate) fn release(&self, counter: u64, manifest: &[u8]) -> Vec<u8> {
        let release = Release {
            bundle: format!("digits@{counter}").parse().unwrap(),
            manifest: BundleDigest::of(manifest),
            length: manifest.len() as u64,
            hardware: vec![],
            issued: today() - 2 * DAY,
        };
        seal(RELEASE_TYPE, &release, &[&self.publisher])
    }
    pub(crate) fn assigned(&self, release: &[u8], counter: u64, attempt: u32) -> Assigned {
        Assigned {
            bundle: format!("digits@{counter}").parse().unwrap(),
            release: EnvelopeDigest::of(release),
            release_size: release.len() as u64,
            attempt: AttemptId { rollout: "r-1".parse().unwrap(), number: attempt },
        }
    }
    pub(crate) fn desired_document(&self, generation: u64, slots: &[(&str, Assigned)]) -> Desired {
        let slot = |active: &Assigned| SlotDesired {
            active: active.clone(),
            candidate: None,
            probation_secs: 60,
            slower_percent: None,
            thresholds: vec![],
            shadow: None,
            window: None,
        };
        Desired {
            schema: DESIRED_SCHEMA,
            device: device(),
            generation,
            issued: today(),
            expires: today() + 10 * DAY,
            nonce: None,
            trust_version: 1,
            slots: slots.iter().map(|(name, active)| (name.parse().unwrap(), slot(active))).collect(),
            settings: Default::default(),
        }
    }
    pub(crate) fn seal_desired(&self, desired: &Desired) -> Vec<u8> {
        seal(DESIRED_TYPE, desired, &[&self.controller])
    }
}
