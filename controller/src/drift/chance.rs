//! Distributions the noise floors are made of: normal, gamma, chi-square. Finite for every finite argument.

use crate::evidence::special::ln_gamma;

/// P(Gamma(shape, scale 1) > x), 0 to 1: series below shape + 1, continued fraction (Lentz) above.
/// Source: Press et al., Numerical Recipes, 6.2.
pub fn gamma_above(shape: f64, x: f64) -> f64 {
    if !(shape > 0.0 && shape.is_finite()) || x.is_nan() {
        return 1.0;
    }
    if x <= 0.0 {
        return 1.0;
    }
    if x == f64::INFINITY {
        return 0.0;
    }
    let head = (shape * x.ln() - x - ln_gamma(shape)).exp();
    if x < shape + 1.0 {
        let (mut term, mut sum, mut a) = (1.0 / shape, 1.0 / shape, shape);
        for _ in 0..10_000 {
            a += 1.0;
            term *= x / a;
            sum += term;
            if term < sum * 1e-15 {
                break;
            }
        }
        return (1.0 - sum * head).clamp(0.0, 1.0);
    }
    let keep = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let mut b = x + 1.0 - shape;
    let mut c = 1e300;
    let mut d = 1.0 / keep(b);
    let mut h = d;
    for step in 1..10_000 {
        let i = f64::from(step);
        let an = -i * (i - shape);
        b += 2.0;
        d = 1.0 / keep(an * d + b);
        c = keep(b + an / c);
        h *= d * c;
        if (d * c - 1.0).abs() < 1e-14 {
            break;
        }
    }
    (head * h).clamp(0.0, 1.0)
}

/// P(chi-square with `df` degrees of freedom > x).
pub fn chi_square_above(df: f64, x: f64) -> f64 {
    gamma_above(df / 2.0, x / 2.0)
}

/// P(|standard normal| > |z|).
pub fn normal_beyond(z: f64) -> f64 {
    if z.is_nan() { 1.0 } else { gamma_above(0.5, z * z / 2.0) }
}

/// x with P(Gamma(shape, 1) > x) = `above`, by bisection to twelve digits. `above` outside (0, 1) is brought in.
pub fn gamma_quantile(shape: f64, above: f64) -> f64 {
    let above = if above.is_nan() { 0.5 } else { above.clamp(1e-12, 1.0 - 1e-12) };
    let (mut low, mut high) = (0.0, shape.max(1.0));
    while gamma_above(shape, high) > above && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if gamma_above(shape, middle) > above { low = middle } else { high = middle }
    }
    high
}

/// The value a chi-square variable of `df` degrees of freedom exceeds with probability `above`.
pub fn chi_square_quantile(df: f64, above: f64) -> f64 {
    2.0 * gamma_quantile(df / 2.0, above)
}

/// z with P(|standard normal| > z) = `beyond`.
pub fn normal_quantile(beyond: f64) -> f64 {
    (2.0 * gamma_quantile(0.5, beyond)).sqrt()
}

/// Interval of a Poisson mean after `count` events, at level `1 - alpha`. Source: Garwood, Biometrika 28 (1936).
pub fn poisson(count: u64, alpha: f64) -> (f64, f64) {
    let n = count as f64;
    let low = if count == 0 { 0.0 } else { gamma_quantile(n, 1.0 - alpha / 2.0) };
    (low, gamma_quantile(n + 1.0, alpha / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_match_the_tables() {
        for (df, above, wanted) in
            [(9.0, 0.05, 16.919), (1.0, 0.05, 3.841), (19.0, 0.01, 36.191), (63.0, 0.001, 103.442)]
        {
            let found = chi_square_quantile(df, above);
            assert!((found - wanted).abs() < 2e-3, "{df} {above}: {found}");
            assert!((chi_square_above(df, found) - above).abs() < 1e-9);
        }
        assert!((normal_beyond(1.959_964) - 0.05).abs() < 1e-6);
        assert!((normal_quantile(0.01) - 2.575_829).abs() < 1e-5);
        // Garwood: 0 events -> (0, 3.689), 5 events -> (1.623, 11.668).
        let (low, high) = poisson(5, 0.05);
        assert!((low - 1.623).abs() < 1e-3 && (high - 11.668).abs() < 1e-3, "{low} {high}");
        assert!((poisson(0, 0.05).1 - 3.689).abs() < 1e-3);
    }

    #[test]
    fn nothing_is_ever_not_a_number() {
        for shape in [0.0, 1e-3, 0.5, 10.0, 1e6, f64::NAN, f64::INFINITY] {
            for x in [-1.0, 0.0, 1e-9, 3.0, 1e9, f64::INFINITY, f64::NAN] {
                let p = gamma_above(shape, x);
                assert!((0.0..=1.0).contains(&p), "{shape} {x}: {p}");
            }
        }
    }
}
