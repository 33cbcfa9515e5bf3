//! Orders of people: each with a reason, each in the audit log.

use super::path;
use crate::{
    api::rollout_views::{ApprovalRequest, OrderRequest},
    cli::{context::Context, failure::Failure},
    rollout::{AbortMode, Rollout, Span, State},
};
use clap::{Args, ValueEnum};
use edgefleet_shared::ids::RolloutId;

#[derive(Debug, Args)]
pub struct Reasoned {
    /// Its id, see `edgefleet rollout list`
    rollout: RolloutId,
    /// Why, for the audit log
    #[arg(long, default_value = "")]
    reason: String,
}

/// Stop a rollout: freeze pauses it, halt ends it, revert takes everything back
#[derive(Debug, Args)]
pub struct AbortArgs {
    /// Its id, see `edgefleet rollout list`
    rollout: RolloutId,
    /// What happens to devices that are on their way, or have it
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Why, for the audit log
    #[arg(long)]
    reason: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Pause: hand nothing more out; everything stays as it is
    #[default]
    Freeze,
    /// Also cancel what has not been activated, and end here
    Halt,
    /// Also take it back from every device that has it
    Revert,
}

/// Give the open stage more time to find a verdict
#[derive(Debug, Args)]
pub struct ExtendArgs {
    /// Its id, see `edgefleet rollout list`
    rollout: RolloutId,
    /// How much longer, for example 24h
    #[arg(long = "by", value_name = "TIME", value_parser = span)]
    span: Span,
    /// Why, for the audit log
    #[arg(long)]
    reason: String,
}

fn span(text: &str) -> Result<Span, String> {
    let parsed = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if parsed.as_secs() == 0 || parsed.subsec_nanos() > 0 {
        return Err("write whole seconds, at least one".to_owned());
    }
    Ok(Span::secs(parsed.as_secs()))
}

impl Reasoned {
    pub(super) async fn pause(self, context: &Context) -> Result<(), Failure> {
        order(context, &self.rollout, &OrderRequest::Pause { reason: self.reason }).await
    }
    pub(super) async fn resume(self, context: &Context) -> Result<(), Failure> {
        order(context, &self.rollout, &OrderRequest::Resume { reason: self.reason }).await
    }
    pub(super) async fn skip(self, context: &Context) -> Result<(), Failure> {
        order(context, &self.rollout, &OrderRequest::Skip { reason: self.reason }).await
    }
    pub(super) async fn revert(self, context: &Context) -> Result<(), Failure> {
        let order = OrderRequest::Abort { mode: AbortMode::Revert, reason: self.reason };
        self::order(context, &self.rollout, &order).await
    }
    pub(super) async fn answer(self, context: &Context, agree: bool) -> Result<(), Failure> {
        let path = format!("{}/approval", path(&self.rollout));
        let answer = ApprovalRequest { agree, reason: self.reason };
        let rollout: Rollout = context.client()?.post(&path, &answer).await?;
        context.print(&rollout, said)
    }
}

impl AbortArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let mode = match self.mode {
            Mode::Freeze => AbortMode::Freeze,
            Mode::Halt => AbortMode::Halt,
            Mode::Revert => AbortMode::Revert,
        };
        order(context, &self.rollout, &OrderRequest::Abort { mode, reason: self.reason }).await
    }
}

impl ExtendArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let order = OrderRequest::Extend { span: self.span, reason: self.reason };
        self::order(context, &self.rollout, &order).await
    }
}

/// Gives an order and says where the rollout is then.
///
/// # Errors
/// [`Failure`].
pub(super) async fn order(
    context: &Context,
    rollout: &RolloutId,
    order: &OrderRequest,
) -> Result<(), Failure> {
    let rollout: Rollout = context.client()?.post(&format!("{}/orders", path(rollout)), order).await?;
    context.print(&rollout, said)
}

/// One line: where it is, and what it waits for first.
pub(super) fn said(rollout: &Rollout) -> String {
    let state = super::words::state(&rollout.state);
    let waits = match (&rollout.state, rollout.waiting.first()) {
        (State::Paused { .. }, _) | (_, None) => String::new(),
        (_, Some(waiting)) => format!("; {}", waiting.sentence),
    };
    format!("rollout {} is {state}{waits}", rollout.id)
}
