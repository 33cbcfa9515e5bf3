//! Rollouts carried out: documents in the store, effects performed, devices heard. Decides nothing; the
//! decisions are [`crate::rollout`] and [`crate::evidence`].
//!
//! | file | does |
//! |---|---|
//! | `documents` | what is stored, and under which ids |
//! | `working` | documents of one transaction: what was heard becomes moves, moves change the rollout |
//! | `hearing` | reports and telemetry of devices, in the words of the core |
//! | `service` | the orders of people: start, pause, approve ... |
//! | `driver` | one strand per open rollout: load, repeat what is pending, save, perform |
//! | `members`, `turns`, `sweep`, `verdicts` | the effects |
//! | `roster` | who is in the fleet |
//! | `history` | what the last week's telemetry says of the bundle to be replaced |
//! | `calendar` | freezes and the "stop the line" switch |
//!
//! Every transaction names the revisions it read, so two drivers may run: one of them wins each save and
//! the other looks again. An attempt's change and what it means to its rollout are one transaction.

mod calendar;
mod deadlines;
mod documents;
mod driver;
mod hearing;
mod history;
mod members;
mod naming;
pub mod preview;
mod roster;
mod service;
mod sweep;
#[cfg(test)]
mod tests;
mod turns;
mod verdicts;
mod working;

pub use calendar::{Calendar, CalendarError, Calendars};
pub use documents::{ATTEMPT, Documents, ROLLOUT, attempt_id};
pub use driver::{RolloutDriver, RolloutParts};
pub use hearing::{Clerk, Ears};
pub use history::{History, bad_rate};
pub use naming::rollout_id;
pub use roster::{Enlisted, Roster};
pub(crate) use service::CONFIRM_ABOVE;
pub use service::{NewRolloutRequest, OrderError, Rollouts, StartError};
pub use verdicts::{SignedVerdict, VERDICT_LOG};
pub use working::{Aftermath, Working};
