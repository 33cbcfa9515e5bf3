//! When a shadow must step back: the active bundle got slower, memory is short, the device is hot.
//! [`Guard`] decides and is pure; [`sense`] reads what the kernel says.

use edgefleet_shared::reported::ShedReason;
use std::{fs, path::Path};

/// First and longest pause after the active bundle got slower, milliseconds; each is twice the last.
const PAUSE_MS: (u64, u64) = (10_000, 300_000);
/// So long without trouble, and the next pause is a short one again.
const CALM_MS: u64 = 600_000;
/// Answers below which a 95th percentile is not one.
pub const MIN_ANSWERS: usize = 20;
/// Memory that must stay available: one part in ten, at most 256 MiB.
const MEMORY_SHARE: u64 = 10;
const MEMORY_FLOOR: u64 = 256 << 20;
/// A zone without trip points counts as hot from here on, thousandths of a degree Celsius.
const HOT: i64 = 85_000;
/// Distance to the point at which the kernel slows the device down, and to the one where it turns off.
const BELOW_PASSIVE: i64 = 5_000;
const BELOW_CRITICAL: i64 = 15_000;
const MAX_ZONES: usize = 64;

/// What the device says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Senses {
    pub memory: Option<Memory>,
    /// How far the hottest zone is beyond its limit, thousandths of a degree; negative is cool.
    pub heat: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    pub available: u64,
}

/// Decides, about once a second, whether a shadow may be given anything.
#[derive(Clone, Debug)]
pub struct Guard {
    /// What the manifest allows the active bundle, milliseconds.
    budget_ms: f64,
    /// 95th percentile of the active bundle without a shadow, milliseconds.
    baseline_ms: Option<f64>,
    pause_ms: u64,
    paused_until_ms: u64,
    paused: bool,
}

impl Guard {
    pub fn new(budget_ms: f64, baseline_ms: Option<f64>) -> Self {
        Self { budget_ms, baseline_ms, pause_ms: PAUSE_MS.0, paused_until_ms: 0, paused: false }
    }

    /// The latency from which on the shadow steps back: the budget, or half more and a millisecond than
    /// it was, whichever is less; the latter alone where it was beyond the budget before.
    fn limit_ms(&self) -> f64 {
        match self.baseline_ms {
            None => self.budget_ms,
            Some(base) if base > self.budget_ms => base * 1.5 + 1.0,
            Some(base) => self.budget_ms.min(base * 1.5 + 1.0).max(base * 1.1),
        }
    }

    /// `p95_ms`: of the active bundle's newest answers, if there were enough of them.
    pub fn judge(&mut self, now_ms: u64, p95_ms: Option<f64>, senses: Senses) -> Option<ShedReason> {
        if self.paused {
            // Nothing is mirrored now: this is how fast the active bundle is alone.
            if let (None, Some(alone)) = (self.baseline_ms, p95_ms) {
                self.baseline_ms = Some(alone);
            }
            let fast = p95_ms.is_none_or(|p95| p95 <= self.limit_ms());
            self.paused = !(fast && now_ms >= self.paused_until_ms);
        } else if p95_ms.is_some_and(|p95| p95 > self.limit_ms()) {
            if now_ms.saturating_sub(self.paused_until_ms) >= CALM_MS {
                self.pause_ms = PAUSE_MS.0;
            }
            self.paused = true;
            self.paused_until_ms = now_ms + self.pause_ms;
            self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS.1);
        }
        let short = |memory: Memory| memory.available < (memory.total / MEMORY_SHARE).min(MEMORY_FLOOR);
        match () {
            () if senses.memory.is_some_and(short) => Some(ShedReason::Memory),
            () if senses.heat.is_some_and(|beyond| beyond >= 0) => Some(ShedReason::Heat),
            () if self.paused => Some(ShedReason::Latency),
            () => None,
        }
    }
}

/// Reads `/proc/meminfo` and `/sys/class/thermal` below `root`. May block: some sensors are slow.
pub fn sense(root: &Path) -> Senses {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':')
            .trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)
    };
    let memory = match (field("MemTotal"), field("MemAvailable")) {
        (Some(total), Some(available)) => Some(Memory { total, available }),
        _ => None,
    };
    let zones = fs::read_dir(root.join("sys/class/thermal")).into_iter().flatten().flatten();
    let zones = zones.filter(|zone| zone.file_name().to_string_lossy().starts_with("thermal_zone"));
    let heat = zones.take(MAX_ZONES).filter_map(|zone| beyond(&zone.path())).max();
    Senses { memory, heat }
}

/// How far a zone is beyond its limit.
fn beyond(zone: &Path) -> Option<i64> {
    let number = |name: &str| fs::read_to_string(zone.join(name)).ok()?.trim().parse::<i64>().ok();
    let temp = number("temp")?;
    let trips = (0..16).map_while(|n| {
        let kind = fs::read_to_string(zone.join(format!("trip_point_{n}_type"))).ok()?;
        let at = number(&format!("trip_point_{n}_temp")).filter(|at| *at > 0);
        Some(at.and_then(|at| match kind.trim() {
            "passive" | "hot" => Some(at - BELOW_PASSIVE),
            "critical" => Some(at - BELOW_CRITICAL),
            _ => None, // fans
        }))
    });
    Some(temp - trips.flatten().min().unwrap_or(HOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_steps_back_from_a_slower_active_bundle_for_longer_each_time() {
        // budget, before, what it is now, steps back
        for (budget, before, now, sheds) in [
            (50.0, Some(1.0), 2.4, false),
            (50.0, Some(1.0), 2.6, true),
            (2.0, Some(1.9), 2.05, false), // within a tenth of what it was
            (2.0, Some(1.9), 2.2, true),
            (2.0, Some(10.0), 15.0, false), // never was within its budget
            (2.0, Some(10.0), 17.0, true),
            (50.0, None, 49.0, false),
            (50.0, None, 51.0, true),
        ] {
            let mut guard = Guard::new(budget, before);
            let shed = guard.judge(1_000, Some(now), Senses::default());
            assert_eq!(shed == Some(ShedReason::Latency), sheds, "{budget} {before:?} {now}");
        }
        let mut guard = Guard::new(50.0, Some(1.0));
        let mut at = 0;
        for pause in [10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000] {
            assert_eq!(guard.judge(at, Some(9.0), Senses::default()), Some(ShedReason::Latency));
            assert_eq!(guard.judge(at + pause - 1, Some(1.0), Senses::default()), Some(ShedReason::Latency));
            assert_eq!(
                guard.judge(at + pause, Some(9.0), Senses::default()),
                Some(ShedReason::Latency),
                "load"
            );
            assert_eq!(guard.judge(at + pause, Some(1.0), Senses::default()), None, "{pause}");
            at += pause + 1;
        }
        assert!(guard.judge(at + CALM_MS, Some(9.0), Senses::default()).is_some());
        assert_eq!(
            guard.judge(at + CALM_MS + PAUSE_MS.0, None, Senses::default()),
            None,
            "no traffic, no trouble"
        );
    }

    #[test]
    fn without_a_measure_from_before_the_first_pause_gives_one() {
        let mut guard = Guard::new(1.0, None);
        assert!(guard.judge(0, Some(8.0), Senses::default()).is_some());
        assert!(guard.judge(1_000, Some(8.0), Senses::default()).is_some());
        assert_eq!(guard.judge(PAUSE_MS.0, Some(8.5), Senses::default()), None, "it is as slow alone");
        assert_eq!(guard.judge(PAUSE_MS.0 + 1, Some(9.0), Senses::default()), None);
    }

    #[test]
    fn memory_and_heat_are_read_as_the_kernel_writes_them() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(sense(root.path()), Senses::default());
        put("proc/meminfo", "MemTotal:        1024000 kB\nMemFree: 1 kB\nMemAvailable:     51200 kB\n");
        put("sys/class/thermal/thermal_zone0/temp", "61000\n");
        put("sys/class/thermal/thermal_zone1/temp", "71000\n");
        put("sys/class/thermal/thermal_zone1/trip_point_0_type", "active\n");
        put("sys/class/thermal/thermal_zone1/trip_point_0_temp", "40000\n");
        put("sys/class/thermal/thermal_zone1/trip_point_1_type", "passive\n");
        put("sys/class/thermal/thermal_zone1/trip_point_1_temp", "75000\n");
        put("sys/class/thermal/thermal_zone1/trip_point_2_type", "critical\n");
        put("sys/class/thermal/thermal_zone1/trip_point_2_temp", "100000\n");
        put("sys/class/thermal/cooling_device0/temp", "999999\n");
        let senses = sense(root.path());
        assert_eq!(senses.memory, Some(Memory { total: 1_024_000 << 10, available: 51_200 << 10 }));
        assert_eq!(senses.heat, Some(1_000), "71 degrees, and slowed down from 75 on");
        let mut guard = Guard::new(1.0, None);
        assert_eq!(guard.judge(0, None, senses), Some(ShedReason::Memory));
        let enough = Some(Memory { total: 1 << 30, available: 1 << 29 });
        assert_eq!(guard.judge(0, None, Senses { memory: enough, ..senses }), Some(ShedReason::Heat));
        assert_eq!(guard.judge(0, None, Senses { memory: enough, heat: Some(-1) }), None);
    }
}
