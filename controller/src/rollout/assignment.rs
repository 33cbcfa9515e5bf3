//! Which device has its turn in which stage, and which serve as controls.
//!
//! u = HMAC-SHA256(seed, device id) orders the devices of a stratum at random; the strata are interleaved in
//! proportion, and stages are cumulative cuts of that order. So every cut holds every stratum's share to
//! within one device, and sizes are exact. Shadow devices are the lowest: they are the first canaries
//! later. Controls are the highest of the canaries' strata: three for each canary of the stage that asks, one
//! for each of up to 500 of every stage after it, so that evidence goes on growing.

use super::plan::Plan;
use edgefleet_shared::{
    digest::{BlobDigest, decode_hex, encode_hex},
    ids::{BundleName, DeviceId},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

/// 256 random bits that decide who goes first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed([u8; 32]);

/// A device the selectors chose, as the fleet knows it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub device: &'a DeviceId,
    /// Labels and facts: what selectors see.
    pub attributes: &'a BTreeMap<String, String>,
    /// The bundle its slot runs now.
    pub incumbent: Option<&'a BundleName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// Drawn by lot to get the candidate early.
    Canary,
    /// Drawn by lot to keep the incumbent until the last stage.
    Control,
    /// Named devices and the last stage: no part of a comparison.
    None,
}

/// One device's place in a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub device: DeviceId,
    /// The stage in which it is to run the bundle as its active one.
    pub stage: u16,
    /// The shadow stage it takes part in before that.
    pub shadow: Option<u16>,
    pub arm: Arm,
    /// Index into [`MembershipSummary::strata`].
    pub stratum: u16,
    /// The attribute `site`: a site that fails as a whole counts once in the evidence.
    pub site: Arc<str>,
    /// The redundancy group, if the plan limits those.
    pub group: Option<Arc<str>>,
    /// Order of turns within the rollout, unique.
    pub rank: u64,
    /// A canary and its controls have the same number.
    pub match_of: Option<u32>,
    /// The stage whose canaries it is compared with: a canary's own, a control's canary's.
    pub cohort: u16,
}

/// Everybody's place. Depends on plan, seed and the set of candidates; not on their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    /// In the order of their rank.
    pub members: Vec<Member>,
    pub summary: MembershipSummary,
}

/// What the rollout keeps of its membership: small whatever the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipSummary {
    /// Of the whole membership: a driver that starts again and finds another digest starts over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<BlobDigest>,
    pub stages: Vec<StageSize>,
    pub strata: Vec<Stratum>,
    /// The stage whose canaries have the controls; hard gates are strict up to it.
    pub canary_stage: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSize {
    /// Devices whose turn is in this stage, controls included.
    pub devices: u64,
    /// Those of them that are controls until then.
    pub controls: u64,
    /// Canaries of this stage that have controls.
    pub compared: u64,
    /// Controls that the canaries of this stage have.
    pub against: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stratum {
    pub name: String,
    pub devices: u64,
    pub canaries: u64,
    pub controls: u64,
}

/// Places every candidate. Excluded devices and those beyond `max_devices` get none.
pub fn plan_members(plan: &Plan, seed: &Seed, candidates: &[Candidate<'_>]) -> Membership {
    super::draw::draw(plan, seed, candidates)
}

/// A device that was selected after the membership was fixed: last stage, behind everybody.
pub fn join_late(plan: &Plan, seed: &Seed, summary: &MembershipSummary, candidate: &Candidate<'_>) -> Member {
    super::draw::late(plan, seed, summary, candidate)
}

impl Seed {
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }
    /// The seed a plan names; `None` if it leaves the choice to the controller, or writes nonsense.
    pub fn of_plan(plan: &Plan) -> Option<Self> {
        if plan.assign.seed == super::plan::AUTO_SEED {
            return None;
        }
        plan.assign.seed.parse().ok()
    }
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
impl FromStr for Seed {
    type Err = SeedError;
    fn from_str(text: &str) -> Result<Self, SeedError> {
        let mut bytes = [0; 32];
        decode_hex(text, &mut bytes).ok_or(SeedError { found: text.len() })?;
        Ok(Self(bytes))
    }
}

/// Why a text is no seed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a seed is 64 lower-case hexadecimal digits or `auto`, this one has {found} characters")]
pub struct SeedError {
    found: usize,
}
impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_hex(&self.0))
    }
}
impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seed({self})")
    }
}
impl Serialize for Seed {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}
