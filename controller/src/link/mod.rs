//! The controller's end of every device conversation: broker events in, desired states out.
//!
//! Level-triggered: whatever a device missed, it gets again when it connects or reports. [`handout`]
//! sends desired states, [`events`] routes messages, on [`lanes`] so that no device waits for another; what a device last said lives in the fleet.

mod events;
mod handout;
mod lanes;
mod resend;
mod takeovers;
#[cfg(test)]
mod tests;

pub use events::{EventLoop, EventTotals};
pub use handout::HandOut;
pub use resend::Resends;
pub use takeovers::Takeovers;
