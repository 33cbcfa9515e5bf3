//! Pure: what labelled captures say of accuracy, of confidence and of the quotas of strategies.

use crate::{
    advice::{Audited, CaptureCounts, ScoredLabel, Slice},
    captures::{
        CaptureRecord, Estimate, LabelState, Row,
        audited::{Z95, random_only},
    },
};
use edgefleet_shared::{
    capture::{CapturePolicy, Reason},
    ids::{BundleName, DeviceId},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

const DAY: Duration = Duration::from_secs(86_400);
/// Captures older than this are not asked any more.
pub(super) const OLDEST: Duration = Duration::from_secs(21 * 86_400);
/// What counts as now: the shortest of these with enough labels, since labels come late and are few.
const NOW_DAYS: [u32; 3] = [1, 3, 7];
/// Labels of confidences and of what was taken for what are of the last week.
const WEEK: Duration = Duration::from_secs(7 * 86_400);
/// Mistakes from which on captures say more of them than windows do.
const MISTAKES: f64 = 30.0;
/// A quota that was full sooner tells no more of how much more there was.
const SHORTEST: Duration = Duration::from_secs(3_600);

/// One capture, as far as evidence needs it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    pub bundle: BundleName,
    pub device: DeviceId,
    pub at: Timestamp,
    pub row: Row,
    pub reasons: Vec<Reason>,
    pub is_labelled: bool,
    pub inclusion: Option<f64>,
    pub confidence: Option<f64>,
    pub predicted: Option<String>,
    pub truth: Option<String>,
}

impl From<&CaptureRecord> for Seen {
    fn from(record: &CaptureRecord) -> Self {
        let document = &record.document;
        let predicted = document.predicted.as_ref();
        Self {
            bundle: document.bundle.clone(),
            device: document.prediction.device.clone(),
            at: document.at,
            row: record.row(),
            reasons: document.reasons.clone(),
            is_labelled: record.state() == LabelState::Labelled,
            inclusion: document.inclusion,
            confidence: predicted.and_then(|predicted| predicted.confidence),
            predicted: predicted.map(|predicted| predicted.class.clone()),
            truth: record.label.as_ref().and_then(|label| label.label.clone()),
        }
    }
}

impl Seen {
    /// One over the probability that it was kept.
    fn weight(&self) -> Option<f64> {
        self.inclusion.filter(|p| *p > 0.0 && *p <= 1.0).map(|p| 1.0 / p)
    }
}

/// What the captures of one scope say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Audit {
    pub now: Option<Audited>,
    pub before: Option<Audited>,
    pub labels: Vec<ScoredLabel>,
    pub confusion: Vec<(String, String, f64)>,
}

/// Of captures in any order; `least` labels make a time worth being called now.
pub(super) fn audit<'a>(
    captures: impl Iterator<Item = &'a Seen> + Clone,
    least: u64,
    now: Timestamp,
) -> Audit {
    let between = |from: Timestamp, until: Timestamp| {
        let rows = captures.clone().filter(|one| one.at >= from && one.at < until).map(|one| one.row);
        random_only(rows, Z95).map(told)
    };
    let (mut start, mut found) = (now, None);
    for days in NOW_DAYS {
        start = now - DAY * days;
        // A device's clock may be a little ahead.
        found = between(start, now + DAY);
        if found.is_some_and(|audited: Audited| audited.labels >= least) {
            break;
        }
    }
    let mut recent: Vec<&Seen> =
        captures.clone().filter(|one| one.truth.is_some() && one.at >= now - WEEK).collect();
    recent.sort_by_key(|one| one.at);
    Audit {
        now: found,
        before: between(now - OLDEST, start),
        labels: recent.iter().filter_map(|one| scored(one)).collect(),
        confusion: confusion(&recent),
    }
}

fn told(estimate: Estimate) -> Audited {
    let Estimate { accuracy, low, high, labelled, effective_n } = estimate;
    Audited { accuracy, low, high, labels: labelled, effective: effective_n }
}

fn scored(one: &Seen) -> Option<ScoredLabel> {
    Some(ScoredLabel {
        confidence: one.confidence?,
        predicted: one.predicted.clone()?,
        correct: one.row.correct?,
        weight: one.weight()?,
    })
}

/// Truth, predicted and weight, scaled so that all weights together are what the labels are worth (Kish): a rule that
/// asks for 30 mistakes means mistakes that somebody saw.
fn confusion(recent: &[&Seen]) -> Vec<(String, String, f64)> {
    let mut cells = BTreeMap::<(&str, &str), f64>::new();
    let (mut sum, mut squares) = (0.0, 0.0);
    for one in recent {
        let (Some(truth), Some(said), Some(weight)) = (&one.truth, &one.predicted, one.weight()) else {
            continue;
        };
        sum += weight;
        squares += weight * weight;
        *cells.entry((truth, said)).or_default() += weight;
    }
    let scale = if squares > 0.0 { sum / squares } else { 0.0 };
    cells.into_iter().map(|((truth, said), w)| (truth.to_owned(), said.to_owned(), w * scale)).collect()
}

/// Puts into a slice what captures say better than windows do.
pub(super) fn fill(slice: &mut Slice, audit: Audit, least: u64) {
    let enough = audit.now.is_some_and(|audited| audited.labels >= least);
    // Both from one source: they are compared with each other.
    if enough || slice.audited.is_none() {
        slice.audited = audit.now;
        slice.audited_before = audit.before;
    }
    slice.labels = audit.labels;
    let mistakes = audit.confusion.iter().filter(|(truth, said, _)| truth != said);
    if slice.confusion.is_empty() || mistakes.map(|(_, _, weight)| weight).sum::<f64>() >= MISTAKES {
        slice.confusion = audit.confusion;
    }
}

/// How the quotas of strategies were used since they were set, of one device in the mean; of the last week at most.
///
/// Devices do not say what a quota turned away. It is estimated: a device whose quota was full after a third of its
/// day wanted three times as much. `answered`: rows that all devices together answered in that week.
pub(super) fn quotas<'a>(
    captures: impl Iterator<Item = &'a Seen> + Clone,
    policy: &CapturePolicy,
    set: Timestamp,
    answered: u64,
    devices: u32,
    now: Timestamp,
) -> Vec<CaptureCounts> {
    let from = (now - WEEK).max(set);
    let days = u32::try_from(now.since(from).as_secs() / DAY.as_secs()).unwrap_or(u32::MAX);
    // Nothing comes that is not sent.
    if !policy.upload.enabled || days == 0 {
        return Vec::new();
    }
    let counted = captures.filter(|one| one.at >= from);
    let known: BTreeSet<_> = counted.clone().map(|one| &one.device).collect();
    let devices = devices.max(u32::try_from(known.len()).unwrap_or(u32::MAX)).max(1);
    let each = |n: f64| (n / f64::from(devices)).round() as u64;
    let mut found = Vec::new();
    for rule in &policy.rules {
        let (reason, Some(quota)) = (rule.strategy.reason(), rule.quota.per_day) else { continue };
        let mut times = BTreeMap::<&DeviceId, Vec<Timestamp>>::new();
        let mut labelled = 0_u64;
        for one in counted.clone().filter(|one| one.reasons.contains(&reason)) {
            times.entry(&one.device).or_default().push(one.at);
            labelled += u64::from(one.is_labelled);
        }
        let taken: usize = times.values().map(Vec::len).sum();
        let turned_away: f64 = times.into_values().map(|times| turned_away(times, quota)).sum();
        found.push(CaptureCounts {
            strategy: reason.to_string(),
            seen: each(answered as f64 * f64::from(days) / 7.0),
            taken: each(taken as f64),
            dropped: each(turned_away),
            quota_per_day: u64::from(quota),
            days,
            labelled_share: labelled as f64 / (taken.max(1)) as f64,
            devices,
        });
    }
    found
}

/// Captures that did not fit into one device's days: each begins with the first capture after the one before.
fn turned_away(mut times: Vec<Timestamp>, quota: u32) -> f64 {
    times.sort_unstable();
    let mut away = 0.0;
    let mut rest = times.as_slice();
    while let Some(begin) = rest.first().copied() {
        let (day, later) = rest.split_at(rest.partition_point(|at| at.since(begin) < DAY));
        if let Some(last) = day.last()
            && day.len() as u64 >= u64::from(quota)
        {
            let span = last.since(begin).max(SHORTEST);
            away += f64::from(quota) * (DAY.as_secs_f64() / span.as_secs_f64() - 1.0);
        }
        rest = later;
    }
    away
}

#[cfg(test)]
#[path = "audits_tests.rs"]
mod tests;
