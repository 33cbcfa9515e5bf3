//! One channel against one reference: measures, noise floors, and whether it is a drift worth a word.

use super::{
    cells::{Cells, Side},
    measure::{jensen_shannon, stability, total_variation, wasserstein},
    noise,
    settings::DriftSettings,
};
use edgefleet_shared::{
    bundle::baseline::{Baseline, BaselineChannel, ChannelKind},
    ids::ChannelId,
    telemetry::{Channel, ProfileContent},
};
use serde::{Deserialize, Serialize};

/// A measure with what it would show without drift and from where on it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub value: f64,
    /// Exceeded with probability `alpha` if nothing drifts, for these numbers of rows.
    pub noise: f64,
    /// Smaller effects are not worth a word, however certain.
    pub floor: f64,
}

impl Measured {
    /// Beyond noise and floor; with `ease` below 1 both are lowered, for what is open already.
    fn exceeds(&self, ease: f64) -> bool {
        self.value > self.noise * ease && self.value >= self.floor * ease
    }
}

/// A share or a mean on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    pub now: f64,
    pub reference: f64,
    /// P(at least so far apart | no drift).
    pub p: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelVerdict {
    /// Too few effective rows on one side, or nothing that can be compared: says nothing.
    TooFew,
    Steady,
    /// Beyond noise, but within the effect floor; or, of an open drift, no longer far enough to open one.
    Slight,
    Shifted,
}

/// What one look at one channel found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelDrift {
    pub channel: ChannelId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ChannelKind>,
    /// Rows with a value, and what they are worth.
    pub n: u64,
    pub effective: f64,
    pub reference_effective: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub js: Option<Measured>,
    /// Shown beside the others; below [`DriftSettings::psi_rows`] rows it is mostly noise. Never decides alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psi: Option<Measured>,
    /// Numbers only; in reference standard deviations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub w1: Option<Measured>,
    /// Categories only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tv: Option<f64>,
    /// Share of rows without a value.
    pub missing: Moved,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Moved>,
    /// P(at least so different | no drift), over all measures used here (Bonferroni).
    pub p: f64,
    pub verdict: ChannelVerdict,
}

impl ChannelDrift {
    /// The Jensen-Shannon distance, or 0 where bins cannot be compared.
    pub fn score(&self) -> f64 {
        self.js.map_or(0.0, |js| js.value)
    }
    /// Above 1: how many times the effect floor the largest measure is.
    pub fn size(&self) -> f64 {
        let times =
            |m: Option<Measured>| m.map_or(0.0, |m| if m.floor > 0.0 { m.value / m.floor } else { 0.0 });
        times(self.js).max(times(self.w1))
    }
}

/// One channel against a reference. `edges` are the baseline's, by which both sides were counted; empty for
/// categories.
pub fn assess(
    id: &ChannelId,
    now: Side<'_>,
    reference: Side<'_>,
    edges: &[f64],
    settings: &DriftSettings,
) -> ChannelDrift {
    let worth = (now.effective, reference.effective);
    let share = |side: &Side<'_>| {
        let all = side.rows.saturating_add(side.missing) as f64;
        // Missing rows come in runs as values do: both are worth the same part of their number.
        let worth = if side.rows > 0 { side.effective / side.rows as f64 } else { 1.0 };
        (side.missing as f64 * worth, all * worth)
    };
    let (gone, gone_before) = (share(&now), share(&reference));
    let part = |(x, n): (f64, f64)| if n > 0.0 { x / n } else { 0.0 };
    let missing =
        Moved { now: part(gone), reference: part(gone_before), p: noise::shares(gone, gone_before) };
    let mut found = ChannelDrift {
        channel: id.clone(),
        kind: None,
        n: now.rows,
        effective: worth.0,
        reference_effective: worth.1,
        js: None,
        psi: None,
        w1: None,
        tv: None,
        missing,
        mean: None,
        p: 1.0,
        verdict: ChannelVerdict::TooFew,
    };
    let mut chances = Vec::with_capacity(3);
    let enough = worth.0.min(worth.1) >= settings.min_rows;
    if enough {
        measure_values(&mut found, &mut chances, (&now, &reference), edges, settings);
    }
    let lost = (missing.now - missing.reference).abs() >= settings.missing_floor;
    let rows_known = gone.1.min(gone_before.1) >= settings.min_rows;
    if rows_known {
        chances.push(missing.p);
    }
    let Some(least) = chances.iter().copied().reduce(f64::min) else { return found };
    found.p = (least * chances.len() as f64).min(1.0);
    // Beyond its quantile, and by the test on fuller cells as well: with cells that expect less than one row the
    // expansion behind the quantiles is too short (10 % instead of 1 % in tails of a normal).
    // What is open already stays so down to `ease` of noise and floor at ten times the chance: else a drift at the edge
    // of proof would open and close every few hours.
    let far = |ease: f64, alpha: f64| {
        let beyond = |m: Option<Measured>| m.is_some_and(|m| m.exceeds(ease));
        let gone = rows_known && lost && missing.p <= alpha;
        found.p <= alpha && (beyond(found.js) || beyond(found.w1) || gone)
    };
    found.verdict = match () {
        () if far(1.0, settings.alpha) => ChannelVerdict::Shifted,
        () if far(settings.ease, 10.0 * settings.alpha) => ChannelVerdict::Slight,
        () => ChannelVerdict::Steady,
    };
    found
}

fn measure_values(
    found: &mut ChannelDrift,
    chances: &mut Vec<f64>,
    (now, reference): (&Side<'_>, &Side<'_>),
    edges: &[f64],
    settings: &DriftSettings,
) {
    let worth = (now.effective, reference.effective);
    let alpha = settings.alpha;
    if let Some(cells) = Cells::between(now, reference) {
        let noise = noise::jensen_shannon_quantile(&cells, worth, alpha);
        found.js = Some(Measured { value: jensen_shannon(&cells), noise, floor: settings.js_floor });
        let noise = noise::stability_quantile(&cells, worth, alpha);
        found.psi = Some(Measured { value: stability(&cells), noise, floor: settings.psi_floor });
        if !now.categories.is_empty() {
            found.tv = Some(total_variation(&cells));
        }
        chances.push(noise::homogeneity(&cells, worth));
    }
    if let Some(value) = wasserstein(now, reference, edges)
        && let Some(noise) = noise::wasserstein_quantile(now, reference, edges, worth, alpha)
    {
        found.w1 = Some(Measured { value, noise, floor: settings.w1_floor });
        chances.push(noise::wasserstein_above(now, reference, edges, worth, value));
    }
    if let Some(deviation) = noise::mean_deviation(now, reference, worth) {
        let apart = now.moments.mean - reference.moments.mean;
        let p = if deviation > 0.0 { super::chance::normal_beyond(apart / deviation) } else { 1.0 };
        found.mean = Some(Moved { now: now.moments.mean, reference: reference.moments.mean, p });
    }
}

/// Every channel that the baseline knows, against it. A channel the profile does not have counts as too few.
pub fn against_baseline(
    now: &ProfileContent,
    baseline: &Baseline,
    settings: &DriftSettings,
) -> Vec<ChannelDrift> {
    each(now, baseline, settings, |known| Some(Side::from(known)))
}

/// Every channel against another profile (the own usual one, or the cohort's now), by the baseline's edges.
pub fn against_profile(
    now: &ProfileContent,
    other: &ProfileContent,
    baseline: &Baseline,
    settings: &DriftSettings,
) -> Vec<ChannelDrift> {
    each(now, baseline, settings, |known| find(other, &known.id).map(Side::from))
}

fn find<'a>(profile: &'a ProfileContent, id: &ChannelId) -> Option<&'a Channel> {
    profile.channels.binary_search_by(|channel| channel.id.cmp(id)).ok().map(|at| &profile.channels[at])
}

fn each<'a>(
    now: &ProfileContent,
    baseline: &'a Baseline,
    settings: &DriftSettings,
    reference: impl Fn(&'a BaselineChannel) -> Option<Side<'a>>,
) -> Vec<ChannelDrift> {
    let looked = baseline.channels.iter().filter_map(|known| {
        let (channel, reference) = (find(now, &known.id)?, reference(known)?);
        let mut found = assess(&known.id, Side::from(channel), reference, &known.edges, settings);
        found.kind = Some(known.kind);
        Some(found)
    });
    looked.collect()
}

#[cfg(test)]
mod tests {
    use super::super::cells::tests::{channel, normal_rows};
    use super::*;
    use proptest::prelude::*;

    fn look(now: &[f64], reference: &[f64]) -> ChannelDrift {
        let edges: Vec<_> = (-6..=6).map(|x| f64::from(x) * 0.4).collect();
        let (a, b) = (channel(now, &edges), channel(reference, &edges));
        assess(&a.id, Side::from(&a), Side::from(&b), &edges, &DriftSettings::default())
    }

    #[test]
    fn a_shift_is_found_by_its_size_and_not_by_its_certainty() {
        let reference = normal_rows(1, 5_000, 0.0, 1.0);
        for (n, shift, wanted) in [
            (20, 3.0, ChannelVerdict::TooFew),
            (2_000, 0.0, ChannelVerdict::Steady),
            (2_000, 0.6, ChannelVerdict::Shifted),
            (200_000, 0.02, ChannelVerdict::Steady),
            (120, 1.0, ChannelVerdict::Shifted),
        ] {
            let found = look(&normal_rows(9, n, shift, 1.0), &reference);
            assert_eq!(found.verdict, wanted, "{n} rows, {shift}: {found:?}");
        }
        let sure = look(&normal_rows(9, 200_000, 0.05, 1.0), &normal_rows(2, 200_000, 0.0, 1.0));
        assert!(
            sure.p < 1e-6 && sure.verdict == ChannelVerdict::Steady,
            "certain, and of no account: {sure:?}"
        );
    }

    #[test]
    fn psi_alone_never_decides_on_few_rows() {
        // 100 rows over 14 cells: PSI is beyond 0.1 by noise alone, again and again.
        let reference = normal_rows(1, 5_000, 0.0, 1.0);
        let looks: Vec<_> =
            (0..40).map(|seed| look(&normal_rows(12 + seed, 100, 0.0, 1.0), &reference)).collect();
        let beyond = looks.iter().filter(|found| found.psi.is_some_and(|psi| psi.value > 0.1)).count();
        assert!(beyond >= 10, "{beyond}");
        let shifted = looks.iter().filter(|found| found.verdict == ChannelVerdict::Shifted).count();
        assert!(shifted <= 1, "{shifted}");
    }

    #[test]
    fn values_that_go_missing_are_a_drift() {
        let mut a = channel(&normal_rows(3, 500, 0.0, 1.0), &[0.0]);
        let b = channel(&normal_rows(4, 500, 0.0, 1.0), &[0.0]);
        a.missing = 200;
        let found = assess(&a.id, Side::from(&a), Side::from(&b), &[0.0], &DriftSettings::default());
        assert_eq!(found.verdict, ChannelVerdict::Shifted);
        a.missing = 2;
        let found = assess(&a.id, Side::from(&a), Side::from(&b), &[0.0], &DriftSettings::default());
        assert_eq!(found.verdict, ChannelVerdict::Steady, "{found:?}");
    }

    proptest! {
        #[test]
        fn whatever_a_device_claims_is_assessed(
            bins in prop::collection::vec(0u64..u64::MAX / 64, 3), other in prop::collection::vec(0u64..1000, 3),
            mean in any::<f64>(), m2 in any::<f64>(), lag1 in any::<f64>(), missing in any::<u64>(), n in any::<u64>(),
        ) {
            let mut a = channel(&[], &[0.0, 1.0]);
            (a.bins, a.n, a.lag1, a.missing) = (bins, n, lag1, missing);
            a.moments = edgefleet_shared::telemetry::Moments { n, mean, m2, min: -mean, max: mean };
            let mut b = channel(&normal_rows(5, 50, 0.0, 1.0), &[0.0, 1.0]);
            (b.bins, b.n) = (other, 3_000);
            for (x, y) in [(&a, &b), (&b, &a)] {
                let found = assess(&x.id, Side::from(x), Side::from(y), &[0.0, 1.0], &DriftSettings::default());
                prop_assert!((0.0..=1.0).contains(&found.p), "{found:?}");
            }
        }
    }
}
