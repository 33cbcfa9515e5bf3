//! `edgefleet assign` and `edgefleet rollout`: give bundles to devices and see how it went.

use super::{context::Context, device::pages, failure::Failure, table};
use crate::{
    api::rollout_views::{NewRollout, RolloutSummary, StartedRollout},
    rollout::{Attempt, Plan, Rollout, Span, plan::{Limits, OnOverlap}},
};
use clap::{Args, Subcommand};
use edgefleet_shared::{
    ids::{BundleName, RolloutId, SlotName},
    selector::Selector,
};
use std::time::Duration;

pub(super) const ASSIGN_EXAMPLES: &str = "Examples:
  edgefleet assign digits@1 --select site=lab
  edgefleet assign digits@2 --select 'site=plant-7, arch=aarch64' --dry-run
  edgefleet assign digits@2 --select '' --yes --reason 'new training set'     (everybody)";

#[derive(Debug, Args)]
pub struct AssignArgs {
    /// What to give, as MODEL@COUNTER
    bundle: BundleName,
    /// Devices that any of these selects; the empty text selects everybody
    #[arg(long, value_name = "SELECTOR", required = true)]
    select: Vec<Selector>,
    /// The slot on the device [default: named like the model]
    #[arg(long)]
    slot: Option<SlotName>,
    /// How long each device watches the bundle before it commits to it
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    probation: Duration,
    /// Replace rollouts of the slot that still run on some of these devices
    #[arg(long)]
    supersede: bool,
    /// How fast devices get their turn: the defaults of a plan, or as fast as the controller can
    #[arg(long, value_enum, default_value_t)]
    limits: LimitsArg,
    /// Agree to the number of devices, needed above 10
    #[arg(long)]
    yes: bool,
    /// Why, for the audit log
    #[arg(long)]
    reason: Option<String>,
    /// Only say which devices it would reach
    #[arg(long)]
    dry_run: bool,
}

impl AssignArgs {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let slot = self.slot.unwrap_or_else(|| (&self.bundle.model).into());
        let mut plan = Plan::single_stage(slot, self.bundle, self.select);
        plan.probation = Span::secs(self.probation.as_secs());
        // A person named this very release; an older one is meant.
        plan.rollout.allow_downgrade = Some("assigned by hand".to_owned());
        if self.supersede {
            plan.rollout.on_overlap = OnOverlap::Supersede;
        }
        if self.limits == LimitsArg::None {
            plan.limits = Limits::none();
        }
        let (confirmed, reason, dry_run) = (self.yes, self.reason, self.dry_run);
        let new = NewRollout { plan, reason, confirmed, dry_run, start: true };
        let started: StartedRollout = context.client()?.post("/api/v1/rollouts", &new).await?;
        context.print(&started, |started| match started {
            StartedRollout::Started { rollout } => format!(
                "rollout {}: {}; watch it with `edgefleet rollout show {}`",
                rollout.id, rollout.release.bundle, rollout.id
            ),
            StartedRollout::DryRun { preview } => format!("would reach {} device(s)", preview.devices),
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum LimitsArg {
    /// 50 a minute, growing with success, and 2 % (10 at least) under way at a time
    #[default]
    Default,
    None,
}

#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// List all rollouts, oldest first
    List,
    /// Show one rollout and how each device fared
    Show { rollout: RolloutId },
}

impl RolloutCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::List => {
                let all: Vec<RolloutSummary> = pages(&client, "/api/v1/rollouts", "").await?;
                context.print(&all, |all| {
                    let row = |one: &RolloutSummary| vec![one.id.to_string(), one.bundle.to_string(), one.state.clone()];
                    table::of(&["ROLLOUT", "BUNDLE", "STATE"], all.iter().map(row))
                })
            }
            Self::Show { rollout } => {
                let record: Rollout = client.get(&format!("/api/v1/rollouts/{rollout}")).await?;
                let path = format!("/api/v1/rollouts/{rollout}/attempts");
                let attempts: Vec<Attempt> = pages(&client, &path, "").await?;
                let shown = Shown { rollout: record, attempts };
                context.print(&shown, |shown| format!("{} {}", shown.rollout.id, shown.rollout.state.name()))
            }
        }
    }
}

#[derive(serde::Serialize)]
struct Shown {
    #[serde(flatten)]
    rollout: Rollout,
    attempts: Vec<Attempt>,
}
