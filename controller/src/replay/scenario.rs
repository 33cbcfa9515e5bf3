//! What goes wrong, where and when, and which rules would be right to say so.

use super::rows::CLEAN;
use crate::advice::RuleId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// All devices of the cohort.
    Everywhere,
    /// The first device alone.
    OneDevice,
    Nowhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// From the onset on.
    Lasting,
    /// From the beginning, in eight hours of each day.
    Nightly,
}

/// Rows of the clean condition before the onset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clean {
    /// The very rows of the baseline: without shift by construction.
    Reference,
    /// The other half of the hold-out: without shift but for the draw.
    HeldOut,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scenario {
    pub set: &'static str,
    pub condition: &'static str,
    pub place: Place,
    pub time: Time,
    pub clean: Clean,
    /// Any of these names the cause; written down before the first run.
    pub right: &'static [RuleId],
    /// Not the cause, but true as well.
    pub also: &'static [RuleId],
}

use Place::{Everywhere, Nowhere, OneDevice};
use RuleId::{A01, A02, A03, A04, A05, A07, A10, A11, A13, A23};

const fn shift(
    set: &'static str,
    condition: &'static str,
    place: Place,
    right: &'static [RuleId],
    also: &'static [RuleId],
) -> Scenario {
    Scenario { set, condition, place, time: Time::Lasting, clean: Clean::HeldOut, right, also }
}

pub const SCENARIOS: [Scenario; 15] = [
    Scenario { clean: Clean::Reference, ..shift("digits", CLEAN, Nowhere, &[], &[]) },
    shift("digits", CLEAN, Nowhere, &[], &[]),
    Scenario { clean: Clean::Reference, ..shift("exercise", CLEAN, Nowhere, &[], &[]) },
    shift("exercise", CLEAN, Nowhere, &[], &[]),
    shift("digits", "blur", Everywhere, &[A03], &[A05, A13, A23]),
    shift("digits", "blur", OneDevice, &[A01], &[A07]),
    shift("digits", "inversion", Everywhere, &[A03], &[A05, A07, A13, A23]),
    shift("digits", "occlusion", Everywhere, &[A03], &[A05, A13, A23]),
    shift("digits", "occlusion", OneDevice, &[A01], &[]),
    shift("digits", "imbalance", Everywhere, &[A02], &[A07]),
    shift("digits", "concept", Everywhere, &[A04], &[A05, A13, A23]),
    Scenario { time: Time::Nightly, ..shift("digits", "night", Everywhere, &[A11], &[A03, A05, A13, A23]) },
    shift("exercise", "scaling", OneDevice, &[A01], &[]),
    shift("exercise", "stuck", OneDevice, &[A10], &[A01, A07]),
    shift("exercise", "unit", Everywhere, &[A03], &[A05, A07, A13, A23]),
];

impl Scenario {
    pub fn name(&self) -> String {
        let place = match (self.place, self.time, self.clean) {
            (Nowhere, _, Clean::Reference) => ", rows of the baseline",
            (Nowhere, _, Clean::HeldOut) => ", held-out rows",
            (OneDevice, _, _) => ", one device",
            (Everywhere, Time::Nightly, _) => ", eight hours a day",
            (Everywhere, Time::Lasting, _) => ", all devices",
        };
        format!("{}: {}{place}", self.set, self.condition)
    }
    pub fn is_harmless(&self) -> bool {
        self.place == Nowhere
    }
}

/// How much is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    pub devices: usize,
    /// Rows of a device in an hour.
    pub rows: u64,
    /// Days of the harmless runs; a shift comes on day 8 of 12, nights last through 14.
    pub quiet_days: u64,
    /// Runs of each shift, with seeds of their own.
    pub runs: u64,
    pub seed: u64,
    /// Labelled answers of a thousand.
    pub audit_per_mille: u64,
}

impl Effort {
    pub const FULL: Self =
        Self { devices: 10, rows: 120, quiet_days: 90, runs: 5, seed: 1, audit_per_mille: 20 };

    pub fn onset_day(self) -> u64 {
        8
    }
    pub fn days(self, scenario: &Scenario) -> u64 {
        match (scenario.place, scenario.time) {
            (Nowhere, _) => self.quiet_days,
            (_, Time::Nightly) => 14,
            (_, Time::Lasting) => 12,
        }
    }
}
