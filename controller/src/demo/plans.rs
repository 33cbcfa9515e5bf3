//! The plans of the demo: written as a fleet of this size would write them, waiting times divided.

use super::{DemoError, DemoOptions, load::SOURCE};
use crate::{
    evidence::Gate,
    rollout::{Mode, Plan, Share, Span, Stage, plan::OnOverlap},
};
use edgefleet_shared::ids::DeviceId;
use std::{fmt::Display, str::FromStr};

/// Canaries and controls below which a comparison of devices proves nothing: the sign test's own limits.
const CANARIES: u32 = 10;
const CONTROLS: u32 = 10;
/// Share of the fleet in the canary stage, percent.
const CANARY_PERCENT: f64 = 30.0;

/// A plan for `bundle` on every device. `probation`: what a real fleet would take.
///
/// # Errors
/// [`DemoError::Plan`] if `bundle` is no name.
pub(super) fn plan(
    options: &DemoOptions,
    bundle: &str,
    stages: Vec<Stage>,
    probation: Span,
) -> Result<Plan, DemoError> {
    let mut plan = Plan::new(parsed(bundle, "digits")?, parsed(bundle, bundle)?);
    plan.select = vec![parsed(bundle, "site=lab")?];
    // The assignments of other chapters may still wait for a person.
    plan.rollout.on_overlap = OnOverlap::Supersede;
    plan.stages = stages;
    plan.probation = probation;
    plan.assign.controls_per_canary = 1;
    (plan.gates.min_canaries, plan.gates.min_controls) = (CANARIES, CONTROLS);
    plan.gates.accuracy.sources = [format!("local:{SOURCE}")].into();
    plan.gates.accuracy.max_drop = 0.03;
    // What takes three times as long as the bundle before is taken back by the device itself.
    plan.hard.slower_percent = Some(300);
    plan.time_scale = f64::from(options.time_scale);
    // Processors are not faster than in a real fleet: where work is waited for, the wait is made longer, so
    // that divided it still is long enough for two cores with all the agents on them.
    let timeouts = &mut plan.timeouts;
    (timeouts.download, timeouts.preflight) = (Span::hours(6), Span::hours(6));
    (timeouts.activation, timeouts.probation) = (Span::hours(6), Span::hours(6));
    (timeouts.silence, timeouts.seen) = (Span::hours(24), Span::hours(24));
    Ok(plan)
}

/// What 30 % of a fleet must have to compare devices: `--devices` for a verdict without a person. One more is
/// in the lab; as many as have their turn later are controls at most by half.
pub(super) fn devices_for_a_sign_test() -> u32 {
    let by_canaries = (f64::from(CANARIES) / (CANARY_PERCENT / 100.0)).ceil();
    let by_controls = f64::from(CANARIES + 2 * CONTROLS);
    by_canaries.max(by_controls) as u32 + 1
}

pub(super) fn lab(device: DeviceId) -> Stage {
    Stage { devices: vec![device], soak: Span::minutes(5), ..Stage::named("lab") }
}

/// Everybody who is not in the lab runs the candidate beside the active bundle until labels have decided.
pub(super) fn shadow() -> Stage {
    Stage {
        mode: Mode::Shadow,
        size: Some(Share::Percent(100.0)),
        soak: Span::minutes(15),
        max_soak: Some(Span::hours(3)),
        gates: vec![Gate::Accuracy, Gate::Agreement],
        ..Stage::named("shadow")
    }
}

pub(super) fn canary(gates: &[Gate]) -> Stage {
    Stage {
        size: Some(Share::Percent(CANARY_PERCENT)),
        min: Some(2),
        soak: Span::minutes(10),
        max_soak: Some(Span::hours(3)),
        gates: gates.to_vec(),
        ..Stage::named("canary")
    }
}

pub(super) fn all() -> Stage {
    Stage { size: Some(Share::Percent(100.0)), dynamic: true, ..Stage::named("all") }
}

/// `text` as a name; the demo's own, so only a mistake in it could fail.
pub(super) fn parsed<T: FromStr<Err: Display>>(bundle: &str, text: &str) -> Result<T, DemoError> {
    let wrong = |error: T::Err| DemoError::Plan { bundle: bundle.to_owned(), reason: error.to_string() };
    text.parse().map_err(wrong)
}
