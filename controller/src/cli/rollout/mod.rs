//! `edgefleet assign` and `edgefleet rollout`: give bundles to devices, watch how it goes, step in.
//!
//! | file | does |
//! |---|---|
//! | [`assign`], [`submit`], `orders` | what people want |
//! | `preview`, `show`, `explain`, `verdicts` | documents into text, each a pure function |
//! | `watch` | the live view: `frame` says what is to be seen, `screen` draws it |
//! | `words` | numbers, bars and sentences as all of them write them |

pub mod assign;
mod explain;
mod orders;
mod preview;
mod show;
pub mod submit;
#[cfg(test)]
pub(crate) mod tests;
mod verdicts;
mod watch;
mod words;

pub use assign::{ASSIGN_EXAMPLES, AssignArgs};

use super::{context::Context, failure::Failure};
use crate::rollouts::preview::Preview;
use clap::Subcommand;
use edgefleet_shared::ids::RolloutId;

#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    Plan(submit::PlanArgs),
    Start(submit::StartArgs),
    /// List all rollouts, oldest first
    List,
    Show(show::ShowArgs),
    Watch(watch::WatchArgs),
    Explain(explain::ExplainArgs),
    /// Hand nothing more out; what devices are doing already goes on
    Pause(orders::Reasoned),
    /// Go on; after a verdict: in spite of it
    Resume(orders::Reasoned),
    /// Agree to what the rollout waits for
    Approve(orders::Reasoned),
    /// Refuse what the rollout waits for
    Deny(orders::Reasoned),
    Abort(orders::AbortArgs),
    /// Take the bundle back from every device that has it
    Revert(orders::Reasoned),
    /// Count the open stage as passed; impossible while a hard gate is open
    Skip(orders::Reasoned),
    Extend(orders::ExtendArgs),
    Verdicts(verdicts::VerdictArgs),
}

impl RolloutCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Plan(args) => args.run(context).await,
            Self::Start(args) => args.run(context).await,
            Self::List => show::list(context).await,
            Self::Show(args) => args.run(context).await,
            Self::Watch(args) => args.run(context).await,
            Self::Explain(args) => args.run(context).await,
            Self::Pause(args) => args.pause(context).await,
            Self::Resume(args) => args.resume(context).await,
            Self::Approve(args) => args.answer(context, true).await,
            Self::Deny(args) => args.answer(context, false).await,
            Self::Abort(args) => args.run(context).await,
            Self::Revert(args) => args.revert(context).await,
            Self::Skip(args) => args.skip(context).await,
            Self::Extend(args) => args.run(context).await,
            Self::Verdicts(args) => args.run(context).await,
        }
    }
}

/// What a plan would do, for other commands that start rollouts.
pub(in crate::cli) fn preview_text(preview: &Preview) -> String {
    preview::text(preview)
}

/// Where one rollout is.
fn path(rollout: &RolloutId) -> String {
    format!("/api/v1/rollouts/{rollout}")
}
