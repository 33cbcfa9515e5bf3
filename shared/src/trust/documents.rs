//! The signed documents themselves. The desired state, the third of them, is [`crate::desired`].

use super::{
    envelope::TrustError,
    keys::{KeyId, PublicKey},
};
use crate::{
    digest::BundleDigest,
    ids::{BundleName, ModelName},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleName {
    /// Signs the next trust document. TUF: root.
    Trust,
    /// Signs releases, offline if wanted. TUF: targets; Uptane: image repository.
    Publisher,
    /// Signs desired states and commands, online. Uptane: director.
    Controller,
}
impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trust => "trust",
            Self::Publisher => "publisher",
            Self::Controller => "controller",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    pub keys: Vec<KeyId>,
    /// How many different keys must sign.
    pub threshold: usize,
}

/// Version N of who is trusted. N+1 must meet the threshold of N **and** its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    pub version: u64,
    pub issued: Timestamp,
    pub expires: Timestamp,
    pub keys: BTreeMap<KeyId, PublicKey>,
    pub roles: Roles,
    /// Lowest release counter a device may still install, by model. Going back below it is refused;
    /// it only rises, and a version that changes it needs the publishers' signatures too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub floors: BTreeMap<ModelName, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    pub trust: Role,
    pub publisher: Role,
    pub controller: Role,
}

impl Trust {
    pub fn role(&self, name: RoleName) -> &Role {
        match name {
            RoleName::Trust => &self.roles.trust,
            RoleName::Publisher => &self.roles.publisher,
            RoleName::Controller => &self.roles.controller,
        }
    }

    /// # Errors
    /// [`TrustError::TrustInvalid`] if a threshold cannot be met or a key is missing or misnamed.
    pub fn check(&self) -> Result<(), TrustError> {
        let no = |reason: String| Err(TrustError::TrustInvalid { version: self.version, reason });
        for name in [RoleName::Trust, RoleName::Publisher, RoleName::Controller] {
            let role = self.role(name);
            let mut distinct: Vec<_> = role.keys.iter().collect();
            distinct.sort();
            distinct.dedup();
            if role.threshold == 0 || role.threshold > distinct.len() {
                return no(format!(
                    "role {name} wants {} signatures of {} keys",
                    role.threshold,
                    distinct.len()
                ));
            }
            for id in distinct {
                match self.keys.get(id) {
                    None => return no(format!("role {name} names key {id}, which is not listed")),
                    Some(key) if key.id() != *id => return no(format!("key {id} is not what its id says")),
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }
}

/// A publisher says: this manifest is this bundle. Never expires; revoked by a floor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub bundle: BundleName,
    pub manifest: BundleDigest,
    /// Exact size of the manifest in bytes.
    pub length: u64,
    /// Hardware classes that may install it; empty is any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hardware: Vec<String>,
    pub issued: Timestamp,
}
