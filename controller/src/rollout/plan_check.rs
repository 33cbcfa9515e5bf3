//! Finds every mistake in a plan, each with its place.

use super::plan::Plan;
use std::fmt;

/// What a plan's check lets through: the plan, settled.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanMistake {
    /// `stages[2].size`.
    pub path: String,
    pub problem: String,
}
impl fmt::Display for PlanMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.path, self.problem)
    }
}
impl std::error::Error for PlanMistake {}
