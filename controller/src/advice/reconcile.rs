//! From what rules say now to what people are told: opened once, updated when it matters, resolved, suppressed.

use super::{
    finding::{Finding, FindingKey, RuleId},
    rule::{Judged, RULES, rule_of},
};
use edgefleet_shared::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// Told again after this time even if nothing changed much.
const REMIND: Duration = Duration::from_secs(7 * 24 * 3_600);
/// A number that changed by this factor is news.
const CHANGED: f64 = 1.5;
/// Nothing was judged for so long: the evidence ended, and with it the finding.
const STALE: Duration = Duration::from_secs(14 * 24 * 3_600);
/// Open and resting findings of one bundle kept; beyond it new ones of lower severity are not opened.
const MOST: usize = 500;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Standing {
    Open,
    /// True, but another open finding explains it: shown beneath that one, nobody is told.
    Explained {
        by: RuleId,
    },
    /// Kept until its cooldown is over.
    Resolved {
        at: Timestamp,
    },
}

/// A finding over time. One small document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tracked {
    pub finding: Finding,
    pub standing: Standing,
    pub opened: Timestamp,
    pub last_seen: Timestamp,
    pub judged: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clear_since: Option<Timestamp>,
    /// When somebody was last told, with which numbers.
    pub told: Timestamp,
    pub told_numbers: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum FindingChange {
    Opened { finding: Finding },
    Updated { finding: Finding },
    Explained { finding: Finding, by: RuleId },
    Resolved { finding: Finding, stale: bool },
}

impl FindingChange {
    pub fn finding(&self) -> &Finding {
        match self {
            Self::Opened { finding }
            | Self::Updated { finding }
            | Self::Explained { finding, .. }
            | Self::Resolved { finding, .. } => finding,
        }
    }
}

/// Pure and idempotent: the same judgement at the same time a second time changes nothing.
pub fn reconcile(
    previous: &[Tracked],
    judged: &[(RuleId, Judged)],
    now: Timestamp,
) -> (Vec<Tracked>, Vec<FindingChange>) {
    let mut known: BTreeMap<FindingKey, Tracked> =
        previous.iter().map(|tracked| (tracked.finding.key(), tracked.clone())).collect();
    let mut changes = Vec::new();
    let by_rule: BTreeMap<RuleId, &Judged> = judged.iter().map(|(id, judged)| (*id, judged)).collect();
    for (id, judged) in judged {
        for finding in judged.found.iter().filter(|finding| finding.rule == *id) {
            see(&mut known, finding, now);
        }
    }
    for (key, tracked) in &mut known {
        let judgement = by_rule.get(&key.rule);
        let seen = judgement.is_some_and(|judged| judged.found.iter().any(|finding| finding.key() == *key));
        if seen || matches!(tracked.standing, Standing::Resolved { .. }) {
            continue;
        }
        if judgement.is_some_and(|judged| judged.has_judged(key)) {
            tracked.judged = now;
            let since = *tracked.clear_since.get_or_insert(now);
            let clear_for = rule_of(key.rule).map_or(Duration::ZERO, |rule| rule.clear_for);
            if now.since(since) >= clear_for {
                resolve(tracked, &mut changes, now, false);
            }
        } else if now.since(tracked.judged) >= STALE {
            resolve(tracked, &mut changes, now, true);
        }
    }
    explain(&mut known, &mut changes, now);
    known.retain(|key, tracked| match tracked.standing {
        Standing::Resolved { at } => rule_of(key.rule).is_some_and(|rule| now.since(at) < rule.cooldown),
        Standing::Open | Standing::Explained { .. } => true,
    });
    (known.into_values().collect(), changes)
}

/// A finding that rests (resolved a short while ago) stays silent; one that is new waits for [`explain`].
fn see(known: &mut BTreeMap<FindingKey, Tracked>, finding: &Finding, now: Timestamp) {
    let key = finding.key();
    if let Some(tracked) = known.get_mut(&key) {
        if let Standing::Resolved { at } = tracked.standing
            && rule_of(key.rule).is_some_and(|rule| now.since(at) < rule.cooldown)
            && tracked.finding.severity >= finding.severity
        {
            return;
        }
        let since = match tracked.standing {
            // What comes back after its rest is a new one.
            Standing::Resolved { .. } => finding.since,
            Standing::Open | Standing::Explained { .. } => tracked.finding.since.min(finding.since),
        };
        if matches!(tracked.standing, Standing::Resolved { .. }) {
            *tracked = fresh(finding, now);
        }
        tracked.finding = Finding { since, ..finding.clone() };
        (tracked.last_seen, tracked.judged, tracked.clear_since) = (now, now, None);
    } else if known.len() < MOST {
        known.insert(key, fresh(finding, now));
    }
}

/// Not yet told to anybody: `told` lies before everything.
fn fresh(finding: &Finding, now: Timestamp) -> Tracked {
    Tracked {
        finding: finding.clone(),
        standing: Standing::Open,
        opened: now,
        last_seen: now,
        judged: now,
        clear_since: None,
        told: Timestamp::EPOCH,
        told_numbers: BTreeMap::new(),
    }
}

fn resolve(tracked: &mut Tracked, changes: &mut Vec<FindingChange>, now: Timestamp, stale: bool) {
    if tracked.told > Timestamp::EPOCH {
        changes.push(FindingChange::Resolved { finding: tracked.finding.clone(), stale });
    }
    tracked.standing = Standing::Resolved { at: now };
}

/// The strongest rule speaks. Then: who has to be told what.
fn explain(known: &mut BTreeMap<FindingKey, Tracked>, changes: &mut Vec<FindingChange>, now: Timestamp) {
    let open: Vec<FindingKey> = known
        .iter()
        .filter(|(_, tracked)| !matches!(tracked.standing, Standing::Resolved { .. }))
        .map(|(key, _)| key.clone())
        .collect();
    for (key, tracked) in known.iter_mut() {
        if matches!(tracked.standing, Standing::Resolved { .. }) {
            continue;
        }
        let stronger = rule_of(key.rule).map_or(&[][..], |rule| rule.stronger);
        let by = open
            .iter()
            .find(|other| {
                // Of one rule the widest scope speaks: a cohort's collapse is not told once more per device.
                let wider = other.rule == key.rule && other.scope != key.scope;
                (wider || stronger.contains(&other.rule)) && other.scope.covers(&key.scope)
            })
            .map(|other| other.rule);
        let finding = tracked.finding.clone();
        match (by, &tracked.standing) {
            (Some(by), Standing::Explained { by: before }) if *before == by => {}
            (Some(by), _) => {
                tracked.standing = Standing::Explained { by };
                if tracked.told > Timestamp::EPOCH {
                    changes.push(FindingChange::Explained { finding, by });
                }
            }
            (None, standing) => {
                let first = tracked.told == Timestamp::EPOCH;
                let back = matches!(standing, Standing::Explained { .. });
                let changed = has_changed(&tracked.told_numbers, &finding.numbers);
                if first || back || changed || now.since(tracked.told) >= REMIND {
                    tracked.told = now;
                    tracked.told_numbers = finding.numbers.clone();
                    changes.push(match first {
                        true => FindingChange::Opened { finding },
                        false => FindingChange::Updated { finding },
                    });
                }
                tracked.standing = Standing::Open;
            }
        }
    }
}

fn has_changed(before: &BTreeMap<String, f64>, now: &BTreeMap<String, f64>) -> bool {
    now.iter().any(|(name, value)| {
        let Some(before) = before.get(name) else { return false };
        let (small, large) = (before.abs().min(value.abs()), before.abs().max(value.abs()));
        // Probabilities change by orders of magnitude without being news.
        name != "p" && large > 1e-9 && large / small.max(1e-9) >= CHANGED
    })
}

/// Whether all rules are there once: a table that lost one would be silent.
pub fn rules_are_complete() -> bool {
    RULES.iter().map(|rule| rule.id).collect::<std::collections::BTreeSet<_>>().len() == RULES.len()
}

/// What people thought of a rule's findings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    pub useful: u64,
    pub not_useful: u64,
}

/// Precision of one rule, with a 95 % confidence sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Precision {
    pub rule: RuleId,
    pub marks: Marks,
    pub precision: Option<f64>,
    pub low: f64,
    pub high: f64,
}

/// One mark per finding and person, as (rule, was it useful). In the order of the rules; rules without marks too.
pub fn precision(marks: &[(RuleId, bool)]) -> Vec<Precision> {
    let mut by_rule: BTreeMap<RuleId, Marks> = RULES.iter().map(|rule| (rule.id, Marks::default())).collect();
    for (rule, useful) in marks {
        let entry = by_rule.entry(*rule).or_default();
        match useful {
            true => entry.useful += 1,
            false => entry.not_useful += 1,
        }
    }
    let of = |(rule, marks): (RuleId, Marks)| {
        let n = marks.useful + marks.not_useful;
        let (low, high) = crate::evidence::interval::proportion(marks.useful as f64, n as f64, 0.05);
        let precision = (n > 0).then(|| marks.useful as f64 / n as f64);
        Precision { rule, marks, precision, low, high }
    };
    by_rule.into_iter().map(of).collect()
}
