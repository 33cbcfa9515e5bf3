//! Controller.

pub mod broker;
pub mod clock;
