//! A drift that comes back by the hour or by the weekday is the place's rhythm, not its decay.

use edgefleet_shared::time::Timestamp;
use serde::{Deserialize, Serialize};

const HOUR: u64 = 3_600;
const DAY: u64 = 24;
/// Days of hourly scores before a rhythm of a day is claimed: each hour is predicted by that hour of the other days.
const DAYS: usize = 7;
/// Weeks before a rhythm of a week is: with one, the days of a week and a trend look alike.
const WEEKS: usize = 3;
/// Share of the variance that the other days (weeks) must predict.
const PREDICTED: f64 = 0.4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rhythm {
    /// By hour of the day.
    Daily,
    /// By hour of the week.
    Weekly,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Season {
    pub rhythm: Rhythm,
    /// Share of the variance predicted from other days (weeks), 0 to 1.
    pub predicted: f64,
    /// Mean score by hour (UTC) of the day: 24 values; of the week from Monday: 168.
    pub profile: Vec<f64>,
    /// Hours (UTC) of the cycle whose mean is beyond the middle between quiet and loud hours.
    pub loud: Vec<u32>,
    /// Mean score of loud and of the other hours.
    pub loud_mean: f64,
    pub quiet_mean: f64,
}

/// Looks for a rhythm in hourly scores (any order; several of one hour are averaged). `None` below 7 days, or where
/// other days do not predict a day. A change of the clocks moves one hour twice a year, which blurs and hides nothing.
pub fn recurring(scores: &[(Timestamp, f64)]) -> Option<Season> {
    let daily = cycle(scores, DAY, DAYS, Rhythm::Daily);
    let weekly = cycle(scores, 7 * DAY, WEEKS, Rhythm::Weekly);
    match (daily, weekly) {
        // A day's rhythm is a week's as well: the week must add something.
        (Some(day), Some(week)) => Some(if week.predicted > day.predicted + 0.1 { week } else { day }),
        (day, week) => day.or(week),
    }
}

fn cycle(scores: &[(Timestamp, f64)], length: u64, least: usize, rhythm: Rhythm) -> Option<Season> {
    // The epoch was a Thursday: three days later a week begins.
    let begin = |hour: u64| hour.saturating_add(3 * DAY);
    let mut cells: std::collections::BTreeMap<(u64, u64), (f64, f64)> = std::collections::BTreeMap::new();
    for (at, score) in scores.iter().filter(|(_, score)| score.is_finite()) {
        let hour = begin(at.as_secs() / HOUR);
        let cell = cells.entry((hour / length, hour % length)).or_default();
        *cell = (cell.0 + score, cell.1 + 1.0);
    }
    let mut sums = vec![(0.0, 0.0); usize::try_from(length).ok()?];
    let mut rounds = std::collections::BTreeMap::<u64, u64>::new();
    for ((round, place), (sum, n)) in &cells {
        let all = sums.get_mut(*place as usize)?;
        *all = (all.0 + sum / n, all.1 + 1.0);
        *rounds.entry(*round).or_default() += 1;
    }
    let full = rounds.values().filter(|hours| **hours * 4 >= length * 3).count();
    if full < least {
        return None;
    }
    let mean = sums.iter().map(|(sum, _)| sum).sum::<f64>() / cells.len() as f64;
    let (mut missed, mut all) = (0.0, 0.0);
    for ((_, place), (sum, n)) in &cells {
        let (total, count) = sums[*place as usize];
        if count >= 2.0 {
            let (x, others) = (sum / n, (total - sum / n) / (count - 1.0));
            missed += (x - others).powi(2);
            all += (x - mean).powi(2);
        }
    }
    let predicted = if all > 1e-12 { 1.0 - missed / all } else { 0.0 };
    if predicted < PREDICTED {
        return None;
    }
    let profile: Vec<f64> = sums.iter().map(|(sum, n)| if *n > 0.0 { sum / n } else { mean }).collect();
    let (low, high) = profile.iter().fold((f64::MAX, f64::MIN), |ends, x| (ends.0.min(*x), ends.1.max(*x)));
    let middle = 0.5 * (low + high);
    let loud: Vec<u32> = (0..).zip(&profile).filter(|(_, x)| **x > middle).map(|(hour, _)| hour).collect();
    let part = |is_loud: bool| {
        let chosen: Vec<_> = profile.iter().filter(|x| (**x > middle) == is_loud).collect();
        chosen.iter().copied().sum::<f64>() / chosen.len().max(1) as f64
    };
    let (loud_mean, quiet_mean) = (part(true), part(false));
    Some(Season { rhythm, predicted: predicted.min(1.0), profile, loud, loud_mean, quiet_mean })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::random::Random;

    fn series(hours: u64, score: impl Fn(u64, &mut Random) -> f64) -> Vec<(Timestamp, f64)> {
        let mut random = Random::new(5);
        // A Monday at midnight.
        let monday = 1_799_020_800 - 1_799_020_800 % (7 * DAY * HOUR) + 4 * DAY * HOUR;
        (0..hours).map(|h| (Timestamp::from_secs(monday + h * HOUR), score(h, &mut random))).collect()
    }

    #[test]
    fn day_and_night_are_told_from_noise_trend_and_step() {
        let night = |h: u64, r: &mut Random| if h % 24 < 7 { 0.3 } else { 0.05 } + 0.03 * r.normal();
        let found = recurring(&series(8 * 24, night)).unwrap();
        assert_eq!((found.rhythm, found.loud.as_slice()), (Rhythm::Daily, &[0, 1, 2, 3, 4, 5, 6][..]));
        assert!(found.loud_mean > 0.25 && found.quiet_mean < 0.1, "{found:?}");
        assert!(recurring(&series(6 * 24, night)).is_none(), "a week is needed");
        for seed in 0..3 {
            assert!(recurring(&series(14 * 24 + seed, |_, r| 0.1 + 0.05 * r.normal())).is_none(), "noise");
        }
        assert!(recurring(&series(14 * 24, |h, r| 0.001 * h as f64 + 0.02 * r.normal())).is_none(), "trend");
        assert!(
            recurring(&series(14 * 24, |h, r| f64::from(h > 200) * 0.3 + 0.02 * r.normal())).is_none(),
            "step"
        );
    }

    #[test]
    fn weekends_take_three_weeks() {
        let weekend = |h: u64, r: &mut Random| f64::from(h % 168 >= 120) * 0.3 + 0.05 + 0.02 * r.normal();
        assert!(recurring(&series(14 * 24, weekend)).is_none());
        let found = recurring(&series(28 * 24, weekend)).unwrap();
        assert_eq!((found.rhythm, found.loud.first(), found.loud.len()), (Rhythm::Weekly, Some(&120), 48));
    }

    #[test]
    fn odd_numbers_are_no_rhythm() {
        assert!(recurring(&[]).is_none());
        assert!(recurring(&series(240, |_, _| f64::NAN)).is_none());
        assert!(recurring(&series(240, |_, _| 1.0)).is_none());
        assert!(recurring(&[(Timestamp::from_millis(u64::MAX), 1.0)]).is_none());
    }
}
