//! What must survive a power cut: trust state, slot markers, the telemetry outbox.

pub mod files;
pub mod outbox;
