//! How a device runs a bundle, and what it found out on the way: bounded, since it comes from a device.

use super::RefusalCode;
use crate::{digest::BundleDigest, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Setups of each kind that are told.
const MOST_SETUPS: usize = 8;
/// Longest name of a setup, bytes.
const MAX_NAME: usize = 48;
/// Longest reason, bytes.
const MAX_REASON: usize = 160;
/// Longest time that is believed, milliseconds: an hour.
const MAX_MS: f64 = 3_600_000.0;

/// What runs the bundle of a slot, and the measurement behind it. A setup is written
/// `engine/precision/threads`, such as `onnxruntime/f32/1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineReport {
    /// The bundle that all of this is about.
    pub digest: BundleDigest,
    pub setup: String,
    /// The measurement was made with what is on the device now.
    #[serde(default)]
    pub current: bool,
    /// Rounds of the measurement, of the setup with most.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rounds: u32,
    /// What gave right answers, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<MeasuredSetup>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedSetup>,
    /// The last choice that was made anew since the agent started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<ChosenAgain>,
}

/// A setup that gave right answers, and how fast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredSetup {
    pub setup: String,
    /// Of one inference of the smallest golden input; absent where nothing was there to compare with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_ms: Option<f64>,
    /// Rows of the batch that was measured too, and its median: then that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<(u32, f64)>,
}

/// A setup that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedSetup {
    pub setup: String,
    /// The verdict of its test; absent if it was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<RefusalCode>,
    pub reason: String,
}

/// A choice that was made anew while the bundle served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenAgain {
    pub why: WhyAgain,
    pub at: Timestamp,
    /// What ran the bundle before; the same as now if nothing better was found.
    pub from: String,
    /// So many times since the agent started.
    pub times: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhyAgain {
    /// Engines, processor or settings changed.
    Changed,
    /// It took longer than when it was chosen.
    Drifted,
    /// Written by a newer agent.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for WhyAgain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Changed => "something changed",
            Self::Drifted => "it had become slower",
            Self::Unknown => "of an unknown reason",
        })
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl EngineReport {
    /// The same within bounds: of what a device makes up, nothing grows, breaks a terminal or is no number.
    /// Idempotent.
    pub fn bounded(self) -> Self {
        let name = |text: String| cut(text.chars().filter(char::is_ascii_graphic).collect(), MAX_NAME);
        let measured = self.measured.into_iter().take(MOST_SETUPS).map(|one| MeasuredSetup {
            setup: name(one.setup),
            median_ms: one.median_ms.filter(is_time),
            batch: one.batch.filter(|(_, ms)| is_time(ms)),
        });
        let refused = self.refused.into_iter().take(MOST_SETUPS).map(|one| RefusedSetup {
            setup: name(one.setup),
            code: one.code,
            reason: cut(one.reason, MAX_REASON),
        });
        Self {
            digest: self.digest,
            setup: name(self.setup),
            current: self.current,
            rounds: self.rounds,
            measured: measured.collect(),
            refused: refused.collect(),
            again: self.again.map(|again| ChosenAgain { from: name(again.from), ..again }),
        }
    }

    /// What the setup in use was measured at, milliseconds.
    pub fn median_ms(&self) -> Option<f64> {
        self.measured.iter().find(|one| one.setup == self.setup)?.median_ms.filter(is_time)
    }
}

fn is_time(ms: &f64) -> bool {
    ms.is_finite() && (0.0..=MAX_MS).contains(ms)
}

/// Without control characters, at most `most` bytes, cut between characters.
fn cut(text: String, most: usize) -> String {
    let mut kept = String::with_capacity(text.len().min(most));
    for c in text.chars().filter(|c| !c.is_control()) {
        if kept.len() + c.len_utf8() > most {
            break;
        }
        kept.push(c);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report(texts: &[String], ms: f64) -> EngineReport {
        let one =
            |text: &String| MeasuredSetup { setup: text.clone(), median_ms: Some(ms), batch: Some((8, ms)) };
        let refused = |text: &String| RefusedSetup { setup: text.clone(), code: None, reason: text.clone() };
        EngineReport {
            digest: BundleDigest::of(b"b"),
            setup: texts.first().cloned().unwrap_or_default(),
            current: true,
            rounds: 50,
            measured: texts.iter().map(one).collect(),
            refused: texts.iter().map(refused).collect(),
            again: None,
        }
    }

    #[test]
    fn what_runs_a_bundle_is_told_with_its_median() {
        let names = ["tract/f32/1".to_owned(), "onnxruntime/f32/1".to_owned()];
        let told = report(&names, 1.5).bounded();
        assert_eq!(told, report(&names, 1.5));
        assert_eq!(told.median_ms(), Some(1.5));
        assert_eq!(EngineReport { setup: "other".into(), ..told }.median_ms(), None);
    }

    #[test]
    fn what_a_newer_agent_says_is_still_a_report() {
        let said = format!(
            r#"{{"digest":"{}","setup":"a/f32/1","battery":3,"again":{{"why":"moonlight","times":1,"from":"b",
                "at":"2026-11-23T08:00:00Z"}}}}"#,
            BundleDigest::of(b"b")
        );
        let report: EngineReport = serde_json::from_str(&said).unwrap();
        assert_eq!(report.again.unwrap().why, WhyAgain::Unknown);
    }

    proptest! {
        #[test]
        fn a_device_cannot_make_it_large(texts in proptest::collection::vec(".{0,400}", 0..30), ms: f64) {
            let bounded = report(&texts, ms).bounded();
            prop_assert!(bounded.measured.len() <= MOST_SETUPS && bounded.refused.len() <= MOST_SETUPS);
            prop_assert!(bounded.measured.iter().all(|one| one.median_ms.is_none_or(|ms| is_time(&ms))));
            prop_assert!(bounded.refused.iter().all(|one| !one.reason.chars().any(char::is_control)));
            // Quotes and backslashes take two bytes.
            prop_assert!(serde_json::to_vec(&bounded).unwrap().len() <= 8 * 1024);
            prop_assert_eq!(bounded.clone().bounded(), bounded);
        }
    }
}
