//! What each measure shows when nothing drifts: quantiles by the number of rows of both sides.
//!
//! | measure | without drift |
//! |---|---|
//! | PSI | (1/n + 1/m) chi-square(cells - 1): second-order expansion (research 3.2) |
//! | JS distance | root of PSI / 8 |
//! | Wasserstein-1 | (1/n + 1/m)^(1/2) times the area under a Brownian bridge, whose mean and variance are known exactly; a gamma of these two |
//!
//! n and m are effective: rows that resemble their predecessors prove less. The tests draw from known distributions
//! and count how often the quantile is exceeded.

use super::{
    cells::{Cells, Side},
    chance::{
        chi_square_above, chi_square_quantile, gamma_above, gamma_quantile, normal_beyond, normal_quantile,
    },
    measure::{positions, sum},
};

/// 1/n + 1/m; infinite if a side is empty.
fn inverse(worth: (f64, f64)) -> f64 {
    1.0 / worth.0.max(0.0) + 1.0 / worth.1.max(0.0)
}

/// What PSI exceeds with probability `alpha` if nothing drifts.
pub fn stability_quantile(cells: &Cells, worth: (f64, f64), alpha: f64) -> f64 {
    let df = cells.occupied().saturating_sub(1).max(1) as f64;
    inverse(worth) * chi_square_quantile(df, alpha)
}

/// The same for the Jensen-Shannon distance.
pub fn jensen_shannon_quantile(cells: &Cells, worth: (f64, f64), alpha: f64) -> f64 {
    (stability_quantile(cells, worth, alpha) / 8.0).sqrt()
}

/// Two-sample chi-square test of homogeneity on fuller cells: P(at least so different | no drift).
pub fn homogeneity(cells: &Cells, worth: (f64, f64)) -> f64 {
    let fuller = cells.fuller(worth);
    if fuller.len() < 2 || worth.0 <= 0.0 || worth.1 <= 0.0 {
        return 1.0;
    }
    let (k1, k2) = ((worth.1 / worth.0).sqrt(), (worth.0 / worth.1).sqrt());
    let x: f64 = fuller.iter().map(|(a, b)| (k1 * a - k2 * b).powi(2) / (a + b).max(1e-300)).sum();
    chi_square_above(fuller.len() as f64 - 1.0, x)
}

/// Mean and variance of Wasserstein-1, in reference deviations, for n = m = 2 (1/n + 1/m = 1).
///
/// sqrt(nm/(n+m)) (F_n - G_m) tends to a Brownian bridge B at F. E|B| = sqrt(2 F(1-F)/pi), and for two normals of
/// correlation r, E|XY| = (2/pi) s_x s_y (sqrt(1-r^2) + r asin r). Integrated over the bins by their middles.
fn bridge(at: &[f64], pooled: &[f64], std: f64) -> (f64, f64) {
    let total: f64 = pooled.iter().sum();
    let mut below = 0.0;
    let points: Vec<(f64, f64)> = pooled
        .iter()
        .zip(at.windows(2))
        .map(|(rows, ends)| {
            let f = ((below + 0.5 * rows) / total).clamp(0.0, 1.0);
            below += rows;
            (f, (ends[1] - ends[0]) / std)
        })
        .collect();
    let spread = |f: f64| (f * (1.0 - f)).max(0.0).sqrt();
    let mean: f64 =
        points.iter().map(|(f, w)| w * spread(*f)).sum::<f64>() * (2.0 / std::f64::consts::PI).sqrt();
    let mut square = 0.0;
    for (i, (f, wf)) in points.iter().enumerate() {
        for (j, (g, wg)) in points.iter().enumerate() {
            let both = spread(*f) * spread(*g);
            if both > 0.0 {
                let r = if i == j { 1.0 } else { (f.min(*g) * (1.0 - f.max(*g)) / both).min(1.0) };
                let joint = (1.0 - r * r).max(0.0).sqrt() + r * r.asin();
                square += wf * wg * both * joint * 2.0 / std::f64::consts::PI;
            }
        }
    }
    (mean, (square - mean * mean).max(0.0))
}

/// Shape and scale of the gamma that Wasserstein-1 follows without drift, in reference deviations.
fn wasserstein_gamma(
    now: &Side<'_>,
    reference: &Side<'_>,
    edges: &[f64],
    worth: (f64, f64),
) -> Option<(f64, f64)> {
    let std = reference.std().filter(|std| *std > 0.0)?;
    if edges.is_empty() || now.bins.len() != edges.len() + 1 || reference.bins.len() != edges.len() + 1 {
        return None;
    }
    let at = positions(edges, now, reference)?;
    let (n, m) = (sum(now.bins).max(1.0), sum(reference.bins).max(1.0));
    let pooled: Vec<_> = now
        .bins
        .iter()
        .zip(reference.bins)
        .map(|(a, b)| *a as f64 * worth.0 / n + *b as f64 * worth.1 / m)
        .collect();
    let (mean, variance) = bridge(&at, &pooled, std);
    let scale = inverse(worth).sqrt();
    (mean > 0.0 && variance > 0.0 && scale.is_finite())
        .then(|| (mean * mean / variance, scale * variance / mean))
}

/// What Wasserstein-1 exceeds with probability `alpha` if nothing drifts; at least what the difference of means does.
pub fn wasserstein_quantile(
    now: &Side<'_>,
    reference: &Side<'_>,
    edges: &[f64],
    worth: (f64, f64),
    alpha: f64,
) -> Option<f64> {
    let means = mean_deviation(now, reference, worth)? / reference.std().filter(|std| *std > 0.0)?;
    let means = normal_quantile(alpha) * means;
    let area = wasserstein_gamma(now, reference, edges, worth)
        .map_or(0.0, |(shape, scale)| scale * gamma_quantile(shape, alpha));
    Some(area.max(means)).filter(|x| x.is_finite())
}

/// P(Wasserstein-1 at least `w1` | no drift).
pub fn wasserstein_above(
    now: &Side<'_>,
    reference: &Side<'_>,
    edges: &[f64],
    worth: (f64, f64),
    w1: f64,
) -> f64 {
    match wasserstein_gamma(now, reference, edges, worth) {
        Some((shape, scale)) => gamma_above(shape, w1 / scale),
        None => match (mean_deviation(now, reference, worth), reference.std()) {
            (Some(deviation), Some(std)) if deviation > 0.0 => normal_beyond(w1 * std / deviation),
            _ => 1.0,
        },
    }
}

/// Standard deviation of the difference of means, in the channel's unit.
pub(super) fn mean_deviation(now: &Side<'_>, reference: &Side<'_>, worth: (f64, f64)) -> Option<f64> {
    let (a, b) = (now.moments.variance()?, reference.moments.variance()?);
    Some((a / worth.0.max(1.0) + b / worth.1.max(1.0)).sqrt()).filter(|x| x.is_finite())
}

/// P(two shares at least so different | both the same), by the pooled normal approximation; with few cases by half a
/// case less (Yates).
pub fn shares(a: (f64, f64), b: (f64, f64)) -> f64 {
    let ((x, n), (y, m)) = (a, b);
    if n <= 0.0 || m <= 0.0 {
        return 1.0;
    }
    let pooled = (x + y) / (n + m);
    let deviation = (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
    let apart = ((x / n - y / m).abs() - 0.5 * (1.0 / n + 1.0 / m)).max(0.0);
    if deviation > 0.0 { normal_beyond(apart / deviation) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::super::cells::tests::{channel, normal_rows};
    use super::super::measure::{jensen_shannon, stability, wasserstein};
    use super::*;
    use crate::evidence::random::Random;

    /// Edges that cut a reference into `bins` cells of equal mass.
    fn quantile_edges(rows: &[f64], bins: usize) -> Vec<f64> {
        let mut sorted = rows.to_vec();
        sorted.sort_by(f64::total_cmp);
        (1..bins).map(|at| sorted[at * sorted.len() / bins]).collect()
    }

    /// How often each quantile is exceeded, and each p-value at most alpha, over 2,000 draws without drift.
    #[test]
    fn without_drift_the_quantiles_are_exceeded_as_often_as_they_say() {
        let alpha = 0.01;
        for (n, m, bins, skewed) in
            [(200, 1_000, 10, false), (500, 100_000, 20, false), (2_000, 800, 20, true), (60, 400, 20, true)]
        {
            let mut over = [0_u32; 5];
            let draw = |seed: u64, n: usize| -> Vec<f64> {
                let rows = normal_rows(seed, n, 0.0, 1.0);
                if skewed { rows.into_iter().map(|x| (0.8 * x).exp()).collect() } else { rows }
            };
            let edges = quantile_edges(&draw(1, 20_000), bins);
            let runs = if m > 10_000 { 300 } else { 2_000 };
            for run in 0..runs {
                let (a, b) = (channel(&draw(100 + run, n), &edges), channel(&draw(900_000 + run, m), &edges));
                let (now, reference) = (Side::from(&a), Side::from(&b));
                let worth = (now.effective, reference.effective);
                let cells = Cells::between(&now, &reference).unwrap();
                let w1 = wasserstein(&now, &reference, &edges).unwrap();
                let hits = [
                    stability(&cells) > stability_quantile(&cells, worth, alpha),
                    jensen_shannon(&cells) > jensen_shannon_quantile(&cells, worth, alpha),
                    w1 > wasserstein_quantile(&now, &reference, &edges, worth, alpha).unwrap(),
                    homogeneity(&cells, worth) <= alpha,
                    wasserstein_above(&now, &reference, &edges, worth, w1) <= alpha,
                ];
                for (over, hit) in over.iter_mut().zip(hits) {
                    *over += u32::from(hit);
                }
            }
            // A rate of 1 %: not above 2 % beyond chance, and not so small that nothing would be found.
            let (most, least) = if runs == 2_000 { (40, 4) } else { (11, 0) };
            for (what, over) in ["psi", "js", "w1", "chi-square", "w1 p"].iter().zip(over) {
                let most = if *what == "js" && n < 100 { 2 * most } else { most };
                assert!(over <= most, "{what}: {over} of {runs} at n {n}, m {m}, {bins} bins");
                assert!(over >= least || *what == "psi", "{what}: {over} of {runs} at n {n}, m {m}");
            }
        }
    }

    #[test]
    fn the_figures_of_the_research_hold() {
        let cells = Cells::of(&[(1.0, 1.0); 10]);
        for (n, wanted) in [(100.0, 0.17), (500.0, 0.034), (1_000.0, 0.017)] {
            let found = stability_quantile(&cells, (n, 1e12), 0.05);
            assert!((found - wanted).abs() < 0.002, "{n}: {found}");
        }
    }

    #[test]
    fn rows_that_follow_each_other_raise_the_floor() {
        // AR(1) of r = 0.8: counted as independent, 1 % would become a third; with the effective n it stays near 1 %.
        let r: f64 = 0.8;
        let edges = quantile_edges(&normal_rows(1, 20_000, 0.0, 1.0), 10);
        let reference = channel(&normal_rows(2, 100_000, 0.0, 1.0), &edges);
        let mut random = Random::new(3);
        let (mut naive, mut honest) = (0, 0);
        for _ in 0..400 {
            let mut x = random.normal();
            let rows: Vec<f64> = (0..900)
                .map(|_| {
                    x = r * x + (1.0 - r * r).sqrt() * random.normal();
                    x
                })
                .collect();
            let mut now = channel(&rows, &edges);
            let p = |now: &edgefleet_shared::telemetry::Channel| {
                let (now, reference) = (Side::from(now), Side::from(&reference));
                let cells = Cells::between(&now, &reference).unwrap();
                homogeneity(&cells, (now.effective, reference.effective))
            };
            naive += u32::from(p(&now) <= 0.01);
            now.lag1 = r;
            honest += u32::from(p(&now) <= 0.01);
        }
        assert!(naive > 100, "{naive} of 400");
        assert!(honest <= 12, "{honest} of 400");
    }

    #[test]
    fn shares_are_compared_without_certainty_from_few_rows() {
        assert_eq!(shares((0.0, 0.0), (1.0, 10.0)), 1.0);
        assert!(shares((1.0, 20.0), (0.0, 20.0)) > 0.5);
        assert!(shares((30.0, 100.0), (10.0, 1_000.0)) < 1e-6);
    }
}
