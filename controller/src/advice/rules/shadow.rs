//! A14 and A15: what a candidate beside the active bundle is worth.

use super::super::{
    action::Action,
    evidence::{Evidence, Shadow},
    finding::{Confidence, Finding, RuleId, Severity, percent},
    rule::{AdviceSettings, Judged},
    sizing::canary_size,
};
use edgefleet_shared::time::Timestamp;

/// No verdict rests on fewer devices (DECISIONS 26).
const DEVICES: u32 = 3;
/// The candidate may be so much worse and still count as equal ...
const EQUAL: f64 = 0.02;
/// ... if it takes at most this part of the time.
const CHEAPER: f64 = 0.9;
const DISAGREE: f64 = 0.1;

/// Labelled inputs, candidate's accuracy less the active one's, and the half width of its 95 % interval (paired).
fn difference(shadow: &Shadow) -> (u64, f64, f64) {
    let parts = [shadow.wins, shadow.losses, shadow.both_right, shadow.both_wrong];
    let n = parts.into_iter().fold(0, u64::saturating_add);
    let (wins, losses, all) = (shadow.wins as f64, shadow.losses as f64, (n as f64).max(1.0));
    let value = (wins - losses) / all;
    // One more of each: no win and no loss in 100 is not certainty.
    let spread = ((wins + losses + 2.0) / all - value * value).max(0.0);
    (n, value, 1.96 * (spread / all).sqrt())
}

pub(in super::super) fn ready(evidence: &Evidence, settings: &AdviceSettings, now: Timestamp) -> Judged {
    let (Some(scope), Some(shadow)) = (evidence.bundle_scope(), &evidence.shadow) else {
        return Judged::default();
    };
    let (n, value, half) = difference(shadow);
    if n < settings.min_labels || shadow.devices < DEVICES {
        return Judged::default();
    }
    let mut judged = Judged::default();
    let better = value - half > 0.0;
    let equal_and_cheaper = value - half > -EQUAL && shadow.cost.is_some_and(|cost| cost <= CHEAPER);
    let found = (better || equal_and_cheaper).then(|| {
        let size = canary_size(shadow.fleet, shadow.bad_rate);
        let candidate = shadow.candidate.clone();
        let (canaries, controls, hours) = size.as_ref().map_or((shadow.fleet.min(3), 0, 72.0), |size| {
            (size.canaries, size.controls, size.hours)
        });
        let power = match size.as_ref().map(|size| size.smallest_found) {
            Some(Some(times)) => format!("{canaries} canaries beside {controls} controls for {hours:.0} h find errors of {times} times the rate in 80 % of cases"),
            Some(None) => format!("{canaries} canaries beside {controls} controls for {hours:.0} h; even five times the errors would often pass unseen, so labels must decide"),
            None => "The fleet is too small for gates that compare devices: let labels and a person decide".into(),
        };
        let cost = shadow.cost.map_or(String::new(), |cost| format!(", at {cost:.2} times the inference time"));
        let action = Action::StartCanary { bundle: candidate.clone(), canaries, controls, hours };
        Finding::new(RuleId::A14, scope.clone(), now, action)
            .detail(candidate.to_string())
            .rated(Severity::Info, if better { Confidence::High } else { Confidence::Medium })
            .number("gain", value)
            .number("gain_low", value - half)
            .number("labels", n as f64)
            .number("canaries", f64::from(canaries))
            .number("cost", shadow.cost.unwrap_or(f64::NAN))
            .says(
                format!(
                    "Beside the active bundle, {candidate} was right {} times where that was wrong and wrong {} times where it was right, over {n} labelled inputs of {} devices: {:+.1} points (from {:+.1}){cost}.",
                    shadow.wins,
                    shadow.losses,
                    shadow.devices,
                    100.0 * value,
                    100.0 * (value - half)
                ),
                "It is better, or as good and cheaper, on the same inputs.",
                format!("Start a canary. {power}."),
            )
    });
    judged.look(&scope, found);
    judged
}

pub(in super::super) fn different_errors(
    evidence: &Evidence,
    settings: &AdviceSettings,
    now: Timestamp,
) -> Judged {
    let (Some(scope), Some(shadow)) = (evidence.bundle_scope(), &evidence.shadow) else {
        return Judged::default();
    };
    let (n, value, half) = difference(shadow);
    if n < 2 * settings.min_labels || shadow.devices < DEVICES || shadow.compared < settings.min_rows {
        return Judged::default();
    }
    let mut judged = Judged::default();
    let share = shadow.disagree.min(shadow.compared) as f64 / shadow.compared as f64;
    let equal = value.abs() <= EQUAL && half <= 3.0 * EQUAL;
    let found = (share >= DISAGREE && equal).then(|| {
        let either = shadow.wins.saturating_add(shadow.losses).saturating_add(shadow.both_right) as f64 / n as f64;
        let action = Action::LabelDisagreements { candidate: shadow.candidate.clone(), count: 200 };
        Finding::new(RuleId::A15, scope.clone(), now, action)
            .detail(shadow.candidate.to_string())
            .rated(Severity::Info, Confidence::Medium)
            .number("disagree", share)
            .number("difference", value)
            .number("either_right", either)
            .number("labels", n as f64)
            .says(
                format!(
                    "{} disagrees with the active bundle on {} of {} inputs, yet both are right equally often ({:+.1} points over {n} labels); one of them is right on {}.",
                    shadow.candidate,
                    percent(share),
                    shadow.compared,
                    100.0 * value,
                    percent(either)
                ),
                "They make different mistakes, so each knows something that the other does not.",
                "Label these inputs first, they teach most; where it matters, average both or give no answer when they disagree.".into(),
            )
    });
    judged.look(&scope, found);
    judged
}
