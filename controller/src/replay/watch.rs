//! One hour of a virtual fleet through drift, estimates and advice, as the controller does it.

use super::fleet::DeviceHour;
use crate::{
    advice::{
        AdviceSettings, Audited, Evidence, FindingChange, Scope, ScoreSeries, Slice, Tracked, advise,
        reconcile,
    },
    drift::{
        DriftSettings, Incident, IncidentChange, Look, SubjectStates, against_baseline, group, look, others,
    },
    estimate::{Checked, Estimator, ScoreSettings, Trust, estimate, score},
};
use edgefleet_shared::{
    bundle::Baseline,
    ids::{BundleName, ChannelId, DeviceId},
    telemetry::ProfileContent,
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

pub(super) const COHORT: &str = "all";
const DAY: u64 = 24;
/// Hours that the usual of a subject spans, and how long ago it ends.
const USUAL: u64 = 7 * DAY;
const RECENT: u64 = DAY;
const LABELS: usize = 500;

/// Daily sums of one subject: what last week was like.
#[derive(Default)]
struct Past {
    days: BTreeMap<u64, ProfileContent>,
    /// The last three hours.
    recent: VecDeque<ProfileContent>,
    /// Of the day it was made for.
    usual: Option<(u64, ProfileContent)>,
}

impl Past {
    fn usual(&mut self, hour: u64) -> Option<&ProfileContent> {
        let today = hour / DAY;
        if self.usual.as_ref().is_none_or(|(day, _)| *day != today) {
            let first = today.saturating_sub(USUAL / DAY + RECENT / DAY);
            let until = today.saturating_sub(RECENT / DAY);
            let mut sum = ProfileContent::default();
            self.days.range(first..until).for_each(|(_, day)| sum.merge(day));
            self.days.retain(|day, _| *day >= first);
            self.usual = Some((today, sum));
        }
        self.usual.as_ref().map(|(_, sum)| sum).filter(|sum| sum.rows > 0)
    }
    fn add(&mut self, hour: u64, profile: &ProfileContent) {
        self.days.entry(hour / DAY).or_default().merge(profile);
        self.recent.push_back(profile.clone());
        if self.recent.len() > 3 {
            self.recent.pop_front();
        }
    }
    fn now(&self) -> ProfileContent {
        let mut sum = ProfileContent::default();
        self.recent.iter().for_each(|profile| sum.merge(profile));
        sum
    }
}

/// What one hour brought.
pub(super) struct Told {
    pub incidents: Vec<(IncidentChange, Incident)>,
    pub findings: Vec<FindingChange>,
    /// Estimates of the cohort in this hour.
    pub estimates: BTreeMap<Estimator, f64>,
}

pub(super) struct Watch {
    bundle: BundleName,
    baseline: Arc<Baseline>,
    devices: Vec<DeviceId>,
    settings: DriftSettings,
    states: Vec<SubjectStates>,
    past: Vec<Past>,
    incidents: Vec<Incident>,
    tracked: Vec<Tracked>,
    scores: BTreeMap<ChannelId, Vec<(Timestamp, f64)>>,
    checked: BTreeMap<Estimator, VecDeque<Checked>>,
    trust: BTreeMap<Estimator, Trust>,
    /// (hour, right, labels)
    audits: VecDeque<(u64, u64, u64)>,
    labels: VecDeque<crate::advice::ScoredLabel>,
}

impl Watch {
    pub(super) fn new(bundle: BundleName, baseline: Arc<Baseline>, devices: Vec<DeviceId>) -> Self {
        let subjects = devices.len() + 1;
        Self {
            bundle,
            baseline,
            devices,
            settings: DriftSettings::default(),
            states: vec![SubjectStates::default(); subjects],
            past: (0..subjects).map(|_| Past::default()).collect(),
            incidents: Vec::new(),
            tracked: Vec::new(),
            scores: BTreeMap::new(),
            checked: BTreeMap::new(),
            trust: BTreeMap::new(),
            audits: VecDeque::new(),
            labels: VecDeque::new(),
        }
    }

    pub(super) fn hour(&mut self, hour: u64, now: Timestamp, seen: &[DeviceHour]) -> Told {
        let mut sum = ProfileContent::default();
        seen.iter().for_each(|one| sum.merge(&one.profile));
        let cohort = self.devices.len();
        for (at, one) in seen.iter().enumerate() {
            let rest = others(&sum, &one.profile);
            self.look(at, hour, now, &one.profile, Some(&rest));
        }
        self.look(cohort, hour, now, &sum, None);
        for found in against_baseline(&sum, &self.baseline, &self.settings) {
            let series = self.scores.entry(found.channel.clone()).or_default();
            series.push((now, found.score()));
        }
        let mut subjects: Vec<_> =
            self.devices.iter().zip(&self.states).map(|(id, state)| state.drift(COHORT, Some(id))).collect();
        subjects.push(self.states[cohort].drift(COHORT, None));
        let (open, incidents) = group(&self.bundle, &self.incidents, &subjects, &self.settings, now);
        self.incidents = open;
        for (past, one) in self.past.iter_mut().zip(seen) {
            past.add(hour, &one.profile);
        }
        self.past[cohort].add(hour, &sum);
        let estimates = self.check(hour, now, &sum, seen);
        let evidence = self.evidence(hour);
        let judged = advise(&evidence, &AdviceSettings::default(), now);
        let (tracked, findings) = reconcile(&self.tracked, &judged, now);
        self.tracked = tracked;
        Told { incidents, findings, estimates }
    }

    fn look(
        &mut self,
        at: usize,
        hour: u64,
        now: Timestamp,
        profile: &ProfileContent,
        rest: Option<&ProfileContent>,
    ) {
        let usual = self.past[at].usual(hour);
        let seen = Look { baseline: &self.baseline, now: profile, usual, cohort_now: rest };
        self.states[at] = look(&self.states[at], &seen, &self.settings, now).0;
    }

    /// Estimates of the hour, and what labels say of them.
    fn check(
        &mut self,
        hour: u64,
        now: Timestamp,
        sum: &ProfileContent,
        seen: &[DeviceHour],
    ) -> BTreeMap<Estimator, f64> {
        let labelled = seen.iter().flat_map(|one| &one.labels);
        let (right, labels) =
            labelled.clone().fold((0, 0), |sum, label| (sum.0 + u64::from(label.correct), sum.1 + 1));
        self.labels.extend(labelled.cloned());
        let surplus = self.labels.len().saturating_sub(LABELS);
        self.labels.drain(..surplus);
        self.audits.push_back((hour, right, labels));
        while self.audits.front().is_some_and(|(at, _, _)| at + USUAL + RECENT < hour) {
            self.audits.pop_front();
        }
        let mut estimates = BTreeMap::new();
        for which in Estimator::ALL {
            let known = self.baseline.quality.as_ref().zip(sum.quality.as_ref());
            let Some(found) = known.and_then(|(known, quality)| estimate(which, quality, known)) else {
                continue;
            };
            estimates.insert(which, found.value);
            if labels == 0 {
                continue;
            }
            let truth = right as f64 / labels as f64;
            // Half a label more on each side: two of two are not certain.
            let p = (right as f64 + 0.5) / (labels as f64 + 1.0);
            let truth_deviation = (p * (1.0 - p) / labels as f64).sqrt();
            let checked = self.checked.entry(which).or_default();
            let deviation = found.deviation();
            checked.push_back(Checked {
                at: now,
                estimate: found.value,
                deviation,
                truth,
                truth_deviation,
                labels,
            });
            if checked.len() > 72 {
                checked.pop_front();
            }
        }
        estimates
    }

    fn audited(&self, hours: std::ops::Range<u64>) -> Option<Audited> {
        let (right, labels) = self
            .audits
            .iter()
            .filter(|(hour, _, _)| hours.contains(hour))
            .fold((0, 0), |sum, (_, right, labels)| (sum.0 + right, sum.1 + labels));
        if labels == 0 {
            return None;
        }
        let accuracy = right as f64 / labels as f64;
        let (low, high) = crate::evidence::interval::proportion(right as f64, labels as f64, 0.05);
        Some(Audited { accuracy, low, high, labels, effective: labels as f64 })
    }

    fn evidence(&mut self, hour: u64) -> Evidence {
        let bundle = self.bundle.clone();
        let mut slices = Vec::with_capacity(self.past.len());
        for (at, past) in self.past.iter_mut().enumerate() {
            let cohort = COHORT.to_owned();
            let scope = match self.devices.get(at) {
                Some(device) => Scope::Device { bundle: bundle.clone(), cohort, device: device.clone() },
                None => Scope::Cohort { bundle: bundle.clone(), cohort },
            };
            let mut slice = Slice::new(scope);
            slice.now = Some(past.now());
            slice.usual = past.usual(hour).cloned();
            slice.classes = slice
                .now
                .as_ref()
                .and_then(|now| now.quality.as_ref())
                .map_or_else(BTreeMap::new, |quality| {
                    quality.classes.iter().map(|(name, class)| (name.clone(), class.n)).collect()
                });
            slices.push(slice);
        }
        if let Some(whole) = slices.last_mut() {
            whole.devices = u32::try_from(self.devices.len()).unwrap_or(u32::MAX);
            whole.audited = self.audited(hour.saturating_sub(RECENT)..hour + 1);
            whole.audited_before = self.audited(0..hour.saturating_sub(RECENT));
            whole.labels = self.labels.iter().cloned().collect();
        }
        let mut estimators = BTreeMap::new();
        for (which, checked) in &mut self.checked {
            let before = self.trust.get(which).copied().unwrap_or(Trust::Unknown);
            let found = score(checked.make_contiguous(), before, &ScoreSettings::default());
            self.trust.insert(*which, found.trust);
            estimators.insert(*which, found);
        }
        // A rhythm is looked for once a day.
        let scores = match hour % DAY {
            0 => {
                let channels = self.scores.iter();
                channels
                    .map(|(channel, scores)| ScoreSeries {
                        cohort: COHORT.to_owned(),
                        channel: channel.clone(),
                        scores: scores[scores.len().saturating_sub(28 * DAY as usize)..].to_vec(),
                    })
                    .collect()
            }
            _ => Vec::new(),
        };
        Evidence {
            bundle: Some(bundle),
            baseline: Some(self.baseline.clone()),
            slices,
            incidents: Some(self.incidents.clone()),
            scores,
            estimators,
            audit_rate: Some(0.02),
            ..Evidence::default()
        }
    }
}
