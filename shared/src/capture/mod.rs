//! Captures: inputs kept for labelling, why they were kept and with which probability.
//!
//! [`policy`] is what the controller wants (part of the signed desired state), [`document`] what a device
//! says of one capture, [`container`] the one file both are carried in.

pub mod container;
pub mod document;
pub mod policy;

pub use container::{Capture, CaptureError, MAX_CAPTURE_BYTES, MAX_HEADER_BYTES, MAX_RAW_BYTES};
pub use document::{Audit, CAPTURE_SCHEMA, CaptureDocument, Kept, Predicted, Statistics, TensorEntry};
pub use policy::{
    CapturePolicy, MAX_SHARE_OF_REQUEST, MIN_AUDIT_SHARE, PolicyError, Quota, RandomRule, Reason, Redaction,
    Rule, Strategy, UploadRules,
};
