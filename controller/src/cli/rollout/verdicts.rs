//! `edgefleet rollout verdicts`: what was decided, signed; checked without asking anybody.

use super::{path, words};
use crate::{
    api::rollout_views::SignedVerdict,
    cli::{context::Context, device::pages, failure::Failure, table},
    rollout::VerdictRecord,
    signing::key_file,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use clap::Args;
use edgefleet_shared::{
    ids::RolloutId,
    trust::{
        Envelope, PublicKey, RoleName, Trust,
        envelope::{MAX_ENVELOPE_BYTES, TRUST_TYPE, VERDICT_TYPE, pre_authentication},
    },
};
use serde::Serialize;
use serde_json::Value;
use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

/// Largest file of saved verdicts that is read.
const MAX_SAVED: u64 = 64 << 20;

/// Show what was decided, by which rule or person, and check the signatures
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet rollout verdicts r-0mibjsxda-1f20
  edgefleet rollout verdicts r-0mibjsxda-1f20 --output json > verdicts.json
  edgefleet rollout verdicts --file verdicts.json --verify --key trust/1.json   (anywhere, offline)")]
pub struct VerdictArgs {
    /// The rollout's id, see `edgefleet rollout list`
    #[arg(required_unless_present = "file")]
    rollout: Option<RolloutId>,
    /// Take them from a file that `--output json` wrote, and ask no controller
    #[arg(long, value_name = "FILE", conflicts_with = "rollout")]
    file: Option<PathBuf>,
    /// Check every signature; fails if one is not good
    #[arg(long, requires = "key")]
    verify: bool,
    /// The controller's public key: a .pub file, or a trust document that names it
    #[arg(long, value_name = "FILE", requires = "verify")]
    key: Option<PathBuf>,
}

/// A verdict and what the check of its signature said.
#[derive(Serialize)]
pub(super) struct Checked {
    #[serde(flatten)]
    pub signed: SignedVerdict,
    /// Absent: nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

const GOOD: &str = "good";

impl VerdictArgs {
    /// # Errors
    /// [`Failure`], also if a signature is not good.
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let keys = self.key.as_deref().map(keys).transpose()?;
        let all = match (&self.file, &self.rollout) {
            (Some(file), _) => saved(file)?,
            (None, Some(rollout)) => {
                pages(&context.client()?, &format!("{}/verdicts", path(rollout)), "").await?
            }
            (None, None) => return Err(Failure::usage("no rollout was named")),
        };
        let check = |signed: SignedVerdict| {
            let signature = keys.as_ref().map(|keys| match verify(&signed, keys) {
                Ok(()) => GOOD.to_owned(),
                Err(reason) => reason,
            });
            Checked { signed, signature }
        };
        let all: Vec<_> = all.into_iter().map(check).collect();
        context.print(&all, |all| text(all))?;
        let bad = all.iter().filter(|one| one.signature.as_deref().is_some_and(|said| said != GOOD)).count();
        match bad {
            0 => Ok(()),
            bad => Err(Failure::new(format!("{bad} of {} signatures are not good", all.len()))
                .hint("is it the key of this controller? `edgefleet keys show` names it")),
        }
    }
}

pub(super) fn text(all: &[Checked]) -> String {
    if all.is_empty() {
        return "nothing has been decided yet".to_owned();
    }
    let checked = all.iter().any(|one| one.signature.is_some());
    let rows = all.iter().map(|one| {
        let record = &one.signed.record;
        let stage = record.stage.as_ref().map_or("-", |(_, name)| name.as_str());
        let key: String = one.signed.key.as_str().chars().take(8).collect();
        let mut row = vec![
            words::time(record.at),
            stage.to_owned(),
            words::decision(record.decision),
            key,
            words::because(&record.because),
        ];
        if checked {
            row.insert(4, one.signature.clone().unwrap_or_default());
        }
        row
    });
    let header: &[&str] = match checked {
        true => &["AT", "STAGE", "DECISION", "KEY", "SIGNATURE", "BECAUSE"],
        false => &["AT", "STAGE", "DECISION", "KEY", "BECAUSE"],
    };
    table::of(header, rows)
}

/// Whether one of `keys` signed exactly this record.
pub(super) fn verify(signed: &SignedVerdict, keys: &[PublicKey]) -> Result<(), String> {
    if signed.envelope.len() > MAX_ENVELOPE_BYTES * 2 {
        return Err("the envelope is too large".to_owned());
    }
    let raw = BASE64.decode(&signed.envelope).map_err(|e| format!("the envelope is no base64: {e}"))?;
    let envelope = Envelope::parse(&raw).map_err(|e| e.to_string())?;
    if envelope.payload_type != VERDICT_TYPE {
        return Err("it signs something else than a verdict".to_owned());
    }
    let payload = envelope.payload().map_err(|e| e.to_string())?;
    let message = pre_authentication(&envelope.payload_type, &payload);
    let good = envelope.signatures.iter().any(|signature| {
        let bytes = BASE64.decode(&signature.sig).unwrap_or_default();
        keys.iter().any(|key| key.id() == signature.keyid && key.verifies(&message, &bytes))
    });
    if !good {
        return Err("no signature by the given key".to_owned());
    }
    // What people read stands beside the envelope: it has to be what was signed.
    let payload: VerdictRecord =
        serde_json::from_slice(&payload).map_err(|e| format!("the signed record is not understood: {e}"))?;
    let [payload, shown] = [&payload, &signed.record].map(serde_json::to_value);
    match (payload, shown) {
        (Ok(payload), Ok(shown)) if same(&payload, &shown) => Ok(()),
        _ => Err("the record shown is not the one that was signed".to_owned()),
    }
}

/// Equal but for the last digits of fractions, which a walk through two JSON parsers may change.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (Some(x), Some(y)) = (a.as_f64(), b.as_f64()) else { return a == b };
            a == b || (x - y).abs() <= 1e-12 * x.abs().max(y.abs())
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// The controller's keys in `file`.
fn keys(file: &Path) -> Result<Vec<PublicKey>, Failure> {
    let text = read(file, MAX_ENVELOPE_BYTES as u64)?;
    let Ok(envelope) = Envelope::parse(text.as_bytes()) else {
        return Ok(vec![key_file::parse_public(text.trim())?]);
    };
    if envelope.payload_type != TRUST_TYPE {
        return Err(Failure::new(format!("`{}` is no trust document", file.display())));
    }
    // Whoever names the file vouches for it; its own signatures say nothing without an older one.
    let trust: Trust = serde_json::from_slice(&envelope.payload()?)?;
    let ids = &trust.role(RoleName::Controller).keys;
    Ok(ids
        .iter()
        .filter_map(|id| trust.keys.get(id))
        .filter(|key| ids.contains(&key.id()))
        .cloned()
        .collect())
}

fn saved(file: &Path) -> Result<Vec<SignedVerdict>, Failure> {
    Ok(serde_json::from_str(&read(file, MAX_SAVED)?)?)
}

fn read(file: &Path, limit: u64) -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|open| open.take(limit + 1).read_to_string(&mut text));
    let reason = match read {
        Ok(n) if n as u64 <= limit => return Ok(text),
        Ok(_) => format!("it is larger than {limit} bytes"),
        Err(error) => error.to_string(),
    };
    let mut failure = Failure::new(format!("could not read `{}`", file.display()));
    failure.causes.push(reason);
    Err(failure)
}
