//! Pure: how the devices of a bucket did, by what their windows say at their end.

use edgefleet_shared::telemetry::Window;
use serde::{Deserialize, Serialize};

/// Longest time one window may speak of, milliseconds: a device merges windows, but not of days.
const LONGEST_MS: u64 = 86_400_000;
/// Temperatures that a sensor may mean, degrees Celsius.
const CREDIBLE: std::ops::RangeInclusive<i32> = -60..=150;
/// Processors that a device may have.
const PROCESSORS: u64 = 1_024;

/// Times are milliseconds of devices, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthTotals {
    /// Of windows that said anything.
    pub told_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hottest_c: Option<i32>,
    /// Of windows that say whether a processor was kept slow, and of those that say it was.
    pub speed_ms: u64,
    pub slowed_ms: u64,
    /// Time on processors, and the time it is of.
    pub cpu_ms: u64,
    pub cpu_of_ms: u64,
}

/// The last a device said of its processors, and what it said since the time before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSeen {
    mono_ms: u64,
    cpu_ms: u64,
    spent: CpuSpent,
}

/// Time on processors, and the time it is of, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CpuSpent {
    cpu_ms: u64,
    of_ms: u64,
}

impl CpuSeen {
    /// What was spent since the window before, or since the agent's start if it started anew. Windows of several
    /// bundles that end at once say the same.
    pub(super) fn since(seen: &mut Option<Self>, window: &Window) -> Option<CpuSpent> {
        let cpu_ms = window.device.as_ref()?.cpu_ms?;
        let mono_ms = window.mono_end_ms;
        let spent = match *seen {
            Some(before) if before.mono_ms == mono_ms => before.spent,
            Some(before) if before.mono_ms < mono_ms && before.cpu_ms <= cpu_ms => {
                CpuSpent { cpu_ms: cpu_ms - before.cpu_ms, of_ms: mono_ms - before.mono_ms }
            }
            Some(_) | None => CpuSpent { cpu_ms, of_ms: mono_ms },
        };
        *seen = Some(Self { mono_ms, cpu_ms, spent });
        let credible = spent.of_ms > 0 && spent.cpu_ms / PROCESSORS <= spent.of_ms;
        credible.then_some(spent)
    }
}

impl HealthTotals {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn add(&mut self, window: &Window, spent: Option<CpuSpent>) {
        let Some(said) = &window.device else { return };
        let span = window.mono_end_ms.saturating_sub(window.mono_start_ms).min(LONGEST_MS);
        let hottest_c = said.temp_c.filter(|degrees| CREDIBLE.contains(degrees));
        // Shares count alike for every window, however long the device was silent before it.
        let cpu = spent.map_or(0, |spent| {
            let share = spent.cpu_ms as f64 / spent.of_ms as f64;
            (share * span as f64) as u64
        });
        self.merge(&Self {
            told_ms: span,
            hottest_c,
            speed_ms: if said.slowed.is_some() { span } else { 0 },
            slowed_ms: if said.slowed == Some(true) { span } else { 0 },
            cpu_ms: cpu,
            cpu_of_ms: if spent.is_some() { span } else { 0 },
        });
    }

    pub(super) fn merge(&mut self, other: &Self) {
        let add = |mine: &mut u64, theirs: u64| *mine = mine.saturating_add(theirs);
        add(&mut self.told_ms, other.told_ms);
        add(&mut self.speed_ms, other.speed_ms);
        add(&mut self.slowed_ms, other.slowed_ms);
        add(&mut self.cpu_ms, other.cpu_ms);
        add(&mut self.cpu_of_ms, other.cpu_of_ms);
        self.hottest_c = self.hottest_c.max(other.hottest_c);
    }

    /// Share of the time a processor was kept slow; `None` if nobody says.
    pub fn slowed(&self) -> Option<f64> {
        (self.speed_ms > 0).then(|| self.slowed_ms as f64 / self.speed_ms as f64)
    }
    /// Processors in use by the agent, in the mean; `None` if nobody says.
    pub fn cpu(&self) -> Option<f64> {
        (self.cpu_of_ms > 0).then(|| self.cpu_ms as f64 / self.cpu_of_ms as f64)
    }
    pub fn hours(&self) -> f64 {
        self.told_ms as f64 / 3_600_000.0
    }
}
