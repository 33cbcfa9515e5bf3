//! The controller's only look at the wall clock. Everything else takes `now` or a [`Clock`].

use edgefleet_shared::time::Timestamp;
use std::sync::Arc;

/// A way to ask for the time, handed to shells that outlive a single call.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The machine's wall clock.
#[allow(clippy::disallowed_methods)] // the one place that may ask
pub fn now() -> Timestamp {
    Timestamp::from_system_time(std::time::SystemTime::now())
}

/// [`now`] as a [`Clock`].
pub fn wall() -> Clock {
    Arc::new(now)
}
