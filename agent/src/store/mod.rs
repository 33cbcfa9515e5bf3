//! What must survive a power cut: trust state, slot markers, the telemetry outbox.

pub mod durable;
pub mod trust_state;
