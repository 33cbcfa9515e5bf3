//! `edgefleet backup` and `edgefleet restore`.

use crate::{
    backup::{
        BackupError, Cost, NewFile, Order, Passphrase, PassphraseError, RestoreOrder, Restored, Summary,
        default_name, offline, restore, verify,
    },
    clock,
    fleet::{Actor, data_dir::DataDirError},
};
use clap::{Args, ValueEnum};
use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// Holds the passphrase for programs; people are asked.
const PASSPHRASE_ENV: &str = "EDGEFLEET_BACKUP_PASSPHRASE";
const TOKEN_ENV: &str = "EDGEFLEET_TOKEN";
/// Where a controller listens unless told otherwise.
const DEFAULT_SERVER: &str = "https://localhost:8443";
/// Largest error answer that is read.
const MAX_PROBLEM_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Text,
    Json,
}

/// Writes everything the controller knows, its keys included, to one encrypted file.
///
/// A controller that runs is asked to do it; otherwise its data folder is read directly.
#[derive(Args, Clone, Debug)]
pub struct BackupArgs {
    /// The controller's data folder
    #[arg(long, value_name = "DIR", env = "EDGEFLEET_DATA", required_unless_present = "server")]
    pub data: Option<PathBuf>,
    /// Ask the controller at this address instead (https://HOST:PORT)
    #[arg(long, value_name = "URL", env = "EDGEFLEET_SERVER")]
    pub server: Option<String>,
    /// A file with a token of role admin [default: $EDGEFLEET_TOKEN, else admin-token in the data folder]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The controller's CA certificate [default: ca/ca.pem in the data folder]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The new file [default: edgefleet-backup-TIME.efb here]
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Include the models themselves, not only their digests
    #[arg(long)]
    pub with_blobs: bool,
    /// A file with the passphrase [default: $EDGEFLEET_BACKUP_PASSPHRASE, else ask]
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Brings a controller back from a backup, into an empty folder.
#[derive(Args, Clone, Debug)]
pub struct RestoreArgs {
    /// The backup
    pub file: PathBuf,
    /// The new data folder: missing or empty
    #[arg(long, value_name = "DIR", env = "EDGEFLEET_DATA")]
    pub data: PathBuf,
    /// Copy models that the backup only names from this folder, checking each
    #[arg(long, value_name = "DIR")]
    pub blobs: Option<PathBuf>,
    /// A file with the passphrase [default: $EDGEFLEET_BACKUP_PASSPHRASE, else ask]
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

impl BackupArgs {
    /// Makes the backup, reads it back, gives it its name and prints what it holds.
    ///
    /// # Errors
    /// [`BackupError`]; its `hint` says what to do. No file is left behind.
    pub async fn run(self) -> Result<(), BackupError> {
        let passphrase = passphrase(self.passphrase_file.as_deref(), true)?;
        passphrase.check_new()?;
        let now = clock::now();
        let path = self.out.clone().unwrap_or_else(|| default_name(now).into());
        let file = NewFile::create(&path)?;
        let bar = progress(None, "writing");
        let out = bar.wrap_write(file.writer()?);
        let order = Order {
            passphrase: passphrase.clone(),
            with_blobs: self.with_blobs,
            cost: Cost::DEFAULT,
            actor: Actor::controller(),
            now,
        };
        let made = match (&self.server, &self.data) {
            (None, Some(data)) => match offline(data, order, out).await {
                Ok((summary, _)) => Some(summary),
                Err(BackupError::DataDir(DataDirError::InUse { .. })) => None,
                Err(error) => return Err(error),
            },
            _ => None,
        };
        let asked = made.is_none();
        if asked {
            self.ask(&passphrase, &mut bar.wrap_write(file.writer()?)).await?;
        }
        bar.finish_and_clear();
        let (reader, again) = (file.reader()?, passphrase);
        let bar = progress(Some(reader.metadata().map_or(0, |found| found.len())), "checking");
        let reader = bar.wrap_read(reader);
        let checked = tokio::task::spawn_blocking(move || verify(reader, &again)).await??;
        bar.finish_and_clear();
        file.finish()?;
        let summary = made.unwrap_or(checked);
        match self.output {
            Output::Json => print(&format!("{}\n", backup_json(&path, &summary, asked))),
            Output::Text => print(&backup_text(&path, &summary)),
        }
        Ok(())
    }

    /// Lets the running controller write the file.
    async fn ask(&self, passphrase: &Passphrase, out: &mut impl Write) -> Result<(), BackupError> {
        let url = self.url();
        let missing = |what| BackupError::Missing { what, url: url.clone() };
        let read = |path: PathBuf| {
            fs::read(&path).map_err(|source| BackupError::Io { action: "read", path, source })
        };
        let in_data = |name: &str| self.data.as_ref().map(|data| data.join(name));
        let token = match (&self.token_file, std::env::var(TOKEN_ENV)) {
            (None, Ok(token)) => token,
            (file, _) => {
                let file = file.clone().or_else(|| in_data("admin-token"));
                String::from_utf8_lossy(&read(file.ok_or_else(|| missing("a token"))?)?).into_owned()
            }
        };
        let ca = self.ca.clone().or_else(|| in_data("ca/ca.pem"));
        let ca = read(ca.ok_or_else(|| missing("the CA certificate"))?)?;
        let failed = |source| BackupError::Ask { url: url.clone(), source };
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&ca).map_err(failed)?])
            .https_only(true)
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(120))
            .no_proxy()
            .build()
            .map_err(failed)?;
        let request = client
            .post(format!("{}/api/v1/backup", url.trim_end_matches('/')))
            .bearer_auth(token.trim())
            .json(&json!({"passphrase": passphrase.reveal(), "with_blobs": self.with_blobs}));
        let mut response = request.send().await.map_err(failed)?;
        if !response.status().is_success() {
            let mut detail = response.status().to_string();
            let mut body = Vec::new();
            while let Some(piece) = response.chunk().await.map_err(failed)? {
                body.extend_from_slice(&piece);
                if body.len() > MAX_PROBLEM_BYTES {
                    break;
                }
            }
            if let Ok(problem) = serde_json::from_slice::<Value>(&body)
                && let Some(text) = problem["detail"].as_str()
            {
                detail = text.to_owned();
            }
            return Err(BackupError::Refused { url, detail });
        }
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            out.write_all(&piece).map_err(BackupError::Write)?;
        }
        out.flush().map_err(BackupError::Write)
    }

    /// The address given, or the one that the controller of the data folder wrote down at its start.
    fn url(&self) -> String {
        if let Some(server) = &self.server {
            return server.clone();
        }
        let written = self.data.as_ref().and_then(|data| fs::read(data.join("run/addresses.json")).ok());
        let written = written.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let https = written.as_ref().and_then(|addresses| addresses["https"].as_str());
        https.map_or_else(|| DEFAULT_SERVER.to_owned(), |https| format!("https://{https}"))
    }
}

impl RestoreArgs {
    /// Restores, and prints what has to be done by hand.
    ///
    /// # Errors
    /// [`BackupError`]; its `hint` says what to do. The folder is as it was then.
    pub async fn run(self) -> Result<(), BackupError> {
        let path = self.file.clone();
        let file = File::open(&path).map_err(|source| BackupError::Io { action: "open", path, source })?;
        let passphrase = passphrase(self.passphrase_file.as_deref(), false)?;
        let bar = progress(Some(file.metadata().map_or(0, |found| found.len())), "restoring");
        let order = RestoreOrder {
            passphrase,
            data: self.data.clone(),
            blobs: self.blobs.clone(),
            now: clock::now(),
        };
        let restored = restore(bar.wrap_read(io::BufReader::new(file)), order).await?;
        bar.finish_and_clear();
        match self.output {
            Output::Json => {
                let restored = json!({"data": self.data, "restored": restored});
                print(&format!("{restored}\n"));
            }
            Output::Text => print(&restore_text(&self.data, &restored)),
        }
        Ok(())
    }
}

/// From the file, the environment, or the terminal (twice for a new backup).
fn passphrase(file: Option<&Path>, new: bool) -> Result<Passphrase, BackupError> {
    if let Some(file) = file {
        return Ok(Passphrase::from_file(file)?);
    }
    if let Ok(text) = std::env::var(PASSPHRASE_ENV) {
        return Ok(Passphrase::new(text)?);
    }
    let terminal = Term::stderr();
    let failed = |source| PassphraseError::Read { path: "the terminal".into(), source };
    if !terminal.is_term() || !io::IsTerminal::is_terminal(&io::stdin()) {
        let what = format!("there is none; set {PASSPHRASE_ENV} or give --passphrase-file");
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, what)).into());
    }
    let ask = |text: &str| {
        terminal.write_str(text).map_err(failed)?;
        Passphrase::new(terminal.read_secure_line().map_err(failed)?)
    };
    let first = ask("Passphrase of the backup: ")?;
    if new && ask("Once more: ")? != first {
        let what = "the two differ";
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, what)).into());
    }
    Ok(first)
}

/// On a terminal only; standard error.
fn progress(total: Option<u64>, what: &'static str) -> ProgressBar {
    let target = ProgressDrawTarget::stderr();
    let (bar, template) = match total {
        Some(total) => {
            (ProgressBar::with_draw_target(Some(total), target), "{msg} [{bar:30}] {bytes}/{total_bytes}")
        }
        None => (ProgressBar::with_draw_target(None, target), "{msg} {spinner} {bytes}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_message(what)
}

fn print(text: &str) {
    // Whoever closed the pipe does not want to know.
    let _ = io::stdout().write_all(text.as_bytes());
}

fn backup_json(path: &Path, summary: &Summary, asked: bool) -> Value {
    json!({"file": path, "by": if asked { "controller" } else { "folder" }, "backup": summary})
}

fn backup_text(path: &Path, summary: &Summary) -> String {
    let mut text = format!(
        "{}: {} bytes, checked\n  {} documents, {} log entries, {} files, {} blobs ({})\n",
        path.display(),
        summary.bytes,
        summary.documents,
        summary.log_entries,
        summary.files,
        summary.blobs_listed,
        if summary.blobs_included == summary.blobs_listed {
            "included".to_owned()
        } else {
            format!(
                "{} bytes, {} included; keep a copy of the folder `blobs`",
                summary.blob_bytes, summary.blobs_included
            )
        }
    );
    for name in &summary.left_out {
        text += &format!("  not included: {name}\n");
    }
    for digest in &summary.damaged_blobs {
        text += &format!("  damaged in the controller's folder: {digest}; push its bundle again\n");
    }
    text + "Without the passphrase nobody can read it, you included. Keep both, apart.\n"
}

fn restore_text(data: &Path, restored: &Restored) -> String {
    let backup = &restored.backup;
    let mut text = format!(
        "Restored the controller of {} into `{}`: {} documents, {} log entries, {} files\n",
        backup.created,
        data.display(),
        backup.documents,
        backup.log_entries,
        backup.files
    );
    let there = backup.blobs_listed - restored.missing.len() as u64;
    text +=
        &format!("  {there} of {} blobs, {} of them copied\n", backup.blobs_listed, restored.blobs_copied);
    for warning in &restored.warnings {
        text += &format!("  warning: {warning}\n");
    }
    for blob in &restored.missing {
        let reason = blob.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        text += &format!("  missing: {} ({} bytes){reason}\n", blob.digest, blob.size);
    }
    if !restored.missing.is_empty() {
        text += &format!(
            "Copy the old controller's folder `blobs` to `{}`, or restore again with --blobs DIR, which checks \
             each; devices keep running meanwhile, but new ones cannot be given these models.\n",
            data.join("blobs").display()
        );
    }
    text + &format!(
        "Devices, tokens and invites that were revoked after {} are valid again: revoke them again.\n\
         Never run the old controller beside this one.\n",
        backup.created
    )
}

#[cfg(test)]
#[path = "backup_tests.rs"]
mod tests;
