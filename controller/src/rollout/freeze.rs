//! Times in which nothing new is handed out: the freeze calendar and the one "stop the line" switch.

use edgefleet_shared::{ids::SlotName, time::Timestamp};
use serde::{Deserialize, Serialize};

/// One entry of the freeze calendar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezePeriod {
    pub name: String,
    pub from: Timestamp,
    /// The first moment after it.
    pub until: Timestamp,
    /// Slots it holds for; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<SlotName>,
    #[serde(default)]
    pub reason: String,
}

impl FreezePeriod {
    pub fn covers(&self, slot: &SlotName, now: Timestamp) -> bool {
        self.from <= now && now < self.until && (self.slots.is_empty() || self.slots.contains(slot))
    }
}

/// A period that holds now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveFreeze {
    pub name: String,
    pub until: Timestamp,
}

/// The period that holds longest for `slot` now, if any.
pub fn active(calendar: &[FreezePeriod], slot: &SlotName, now: Timestamp) -> Option<ActiveFreeze> {
    calendar
        .iter()
        .filter(|period| period.covers(slot, now))
        .max_by_key(|period| period.until)
        .map(|period| ActiveFreeze { name: period.name.clone(), until: period.until })
}

/// Somebody stopped everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineStopped {
    pub by: String,
    pub at: Timestamp,
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_holds_from_its_first_to_before_its_last_moment_and_for_its_slots_only() {
        let at = Timestamp::from_secs;
        let slot: SlotName = "digits".parse().unwrap();
        let period = |name: &str, from, until, slots: &[&str]| FreezePeriod {
            name: name.into(),
            from: at(from),
            until: at(until),
            slots: slots.iter().map(|s| s.parse().unwrap()).collect(),
            reason: String::new(),
        };
        let calendar =
            [period("a", 10, 20, &[]), period("b", 15, 30, &["digits"]), period("c", 0, 99, &["other"])];
        for (now, wanted) in [(9, None), (10, Some("a")), (16, Some("b")), (29, Some("b")), (30, None)] {
            assert_eq!(active(&calendar, &slot, at(now)).map(|f| f.name), wanted.map(str::to_owned), "{now}");
        }
    }
}
