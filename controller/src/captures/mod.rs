//! Captures at the controller: taken in from devices, labelled by people, made into data sets.
//!
//! [`service`] keeps them, [`datasets`] makes snapshots, [`courier`] decides where labels count, [`audited`] (pure) turns
//! labels into accuracy, [`http`] translates. The labelling page lies in `page/`.

pub mod audited;
pub mod courier;
pub mod datasets;
mod error;
pub mod export;
pub mod http;
pub mod page;
pub mod record;
pub mod service;
#[cfg(test)]
mod tests;
pub mod view;

pub use audited::{Estimate, Row};
pub use courier::Courier;
pub use error::CapturesError;
pub use record::{CaptureRecord, DatasetManifest, DatasetRecord, DatasetRow, LabelState, PolicyRecord};
pub use service::{AuditedView, CaptureLimits, Captures, Wanted, Word};
