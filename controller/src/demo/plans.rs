//! The plans of the demo: written as a fleet of this size would write them, waiting times divided.

use super::{DemoError, DemoOptions, load::SOURCE};
use crate::{
    evidence::Gate,
    rollout::{Mode, Plan, Share, Span, Stage, plan::OnOverlap},
};
use edgefleet_shared::ids::DeviceId;
use std::{fmt::Display, str::FromStr};

/// Canaries and controls below which no comparison is made; the sign test itself may need more canaries.
const CANARIES: u32 = 10;
const CONTROLS: u32 = 10;
/// Share of the drawn devices in the canary stage.
const CANARY_SHARE: f64 = 0.3;
/// No canary stage has fewer: one device alone proves nothing, two that go back are a hard failure.
const LEAST_CANARIES: usize = 2;

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
    // Controls are for comparing devices; a plan that does not leaves nobody out of its shadow stage.
    let compares = stages.iter().flat_map(|stage| &stage.gates).any(|gate| gate.is_device_level());
    plan.assign.controls_per_canary = u32::from(compares);
    plan.stages = stages;
    plan.probation = probation;
    (plan.gates.min_canaries, plan.gates.min_controls) = (CANARIES, CONTROLS);
    plan.gates.accuracy.sources = [format!("local:{SOURCE}")].into();
    plan.gates.accuracy.max_drop = 0.03;
    // Answers within half a millisecond, on processors that all agents share, wander by half: a canary counts as
    // slower from twice its controls on.
    plan.gates.latency.factor = 2.0;
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

/// Canaries among `drawn` devices.
fn canaries(drawn: usize) -> usize {
    ((drawn as f64 * CANARY_SHARE).ceil() as usize).max(LEAST_CANARIES)
}

/// The smallest `--devices` with enough canaries and controls for the sign test of `plan`: one is in the lab,
/// and of those left after the canaries at most half are controls.
pub(super) fn devices_for_a_sign_test(plan: &Plan) -> usize {
    let mut plan = plan.clone();
    plan.settle();
    let needed = plan.gates.canaries_needed(Gate::Latency) as usize;
    let enough = |drawn: &usize| {
        let canaries = canaries(*drawn);
        canaries >= needed && (drawn - canaries) / 2 >= CONTROLS as usize
    };
    (LEAST_CANARIES..).find(enough).map_or(usize::MAX, |drawn| drawn + 1)
}

pub(super) fn lab(device: DeviceId) -> Stage {
    Stage { devices: vec![device], soak: Span::minutes(5), ..Stage::named("lab") }
}

/// Everybody but the lab and the controls runs the candidate beside the active bundle until labels have decided.
pub(super) fn shadow(drawn: usize) -> Stage {
    Stage {
        mode: Mode::Shadow,
        // A number: shares of a small fleet would be three devices.
        size: Some(Share::Count(drawn as u64)),
        soak: Span::minutes(15),
        max_soak: Some(Span::hours(3)),
        gates: vec![Gate::Accuracy, Gate::Agreement],
        ..Stage::named("shadow")
    }
}

pub(super) fn canary(drawn: usize, gates: &[Gate]) -> Stage {
    Stage {
        size: Some(Share::Count(canaries(drawn) as u64)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_devices_are_too_few_for_a_sign_test_and_forty_are_not() {
        assert_eq!((canaries(4), canaries(8), canaries(39)), (2, 3, 12));
        let options = DemoOptions {
            model: "".into(),
            dir: "".into(),
            agent_bin: "".into(),
            devices: 40,
            chapter: None,
            time_scale: 300,
            keep: false,
            quiet: true,
        };
        let stages = vec![shadow(39), canary(39, &[Gate::Hard, Gate::Latency]), all()];
        let plan = plan(&options, "digits@2", stages, Span::minutes(10)).unwrap();
        let needed = devices_for_a_sign_test(&plan);
        assert!((9..=40).contains(&needed), "{needed}");
    }
}
