//! `edgefleet alert`: who is told what, and whether it arrives.

use super::{context::Context, device::encode, failure::Failure, table};
use crate::{
    alerts::{
        Delivery, DeliveryState,
        http::{ChannelView, TestBody, TestedView},
    },
    api::views::Listing,
};
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum AlertCommand {
    Test(TestArgs),
    List(ListArgs),
    /// Show the channels of the server's settings
    Channels,
}

/// Send a test to every channel, or to one, and say how each took it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet alert test
  edgefleet alert test --channel ops --output json")]
pub struct TestArgs {
    /// Only this one
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
}

/// Show what became of alerts, the newest first.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those in this state: pending, delivered or dead
    #[arg(long, value_name = "STATE")]
    state: Option<DeliveryState>,
    /// Only those for this channel
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    limit: u16,
}

impl AlertCommand {
    /// # Errors
    /// [`Failure`]; also if a test did not arrive.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Test(TestArgs { channel }) => {
                let body = TestBody { channel };
                let tested: Listing<TestedView> = client.post("/api/v1/alerts/test", &body).await?;
                context.print(&tested.items, |all| outcomes(all))?;
                let failed: Vec<_> = tested
                    .items
                    .iter()
                    .filter(|one| !one.outcome.ok)
                    .map(|one| one.channel.as_str())
                    .collect();
                if failed.is_empty() {
                    return Ok(());
                }
                Err(Failure::new(format!("the test did not arrive at {}", failed.join(", "))))
            }
            Self::List(ListArgs { state, channel, limit }) => {
                let mut path = format!("/api/v1/alerts?limit={limit}");
                if let Some(state) = state {
                    path.push_str(&format!("&state={}", state.as_str()));
                }
                if let Some(channel) = channel {
                    path.push_str(&format!("&channel={}", encode(&channel)));
                }
                let all: Listing<Delivery> = client.get(&path).await?;
                context.print(&all.items, |all| deliveries(all))
            }
            Self::Channels => {
                let all: Listing<ChannelView> = client.get("/api/v1/alerts/channels").await?;
                context.print(&all.items, |all| channels(all))
            }
        }
    }
}

fn outcomes(all: &[TestedView]) -> String {
    let rows = all.iter().map(|one| {
        let outcome = &one.outcome;
        vec![
            one.channel.clone(),
            one.way.clone(),
            if outcome.ok { "arrived" } else { "failed" }.to_owned(),
            outcome.status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
            format!("{} ms", outcome.latency_ms),
            outcome.error.clone().unwrap_or_else(|| one.target.clone()),
        ]
    });
    table::of(&["CHANNEL", "WAY", "TEST", "STATUS", "TOOK", "WHERE, OR WHY NOT"], rows)
}

fn deliveries(all: &[Delivery]) -> String {
    if all.is_empty() {
        return "no alerts".to_owned();
    }
    let rows = all.iter().map(|one| {
        let said = match (one.state, one.last.as_ref().and_then(|last| last.error.as_ref())) {
            (DeliveryState::Pending, Some(error)) => format!("again at {}: {error}", one.next),
            (_, Some(error)) => error.clone(),
            (_, None) => String::new(),
        };
        vec![
            one.event.at.to_string(),
            one.channel.clone(),
            one.state.as_str().to_owned(),
            one.tries.to_string(),
            one.event.severity.to_string(),
            one.event.kind.to_string(),
            one.event.title.clone(),
            said,
        ]
    });
    table::of(&["AT", "CHANNEL", "STATE", "TRIES", "SEVERITY", "KIND", "TITLE", "LAST"], rows)
}

fn channels(all: &[ChannelView]) -> String {
    if all.is_empty() {
        return "the server has no alert channels".to_owned();
    }
    let rows = all.iter().map(|one| {
        vec![
            one.name.clone(),
            one.way.clone(),
            one.target.clone(),
            if one.kinds.is_empty() { "all".to_owned() } else { one.kinds.join(" ") },
            one.min_severity.clone().unwrap_or_else(|| "all".to_owned()),
            one.pending.to_string(),
        ]
    });
    table::of(&["CHANNEL", "WAY", "WHERE", "KINDS", "FROM", "PENDING"], rows)
}
