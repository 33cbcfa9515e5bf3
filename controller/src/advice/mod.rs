//! Advice: what the numbers mean and what to do about it, as findings with an action.
//!
//! Pure. [`advise`] runs 24 rules over the [`Evidence`] of one bundle; each is silent without its part of it.
//! [`reconcile()`] turns what they say now into what people are told: opened once, updated when it matters, resolved
//! after a while of quiet, explained by a stronger rule. [`precision`] sums up what people thought of it.
//!
//! Source: `research/edge-serving.md` 7.6.

mod action;
mod command;
mod evidence;
mod finding;
pub mod fit;
mod reconcile;
mod rule;
mod rules;
pub mod sizing;
pub mod take;
#[cfg(test)]
pub(crate) mod tests;
pub mod thresholds;

pub use action::{Action, LabelFilter, ProposedThreshold};
pub use command::command;
pub use evidence::{
    Audited, CaptureCounts, EngineMedians, Evidence, Health, LatencyParts, NodeTimes, Release, Repeats,
    ScoreSeries, ScoredLabel, Shadow, Slice, Versions,
};
pub use finding::{Confidence, Finding, FindingKey, Plot, RuleId, Scope, Severity, Text};
pub use reconcile::{
    FindingChange, Marks, Precision, Standing, Tracked, precision, reconcile, rules_are_complete,
};
pub use rule::{AdviceSettings, Judged, RULES, Rule, advise, rule_of};
pub use rules::latency::cache_saving;
pub use rules::release::PATIENCE;
