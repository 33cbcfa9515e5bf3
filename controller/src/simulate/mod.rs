//! A simulator of rollouts: the real core of [`rollout`](crate::rollout) and [`evidence`](crate::evidence) against
//! virtual devices in virtual time. Pure: no clock, no I/O; the same settings give the same outcome.
//!
//! | file | what |
//! |---|---|
//! | [`settings`], [`scenario`] | what is simulated: fleet, candidate, faults, people, store |
//! | `fleet`, `device`, `telemetry`, `people` | what the world does; no code of the core |
//! | `world`, `queue` | virtual time |
//! | `driver`, `documents`, `members` | a driver and its store, with crashes and stale copies |
//! | [`mixture`](mixture()) | random settings from a seed |
//! | `outcome` | what came of it, and whether that may be |
//! | [`report`] | tables and plots of `docs/evidence.md` |

mod device;
mod documents;
mod driver;
mod fleet;
mod members;
mod mixture;
mod outcome;
mod people;
mod queue;
pub mod report;
mod rng;
pub mod scenario;
pub mod settings;
mod telemetry;
#[cfg(test)]
mod tests;
mod world;

pub use mixture::mixture;
pub use outcome::{Ending, Outcome, StageOutcome};
pub use scenario::{Behaviour, Faults, Scenario, UnknownScenario};
pub use settings::{Check, People, Settings, StoreKind};
pub use world::Tally;

/// Runs one rollout from its draft to its end.
pub fn run(settings: Settings) -> Outcome {
    world::World::new(settings).run()
}
