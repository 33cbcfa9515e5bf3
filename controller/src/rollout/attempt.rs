//! One device in one rollout: its place, how far it is, what it contributed to the evidence.

use super::{
    assignment::{Arm, Member},
    event::EffectId,
    plan::Mode,
    seen::Seen,
    stage::{Bucket, Failure},
};
use edgefleet_shared::{
    desired::Assigned,
    ids::{AttemptId, BootId, DeviceId, RolloutId},
    reported::{Phase, Refusal},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub device: DeviceId,
    pub rollout: RolloutId,
    /// Counts up with every hand-out after the first; echoed in reports and windows.
    pub number: u32,
    pub stage: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<u16>,
    pub arm: Arm,
    pub stratum: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub site: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    pub rank: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_of: Option<u32>,
    /// The stage whose canaries it is compared with.
    #[serde(default)]
    pub cohort: u16,
    #[serde(flatten)]
    pub state: AttemptState,
    /// When it came into this state.
    pub since: Timestamp,
    /// Which turn the state is about: its shadow stage's or its own stage's.
    pub mode: Mode,
    /// Where its shadow stage counts it, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow_bucket: Option<Bucket>,
    /// Where its own stage counts it.
    pub bucket: Bucket,
    #[serde(default)]
    pub presence: Presence,
    /// Has given its slot up since its hand-out.
    #[serde(default)]
    pub gave_slot_up: bool,
    /// The generation that carries what is wanted of it now.
    #[serde(default)]
    pub generation: u64,
    /// What it had before its hand-out, and goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Assigned>,
    /// The effect that handed it out: repeats find it so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed_by: Option<EffectId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_at: Option<Timestamp>,
    /// When [`DeviceSaid::Clock`] is wanted next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// The bundle has answered requests on this device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activated_at: Option<Timestamp>,
    /// The last failure that its stage has counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    #[serde(default)]
    pub tries: Tries,
    #[serde(default)]
    pub seen: Seen,
    #[serde(default)]
    pub compared: Comparison,
    #[serde(default)]
    pub took_ms: u64,
    #[serde(default)]
    pub fetched_bytes: u64,
    pub updated: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum AttemptState {
    Planned,
    /// A control, until the last stage.
    Held,
    /// The desired state names it; the device has not answered.
    Assigned,
    /// The device has seen it.
    Notified,
    Deferred {
        why: Deferral,
    },
    Downloading,
    Verified,
    Preflight,
    Shadowing,
    Activating,
    Probation,
    Committed {
        late: bool,
    },
    Failed,
    TimedOut {
        phase: Phase,
    },
    Lost,
    RetryWait {
        until: Timestamp,
        penalty: bool,
    },
    Again,
    Cancelled,
    Superseded {
        by: RolloutId,
    },
    Removed,
    Reverting,
    Reverted,
}

/// Why a device does not act now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deferral {
    Window,
    Busy,
    Battery,
    Metered,
    Locked,
    Unknown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    #[default]
    Here,
    Away,
    Gone,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tries {
    pub downloads: u32,
    pub activations: u32,
    pub penalties: u32,
}

/// What one device contributes to the comparison of the arms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Comparison {
    /// In the risk set since then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joined: Option<Timestamp>,
    /// Out of it: by a bad window or otherwise.
    pub left: bool,
    /// The device-hour under way, and whether it was bad.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hour: Option<(u64, bool)>,
    pub before: Speed,
    pub after: Speed,
    /// Windows heard since it joined.
    pub windows: u32,
    /// A canary: compared with its controls.
    pub done: bool,
}

/// Geometric mean of the p95 of windows, milliseconds, each weighed by its results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Speed {
    pub sum_ln: f64,
    #[serde(alias = "weight")]
    pub results: f64,
}

/// What was heard of a device, as the shell translates it.
#[derive(Clone, Debug, PartialEq)]
pub enum DeviceSaid {
    /// A full report: where the slot is.
    Report {
        generation: u64,
        phase: Phase,
        /// What the phase is about.
        target: Option<AttemptId>,
        /// What answers requests now.
        active: Option<AttemptId>,
        deferral: Option<Deferral>,
        refusal: Option<Refusal>,
    },
    /// A terminal report; comes again until acknowledged.
    Ended {
        generation: u64,
        phase: Phase,
        attempt: AttemptId,
        refusal: Option<Refusal>,
        took_ms: u64,
        fetched_bytes: u64,
    },
    Window(WindowSaid),
    Shadow {
        key: RecordKey,
        attempt: AttemptId,
        n: u64,
        disagree: u64,
        classes: BTreeMap<String, (u64, u64)>,
    },
    Labels {
        key: RecordKey,
        attempt: AttemptId,
        source: String,
        both_right: u64,
        both_wrong: u64,
        wins: u64,
        losses: u64,
    },
    /// The canary this control is matched with has activated the bundle. `last_seen`: of the control, by any
    /// sign of life; now for one that is connected.
    CanaryActivated {
        last_seen: Option<Timestamp>,
    },
    /// Its deadline has come. `last_seen`: by any sign of life.
    Clock {
        last_seen: Option<Timestamp>,
    },
    /// The selectors no longer choose it.
    Unselected,
    /// It left the fleet.
    LeftFleet,
    SupersededBy {
        rollout: RolloutId,
    },
}

/// What makes a telemetry record unique on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordKey {
    pub boot: BootId,
    pub seq: u64,
}

/// One window of the active bundle.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowSaid {
    pub key: RecordKey,
    /// The attempt that brought the bundle it is about.
    pub attempt: AttemptId,
    pub start: Timestamp,
    pub requests: u64,
    pub bad: bool,
    pub p95_ms: Option<f64>,
    /// Results, and those above the frozen threshold.
    pub exceed: Option<(u64, u64)>,
    pub classes: BTreeMap<String, u64>,
}

impl Attempt {
    pub fn new(rollout: &RolloutId, member: &Member, stratum: &str, now: Timestamp) -> Self {
        let held = member.arm == Arm::Control;
        Self {
            device: member.device.clone(),
            rollout: rollout.clone(),
            number: 1,
            stage: member.stage,
            shadow: member.shadow,
            arm: member.arm,
            stratum: stratum.to_owned(),
            site: member.site.to_string(),
            group: member.group.as_ref().map(ToString::to_string),
            rank: member.rank,
            match_of: member.match_of,
            cohort: member.cohort,
            state: if held { AttemptState::Held } else { AttemptState::Planned },
            since: now,
            mode: if member.shadow.is_some() { Mode::Shadow } else { Mode::Active },
            shadow_bucket: member.shadow.map(|_| Bucket::Planned),
            bucket: if held { Bucket::Held } else { Bucket::Planned },
            presence: Presence::Here,
            gave_slot_up: false,
            generation: 0,
            before: None,
            handed_by: None,
            handed_at: None,
            heard_at: None,
            deadline: None,
            activated_at: None,
            failure: None,
            refusal: None,
            tries: Tries::default(),
            seen: Seen::default(),
            compared: Comparison::default(),
            took_ms: 0,
            fetched_bytes: 0,
            updated: now,
        }
    }
    /// As it stands in desired state, reports and windows.
    pub fn id(&self) -> AttemptId {
        AttemptId { rollout: self.rollout.clone(), number: self.number }
    }
}
