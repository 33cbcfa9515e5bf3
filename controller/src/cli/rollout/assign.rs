//! `edgefleet assign`: a plan of one stage, written by flags.

use super::submit;
use crate::{
    api::rollout_views::NewRollout,
    cli::{context::Context, failure::Failure},
    rollout::{
        Plan, Span,
        plan::{Limits, OnOverlap},
    },
};
use clap::Args;
use edgefleet_shared::{
    ids::{BundleName, SlotName},
    selector::Selector,
};
use std::time::Duration;

pub const ASSIGN_EXAMPLES: &str = "Examples:
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
    /// How fast devices get their turn
    #[arg(long, value_enum, default_value_t)]
    limits: LimitsArg,
    /// Agree to the number of devices, needed above 10
    #[arg(long)]
    yes: bool,
    /// Why, for the audit log
    #[arg(long)]
    reason: Option<String>,
    /// Only say what it would do
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum LimitsArg {
    /// 50 a minute, more with success; 2 % of them (10 at least) under way at a time
    #[default]
    Default,
    /// As fast as the controller can
    None,
}

impl AssignArgs {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        submit::send(context, &self.request()).await
    }

    pub(super) fn request(self) -> NewRollout {
        let slot = self.slot.unwrap_or_else(|| (&self.bundle.model).into());
        let mut plan = Plan::single_stage(slot, self.bundle, self.select);
        plan.probation = Span::secs(self.probation.as_secs());
        // Whoever names an older release by hand means it; the reason stands in the audit log.
        plan.rollout.allow_downgrade =
            Some(self.reason.clone().unwrap_or_else(|| "assigned by hand".to_owned()));
        if self.limits == LimitsArg::None {
            plan.limits = Limits::none();
        }
        if self.supersede {
            plan.rollout.on_overlap = OnOverlap::Supersede;
        }
        NewRollout { plan, reason: self.reason, confirmed: self.yes, dry_run: self.dry_run, start: true }
    }
}
