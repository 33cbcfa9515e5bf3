//! Compact, mergeable telemetry: windows of counts and sketches, terminal reports, acknowledgements.

pub mod batch;
pub mod sketch;
pub mod window;

pub use batch::{Ack, BatchError, BootAck, Record, RecordBody, TelemetryBatch, TerminalReport};
pub use sketch::Sketch;
pub use window::{Agreement, ClassAgreement, Counts, Exceed, LabelCounts, Latency, Role, Versus, Window};
