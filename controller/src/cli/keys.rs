//! `edgefleet keys ...`: who is trusted, and making keys on a machine without network.

use super::{context::Context, failure::Failure, table};
use crate::{
    clock,
    signing::{
        ceremony::{NewTrust, new_trust},
        setup::trust_dir,
        summary::{TrustSummary, keys_on_controller, summarize},
        trust_store::TrustStore,
    },
};
use clap::{Args, Subcommand};
use serde_json::json;
use std::{path::PathBuf, time::Duration};

const DAY: Duration = Duration::from_secs(86_400);

/// Show and make signing keys
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Show roles, keys, thresholds and expiry
    Show,
    /// Make a hardened set of keys as files to carry away
    NewTrust(NewTrustArgs),
}

#[derive(Debug, Args)]
pub struct NewTrustArgs {
    /// New folder for the keys
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Ask no controller (this command never does; the flag says it in scripts)
    #[arg(long)]
    pub offline: bool,
    /// Trust keys to make
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub trust_keys: usize,
    /// How many of them must sign a new trust document
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub trust_threshold: usize,
    /// A publisher: a person or a CI system; repeat for more
    #[arg(long = "publisher", value_name = "NAME", default_value = "1")]
    pub publishers: Vec<String>,
    /// How many publishers must sign a bundle
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub publisher_threshold: usize,
    /// Days until the trust document expires
    #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}

impl KeysCommand {
    /// # Errors
    /// [`Failure`] to print.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Show => show(context).await,
            Self::NewTrust(args) => make(context, args),
        }
    }
}

async fn show(context: &Context) -> Result<(), Failure> {
    let summary = match context.data() {
        // On the controller's own machine the files say it, running or not.
        Some(data) => {
            let store = TrustStore::open(&trust_dir(data))?.ok_or_else(|| {
                Failure::new(format!("there are no keys in `{}` yet", data.display()))
                    .hint("`edgefleet serve` makes them on its first start")
            })?;
            summarize(&store.current(), store.pin(), &keys_on_controller(data), clock::now())
        }
        None => context.client()?.get::<TrustSummary>("/api/v1/trust").await?,
    };
    context.print(&summary, show_summary)?;
    summary.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    Ok(())
}

fn show_summary(summary: &TrustSummary) -> String {
    let keys = summary.roles.iter().flat_map(|role| role.keys.iter().map(move |key| (role, key)));
    let rows = keys.map(|(role, key)| {
        vec![
            role.role.to_string(),
            format!("{} of {}", role.threshold, role.keys.len()),
            key.id.to_string(),
            if key.on_controller { "on the controller" } else { "elsewhere" }.to_owned(),
        ]
    });
    let table = table::of(&["ROLE", "NEEDS", "KEY", "PRIVATE PART"], rows);
    let floors: Vec<_> =
        summary.floors.iter().map(|(model, floor)| format!("{model} from @{floor}")).collect();
    let floors =
        if floors.is_empty() { String::new() } else { format!("\nReleases accepted: {}", floors.join(", ")) };
    format!(
        "Trust {} ({})\nissued {}, expires {} (in {} days){floors}\n{table}",
        summary.version, summary.digest, summary.issued, summary.expires, summary.expires_in_days
    )
}

fn make(context: &Context, args: NewTrustArgs) -> Result<(), Failure> {
    for interface in interfaces_up() {
        eprintln!("warning: network interface {interface} is up; keys are safest made where there is none");
    }
    let wanted = NewTrust {
        trust_keys: args.trust_keys,
        trust_threshold: args.trust_threshold,
        publishers: args.publishers,
        publisher_threshold: args.publisher_threshold,
        lifetime: DAY * args.days,
    };
    let set = new_trust(&args.out, &wanted, clock::now())?;
    let files = |keys: &[(PathBuf, edgefleet_shared::trust::KeyId)]| {
        keys.iter().map(|(path, id)| json!({"file": path, "key": id})).collect::<Vec<_>>()
    };
    let value = json!({
        "server": set.server,
        "trust": files(&set.trust),
        "publishers": files(&set.publishers),
        "controller": set.controller,
        "pin": set.pin,
        "expires": set.expires,
    });
    context.print(&value, |_| {
        let mut rows = Vec::new();
        for (index, (path, id)) in set.trust.iter().enumerate() {
            let holder = format!("holder {} of trust keys, on a stick in a safe", index + 1);
            rows.push(vec![path.display().to_string(), id.to_string(), holder]);
        }
        for (path, id) in &set.publishers {
            rows.push(vec![
                path.display().to_string(),
                id.to_string(),
                "that person or CI system".to_owned(),
            ]);
        }
        let server = set.server.display();
        rows.push(vec![server.to_string(), set.controller.to_string(), "the controller".to_owned()]);
        let table = table::of(&["FILE", "KEY", "GOES TO"], rows.into_iter());
        format!(
            "{table}\nTrust 1 is {}, expires {}\n\
             Next: copy the content of {server} into the controller's data folder before its first start\n  \
             cp -r {server}/. DATA && edgefleet serve --data DATA\n\
             Then remove {} from this machine, once every key is where it belongs and has a copy.",
            set.pin,
            set.expires,
            args.out.display(),
        )
    })
}

/// Names of network interfaces that are up, loopback aside.
fn interfaces_up() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return vec![] };
    let up = |path: &std::path::Path| {
        std::fs::read_to_string(path.join("operstate")).is_ok_and(|state| state.trim() == "up")
    };
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.flatten().filter(|entry| up(&entry.path())).map(name).filter(|name| name != "lo").collect()
}
