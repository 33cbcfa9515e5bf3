//! `edgefleet trust ...`: changing who is trusted, by file exchange between people.

use super::{context::Context, failure::Failure, model::replace};
use crate::{
    clock,
    registry::source::read_bounded,
    signing::{
        http::{TrustDocument, TrustInstalled},
        key_file,
        proposal::{self, Changes},
        setup::trust_dir,
        summary::TrustSummary,
        trust_store::TrustStore,
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use clap::{Args, Subcommand};
use edgefleet_shared::{
    ids::ModelName,
    trust::{RoleName, Trust, envelope::MAX_ENVELOPE_BYTES},
};
use serde_json::json;
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

const DAY: Duration = Duration::from_secs(86_400);

/// Change who is trusted
#[derive(Debug, Subcommand)]
pub enum TrustCommand {
    /// Write a request for the next trust document
    Propose(ProposeArgs),
    /// Add a signature to a request
    Sign(SignArgs),
    /// Put signed copies of a request together, check them, and install the document
    Merge(MergeArgs),
}

#[derive(Debug, Args)]
pub struct ProposeArgs {
    /// Public key of a new publisher: a .pub file or its text
    #[arg(long, value_name = "KEY")]
    pub add_publisher: Vec<String>,
    /// Public key of a new trust key holder
    #[arg(long, value_name = "KEY")]
    pub add_trust: Vec<String>,
    /// Public key of the controller's next online key
    #[arg(long, value_name = "KEY")]
    pub add_controller: Vec<String>,
    /// Key to remove from every role: its id or a unique beginning
    #[arg(long, value_name = "KEY-ID")]
    pub remove: Vec<String>,
    /// Lowest release of a model that devices may still install; only rises, and publishers sign it too
    #[arg(long, value_name = "MODEL=N", value_parser = parse_floor)]
    pub floor: Vec<(ModelName, u64)>,
    /// How many keys of a role must sign
    #[arg(long, value_name = "ROLE=N", value_parser = parse_threshold)]
    pub threshold: Vec<(RoleName, usize)>,
    /// Only renew the expiry date
    #[arg(long)]
    pub renew: bool,
    /// Days until the new document expires
    #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
    /// The newest trust document; without it, the controller is asked
    #[arg(long, value_name = "FILE")]
    pub current: Option<PathBuf>,
    /// Write the request here instead of to standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct SignArgs {
    /// The request
    pub request: PathBuf,
    /// Private trust key (or publisher key, for a new floor); repeat to sign with several
    #[arg(long = "key", value_name = "FILE", required = true)]
    pub keys: Vec<PathBuf>,
    /// The newest trust document, to see what the request changes
    #[arg(long, value_name = "FILE")]
    pub current: Option<PathBuf>,
    /// Write the signed copy here instead of over the request
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Signed copies of one request
    #[arg(required = true)]
    pub requests: Vec<PathBuf>,
    /// The newest trust document; without it, the controller is asked
    #[arg(long, value_name = "FILE")]
    pub current: Option<PathBuf>,
    /// Write the finished document here instead of installing it at the controller
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

fn parse_floor(text: &str) -> Result<(ModelName, u64), String> {
    let (model, floor) = text.split_once('=').ok_or("write MODEL=N, for example digits=2")?;
    let model = model.parse::<ModelName>().map_err(|e| e.to_string())?;
    Ok((model, floor.parse().map_err(|_| format!("`{floor}` is not a number"))?))
}

fn parse_threshold(text: &str) -> Result<(RoleName, usize), String> {
    let (role, count) = text.split_once('=').ok_or("write ROLE=N, for example publisher=2")?;
    let role = match role {
        "trust" => RoleName::Trust,
        "publisher" => RoleName::Publisher,
        "controller" => RoleName::Controller,
        other => return Err(format!("`{other}` is no role; known are trust, publisher, controller")),
    };
    Ok((role, count.parse().map_err(|_| format!("`{count}` is not a number"))?))
}

impl TrustCommand {
    /// # Errors
    /// [`Failure`] to print.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Propose(args) => propose(context, args).await,
            Self::Sign(args) => sign(context, &args),
            Self::Merge(args) => merge(context, &args).await,
        }
    }
}

async fn propose(context: &Context, args: ProposeArgs) -> Result<(), Failure> {
    let current = document(&current(context, args.current.as_deref()).await?)?;
    let mut changes = Changes {
        remove: args.remove,
        floors: args.floor.into_iter().collect(),
        thresholds: args.threshold,
        renew: args.renew,
        ..Changes::default()
    };
    for (role, keys) in [
        (RoleName::Publisher, &args.add_publisher),
        (RoleName::Trust, &args.add_trust),
        (RoleName::Controller, &args.add_controller),
    ] {
        for key in keys {
            changes.add.push((role, key_file::parse_public(key)?));
        }
    }
    let next = proposal::propose(&current, &changes, DAY * args.days, clock::now())?;
    let bytes = proposal::request(&next).to_bytes();
    eprintln!("Trust {}:", next.version);
    proposal::differences(&current, &next).iter().for_each(|line| eprintln!("  {line}"));
    let role = current.role(RoleName::Trust);
    eprintln!(
        "Next: {} of {} holders of trust keys sign a copy each: edgefleet trust sign REQUEST --key FILE",
        role.threshold,
        role.keys.len()
    );
    if proposal::needs_publishers(&current, &next) {
        let role = current.role(RoleName::Publisher);
        eprintln!(
            "New floors: {} of {} holders of publisher keys sign too, in the same way",
            role.threshold,
            role.keys.len()
        );
    }
    match &args.out {
        Some(path) => replace(path, &bytes),
        None => {
            // The request itself is the result, in either output form.
            let mut out = std::io::stdout().lock();
            out.write_all(&bytes)?;
            Ok(writeln!(out)?)
        }
    }
}

fn sign(context: &Context, args: &SignArgs) -> Result<(), Failure> {
    let (mut envelope, next) = proposal::read_request(&read(&args.request)?)?;
    let current = args.current.as_deref().map(read).transpose()?.map(|raw| document(&raw)).transpose()?;
    eprintln!("Trust {}, issued {}, expires {}:", next.version, next.issued, next.expires);
    match &current {
        Some(current) => {
            proposal::differences(current, &next).iter().for_each(|line| eprintln!("  {line}"));
        }
        None => {
            for role in [RoleName::Trust, RoleName::Publisher, RoleName::Controller] {
                let keys: Vec<_> = next.role(role).keys.iter().map(ToString::to_string).collect();
                eprintln!("  {role}: {} of {}", next.role(role).threshold, keys.join(", "));
            }
            next.floors.iter().for_each(|(model, floor)| eprintln!("  refuses {model} below @{floor}"));
        }
    }
    let mut signers = Vec::new();
    for path in &args.keys {
        let key = key_file::read_private(path)?;
        proposal::sign(&mut envelope, &key, current.as_ref())?;
        signers.push(key.public().id());
    }
    let status = current.as_ref().map(|current| proposal::status(current, &envelope)).transpose()?;
    let out = args.out.as_ref().unwrap_or(&args.request);
    replace(out, &envelope.to_bytes())?;
    let value = json!({
        "version": next.version,
        "file": out,
        "signed_by": signers,
        "signatures": envelope.signatures.len(),
        "complete": status.as_ref().map(proposal::SignatureStatus::complete),
    });
    context.print(&value, |_| {
        let count = match &status {
            Some(status) => format!("{status} in this copy"),
            None => format!("{} signature(s) now", envelope.signatures.len()),
        };
        format!(
            "Signed trust {} in {}: {count}.\nNext: edgefleet trust merge SIGNED_COPIES...",
            next.version,
            out.display()
        )
    })
}

async fn merge(context: &Context, args: &MergeArgs) -> Result<(), Failure> {
    let copies = args.requests.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let merged = proposal::merge(&copies)?;
    let current = current(context, args.current.as_deref()).await?;
    let next = proposal::check(&current, &merged)
        .map_err(|e| Failure::from(e).hint("let more holders sign the same request, then merge again"))?;
    let bytes = merged.to_bytes();
    if let Some(path) = &args.out {
        replace(path, &bytes)?;
        let value = json!({"version": next.version, "file": path, "installed": false});
        return context
            .print(&value, |_| format!("Trust {} is complete in {}.", next.version, path.display()));
    }
    let body = TrustDocument { envelope: BASE64.encode(&bytes) };
    let installed: TrustInstalled = context.client()?.post("/api/v1/trust", &body).await?;
    let value = json!({"version": installed.version, "installed": installed.new});
    context.print(&value, |_| {
        let how =
            if installed.new { "is installed; devices learn of it now" } else { "was installed before" };
        format!("Trust {} {how}.", installed.version)
    })
}

/// The signed bytes of the newest trust document: from a file, from the data folder, or from the controller.
async fn current(context: &Context, file: Option<&Path>) -> Result<Bytes, Failure> {
    if let Some(file) = file {
        return Ok(read(file)?.into());
    }
    if let Some(data) = context.data()
        && let Some(store) = TrustStore::open(&trust_dir(data))?
    {
        return Ok(store.current_bytes());
    }
    let client = context.client().map_err(|failure| {
        failure.hint("name the newest trust document with --current FILE, or a controller")
    })?;
    let summary: TrustSummary = client.get("/api/v1/trust").await?;
    Ok(client.get_bytes(&format!("/api/v1/trust/{}", summary.version)).await?)
}

fn document(raw: &[u8]) -> Result<Trust, Failure> {
    let chain = crate::signing::TrustChain::start(Bytes::copy_from_slice(raw)).map_err(|e| {
        Failure::from(e).hint("--current is a signed trust document, `trust/N.json` of the controller")
    })?;
    Ok(chain.current().clone())
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    read_bounded(path, MAX_ENVELOPE_BYTES as u64).map_err(|e| {
        let mut failure = Failure::new(format!("could not read `{}`", path.display()));
        failure.causes.push(e.to_string());
        failure
    })
}
