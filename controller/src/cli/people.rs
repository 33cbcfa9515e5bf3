//! `edgefleet token` and `edgefleet audit`.

use super::{context::Context, device::pages, failure::Failure, table};
use crate::{
    api::views::{AuditView, NewTokenView, TokenRequest, TokenView},
    clock,
    fleet::roles::Role,
};
use clap::{Args, Subcommand};
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    Create(CreateArgs),
    /// List tokens; their texts are nowhere
    List,
    /// Revoke a token at once
    Revoke {
        token: String,
    },
}

/// Make an API token. Its text is shown once.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  edgefleet token create ci --role publisher --ttl 90d")]
pub struct CreateArgs {
    /// For people
    name: String,
    /// viewer, operator, publisher, approver or admin
    #[arg(long)]
    role: Role,
    /// How long it is good [default: until revoked]
    #[arg(long, value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
}

impl TokenCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Create(args) => {
                let expires = args.ttl.map(|ttl| clock::now() + ttl);
                let request = TokenRequest { name: args.name, role: args.role, expires };
                let made: NewTokenView = client.post("/api/v1/tokens", &request).await?;
                context.print(&made, |made| made.text.clone())
            }
            Self::List => {
                let all: Vec<TokenView> = pages(&client, "/api/v1/tokens", "").await?;
                context.print(&all, |all| {
                    let rows = all.iter().map(|token| {
                        let ends = match (token.revoked, token.expires) {
                            (Some(at), _) => format!("revoked {at}"),
                            (None, Some(at)) => at.to_string(),
                            (None, None) => "never".to_owned(),
                        };
                        vec![token.id.clone(), token.name.clone(), token.role.to_string(), ends]
                    });
                    table::of(&["TOKEN", "NAME", "ROLE", "ENDS"], rows)
                })
            }
            Self::Revoke { token } => {
                let revoked: TokenView = client.delete(&format!("/api/v1/tokens/{token}")).await?;
                context.print(&revoked, |token| format!("{} is revoked", token.id))
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Who changed what, oldest first
    List,
}

impl AuditCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let Self::List = self;
        let all: Vec<AuditView> = pages(&context.client()?, "/api/v1/audit", "").await?;
        context.print(&all, |all| {
            let rows = all.iter().map(|entry| {
                vec![
                    entry.seq.to_string(),
                    entry.at.clone(),
                    entry.who.clone(),
                    entry.action.clone(),
                    entry.subject.clone(),
                    entry.note.clone().unwrap_or_default(),
                ]
            });
            table::of(&["SEQ", "AT", "WHO", "ACTION", "SUBJECT", "NOTE"], rows)
        })
    }
}
