//! edgefleet-agent: serves ONNX models on a device and keeps them current, safely.

pub mod clock;
pub mod engine;
pub mod failpoint;
pub mod identity;
pub mod link;
pub mod monitor;
pub mod serving;
pub mod store;
pub mod update;
