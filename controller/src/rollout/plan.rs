//! What a rollout is meant to do: written by people, frozen when it is submitted.
//!
//! Field names are those of a plan file; everything left out takes the default of fleet-control 6.3.
//! An assignment by hand is the same type with one stage, see [`Plan::single_stage`].

use super::{
    span::{Share, Span},
    window::Window,
};
use crate::evidence::{Gate, GateSettings};
use edgefleet_shared::{
    ids::{BundleName, DeviceId, SlotName},
    selector::Selector,
    time::Timestamp,
};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{collections::BTreeMap, time::Duration};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub rollout: Head,
    /// A device is meant if any of them selects it. One text or a list of texts.
    #[serde(default = "everything", deserialize_with = "one_or_many")]
    pub select: Vec<Selector>,
    #[serde(default)]
    pub assign: Assign,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    #[serde(default = "default_stages")]
    pub stages: Vec<Stage>,
    /// Settings of all gates; which of them a stage asks stands at the stage, see [`Plan::settle`].
    #[serde(default)]
    pub gates: GateSettings,
    #[serde(default)]
    pub hard: HardGates,
    #[serde(default)]
    pub retry: Retries,
    #[serde(default)]
    pub timeouts: Timeouts,
    #[serde(default)]
    pub on_fail: OnFail,
    #[serde(default)]
    pub on_inconclusive: OnInconclusive,
    /// How long each device watches the new bundle before it commits to it.
    #[serde(default = "default_probation")]
    pub probation: Span,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<Timestamp>,
    /// Hand out during a freeze period; critical rollouts only, and it needs an approval at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub override_freeze: Option<String>,
    /// A person other than the author has to agree before the start.
    #[serde(default)]
    pub approval: bool,
    /// For demonstrations: waiting times are divided by it. Sample counts never are.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub time_scale: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub slot: SlotName,
    pub bundle: BundleName,
    #[serde(default)]
    pub severity: Severity,
    /// Why an older release may replace a newer one; absent: it may not.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "reason_or_false")]
    pub allow_downgrade: Option<String>,
    #[serde(default)]
    pub on_overlap: OnOverlap,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    #[default]
    Normal,
    /// May override freeze periods and windows, with an approval.
    Critical,
}

/// What happens if another rollout of the slot is still busy with some of the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnOverlap {
    Supersede,
    Queue,
    #[default]
    Refuse,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Assign {
    /// Attributes that make a stratum; `incumbent` is the bundle a device has now.
    pub strata: Vec<String>,
    /// 64 hexadecimal digits, or `auto`: drawn when the rollout is made.
    pub seed: String,
    pub controls_per_canary: u32,
    /// Devices of one redundancy group in flight at a time, by the attribute that names the group. At
    /// most one attribute; at least one device of each group may always go.
    pub max_in_flight_per: BTreeMap<String, Share>,
    /// Canary and controls are compared once, over this time before and after the canary's switch.
    pub compare: Span,
    /// Never more devices than this, whatever the selectors say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_devices: Option<u64>,
    pub exclude: Vec<DeviceId>,
}
impl Default for Assign {
    fn default() -> Self {
        Self {
            strata: ["hardware", "site", "incumbent"].map(str::to_owned).to_vec(),
            seed: AUTO_SEED.to_owned(),
            controls_per_canary: 3,
            max_in_flight_per: BTreeMap::new(),
            compare: Span::hours(1),
            max_devices: None,
            exclude: Vec::new(),
        }
    }
}

pub const AUTO_SEED: &str = "auto";

/// How fast devices get their turn. The numbers of AWS IoT Jobs, and a cap on what is in flight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub start_per_min: f64,
    /// The rate is multiplied by it ...
    pub growth: f64,
    /// ... after this many successes each.
    pub per: u64,
    pub cap_per_min: f64,
    /// Devices between their hand-out and their end, at a time.
    pub concurrency: Share,
    /// Lower bound of the line above, so that small fleets move.
    pub concurrency_min: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<u64>,
}
impl Default for Limits {
    fn default() -> Self {
        Self {
            start_per_min: 50.0,
            growth: 2.0,
            per: 1_000,
            cap_per_min: 1_000.0,
            concurrency: Share::Percent(2.0),
            concurrency_min: 10,
            bytes_per_day: None,
        }
    }
}
impl Limits {
    /// `--limits none`: as fast as the driver can.
    pub fn none() -> Self {
        Self {
            start_per_min: UNLIMITED_PER_MIN,
            growth: 1.0,
            per: 1,
            cap_per_min: UNLIMITED_PER_MIN,
            concurrency: Share::Percent(100.0),
            concurrency_min: 10,
            bytes_per_day: None,
        }
    }
}

/// A rate no driver reaches; written down instead of an infinity that JSON cannot hold.
pub const UNLIMITED_PER_MIN: f64 = 1e12;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    pub name: String,
    /// Named devices instead of a drawn share; by convention the lab.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
    /// The share of the fleet that has had its turn when this stage is done: sizes are cumulative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Share>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    #[serde(default)]
    pub mode: Mode,
    #[serde(default)]
    pub soak: Span,
    /// Default: three times `soak`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_soak: Option<Span>,
    /// Gates that must be *safe* before the stage passes. Harm counts in every stage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<Gate>,
    /// A person has to agree before the stage begins.
    #[serde(default)]
    pub approval: bool,
    /// Devices that are selected later join while it runs; only the last stage.
    #[serde(default)]
    pub dynamic: bool,
    /// Spread the hand-outs evenly over this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Span>,
    /// Share of the devices seen lately that must have finished an attempt before the soak begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Share>,
}

impl Stage {
    /// Its devices are drawn by lot, not named.
    pub fn is_drawn(&self) -> bool {
        self.devices.is_empty()
    }
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            devices: Vec::new(),
            size: None,
            min: None,
            max: None,
            mode: Mode::Active,
            soak: Span::ZERO,
            max_soak: None,
            gates: Vec::new(),
            approval: false,
            dynamic: false,
            spread: None,
            coverage: None,
        }
    }
    pub fn max_soak(&self) -> Span {
        self.max_soak.unwrap_or(Span::secs(self.soak.as_secs().saturating_mul(3)))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The candidate runs beside the active bundle on the same inputs; its answers go nowhere.
    Shadow,
    #[default]
    Active,
}

/// Rules without statistics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HardGates {
    /// Refused signatures or rollbacks that pause, after the canary stage. Up to it one is enough.
    pub verify_failed: u64,
    /// Devices going back by themselves that fail a stage up to the canary.
    pub rolled_back: u64,
    pub lost: u64,
    pub preflight_failed: u64,
    /// Share of finished attempts that may fail in any stage ...
    pub failed: Share,
    /// ... once this many have finished.
    pub min_attempts: u64,
    /// A device goes back by itself if, on probation, the 95th percentile of engine time is over this many
    /// percent of what its former bundle took. Absent: only the bundle's own budget counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slower_percent: Option<u32>,
}
impl Default for HardGates {
    fn default() -> Self {
        Self {
            verify_failed: 2,
            rolled_back: 2,
            lost: 2,
            preflight_failed: 2,
            failed: Share::Percent(10.0),
            min_attempts: 10,
            slower_percent: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retries {
    pub download: u32,
    pub activation: u32,
    pub first_wait: Span,
    pub longest_wait: Span,
    /// After the last retry; then the device gets its turn once more.
    pub penalty: Span,
    /// Penalties before a device is given up.
    pub penalties: u32,
}
impl Default for Retries {
    fn default() -> Self {
        Self {
            download: 10,
            activation: 1,
            first_wait: Span::secs(60),
            longest_wait: Span::hours(1),
            penalty: Span::hours(24),
            penalties: 3,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// Hand-out to first report, for a device that is seen.
    pub first_report: Span,
    pub download: Span,
    pub preflight: Span,
    pub activation: Span,
    /// On top of the plan's probation.
    pub probation: Span,
    /// A device that does not answer, or defers, keeps its desired state this long.
    pub queued: Span,
    /// Silence after which a device holds no slot: three heartbeats, at least 15 minutes.
    pub silence: Span,
    /// Silence after which it no longer counts in the coverage.
    pub seen: Span,
    pub approval: Span,
    /// Drafts, pauses by people, reverts and the tail of a completed rollout.
    pub rest: Span,
}
impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_report: Span::hours(24),
            download: Span::hours(6),
            preflight: Span::minutes(10),
            activation: Span::minutes(5),
            probation: Span::hours(2),
            queued: Span::days(30),
            silence: Span::minutes(15),
            seen: Span::hours(24),
            approval: Span::hours(72),
            rest: Span::days(30),
        }
    }
}

/// What a failed gate does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFail {
    #[default]
    Revert,
    Halt,
    Freeze,
}

/// A stage without a verdict at its longest soak is paused; then, if nobody cares, this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OnInconclusive {
    pub unattended: Span,
    pub then: OnFail,
}
impl Default for OnInconclusive {
    fn default() -> Self {
        Self { unattended: Span::hours(72), then: OnFail::Revert }
    }
}

impl Plan {
    /// The stages and limits of fleet-control 6.3.
    pub fn new(slot: SlotName, bundle: BundleName) -> Self {
        Self {
            rollout: Head {
                slot,
                bundle,
                severity: Severity::Normal,
                allow_downgrade: None,
                on_overlap: OnOverlap::Refuse,
            },
            select: everything(),
            assign: Assign::default(),
            limits: Limits::default(),
            window: None,
            stages: default_stages(),
            gates: GateSettings::default(),
            hard: HardGates::default(),
            retry: Retries::default(),
            timeouts: Timeouts::default(),
            on_fail: OnFail::Revert,
            on_inconclusive: OnInconclusive::default(),
            probation: default_probation(),
            start_at: None,
            override_freeze: None,
            approval: false,
            time_scale: 1.0,
        }
    }

    /// An assignment by hand: everybody selected, one stage, no soak and no statistics. A failure stops
    /// what has not begun; nothing is taken back unasked.
    pub fn single_stage(slot: SlotName, bundle: BundleName, select: Vec<Selector>) -> Self {
        let all = Stage { size: Some(Share::Percent(100.0)), ..Stage::named("all") };
        Self {
            select,
            stages: vec![all],
            assign: Assign { controls_per_canary: 0, strata: Vec::new(), ..Assign::default() },
            // One bad device out of three says nothing about the rest; people watch this themselves.
            hard: HardGates { failed: Share::Percent(100.0), ..HardGates::default() },
            on_fail: OnFail::Freeze,
            probation: Span::secs(60),
            ..Self::new(slot, bundle)
        }
    }

    /// Derives what follows from the rest: evidence runs on across stages, so every gate that any stage
    /// asks shares the false-alarm budget from the start. Called when a rollout is made; changes nothing
    /// the second time.
    pub fn settle(&mut self) {
        let mut used: std::collections::BTreeSet<_> =
            self.stages.iter().flat_map(|stage| stage.gates.iter().copied()).collect();
        used.insert(Gate::Hard);
        self.gates.gates = used.clone();
        self.gates.planned = used;
    }

    /// `span` as the plan's clock runs it.
    pub fn wait(&self, span: Span) -> Duration {
        span.scaled(self.time_scale)
    }

    /// Whether somebody other than the author has to agree to the start.
    pub fn needs_approval(&self) -> bool {
        self.approval || self.override_freeze.is_some()
    }

    pub fn last_stage(&self) -> usize {
        self.stages.len().saturating_sub(1)
    }

    pub fn is_last(&self, stage: usize) -> bool {
        stage == self.last_stage()
    }

    /// The attribute that names a device's redundancy group, with what may be in flight of one group.
    pub fn group_rule(&self) -> Option<(&str, Share)> {
        self.assign.max_in_flight_per.iter().next().map(|(label, share)| (label.as_str(), *share))
    }
}

/// lab and shadow are left out of the default: the first needs names, the second a shadow-capable model.
pub fn default_stages() -> Vec<Stage> {
    use Gate::{Agreement, Drift, Errors, Hard, Latency, Telemetry};
    let sized = |name: &str, percent: f64, soak: u64| Stage {
        size: Some(Share::Percent(percent)),
        soak: Span::hours(soak),
        ..Stage::named(name)
    };
    vec![
        Stage {
            mode: Mode::Shadow,
            min: Some(3),
            max: Some(50),
            gates: vec![Agreement],
            ..sized("shadow", 1.0, 24)
        },
        Stage {
            min: Some(10),
            max: Some(50),
            gates: vec![Hard, Errors, Latency, Drift, Telemetry],
            ..sized("canary", 1.0, 24)
        },
        sized("early", 5.0, 12),
        sized("quarter", 25.0, 6),
        Stage { dynamic: true, ..sized("all", 100.0, 0) },
    ]
}

fn everything() -> Vec<Selector> {
    vec![Selector::everything()]
}
fn default_probation() -> Span {
    Span::hours(2)
}
fn one() -> f64 {
    1.0
}
fn is_one(scale: &f64) -> bool {
    *scale == 1.0
}

fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Selector>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    let texts = match Either::deserialize(d)? {
        Either::One(text) => vec![text],
        Either::Many(texts) => texts,
    };
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

fn reason_or_false<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Flag(bool),
        Reason(Option<String>),
    }
    match Either::deserialize(d)? {
        Either::Flag(false) => Ok(None),
        Either::Flag(true) => Err(de::Error::custom("`allow_downgrade` takes the reason as text")),
        Either::Reason(reason) => Ok(reason),
    }
}
