//! `edgefleet finding`: what a person has to look at.

use super::{context::Context, device::pages, failure::Failure, table};
use crate::findings::{Finding, FindingCode};
use clap::{Args, Subcommand};
use edgefleet_shared::ids::DeviceId;

#[derive(Debug, Subcommand)]
pub enum FindingCommand {
    /// List what is open
    List,
    Resolve(ResolveArgs),
}

/// Say that you have dealt with a finding; what it held back goes on.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  edgefleet finding resolve dev-k3v7q2m5x4ab duplicate-identity")]
pub struct ResolveArgs {
    device: DeviceId,
    /// duplicate-identity, controller-state-behind or impossible-generation
    code: FindingCode,
}

impl FindingCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::List => {
                let all: Vec<Finding> = pages(&client, "/api/v1/findings", "").await?;
                context.print(&all, |all| list(all))
            }
            Self::Resolve(ResolveArgs { device, code }) => {
                let closed: Finding = client.delete(&format!("/api/v1/findings/{device}/{code}")).await?;
                context.print(&closed, |closed| format!("{} of {} is resolved", closed.code, closed.device))
            }
        }
    }
}

fn list(all: &[Finding]) -> String {
    if all.is_empty() {
        return "nothing is open".to_owned();
    }
    let one = |finding: &Finding| {
        let Finding { device, code, since, last, message, .. } = finding;
        format!("{device}  {code}\n  since {since}, last {last}\n  {message}\n  {}", code.advice())
    };
    all.iter().map(one).collect::<Vec<_>>().join("\n\n")
}

/// For the page of one device.
pub(super) fn brief(all: &[Finding]) -> String {
    let rows = all.iter().map(|one| vec![one.code.to_string(), one.last.to_string(), one.message.clone()]);
    table::of(&["FINDING", "LAST", "WHAT"], rows)
}
