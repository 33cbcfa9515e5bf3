//! Models and their bundles: from a folder on a laptop to something a device may fetch.
//!
//! [`source`] and [`builder`] work on files alone and are what the command line uses; [`onnx`] and [`init`] start
//! a folder; [`fold`] rewrites a model, [`lint`] says what its author should know; [`probe`] asks the agent's own
//! engine, in a child process, what a device would say; [`ability`] counts the devices that can take a bundle, [`engine_use`] with what they run it. [`Registry`] is the
//! server's side: it takes pushes, keeps records and says what devices may fetch.

pub mod ability;
pub mod builder;
pub mod engine_use;
pub mod fold;
mod golden_json;
pub mod http;
pub mod init;
pub mod lint;
mod mistakes;
pub mod onnx;
pub mod probe;
mod push_error;
pub mod record;
pub mod service;
pub mod source;
pub(crate) mod toml_reader;

pub use mistakes::{Mistakes, SourceMistake};
pub use push_error::PushError;
pub use record::{BUNDLE, BUNDLE_BLOB, BundleRecord, ModelSummary, SharedBlob};
pub use service::{Push, PushOutcome, Pushed, Pusher, Registry, RegistryParts};
