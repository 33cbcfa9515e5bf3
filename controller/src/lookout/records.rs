//! The lookout's documents.

use super::subject::{CohortRecord, DeviceRecord};
use crate::{
    advice::{Standing, Tracked},
    drift::Incident,
    store::{Expect, FleetStore, Kind, MAX_OPERATIONS, Scan, StoreError, Transaction},
};
use edgefleet_shared::{
    digest::BlobDigest,
    ids::{BundleName, DeviceId},
    time::Timestamp,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, time::Duration};

/// `bundle/device`: JSON.
pub const DRIFT_DEVICE: Kind = Kind::new("drift-device");
/// `bundle/cohort`: zstd over JSON, for it holds two profiles.
pub const DRIFT_COHORT: Kind = Kind::new("drift-cohort");
pub const INCIDENT: Kind = Kind::new("incident");
pub const ADVICE: Kind = Kind::new("advice");
pub const MARK: Kind = Kind::new("advice-mark");
/// What was done about a piece of advice, under the advice's id; written by [`crate::taking`].
pub const TAKEN: Kind = Kind::new("advice-taken");
/// Largest cohort unpacked, bytes.
const MAX_UNPACKED: usize = 8 << 20;
/// Hex digits of the digest in an id.
const ID_CHARS: usize = 12;

/// An incident from its opening on, kept for a while after it is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentRecord {
    /// `inc-` and 12 hex digits. What comes again after it was over is another one.
    pub id: String,
    pub opened: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Timestamp>,
    pub incident: Incident,
}

impl IncidentRecord {
    pub fn open(incident: Incident, now: Timestamp) -> Self {
        let key = serde_json::to_string(&incident.key).unwrap_or_default(); // plain data: cannot fail
        Self { id: id("inc", &format!("{key}/{now}")), opened: now, resolved: None, incident }
    }
}

/// What a person said of a piece of advice. A document of its own, under the advice's id: advice changes under it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub useful: bool,
    pub by: String,
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Who took a piece of advice, and when; the steps are [`crate::taking`]'s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenBy {
    pub by: String,
    pub at: Timestamp,
}

/// A piece of advice over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdviceRecord {
    /// `adv-` and 12 hex digits.
    pub id: String,
    pub tracked: Tracked,
}

impl AdviceRecord {
    pub fn open(tracked: Tracked) -> Self {
        let key = serde_json::to_string(&tracked.finding.key()).unwrap_or_default();
        Self { id: id("adv", &format!("{key}/{}", tracked.opened)), tracked }
    }
}

fn id(prefix: &str, of: &str) -> String {
    let digest = BlobDigest::of(of.as_bytes()).to_string();
    let hex: String = digest.trim_start_matches("sha256:").chars().take(ID_CHARS).collect();
    format!("{prefix}-{hex}")
}

pub(super) fn device_id(bundle: &BundleName, device: &DeviceId) -> String {
    format!("{bundle}/{device}")
}
pub(super) fn cohort_id(bundle: &BundleName, cohort: &str) -> String {
    format!("{bundle}/{cohort}")
}

/// Puts a device's record, or takes away one that says nothing any more but when it was looked at.
pub(super) fn put_device(
    transaction: Transaction,
    bundle: &BundleName,
    device: &DeviceId,
    record: &DeviceRecord,
) -> Result<Transaction, StoreError> {
    transaction.put_json(DRIFT_DEVICE, device_id(bundle, device), Expect::Any, record)
}

/// A cohort too large to be stored is not: it is a memory and no record.
pub(super) fn put_cohort(
    transaction: Transaction,
    bundle: &BundleName,
    cohort: &str,
    record: &CohortRecord,
) -> Transaction {
    let packed = serde_json::to_vec(record)
        .ok()
        .filter(|json| json.len() <= MAX_UNPACKED)
        .and_then(|json| zstd::bulk::compress(&json, 3).ok())
        .filter(|packed| packed.len() <= crate::store::MAX_BODY_BYTES);
    match packed {
        Some(packed) => transaction.put(DRIFT_COHORT, cohort_id(bundle, cohort), Expect::Any, packed),
        None => {
            tracing::warn!(%bundle, cohort, "drift.cohort: too large to be stored");
            transaction
        }
    }
}

pub(super) fn parse_cohort(bytes: &[u8]) -> Option<CohortRecord> {
    let json = zstd::bulk::decompress(bytes, MAX_UNPACKED).ok()?;
    serde_json::from_slice(&json).ok()
}

/// All documents of a kind as raw bytes, by id.
pub(super) async fn raw_all(
    store: &dyn FleetStore,
    kind: Kind,
) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let mut all = Vec::new();
    let mut scan = Scan::all();
    loop {
        let page = store.scan(kind, scan.clone()).await?;
        all.extend(page.entries.into_iter().map(|(id, document)| (id, document.body.to_vec())));
        match page.next {
            Some(next) => scan.after = Some(next),
            None => return Ok(all),
        }
    }
}

/// All documents of a kind that can be read; the others are told and passed over.
pub(super) async fn all<T: DeserializeOwned>(
    store: &dyn FleetStore,
    kind: Kind,
) -> Result<BTreeMap<String, T>, StoreError> {
    let read = |(id, body): (String, Vec<u8>)| match serde_json::from_slice(&body) {
        Ok(value) => Some((id, value)),
        Err(error) => {
            tracing::error!(kind = kind.as_str(), id, %error, "lookout.read");
            None
        }
    };
    Ok(raw_all(store, kind).await?.into_iter().filter_map(read).collect())
}

/// Removes incidents and advice that have been over for `kept`, with what people said of them.
pub(super) async fn tidy(store: &dyn FleetStore, kept: Duration, now: Timestamp) -> Result<(), StoreError> {
    let mut old = Vec::new();
    for (id, record) in all::<IncidentRecord>(store, INCIDENT).await? {
        if record.resolved.is_some_and(|at| now.since(at) >= kept) {
            old.push((INCIDENT, id));
        }
    }
    for (id, record) in all::<AdviceRecord>(store, ADVICE).await? {
        if matches!(record.tracked.standing, Standing::Resolved { at } if now.since(at) >= kept) {
            old.push((MARK, id.clone()));
            old.push((TAKEN, id.clone()));
            old.push((ADVICE, id));
        }
    }
    for part in old.chunks(MAX_OPERATIONS / 2) {
        let delete =
            |to: Transaction, (kind, id): &(Kind, String)| to.delete(*kind, id.as_str(), Expect::Any);
        store.commit(part.iter().fold(Transaction::new(), delete)).await?;
    }
    Ok(())
}

/// `digits@3/REST` into its two parts.
pub(super) fn split(id: &str) -> Option<(BundleName, &str)> {
    let (bundle, rest) = id.split_once('/')?;
    Some((bundle.parse().ok()?, rest))
}
