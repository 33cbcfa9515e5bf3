//! What the gates of a stage can find with the devices it has.

use super::{FleetFacts, GatePreview};
use crate::{
    evidence::{
        Gate, GateSettings,
        power::{GatePower, StageForecast},
    },
    rollout::{Arm, Membership, Mode, Plan, Span},
};

/// Taken for granted where no telemetry of the incumbent says better: the values at which research and
/// simulations of the gates were made.
const BAD_RATE: f64 = 0.01;
const REQUESTS_PER_HOUR: f64 = 60.0;
const LATENCY_SPREAD: f64 = 0.3;

/// One sentence per fact that is missing and matters to this plan.
pub(super) fn assumed(plan: &Plan, facts: &FleetFacts) -> Vec<String> {
    let asks = |gate| plan.gates.used().contains(&gate);
    let mut all = Vec::new();
    if facts.bad_rate.is_none() && asks(Gate::Errors) {
        all.push(format!(
            "no telemetry of the running bundle: {:.0} % bad device-hours are assumed",
            100.0 * BAD_RATE
        ));
    }
    if facts.latency_spread.is_none() && asks(Gate::Latency) {
        all.push(format!(
            "no latency history: a device's p95 is assumed to vary by a factor of {:.2} from hour to hour",
            LATENCY_SPREAD.exp()
        ));
    }
    if facts.requests_per_hour.is_none() && asks(Gate::Agreement) {
        all.push(format!(
            "no request counts: {REQUESTS_PER_HOUR:.0} shadowed requests per device and hour are assumed"
        ));
    }
    all
}

/// The gates that the stage asks, each with what it can do here.
pub(super) fn gates(
    plan: &Plan,
    index: usize,
    membership: &Membership,
    facts: &FleetFacts,
    power: &impl Fn(&StageForecast, &GateSettings) -> Vec<GatePower>,
) -> Vec<GatePreview> {
    let stage = &plan.stages[index];
    if stage.gates.is_empty() {
        return Vec::new();
    }
    let sizes = Sizes::of(plan, index, membership);
    let settings = GateSettings { gates: stage.gates.iter().copied().collect(), ..plan.gates.clone() };
    let labels = facts.labels_per_hour.unwrap_or(0.0);
    let statistics = stage.gates.iter().any(|gate| *gate != Gate::Hard);
    let powers = match statistics {
        true => power(
            &StageForecast {
                canaries: sizes.canaries,
                controls: sizes.controls,
                hours: stage.soak.as_secs() as f64 / 3_600.0,
                bad_rate: facts.bad_rate.unwrap_or(BAD_RATE),
                shadow_per_hour: if sizes.shadows {
                    facts.requests_per_hour.unwrap_or(REQUESTS_PER_HOUR)
                } else {
                    0.0
                },
                labels_per_hour: labels,
                latency_spread: facts.latency_spread.unwrap_or(LATENCY_SPREAD),
            },
            &settings,
        ),
        false => Vec::new(),
    };
    let strict = membership.summary.canary_stage.is_none_or(|canary| index <= usize::from(canary));
    let one = |gate: Gate| {
        let found = powers.iter().find(|power| power.gate == gate);
        let blunt = lacking(gate, sizes, labels, &settings);
        let (powerless, sentence) = match (gate, blunt, found) {
            (Gate::Hard, ..) => (false, hard(plan, strict)),
            (_, Some(why), _) => (true, why),
            (_, None, Some(power)) if power.powerless => (true, format!("powerless: {}", power.sentence)),
            (_, None, Some(power)) => (false, power.sentence.clone()),
            (_, None, None) => (false, "decides; what it finds is not simulated".to_owned()),
        };
        let found = found.filter(|_| !powerless && gate != Gate::Hard);
        GatePreview {
            gate,
            powerless,
            sentence,
            detection: found.map(|power| power.detection.clone()).unwrap_or_default(),
            smallest_found: found.and_then(|power| power.smallest_found),
            hours_to_safe: found.and_then(|power| power.hours_to_safe),
        }
    };
    stage.gates.iter().copied().map(one).collect()
}

/// How long a stage soaks for a harmless bundle: until its slowest gate calls it safe, but at least
/// `least`; without a gate, or with one that a person has to vouch for, the whole `soak`; with one that is
/// not safe by then, `most`. Gates that are not simulated say nothing about it.
pub(super) fn expected_soak(gates: &[GatePreview], least: Span, soak: Span, most: Span) -> Span {
    let asked =
        || gates.iter().filter(|gate| gate.gate != Gate::Hard && (gate.powerless || gate.is_simulated()));
    if asked().next().is_none() || asked().any(|gate| gate.powerless) {
        return soak;
    }
    let slowest =
        asked().map(|gate| gate.hours_to_safe).try_fold(0.0f64, |most, hours| Some(most.max(hours?)));
    slowest.map_or(most, |hours| Span::secs((hours * 3_600.0).ceil() as u64).max(least.min(soak)).min(most))
}

/// What a stage compares.
#[derive(Clone, Copy)]
struct Sizes {
    canaries: u32,
    controls: u32,
    /// It, or one before it, runs the bundle beside the active one: evidence runs on across stages.
    shadows: bool,
}

impl Sizes {
    fn of(plan: &Plan, index: usize, membership: &Membership) -> Self {
        let count = |wanted: &dyn Fn(&crate::rollout::Member) -> bool| {
            u32::try_from(membership.members.iter().filter(|m| wanted(m)).count()).unwrap_or(u32::MAX)
        };
        let mode = plan.stages[index].mode;
        Self {
            canaries: match mode {
                Mode::Shadow => count(&|m| m.shadow.map(usize::from) == Some(index)),
                Mode::Active => {
                    count(&|m| m.arm == Arm::Canary && m.match_of.is_some() && usize::from(m.cohort) <= index)
                }
            },
            controls: match mode {
                Mode::Shadow => 0,
                Mode::Active => count(&|m| m.arm == Arm::Control && usize::from(m.cohort) <= index),
            },
            shadows: plan.stages[..=index].iter().any(|stage| stage.mode == Mode::Shadow),
        }
    }
}

/// Why a gate can never decide here.
fn lacking(gate: Gate, sizes: Sizes, labels: f64, settings: &GateSettings) -> Option<String> {
    if gate.is_device_level() {
        let counted = [
            (sizes.canaries, "canaries", settings.canaries_needed(gate)),
            (sizes.controls, "controls", settings.min_controls),
        ];
        let short: Vec<_> = counted
            .iter()
            .filter(|(found, _, wanted)| found < wanted)
            .map(|(found, what, wanted)| format!("{found} {what}, needs {wanted}"))
            .collect();
        return (!short.is_empty()).then(|| format!("powerless: {}", short.join("; ")));
    }
    match gate {
        Gate::Agreement if !sizes.shadows => {
            Some("powerless: no stage runs it in shadow, so nothing is compared".to_owned())
        }
        Gate::Agreement | Gate::Accuracy if sizes.canaries < settings.min_devices => {
            Some(format!("powerless: {} devices, needs {}", sizes.canaries, settings.min_devices))
        }
        Gate::Accuracy if labels <= 0.0 => {
            Some("powerless: nobody posted labels last week, and it counts nothing else".to_owned())
        }
        _ => None,
    }
}

fn hard(plan: &Plan, strict: bool) -> String {
    let hard = &plan.hard;
    let rate = format!("more than {} failed of at least {} finished", hard.failed, hard.min_attempts);
    match strict {
        true => format!(
            "1 refused signature pauses; {} gone back, {} lost or {} failed preflight fail it, and so do {rate}",
            hard.rolled_back, hard.lost, hard.preflight_failed
        ),
        false => format!("{} refused signatures pause; {rate} fail it", hard.verify_failed),
    }
}
