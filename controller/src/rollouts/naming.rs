//! Pure: names of rollouts.

use edgefleet_shared::{
    ids::{IdError, RolloutId},
    time::Timestamp,
};

/// `r-`, the time in base 36 and a tail that tells rollouts of one moment apart: sorts by time, readable over the phone.
///
/// # Errors
/// [`IdError`] for a tail that no id may have.
pub fn rollout_id(at: Timestamp, tail: &str) -> Result<RolloutId, IdError> {
    let mut digits = Vec::new();
    let mut rest = at.as_millis();
    while digits.len() < 9 {
        digits.push(char::from_digit((rest % 36) as u32, 36).unwrap_or('0'));
        rest /= 36;
    }
    let time: String = digits.into_iter().rev().collect();
    format!("r-{time}-{tail}").parse()
}
