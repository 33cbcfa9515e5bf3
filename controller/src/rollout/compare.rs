//! What one device contributes to the comparison of the arms, and a canary against its controls, once.

use super::{
    assignment::Arm,
    attempt::{Attempt, AttemptState, Speed, WindowSaid},
    event::Move,
    hear::observed,
    plan::Plan,
};
use crate::evidence::{self, BeforeAfter, Disagreement, Observation, Reporting, latency_vote};
use edgefleet_shared::time::Timestamp;
use std::collections::BTreeMap;

/// Results that a mean of p95 takes in; whoever has that many knows it well.
const MOST_RESULTS: f64 = 1e9;
/// What a window weighs at most: beyond, its p95 wanders for other reasons than chance.
const MOST_WEIGHT: f64 = 1_000.0;

impl Speed {
    /// A window counts by its results: one that a switch cut short says little.
    pub fn take(&mut self, p95_ms: f64, results: u64) {
        if p95_ms.is_finite() && p95_ms > 0.0 && self.results < MOST_RESULTS {
            let weight = (results as f64).min(MOST_WEIGHT);
            self.sum_ln += weight * p95_ms.ln();
            self.results += weight;
        }
    }
    /// Milliseconds; 0 without results.
    pub fn mean_ms(self) -> f64 {
        self.mean_ln().map_or(0.0, f64::exp)
    }
    /// Logarithm of [`Self::mean_ms`]; `None` without results.
    pub fn mean_ln(self) -> Option<f64> {
        (self.results > 0.0).then(|| self.sum_ln / self.results)
    }
}

impl Attempt {
    fn arm_in_evidence(&self) -> Option<evidence::Arm> {
        match self.arm {
            Arm::Canary => Some(evidence::Arm::Canary),
            Arm::Control => Some(evidence::Arm::Control),
            Arm::None => None,
        }
    }

    /// A canary that activates is alive, so a control joins only if it is: one that has been switched off for
    /// weeks has no bad windows, and among such controls any canary looks bad. Who falls silent later stays,
    /// in both arms alike.
    pub(super) fn control_joins(
        &mut self,
        last_seen: Option<Timestamp>,
        plan: &Plan,
        now: Timestamp,
        moves: &mut Vec<Move>,
    ) {
        let alive = last_seen.is_some_and(|seen| now.since(seen) < plan.wait(plan.timeouts.silence));
        let held = self.arm == Arm::Control && self.state == AttemptState::Held;
        if alive && held && self.compared.joined.is_none() {
            self.compared.joined = Some(now);
            moves.push(observed(Observation::Joined {
                arm: evidence::Arm::Control,
                cohort: self.cohort,
                stratum: self.stratum.clone(),
                site: self.site.clone(),
            }));
        }
    }

    pub(super) fn leave_risk_set(&mut self, moves: &mut Vec<Move>) {
        let Some(arm) = self.arm_in_evidence() else { return };
        if self.compared.joined.is_some() && !self.compared.left {
            self.compared.left = true;
            moves.push(observed(Observation::Left {
                arm,
                cohort: self.cohort,
                stratum: self.stratum.clone(),
                site: self.site.clone(),
            }));
        }
    }

    pub(super) fn window(&mut self, window: &WindowSaid, plan: &Plan, moves: &mut Vec<Move>) {
        let Some(arm) = self.arm_in_evidence() else { return };
        let of_candidate = window.attempt.rollout == self.rollout;
        let counts = match (self.arm, self.compared.joined) {
            // The risk set of a canary is about the candidate, that of a control about the incumbent.
            (Arm::Canary, Some(_)) => of_candidate,
            (_, Some(joined)) => !of_candidate && self.state == AttemptState::Held && window.start >= joined,
            (_, None) => false,
        };
        let before = !of_candidate && self.compared.joined.is_none_or(|joined| window.start < joined);
        if !(counts || before) || !self.seen.take(window.key) {
            return;
        }
        if before {
            return self.compared.before.take(window.p95_ms.unwrap_or(0.0), window.requests);
        }
        self.compared.windows = self.compared.windows.saturating_add(1);
        let until = self.compared.joined.map(|joined| joined + plan.wait(plan.assign.compare));
        if until.is_some_and(|until| window.start <= until) {
            self.compared.after.take(window.p95_ms.unwrap_or(0.0), window.requests);
        }
        let hour = window.start.as_secs() / 3_600;
        if window.bad && !self.compared.left {
            self.compared.left = true;
            moves.push(observed(Observation::FirstBad {
                device: self.device.clone(),
                arm,
                cohort: self.cohort,
                stratum: self.stratum.clone(),
                site: self.site.clone(),
                hour,
            }));
        }
        self.device_hour(hour, window, arm, moves);
        if let Some((n, x)) = window.exceed.filter(|_| self.arm == Arm::Canary) {
            moves.push(observed(Observation::Exceeded { device: self.device.clone(), n, x }));
        }
        if !window.classes.is_empty() {
            let classes = window.classes.clone();
            moves.push(observed(Observation::Drift { device: self.device.clone(), arm, classes }));
        }
    }

    /// A device-hour is told once it is over: when a window of a later one comes. What comes late for an hour
    /// that is over is dropped, in both arms alike.
    fn device_hour(&mut self, hour: u64, window: &WindowSaid, arm: evidence::Arm, moves: &mut Vec<Move>) {
        if window.requests == 0 {
            return;
        }
        match self.compared.hour {
            Some((open, bad)) if open == hour => self.compared.hour = Some((hour, bad || window.bad)),
            Some((open, _)) if open > hour => {}
            Some((_, bad)) => {
                moves.push(observed(Observation::DeviceHour { device: self.device.clone(), arm, bad }));
                self.compared.hour = Some((hour, window.bad));
            }
            None => self.compared.hour = Some((hour, window.bad)),
        }
    }

    pub(super) fn shadow_window(
        &self,
        n: u64,
        disagree: u64,
        classes: &BTreeMap<String, (u64, u64)>,
        moves: &mut Vec<Move>,
    ) {
        let classes = classes
            .iter()
            .map(|(class, (n, disagree))| (class.clone(), Disagreement { n: *n, disagree: *disagree }))
            .collect();
        moves.push(observed(Observation::Shadow {
            device: self.device.clone(),
            stratum: self.stratum.clone(),
            n,
            disagree,
            classes,
        }));
    }

    fn speeds(&self) -> BeforeAfter {
        BeforeAfter { before_ms: self.compared.before.mean_ms(), after_ms: self.compared.after.mean_ms() }
    }
}

/// When [`Move::CompareDue`] asks for it: the canary's latency vote and who has reported, as observations.
/// The canary remembers that it was done; the second call gives nothing.
pub fn compare(canary: &mut Attempt, controls: &[&Attempt], plan: &Plan) -> Vec<Move> {
    if canary.compared.done || canary.arm != Arm::Canary {
        return Vec::new();
    }
    canary.compared.done = true;
    canary.deadline = canary.next_deadline(plan);
    let joined: Vec<_> =
        controls.iter().filter(|c| c.match_of == canary.match_of && c.compared.joined.is_some()).collect();
    let speeds: Vec<_> = joined.iter().map(|control| control.speeds()).collect();
    let vote = latency_vote(canary.speeds(), &speeds, plan.gates.latency.factor);
    let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let heard = joined.iter().filter(|control| control.compared.windows > 0).count();
    vec![
        observed(Observation::Latency {
            device: canary.device.clone(),
            stratum: canary.stratum.clone(),
            vote,
        }),
        observed(Observation::Telemetry {
            canary: Reporting { expected: 1, received: u32::from(canary.compared.windows > 0) },
            control: Reporting { expected: narrow(joined.len()), received: narrow(heard) },
        }),
    ]
}
