//! `edgefleet rollout list` and `show`.

use super::{
    path,
    words::{counts, field, list as dashes, name, scope, state, time, waiting},
};
use crate::{
    api::rollout_views::{RolloutSummary, devices, open_stage},
    cli::{context::Context, device::pages, failure::Failure, table},
    rollout::{Attempt, AttemptState, Bucket, Mode, Presence, Rollout, Stage, StageProgress, StageState},
};
use clap::Args;
use edgefleet_shared::{ids::RolloutId, selector::Selector};
use indicatif::HumanBytes;
use serde::Serialize;

/// Rollouts up to this many devices are shown with all of them.
const FEW: u64 = 30;

/// Show one rollout: its stages, what it waits for, how each device fared
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Its id, see `edgefleet rollout list`
    rollout: RolloutId,
    /// List every device, also where there are more than 30
    #[arg(long)]
    devices: bool,
}

/// # Errors
/// [`Failure`].
pub(super) async fn list(context: &Context) -> Result<(), Failure> {
    let all: Vec<RolloutSummary> = pages(&context.client()?, "/api/v1/rollouts", "").await?;
    context.print(&all, |all| summaries(all))
}

impl ShowArgs {
    /// # Errors
    /// [`Failure`].
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let path = path(&self.rollout);
        let rollout: Rollout = client.get(&path).await?;
        let attempts = match self.devices || devices(&rollout).members() <= FEW {
            true => Some(pages(&client, &format!("{path}/attempts"), "").await?),
            false => None,
        };
        context.print(&Shown { rollout, attempts }, |shown| page(&shown.rollout, shown.attempts.as_deref()))
    }
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    rollout: Rollout,
    /// Left out where there are many and nobody asked for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Vec<Attempt>>,
}

pub(super) fn summaries(all: &[RolloutSummary]) -> String {
    if all.is_empty() {
        return "there is no rollout yet; begin with `edgefleet rollout plan FILE`".to_owned();
    }
    let rows = all.iter().map(|one| {
        let state = match &one.stage {
            Some(stage) => format!("{}: {stage}", one.state),
            None => one.state.clone(),
        };
        let failed = one.counts.sum(|b| matches!(b, Bucket::Failed | Bucket::TimedOut | Bucket::Lost));
        vec![
            one.id.to_string(),
            one.bundle.to_string(),
            one.slot.to_string(),
            state,
            format!("{} of {}", one.counts.get(Bucket::Committed), one.counts.members()),
            failed.to_string(),
            time(one.since),
            one.by.clone(),
        ]
    });
    let mut text =
        table::of(&["ROLLOUT", "BUNDLE", "SLOT", "STATE", "COMMITTED", "FAILED", "SINCE", "BY"], rows);
    let waits: Vec<_> = all
        .iter()
        .filter_map(|one| one.waiting.first().map(|waits| format!("{} waits: {waits}", one.id)))
        .collect();
    if !waits.is_empty() {
        text += &format!("\n\n{}", dashes(waits.iter().map(String::as_str)));
    }
    text
}

/// One rollout. `attempts`: `None` leaves the devices out.
pub(super) fn page(rollout: &Rollout, attempts: Option<&[Attempt]>) -> String {
    let mut parts = vec![head(rollout), stages(rollout)];
    if !rollout.waiting.is_empty() {
        let waits: Vec<_> = rollout.waiting.iter().map(waiting).collect();
        parts.push(format!("WAITS FOR\n{}", dashes(waits.iter().map(String::as_str))));
    }
    match attempts {
        Some([]) => {}
        Some(attempts) => parts.push(table::of(
            &["DEVICE", "STAGE", "ARM", "ATTEMPT", "TOOK", "BYTES", "WHY"],
            attempts.iter().map(|attempt| device(rollout, attempt)),
        )),
        None => parts.push(format!(
            "{} devices; list them with `edgefleet rollout show {} --devices`",
            devices(rollout).members(),
            rollout.id
        )),
    }
    parts.join("\n\n")
}

fn head(rollout: &Rollout) -> String {
    let names: Vec<_> = rollout.plan.stages.iter().map(|stage| stage.name.clone()).collect();
    let select = |selector: &Selector| match selector.to_string() {
        text if text.is_empty() => "everybody".to_owned(),
        text => format!("`{text}`"),
    };
    let selects: Vec<_> = rollout.plan.select.iter().map(select).collect();
    let mut lines = vec![
        field(
            "rollout",
            &format!("{} of {} for slot {}", rollout.id, rollout.release.bundle, rollout.plan.rollout.slot),
        ),
        field("state", &format!("{}, since {}", state(&rollout.state), time(rollout.since))),
    ];
    if let Some(stage) = open_stage(rollout) {
        let number = usize::from(rollout.stage) + 1;
        lines.push(field("stage", &format!("{} ({number} of {})", stage.name, names.len())));
    }
    lines.push(field("devices", &counts(&devices(rollout))));
    let by = if rollout.reason.is_empty() {
        rollout.by.clone()
    } else {
        format!("{}: {}", rollout.by, rollout.reason)
    };
    lines.push(field("by", &by));
    lines.push(field("selects", &selects.join(" or ")));
    if let Some(open) = &rollout.approvals.open {
        lines.push(field(
            "approval",
            &format!("wanted for {} until {}", scope(open.scope, &names), time(open.until)),
        ));
    }
    for given in &rollout.approvals.given {
        let why = if given.reason.is_empty() { String::new() } else { format!(": {}", given.reason) };
        lines.push(field("approved", &format!("{} by {}{why}", scope(given.scope, &names), given.by)));
    }
    if rollout.plan.time_scale != 1.0 {
        lines.push(field(
            "time",
            &format!("waits run {} times as fast; statistics do not", rollout.plan.time_scale),
        ));
    }
    lines.join("\n")
}

fn stages(rollout: &Rollout) -> String {
    let rows = rollout.plan.stages.iter().zip(&rollout.stages).map(|(stage, progress)| row(stage, progress));
    table::of(&["STAGE", "MODE", "STATE", "DONE", "UNDER WAY", "FAILED", "SINCE"], rows)
}

fn row(stage: &Stage, progress: &StageProgress) -> Vec<String> {
    let done = match stage.mode {
        Mode::Shadow => progress.counts.get(Bucket::Shadowing),
        Mode::Active => progress.counts.get(Bucket::Committed),
    };
    let since = match progress.state {
        StageState::Waiting => "-".to_owned(),
        _ => time(progress.since),
    };
    vec![
        stage.name.clone(),
        name(stage.mode),
        name(progress.state),
        format!("{done} of {}", progress.counts.members()),
        progress.in_flight().to_string(),
        progress.failures.total().to_string(),
        since,
    ]
}

fn device(rollout: &Rollout, attempt: &Attempt) -> Vec<String> {
    let stage = attempt.shadow.filter(|_| attempt.mode == Mode::Shadow).unwrap_or(attempt.stage);
    let stage =
        rollout.plan.stages.get(usize::from(stage)).map_or_else(|| stage.to_string(), |s| s.name.clone());
    let mut why = attempt
        .refusal
        .as_ref()
        .map_or_else(String::new, |refusal| format!("{}: {}", refusal.code, refusal.message));
    match &attempt.state {
        AttemptState::Deferred { why: deferral } => why = format!("not now: {}", name(deferral)),
        AttemptState::TimedOut { phase } => why = format!("while {}", name(phase)),
        AttemptState::RetryWait { until, .. } => why = format!("tries again at {}; {why}", time(*until)),
        AttemptState::Superseded { by } => why = format!("by {by}"),
        _ => {}
    }
    match attempt.presence {
        Presence::Here => {}
        Presence::Away | Presence::Gone => why = format!("silent; {why}"),
    }
    vec![
        attempt.device.to_string(),
        stage,
        name(attempt.arm),
        attempt_state(&attempt.state),
        if attempt.took_ms > 0 { format!("{:.1} s", attempt.took_ms as f64 / 1e3) } else { "-".to_owned() },
        HumanBytes(attempt.fetched_bytes).to_string(),
        why.trim_end_matches("; ").to_owned(),
    ]
}

/// The word of its document: `retry-wait`.
fn attempt_state(state: &AttemptState) -> String {
    let tagged = serde_json::to_value(state).unwrap_or_default();
    tagged["state"].as_str().unwrap_or("-").to_owned()
}
