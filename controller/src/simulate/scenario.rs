//! What is wrong with the candidate, and what is wrong with the world.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How the candidate differs from the incumbent. All shares are of devices or of requests, 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Behaviour {
    /// The chance of a bad window, times this.
    pub errors: f64,
    /// The p95 of requests, times this.
    pub slower: f64,
    /// Share of the answers of one class that turn into another one.
    pub confuses: f64,
    /// Devices on which it crashes during its probation.
    pub crashes: f64,
    /// Devices whose telemetry ends with it; they go on otherwise.
    pub silences: f64,
    /// Devices that are not heard of any more.
    pub darkens: f64,
    /// Devices that refuse its signature.
    pub bad_signature: f64,
    /// Devices whose preflight it fails.
    pub unfit: f64,
    /// Labelled inputs that only the incumbent answers rightly, above those that only the candidate does.
    pub loses: f64,
}

impl Default for Behaviour {
    /// As good as the incumbent: A/A.
    fn default() -> Self {
        Self {
            errors: 1.0,
            slower: 1.0,
            confuses: 0.0,
            crashes: 0.0,
            silences: 0.0,
            darkens: 0.0,
            bad_signature: 0.0,
            unfit: 0.0,
            loses: 0.0,
        }
    }
}

/// A candidate by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    Good,
    #[serde(rename = "errors-1.5")]
    Errors1_5,
    #[serde(rename = "errors-2")]
    Errors2,
    #[serde(rename = "errors-3")]
    Errors3,
    #[serde(rename = "errors-5")]
    Errors5,
    #[serde(rename = "slower-1.2")]
    Slower1_2,
    #[serde(rename = "slower-1.5")]
    Slower1_5,
    #[serde(rename = "slower-3")]
    Slower3,
    /// One class goes wrong; shadow sees it.
    WorseClass,
    /// Less accurate; labels see it.
    WorseLabels,
    Crashing,
    Silent,
    Dark,
    BadSignature,
    Unfit,
}

impl Scenario {
    pub const ALL: [Self; 15] = [
        Self::Good,
        Self::Errors1_5,
        Self::Errors2,
        Self::Errors3,
        Self::Errors5,
        Self::Slower1_2,
        Self::Slower1_5,
        Self::Slower3,
        Self::WorseClass,
        Self::WorseLabels,
        Self::Crashing,
        Self::Silent,
        Self::Dark,
        Self::BadSignature,
        Self::Unfit,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Errors1_5 => "errors-1.5",
            Self::Errors2 => "errors-2",
            Self::Errors3 => "errors-3",
            Self::Errors5 => "errors-5",
            Self::Slower1_2 => "slower-1.2",
            Self::Slower1_5 => "slower-1.5",
            Self::Slower3 => "slower-3",
            Self::WorseClass => "worse-class",
            Self::WorseLabels => "worse-labels",
            Self::Crashing => "crashing",
            Self::Silent => "silent",
            Self::Dark => "dark",
            Self::BadSignature => "bad-signature",
            Self::Unfit => "unfit",
        }
    }

    pub fn behaviour(self) -> Behaviour {
        let good = Behaviour::default();
        match self {
            Self::Good => good,
            Self::Errors1_5 => Behaviour { errors: 1.5, ..good },
            Self::Errors2 => Behaviour { errors: 2.0, ..good },
            Self::Errors3 => Behaviour { errors: 3.0, ..good },
            Self::Errors5 => Behaviour { errors: 5.0, ..good },
            Self::Slower1_2 => Behaviour { slower: 1.2, ..good },
            Self::Slower1_5 => Behaviour { slower: 1.5, ..good },
            Self::Slower3 => Behaviour { slower: 3.0, ..good },
            Self::WorseClass => Behaviour { confuses: 0.5, loses: 0.05, ..good },
            Self::WorseLabels => Behaviour { loses: 0.03, ..good },
            Self::Crashing => Behaviour { crashes: 0.3, ..good },
            Self::Silent => Behaviour { silences: 0.5, ..good },
            Self::Dark => Behaviour { darkens: 0.2, ..good },
            Self::BadSignature => Behaviour { bad_signature: 0.1, ..good },
            Self::Unfit => Behaviour { unfit: 0.2, ..good },
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A scenario nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no scenario {text:?}; known are {known}")]
pub struct UnknownScenario {
    text: String,
    known: String,
}

impl FromStr for Scenario {
    type Err = UnknownScenario;
    fn from_str(text: &str) -> Result<Self, UnknownScenario> {
        Self::ALL.into_iter().find(|scenario| scenario.name() == text).ok_or_else(|| UnknownScenario {
            text: text.chars().take(40).collect(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// What is wrong with the world, whatever the candidate. Shares of devices or messages unless said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Faults {
    /// Never connected.
    pub offline: f64,
    /// Switched off some hours every night.
    pub nightly: f64,
    /// Loses its connection for minutes, every hour or so.
    pub flaky: f64,
    /// A hundredth of the usual bandwidth.
    pub slow_link: f64,
    /// Bad windows most of the time, with any bundle.
    pub chronic: f64,
    /// Mean chance that a device-hour of any other device is bad; every device has its own (beta).
    pub bad_hours: f64,
    /// Outages of a whole site, per site and day.
    pub outages: f64,
    /// Messages that arrive twice.
    pub duplicates: f64,
    /// Terminal reports and telemetry that are minutes late and so overtaken.
    pub reordered: f64,
    /// Full reports that are: a connection keeps their order, so this takes a broken one.
    pub overtaken_reports: f64,
    /// Windows that are hours late.
    pub late_windows: f64,
    /// Devices whose clock is wrong by hours, and jumps.
    pub clock_jumps: f64,
    /// Downloads that fail once.
    pub broken_downloads: f64,
    /// Devices that lose power in their probation, whatever the bundle: they go back by themselves.
    pub mishaps: f64,
}

impl Faults {
    pub fn none() -> Self {
        Self {
            offline: 0.0,
            nightly: 0.0,
            flaky: 0.0,
            slow_link: 0.0,
            chronic: 0.0,
            bad_hours: 0.0,
            outages: 0.0,
            duplicates: 0.0,
            reordered: 0.0,
            overtaken_reports: 0.0,
            late_windows: 0.0,
            clock_jumps: 0.0,
            broken_downloads: 0.0,
            mishaps: 0.0,
        }
    }

    /// An ordinary fleet (DECISIONS 27): what false alarms are measured on.
    pub fn usual() -> Self {
        Self {
            offline: 0.01,
            nightly: 0.05,
            flaky: 0.05,
            slow_link: 0.05,
            chronic: 0.02,
            bad_hours: 0.003,
            outages: 1.0 / 60.0,
            duplicates: 0.02,
            reordered: 0.05,
            overtaken_reports: 0.0,
            late_windows: 0.02,
            clock_jumps: 0.002,
            broken_downloads: 0.01,
            mishaps: 0.0001,
        }
    }

    /// An ordinary fleet that nobody tidies up: three of ten devices are switched off for good.
    pub fn decayed() -> Self {
        Self { offline: 0.3, ..Self::usual() }
    }

    /// Everything at once, ten times too often.
    pub fn harsh() -> Self {
        Self {
            offline: 0.1,
            nightly: 0.3,
            flaky: 0.3,
            slow_link: 0.3,
            chronic: 0.1,
            bad_hours: 0.03,
            outages: 0.3,
            duplicates: 0.3,
            reordered: 0.3,
            overtaken_reports: 0.1,
            late_windows: 0.2,
            clock_jumps: 0.05,
            broken_downloads: 0.2,
            mishaps: 0.02,
        }
    }
}
