//! Virtual devices: which real rows each one sees in an hour, and the profile its agent would send.

use super::{
    reference::LABEL,
    rows::{DataSet, Row},
};
use crate::{advice::ScoredLabel, evidence::random::Random};
use edgefleet_shared::{
    bundle::Baseline,
    telemetry::{Channel, ClassQuality, ProfileContent, Quality, channel::bin_of},
};
use std::collections::BTreeMap;

/// Chance that a scene stays: the next row is the same one. Gives the channels a lag-1 correlation as cameras have.
const STAYS: f64 = 0.3;

/// One device's hour.
#[derive(Clone, Debug, Default)]
pub(super) struct DeviceHour {
    pub profile: ProfileContent,
    pub rows: u64,
    pub right: u64,
    /// Labelled at random, with the probability asked for.
    pub labels: Vec<ScoredLabel>,
}

pub(super) fn hour(
    set: &DataSet,
    baseline: &Baseline,
    pool: &[&Row],
    rows: u64,
    audit: f64,
    random: &mut Random,
) -> DeviceHour {
    let mut hour = DeviceHour { rows, ..DeviceHour::default() };
    let mut seen: Vec<&Row> = Vec::with_capacity(rows as usize);
    for _ in 0..rows {
        let row = match seen.last() {
            Some(last) if random.unit() < STAYS => last,
            _ => pool[((random.unit() * pool.len() as f64) as usize).min(pool.len() - 1)],
        };
        seen.push(row);
        hour.right += u64::from(row.is_right());
        if random.unit() < audit {
            hour.labels.push(ScoredLabel {
                confidence: row.confidence(),
                predicted: set.classes[row.1].clone(),
                correct: row.is_right(),
                weight: 1.0 / audit,
            });
        }
    }
    hour.profile = profile(set, baseline, &seen);
    hour
}

fn profile(set: &DataSet, baseline: &Baseline, seen: &[&Row]) -> ProfileContent {
    let mut content = ProfileContent { rows: seen.len() as u64, ..ProfileContent::default() };
    for (at, (id, _)) in set.channels.iter().enumerate() {
        let Some(known) = baseline.channel(id) else { continue };
        let mut channel = Channel::new(id.clone());
        channel.bins = vec![0; known.edges.len() + 1];
        let (mut run, mut last) = (0, f64::NAN);
        for row in seen {
            let x = row.0[at];
            channel.n += 1;
            channel.bins[bin_of(&known.edges, x)] += 1;
            channel.moments.take(x);
            run = if x == last { run + 1 } else { 1 };
            channel.longest_run = channel.longest_run.max(run);
            last = x;
        }
        channel.lag1 = lag1(seen.iter().map(|row| row.0[at]), &channel);
        content.channels.push(channel);
    }
    if let Ok(id) = LABEL.parse() {
        let mut channel = Channel::new(id);
        channel.n = seen.len() as u64;
        for row in seen {
            *channel.categories.entry(set.classes[row.1].clone()).or_default() += 1;
        }
        // Classes have no correlation of their own; the scene's is that of the confidence.
        channel.lag1 = content.channels.last().map_or(0.0, |confidence| confidence.lag1);
        content.channels.push(channel);
    }
    content.channels.sort_by(|a, b| a.id.cmp(&b.id));
    content.quality = baseline.quality.as_ref().map(|known| {
        let mut quality = Quality { n: seen.len() as u64, ..Quality::default() };
        let mut classes: BTreeMap<&str, ClassQuality> = BTreeMap::new();
        for row in seen {
            let p = known.calibration.probability(row.confidence());
            quality.expected_correct += p;
            quality.variance += p * (1.0 - p);
            quality.above += u64::from(row.confidence() >= known.atc_threshold);
            let class = classes.entry(&set.classes[row.1]).or_default();
            (class.n, class.expected_correct) = (class.n + 1, class.expected_correct + p);
        }
        quality.classes = classes.into_iter().map(|(name, class)| (name.to_owned(), class)).collect();
        quality
    });
    content
}

fn lag1(values: impl Iterator<Item = f64>, channel: &Channel) -> f64 {
    if channel.moments.m2 <= 0.0 {
        return 0.0;
    }
    let mean = channel.moments.mean;
    let (mut sum, mut last) = (0.0, None);
    for x in values {
        if let Some(last) = last {
            sum += (x - mean) * (last - mean);
        }
        last = Some(x);
    }
    (sum / channel.moments.m2).clamp(-1.0, 1.0)
}
