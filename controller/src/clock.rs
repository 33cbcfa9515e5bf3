//! The one place of this program that reads the wall clock.

use edgefleet_shared::time::Timestamp;

/// The wall clock of the machine the controller runs on.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Timestamp {
    Timestamp::from_system_time(std::time::SystemTime::now())
}
