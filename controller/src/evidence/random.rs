//! A small deterministic generator for simulations: the same seed gives the same figures everywhere.

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). Not for secrets.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1): never an end, so logarithms stay finite.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    #[cfg(test)]
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Standard normal (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Exponential with mean 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    /// Successes of `n` draws: counted by skipping, so the cost is the number of successes; beyond 400
    /// expected ones the normal approximation.
    pub(crate) fn binomial(&mut self, n: u64, p: f64) -> u64 {
        if p <= 0.0 || n == 0 {
            return 0;
        }
        if p > 0.5 {
            return n - self.binomial(n, 1.0 - p);
        }
        let mean = n as f64 * p;
        if mean > 400.0 {
            let spread = (mean * (1.0 - p)).sqrt();
            return (mean + spread * self.normal()).round().clamp(0.0, n as f64) as u64;
        }
        let (mut at, mut successes) = (0.0, 0);
        let step = (-p).ln_1p();
        loop {
            at += (self.unit().ln() / step).floor() + 1.0;
            if at > n as f64 {
                return successes;
            }
            successes += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binomials_have_their_mean_and_spread() {
        let mut random = Random::new(7);
        for (n, p) in [(20, 0.01), (300, 0.3), (50, 0.9), (100_000, 0.2)] {
            let draws: Vec<f64> = (0..4000).map(|_| random.binomial(n, p) as f64).collect();
            let mean = draws.iter().sum::<f64>() / 4000.0;
            let var = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 4000.0;
            let (m, v) = (n as f64 * p, n as f64 * p * (1.0 - p));
            assert!((mean - m).abs() < 5.0 * (v / 4000.0).sqrt(), "{n} {p}: {mean}");
            assert!((var / v - 1.0).abs() < 0.15, "{n} {p}: {var} {v}");
        }
    }
}
