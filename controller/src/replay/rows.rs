//! The replay's input: what devices would count of real inputs, with real answers.

use edgefleet_shared::{bundle::baseline::ChannelKind, ids::ChannelId};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Largest input in bytes, and rows of a condition.
pub const MAX_BYTES: usize = 64 << 20;
const MAX_ROWS: usize = 100_000;
/// Condition that every data set has.
pub const CLEAN: &str = "clean";

/// Channel values in the order of the data set's channels, then entropy and confidence; predicted and true class.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Row(pub Vec<f64>, pub usize, pub usize);

impl Row {
    pub fn confidence(&self) -> f64 {
        self.0.last().copied().unwrap_or(0.0)
    }
    pub fn is_right(&self) -> bool {
        self.1 == self.2
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSet {
    pub name: String,
    pub classes: Vec<String>,
    pub channels: Vec<(ChannelId, ChannelKind)>,
    pub conditions: BTreeMap<String, Vec<Row>>,
}

/// Why a text is no input of a replay.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    #[error("the rows have {found} bytes, {MAX_BYTES} are allowed")]
    TooLarge { found: usize },
    #[error("the rows are no JSON of the expected form")]
    Malformed(#[source] serde_json::Error),
    #[error("data set `{set}`, condition `{condition}`: {reason}")]
    Invalid { set: String, condition: String, reason: &'static str },
}

/// Reads and checks `rows.json`.
///
/// # Errors
/// [`RowsError`].
pub fn parse(text: &str) -> Result<Vec<DataSet>, RowsError> {
    if text.len() > MAX_BYTES {
        return Err(RowsError::TooLarge { found: text.len() });
    }
    let mut sets: Vec<DataSet> = serde_json::from_str(text).map_err(RowsError::Malformed)?;
    for set in &mut sets {
        for kind in ["score/entropy", "score/confidence"] {
            if let Ok(id) = kind.parse() {
                set.channels.push((id, ChannelKind::Score));
            }
        }
        let width = set.channels.len();
        let wrong = |condition: &str, reason| RowsError::Invalid {
            set: set.name.clone(),
            condition: condition.to_owned(),
            reason,
        };
        if !set.conditions.contains_key(CLEAN) {
            return Err(wrong(CLEAN, "is missing"));
        }
        for (name, rows) in &set.conditions {
            let classes = set.classes.len();
            let reason = match () {
                () if rows.len() < 100 || rows.len() > MAX_ROWS => "has fewer than 100 rows, or too many",
                () if rows.iter().any(|row| row.0.len() != width) => "a row has not one value per channel",
                () if rows.iter().any(|row| row.1.max(row.2) >= classes) => "a class has no name",
                () if rows.iter().any(|row| !row.0.iter().all(|x| x.is_finite())) => "a value is not finite",
                () => continue,
            };
            return Err(wrong(name, reason));
        }
    }
    Ok(sets)
}
