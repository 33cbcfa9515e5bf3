//! `edgefleet device`: who is in the fleet, and how devices come and go.

use super::{context::Context, failure::Failure, finding, table};
use crate::{
    api::{
        commands::{CommandDone, NewCommand},
        telemetry::DeviceTelemetryView,
        views::{DeviceChange, DeviceView, InviteRequest, InviteView, Listing, NewInviteView, RemovedDevice},
    },
    findings::Finding,
};
use clap::{Args, Subcommand};
use edgefleet_shared::{
    ids::{DeviceId, InviteId},
    message::Action,
    reported::{EngineReport, MeasuredSetup, RefusalCode},
    selector::Selector,
};
use std::{collections::BTreeMap, time::Duration};

#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    Invite(InviteArgs),
    /// List invites, or revoke one
    Invites(InvitesArgs),
    List(ListArgs),
    Show(OneDevice),
    Label(LabelArgs),
    Rename(RenameArgs),
    /// Let a pending device in
    Approve(OneDevice),
    /// Refuse a pending device for good
    Deny(OneDevice),
    Remove(RemoveArgs),
    /// Ask a device for a sign of life
    Ping(OneDevice),
    /// Have a device report in full and send the telemetry it holds
    Report(OneDevice),
}

/// Make a join code for new devices.
///
/// The code carries the controller's address and the pins that let a device recognise it. It is shown
/// once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet device invite
  edgefleet device invite --labels site=plant-7,line=3 --uses 50 --ttl 24h")]
pub struct InviteArgs {
    /// Labels every device gets that comes with the code
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = label)]
    labels: Vec<(String, String)>,
    /// How many devices may come with it
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// How long it is good
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Devices wait until a person approves them
    #[arg(long)]
    approval: bool,
}

#[derive(Debug, Args)]
pub struct InvitesArgs {
    /// Revoke this one instead of listing
    #[arg(long, value_name = "INVITE")]
    revoke: Option<InviteId>,
}

/// List devices.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet device list
  edgefleet device list --select 'site=plant-7, arch in (aarch64), online=true'
  edgefleet device list --select site=a --select site=b      (a union)")]
pub struct ListArgs {
    /// Only devices that any of these selects
    #[arg(long, value_name = "SELECTOR")]
    select: Vec<Selector>,
}

/// Show one device: who it is, what it runs, what it refused and why.
#[derive(Debug, Args)]
pub struct OneDevice {
    device: DeviceId,
}

/// Set or remove labels of a device.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet device label dev-k3v7q2m5x4ab site=plant-7
  edgefleet device label dev-k3v7q2m5x4ab quarantined-")]
pub struct LabelArgs {
    device: DeviceId,
    /// KEY=VALUE sets, KEY- removes
    #[arg(required = true, value_name = "LABEL", value_parser = label_change)]
    labels: Vec<(String, Option<String>)>,
}

/// Change the name people see.
#[derive(Debug, Args)]
pub struct RenameArgs {
    device: DeviceId,
    name: String,
}

/// Take a device out of the fleet for good: its session ends at once, its certificate is refused.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    device: DeviceId,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn label_change(text: &str) -> Result<(String, Option<String>), String> {
    match text.strip_suffix('-') {
        Some(key) if !text.contains('=') => Ok((key.to_owned(), None)),
        _ => label(text).map(|(key, value)| (key, Some(value))),
    }
}

impl DeviceCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Invite(args) => {
                let request = InviteRequest {
                    labels: args.labels.into_iter().collect(),
                    uses: args.uses,
                    ttl_secs: args.ttl.as_secs(),
                    approval: args.approval,
                };
                let made: NewInviteView = client.post("/api/v1/invites", &request).await?;
                eprintln!(
                    "invite {} for {} device(s) until {}; on each device:\n  edgefleet-agent enroll CODE && edgefleet-agent run",
                    made.invite.id, made.invite.uses, made.invite.expires
                );
                context.print(&made, |made| made.code.clone())
            }
            Self::Invites(args) => match args.revoke {
                Some(id) => {
                    let revoked: InviteView = client.delete(&format!("/api/v1/invites/{id}")).await?;
                    context.print(&revoked, |one| format!("{} is revoked", one.id))
                }
                None => {
                    let all: Vec<InviteView> = pages(&client, "/api/v1/invites", "").await?;
                    context.print(&all, |all| invites(all))
                }
            },
            Self::List(args) => {
                let query: String =
                    args.select.iter().map(|s| format!("&selector={}", encode(&s.to_string()))).collect();
                let all: Vec<DeviceView> = pages(&client, "/api/v1/devices", &query).await?;
                context.print(&all, |all| devices(all))
            }
            Self::Show(args) => {
                let device: DeviceView = client.get(&format!("/api/v1/devices/{}", args.device)).await?;
                let telemetry: DeviceTelemetryView =
                    client.get(&format!("/api/v1/devices/{}/telemetry", args.device)).await?;
                let path = format!("/api/v1/findings?device={}", args.device);
                let findings: Listing<Finding> = client.get(&path).await?;
                let all = Shown { device, telemetry, findings: findings.items };
                context.print(&all, show)
            }
            Self::Label(args) => {
                let change = DeviceChange { name: None, labels: args.labels.into_iter().collect() };
                let device: DeviceView =
                    client.patch(&format!("/api/v1/devices/{}", args.device), &change).await?;
                context.print(&device, |device| format!("{}  {}", device.id, labels(&device.labels)))
            }
            Self::Rename(args) => {
                let change = DeviceChange { name: Some(args.name), labels: BTreeMap::new() };
                let device: DeviceView =
                    client.patch(&format!("/api/v1/devices/{}", args.device), &change).await?;
                context.print(&device, |device| format!("{} is now {}", device.id, device.name))
            }
            Self::Approve(args) => {
                let path = format!("/api/v1/devices/{}/approve", args.device);
                let device: DeviceView = client.post(&path, &()).await?;
                context.print(&device, |device| format!("{} is {}", device.id, device.state))
            }
            Self::Deny(args) => {
                let path = format!("/api/v1/devices/{}/deny", args.device);
                let device: DeviceView = client.post(&path, &()).await?;
                context.print(&device, |device| format!("{} is {}", device.id, device.state))
            }
            Self::Remove(args) => {
                if !args.yes {
                    return Err(Failure::usage(format!(
                        "removing {} ends its session and cannot be undone",
                        args.device
                    ))
                    .hint("repeat with --yes if that is meant"));
                }
                let removed: RemovedDevice =
                    client.delete(&format!("/api/v1/devices/{}", args.device)).await?;
                context.print(&removed, |removed| match removed.session_ended {
                    true => format!("{} is removed, its session has ended", removed.device.id),
                    false => format!(
                        "{} is removed; the broker could not confirm the end of its session, its next connect is refused",
                        removed.device.id
                    ),
                })
            }
            Self::Ping(args) => command(context, &client, &args.device, Action::Ping).await,
            Self::Report(args) => command(context, &client, &args.device, Action::Report).await,
        }
    }
}

async fn command(
    context: &Context,
    client: &super::client::ApiClient,
    device: &DeviceId,
    action: Action,
) -> Result<(), Failure> {
    let path = format!("/api/v1/devices/{device}/commands");
    let done: CommandDone = client.post(&path, &NewCommand { action }).await?;
    context.print(&done, |done| format!("{} answered after {} ms", done.device, done.took_ms))
}

/// Every entry of a listing, page by page.
pub(super) async fn pages<T: serde::de::DeserializeOwned>(
    client: &super::client::ApiClient,
    path: &str,
    query: &str,
) -> Result<Vec<T>, Failure> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let page: Listing<T> = client.get(&format!("{path}?limit=1000{query}{cursor}")).await?;
        all.extend(page.items);
        match page.next {
            Some(next) => cursor = format!("&cursor={}", encode(&next)),
            None => return Ok(all),
        }
    }
}

/// Percent-encodes a query value.
pub(super) fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[derive(serde::Serialize)]
struct Shown {
    #[serde(flatten)]
    device: DeviceView,
    telemetry: DeviceTelemetryView,
    findings: Vec<Finding>,
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn devices(all: &[DeviceView]) -> String {
    let rows = all.iter().map(|device| {
        let serves: Vec<_> = device
            .slots
            .values()
            .map(|slot| match (&slot.active, slot.phase.is_failure()) {
                (Some(bundle), false) => format!("{bundle} {}", slot.phase),
                (Some(bundle), true) => format!("{bundle} ({})", slot.phase),
                (None, _) => slot.phase.to_string(),
            })
            .collect();
        vec![
            device.id.to_string(),
            device.name.clone(),
            if device.online { "online".into() } else { device.state.to_string() + ", offline" },
            serves.join(" "),
            labels(&device.labels),
        ]
    });
    table::of(&["DEVICE", "NAME", "STATE", "SERVES", "LABELS"], rows)
}

fn invites(all: &[InviteView]) -> String {
    let rows = all.iter().map(|invite| {
        let state = serde_json::to_value(invite.state).ok();
        vec![
            invite.id.to_string(),
            state.and_then(|s| s.as_str().map(str::to_owned)).unwrap_or_default(),
            format!("{} of {}", invite.used, invite.uses),
            invite.expires.to_string(),
            labels(&invite.labels),
        ]
    });
    table::of(&["INVITE", "STATE", "USED", "EXPIRES", "LABELS"], rows)
}

/// What runs a slot's bundle, what that was chosen from, and what was refused.
fn runs(engine: &EngineReport) -> Vec<String> {
    let median = |one: &MeasuredSetup| {
        let batch = one.batch.map(|(rows, ms)| format!(" ({rows} rows {ms:.3} ms)")).unwrap_or_default();
        one.median_ms.map(|ms| format!("{} {ms:.3} ms{batch}", one.setup))
    };
    let measured: Vec<String> = engine.measured.iter().filter_map(median).collect();
    let mut first = format!("runs on {}", engine.setup);
    if !measured.is_empty() {
        first += &format!(", of {} rounds: {}", engine.rounds, measured.join(", "));
    }
    if !engine.current {
        first += " (measured with other engines or settings; to be tried again)";
    }
    let mut lines = vec![first];
    if let Some(again) = &engine.again {
        lines.push(format!(
            "chosen anew {} time(s), last {} because {}; before: {}",
            again.times, again.at, again.why, again.from
        ));
    }
    lines.extend(engine.refused.iter().map(|refused| {
        let code = refused.code.map_or("not tried", RefusalCode::as_str);
        format!("not {} ({code}): {}", refused.setup, refused.reason)
    }));
    lines
}

fn show(both: &Shown) -> String {
    let device = &both.device;
    let mut lines = vec![
        format!("device     {}  ({})", device.id, device.name),
        format!("state      {}, {}", device.state, if device.online { "online" } else { "offline" }),
        format!("presence   {}", device.presence),
        format!("labels     {}", labels(&device.labels)),
        format!(
            "facts      agent {}, {}, {} cores, {} MiB, {}",
            device.facts.agent_version,
            device.facts.arch,
            device.facts.cores,
            device.facts.memory_bytes >> 20,
            device.facts.os
        ),
    ];
    if let Some(seen) = device.last_seen {
        lines.push(format!("last seen  {seen}"));
    }
    if let Some(certificate) = device.certificates.last() {
        lines.push(format!("certificate {} until {}", certificate.serial, certificate.not_after));
    }
    if let Some(report) = &device.reported {
        lines.push(format!(
            "generation {}, trust {}, clock {}",
            report.generation,
            report.trust_version,
            match report.clock {
                edgefleet_shared::reported::ClockQuality::Plausible => "plausible",
                edgefleet_shared::reported::ClockQuality::BehindFloor => "behind signed time",
                edgefleet_shared::reported::ClockQuality::FarAhead => "far ahead of signed time",
            }
        ));
        for (slot, is) in &report.slots {
            let active = is.active.as_ref().map_or("nothing".to_owned(), |a| a.bundle.to_string());
            lines.push(format!("slot       {slot}: serves {active}, {}", is.phase));
            if let Some(target) = &is.target {
                lines.push(format!("           target {} (attempt {})", target.bundle, target.attempt));
            }
            if let Some(previous) = &is.previous {
                lines.push(format!("           previous {}", previous.bundle));
            }
            if let Some(error) = &is.last_error {
                lines.push(format!("           {}: {}", error.code, error.message));
            }
            if let Some(engine) = &is.engine {
                lines.extend(runs(engine).into_iter().map(|line| format!("           {line}")));
            }
        }
        if let Some(refused) = &report.refused {
            lines.push(format!("refused    {}: {}", refused.code, refused.message));
        }
    }
    for bundle in &both.telemetry.bundles {
        let accuracy = bundle.accuracy.map_or("-".to_owned(), |a| format!("{:.1} %", 100.0 * a));
        let ms = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.2}"));
        lines.push(format!(
            "served     {}: {} requests, {} failed, p50 {} ms, p95 {} ms, accuracy {accuracy} of {} labels",
            bundle.bundle,
            bundle.counts.requests,
            bundle.counts.requests.saturating_sub(bundle.counts.ok),
            ms(bundle.latency_ms.p50),
            ms(bundle.latency_ms.p95),
            bundle.labels.matched,
        ));
    }
    if !both.findings.is_empty() {
        lines.push(format!("\n{}", finding::brief(&both.findings)));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_changes_set_or_remove() {
        assert_eq!(label_change("site=a-").unwrap(), ("site".into(), Some("a-".into())));
        assert_eq!(label_change("site-").unwrap(), ("site".into(), None));
        assert!(label_change("site").is_err());
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encode("site in (a, b)"), "site%20in%20%28a%2C%20b%29");
    }
}
