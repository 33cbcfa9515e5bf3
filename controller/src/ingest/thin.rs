//! Pure: fewer rows with the same shape, so that a busy device weighs no more than its share.

use edgefleet_shared::telemetry::{
    Channel, ClassQuality, Moments, ProfileContent, Quality, Repeats,
    channel::{OTHER, add_category},
};
use std::collections::BTreeMap;

/// `of` in `from`, at most 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    of: u64,
    from: u64,
}

impl Share {
    pub(super) fn new(of: u64, from: u64) -> Self {
        Self { of: of.min(from), from: from.max(1) }
    }
    /// A number between 0 and 1; what is none of these becomes 0.
    pub(super) fn of_unit(x: f64) -> Self {
        const STEPS: u64 = 1 << 30;
        Self::new((x.clamp(0.0, 1.0) * STEPS as f64) as u64, STEPS) // NaN becomes 0
    }
    /// To the nearest whole number; never falls as `n` grows, never above `n`.
    fn apply(self, n: u64) -> u64 {
        let from = u128::from(self.from);
        u64::try_from((u128::from(n) * u128::from(self.of) + from / 2) / from).unwrap_or(n)
    }
}

/// What most of the rows of a profile speak of, whatever it claims: no count in it is larger.
pub(super) fn rows_in(content: &ProfileContent) -> u64 {
    let channels = content.channels.iter().map(|channel| channel.n.saturating_add(channel.missing));
    let quality = content.quality.as_ref().map_or(0, |quality| quality.n);
    let faults = content.faults.values().fold(0u64, |sum, n| sum.saturating_add(*n));
    channels.fold(content.rows.max(quality).max(faults), u64::max)
}

/// A sound profile of about `share` of the rows of a sound one: counts are rounded so that their sums still agree.
pub(super) fn thinned(content: &ProfileContent, share: Share) -> ProfileContent {
    if share.of == share.from {
        return content.clone();
    }
    ProfileContent {
        rows: share.apply(content.rows),
        channels: content.channels.iter().map(|channel| thin_channel(channel, share)).collect(),
        quality: content.quality.as_ref().map(|quality| thin_quality(quality, share)),
        faults: content
            .faults
            .iter()
            .map(|(kind, n)| (kind.clone(), share.apply(*n)))
            .filter(|(_, n)| *n > 0)
            .collect(),
        repeats: content.repeats.map(|repeats| Repeats {
            rows: share.apply(repeats.rows),
            distinct: share.apply(repeats.distinct),
            remembered: share.apply(repeats.remembered),
        }),
    }
}

fn thin_channel(channel: &Channel, share: Share) -> Channel {
    let n = share.apply(channel.n);
    let categories: Vec<u64> = channel.categories.values().copied().collect();
    let categories = channel.categories.keys().cloned().zip(apportioned(&categories, n));
    Channel {
        id: channel.id.clone(),
        n,
        missing: share.apply(channel.missing),
        bins: apportioned(&channel.bins, n),
        moments: thin_moments(&channel.moments, share),
        categories: categories.filter(|(_, n)| *n > 0).collect(),
        lag1: channel.lag1,
        longest_run: channel.longest_run.min(n),
    }
}

fn thin_moments(moments: &Moments, share: Share) -> Moments {
    match share.apply(moments.n) {
        0 => Moments::default(),
        n => Moments { n, m2: moments.m2 * (n as f64 / moments.n as f64), ..*moments },
    }
}

fn thin_quality(quality: &Quality, share: Share) -> Quality {
    let n = share.apply(quality.n);
    let rest = n as f64 / quality.n.max(1) as f64;
    let classes = quality.classes.iter().map(|(class, part)| {
        let n = share.apply(part.n);
        let expected_correct = part.expected_correct * (n as f64 / part.n.max(1) as f64);
        (class.clone(), ClassQuality { n, expected_correct })
    });
    Quality {
        n,
        expected_correct: quality.expected_correct * rest,
        variance: quality.variance * rest,
        above: share.apply(quality.above).min(n),
        classes: classes.filter(|(_, part)| part.n > 0).collect(),
    }
}

/// `counts` cut down so that they sum to `total`, each by the same share but for rounding (largest remainders first).
fn apportioned(counts: &[u64], total: u64) -> Vec<u64> {
    let sum: u128 = counts.iter().map(|n| u128::from(*n)).sum();
    if sum == 0 {
        return counts.to_vec();
    }
    let scaled = |n: u64| u128::from(n) * u128::from(total);
    let mut kept: Vec<u64> = counts.iter().map(|n| u64::try_from(scaled(*n) / sum).unwrap_or(*n)).collect();
    let missing = usize::try_from(total - kept.iter().sum::<u64>().min(total)).unwrap_or(0);
    let mut order: Vec<usize> = (0..counts.len()).filter(|at| scaled(counts[*at]) % sum > 0).collect();
    order.sort_by_key(|at| std::cmp::Reverse(scaled(counts[*at]) % sum));
    order.into_iter().take(missing).for_each(|at| kept[at] += 1);
    kept
}

/// What a category costs in a document, beside its name, bytes.
const CATEGORY: usize = 12;

/// Adds the smaller categories of the largest channels to `other` until the profile's JSON has about `bytes` or less.
/// Bins, moments and ids are bounded by themselves (128 channels of 65 bins: some 120 KB).
pub(super) fn bounded(content: &mut ProfileContent, bytes: usize) {
    let cost = |channel: &Channel| channel.categories.keys().map(|name| name.len() + CATEGORY).sum::<usize>();
    let mut all: usize = content.channels.iter().map(cost).sum();
    while all > bytes {
        let Some(largest) = content.channels.iter_mut().max_by_key(|channel| cost(channel)) else { return };
        all -= cost(largest);
        let mut ranked: Vec<_> = std::mem::take(&mut largest.categories).into_iter().collect();
        ranked.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let kept = ranked.len() / 2;
        let mut rest = BTreeMap::new();
        for (at, (name, n)) in ranked.into_iter().enumerate() {
            add_category(&mut rest, if at < kept { &name } else { OTHER }, n);
        }
        largest.categories = rest;
        let now = cost(largest);
        all += now;
        if kept == 0 {
            return; // nothing is left but `other`
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use edgefleet_shared::telemetry::channel::{MAX_CATEGORIES, MAX_CHANNELS, MAX_EDGES};
    use proptest::prelude::*;

    /// A sound profile of `bins`, with everything a profile can have.
    pub(in super::super) fn profile(bins: Vec<u64>) -> ProfileContent {
        let n = bins.iter().sum();
        let mut channel = Channel::new("input/x".parse().unwrap());
        channel.n = n;
        channel.moments = Moments { n, mean: 0.5, m2: n as f64 / 12.0, min: 0.0, max: 1.0 };
        channel.categories = bins.iter().enumerate().map(|(at, n)| (format!("c{at}"), *n)).collect();
        (channel.bins, channel.missing, channel.longest_run, channel.lag1) = (bins, n / 7, n / 3, 0.25);
        let class = ClassQuality { n, expected_correct: 0.8 * n as f64 };
        let quality = Quality {
            n,
            expected_correct: 0.8 * n as f64,
            variance: 0.16 * n as f64,
            above: n * 3 / 4,
            classes: [("7".to_owned(), class)].into(),
        };
        let faults = [("decode_image".to_owned(), n / 5)].into();
        let repeats = Some(Repeats { rows: n, distinct: n / 3, remembered: n / 2 });
        ProfileContent { rows: n, channels: vec![channel], quality: Some(quality), faults, repeats }
    }

    proptest! {
        #[test]
        fn a_thinned_profile_is_sound_and_keeps_its_shape(
            bins in prop::collection::vec(0u64..5_000, 1..30), of in 0u64..2_000, from in 1u64..2_000,
        ) {
            let whole = profile(bins);
            prop_assert!(whole.is_sound());
            let share = Share::new(of, from);
            let thin = thinned(&whole, share);
            prop_assert!(thin.is_sound(), "{thin:?}");
            let f = (of as f64 / from as f64).min(1.0);
            prop_assert!((thin.rows as f64 - whole.rows as f64 * f).abs() <= 0.5 + 1e-6);
            for (small, large) in thin.channels[0].bins.iter().zip(&whole.channels[0].bins) {
                prop_assert!((*small as f64 - *large as f64 * f).abs() <= 1.5, "{small} of {large}, share {f}");
            }
            let (a, b) = (thin.quality.unwrap(), whole.quality.unwrap());
            if let (Some(a), Some(b)) = (a.cbpe(), b.cbpe()) {
                prop_assert!((a - b).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn enormous_claims_neither_overflow_nor_exceed_what_is_allowed() {
        let mut whole = profile(vec![1, 1]);
        let channel = &mut whole.channels[0];
        (channel.n, channel.missing, channel.bins) = (u64::MAX, u64::MAX, vec![u64::MAX - 1, 1]);
        channel.categories.clear();
        whole.faults = [("a".to_owned(), u64::MAX), ("b".to_owned(), u64::MAX)].into();
        assert!(whole.is_sound());
        assert_eq!(rows_in(&whole), u64::MAX);
        let thin = thinned(&whole, Share::new(10_000, rows_in(&whole)));
        assert!(thin.is_sound());
        assert_eq!((rows_in(&thin), thin.channels[0].n), (20_000, 10_000));
    }

    #[test]
    fn the_largest_profile_fits_into_a_document() {
        let mut content = ProfileContent::default();
        for at in 0..MAX_CHANNELS {
            let mut channel = Channel::new(format!("input/{at:0>88}").parse().unwrap());
            channel.n = u64::MAX;
            channel.bins = vec![u64::MAX / (MAX_EDGES as u64 + 1); MAX_EDGES + 1];
            let third = 1.0 / 3.0;
            channel.moments = Moments { n: u64::MAX, mean: -third, m2: third, min: -third * 2.0, max: third };
            channel.categories =
                (0..=MAX_CATEGORIES).map(|n| (format!("{n:0>64}"), u64::MAX / 200 + n as u64)).collect();
            content.channels.push(channel);
        }
        let before: u64 = content.channels[0].categories.values().sum();
        assert!(serde_json::to_vec(&content).unwrap().len() > 1 << 20);
        bounded(&mut content, 128 << 10);
        let bytes = serde_json::to_vec(&content).unwrap().len();
        assert!(bytes < 700 << 10, "{bytes}");
        assert_eq!(content.channels[0].categories.values().sum::<u64>(), before);
        assert!(content.channels[0].categories.len() > 1);
    }
}
