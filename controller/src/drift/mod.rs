//! Drift: how far inputs and answers are from what they were, beyond noise, and whose doing it is.
//!
//! Pure. A look compares the profile of a device or cohort with one reference, channel by channel ([`assess()`]); looks
//! over time open and close drifts ([`step`]); open drifts of a bundle become few incidents ([`group`]). What comes back
//! by the hour is a rhythm ([`recurring`]).
//!
//! Source: `research/edge-serving.md` 3.2; the noise floors are checked by simulation in `noise`'s tests.

mod assess;
mod cells;
pub mod chance;
mod decide;
mod incident;
mod measure;
pub mod noise;
mod season;
mod settings;
mod subject;

pub use assess::{ChannelDrift, ChannelVerdict, Measured, Moved, against_baseline, against_profile, assess};
pub use cells::{Cells, Side};
pub use decide::{Change, ChannelState, DriftEvent, DriftState, Reference, discoveries, step};
pub use incident::{
    Cause, Incident, IncidentChange, IncidentChannel, IncidentKey, SubjectDrift, group, references,
};
pub use measure::{jensen_shannon, stability, total_variation, wasserstein};
pub use season::{Rhythm, Season, recurring};
pub use settings::DriftSettings;
pub use subject::{Look, SubjectStates, look, others};
