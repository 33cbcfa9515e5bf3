//! Pure: what people choose about monitoring. One small document.

use super::{cohort::CohortChoice, cohort::MAX_KEYS, level::Level};
use crate::fleet::attributes::{LabelError, check_label_key};
use edgefleet_shared::{ids::ModelName, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// Models whose cohorts may be chosen.
const MAX_MODELS: usize = 1_000;
/// Longest retention, days.
const MAX_DAYS: u32 = 3_650;
/// Late records go to their own bucket for 30 days; it should not be gone before they come.
const LEAST_DAYS: u32 = 31;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct MonitorSettings {
    /// Models that are not named have one cohort, `all`.
    #[schema(value_type = Object)]
    pub cohorts: BTreeMap<ModelName, CohortChoice>,
    pub retention: Retention,
}

/// For how many days each level is kept, before it becomes the next one or, of days, is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    pub five_minutes: u32,
    pub hours: u32,
    pub days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { five_minutes: 14, hours: 90, days: 730 }
    }
}

/// Why a choice is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    #[error("{found} labels were given, a model's cohorts are made of at most {MAX_KEYS}")]
    TooManyKeys { found: usize },
    #[error("label `{key}` is given twice")]
    Twice { key: String },
    #[error(transparent)]
    Label(#[from] LabelError),
    #[error("cohorts of {MAX_MODELS} models are chosen already; take back one with `--by` and nothing")]
    TooManyModels,
    #[error(
        "retention of {} days of five minutes, {} of hours and {} of days is not possible: \
         1 to {MAX_DAYS}, each no shorter than the one before, days at least {LEAST_DAYS}",
        .0.five_minutes, .0.hours, .0.days
    )]
    Retention(Retention),
}

impl MonitorSettings {
    pub fn cohorts_of(&self, model: &ModelName) -> CohortChoice {
        self.cohorts.get(model).cloned().unwrap_or_default()
    }

    /// Makes up a model's cohorts of these labels from `now` on; of none: one cohort.
    ///
    /// # Errors
    /// [`ChoiceError`].
    pub fn choose(&mut self, model: &ModelName, by: Vec<String>, now: Timestamp) -> Result<(), ChoiceError> {
        if by.len() > MAX_KEYS {
            return Err(ChoiceError::TooManyKeys { found: by.len() });
        }
        for (at, key) in by.iter().enumerate() {
            check_label_key(key)?;
            if by[..at].contains(key) {
                return Err(ChoiceError::Twice { key: key.clone() });
            }
        }
        if by.is_empty() {
            self.cohorts.remove(model);
            return Ok(());
        }
        if !self.cohorts.contains_key(model) && self.cohorts.len() >= MAX_MODELS {
            return Err(ChoiceError::TooManyModels);
        }
        self.cohorts.insert(model.clone(), CohortChoice { by, since: now });
        Ok(())
    }
}

impl Retention {
    /// # Errors
    /// [`ChoiceError::Retention`].
    pub fn check(self) -> Result<Self, ChoiceError> {
        let Self { five_minutes, hours, days } = self;
        let ordered = 1 <= five_minutes && five_minutes <= hours && hours <= days && days <= MAX_DAYS;
        if ordered && days >= LEAST_DAYS { Ok(self) } else { Err(ChoiceError::Retention(self)) }
    }

    pub fn of(self, level: Level) -> Duration {
        let days = match level {
            Level::FiveMinutes => self.five_minutes,
            Level::Hour => self.hours,
            Level::Day => self.days,
        };
        Duration::from_secs(u64::from(days) * 86_400)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_checked() {
        let model: ModelName = "digits".parse().unwrap();
        let now = Timestamp::from_secs(5);
        let mut settings = MonitorSettings::default();
        let mut choose = |keys: &[&str]| {
            let by = keys.iter().map(|key| (*key).to_owned()).collect();
            settings.choose(&model, by, now).map(|()| settings.cohorts_of(&model).by)
        };
        assert_eq!(choose(&["site", "board"]).unwrap(), ["site", "board"]);
        assert_eq!(choose(&[]).unwrap(), Vec::<String>::new());
        assert_eq!(choose(&["a", "b", "c", "d"]), Err(ChoiceError::TooManyKeys { found: 4 }));
        assert_eq!(choose(&["a", "a"]), Err(ChoiceError::Twice { key: "a".into() }));
        assert!(matches!(choose(&["si te"]), Err(ChoiceError::Label(LabelError::Form { .. }))));
        // What a device claims of itself does not choose its cohort.
        assert!(matches!(choose(&["hardware"]), Err(ChoiceError::Label(LabelError::Reserved { .. }))));
    }

    #[test]
    fn coarser_levels_are_kept_no_shorter() {
        let keep = |five_minutes, hours, days| Retention { five_minutes, hours, days }.check().is_ok();
        assert!(Retention::default().check().is_ok() && keep(1, 7, 31) && keep(90, 90, 3_650));
        assert!(!keep(0, 90, 730) && !keep(14, 7, 730) && !keep(1, 7, 30) && !keep(14, 90, 60));
        assert!(!keep(14, 90, 3_651));
        assert_eq!(Retention::default().of(Level::Hour), Duration::from_secs(90 * 86_400));
    }
}
