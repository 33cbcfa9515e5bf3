//! `edgefleet assign` and `edgefleet rollout`: give bundles to devices and see how it went.

use super::{context::Context, device::pages, failure::Failure, table};
use crate::{
    api::rollouts::{NewRollout, StartedRollout},
    assignments::{AttemptRecord, AttemptState, RolloutRecord, RolloutState},
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
        let new = NewRollout {
            bundle: self.bundle,
            selectors: self.select,
            slot: self.slot,
            probation_secs: self.probation.as_secs(),
            supersede: self.supersede,
            confirmed: self.yes,
            reason: self.reason,
            dry_run: self.dry_run,
        };
        let started: StartedRollout = context.client()?.post("/api/v1/rollouts", &new).await?;
        context.print(&started, |started| match started {
            StartedRollout::Started { rollout } => format!(
                "rollout {}: {} for {} device(s); watch it with `edgefleet rollout show {}`",
                rollout.id, rollout.bundle, rollout.counts.total, rollout.id
            ),
            StartedRollout::DryRun { devices } => {
                let ids: Vec<_> = devices.iter().map(ToString::to_string).collect();
                format!("would reach {} device(s):\n{}", ids.len(), ids.join("\n"))
            }
        })
    }
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
                let all: Vec<RolloutRecord> = pages(&client, "/api/v1/rollouts", "").await?;
                context.print(&all, |all| table::of(&HEADER, all.iter().map(row)))
            }
            Self::Show { rollout } => {
                let record: RolloutRecord = client.get(&format!("/api/v1/rollouts/{rollout}")).await?;
                let path = format!("/api/v1/rollouts/{rollout}/attempts");
                let attempts: Vec<AttemptRecord> = pages(&client, &path, "").await?;
                let shown = Shown { rollout: record, attempts };
                context.print(&shown, show)
            }
        }
    }
}

#[derive(serde::Serialize)]
struct Shown {
    #[serde(flatten)]
    rollout: RolloutRecord,
    attempts: Vec<AttemptRecord>,
}

const HEADER: [&str; 6] = ["ROLLOUT", "BUNDLE", "STATE", "COMMITTED", "FAILED", "STARTED"];

fn row(rollout: &RolloutRecord) -> Vec<String> {
    let state = match &rollout.state {
        RolloutState::Assigning { .. } => "assigning".to_owned(),
        RolloutState::Running => "running".to_owned(),
        RolloutState::Completed => "completed".to_owned(),
        RolloutState::Superseded { by } => format!("superseded by {by}"),
    };
    vec![
        rollout.id.to_string(),
        rollout.bundle.to_string(),
        state,
        format!("{} of {}", rollout.counts.committed, rollout.counts.total),
        rollout.counts.failed.values().sum::<u64>().to_string(),
        rollout.created.to_string(),
    ]
}

fn show(shown: &Shown) -> String {
    let selectors: Vec<_> = shown.rollout.selectors.iter().map(|s| format!("`{s}`")).collect();
    let attempts = shown.attempts.iter().map(|attempt| {
        let (state, why) = match &attempt.state {
            AttemptState::Assigned => ("assigned".to_owned(), String::new()),
            AttemptState::Committed => ("committed".to_owned(), String::new()),
            AttemptState::Superseded => ("superseded".to_owned(), String::new()),
            AttemptState::Removed => ("removed".to_owned(), String::new()),
            AttemptState::Failed { code, .. } => {
                let message = attempt.refusal.as_ref().map_or(String::new(), |r| r.message.clone());
                (code.to_string(), message)
            }
        };
        vec![
            attempt.device.to_string(),
            state,
            format!("{:.1} s", attempt.took_ms as f64 / 1e3),
            attempt.fetched_bytes.to_string(),
            why,
        ]
    });
    format!(
        "{}\nby         {}\nselects    {}\n\n{}",
        table::of(&HEADER, std::iter::once(row(&shown.rollout))),
        shown.rollout.by,
        selectors.join(" or "),
        table::of(&["DEVICE", "ATTEMPT", "TOOK", "BYTES", "WHY"], attempts)
    )
}
