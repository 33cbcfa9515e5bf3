//! What counts as a drift. The defaults and how they were found.

use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DriftSettings {
    /// Fewer effective rows on either side say nothing: below, an hour's histogram of 20 bins is mostly noise.
    pub min_rows: f64,
    /// Chance that a measure exceeds its noise floor in one look without drift.
    pub alpha: f64,
    /// Smallest Jensen-Shannon distance of account: PSI 0.08 (research 3.2; Evidently's default).
    pub js_floor: f64,
    /// Smallest Wasserstein-1 distance of account, in reference deviations.
    pub w1_floor: f64,
    /// The folklore of credit scoring; shown, never decides alone.
    pub psi_floor: f64,
    /// PSI says little below.
    pub psi_rows: u64,
    /// Smallest change of the share of missing values.
    pub missing_floor: f64,
    /// False discovery rate over the channels of one look (Benjamini and Hochberg).
    pub false_discovery: f64,
    /// `hits` of the last `looks` open a drift; none of the last `looks` closes it.
    pub looks: u32,
    pub hits: u32,
    /// An open drift counts as lasting down to this part of the floors.
    pub ease: f64,
    /// More local drifts than this at once in one cohort are one incident.
    pub most_local: usize,
    /// An open incident that grows by this factor is told again ...
    pub grown: f64,
    /// ... and otherwise after this time.
    pub remind: Duration,
}

impl Default for DriftSettings {
    /// One false alarm per channel and reference in 90 days of hourly looks would allow a chance per look of 1.5 % (two
    /// of three neighbours: 2 alpha^2 an hour). In a fleet of a thousand that is one every quarter of an hour; a first
    /// replay at 1 % had two false findings in 24 device-days. At 0.2 % a channel of independent looks is wrong once in
    /// 14 years, and strong shifts are still seen in two looks of 120 rows (`docs/monitoring.md`).
    fn default() -> Self {
        Self {
            min_rows: 50.0,
            alpha: 0.002,
            js_floor: 0.1,
            w1_floor: 0.15,
            psi_floor: 0.1,
            psi_rows: 1_000,
            missing_floor: 0.02,
            false_discovery: 0.05,
            looks: 3,
            hits: 2,
            ease: 0.8,
            most_local: 5,
            grown: 1.5,
            remind: Duration::from_secs(24 * 3600),
        }
    }
}
