//! `edgefleet incident`: what drifts, where, since when.

use super::{context::Context, failure::Failure, table};
use crate::{drift::Cause, lookout::IncidentRecord};
use clap::{Args, Subcommand};
use edgefleet_shared::ids::{BundleName, DeviceId};

#[derive(Debug, Subcommand)]
pub enum IncidentCommand {
    List(FilterArgs),
    /// Show one with its channels and devices
    Show {
        id: String,
    },
}

/// List incidents of drift, the latest first
#[derive(Debug, Args)]
pub struct FilterArgs {
    /// Only those of this bundle
    #[arg(long)]
    pub bundle: Option<BundleName>,
    /// Only those this device is part of
    #[arg(long)]
    pub device: Option<DeviceId>,
    /// Also what is over
    #[arg(long)]
    pub all: bool,
}

impl FilterArgs {
    pub(super) fn query(&self) -> String {
        let bundle = self.bundle.as_ref().map(|bundle| format!("bundle={bundle}"));
        let device = self.device.as_ref().map(|device| format!("device={device}"));
        let state = self.all.then(|| "state=all".to_owned());
        let parts: Vec<_> = [bundle, device, state].into_iter().flatten().collect();
        if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
    }
}

impl IncidentCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::List(filter) => {
                let all: Vec<IncidentRecord> =
                    client.get(&format!("/api/v1/incidents{}", filter.query())).await?;
                context.print(&all, |all| list(all))
            }
            Self::Show { id } => {
                let one: IncidentRecord = client.get(&format!("/api/v1/incidents/{id}")).await?;
                context.print(&one, show)
            }
        }
    }
}

fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Local => "one device",
        Cause::Population => "the whole cohort",
        Cause::Scattered => "many devices, each in its own way",
    }
}

pub(super) fn list(all: &[IncidentRecord]) -> String {
    if all.is_empty() {
        return "nothing drifts".to_owned();
    }
    let rows = all.iter().map(|record| {
        let incident = &record.incident;
        let key = &incident.key;
        let place = key.device.as_ref().map_or_else(|| key.cohort.clone(), ToString::to_string);
        let worst = incident.channels.first();
        let worst = worst.map_or_else(String::new, |one| format!("{} (JS {:.2})", one.id, one.js));
        let state = record.resolved.map_or_else(|| "open".to_owned(), |at| format!("over {at}"));
        vec![
            record.id.clone(),
            key.bundle.to_string(),
            place,
            cause(key.cause).to_owned(),
            worst,
            incident.since.to_string(),
            state,
        ]
    });
    table::of(&["INCIDENT", "BUNDLE", "WHERE", "WHO", "WORST CHANNEL", "SINCE", "STATE"], rows)
}

fn show(record: &IncidentRecord) -> String {
    let incident = &record.incident;
    let rows = incident.channels.iter().map(|channel| {
        let w1 = channel.w1.map_or_else(|| "-".to_owned(), |w1| format!("{w1:.2}"));
        vec![
            channel.id.to_string(),
            format!("{:.3}", channel.js),
            format!("{:.3}", channel.psi),
            w1,
            format!("{:.1} %", 100.0 * channel.missing),
            channel.since.to_string(),
        ]
    });
    let mut text = format!(
        "{}\nsince {}, opened {}, {}: {}\n\n{}",
        crate::lookout::title(incident),
        incident.since,
        record.opened,
        record.resolved.map_or_else(|| "open".to_owned(), |at| format!("over since {at}")),
        cause(incident.key.cause),
        table::of(&["CHANNEL", "JS", "PSI", "W1 (deviations)", "MISSING", "SINCE"], rows)
    );
    if incident.channels_in_all > incident.channels.len() {
        text += &format!("\nand {} more channels", incident.channels_in_all - incident.channels.len());
    }
    if incident.devices > 0 {
        let examples: Vec<_> = incident.examples.iter().map(ToString::to_string).collect();
        text += &format!("\n\n{} devices: {}", incident.devices, examples.join(", "));
        if incident.devices > examples.len() {
            text += ", ...";
        }
    }
    text
}
