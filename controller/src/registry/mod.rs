//! Models and their bundles: from a folder on a laptop to something a device may fetch.
//!
//! [`source`] and [`builder`] work on files alone and are what the command line uses; [`onnx`] and [`init`] start
//! a folder; [`probe`] asks the agent's own engine, in a child process, what a device would say.

pub mod builder;
mod golden_json;
pub mod init;
mod mistakes;
pub mod onnx;
pub mod probe;
pub mod source;
mod toml_reader;

pub use mistakes::{Mistakes, SourceMistake};
