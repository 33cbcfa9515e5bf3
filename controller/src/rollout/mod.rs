//! Rollouts: who gets a bundle, when, and whether it goes on. Pure: no clock but `now`, no I/O.
//!
//! | file | decides |
//! |---|---|
//! | [`plan`], [`plan_check`], [`span`], [`window`], [`freeze`] | what people write, and whether it makes sense |
//! | [`assignment`] (drawn in `draw`) | whose turn is in which stage, who is a control |
//! | [`rollout`], [`stage`], [`approval`] | the document of a rollout |
//! | [`machine`] | [`Rollout::apply`]: event in, effects out |
//! | [`handout`] | how fast, and which devices next |
//! | [`attempt`], [`hear`], [`turn`], [`mod@compare`] | one device: what it says, what that moves |
//! | [`waiting`], [`explain`], [`verdict`] | why nothing happens, and why something did |
//! | [`checker`] | the invariants once more, written apart from the machine |
//!
//! A driver loads a rollout, repeats [`Rollout::pending`], applies an event, saves document and effects
//! in one compare-and-set write and then performs them. **Moves are to be applied exactly once**: save the attempt
//! and the rollout (or a note of the moves) in one transaction. [`Attempt::hear`] makes no moves of what it has
//! heard already, so repeated input is harmless.

pub mod approval;
pub mod assignment;
pub mod attempt;
pub mod checker;
pub mod compare;
mod draw;
pub mod effect;
pub mod event;
pub mod explain;
pub mod freeze;
pub mod handout;
pub mod hear;
pub mod machine;
pub mod plan;
pub mod plan_check;
#[allow(clippy::module_inception)] // the document is what the module is named for
pub mod rollout;
pub mod seen;
pub mod span;
pub mod stage;
#[cfg(test)]
mod tests;
pub mod turn;
pub mod verdict;
pub mod waiting;
pub mod window;

pub use approval::{Approval, Approvals, Scope};
pub use assignment::{
    Arm, Candidate, Member, Membership, MembershipSummary, Seed, StageSize, Stratum, join_late, plan_members,
};
pub use attempt::{Attempt, AttemptState, Deferral, DeviceSaid, Presence, RecordKey, Speed, WindowSaid};
pub use checker::{Violation, check_attempt, check_rollout, check_step, check_together};
pub use compare::compare;
pub use effect::{Effect, Note, Pending};
pub use event::{AbortMode, Change, Cursor, EffectId, Event, Move, Refused};
pub use freeze::{ActiveFreeze, FreezePeriod, LineStopped};
pub use handout::{GroupCount, Picked, Tokens, Turn, pick};
pub use machine::step;
pub use plan::{Mode, OnFail, Plan, Severity, Stage};
pub use plan_check::PlanMistake;
pub use rollout::{MAX_DOCUMENT, PauseWhy, Release, Rollout, State, StateName, SweepKind};
pub use span::{Share, Span};
pub use stage::{Bucket, Counts, Failure, FailureKind, Failures, StageProgress, StageState};
pub use verdict::{Because, Decision, Rule, VerdictRecord};
pub use waiting::{WaitingOn, What, Who};
