//! Over time: when a drift of a channel is open, and when it is over.
//!
//! One look proves little (research 3.2): it takes `hits` of the last `looks`, after control of false discoveries over
//! the channels of each look, and closing takes `looks` quiet ones in a row. State is a few numbers per channel, one
//! value per subject (device or cohort) and reference.

use super::{
    assess::{ChannelDrift, ChannelVerdict},
    settings::DriftSettings,
};
use edgefleet_shared::{ids::ChannelId, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a subject is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reference {
    /// The held-out data shipped with the bundle.
    Baseline,
    /// The same subject, last week.
    Usual,
    /// All devices of the cohort, now.
    Cohort,
}

/// Of one subject and one reference. Serialisable; starts empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DriftState {
    /// When it was last looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looked: Option<Timestamp>,
    /// Channels that were ever conspicuous; steady ones are forgotten.
    pub channels: BTreeMap<ChannelId, ChannelState>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelState {
    /// One bit per look, the newest lowest: shifted and discovered.
    pub hits: u32,
    /// One bit per look: at least `ease` of the floors.
    pub lasting: u32,
    /// Since when it is open: the first of the hits that opened it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_since: Option<Timestamp>,
    /// The first hit of the present run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_hit: Option<Timestamp>,
    /// The latest look that said anything.
    pub last: ChannelDrift,
    /// Largest size while open, in effect floors.
    pub worst: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    Opened,
    Closed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriftEvent {
    pub channel: ChannelId,
    pub change: Change,
    /// Since when it is, or was, open.
    pub since: Timestamp,
    pub found: ChannelDrift,
}

impl DriftState {
    pub fn open(&self) -> impl Iterator<Item = (&ChannelId, &ChannelState)> {
        self.channels.iter().filter(|(_, state)| state.open_since.is_some())
    }
    pub fn is_open(&self) -> bool {
        self.open().next().is_some()
    }
    pub fn is_open_on(&self, channel: &ChannelId) -> bool {
        self.channels.get(channel).is_some_and(|state| state.open_since.is_some())
    }
    /// The earliest open drift's begin.
    pub fn since(&self) -> Option<Timestamp> {
        self.open().filter_map(|(_, state)| state.open_since).min()
    }
}

/// Which p-values are discoveries at the rate `q`: the largest k with p_(k) <= q k / n, and all below.
/// Source: Benjamini and Hochberg, J. R. Statist. Soc. B 57 (1995).
pub fn discoveries(chances: &[f64], q: f64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..chances.len()).collect();
    order.sort_by(|a, b| chances[*a].total_cmp(&chances[*b]));
    let n = chances.len() as f64;
    let last = order.iter().enumerate().rfind(|(k, at)| chances[**at] <= q * (*k + 1) as f64 / n);
    let bound = last.map(|(_, at)| chances[*at]);
    chances.iter().map(|p| bound.is_some_and(|bound| *p <= bound)).collect()
}

/// Takes one look in. A look that is not newer than the last one changes nothing (a message told twice).
/// Channels with too few rows keep their state.
pub fn step(
    state: &DriftState,
    found: &[ChannelDrift],
    settings: &DriftSettings,
    now: Timestamp,
) -> (DriftState, Vec<DriftEvent>) {
    if state.looked.is_some_and(|before| before >= now) {
        return (state.clone(), Vec::new());
    }
    let told: Vec<_> = found.iter().filter(|one| one.verdict != ChannelVerdict::TooFew).collect();
    let chances: Vec<_> = told.iter().map(|one| one.p).collect();
    let discovered = discoveries(&chances, settings.false_discovery);
    let mut next = DriftState { looked: Some(now), channels: state.channels.clone() };
    let mut events = Vec::new();
    let looks = settings.looks.clamp(1, 32);
    let mask = if looks == 32 { u32::MAX } else { (1 << looks) - 1 };
    for (one, discovered) in told.into_iter().zip(discovered) {
        let hit = discovered && one.verdict == ChannelVerdict::Shifted;
        let lasting = one.verdict >= ChannelVerdict::Slight;
        let known = next.channels.remove(&one.channel);
        if known.is_none() && !hit {
            continue;
        }
        let mut channel = known.unwrap_or_else(|| ChannelState {
            hits: 0,
            lasting: 0,
            open_since: None,
            first_hit: None,
            last: one.clone(),
            worst: 0.0,
        });
        channel.hits = ((channel.hits << 1) | u32::from(hit)) & mask;
        channel.lasting = ((channel.lasting << 1) | u32::from(lasting)) & mask;
        channel.last = one.clone();
        if hit && channel.first_hit.is_none() {
            channel.first_hit = Some(now);
        }
        match channel.open_since {
            None if channel.hits.count_ones() >= settings.hits.clamp(1, looks) => {
                let since = channel.first_hit.unwrap_or(now);
                channel.open_since = Some(since);
                channel.worst = one.size();
                events.push(event(one, Change::Opened, since));
            }
            Some(since) if channel.lasting == 0 && channel.hits == 0 => {
                channel.open_since = None;
                events.push(event(one, Change::Closed, since));
            }
            Some(_) => channel.worst = channel.worst.max(one.size()),
            None => {}
        }
        if channel.open_since.is_some() || channel.hits != 0 {
            next.channels.insert(one.channel.clone(), channel);
        }
    }
    (next, events)
}

fn event(found: &ChannelDrift, change: Change, since: Timestamp) -> DriftEvent {
    DriftEvent { channel: found.channel.clone(), change, since, found: found.clone() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::drift::assess::{Measured, Moved};
    use proptest::prelude::*;

    pub(crate) fn drift(channel: &str, verdict: ChannelVerdict) -> ChannelDrift {
        let (value, p) = match verdict {
            ChannelVerdict::Shifted => (0.3, 1e-9),
            ChannelVerdict::Slight => (0.09, 1e-6),
            ChannelVerdict::Steady | ChannelVerdict::TooFew => (0.02, 0.4),
        };
        ChannelDrift {
            channel: channel.parse().unwrap(),
            kind: None,
            n: 500,
            effective: 500.0,
            reference_effective: 500.0,
            js: Some(Measured { value, noise: 0.05, floor: 0.1 }),
            psi: None,
            w1: None,
            tv: None,
            missing: Moved::default(),
            mean: None,
            p,
            verdict,
        }
    }

    pub(crate) fn hour(n: u64) -> Timestamp {
        Timestamp::from_secs(1_800_000_000 + 3_600 * n)
    }

    fn run(looks: &str) -> Vec<(u64, Change)> {
        let mut state = DriftState::default();
        let mut changes = Vec::new();
        for (n, look) in looks.chars().enumerate() {
            let verdict = match look {
                'X' => ChannelVerdict::Shifted,
                'x' => ChannelVerdict::Slight,
                '?' => ChannelVerdict::TooFew,
                _ => ChannelVerdict::Steady,
            };
            let (next, events) =
                step(&state, &[drift("input/x", verdict)], &DriftSettings::default(), hour(n as u64));
            changes.extend(events.into_iter().map(|event| (n as u64, event.change)));
            state = next;
        }
        changes
    }

    #[test]
    fn two_of_three_open_and_three_quiet_ones_close() {
        use Change::{Closed, Opened};
        for (looks, wanted) in [
            ("X.....", vec![]),
            ("X..X..X", vec![]),
            ("X.X", vec![(2, Opened)]),
            ("XX", vec![(1, Opened)]),
            ("XX...", vec![(1, Opened), (4, Closed)]),
            ("XX..X..X.", vec![(1, Opened)]),
            ("XXxxxxxx", vec![(1, Opened)]),
            ("XX????..", vec![(1, Opened)]),
            ("xxxxxx", vec![]),
        ] {
            assert_eq!(run(looks), wanted, "{looks}");
        }
    }

    #[test]
    fn the_begin_is_that_of_the_first_hit() {
        let settings = DriftSettings::default();
        let (one, _) =
            step(&DriftState::default(), &[drift("a", ChannelVerdict::Shifted)], &settings, hour(3));
        let (two, events) = step(&one, &[drift("a", ChannelVerdict::Shifted)], &settings, hour(4));
        assert_eq!((events[0].since, two.since()), (hour(3), Some(hour(3))));
        let (again, events) = step(&two, &[drift("a", ChannelVerdict::Steady)], &settings, hour(4));
        assert_eq!((again, events.len()), (two, 0), "a look told twice");
    }

    #[test]
    fn of_many_channels_one_that_is_barely_significant_is_no_discovery() {
        let mut chances = vec![0.5; 31];
        chances.push(0.004);
        assert!(!discoveries(&chances, 0.05).into_iter().any(|x| x));
        chances[3] = 1e-5;
        assert_eq!(discoveries(&chances, 0.05).into_iter().filter(|x| *x).count(), 1);
        // The example of the paper: 15 p-values, 4 discoveries at 0.05.
        let paper = [
            0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719,
            0.6528, 0.7590, 1.0,
        ];
        assert_eq!(discoveries(&paper, 0.05).into_iter().filter(|x| *x).count(), 4);
    }

    proptest! {
        #[test]
        fn an_event_is_always_a_change(looks in prop::collection::vec(0u8..4, 0..60)) {
            let text: String = looks.iter().map(|look| ['X', 'x', '?', '.'][usize::from(*look)]).collect();
            for (at, pair) in run(&text).windows(2).enumerate() {
                prop_assert!(pair[0].1 != pair[1].1, "{text}: {at}");
            }
        }
    }
}
