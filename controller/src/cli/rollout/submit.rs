//! `edgefleet rollout plan` and `start`: from a plan file to a rollout.

use super::{orders, preview};
use crate::{
    api::rollout_views::{NewRollout, OrderRequest, StartedRollout},
    cli::{context::Context, failure::Failure, plan_file},
    rollout::Plan,
};
use clap::Args;
use edgefleet_shared::ids::RolloutId;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Say what a plan would do, and start nothing: devices, time, bytes, what each gate can find
#[derive(Debug, Args)]
#[command(after_help = "Example:
  edgefleet rollout plan canary.yaml --set rollout.bundle=digits@3")]
pub struct PlanArgs {
    /// The plan: YAML, TOML or JSON
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Change a field, as PATH=VALUE; stages by name or number. May be repeated
    #[arg(long = "set", value_name = "PATH=VALUE", value_parser = change)]
    set: Vec<Change>,
}

/// Start a rollout from a plan, or one that is ready by its id
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet rollout start canary.yaml --reason 'new training set' --yes
  edgefleet rollout start canary.yaml --set stages.canary.soak=12h --set limits.concurrency=5%
  edgefleet rollout start canary.yaml --hold         (made, checked, started later ...)
  edgefleet rollout start r-0mibjsxda-1f20           (... by its id)")]
pub struct StartArgs {
    /// The plan (YAML, TOML or JSON), or the id of a rollout that is ready
    #[arg(value_name = "FILE|ROLLOUT")]
    what: PathBuf,
    /// Change a field, as PATH=VALUE; stages by name or number. May be repeated
    #[arg(long = "set", value_name = "PATH=VALUE", value_parser = change)]
    set: Vec<Change>,
    /// Agree to the number of devices, needed above 10
    #[arg(long)]
    yes: bool,
    /// Why, for the audit log
    #[arg(long)]
    reason: Option<String>,
    /// Make it, but leave it ready
    #[arg(long, conflicts_with = "dry_run")]
    hold: bool,
    /// Only say what it would do
    #[arg(long)]
    dry_run: bool,
}

/// A field and its new value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    path: String,
    value: Value,
}

impl PlanArgs {
    /// # Errors
    /// [`Failure`].
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let plan = read(&self.file, &self.set)?;
        send(context, &NewRollout { plan, reason: None, confirmed: false, dry_run: true, start: true }).await
    }
}

impl StartArgs {
    /// # Errors
    /// [`Failure`].
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        if let Some(rollout) = named(&self.what) {
            if self.dry_run || !self.set.is_empty() || self.hold {
                return Err(Failure::usage(format!("{rollout} has its plan already"))
                    .hint("--set, --hold and --dry-run are for plan files"));
            }
            return orders::order(context, &rollout, &OrderRequest::Start).await;
        }
        let plan = read(&self.what, &self.set)?;
        let (confirmed, dry_run, start) = (self.yes, self.dry_run, !self.hold);
        send(context, &NewRollout { plan, reason: self.reason, confirmed, dry_run, start }).await
    }
}

/// The rollout that `what` names; `None` if it is a file.
pub(super) fn named(what: &Path) -> Option<RolloutId> {
    // A plan's file has an ending, an id never has.
    if what.extension().is_some() || what.components().count() != 1 || what.is_file() {
        return None;
    }
    what.to_str()?.parse().ok()
}

/// # Errors
/// [`Failure`].
pub(super) async fn send(context: &Context, new: &NewRollout) -> Result<(), Failure> {
    let started: StartedRollout = context.client()?.post("/api/v1/rollouts", new).await?;
    context.print(&started, |started| match started {
        StartedRollout::Started { rollout } => format!(
            "rollout {}: {} for slot {}, {}; watch it with `edgefleet rollout watch {}`",
            rollout.id,
            rollout.release.bundle,
            rollout.plan.rollout.slot,
            rollout.state.name(),
            rollout.id
        ),
        StartedRollout::DryRun { preview } => preview::text(preview),
    })?;
    match started {
        StartedRollout::DryRun { preview } if !preview.mistakes.is_empty() => {
            Err(Failure::new(format!("the plan has {} mistake(s)", preview.mistakes.len())))
        }
        _ => Ok(()),
    }
}

/// The plan in `file` with the changes made to it.
///
/// # Errors
/// [`Failure`] that names file and line, or the change.
pub(super) fn read(file: &Path, changes: &[Change]) -> Result<Plan, Failure> {
    let plan: Plan = plan_file::read(file)?;
    if changes.is_empty() {
        return Ok(plan);
    }
    // Changes are made to the whole plan, defaults included: any field can be named.
    let mut document = serde_json::to_value(&plan)?;
    for change in changes {
        let before = document.clone();
        set(&mut document, &change.path, change.value.clone())
            .and_then(|()| serde_json::from_value::<Plan>(document.clone()).map_err(|e| e.to_string()))
            .map_err(|reason| {
                let mut failure = Failure::new(format!("could not set `{}`", change.path));
                failure.causes.push(reason);
                failure
            })?;
        if before == document {
            tracing::warn!(path = %change.path, "the plan says so already");
        }
    }
    Ok(serde_json::from_value(document)?)
}

fn change(text: &str) -> Result<Change, String> {
    let Some((path, value)) = text.split_once('=') else {
        return Err("write it as PATH=VALUE, for example limits.concurrency=5%".to_owned());
    };
    // `3`, `true`, `[...]` are what they look like; everything else is text.
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok(Change { path: path.trim().to_owned(), value })
}

/// Puts `value` at `path`; elements of lists go by their number or, if they have one, their `name`.
fn set(document: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let mut at = document;
    let mut walked = String::new();
    for key in path.split('.') {
        at = match at {
            Value::Array(items) => {
                let names: Vec<_> =
                    items.iter().map(|i| i["name"].as_str().unwrap_or("-").to_owned()).collect();
                let index = key.parse().ok().or_else(|| names.iter().position(|name| name == key));
                let found = index.and_then(|index: usize| items.get_mut(index));
                found.ok_or_else(|| format!("`{walked}` has no `{key}`; it has {}", names.join(", ")))?
            }
            Value::Object(fields) => fields.entry(key).or_insert(Value::Null),
            Value::Null => {
                *at = Value::Object(Map::new());
                let Value::Object(fields) = at else { return Err(format!("`{walked}` holds no fields")) };
                fields.entry(key).or_insert(Value::Null)
            }
            _ => return Err(format!("`{walked}` holds no fields")),
        };
        walked = if walked.is_empty() { key.to_owned() } else { format!("{walked}.{key}") };
    }
    *at = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{Share, Span};

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.yaml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn read_with(changes: &[&str]) -> Result<Plan, Failure> {
        let (_dir, path) = file("rollout: { slot: digits, bundle: digits@2 }\n");
        let changes: Vec<_> = changes.iter().map(|text| change(text).unwrap()).collect();
        read(&path, &changes)
    }

    #[test]
    fn any_field_can_be_set_also_those_the_file_leaves_out() {
        let plan = read_with(&[
            "rollout.bundle=digits@3",
            "stages.canary.soak=12h",
            "stages.0.min=5",
            "limits.concurrency=5%",
            "limits.bytes_per_day=1000",
            "gates.errors.margin=1.5",
            "window={\"cron\": \"0 2 * * *\", \"for\": \"2h\"}",
            "select=site=lab",
        ])
        .unwrap();
        assert_eq!(plan.rollout.bundle.to_string(), "digits@3");
        assert_eq!((plan.stages[1].soak, plan.stages[0].min), (Span::hours(12), Some(5)));
        assert_eq!((plan.limits.concurrency, plan.limits.bytes_per_day), (Share::Percent(5.0), Some(1_000)));
        assert_eq!(plan.select[0].to_string(), "site=lab");
        assert!(plan.window.is_some());
    }

    #[test]
    fn a_field_that_does_not_exist_is_refused_with_its_place() {
        for (text, said) in [
            ("limits.speed=1", "speed"),
            ("stages.canry.soak=1h", "it has shadow, canary, early, quarter, all"),
            ("stages.canary.soak=soon", "soon"),
            ("probation.x=1", "`probation` holds no fields"),
        ] {
            let failure = read_with(&[text]).unwrap_err().to_string();
            assert!(failure.contains(said) && failure.contains("could not set"), "{text}: {failure}");
        }
        assert!(change("limits").is_err());
    }

    #[test]
    fn ids_and_files_are_told_apart() {
        for (text, id) in
            [("r-0mibjsxda-1f20", true), ("canary.yaml", false), ("./canary", false), ("a/b", false)]
        {
            assert_eq!(named(Path::new(text)).is_some(), id, "{text}");
        }
    }
}
