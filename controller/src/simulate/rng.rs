//! Random numbers of the virtual world: xoshiro256++ seeded by splitmix64, so that a seed means the same on
//! every machine and in every version. Shared with nothing that decides (DECISIONS 27).
//!
//! Source: Blackman and Vigna, "Scrambled linear pseudorandom number generators" (2021); Marsaglia and Tsang,
//! "A simple method for generating gamma variables" (2000).

#[derive(Clone, Debug)]
pub(super) struct Rng([u64; 4]);

/// One step of splitmix64: a good hash of 64 bits.
pub(super) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A uniform number in [0, 1) that belongs to these three for ever: fates that do not depend on the order of
/// events.
pub(super) fn fate(seed: u64, who: u64, what: u64) -> f64 {
    unit(mix(mix(mix(seed) ^ who) ^ what.rotate_left(32)))
}

fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        Self([(); 4].map(|()| {
            let word = mix(state);
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            word
        }))
    }

    pub(super) fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// In [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        unit(self.next())
    }

    pub(super) fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.unit() < p
    }

    /// In [low, high).
    pub(super) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        // The bias of a multiplication is below 2^-40 for the small n of this module.
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Standard normal (Box and Muller, one of the pair).
    pub(super) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    pub(super) fn lognormal(&mut self, sd: f64) -> f64 {
        (sd * self.normal()).exp()
    }

    fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            return self.gamma(shape + 1.0) * (1.0 - self.unit()).powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    pub(super) fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        if x + y > 0.0 { x / (x + y) } else { 0.0 }
    }

    /// Successes of `n` trials: exact for few, a rounded normal where that is close enough for counts that
    /// only feed tallies.
    pub(super) fn binomial(&mut self, n: u64, p: f64) -> u64 {
        let p = p.clamp(0.0, 1.0);
        let mean = n as f64 * p;
        if n <= 64 || mean < 12.0 || n as f64 - mean < 12.0 {
            return self.few(n, p);
        }
        let sd = (mean * (1.0 - p)).sqrt();
        (mean + sd * self.normal()).round().clamp(0.0, n as f64) as u64
    }

    /// Exact, by the gaps between successes: work grows with the successes, not with the trials.
    fn few(&mut self, n: u64, p: f64) -> u64 {
        if p > 0.5 {
            return n - self.few(n, 1.0 - p);
        }
        if p <= 0.0 {
            return 0;
        }
        let ln_q = (-p).ln_1p();
        let (mut done, mut hits) = (0.0, 0);
        loop {
            done += ((1.0 - self.unit()).ln() / ln_q).floor() + 1.0;
            if done > n as f64 {
                return hits;
            }
            hits += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_moments_of_their_distributions() {
        let mut rng = Rng::new(7);
        let n = 40_000;
        let mut mean = |draw: &mut dyn FnMut(&mut Rng) -> f64| {
            (0..n).map(|_| draw(&mut rng)).sum::<f64>() / f64::from(n)
        };
        for (name, wanted, found) in [
            ("unit", 0.5, mean(&mut |r| r.unit())),
            ("normal", 0.0, mean(&mut |r| r.normal())),
            ("normal squared", 1.0, mean(&mut |r| r.normal().powi(2))),
            ("beta", 0.02, mean(&mut |r| r.beta(0.6, 29.4))),
            ("few", 3.0, mean(&mut |r| r.binomial(300, 0.01) as f64)),
            ("many of few", 48.0, mean(&mut |r| r.binomial(60, 0.8) as f64)),
            ("many", 50.0, mean(&mut |r| r.binomial(100, 0.5) as f64)),
            ("below", 4.5, mean(&mut |r| r.below(10) as f64)),
        ] {
            assert!(
                (found - wanted).abs() < 0.05 * f64::max(1.0, wanted),
                "{name}: {found} instead of {wanted}"
            );
        }
    }

    #[test]
    fn a_seed_means_the_same_for_ever() {
        let mut rng = Rng::new(0);
        // First output of the reference implementation for the state splitmix64 makes of seed 0.
        assert_eq!(rng.next(), 5_987_356_902_031_041_503);
        assert_eq!(fate(1, 2, 3), fate(1, 2, 3));
        assert_ne!(fate(1, 2, 3), fate(1, 3, 2));
    }
}
