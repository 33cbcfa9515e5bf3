//! Pure: what the hours of one device with one bundle were like. A rollout's forecast rests on them: how many hours
//! are bad anyway, and how a device's latency wanders by itself.

use crate::rollout::Speed;
use edgefleet_shared::telemetry::Window;
use serde::{Deserialize, Serialize};

const HOUR_SECS: u64 = 3_600;

/// Hours with requests, as far as they are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hours {
    /// Device-hours.
    pub n: u64,
    /// Of them, hours with a bad window.
    pub bad: u64,
    pub p95: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    open: Option<OpenHour>,
}

/// Mean and squared deviations of a number, in one pass (Welford, Technometrics 4, 1962).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spread {
    pub n: u64,
    mean: f64,
    m2: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct OpenHour {
    hour: u64,
    bad: bool,
    #[serde(flatten)]
    p95: Speed,
}

impl Spread {
    fn take(&mut self, x: f64) {
        self.n += 1;
        let before = x - self.mean;
        self.mean += before / self.n as f64;
        self.m2 += before * (x - self.mean);
    }

    /// Pooled over devices, each about its own mean: degrees of freedom, sum of squares.
    pub fn pooled<'a>(all: impl IntoIterator<Item = &'a Self>) -> (u64, f64) {
        all.into_iter()
            .filter(|one| one.n >= 2 && one.m2.is_finite())
            .fold((0, 0.0), |(n, sum), one| (n + one.n - 1, sum + one.m2))
    }
}

impl Hours {
    /// A window of an hour that is over already is dropped, as it is in the comparison of a rollout.
    pub fn add(&mut self, window: &Window) {
        if window.counts.requests == 0 {
            return;
        }
        let hour = window.wall_start.as_secs() / HOUR_SECS;
        let mut open = match self.open.take() {
            Some(open) if hour < open.hour => {
                self.open = Some(open);
                return;
            }
            Some(open) if hour == open.hour => open,
            former => {
                former.into_iter().for_each(|former| self.close(former));
                OpenHour { hour, bad: false, p95: Speed::default() }
            }
        };
        open.bad |= window.first_bad_ms.is_some();
        let latency = &window.latency.total;
        open.p95.take(latency.quantile_us(0.95).unwrap_or(0.0) / 1e3, latency.count());
        self.open = Some(open);
    }

    fn close(&mut self, open: OpenHour) {
        self.n = self.n.saturating_add(1);
        self.bad = self.bad.saturating_add(u64::from(open.bad));
        if let Some(mean) = open.p95.mean_ln() {
            self.p95.take(mean);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::window, *};
    use edgefleet_shared::telemetry::RecordBody;

    #[test]
    fn hours_count_once_they_are_over_and_late_windows_change_nothing() {
        let mut hours = Hours::default();
        let at = |minute: u64, p95_ms: u64, bad: bool| {
            let RecordBody::Window(mut window) = window("digits@1", 10) else { panic!("a window") };
            window.wall_start = edgefleet_shared::time::Timestamp::from_secs(1_000 * HOUR_SECS + minute * 60);
            window.latency = Default::default();
            (0..10).for_each(|_| window.latency.total.record_us(p95_ms * 1_000));
            window.first_bad_ms = bad.then_some(1);
            window
        };
        hours.add(&at(0, 10, false));
        hours.add(&at(30, 10, true));
        assert_eq!((hours.n, hours.bad), (0, 0));
        hours.add(&at(60, 20, false));
        assert_eq!((hours.n, hours.bad), (1, 1));
        hours.add(&at(5, 500, true));
        hours.add(&at(180, 10, false));
        assert_eq!((hours.n, hours.bad, hours.p95.n), (2, 1, 2));
        let mut idle = at(600, 10, true);
        idle.counts.requests = 0;
        hours.add(&idle);
        assert_eq!(hours.n, 2);
        // ln 10 and ln 20: each half of ln 2 from their mean.
        let (freedom, squares) = Spread::pooled([&hours.p95, &Spread::default()]);
        let wanted = 2.0 * (std::f64::consts::LN_2 / 2.0).powi(2);
        assert!(freedom == 1 && (squares - wanted).abs() < 0.02, "{freedom} {squares}");
        // Stored and read, it goes on where it was.
        let mut read: Hours = serde_json::from_str(&serde_json::to_string(&hours).unwrap()).unwrap();
        read.add(&at(240, 10, false));
        assert_eq!((read.n, read.bad), (3, 1));
    }
}
