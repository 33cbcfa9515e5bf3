//! What a simulation is made of.

use super::scenario::{Behaviour, Faults, Scenario};
use crate::rollout::{Plan, Share, Span, plan};
use edgefleet_shared::{
    digest::EnvelopeDigest,
    ids::{AttemptId, BundleName, RolloutId, SlotName},
};

#[derive(Clone, Debug)]
pub struct Settings {
    pub devices: u32,
    pub seed: u64,
    pub behaviour: Behaviour,
    pub faults: Faults,
    pub plan: Plan,
    /// Mean devices of a site.
    pub per_site: u32,
    /// Length of the windows of canaries and controls while they are compared, seconds; otherwise an hour.
    pub window_secs: u64,
    /// Windows of every canary; otherwise only of shadow devices, of the first canaries and of their controls.
    pub all_windows: bool,
    /// Devices that nobody compares report only that they switched and how it ended.
    pub terse: bool,
    pub people: People,
    /// Somebody looks (a tick) this often on top of the rollout's own wishes, milliseconds.
    pub look_every: Option<u64>,
    /// Freeze periods, line stops, devices that leave the selection or the fleet, superseding: how many of them.
    pub troubles: u32,
    /// Virtual time after which the simulation stops, days.
    pub days: u64,
    /// Go on through the tail of a completed rollout.
    pub tail: bool,
    /// The controller hears every message twice, which must not change anything.
    pub twice: bool,
    pub check: Check,
    pub store: StoreKind,
}

/// How the people around a rollout behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum People {
    /// After some hours approves whatever asks for approval and goes on where evidence was inconclusive.
    Agreeing,
    /// Nobody ever answers.
    Absent,
    /// Approves, denies, resumes, extends, skips, aborts at random.
    Busy,
}

/// How often the independent checker looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Off,
    /// After about one in so many steps.
    Sampled(u64),
    EveryStep,
}

/// How the driver keeps its documents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StoreKind {
    /// In memory, one driver.
    Memory,
    /// As JSON with revisions and compare-and-set, as a store does; drivers take turns at random. Each commit and
    /// each effect is followed by a crash with this chance.
    Documents { drivers: u32, crashes: f64 },
}

impl Settings {
    /// The default plan on an ordinary fleet.
    pub fn new(devices: u32, seed: u64, scenario: Scenario) -> Self {
        Self {
            devices,
            seed,
            behaviour: scenario.behaviour(),
            faults: Faults::usual(),
            plan: Plan::new(slot(), bundle(2)),
            per_site: 50,
            window_secs: 900,
            all_windows: true,
            terse: false,
            people: People::Agreeing,
            look_every: None,
            troubles: 0,
            days: 120,
            tail: false,
            twice: false,
            check: Check::Off,
            store: StoreKind::Memory,
        }
    }

    /// As [`Self::new`], with less said by devices that nobody compares: for very large fleets.
    pub fn large(devices: u32, seed: u64, scenario: Scenario) -> Self {
        Self { all_windows: false, terse: true, ..Self::new(devices, seed, scenario) }
    }

    /// A plan that a small test gets through quickly.
    pub fn short_plan() -> Plan {
        let mut plan = Plan::new(slot(), bundle(2));
        for stage in &mut plan.stages {
            stage.soak = Span::secs(stage.soak.as_secs() / 4);
        }
        plan.limits.concurrency = Share::Percent(20.0);
        plan.probation = Span::minutes(30);
        plan
    }
}

// Names of the virtual rollout are constants that follow the grammar of ids.
fn slot() -> SlotName {
    parsed("digits")
}
pub(super) fn bundle(counter: u64) -> BundleName {
    parsed(&format!("digits@{counter}"))
}
pub(super) fn rollout_id() -> RolloutId {
    parsed("simulated")
}
pub(super) fn before() -> edgefleet_shared::desired::Assigned {
    edgefleet_shared::desired::Assigned {
        bundle: bundle(1),
        release: EnvelopeDigest::of(b"digits@1"),
        release_size: 1_000,
        attempt: AttemptId { rollout: parsed("before"), number: 1 },
    }
}
fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| unreachable!("{text} follows the grammar of its kind"))
}

/// The author of the virtual rollout; others approve.
pub(super) const AUTHOR: &str = "author";
pub(super) const COLLEAGUE: &str = "colleague";

/// A plan whose stages ask what shadow and labels can show, for scenarios about answers.
pub fn with_labels(mut plan: Plan) -> Plan {
    for stage in &mut plan.stages {
        if stage.mode == plan::Mode::Shadow {
            stage.gates = vec![crate::evidence::Gate::Accuracy];
        }
    }
    plan
}
