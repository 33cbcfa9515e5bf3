//! Giving a bundle to a selection of devices by hand: a rollout of one stage.
//!
//! [`record`] holds the documents and how they change (pure); [`service`] carries an assignment out in
//! chunks that a kill may interrupt anywhere: the next start goes on where the saved cursor stands.

mod record;
mod roster;
mod service;
#[cfg(test)]
mod tests;

pub use record::{
    ATTEMPT, AttemptRecord, AttemptState, ROLLOUT, RolloutCounts, RolloutRecord, RolloutState, attempt_id,
};
pub use service::{AssignError, AssignRequest, Assignments, Roster};
