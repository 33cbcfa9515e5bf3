//! The words both programs speak: names, bundles, trust, wire messages.
//!
//! No clock, no socket, no file: time comes in as [`time::Timestamp`], bytes come in as slices.

pub mod digest;
pub mod ids;
pub mod time;
pub mod topics;
