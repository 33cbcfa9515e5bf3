//! From values to places, and round numbers beside the axis.

use super::{Unit, seconds};

/// A linear axis from `from` to `to`, drawn between the places `low` and `high`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    from: f64,
    to: f64,
    low: f64,
    high: f64,
}

impl Scale {
    /// A range of nothing, or of what is no number, becomes one of 1.
    pub(super) fn new(from: f64, to: f64, low: f64, high: f64) -> Self {
        let from = if from.is_finite() { from } else { 0.0 };
        let to = if to.is_finite() && to > from { to } else { from + 1.0 };
        Self { from, to, low, high }
    }
    /// Where `value` is drawn; outside values at the rim.
    pub(super) fn place(&self, value: f64) -> f64 {
        let share = ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0);
        let share = if share.is_nan() { 0.0 } else { share };
        self.low + share * (self.high - self.low)
    }
    pub(super) fn holds(&self, value: f64) -> bool {
        (self.from..=self.to).contains(&value)
    }
}

/// At most `most` round numbers within `from` to `to`.
pub(super) fn ticks(from: f64, to: f64, most: usize, unit: &Unit) -> Vec<f64> {
    let range = to - from;
    if !range.is_finite() || range <= 0.0 {
        return vec![];
    }
    let least = range / most.max(1) as f64;
    let step = match unit {
        Unit::Time => time_step(least),
        Unit::Percent | Unit::Millis | Unit::Count | Unit::Plain(_) => {
            let power = 10f64.powf(least.log10().floor());
            let step =
                [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= least * 0.999);
            let step = step.unwrap_or(power);
            if *unit == Unit::Count { step.max(1.0) } else { step }
        }
    };
    let first = (from / step - 1e-9).ceil();
    (0..=most).map(|n| (first + n as f64) * step).take_while(|tick| *tick <= to + step * 1e-9).collect()
}

fn time_step(least: f64) -> f64 {
    const STEPS: [f64; 12] = [
        60.0,
        300.0,
        900.0,
        1_800.0,
        3_600.0,
        10_800.0,
        21_600.0,
        43_200.0,
        86_400.0,
        172_800.0,
        604_800.0,
        2_592_000.0,
    ];
    STEPS.into_iter().find(|step| *step >= least).unwrap_or(31_536_000.0)
}

/// The word beside a tick; times as short as the range allows.
pub(super) fn label(value: f64, unit: &Unit, range: f64) -> String {
    match unit {
        Unit::Percent if range < 0.002 => format!("{:.2} %", 100.0 * value),
        Unit::Percent if range < 0.05 => format!("{:.1} %", 100.0 * value),
        Unit::Percent => format!("{:.0} %", 100.0 * value),
        Unit::Time => {
            let text = seconds(value).to_string();
            let (day, clock) = (text.get(5..10).unwrap_or(""), text.get(11..16).unwrap_or(""));
            if range > 2.0 * 86_400.0 { day.to_owned() } else { clock.to_owned() }
        }
        Unit::Millis | Unit::Count | Unit::Plain(_) => match value {
            v if v.abs() >= 1e6 => format!("{:.1} M", v / 1e6),
            v if v.abs() >= 1e4 => format!("{:.0} k", v / 1e3),
            v => format!("{}", (v * 1e6).round() / 1e6),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 1.0, 5, &Unit::Percent), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(0.0, 3.0, 5, &Unit::Count), [0.0, 1.0, 2.0, 3.0]);
        let hours: Vec<_> = ticks(1_800_000_000.0, 1_800_000_000.0 + 86_400.0, 4, &Unit::Time)
            .into_iter()
            .map(|t| t % 21_600.0)
            .collect();
        assert!(hours.len() >= 4 && hours.iter().all(|rest| *rest == 0.0), "{hours:?}");
        assert_eq!(label(1_800_000_000.0, &Unit::Time, 3_600.0), "08:00");
        assert_eq!(label(1_800_000_000.0, &Unit::Time, 1e6), "01-15");
        assert_eq!(
            [1.0, 0.01, 0.001].map(|range| label(0.001, &Unit::Percent, range)),
            ["0 %", "0.1 %", "0.10 %"]
        );
        assert_eq!(label(25_000.0, &Unit::Count, 1.0), "25 k");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_drawn_inside(from: f64, to: f64, value: f64, most in 1usize..9) {
            let scale = Scale::new(from, to, 10.0, 90.0);
            prop_assert!((10.0..=90.0).contains(&scale.place(value)));
            for unit in [Unit::Percent, Unit::Count, Unit::Time] {
                prop_assert!(ticks(from, to, most, &unit).len() <= most + 1);
            }
        }
    }
}
