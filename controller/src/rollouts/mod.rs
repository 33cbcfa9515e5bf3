//! Rollouts as the controller runs them.

pub mod preview;
