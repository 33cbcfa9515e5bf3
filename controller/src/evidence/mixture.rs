//! Likelihood-ratio mixtures: the e-values that most gates are made of, in log space.

use super::special::{ln_beta, ln_inc_beta};

/// Largest e-value ever shown; also the largest threshold.
pub const E_MAX: f64 = 1e300;

/// exp, between 0 and [`E_MAX`]; not-a-number (settings that were never validated) is no evidence: 1.
pub(super) fn e_value(log: f64) -> f64 {
    if log.is_nan() { 1.0 } else { log.min(E_MAX.ln()).exp().min(E_MAX) }
}

/// ln of the mean of exp(x): a mean of e-processes is one again. Empty: 0 (no evidence).
pub(super) fn ln_mean_exp(logs: impl IntoIterator<Item = f64> + Clone) -> f64 {
    let (mut most, mut count) = (f64::NEG_INFINITY, 0_u32);
    for log in logs.clone() {
        most = most.max(log);
        count += 1;
    }
    if count == 0 || !most.is_finite() {
        return if count == 0 { 0.0 } else { most };
    }
    let sum: f64 = logs.into_iter().map(|log| (log - most).exp()).sum();
    most + (sum / f64::from(count)).ln()
}

/// ln E of `x` successes and `clean` failures against a bound on the success probability.
///
/// `E = mean_j (p_j/p0)^x ((1-p_j)/(1-p0))^clean` with p_j = p0 times each of `ratios`, at most half-way
/// from p0 to 1. With ratios above 1 it is an e-process whenever P(success | past) <= p0 (harm), with
/// ratios below 1 whenever P(success | past) >= p0 (safe). Dependence between draws is allowed: only the
/// conditional probability is bounded. Fractional counts come from scaling a window down, see [`thin`].
///
/// Source: `research/fleet-control.md` 6.4 (b) and (d); mixtures of likelihood ratios: Robbins 1970,
/// Howard et al. arXiv 1810.08240.
pub(super) fn ln_bernoulli(x: f64, clean: f64, p0: f64, ratios: &[f64]) -> f64 {
    ln_mean_exp(ratios.iter().map(|ratio| {
        let p = (p0 * ratio).min(0.5 + p0 / 2.0);
        x * (p / p0).ln() + clean * ((1.0 - p) / (1.0 - p0)).ln()
    }))
}

/// Alternatives of harm and of safety, as multiples of the bound (6.4 d).
pub(super) const HARM_RATIOS: [f64; 5] = [1.5, 2.0, 3.0, 5.0, 10.0];
pub(super) const SAFE_RATIOS: [f64; 4] = [0.05, 0.125, 0.25, 0.5];

/// ln e(w, l) of the sign test: `w` wins and `l` losses against "a win has probability at most 1/2".
///
/// `e(w,l) = 2^(n+1) B(w+1, l+1) P(Beta(w+1, l+1) > 1/2)`: the likelihood ratio against 1/2, mixed
/// uniformly over win probabilities in (1/2, 1]. For whole counts this is
/// `2^(n+1) / ((n+1) C(n,w)) P(Bin(n+1, 1/2) <= w)`, and e(w,l) is the mean of its two successors.
/// An e-process whenever P(win | past, no tie) <= 1/2. Rises with w, falls with l.
///
/// Source: `research/fleet-control.md` 6.4 (b), verdict 2.
pub(super) fn ln_sign(w: f64, l: f64) -> f64 {
    let (a, b) = (w.max(0.0) + 1.0, l.max(0.0) + 1.0);
    // n + 1 = a + b - 1; P(Beta(a, b) > 1/2) = I_{1/2}(b, a)
    (a + b - 1.0) * std::f64::consts::LN_2 + ln_beta(a, b) + ln_inc_beta(0.5, b, a)
}

/// The factor that scales a window of `n` observations down to at most `limit` (DECISIONS 26).
///
/// Scaling counts by s in (0, 1] raises each alternative's likelihood ratio L to the power s. With n
/// known before the outcomes, E[L^s] <= (E L)^s <= 1 by Jensen: an e-value again, without a random draw.
pub(super) fn thin(n: u64, limit: u32) -> f64 {
    let limit = u64::from(limit.max(1));
    if n <= limit { 1.0 } else { limit as f64 / n as f64 }
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn straight_wins_reach_the_thresholds_where_research_says() {
        // 7 wins reach 20, 9 reach 100 (6.4 b).
        for (wins, at_least, below) in
            [(6, 10.0, 20.0), (7, 20.0, 100.0), (8, 20.0, 100.0), (9, 100.0, 200.0)]
        {
            let e = e_value(ln_sign(f64::from(wins), 0.0));
            assert!(e >= at_least && e < below, "{wins} wins: {e}");
        }
        // 2^10 / 10 * 1023 / 1024
        assert!((e_value(ln_sign(9.0, 0.0)) - 102.3).abs() < 1e-9);
    }

    #[test]
    fn two_hundred_clean_device_hours_are_worth_27() {
        let e = e_value(ln_bernoulli(0.0, 200.0, 0.02, &SAFE_RATIOS));
        assert!((26.5..28.0).contains(&e), "{e}");
    }

    /// Median number of draws until `ln_e(successes, failures)` reaches 100, over 200 runs.
    fn median_to_100(p: f64, most: u32, step: u32, ln_e: impl Fn(f64, f64) -> f64) -> u32 {
        let mut random = Random::new(3);
        let mut times: Vec<u32> = (0..200)
            .map(|_| {
                let mut x = 0_u64;
                let reached = (step..=most).step_by(step as usize).find(|n| {
                    x += random.binomial(u64::from(step), p);
                    ln_e(x as f64, f64::from(*n) - x as f64) >= 100_f64.ln()
                });
                reached.unwrap_or(u32::MAX)
            })
            .collect();
        times.sort_unstable();
        times[100]
    }

    #[test]
    fn as_many_draws_are_needed_as_research_says() {
        // Agreement with a floor of 98 % (6.4 d): 0.5 % is proven safe after 520, 5 % is caught after 300.
        let safe = median_to_100(0.005, 3000, 20, |x, clean| ln_bernoulli(x, clean, 0.02, &SAFE_RATIOS));
        assert!((420..=640).contains(&safe), "{safe}");
        let harm = median_to_100(0.05, 3000, 20, |x, clean| ln_bernoulli(x, clean, 0.02, &HARM_RATIOS));
        assert!((220..=400).contains(&harm), "{harm}");
        // Votes on latency (6.4 b): 14 devices at a win probability of 0.9, 36 at 0.75.
        for (p, wanted) in [(0.9, 12..=16), (0.75, 28..=46)] {
            let votes = median_to_100(p, 300, 1, ln_sign);
            assert!(wanted.contains(&votes), "{p}: {votes}");
        }
    }

    proptest! {
        #[test]
        fn the_sign_test_is_the_mean_of_its_two_successors(w in 0u32..400, l in 0u32..400) {
            let at = |w: u32, l: u32| ln_sign(f64::from(w), f64::from(l));
            let next = ln_mean_exp([at(w + 1, l), at(w, l + 1)]);
            prop_assert!((at(w, l) - next).abs() < 1e-8, "{} {}", at(w, l), next);
        }

        #[test]
        fn the_next_bernoulli_step_is_expected_to_be_no_larger_under_the_null(
            n in 0u32..2000, share in 0.0..1.0f64, p0 in 0.001..0.4f64, null in 0.0..1.0f64,
        ) {
            let x = (f64::from(n) * share).floor();
            let clean = f64::from(n) - x;
            for (ratios, p) in [(&HARM_RATIOS[..], p0 * null), (&SAFE_RATIOS[..], p0 + (1.0 - p0) * null)] {
                let now = ln_bernoulli(x, clean, p0, ratios);
                let up = (ln_bernoulli(x + 1.0, clean, p0, ratios) - now).exp();
                let down = (ln_bernoulli(x, clean + 1.0, p0, ratios) - now).exp();
                prop_assert!(p * up + (1.0 - p) * down <= 1.0 + 1e-9, "{up} {down}");
            }
        }

        #[test]
        fn thinned_windows_stay_e_values(n in 1u64..40, p0 in 0.01..0.3f64, limit in 1u32..20) {
            // Exact expectation over the binomial window at the edge of the null.
            let s = thin(n, limit);
            let mut mean = 0.0;
            for x in 0..=n {
                let (xf, nf) = (x as f64, n as f64);
                let ln_p = -ln_beta(xf + 1.0, nf - xf + 1.0) - (nf + 1.0).ln() + xf * p0.ln() + (nf - xf) * (1.0 - p0).ln();
                mean += (ln_p + ln_bernoulli(xf * s, (nf - xf) * s, p0, &HARM_RATIOS)).exp();
            }
            prop_assert!(mean <= 1.0 + 1e-9, "{mean}");
        }

        #[test]
        fn nothing_is_ever_not_a_number(w in 0.0..1e12f64, l in 0.0..1e12f64, p0 in 1e-6..0.49f64) {
            for log in [ln_sign(w, l), ln_bernoulli(w, l, p0, &HARM_RATIOS), ln_bernoulli(w, l, p0, &SAFE_RATIOS)] {
                let e = e_value(log);
                prop_assert!(e.is_finite() && e >= 0.0, "{w} {l} {p0}: {log}");
            }
        }
    }
}
