//! The table of rules: what each asks before it speaks, when it is silent again, and which rule knows better.

use super::{
    evidence::Evidence,
    finding::{Finding, FindingKey, RuleId, Scope},
    rules::*,
};
use edgefleet_shared::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, time::Duration};

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

/// What one rule made of the evidence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    pub found: Vec<Finding>,
    /// Scopes that were looked at: a finding of theirs that is not in `found` is no longer so. What is not here says
    /// nothing: no evidence is not the end of a problem.
    pub looked_at: BTreeSet<Scope>,
    /// Everything was: for rules about what is in one list.
    pub all: bool,
}

impl Judged {
    pub(super) fn look(&mut self, scope: &Scope, found: Option<Finding>) {
        self.looked_at.insert(scope.clone());
        self.found.extend(found);
    }
    pub(super) fn all(found: Vec<Finding>) -> Self {
        Self { found, looked_at: BTreeSet::new(), all: true }
    }
    pub fn has_judged(&self, key: &FindingKey) -> bool {
        self.all || self.looked_at.contains(&key.scope)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdviceSettings {
    /// Loss of accuracy that matters, as a share (`d` of the rules).
    pub drop: f64,
    /// Labels below which no rule speaks of accuracy.
    pub min_labels: u64,
    /// Rows below which no rule speaks of shares.
    pub min_rows: u64,
}

impl Default for AdviceSettings {
    fn default() -> Self {
        Self { drop: 0.05, min_labels: 100, min_rows: 200 }
    }
}

type Check = fn(&Evidence, &AdviceSettings, Timestamp) -> Judged;

pub struct Rule {
    pub id: RuleId,
    pub title: &'static str,
    /// What it takes for the rule to speak.
    pub minimum: &'static str,
    pub resolves: &'static str,
    /// After it was resolved or marked not useful, the same finding stays silent for this time.
    pub cooldown: Duration,
    /// A finding is resolved once it was judged and not found for this time.
    pub clear_for: Duration,
    /// Open findings of these rules on the same or a wider scope explain this one.
    pub stronger: &'static [RuleId],
    pub(super) check: Check,
}

const fn rule(
    id: RuleId,
    title: &'static str,
    minimum: &'static str,
    resolves: &'static str,
    (cooldown, clear_for): (u64, u64),
    stronger: &'static [RuleId],
    check: Check,
) -> Rule {
    let (cooldown, clear_for) = (Duration::from_secs(cooldown), Duration::from_secs(clear_for));
    Rule { id, title, minimum, resolves, cooldown, clear_for, stronger, check }
}

use RuleId::*;

/// In the order of their numbers.
pub const RULES: [Rule; 24] = [
    rule(
        A01,
        "one device sees something else",
        "a local drift incident (two of three looks)",
        "the incident is resolved for 3 h",
        (DAY, 3 * HOUR),
        &[A09, A10],
        inputs::one_device,
    ),
    rule(
        A02,
        "inputs have moved, answers hold",
        "a population incident and 200 rows with a confidence",
        "the incident is resolved, or accuracy falls",
        (7 * DAY, 3 * HOUR),
        &[A03, A08, A09, A10, A11],
        inputs::harmless_shift,
    ),
    rule(
        A03,
        "inputs have moved and accuracy is estimated to fall",
        "a population incident, 200 rows, the whole interval below",
        "the estimate is back or the incident resolved for 6 h",
        (DAY, 6 * HOUR),
        &[A08, A09, A10],
        inputs::outside_of_data,
    ),
    rule(
        A04,
        "audits find fewer right answers, inputs and estimate have not moved",
        "100 labels before and now",
        "audits are back within the margin for 1 day",
        (7 * DAY, DAY),
        &[A08],
        audits::concept_drift,
    ),
    rule(
        A05,
        "confidence does not mean what it says",
        "200 labels",
        "calibration error below the limit for 1 day",
        (7 * DAY, DAY),
        &[A04, A03],
        calibration::off,
    ),
    rule(
        A06,
        "many answers lie near the threshold",
        "200 rows, 100 labels, a threshold",
        "another threshold no longer promises more for 1 day",
        (7 * DAY, DAY),
        &[A05, A03],
        calibration::threshold,
    ),
    rule(
        A07,
        "a class dominates or has vanished",
        "200 answers",
        "classes are back for 3 h",
        (DAY, 3 * HOUR),
        &[A03, A08, A10],
        classes::collapse,
    ),
    rule(
        A08,
        "drift began when the bundle came",
        "a population incident within 3 h after activation",
        "the incident is resolved for 3 h",
        (DAY, 3 * HOUR),
        &[],
        release::regression,
    ),
    rule(
        A09,
        "inputs cannot be taken as they come",
        "200 rows, 2 % faults, beyond chance",
        "faults are back for 3 h",
        (DAY, 3 * HOUR),
        &[],
        faults::rejected,
    ),
    rule(
        A10,
        "a sensor is stuck or missing",
        "50 rows of the channel",
        "values vary again for 3 h",
        (DAY, 3 * HOUR),
        &[],
        faults::stuck,
    ),
    rule(
        A11,
        "drift comes and goes by the clock",
        "7 days of hourly scores (3 weeks for weekdays)",
        "the rhythm is gone for 3 days",
        (14 * DAY, 3 * DAY),
        &[A08],
        season::rhythm,
    ),
    rule(
        A12,
        "one part of the fleet is worse than the rest",
        "100 labels in it and in the rest",
        "the gap is within the margin for 1 day",
        (7 * DAY, DAY),
        &[A04],
        slices::worst,
    ),
    rule(
        A13,
        "mistakes concentrate on one pair of classes",
        "30 mistakes",
        "the pair's share is down for 1 day",
        (14 * DAY, DAY),
        &[],
        classes::pair,
    ),
    rule(
        A14,
        "the candidate is ready for canaries",
        "100 labels on inputs both answered, 3 devices",
        "the candidate is no longer compared, or no longer ahead",
        (7 * DAY, HOUR),
        &[],
        shadow::ready,
    ),
    rule(
        A15,
        "two bundles err differently",
        "200 labels on inputs both answered, 10 % disagreement",
        "they no longer disagree for 1 day",
        (14 * DAY, DAY),
        &[A14],
        shadow::different_errors,
    ),
    rule(
        A16,
        "requests wait longer than they are worked on",
        "200 requests now and usually",
        "the queue is down for 1 h",
        (DAY, HOUR),
        &[A17],
        latency::overload,
    ),
    rule(
        A17,
        "heat slows inference",
        "1 h of health now",
        "throttling is over for 1 h",
        (DAY, HOUR),
        &[],
        latency::thermal,
    ),
    rule(
        A18,
        "few operators take most of the time",
        "a profile of the graph",
        "the profile has changed",
        (30 * DAY, HOUR),
        &[A19],
        engines::heavy_nodes,
    ),
    rule(
        A19,
        "int8 brings nothing on this hardware",
        "medians of both on one engine",
        "int8 is faster",
        (30 * DAY, HOUR),
        &[],
        engines::slow_int8,
    ),
    rule(
        A20,
        "the same inputs come again and again",
        "1,000 inputs",
        "repeats are down, or answers are remembered",
        (30 * DAY, DAY),
        &[],
        latency::repeats,
    ),
    rule(
        A21,
        "preparing takes longer than inferring",
        "200 requests",
        "it no longer does for 1 day",
        (30 * DAY, DAY),
        &[],
        latency::decoding,
    ),
    rule(
        A22,
        "a capture quota does not fit",
        "3 days",
        "the quota fits for 1 day",
        (7 * DAY, DAY),
        &[],
        captures::quota,
    ),
    rule(
        A23,
        "an estimate cannot be trusted here",
        "24 h with 200 labels",
        "it was right again (half of the margin)",
        (7 * DAY, DAY),
        &[],
        audits::untrusted,
    ),
    rule(
        A24,
        "devices still run an older bundle",
        "3 days after assignment, 5 % behind",
        "fewer are behind",
        (7 * DAY, HOUR),
        &[],
        release::stragglers,
    ),
];

pub fn rule_of(id: RuleId) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.id == id)
}

/// All rules over one bundle's evidence.
pub fn advise(evidence: &Evidence, settings: &AdviceSettings, now: Timestamp) -> Vec<(RuleId, Judged)> {
    RULES.iter().map(|rule| (rule.id, (rule.check)(evidence, settings, now))).collect()
}
