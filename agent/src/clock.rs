//! The one place of this program that reads the wall clock.

use edgefleet_shared::time::Timestamp;

/// The device's own wall clock, right or wrong; trust decisions go through the signed floor.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Timestamp {
    Timestamp::from_system_time(std::time::SystemTime::now())
}
