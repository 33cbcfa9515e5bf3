//! Pure: what is known of the drifts of one device or one cohort, and how a look changes it.

use super::learned::skeleton;
use crate::{
    drift::{self, ChannelDrift, DriftEvent, DriftSettings, DriftState},
    ingest::Usual,
};
use edgefleet_shared::{
    bundle::{Baseline, ChannelKind},
    ids::DeviceId,
    telemetry::ProfileContent,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// Devices that a look at a cohort rests on, at least: nobody steers alone.
pub const LEAST_DEVICES: usize = 3;
/// Hours of which a cohort keeps a point: three weeks, for rhythms.
const HOURS: usize = 21 * 24;
const HOUR: Duration = Duration::from_secs(3_600);

/// One profile, or one round of a cohort, as it is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    pub content: &'a ProfileContent,
    /// What the subject itself is like usually, this look not included.
    pub usual: &'a ProfileContent,
    /// What its cohort is like now; of a cohort itself `None`.
    pub cohort: Option<&'a ProfileContent>,
    /// When it ended.
    pub at: Timestamp,
}

/// Drift against each reference.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drifts {
    pub baseline: DriftState,
    pub usual: DriftState,
    pub cohort: DriftState,
}

impl Drifts {
    pub fn is_open(&self) -> bool {
        [&self.baseline, &self.usual, &self.cohort].into_iter().any(DriftState::is_open)
    }

    /// Whether the newest look found the subject away from its cohort.
    pub fn is_odd(&self) -> bool {
        self.cohort.channels.values().any(|channel| channel.hits & 1 == 1)
    }

    /// Takes one look in; returns what it found against the baseline or, without one, against the subject's own past.
    fn look(
        &mut self,
        look: &Look<'_>,
        shipped: Option<&Baseline>,
        settings: &DriftSettings,
    ) -> Vec<ChannelDrift> {
        let learned = shipped.is_none().then(|| skeleton(look.content));
        let Some(baseline) = shipped.or(learned.as_ref()) else { return Vec::new() };
        // Looks are told apart by their time: two profiles that a broken clock gives one time are two looks.
        let after = |state: &DriftState| match state.looked {
            Some(before) if before >= look.at => before + Duration::from_millis(1),
            _ => look.at,
        };
        let step = |state: &mut DriftState, found: &[ChannelDrift]| -> Vec<DriftEvent> {
            let (next, events) = drift::step(state, found, settings, after(state));
            *state = next;
            events
        };
        let mut found = Vec::new();
        if shipped.is_some() {
            found = drift::against_baseline(look.content, baseline, settings);
            step(&mut self.baseline, &found);
        }
        if look.usual.rows > 0 {
            let apart = drift::against_profile(look.content, look.usual, baseline, settings);
            step(&mut self.usual, &apart);
            if shipped.is_none() {
                found = apart;
            }
        }
        if let Some(cohort) = look.cohort {
            let found = drift::against_profile(look.content, cohort, baseline, settings);
            step(&mut self.cohort, &found);
        }
        found
    }
}

/// One device with one bundle.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRecord {
    pub cohort: String,
    /// Start of the newest profile looked at.
    pub looked: Timestamp,
    pub drifts: Drifts,
}

impl DeviceRecord {
    pub fn look(
        &mut self,
        start: Timestamp,
        look: &Look<'_>,
        baseline: Option<&Baseline>,
        settings: &DriftSettings,
    ) -> Vec<ChannelDrift> {
        self.looked = self.looked.max(start);
        self.drifts.look(look, baseline, settings)
    }
}

/// One hour of a cohort.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HourPoint {
    pub hour: Timestamp,
    pub rows: u64,
    /// Largest Jensen-Shannon distance of an input from the baseline or, without one, from the own past, 0 to 1.
    pub inputs: f64,
    /// The same for answers: outputs, confidence, entropy.
    pub answers: f64,
    /// Accuracy as estimated, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cbpe: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub atc: Option<f64>,
}

/// All devices of one cohort with one bundle.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CohortRecord {
    /// What came since the last look, and what came of devices that are away from the others.
    pub round: ProfileContent,
    pub odd: ProfileContent,
    /// When this round began, and the two before it.
    pub began: Timestamp,
    pub before: [Timestamp; 2],
    /// The last round looked at: what the cohort is like now.
    pub now: ProfileContent,
    /// The rounds before it, the older the less.
    pub usual: Usual,
    pub looked: Option<Timestamp>,
    /// Begin of the first profile: about when the bundle came here.
    pub first: Option<Timestamp>,
    /// Devices of the last round.
    pub devices: usize,
    /// Looks before anything drifted from the baseline: a drift after many did not come with the bundle.
    pub steady: u32,
    pub drifts: Drifts,
    /// Findings of the last look against the baseline or, without one, against the own past.
    pub found: Vec<ChannelDrift>,
    /// Oldest first.
    pub hours: VecDeque<HourPoint>,
}

/// Which devices a round has heard, and how often. Forgotten at a restart: then a round begins anew.
#[derive(Clone, Debug, Default)]
pub struct Round {
    heard: BTreeMap<DeviceId, u32>,
    again: usize,
    odd: BTreeSet<DeviceId>,
}

impl Round {
    pub fn hear(&mut self, device: &DeviceId, is_odd: bool) {
        let times = self.heard.entry(device.clone()).or_default();
        *times += 1;
        self.again += usize::from(*times == 2);
        if is_odd {
            self.odd.insert(device.clone());
        }
    }
    /// A few that differ from all others do not move the cohort; once they are half of it, they are it.
    fn has_moved(&self) -> bool {
        self.odd.len() * 2 >= self.heard.len()
    }
    pub fn devices(&self) -> usize {
        self.heard.len()
    }
    /// Four of five devices of the round before have come, or half of those that have came twice. One that hurries
    /// ends no round.
    pub fn is_complete(&self, before: usize) -> bool {
        let most = before >= LEAST_DEVICES && self.heard.len() * 5 >= before * 4;
        self.heard.len() >= LEAST_DEVICES && (most || self.again * 2 >= self.heard.len())
    }
}

impl CohortRecord {
    /// Looks at the round and begins the next.
    pub fn look(
        &mut self,
        heard: &Round,
        baseline: Option<&Baseline>,
        settings: &DriftSettings,
        at: Timestamp,
    ) {
        let (mut round, odd) = (std::mem::take(&mut self.round), std::mem::take(&mut self.odd));
        if heard.has_moved() {
            round.merge(&odd);
        }
        self.before = [self.before[1], self.began];
        let look = Look { content: &round, usual: &self.usual.content, cohort: None, at };
        self.found = self.drifts.look(&look, baseline, settings);
        if self.drifts.baseline.channels.is_empty() {
            self.steady = self.steady.saturating_add(1);
        }
        self.note_hour(&round, at);
        let before = std::mem::replace(&mut self.now, round);
        if let Some(looked) = self.looked.replace(at) {
            self.usual.take(looked, &before);
        }
        self.devices = heard.devices();
    }

    /// Whether two whole rounds were looked at since `since`: what all devices share shows by then.
    pub fn has_seen(&self, since: Timestamp) -> bool {
        self.before[0] >= since
    }

    fn note_hour(&mut self, round: &ProfileContent, at: Timestamp) {
        let largest = |kinds: &[ChannelKind]| {
            let of = |one: &&ChannelDrift| one.kind.is_some_and(|kind| kinds.contains(&kind));
            self.found.iter().filter(of).map(ChannelDrift::score).fold(0.0, f64::max)
        };
        let inputs = largest(&[ChannelKind::Input, ChannelKind::Image, ChannelKind::Category]);
        let answers = largest(&[ChannelKind::Output, ChannelKind::Score]);
        let quality = round.quality.as_ref();
        let point = HourPoint {
            hour: Timestamp::from_secs(at.as_secs() / HOUR.as_secs() * HOUR.as_secs()),
            rows: round.rows,
            inputs,
            answers,
            cbpe: quality.and_then(|quality| quality.cbpe()),
            atc: quality.and_then(|quality| quality.atc()),
        };
        match self.hours.back_mut() {
            Some(last) if last.hour == point.hour => last.join(&point),
            Some(last) if last.hour > point.hour => {} // the clock was set back
            _ => self.hours.push_back(point),
        }
        while self.hours.len() > HOURS {
            self.hours.pop_front();
        }
    }
}

impl HourPoint {
    /// Several looks within one hour, by their rows.
    fn join(&mut self, other: &Self) {
        let (mine, theirs) = (self.rows as f64, other.rows as f64);
        if mine + theirs <= 0.0 {
            return;
        }
        let mean = |a: f64, b: f64| (a * mine + b * theirs) / (mine + theirs);
        let both = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(mean(a, b)),
            (a, b) => a.or(b),
        };
        self.inputs = mean(self.inputs, other.inputs);
        self.answers = mean(self.answers, other.answers);
        self.cbpe = both(self.cbpe, other.cbpe);
        self.atc = both(self.atc, other.atc);
        self.rows = self.rows.saturating_add(other.rows);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use edgefleet_shared::{
        bundle::{BaselineChannel, BaselineQuality, baseline::BASELINE_SCHEMA},
        telemetry::{Channel, Quality, channel::bin_of},
    };

    const EDGES: [f64; 5] = [0.1, 0.3, 0.5, 0.7, 0.9];

    /// Two channels, `rows` evenly spread over 0 to 1 in each, then shifted.
    pub(crate) fn content_of(rows: u64, shifts: [f64; 2]) -> ProfileContent {
        let shifted = |(id, shift): (&str, f64)| {
            let mut channel = Channel::new(id.parse().unwrap());
            channel.bins = vec![0; EDGES.len() + 1];
            for n in 0..rows {
                let x = (n as f64 + 0.5) / rows as f64 + shift;
                channel.n += 1;
                channel.moments.take(x);
                channel.bins[bin_of(&EDGES, x)] += 1;
            }
            channel
        };
        let channels = ["input/x", "input/y"].into_iter().zip(shifts).map(shifted).collect();
        let quality = Quality { n: rows, expected_correct: 0.9 * rows as f64, ..Quality::default() };
        ProfileContent { rows, channels, quality: Some(quality), faults: BTreeMap::new(), repeats: None }
    }

    /// Only the first channel moves.
    pub(crate) fn content(rows: u64, shift: f64) -> ProfileContent {
        content_of(rows, [shift, 0.0])
    }

    pub(crate) fn baseline() -> Baseline {
        let known = |channel: Channel| BaselineChannel {
            id: channel.id.clone(),
            kind: ChannelKind::Input,
            n: channel.n,
            missing: 0,
            edges: EDGES.to_vec(),
            bins: channel.bins,
            moments: channel.moments,
            categories: BTreeMap::new(),
        };
        let channels = content(5_000, 0.0).channels.into_iter().map(known).collect();
        let (rows, dataset) = (5_000, String::new());
        let quality = BaselineQuality {
            n: 5_000,
            accuracy: 0.9,
            atc_threshold: 0.5,
            calibration: Default::default(),
            ece_before: 0.01,
            ece_after: 0.01,
            confusion: vec![],
        };
        let (classes, quality) = (BTreeMap::new(), Some(quality));
        Baseline { schema: BASELINE_SCHEMA, rows, dataset, channels, classes, quality }
    }

    fn at(minute: u64) -> Timestamp {
        Timestamp::from_secs(1_800_000_000 / 3_600 * 3_600 + minute * 60)
    }

    #[test]
    fn a_round_ends_when_half_of_its_devices_have_come_twice() {
        let device = |n: usize| format!("dev-{n}").parse::<DeviceId>().unwrap();
        let mut round = Round::default();
        for n in 0..10 {
            round.hear(&device(n), false);
        }
        (0..50).for_each(|_| round.hear(&device(0), false));
        assert!(!round.is_complete(0) && !round.is_complete(13), "one that hurries does not end it");
        assert!(round.is_complete(12), "four of five have come");
        (1..5).for_each(|n| round.hear(&device(n), false));
        assert!(round.is_complete(0));
        let mut two = Round::default();
        [0, 1, 0, 1].iter().for_each(|n| two.hear(&device(*n), false));
        assert!(!two.is_complete(2), "two devices are no cohort");
    }

    #[test]
    fn a_device_that_changes_drifts_from_all_it_is_compared_with() {
        let (baseline, settings) = (baseline(), DriftSettings::default());
        let (usual, cohort) = (content(2_000, 0.0), content(2_000, 0.0));
        let mut device = DeviceRecord::default();
        let mut look = |minute: u64, shift: f64| {
            let content = content(400, shift);
            let look = Look { content: &content, usual: &usual, cohort: Some(&cohort), at: at(minute) };
            device.look(at(minute), &look, Some(&baseline), &settings);
            let Drifts { baseline, usual, cohort } = &device.drifts;
            (baseline.is_open(), usual.is_open(), cohort.is_open())
        };
        assert_eq!(look(0, 0.0), (false, false, false));
        assert_eq!(look(60, 0.4), (false, false, false), "one look proves nothing");
        assert_eq!(look(60, 0.4), (true, true, true), "a clock that stands still does not hide it");
        look(180, 0.0);
        look(240, 0.0);
        assert_eq!(look(300, 0.0), (false, false, false));
    }

    #[test]
    fn a_cohort_keeps_three_weeks_of_hours() {
        let (baseline, settings) = (baseline(), DriftSettings::default());
        let mut cohort = CohortRecord::default();
        for hour in 0..600 {
            for minute in [0, 30] {
                cohort.round = content(300, if minute == 0 { 0.4 } else { 0.0 });
                let mut heard = Round::default();
                (0..5).for_each(|n| heard.hear(&format!("dev-{n}").parse().unwrap(), false));
                cohort.look(&heard, Some(&baseline), &settings, at(hour * 60 + minute));
            }
        }
        assert_eq!((cohort.hours.len(), cohort.hours[0].hour), (HOURS, at((600 - HOURS as u64) * 60)));
        let last = cohort.hours.back().unwrap();
        assert_eq!((last.rows, last.cbpe), (600, Some(0.9)));
        assert!(last.inputs > 0.1 && last.inputs < 0.9, "{last:?}");
        assert_eq!((cohort.round.rows, cohort.now.rows, cohort.devices), (0, 300, 5));
    }
}
