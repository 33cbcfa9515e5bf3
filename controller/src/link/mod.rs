//! The controller's end of every device conversation: broker events in, desired states out.
//!
//! Level-triggered: whatever a device missed, it gets again when it connects or reports. [`live`]
//! holds what is known right now, [`handout`] sends desired states, [`events`] routes messages.

mod events;
mod handout;
mod live;

pub use events::{EventLoop, EventTotals};
pub use handout::{HandOut, TrustInfo};
pub use live::{Live, LiveDevice};
