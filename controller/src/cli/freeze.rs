//! `edgefleet freeze` and `edgefleet line`: times in which nothing is handed out.

use super::{context::Context, failure::Failure, table};
use crate::{
    api::freezes::{LineSwitch, NewFreeze},
    rollout::FreezePeriod,
    rollouts::Calendar,
};
use clap::{Args, Subcommand};
use edgefleet_shared::{ids::SlotName, time::Timestamp};

#[derive(Debug, Subcommand)]
pub enum FreezeCommand {
    Add(AddArgs),
    /// Show the calendar, and whether the line is stopped
    List,
    /// Take a freeze out of the calendar
    Remove {
        name: String,
    },
}

/// Write a freeze into the calendar: no rollout hands anything out meanwhile
#[derive(Debug, Args)]
#[command(after_help = "Example:
  edgefleet freeze add black-friday --from 2026-11-27T00:00:00Z --until 2026-11-30T06:00:00Z --reason 'sale'")]
pub struct AddArgs {
    name: String,
    /// First moment, RFC 3339
    #[arg(long, value_name = "TIME")]
    from: Timestamp,
    /// First moment after it, RFC 3339
    #[arg(long, value_name = "TIME")]
    until: Timestamp,
    /// Only this slot; may be repeated [default: all]
    #[arg(long)]
    slot: Vec<SlotName>,
    /// Why, for everybody who waits
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(Debug, Subcommand)]
pub enum LineCommand {
    /// Stop all hand-outs of all rollouts now; what devices are doing already goes on
    Stop {
        /// Why, for everybody who waits
        #[arg(long)]
        reason: String,
    },
    /// Let them go on
    Go {
        /// For the audit log
        #[arg(long, default_value = "")]
        reason: String,
    },
}

impl FreezeCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Add(AddArgs { name, from, until, slot, reason }) => {
                let new = NewFreeze { name, from, until, slots: slot, reason };
                let added: FreezePeriod = client.post("/api/v1/freezes", &new).await?;
                context.print(&added, |f| format!("nothing is handed out from {} until {}", f.from, f.until))
            }
            Self::List => {
                let calendar: Calendar = client.get("/api/v1/freezes").await?;
                context.print(&calendar, show)
            }
            Self::Remove { name } => {
                let removed: FreezePeriod = client.delete(&format!("/api/v1/freezes/{name}")).await?;
                context.print(&removed, |f| format!("freeze {} is out of the calendar", f.name))
            }
        }
    }
}

impl LineCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let (stopped, reason) = match self {
            Self::Stop { reason } => (true, reason),
            Self::Go { reason } => (false, reason),
        };
        let calendar: Calendar =
            context.client()?.put("/api/v1/line", &LineSwitch { stopped, reason }).await?;
        context.print(&calendar, |calendar| match &calendar.stopped {
            Some(_) => {
                "the line is stopped: no rollout hands anything out; `edgefleet line go` ends it".into()
            }
            None => "the line goes on".to_owned(),
        })
    }
}

fn show(calendar: &Calendar) -> String {
    let rows = calendar.periods.iter().map(|period| {
        let slots: Vec<_> = period.slots.iter().map(ToString::to_string).collect();
        let slots = if slots.is_empty() { "all".to_owned() } else { slots.join(", ") };
        vec![
            period.name.clone(),
            period.from.to_string(),
            period.until.to_string(),
            slots,
            period.reason.clone(),
        ]
    });
    let list = match calendar.periods.is_empty() {
        true => "the calendar is empty".to_owned(),
        false => table::of(&["FREEZE", "FROM", "UNTIL", "SLOTS", "WHY"], rows),
    };
    match &calendar.stopped {
        Some(stop) => {
            format!("THE LINE IS STOPPED by {} since {}: {}\n\n{list}", stop.by, stop.at, stop.reason)
        }
        None => list,
    }
}
