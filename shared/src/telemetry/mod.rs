//! Compact, mergeable telemetry: windows of counts and sketches, profiles of inputs and answers, terminal reports,
//! acknowledgements.

pub mod batch;
pub mod channel;
mod columns;
pub mod moments;
pub mod profile;
pub mod sketch;
pub mod window;

pub use batch::{Ack, BatchError, BootAck, Record, RecordBody, TelemetryBatch, TerminalReport};
pub use channel::Channel;
pub use moments::Moments;
pub use profile::{ClassQuality, Profile, ProfileContent, Quality, Repeats};
pub use sketch::Sketch;
pub use window::{
    Agreement, ClassAgreement, Counts, DeviceHealth, Exceed, LabelCounts, Latency, Role, Versus, Window,
};
