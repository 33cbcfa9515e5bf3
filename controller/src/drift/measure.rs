//! How far apart two summaries of one channel are.

use super::cells::{Cells, Side};

/// Smoothing of PSI: half a row more in each cell of both sides (Jeffreys), so that an empty cell is finite.
const SMOOTHING: f64 = 0.5;
/// The open bins at both ends are taken to reach to the extremes seen, at most so many reference deviations.
const TAIL: f64 = 3.0;

/// Jensen-Shannon distance: the root of the divergence in nats, 0 to sqrt(ln 2) = 0.83. Needs no smoothing.
///
/// Source: Endres and Schindelin, IEEE Trans. Inf. Theory 49 (2003): a metric.
pub fn jensen_shannon(cells: &Cells) -> f64 {
    let (n, m) = cells.totals();
    if n <= 0.0 || m <= 0.0 {
        return 0.0;
    }
    let part = |x: f64, middle: f64| if x > 0.0 { x * (x / middle).ln() } else { 0.0 };
    let sum: f64 = cells
        .pairs()
        .map(|(a, b)| {
            let (p, q) = (a / n, b / m);
            let middle = 0.5 * (p + q);
            0.5 * (part(p, middle) + part(q, middle))
        })
        .sum();
    sum.max(0.0).sqrt()
}

/// Population stability index: sum of (p - q) ln(p / q) over cells, each with [half a row](SMOOTHING) more.
pub fn stability(cells: &Cells) -> f64 {
    let (n, m) = cells.totals();
    if n <= 0.0 || m <= 0.0 {
        return 0.0;
    }
    let more = SMOOTHING * cells.len() as f64;
    cells
        .pairs()
        .map(|(a, b)| {
            let (p, q) = ((a + SMOOTHING) / (n + more), (b + SMOOTHING) / (m + more));
            (p - q) * (p / q).ln()
        })
        .sum()
}

/// Total variation: half the sum of |p - q|, 0 to 1: the share of rows that changed cells.
pub fn total_variation(cells: &Cells) -> f64 {
    let (n, m) = cells.totals();
    if n <= 0.0 || m <= 0.0 {
        return 0.0;
    }
    0.5 * cells.pairs().map(|(a, b)| (a / n - b / m).abs()).sum::<f64>()
}

/// Where the bins lie, with both open ends closed: `bins + 1` positions.
pub(super) fn positions(edges: &[f64], now: &Side<'_>, reference: &Side<'_>) -> Option<Vec<f64>> {
    let (first, last) = (edges.first()?, edges.last()?);
    let reach = TAIL * reference.std()?.max(f64::MIN_POSITIVE);
    let lowest = now.moments.min.min(reference.moments.min);
    let highest = now.moments.max.max(reference.moments.max);
    let mut at = Vec::with_capacity(edges.len() + 2);
    at.push(lowest.clamp(first - reach, *first));
    at.extend_from_slice(edges);
    at.push(highest.clamp(*last, last + reach));
    Some(at)
}

/// Wasserstein-1 distance in units of the reference's standard deviation.
///
/// Rows are taken to be spread evenly within a bin; the difference of means bounds it from below, which is what
/// remains exact if all rows fall into an open bin (a change of unit). `None` for categories, without bins and edges
/// that fit, and for a reference that does not vary.
pub fn wasserstein(now: &Side<'_>, reference: &Side<'_>, edges: &[f64]) -> Option<f64> {
    let std = reference.std().filter(|std| *std > 0.0)?;
    let means = (now.moments.mean - reference.moments.mean).abs();
    if edges.is_empty() || now.bins.len() != edges.len() + 1 || reference.bins.len() != edges.len() + 1 {
        return Some(means / std).filter(|x| x.is_finite() && now.moments.n > 0);
    }
    let at = positions(edges, now, reference)?;
    let (n, m) = (sum(now.bins), sum(reference.bins));
    if n <= 0.0 || m <= 0.0 {
        return None;
    }
    let (mut area, mut before) = (0.0, 0.0);
    for (bin, ends) in at.windows(2).enumerate() {
        let after = before + now.bins[bin] as f64 / n - reference.bins[bin] as f64 / m;
        area += (ends[1] - ends[0]) * under(before, after);
        before = after;
    }
    Some(area.max(means) / std).filter(|x| x.is_finite())
}

/// Mean of |a line from `a` to `b`|.
fn under(a: f64, b: f64) -> f64 {
    if a * b >= 0.0 { 0.5 * (a + b).abs() } else { 0.5 * (a * a + b * b) / (a - b).abs() }
}

pub(super) fn sum(bins: &[u64]) -> f64 {
    bins.iter().map(|n| *n as f64).sum()
}

#[cfg(test)]
mod tests {
    use super::super::cells::tests::{channel, normal_rows};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_distances_are_found() {
        let same = Cells::of(&[(10.0, 20.0), (30.0, 60.0)]);
        assert!(jensen_shannon(&same) < 1e-9 && total_variation(&same) < 1e-9);
        assert!(stability(&same) < 1e-3, "what is left is the smoothing");
        let apart = Cells::of(&[(10.0, 0.0), (0.0, 10.0)]);
        assert!((jensen_shannon(&apart) - 2_f64.ln().sqrt()).abs() < 1e-12);
        assert!((total_variation(&apart) - 1.0).abs() < 1e-12);
        // 0.5/0.5 against 0.6/0.4 with many rows: 0.1 ln(0.6/0.5) + 0.1 ln(0.5/0.4) = 0.04055.
        let near = Cells::of(&[(5e6, 6e6), (5e6, 4e6)]);
        assert!((stability(&near) - 0.040_55).abs() < 1e-4);
        assert!((stability(&near) / jensen_shannon(&near).powi(2) - 8.0).abs() < 0.1, "research 3.2");
    }

    #[test]
    fn a_shifted_normal_is_as_far_as_it_was_shifted() {
        let edges: Vec<_> = (-15..=15).map(|x| f64::from(x) * 0.2).collect();
        let rows = normal_rows(7, 20_000, 0.0, 1.0);
        let reference = channel(&rows, &edges);
        for shift in [0.0, 0.1, 0.5, 2.0] {
            let moved: Vec<_> = rows.iter().map(|x| x + shift).collect();
            let found =
                wasserstein(&Side::from(&channel(&moved, &edges)), &Side::from(&reference), &edges).unwrap();
            // The open bins are closed at the extremes: a little too wide.
            assert!((found - shift).abs() < 0.03 + 0.06 * shift, "{shift}: {found}");
        }
        let grown: Vec<_> = rows.iter().map(|x| 1_000.0 * x + 5_000.0).collect();
        let found =
            wasserstein(&Side::from(&channel(&grown, &edges)), &Side::from(&reference), &edges).unwrap();
        assert!(found > 4_900.0, "a change of unit is told by the means: {found}");
    }

    proptest! {
        #[test]
        fn distances_are_finite_and_symmetric(pairs in prop::collection::vec((0u32..1000, 0u32..1000), 0..30)) {
            let forth: Vec<_> = pairs.iter().map(|(a, b)| (f64::from(*a), f64::from(*b))).collect();
            let back: Vec<_> = forth.iter().map(|(a, b)| (*b, *a)).collect();
            for measure in [jensen_shannon, stability, total_variation] {
                let (x, y) = (measure(&Cells::of(&forth)), measure(&Cells::of(&back)));
                prop_assert!(x.is_finite() && x >= 0.0 && (x - y).abs() < 1e-9, "{x} {y}");
            }
            prop_assert!(jensen_shannon(&Cells::of(&forth)) <= 0.833);
        }
    }
}
