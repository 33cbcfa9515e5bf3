//! What must survive a power cut: trust state, slot markers, the telemetry outbox.

pub mod durable;
pub mod files;
pub mod outbox;
pub mod trust_state;
