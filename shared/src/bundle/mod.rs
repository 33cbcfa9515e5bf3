//! A bundle: one signed, content-addressed version of a model and everything it needs.
//!
//! [`manifest`] is what the digest of a bundle covers, [`pipeline`] its section on what happens around the
//! model, [`baseline`] what its author's data was like, [`golden`] the samples that prove on each device that it still computes what its author saw.
//! An [`engine`] pack travels the same way, with a library in place of a model.

pub mod baseline;
pub mod engine;
pub mod golden;
pub mod manifest;
pub mod pipeline;

pub use baseline::{Baseline, BaselineChannel, BaselineError, BaselineQuality, Calibration, ChannelKind};
pub use engine::{EngineCard, Kind, Library};
pub use golden::{GoldenError, GoldenSample};
pub use manifest::{
    Artifact, BlobRef, Compat, GoldenRef, Interface, Limits, Manifest, ManifestError, ModelCard, Precision,
    Prediction, TensorSpec,
};
pub use pipeline::PipelineSpec;
