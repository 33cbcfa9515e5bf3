//! Takes captures in, finds them, labels them, lets old ones go. One per controller.

use super::{
    Row,
    audited::{self, Estimate, Z95},
    error::CapturesError,
    record::{
        CAPTURE, CAPTURE_KEY, CAPTURE_POLICY, CaptureKey, CaptureRecord, Joined, LabelRecord, LabelState,
        PolicyRecord, capture_key,
    },
};
use crate::{
    blobs::BlobStore,
    fleet::Actor,
    store::{
        Expect, FleetStore, Repository, Scan, StoreError, Transaction, Versioned,
        audit::{AuditDraft, AuditLog},
    },
};
use bytes::Bytes;
use edgefleet_shared::{
    capture::{Capture, CapturePolicy, MAX_CAPTURE_BYTES, Reason},
    digest::BlobDigest,
    ids::{BundleName, DeviceId, ModelName},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Mutex;

const DAY_SECS: u64 = 86_400;
/// Documents looked at for one page of a filtered list: then the page ends early with a cursor.
const MAX_LOOKED_AT: usize = 5_000;
const PAGE: usize = 500;
/// Newest captures are looked for by so much time at once: ids are in the order of time.
const STRETCH: Duration = Duration::from_secs(6 * 3_600);

/// How much is kept. Labelled captures and those of data sets never go by themselves.
#[derive(Clone, Copy, Debug)]
pub struct CaptureLimits {
    pub total_bytes: u64,
    pub device_bytes_per_day: u64,
    pub unlabelled_age: Duration,
}
impl Default for CaptureLimits {
    fn default() -> Self {
        Self {
            total_bytes: 8 << 30,
            device_bytes_per_day: 256 << 20,
            unlabelled_age: Duration::from_secs(90 * DAY_SECS),
        }
    }
}

/// Which captures are meant.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub model: Option<ModelName>,
    pub bundle: Option<BundleName>,
    pub device: Option<DeviceId>,
    pub reason: Option<Reason>,
    /// Kept for any of them; empty: for whatever reason.
    pub reasons: Vec<Reason>,
    /// Answered as any of them; empty: as whatever.
    pub classes: Vec<String>,
    /// Only captures of these; `None`: of any device.
    pub devices: Option<BTreeSet<DeviceId>>,
    pub state: Option<LabelState>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

impl Wanted {
    fn fits(&self, record: &CaptureRecord) -> bool {
        let document = &record.document;
        self.bundle.as_ref().is_none_or(|bundle| *bundle == document.bundle)
            && self.device.as_ref().is_none_or(|device| *device == document.prediction.device)
            && self.reason.is_none_or(|reason| document.reasons.contains(&reason))
            && (self.reasons.is_empty() || self.reasons.iter().any(|one| document.reasons.contains(one)))
            && (self.classes.is_empty()
                || document.predicted.as_ref().is_some_and(|said| self.classes.contains(&said.class)))
            && self.devices.as_ref().is_none_or(|devices| devices.contains(&document.prediction.device))
            && self.state.is_none_or(|state| state == record.state())
            && self.since.is_none_or(|since| document.at >= since)
            && self.until.is_none_or(|until| document.at < until)
    }
    fn prefix(&self) -> Option<String> {
        let model = self.model.as_ref().or(self.bundle.as_ref().map(|bundle| &bundle.model));
        model.map(|model| format!("{model}/"))
    }
    /// Just before the first key that may fit: ids of one model are in the order of time.
    fn just_before(&self) -> Option<String> {
        Some(format!("{}{:015}", self.prefix()?, self.since?.as_millis()))
    }
    /// Whether nothing behind this record fits.
    fn is_beyond(&self, record: &CaptureRecord) -> bool {
        self.prefix().is_some() && self.until.is_some_and(|until| record.document.at >= until)
    }
}

/// Accuracy by labels, both ways, with what it rests on.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct AuditedView {
    pub captures: u64,
    pub labelled: u64,
    pub skipped: u64,
    /// Captures that chance picked, labelled or not.
    pub audit_rows: u64,
    /// From the audit sample alone.
    pub audited: Option<Estimate>,
    /// With what strategies chose as a stratum of its own.
    pub combined: Option<Estimate>,
}

/// What an [`AuditedView`] is made of.
#[derive(Default)]
struct Audit {
    rows: Vec<Row>,
    labelled: u64,
    skipped: u64,
}

impl Audit {
    fn take(&mut self, record: &CaptureRecord) {
        self.rows.push(record.row());
        self.labelled += u64::from(record.state() == LabelState::Labelled);
        self.skipped += u64::from(record.state() == LabelState::Skipped);
    }

    fn view(self) -> AuditedView {
        AuditedView {
            captures: self.rows.len() as u64,
            labelled: self.labelled,
            skipped: self.skipped,
            audit_rows: self.rows.iter().filter(|row| row.audit_share.is_some()).count() as u64,
            audited: audited::random_only(self.rows.iter().copied(), Z95),
            combined: audited::combined(self.rows, Z95),
        }
    }
}

#[derive(Default)]
struct Totals {
    bytes: u64,
    /// Day since 1970 and bytes of it, by device.
    days: HashMap<DeviceId, (u64, u64)>,
}

pub struct Captures {
    audit: Arc<AuditLog>,
    store: Arc<dyn FleetStore>,
    blobs: Arc<dyn BlobStore>,
    records: Repository<CaptureRecord>,
    keys: Repository<CaptureKey>,
    policies: Repository<PolicyRecord>,
    limits: CaptureLimits,
    /// Held while what there is changes.
    totals: Mutex<Totals>,
    /// Labels whose place is not decided.
    pending: parking_lot::Mutex<BTreeSet<String>>,
    /// Counts whatever may change what captures say of accuracy.
    changes: AtomicU64,
}

impl Captures {
    /// Reads through all captures once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(
        store: Arc<dyn FleetStore>,
        audit: Arc<AuditLog>,
        blobs: Arc<dyn BlobStore>,
        limits: CaptureLimits,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let this = Self {
            records: Repository::new(store.clone(), CAPTURE),
            keys: Repository::new(store.clone(), CAPTURE_KEY),
            policies: Repository::new(store.clone(), CAPTURE_POLICY),
            audit,
            store,
            blobs,
            limits,
            totals: Mutex::default(),
            pending: parking_lot::Mutex::default(),
            changes: AtomicU64::default(),
        };
        let today = now.as_secs() / DAY_SECS;
        let mut totals = Totals::default();
        let mut pending = BTreeSet::new();
        this.each(&Wanted::default(), |key, record| {
            totals.bytes += record.size;
            if record.received.as_secs() / DAY_SECS == today {
                let device = record.document.prediction.device.clone();
                totals.days.entry(device).or_insert((today, 0)).1 += record.size;
            }
            if record.label.is_some_and(|label| label.joined == Joined::Pending) {
                pending.insert(key);
            }
            Ok(())
        })
        .await?;
        *this.totals.lock().await = totals;
        *this.pending.lock() = pending;
        Ok(this)
    }

    /// Shows every record that fits, in order of model and time.
    pub(super) async fn each<E: From<StoreError>>(
        &self,
        wanted: &Wanted,
        mut show: impl FnMut(String, CaptureRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut scan = Scan { prefix: wanted.prefix(), after: wanted.just_before(), limit: PAGE };
        loop {
            let page = self.records.list(scan.clone()).await?;
            for (key, found) in page.entries {
                if wanted.is_beyond(&found.value) {
                    return Ok(());
                }
                if wanted.fits(&found.value) {
                    show(key, found.value)?;
                }
            }
            match page.next {
                Some(next) => scan.after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Grows with every capture, label and policy.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Shows captures that were made in a time, the newest few hours first and in order within them, until `most`
    /// were shown. Reads no others.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest(
        &self,
        model: &ModelName,
        (from, until): (Timestamp, Timestamp),
        most: usize,
        mut show: impl FnMut(&CaptureRecord) + Send,
    ) -> Result<(), StoreError> {
        let id = |at: Timestamp| format!("{model}/{:015}", at.as_millis());
        let (mut end, mut left) = (until, most);
        while end > from && left > 0 {
            let start = (end - STRETCH).max(from);
            let last = id(end);
            let mut scan = Scan { prefix: Some(format!("{model}/")), after: Some(id(start)), limit: PAGE };
            loop {
                let page = self.records.list(scan.clone()).await?;
                let is_over = page.entries.last().is_none_or(|(key, _)| *key >= last);
                for (_, record) in page.entries.iter().take_while(|(key, _)| *key < last).take(left) {
                    show(&record.value);
                    left -= 1;
                }
                match page.next {
                    Some(next) if !is_over && left > 0 => scan.after = Some(next),
                    _ => break,
                }
            }
            end = start;
        }
        Ok(())
    }

    /// Keeps a capture that `device` sends; `false` if it was here already.
    ///
    /// # Errors
    /// [`CapturesError`].
    pub async fn receive(
        &self,
        device: &DeviceId,
        digest: BlobDigest,
        file: Bytes,
        now: Timestamp,
    ) -> Result<bool, CapturesError> {
        let found = BlobDigest::of(&file);
        if found != digest {
            return Err(CapturesError::Digest { wanted: digest, found });
        }
        if self.keys.find_json(&digest.to_hex()).await?.is_some() {
            return Ok(false);
        }
        let bytes = file.clone();
        let parsed = tokio::task::spawn_blocking(move || Capture::parse(&bytes)).await;
        let parsed = parsed.map_err(|_| CapturesError::CutOff)?;
        let document = parsed.map_err(|source| CapturesError::Unreadable { digest, source })?.document;
        if document.prediction.device != *device {
            let of = document.prediction.device;
            return Err(CapturesError::Foreign { digest, of, device: device.clone() });
        }
        let size = file.len() as u64;
        let mut totals = self.totals.lock().await;
        let (today, limit) = (now.as_secs() / DAY_SECS, self.limits.device_bytes_per_day);
        let sent = totals.days.get(device).filter(|(day, _)| *day == today).map_or(0, |(_, bytes)| *bytes);
        if sent.saturating_add(size) > limit {
            let (device, retry_secs) = (device.clone(), DAY_SECS - now.as_secs() % DAY_SECS);
            return Err(CapturesError::Quota { device, bytes: sent, limit, retry_secs });
        }
        if totals.bytes.saturating_add(size) > self.limits.total_bytes {
            self.make_room(&mut totals, size).await?;
        }
        self.blobs.put(file).await?;
        let key = capture_key(&document, &digest);
        let record =
            CaptureRecord { digest, size, received: now, document, label: None, datasets: BTreeSet::new() };
        let transaction = Transaction::new();
        let transaction = self.records.stage(transaction, &key, Expect::Absent, &record)?;
        let pointer = CaptureKey { key };
        let transaction = self.keys.stage(transaction, &digest.to_hex(), Expect::Absent, &pointer)?;
        match self.store.commit(transaction).await {
            Ok(_) => {}
            Err(StoreError::StaleRevision { .. }) => return Ok(false), // the same, sent twice at once
            Err(error) => return Err(error.into()),
        }
        self.changed();
        totals.bytes += size;
        totals.days.retain(|_, (day, _)| *day == today);
        totals.days.entry(device.clone()).or_insert((today, 0)).1 += size;
        Ok(true)
    }

    /// Lets the oldest unlabelled captures go until `size` more fit.
    async fn make_room(&self, totals: &mut Totals, size: u64) -> Result<(), CapturesError> {
        let limit = self.limits.total_bytes;
        let wanted = Wanted { state: Some(LabelState::Unlabelled), ..Wanted::default() };
        let mut old = Vec::new();
        self.each(&wanted, |key, record| {
            if record.datasets.is_empty() {
                old.push((record.received, key, record.digest, record.size));
            }
            Ok::<(), CapturesError>(())
        })
        .await?;
        old.sort_unstable_by_key(|(received, ..)| *received);
        // A tenth more than needed, so that the next capture does not search again.
        let target = (limit - limit / 10).saturating_sub(size);
        for (_, key, digest, bytes) in old {
            if totals.bytes <= target {
                break;
            }
            self.remove(totals, &key, &digest, bytes, None).await?;
        }
        match totals.bytes.saturating_add(size) > limit {
            true => Err(CapturesError::Full { bytes: totals.bytes, limit }),
            false => Ok(()),
        }
    }

    /// Lets unlabelled captures go that are too old; returns how many.
    ///
    /// # Errors
    /// [`CapturesError`].
    pub async fn expire(&self, now: Timestamp) -> Result<usize, CapturesError> {
        let wanted = Wanted { state: Some(LabelState::Unlabelled), ..Wanted::default() };
        let mut old = Vec::new();
        self.each(&wanted, |key, record| {
            if record.datasets.is_empty() && now.since(record.received) > self.limits.unlabelled_age {
                old.push((key, record.digest, record.size));
            }
            Ok::<(), CapturesError>(())
        })
        .await?;
        let mut totals = self.totals.lock().await;
        for (key, digest, bytes) in &old {
            self.remove(&mut totals, key, digest, *bytes, None).await?;
        }
        Ok(old.len())
    }

    /// Documents first, then the bytes: what is cut off in between leaves bytes that nobody names.
    async fn remove(
        &self,
        totals: &mut Totals,
        key: &str,
        digest: &BlobDigest,
        size: u64,
        draft: Option<AuditDraft>,
    ) -> Result<(), CapturesError> {
        let transaction = Transaction::new().delete(CAPTURE, key, Expect::Any).delete(
            CAPTURE_KEY,
            digest.to_hex(),
            Expect::Any,
        );
        match draft {
            Some(draft) => drop(self.audit.commit(transaction, &[draft]).await?),
            None => drop(self.store.commit(transaction).await?),
        }
        self.changed();
        self.pending.lock().remove(key);
        totals.bytes = totals.bytes.saturating_sub(size);
        self.blobs.remove(digest).await?;
        Ok(())
    }

    /// Deletes a capture for a person.
    ///
    /// # Errors
    /// [`CapturesError::Held`] if a data set names it.
    pub async fn delete(
        &self,
        actor: &Actor,
        digest: &BlobDigest,
        now: Timestamp,
    ) -> Result<CaptureRecord, CapturesError> {
        let mut totals = self.totals.lock().await;
        let (key, found) = self.locate(digest).await?;
        let record = found.value;
        if let Some(dataset) = record.datasets.first() {
            return Err(CapturesError::Held { digest: *digest, dataset: dataset.clone() });
        }
        let before = format!("{} of {}", record.document.prediction, record.document.bundle);
        let draft = draft(actor, "capture.delete", &format!("capture/{digest}"), Some(before), None, now);
        self.remove(&mut totals, &key, digest, record.size, Some(draft)).await?;
        Ok(record)
    }

    async fn locate(&self, digest: &BlobDigest) -> Result<(String, Versioned<CaptureRecord>), CapturesError> {
        let unknown = || CapturesError::Unknown { digest: *digest };
        let key = self.keys.find_json(&digest.to_hex()).await?.ok_or_else(unknown)?.value.key;
        let found = self.records.find_json(&key).await?.ok_or_else(unknown)?;
        Ok((key, found))
    }

    /// # Errors
    /// [`CapturesError::Unknown`].
    pub async fn get(&self, digest: &BlobDigest) -> Result<CaptureRecord, CapturesError> {
        Ok(self.locate(digest).await?.1.value)
    }

    /// The file, exactly as it came.
    ///
    /// # Errors
    /// [`CapturesError`].
    pub async fn file(&self, digest: &BlobDigest) -> Result<Bytes, CapturesError> {
        self.get(digest).await?;
        Ok(self.blobs.read(digest, MAX_CAPTURE_BYTES as u64).await?)
    }

    /// At most `limit` records after the id `after`, and where the next page begins.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(
        &self,
        wanted: &Wanted,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<CaptureRecord>, Option<String>), StoreError> {
        let after = after.or_else(|| wanted.just_before());
        let mut scan = Scan { prefix: wanted.prefix(), after, limit: PAGE };
        let (mut found, mut looked_at) = (Vec::new(), 0);
        loop {
            let page = self.records.list(scan.clone()).await?;
            for (key, record) in page.entries {
                looked_at += 1;
                if wanted.is_beyond(&record.value) {
                    return Ok((found, None));
                }
                if wanted.fits(&record.value) {
                    found.push(record.value);
                }
                if found.len() >= limit || looked_at >= MAX_LOOKED_AT {
                    return Ok((found, Some(key)));
                }
            }
            match page.next {
                Some(next) => scan.after = Some(next),
                None => return Ok((found, None)),
            }
        }
    }

    /// How many fit, counted up to `enough`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn count(&self, wanted: &Wanted, enough: u64) -> Result<u64, StoreError> {
        let enough = usize::try_from(enough).unwrap_or(usize::MAX);
        let (mut found, mut after) = (0, None);
        loop {
            let (page, next) = self.list(wanted, after, PAGE).await?;
            found += page.len();
            match next {
                Some(next) if found < enough => after = Some(next),
                _ => return Ok(found.min(enough) as u64),
            }
        }
    }

    /// Writes down what a person says: a class, or `None` for "skip". Another word replaces it until it was counted
    /// somewhere; `undo` takes it back.
    ///
    /// # Errors
    /// [`CapturesError`].
    pub async fn label(
        &self,
        actor: &Actor,
        digest: &BlobDigest,
        word: Word,
        now: Timestamp,
    ) -> Result<CaptureRecord, CapturesError> {
        let (key, _) = self.locate(digest).await?;
        let by = actor.name().to_owned();
        let change = |record: CaptureRecord| {
            let counted = record.label.as_ref().map(|label| label.joined);
            let joined = match (counted, &word) {
                // What was counted stays counted where it was: once.
                (Some(joined @ (Joined::Device | Joined::Controller)), _) => joined,
                (_, Word::Class(_)) => Joined::Pending,
                (_, Word::Skip | Word::Undo) => Joined::Nowhere,
            };
            let label = match &word {
                Word::Class(class) => Some(Some(class.clone())),
                Word::Skip => Some(None),
                Word::Undo if record.label.is_none() => {
                    return Err(CapturesError::NotLabelled { digest: *digest });
                }
                Word::Undo => None,
            };
            let label = label.map(|label| LabelRecord { label, by: by.clone(), at: now, joined });
            Ok(CaptureRecord { label, ..record })
        };
        let record = self.records.try_update(&key, change).await?.value;
        self.changed();
        let waits = record.label.as_ref().is_some_and(|label| label.joined == Joined::Pending);
        let mut pending = self.pending.lock();
        if waits {
            pending.insert(key)
        } else {
            pending.remove(&key)
        };
        drop(pending);
        Ok(record)
    }

    /// Labels that were not counted anywhere yet, older than `grace`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn undecided(&self, grace: Duration, now: Timestamp) -> Result<Vec<CaptureRecord>, StoreError> {
        let keys: Vec<_> = self.pending.lock().iter().take(1_000).cloned().collect();
        let mut found = Vec::new();
        for key in keys {
            let record = self.records.find_json(&key).await?.map(|found| found.value);
            let due = |label: &LabelRecord| label.joined == Joined::Pending && now.since(label.at) >= grace;
            found.extend(record.filter(|record| record.label.as_ref().is_some_and(due)));
        }
        Ok(found)
    }

    /// Writes down where a label is counted.
    ///
    /// # Errors
    /// [`CapturesError`].
    pub async fn decided(&self, record: &CaptureRecord, joined: Joined) -> Result<(), CapturesError> {
        let key = capture_key(&record.document, &record.digest);
        let change = |record: CaptureRecord| {
            let label = record.label.map(|label| match label.joined {
                Joined::Pending => LabelRecord { joined, ..label },
                Joined::Device | Joined::Controller | Joined::Nowhere => label,
            });
            CaptureRecord { label, ..record }
        };
        self.records.update(&key, change).await?;
        self.pending.lock().remove(&key);
        Ok(())
    }

    /// Accuracy by the labels of what fits.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audited(&self, wanted: &Wanted) -> Result<AuditedView, StoreError> {
        let mut parts = self.audited_by(wanted, |_| Some(())).await?;
        Ok(parts.remove(&()).unwrap_or_else(|| Audit::default().view()))
    }

    /// The same for each part that `part` names, in one pass; what it names no part for is left out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audited_by<P: Ord + Send>(
        &self,
        wanted: &Wanted,
        mut part: impl FnMut(&CaptureRecord) -> Option<P> + Send,
    ) -> Result<BTreeMap<P, AuditedView>, StoreError> {
        let mut parts = BTreeMap::<P, Audit>::new();
        self.each(wanted, |_, record| {
            if let Some(part) = part(&record) {
                parts.entry(part).or_default().take(&record);
            }
            Ok::<(), StoreError>(())
        })
        .await?;
        Ok(parts.into_iter().map(|(part, audit)| (part, audit.view())).collect())
    }

    /// # Errors
    /// [`CapturesError::NoPolicy`].
    pub async fn policy(&self, model: &ModelName) -> Result<PolicyRecord, CapturesError> {
        let found = self.policies.find_json(model.as_str()).await?;
        found.map(|found| found.value).ok_or_else(|| CapturesError::NoPolicy { model: model.clone() })
    }

    /// Sets or, with `None`, ends the policy of a model.
    ///
    /// # Errors
    /// [`CapturesError`].
    pub async fn set_policy(
        &self,
        actor: &Actor,
        model: &ModelName,
        policy: Option<CapturePolicy>,
        now: Timestamp,
    ) -> Result<Option<PolicyRecord>, CapturesError> {
        let found = self.policies.find_json(model.as_str()).await?;
        if found.is_none() && policy.is_none() {
            return Err(CapturesError::NoPolicy { model: model.clone() });
        }
        let text = |policy: &CapturePolicy| serde_json::to_string(policy).ok();
        let before = found.as_ref().and_then(|found| text(&found.value.policy));
        let after = policy.as_ref().and_then(text);
        let expect = found.map_or(Expect::Absent, |found| Expect::Revision(found.revision));
        let by = actor.name().to_owned();
        let record = policy.map(|policy| PolicyRecord { model: model.clone(), policy, by, at: now });
        let transaction = Transaction::new();
        let transaction = match &record {
            Some(record) => self.policies.stage(transaction, model.as_str(), expect, record)?,
            None => transaction.delete(CAPTURE_POLICY, model.as_str(), expect),
        };
        let action = if record.is_some() { "capture-policy.set" } else { "capture-policy.end" };
        let draft = draft(actor, action, &format!("capture-policy/{model}"), before, after, now);
        self.audit.commit(transaction, &[draft]).await?;
        self.changed();
        Ok(record)
    }

    pub(super) fn store(&self) -> &Arc<dyn FleetStore> {
        &self.store
    }
    pub(super) fn blobs(&self) -> &Arc<dyn BlobStore> {
        &self.blobs
    }
    pub(super) fn audit_log(&self) -> &AuditLog {
        &self.audit
    }
    pub(super) fn records(&self) -> &Repository<CaptureRecord> {
        &self.records
    }
    /// Nothing is deleted while it is held.
    pub(super) async fn hold_still(&self) -> impl Drop + use<'_> {
        self.totals.lock().await
    }
}

/// What a person can say of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    Class(String),
    Skip,
    Undo,
}

pub(super) fn draft(
    actor: &Actor,
    action: &str,
    subject: &str,
    before: Option<String>,
    after: Option<String>,
    now: Timestamp,
) -> AuditDraft {
    AuditDraft {
        at: now.to_string(),
        who: actor.name().to_owned(),
        action: action.to_owned(),
        subject: subject.to_owned(),
        before,
        after,
        note: None,
    }
}
