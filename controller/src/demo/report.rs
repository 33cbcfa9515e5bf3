//! `target/demo/report.json`: what held, in numbers.

use serde::Serialize;
use std::collections::BTreeMap;

const PROMPT_DEVICES: usize = 8;
const CHAPTER_SECONDS: f64 = 60.0;
const ALL_SECONDS: f64 = 240.0;

/// Written at the end of every demo, passed or not. Keys are documented here and stable.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub schema: u32,
    /// True only if every check below held; the exit code says the same.
    pub passed: bool,
    /// Each promise of the demo and whether it held.
    pub checks: Vec<Check>,
    /// Agents that took part.
    pub devices: usize,
    /// What waiting times were divided by; sample counts never are.
    pub time_scale: u32,
    /// Inference requests sent to all agents by the load.
    pub requests: u64,
    /// Requests that were not answered with a result; 0 is promised, swaps and attacks included.
    pub failed_requests: u64,
    /// Share of right answers by bundle name, from labels joined on the devices.
    pub accuracy: BTreeMap<String, f64>,
    /// By bundle name, from the agents' own counters as the controller has them.
    pub bundles: BTreeMap<String, BundleReport>,
    /// Bytes the devices fetched for their bundles, as they report.
    pub bytes_pulled: u64,
    /// Seconds from `assign` to the moment a device committed, over all devices and bundles.
    pub activation_seconds: Quantiles,
    /// Every refusal by a device: who refused which bundle, and why.
    pub refusals: Vec<RefusalReport>,
    /// What the controller's own check said to the bundle with wrong golden samples.
    pub push_refused: Option<String>,
    /// Each rollout by plan: how it ended, and each verdict on its way.
    pub rollouts: Vec<RolloutReport>,
    /// Each chapter told: its verdict and its wall time, seconds.
    pub chapters: Vec<ChapterReport>,
    pub seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: String,
    pub held: bool,
    pub detail: String,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct BundleReport {
    pub requests: u64,
    /// Labels joined on devices.
    pub labels: u64,
    /// Share of right answers among them.
    pub accuracy: Option<f64>,
    /// Inside the agents, milliseconds.
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Quantiles {
    pub p50: Option<f64>,
    pub p95: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct RefusalReport {
    pub device: String,
    pub bundle: String,
    /// Kind, for programs.
    pub code: String,
    /// The device's own words.
    pub reason: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct RolloutReport {
    pub id: String,
    pub bundle: String,
    /// `completed`, `reverted`, ...
    pub state: String,
    /// Oldest first.
    pub verdicts: Vec<VerdictReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct VerdictReport {
    /// Absent: about the rollout as a whole.
    pub stage: Option<String>,
    pub decision: String,
    /// The rule that decided; absent if a person did.
    pub rule: Option<String>,
    pub by: Option<String>,
    /// The rule's words or the person's.
    pub sentence: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct ChapterReport {
    /// As `--chapter` takes it.
    pub key: String,
    /// Told to its end, and each of its promises held.
    pub passed: bool,
    pub name: String,
    pub seconds: f64,
}

impl Report {
    pub fn check(&mut self, name: &str, held: bool, detail: impl Into<String>) {
        self.checks.push(Check { name: name.to_owned(), held, detail: detail.into() });
    }

    /// Checks that nobody was bored: the promise of the demo for a fleet of up to eight devices.
    pub fn check_times(&mut self) {
        if self.devices > PROMPT_DEVICES {
            return;
        }
        let longest = self.chapters.iter().map(|chapter| chapter.seconds).fold(0.0, f64::max);
        let all: f64 = self.chapters.iter().map(|chapter| chapter.seconds).sum();
        let name =
            format!("no chapter takes over {CHAPTER_SECONDS} s, and all of them at most {ALL_SECONDS} s");
        let held = longest <= CHAPTER_SECONDS && all <= ALL_SECONDS;
        self.check(&name, held, format!("{longest:.1} s the longest, {all:.1} s together"));
    }

    /// Closes the report: passed if something was checked and all of it held.
    pub fn close(&mut self, seconds: f64) {
        self.schema = 1;
        self.seconds = seconds;
        self.passed = !self.checks.is_empty() && self.checks.iter().all(|check| check.held);
    }
}

/// The value below which a share `q` lies, by rank.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((q * last as f64).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_passes_only_if_something_was_checked_and_all_held() {
        for (held, passed) in [(vec![], false), (vec![true], true), (vec![true, false], false)] {
            let mut report = Report::default();
            held.iter().for_each(|held| report.check("x", *held, ""));
            report.close(1.0);
            assert_eq!(report.passed, passed, "{held:?}");
        }
    }

    #[test]
    fn a_tale_that_takes_too_long_breaks_its_promise() {
        let seconds = |seconds: &[f64], devices| {
            let chapter = |seconds: &f64| ChapterReport {
                key: "x".into(),
                passed: true,
                name: "X".into(),
                seconds: *seconds,
            };
            let chapters = seconds.iter().map(chapter).collect();
            let mut report = Report { devices, chapters, ..Report::default() };
            report.check_times();
            report.checks.first().map(|check| check.held)
        };
        assert_eq!(seconds(&[59.0, 1.0], 8), Some(true));
        assert_eq!(seconds(&[61.0, 1.0], 8), Some(false));
        assert_eq!(seconds(&[50.0; 5], 8), Some(false));
        assert_eq!(seconds(&[61.0], 9), None);
    }

    #[test]
    fn quantiles_go_by_rank() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.95), Some(3.0));
    }
}
