//! What `keys show` and the API tell about keys: roles, thresholds, expiry, and where private parts lie.

use super::{key_file, setup::key_path};
use edgefleet_shared::{
    digest::EnvelopeDigest,
    ids::ModelName,
    time::Timestamp,
    trust::{KeyId, RoleName, Trust},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// Days before expiry from which on it is a warning.
const SOON_DAYS: i64 = 30;

/// The newest trust document, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrustSummary {
    pub version: u64,
    #[schema(value_type = String)]
    pub digest: EnvelopeDigest,
    #[schema(value_type = String)]
    pub issued: Timestamp,
    #[schema(value_type = String)]
    pub expires: Timestamp,
    /// Whole days until then, negative once it has expired.
    pub expires_in_days: i64,
    pub roles: Vec<RoleSummary>,
    #[schema(value_type = BTreeMap<String, u64>)]
    pub floors: BTreeMap<ModelName, u64>,
    /// What a person should know, one sentence each.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoleSummary {
    #[schema(value_type = String)]
    pub role: RoleName,
    pub threshold: usize,
    pub keys: Vec<KeySummary>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeySummary {
    #[schema(value_type = String)]
    pub id: KeyId,
    /// True if the private part lies in the controller's data folder.
    pub on_controller: bool,
}

/// Ids of the private keys in a data folder. Unreadable files count as absent.
pub fn keys_on_controller(data: &Path) -> Vec<KeyId> {
    [RoleName::Trust, RoleName::Publisher, RoleName::Controller]
        .into_iter()
        .filter_map(|role| key_file::read_private(&key_path(data, role)).ok())
        .map(|key| key.public().id())
        .collect()
}

/// Pure: everything is passed in.
pub fn summarize(trust: &Trust, digest: EnvelopeDigest, here: &[KeyId], now: Timestamp) -> TrustSummary {
    const DAY_SECS: u64 = 86_400;
    let days = |secs: u64| i64::try_from(secs / DAY_SECS).unwrap_or(i64::MAX);
    let expires_in_days = if trust.expires >= now {
        days(trust.expires.since(now).as_secs())
    } else {
        -days(now.since(trust.expires).as_secs()) - 1
    };
    let role = |role: RoleName| RoleSummary {
        role,
        threshold: trust.role(role).threshold,
        keys: trust
            .role(role)
            .keys
            .iter()
            .map(|id| KeySummary { id: id.clone(), on_controller: here.contains(id) })
            .collect(),
    };
    let roles: Vec<_> = [RoleName::Trust, RoleName::Publisher, RoleName::Controller].map(role).into();
    let mut warnings = Vec::new();
    if expires_in_days < 0 {
        warnings.push("trust has expired: devices keep running but install nothing; renew with `edgefleet trust propose --renew`".to_owned());
    } else if expires_in_days < SOON_DAYS {
        warnings.push(format!(
            "trust expires in {expires_in_days} days; renew with `edgefleet trust propose --renew`"
        ));
    }
    for role in &roles {
        let reachable = role.keys.iter().filter(|key| key.on_controller).count();
        if role.role != RoleName::Controller && reachable >= role.threshold {
            warnings.push(format!(
                "enough {} keys lie on the controller's machine: whoever takes it over can use them",
                role.role
            ));
        }
    }
    TrustSummary {
        version: trust.version,
        digest,
        issued: trust.issued,
        expires: trust.expires,
        expires_in_days,
        roles,
        floors: trust.floors.clone(),
        warnings,
    }
}
