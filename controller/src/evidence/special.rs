//! Gamma and beta functions in log space: finite for every finite, positive argument used here.

use std::f64::consts::PI;

/// ln Gamma(x) for x > 0. Lanczos, g = 7, nine terms: relative error below 1e-14.
/// Source: Lanczos 1964; coefficients as in Godfrey 2001.
pub(crate) fn ln_gamma(x: f64) -> f64 {
    const C: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        return (PI / (PI * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let sum = (1..9).fold(C[0], |sum, i| sum + C[i] / (x + i as f64));
    let t = x + 7.5;
    0.5 * (2.0 * PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

pub(crate) fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// ln I_x(a, b), the regularised incomplete beta function, for a, b > 0 and 0 < x < 1.
///
/// Continued fraction after Lentz on the side where it converges fast (order sqrt(max(a, b)) steps);
/// the other side by the complement. Source: Press et al., Numerical Recipes, 6.4.
pub(crate) fn ln_inc_beta(x: f64, a: f64, b: f64) -> f64 {
    let head = |x: f64, a: f64, b: f64| a * x.ln() + b * (-x).ln_1p() - a.ln() - ln_beta(a, b);
    if x < (a + 1.0) / (a + b + 2.0) {
        (head(x, a, b) + fraction(x, a, b).ln()).min(0.0)
    } else {
        let other = (head(1.0 - x, b, a) + fraction(1.0 - x, b, a).ln()).min(0.0);
        // At most 1, up to rounding; the floor keeps the logarithm finite.
        (-other.exp()).max(-1.0 + f64::EPSILON).ln_1p()
    }
}

fn fraction(x: f64, a: f64, b: f64) -> f64 {
    let keep = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / keep(1.0 - (a + b) * x / (a + 1.0));
    let mut h = d;
    for step in 1..20_000 {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / keep(1.0 + even * d);
        c = keep(1.0 + even / c);
        h *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / keep(1.0 + odd * d);
        c = keep(1.0 + odd / c);
        h *= d * c;
        if (d * c - 1.0).abs() < 1e-14 {
            break;
        }
    }
    h.max(1e-300)
}

/// Upper Clopper-Pearson bound: the largest p with P(Bin(n, p) <= x) >= alpha.
/// Source: Clopper and Pearson 1934, by bisection of the beta quantile.
#[cfg(test)]
pub(super) fn clopper_pearson_upper(x: u32, n: u32, alpha: f64) -> f64 {
    if x >= n {
        return 1.0;
    }
    let (mut low, mut high) = (0.0_f64, 1.0_f64);
    for _ in 0..60 {
        let p = 0.5 * (low + high);
        // P(Bin(n, p) <= x) = I_{1-p}(n - x, x + 1)
        if ln_inc_beta(1.0 - p, f64::from(n - x), f64::from(x) + 1.0) > alpha.ln() {
            low = p;
        } else {
            high = p;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_and_beta_match_known_values() {
        for (x, wanted) in
            [(1.0, 0.0), (5.0, 24.0_f64.ln()), (0.5, PI.sqrt().ln()), (101.0, 363.739_375_555_563_5)]
        {
            assert!((ln_gamma(x) - wanted).abs() < 1e-10, "{x}: {}", ln_gamma(x));
        }
        // I_{1/2}(a, a) = 1/2; I_x(1, b) = 1 - (1 - x)^b
        for a in [1.0, 2.5, 40.0, 1e4, 1e8] {
            assert!(
                (ln_inc_beta(0.5, a, a) - 0.5_f64.ln()).abs() < 1e-6,
                "{a}: {}",
                ln_inc_beta(0.5, a, a).exp()
            );
        }
        for (x, b) in [(0.1_f64, 3.0), (0.7, 2.0), (0.01, 500.0)] {
            let wanted = (1.0 - (1.0 - x).powf(b)).ln();
            assert!((ln_inc_beta(x, 1.0, b) - wanted).abs() < 1e-10);
        }
    }

    #[test]
    fn clopper_pearson_matches_its_closed_form_and_a_table() {
        // No success: 1 - alpha^(1/n); 10 of 100 at 97.5 %: 0.1762.
        let zero = clopper_pearson_upper(0, 300, 0.01);
        assert!((zero - (1.0 - 0.01_f64.powf(1.0 / 300.0))).abs() < 1e-9);
        assert!((clopper_pearson_upper(10, 100, 0.025) - 0.1762).abs() < 1e-4);
        assert_eq!(clopper_pearson_upper(5, 5, 0.01), 1.0);
    }
}
