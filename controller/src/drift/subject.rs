//! One subject, a device or a whole cohort, against all its references at once.

use super::{
    assess::{ChannelDrift, against_baseline, against_profile},
    decide::{DriftEvent, DriftState, Reference, step},
    incident::SubjectDrift,
    settings::DriftSettings,
};
use edgefleet_shared::{
    bundle::Baseline,
    ids::DeviceId,
    telemetry::{Channel, Moments, ProfileContent},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

/// The states of one subject with one bundle. A few KB; empty at first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SubjectStates {
    pub baseline: DriftState,
    pub usual: DriftState,
    pub cohort_now: DriftState,
}

impl SubjectStates {
    pub fn drift<'a>(&'a self, cohort: &'a str, device: Option<&'a DeviceId>) -> SubjectDrift<'a> {
        SubjectDrift {
            cohort,
            device,
            baseline: Some(&self.baseline),
            usual: Some(&self.usual),
            cohort_now: device.map(|_| &self.cohort_now),
        }
    }
}

/// What a subject is looked at with. `now`: one profile, or the last three added up where an hour has few rows.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    pub baseline: &'a Baseline,
    pub now: &'a ProfileContent,
    /// The same subject, last week.
    pub usual: Option<&'a ProfileContent>,
    /// The other devices of its cohort, see [`others`]; `None` for a cohort.
    pub cohort_now: Option<&'a ProfileContent>,
}

/// One look at all references there are.
pub fn look(
    states: &SubjectStates,
    at: &Look<'_>,
    settings: &DriftSettings,
    now: Timestamp,
) -> (SubjectStates, Vec<(Reference, DriftEvent)>) {
    let mut events = Vec::new();
    let steadied = steadied(at.now, &[at.usual, at.cohort_now]);
    let at = Look { now: &steadied, ..*at };
    let mut take = |reference: Reference, state: &DriftState, found: Vec<ChannelDrift>| {
        let (next, told) = step(state, &found, settings, now);
        events.extend(told.into_iter().map(|event| (reference, event)));
        next
    };
    let baseline =
        take(Reference::Baseline, &states.baseline, against_baseline(at.now, at.baseline, settings));
    let mut other = |reference: Reference, state: &DriftState, profile: Option<&ProfileContent>| match profile
    {
        Some(profile) => take(reference, state, against_profile(at.now, profile, at.baseline, settings)),
        None => state.clone(),
    };
    let usual = other(Reference::Usual, &states.usual, at.usual);
    let cohort_now = other(Reference::Cohort, &states.cohort_now, at.cohort_now);
    (SubjectStates { baseline, usual, cohort_now }, events)
}

/// With the largest lag-1 correlation of the profile itself and of the longer ones. Of an hour's hundred rows it is
/// known to a tenth at best, in channels with rare values worse; taken too small, chance passes for drift.
fn steadied(now: &ProfileContent, longer: &[Option<&ProfileContent>]) -> ProfileContent {
    let mut now = now.clone();
    for channel in &mut now.channels {
        for known in longer.iter().flatten().filter_map(|profile| profile.channel(channel.id.as_str())) {
            if known.lag1.is_finite() && known.n >= channel.n {
                channel.lag1 = channel.lag1.max(known.lag1);
            }
        }
    }
    now
}

/// A cohort's sum less one device's part of it: what the device is compared with, so that a device in a cohort of
/// three is not compared with itself.
pub fn others(cohort: &ProfileContent, own: &ProfileContent) -> ProfileContent {
    let channels = cohort.channels.iter().map(|sum| match own.channel(sum.id.as_str()) {
        Some(part) => less(sum, part),
        None => sum.clone(),
    });
    ProfileContent {
        rows: cohort.rows.saturating_sub(own.rows),
        channels: channels.collect(),
        ..ProfileContent::default()
    }
}

fn less(sum: &Channel, part: &Channel) -> Channel {
    let mut rest = sum.clone();
    rest.n = sum.n.saturating_sub(part.n);
    rest.missing = sum.missing.saturating_sub(part.missing);
    if rest.bins.len() == part.bins.len() {
        rest.bins.iter_mut().zip(&part.bins).for_each(|(rest, part)| *rest = rest.saturating_sub(*part));
    }
    for (name, n) in &part.categories {
        if let Some(rest) = rest.categories.get_mut(name) {
            *rest = rest.saturating_sub(*n);
        }
    }
    let (all, own) = (&sum.moments, &part.moments);
    let n = all.n.saturating_sub(own.n);
    // Chan's merge, solved for one side.
    rest.moments = match n {
        0 => Moments::default(),
        _ => {
            let mean = (all.n as f64 * all.mean - own.n as f64 * own.mean) / n as f64;
            let apart = own.mean - mean;
            let between = apart * apart * own.n as f64 * n as f64 / (all.n.max(1)) as f64;
            Moments { n, mean, m2: (all.m2 - own.m2 - between).max(0.0), min: all.min, max: all.max }
        }
    };
    rest
}

#[cfg(test)]
mod tests {
    use super::super::cells::tests::{channel, normal_rows};
    use super::*;

    #[test]
    fn taking_out_what_was_merged_leaves_the_rest() {
        let edges = [-1.0, 0.0, 1.0];
        let (a, b) =
            (channel(&normal_rows(1, 300, 0.0, 1.0), &edges), channel(&normal_rows(2, 80, 2.0, 0.5), &edges));
        let profile = |channel: &Channel| ProfileContent {
            rows: channel.n,
            channels: vec![channel.clone()],
            ..ProfileContent::default()
        };
        let mut sum = profile(&a);
        sum.merge(&profile(&b));
        let rest = others(&sum, &profile(&b));
        assert_eq!((rest.rows, &rest.channels[0].bins), (300, &a.bins));
        let (found, wanted) = (rest.channels[0].moments, a.moments);
        assert!((found.mean - wanted.mean).abs() < 1e-9 && (found.m2 - wanted.m2).abs() < 1e-6, "{found:?}");
        let none = others(&profile(&a), &sum);
        assert_eq!((none.rows, none.channels[0].moments.n), (0, 0), "claims that do not add up do no harm");
    }
}
