//! The lookout: looks at profiles as they come, keeps incidents of drift, and says what to do about them.
//!
//! [`subject`] is pure, as are [`crate::drift`] and [`crate::advice`] behind it. The lookout itself is one task that
//! hears from [`crate::ingest`] whose profile is new. It may be late or miss one: it looks at what is stored, and a
//! profile that came while nobody looked is looked at with the next one of the same device.

mod alerting;
mod catalog;
mod evidence;
mod learned;
mod read;
mod records;
mod subject;
mod watch;

pub use alerting::title;
pub use catalog::{Catalog, Known, Registered};
pub use evidence::Sources;
pub use read::{Filter, Marked, Reading, ReadingError};
pub use records::{
    ADVICE, AdviceRecord, DRIFT_COHORT, DRIFT_DEVICE, INCIDENT, IncidentRecord, MARK, Mark, TAKEN, TakenBy,
};
pub use subject::{CohortRecord, DeviceRecord, Drifts, HourPoint, LEAST_DEVICES, Look, Round};
pub use watch::{Heard, Lookout, LookoutHandle, LookoutParts};
