//! `edgefleet capture`: inputs that devices kept for labelling.

use super::{context::Context, device::encode, failure::Failure, table};
use crate::{
    api::commands::{CommandDone, NewCommand},
    captures::{
        AuditedView, CaptureRecord, Estimate, LabelState, PolicyRecord,
        http::{CaptureList, NewLabel},
    },
};
use clap::{Args, Subcommand};
use edgefleet_shared::{
    capture::{CapturePolicy, Reason, Strategy},
    digest::BlobDigest,
    ids::{BundleName, DeviceId, ModelName, SlotName},
    message::Action,
    selector::Selector,
    time::Timestamp,
};
use serde_json::json;
use std::{fmt::Write as _, path::PathBuf};

const MAX_POLICY_BYTES: u64 = 64 << 10;

#[derive(Debug, Subcommand)]
pub enum CaptureCommand {
    List(ListArgs),
    /// Show one capture
    Show {
        capture: BlobDigest,
    },
    /// Delete a capture; not one that a data set names
    Delete {
        capture: BlobDigest,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    Label(LabelArgs),
    /// Accuracy by the labels, weighted by the probability each capture was kept with
    Audit(AuditArgs),
    /// Have a device keep the next rows of a slot
    Now {
        device: DeviceId,
        slot: SlotName,
        #[arg(long, default_value_t = 1)]
        count: u32,
    },
    /// What devices keep of a model's requests
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// Which captures.
#[derive(Debug, Default, Args)]
pub struct Filter {
    #[arg(long)]
    model: Option<ModelName>,
    #[arg(long)]
    bundle: Option<BundleName>,
    /// Only of these devices; may be repeated
    #[arg(long)]
    device: Vec<DeviceId>,
    /// Only of devices that any of these selects
    #[arg(long, value_name = "SELECTOR")]
    select: Vec<Selector>,
    /// Only what any of these strategies chose: random, low-margin, disagreement, ...
    #[arg(long)]
    reason: Vec<Reason>,
    /// Only what was answered as any of these classes
    #[arg(long)]
    class: Vec<String>,
    /// Only what was answered at or after this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
}

/// List captures, oldest first
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  edgefleet capture list --model digits --state unlabelled --reason low-margin"
)]
pub struct ListArgs {
    #[command(flatten)]
    filter: Filter,
    /// unlabelled, labelled or skipped [default: all]
    #[arg(long, value_parser = state)]
    state: Option<LabelState>,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

fn state(text: &str) -> Result<LabelState, String> {
    text.parse().map_err(str::to_owned)
}

/// Say what a capture shows; for scripts. People label at the controller's page `/label`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet capture label sha256:1f0c... seven
  edgefleet capture label sha256:1f0c... --skip")]
pub struct LabelArgs {
    capture: BlobDigest,
    /// A class, by its name or its index
    #[arg(required_unless_present_any = ["skip", "undo"], conflicts_with_all = ["skip", "undo"])]
    class: Option<String>,
    /// Nothing can be said of it
    #[arg(long, conflicts_with = "undo")]
    skip: bool,
    /// Take back what was said
    #[arg(long)]
    undo: bool,
}

#[derive(Debug, Args)]
pub struct AuditArgs {
    model: ModelName,
    #[arg(long)]
    bundle: Option<BundleName>,
    #[arg(long)]
    device: Option<DeviceId>,
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    Set(SetArgs),
    /// Show a model's policy
    Show {
        model: ModelName,
    },
    /// Devices keep nothing more of this model; what they have still comes
    End {
        model: ModelName,
    },
}

/// Set what devices keep of a model's requests
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet capture policy set digits --random 0.02 --low-margin 0.1
  edgefleet capture policy set digits --file policy.toml")]
pub struct SetArgs {
    model: ModelName,
    /// The whole policy, as TOML or JSON; what it leaves out has its default
    #[arg(long, conflicts_with_all = ["random", "low_margin", "entropy", "disagreement"])]
    file: Option<PathBuf>,
    /// Share of all requests that chance keeps, 0.0001 to 1
    #[arg(long, value_name = "SHARE")]
    random: Option<f64>,
    /// Keep answers whose two highest scores are closer than this
    #[arg(long, value_name = "MARGIN")]
    low_margin: Option<f64>,
    /// Keep answers whose certainty (1 + sum p ln p / ln C) is below this
    #[arg(long, value_name = "CERTAINTY")]
    entropy: Option<f64>,
    /// Keep inputs on which a candidate disagrees
    #[arg(long)]
    disagreement: bool,
}

impl Filter {
    pub(super) fn query(&self) -> String {
        let mut query = String::new();
        let mut add = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                let _ = write!(query, "&{key}={}", encode(&value)); // a String takes everything
            }
        };
        add("model", self.model.as_ref().map(ToString::to_string));
        add("bundle", self.bundle.as_ref().map(ToString::to_string));
        self.device.iter().for_each(|device| add("device", Some(device.to_string())));
        self.select.iter().for_each(|select| add("select", Some(select.to_string())));
        self.reason.iter().for_each(|reason| add("reason", Some(reason.to_string())));
        self.class.iter().for_each(|class| add("class", Some(class.clone())));
        add("since", self.since.map(|since| since.to_string()));
        query
    }
}

impl SetArgs {
    fn policy(&self) -> Result<serde_json::Value, Failure> {
        if let Some(file) = &self.file {
            let bytes = crate::registry::source::read_bounded(file, MAX_POLICY_BYTES).map_err(|e| {
                let mut failure = Failure::new(format!("could not read `{}`", file.display()));
                failure.causes.push(e.to_string());
                failure
            })?;
            let text = String::from_utf8_lossy(&bytes);
            return match text.trim_start().starts_with('{') {
                true => Ok(serde_json::from_str(&text)?),
                false => toml::from_str(&text).map_err(|e| Failure::usage(e.to_string())),
            };
        }
        let mut policy = serde_json::to_value(CapturePolicy::default())?;
        if let Some(share) = self.random {
            policy["random"]["share"] = json!(share);
        }
        let quota = policy["rules"][0]["quota"].clone();
        let chosen = [
            self.low_margin.map(|below| Strategy::LowMargin { below }),
            self.entropy.map(|below| Strategy::Entropy { below }),
            self.disagreement.then_some(Strategy::Disagreement),
        ];
        let chosen: Vec<_> = chosen.into_iter().flatten().collect();
        if !chosen.is_empty() {
            let rule = |strategy: &Strategy| {
                let mut rule = serde_json::to_value(strategy)?;
                rule["quota"] = quota.clone();
                Ok(rule)
            };
            policy["rules"] = chosen.iter().map(rule).collect::<Result<_, serde_json::Error>>()?;
        }
        Ok(policy)
    }
}

impl CaptureCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let path = |capture: &BlobDigest| format!("/api/v1/captures/{capture}");
        match self {
            Self::List(ListArgs { filter, state, limit }) => {
                let state = state.map(|state| match state {
                    LabelState::Unlabelled => "&state=unlabelled",
                    LabelState::Labelled => "&state=labelled",
                    LabelState::Skipped => "&state=skipped",
                });
                let query = filter.query() + state.unwrap_or_default();
                let (mut all, mut cursor) = (Vec::<CaptureRecord>::new(), String::new());
                while all.len() < limit {
                    let most = (limit - all.len()).min(500);
                    let page: CaptureList =
                        client.get(&format!("/api/v1/captures?limit={most}{query}{cursor}")).await?;
                    all.extend(page.items);
                    match page.next {
                        Some(next) => cursor = format!("&cursor={}", encode(&next)),
                        None => break,
                    }
                }
                context.print(&all, |all| list(all))
            }
            Self::Show { capture } => {
                let found: CaptureRecord = client.get(&path(&capture)).await?;
                context.print(&found, show)
            }
            Self::Delete { capture, yes } => {
                if !yes {
                    return Err(Failure::usage("a deleted capture cannot be had back").hint("add --yes"));
                }
                let deleted: CaptureRecord = client.delete(&path(&capture)).await?;
                context.print(&deleted, |deleted| format!("{} is deleted", deleted.digest))
            }
            Self::Label(LabelArgs { capture, class, skip, undo }) => {
                let at = format!("{}/label", path(&capture));
                let now: CaptureRecord = match undo {
                    true => client.delete(&at).await?,
                    false => client.put(&at, &NewLabel { label: class, skip }).await?,
                };
                context.print(&now, |now| match now.label.as_ref().map(|label| &label.label) {
                    Some(Some(label)) => format!("{capture} is {label}"),
                    Some(None) => format!("{capture} is skipped"),
                    None => format!("{capture} has no label"),
                })
            }
            Self::Audit(AuditArgs { model, bundle, device, since }) => {
                let device = device.into_iter().collect();
                let filter = Filter { bundle, device, since, ..Filter::default() };
                let query = filter.query();
                let at = format!("/api/v1/models/{model}/audited?{}", query.trim_start_matches('&'));
                let found: AuditedView = client.get(at.trim_end_matches('?')).await?;
                context.print(&found, audit)
            }
            Self::Now { device, slot, count } => {
                let command = NewCommand { action: Action::Capture { slot, count } };
                let done: CommandDone =
                    client.post(&format!("/api/v1/devices/{device}/commands"), &command).await?;
                context.print(&done, |done| format!("{} keeps the next {count}", done.device))
            }
            Self::Policy(command) => policy(command, context).await,
        }
    }
}

async fn policy(command: PolicyCommand, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let path = |model: &ModelName| format!("/api/v1/models/{model}/capture-policy");
    let shown = |set: &PolicyRecord| {
        let policy = serde_json::to_string_pretty(&set.policy).unwrap_or_default(); // plain data
        format!("{}, set by {} at {}\n{policy}", set.model, set.by, set.at)
    };
    match command {
        PolicyCommand::Set(args) => {
            let set: PolicyRecord = client.put(&path(&args.model), &args.policy()?).await?;
            context.print(&set, shown)
        }
        PolicyCommand::Show { model } => {
            let found: PolicyRecord = client.get(&path(&model)).await?;
            context.print(&found, shown)
        }
        PolicyCommand::End { model } => {
            let () = client.delete(&path(&model)).await?;
            context.print(&json!({"model": model}), |_| format!("devices keep nothing more of {model}"))
        }
    }
}

fn words(record: &CaptureRecord) -> (String, String) {
    let said = record.document.predicted.as_ref().map_or("-", |predicted| predicted.class.as_str());
    let label = match record.label.as_ref().map(|label| &label.label) {
        Some(Some(label)) => label.as_str(),
        Some(None) => "(skipped)",
        None => "-",
    };
    (said.to_owned(), label.to_owned())
}

fn list(all: &[CaptureRecord]) -> String {
    if all.is_empty() {
        return "no captures".to_owned();
    }
    let rows = all.iter().map(|record| {
        let document = &record.document;
        let reasons: Vec<_> = document.reasons.iter().map(|reason| reason.as_str()).collect();
        let (said, label) = words(record);
        vec![
            record.digest.to_string(),
            document.bundle.to_string(),
            document.prediction.device.to_string(),
            document.at.to_string(),
            reasons.join(","),
            said,
            label,
        ]
    });
    table::of(&["CAPTURE", "BUNDLE", "DEVICE", "AT", "WHY", "SAID", "LABEL"], rows)
}

fn show(record: &CaptureRecord) -> String {
    let document = &record.document;
    let reasons: Vec<_> = document.reasons.iter().map(|reason| reason.as_str()).collect();
    let (said, label) = words(record);
    let inclusion =
        document.inclusion.map_or("none: it stands for itself only".to_owned(), |p| p.to_string());
    let mut text = format!(
        "capture    {}, {} bytes\nprediction {}\nbundle     {} in slot {} ({})\nat         {}, received {}\n\
         why        {}\nprobability {inclusion}\nsaid       {said}\nlabel      {label}\n",
        record.digest,
        record.size,
        document.prediction,
        document.bundle,
        document.slot,
        document.attempt,
        document.at,
        record.received,
        reasons.join(", "),
    );
    for (what, entry) in document
        .inputs
        .iter()
        .map(|entry| ("input", entry))
        .chain(document.outputs.iter().map(|entry| ("output", entry)))
    {
        let kept = serde_json::to_string(&entry.kept).unwrap_or_default(); // plain data
        let _ = writeln!(text, "{what:<10} {} {} {:?} {kept}", entry.name, entry.datatype, entry.shape);
    }
    text
}

fn audit(found: &AuditedView) -> String {
    let one = |estimate: &Option<Estimate>| match estimate {
        None => "not known yet: label audit captures".to_owned(),
        Some(e) => format!(
            "{:.1} % ({:.1} to {:.1} %), {} labels worth {:.0} random ones",
            e.accuracy * 100.0,
            e.low * 100.0,
            e.high * 100.0,
            e.labelled,
            e.effective_n
        ),
    };
    format!(
        "captures   {}, {} labelled, {} skipped, {} picked by chance\naudited    {}\ncombined   {}",
        found.captures,
        found.labelled,
        found.skipped,
        found.audit_rows,
        one(&found.audited),
        one(&found.combined)
    )
}
