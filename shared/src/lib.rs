//! The words both programs speak: names, bundles, trust, wire messages.
//!
//! No clock, no socket, no file: time comes in as [`time::Timestamp`], bytes come in as slices.

pub mod bundle;
pub mod capture;
pub mod desired;
pub mod digest;
pub mod enroll;
pub mod ids;
pub mod lint;
pub mod maintenance;
pub mod message;
pub mod probe;
pub mod reported;
pub mod selector;
pub mod telemetry;
pub mod tensor;
pub mod time;
pub mod topics;
pub mod transfer;
pub mod trust;
