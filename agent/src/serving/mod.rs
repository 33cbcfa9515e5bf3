//! Answers clients: the Open Inference Protocol over HTTP, and the table of slots behind it.
//!
//! [`slots`] says which bundle answers, [`shadow`] runs a candidate beside it, [`oip`] turns bytes into tensors and back (pure), [`http`]
//! is the shell: listeners, limits, routes.

pub mod http;
pub mod oip;
pub mod pressure;
pub mod shadow;
pub mod slots;
pub mod stats;

pub use slots::{ServedBundle, SlotTable};
