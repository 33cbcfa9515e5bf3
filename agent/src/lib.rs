//! edgefleet-agent: serves ONNX models on a device and keeps them current, safely.

pub mod bindings;
pub mod capture;
mod causes;
pub mod cli;
pub mod clock;
pub mod config;
pub mod engine;
pub mod facts;
pub mod failpoint;
pub mod identity;
pub mod link;
pub mod monitor;
pub mod pipeline;
pub mod run;
pub mod serving;
pub mod store;
pub mod update;
