//! The registry: takes pushes, keeps bundle records, says what devices may fetch.
//!
//! A push is checked in the order of cost: signature, form, presence of blobs, and at last the probe, which
//! runs the model in a child process. The record, the list of fetchable blobs and the audit entry are one
//! transaction; a controller killed before it has accepted nothing, and the same push completes later.

use super::{
    builder::{MANIFEST_FILE, RELEASE_FILE, blob_path},
    probe::{ProbeError, Prober},
    push_error::PushError,
    record::{
        BUNDLE, BUNDLE_BLOB, BundleLine, BundleRecord, Checks, ModelSummary, Override, RECORD_SCHEMA,
        SharedBlob, bundle_id,
    },
};
use crate::{
    blobs::{BlobError, BlobStore, BlobWriter},
    signing::TrustStore,
    store::{
        Expect, FleetStore, Repository, StoreError, Transaction, Versioned,
        audit::{AuditDraft, AuditLog},
    },
    transfer::{Library, LibraryError},
};
use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{
        BlobRef, Manifest,
        manifest::{MAX_BLOB_BYTES, MAX_MANIFEST_BYTES},
    },
    digest::{BlobDigest, EnvelopeDigest},
    ids::{BundleName, ModelName},
    probe::ProbeVerdict,
    time::Timestamp,
    transfer::FetchObject,
    trust::{
        Envelope, Release, RoleName,
        envelope::{RELEASE_TYPE, open},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{io::AsyncWriteExt as _, sync::Semaphore};

const COPY_BYTES: u64 = 1 << 20;
const MAX_REASON_CHARS: usize = 500;
/// Probes at a time: each may use a core and the memory that its manifest claims.
const PROBES: usize = 1;
/// Tries after another push of the same name got ahead.
const MAX_ATTEMPTS: usize = 8;
const PROBE_FOLDER_PREFIX: &str = "probe-";

/// Who pushes.
#[derive(Clone, Debug)]
pub struct Pusher {
    /// As it stands in the audit log.
    pub name: String,
    /// May accept a bundle whose check failed.
    pub may_override: bool,
}

/// A bundle to accept; its blobs were uploaded before.
#[derive(Clone, Debug)]
pub struct Push {
    /// The model the caller says it is.
    pub model: ModelName,
    /// Exact bytes of the manifest.
    pub manifest: Bytes,
    /// Exact bytes of the signed release.
    pub release: Bytes,
    pub override_reason: Option<String>,
    pub by: Pusher,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PushOutcome {
    Created,
    /// Exactly this was there.
    Unchanged,
    /// The bundle was there; its release is now the one with other signatures.
    Resigned,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pushed {
    pub outcome: PushOutcome,
    pub record: BundleRecord,
}

/// What [`Registry::new`] is made of.
pub struct RegistryParts {
    pub store: Arc<dyn FleetStore>,
    pub audit: Arc<AuditLog>,
    pub blobs: Arc<dyn BlobStore>,
    pub trust: Arc<TrustStore>,
    pub prober: Prober,
    /// Folder for bundles under check; its leftovers are removed at start.
    pub work: PathBuf,
}

/// Cheap to share: everything is behind `Arc`s.
pub struct Registry {
    store: Arc<dyn FleetStore>,
    audit: Arc<AuditLog>,
    blobs: Arc<dyn BlobStore>,
    trust: Arc<TrustStore>,
    prober: Prober,
    work: PathBuf,
    bundles: Repository<BundleRecord>,
    probes: Semaphore,
}

/// A push whose signature and form are right.
struct Checked {
    name: BundleName,
    manifest: Manifest,
    release: Release,
    signers: Vec<edgefleet_shared::trust::KeyId>,
}

impl Registry {
    /// Removes what checks of an earlier process left in the work folder.
    ///
    /// # Errors
    /// If the work folder cannot be made.
    pub fn new(parts: RegistryParts) -> io::Result<Self> {
        let RegistryParts { store, audit, blobs, trust, prober, work } = parts;
        std::fs::create_dir_all(&work)?;
        for entry in std::fs::read_dir(&work)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PROBE_FOLDER_PREFIX) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        let bundles = Repository::new(Arc::clone(&store), BUNDLE);
        Ok(Self { store, audit, blobs, trust, prober, work, bundles, probes: Semaphore::new(PROBES) })
    }

    /// Which of these blobs have to be uploaded, each once.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn missing(&self, digests: &[BlobDigest]) -> Result<Vec<BlobDigest>, BlobError> {
        let mut missing = Vec::new();
        for digest in digests.iter().collect::<BTreeSet<_>>() {
            if !self.blobs.has(digest).await? {
                missing.push(*digest);
            }
        }
        Ok(missing)
    }

    /// Begins an upload; the blob appears only if its bytes have this digest.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn upload(
        &self,
        digest: BlobDigest,
        length: Option<u64>,
    ) -> Result<Box<dyn BlobWriter>, BlobError> {
        let limit = length.unwrap_or(MAX_BLOB_BYTES);
        if limit > MAX_BLOB_BYTES {
            return Err(BlobError::TooLarge { digest, limit: MAX_BLOB_BYTES });
        }
        self.blobs.writer(digest, limit).await
    }

    /// Checks a bundle and accepts it. Pushing the same again changes nothing.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn push(&self, push: &Push, now: Timestamp) -> Result<Pushed, PushError> {
        let checked = self.check_form(push)?;
        let id = bundle_id(&checked.name);
        let mut outcome_of_checks: Option<Checks> = None;
        for _ in 0..MAX_ATTEMPTS {
            let existing = self.bundles.find_json(&id).await?;
            if let Some(found) = existing {
                return self.push_again(push, &checked, found, now).await;
            }
            let checks = match &outcome_of_checks {
                Some(checks) => checks.clone(),
                None => {
                    self.check_blobs(&checked.manifest).await?;
                    let checks = self.check_by_probe(push, &checked).await?;
                    outcome_of_checks = Some(checks.clone());
                    checks
                }
            };
            let overridden = self.overridden(push, &checks)?;
            let record = self.record(push, &checked, checks, overridden, now);
            match self.save(&record, &checked.manifest, push, Expect::Absent, "bundle.push", None, now).await
            {
                Ok(()) => return Ok(Pushed { outcome: PushOutcome::Created, record }),
                Err(PushError::Store(StoreError::StaleRevision { kind: BUNDLE, .. })) => {}
                Err(error) => return Err(error),
            }
        }
        let reason = format!("{} changed {MAX_ATTEMPTS} times during one push", checked.name);
        Err(StoreError::Unavailable { reason }.into())
    }

    /// Everything that needs no disk. Signatures come first and can never be overridden.
    fn check_form(&self, push: &Push) -> Result<Checked, PushError> {
        let trust = self.trust.current();
        let signature = |source| PushError::Signature { version: trust.version, source };
        let release: Release =
            open(&push.release, RELEASE_TYPE, &trust, RoleName::Publisher).map_err(signature)?;
        let envelope = Envelope::parse(&push.release).map_err(signature)?;
        let payload = envelope.payload().map_err(signature)?;
        let signers = envelope.valid_keys(&trust, trust.role(RoleName::Publisher), &payload);
        let differs = |what, found: String, wanted: String| {
            if found == wanted { Ok(()) } else { Err(PushError::Mismatch { what, found, wanted }) }
        };
        differs("manifest", release.manifest.to_string(), Manifest::digest_of(&push.manifest).to_string())?;
        differs("a manifest length of", release.length.to_string(), push.manifest.len().to_string())?;
        let manifest = Manifest::parse(&push.manifest).map_err(|wrong| PushError::Manifest { wrong })?;
        let name = manifest.name();
        differs("bundle", release.bundle.to_string(), name.to_string())?;
        differs("model", name.model.to_string(), push.model.to_string())?;
        differs("hardware", release.hardware.join(", "), manifest.compat.hardware.join(", "))?;
        if let Some(floor) = trust.floors.get(&name.model)
            && name.counter < *floor
        {
            return Err(PushError::BelowFloor { name, floor: *floor });
        }
        Ok(Checked { name, manifest, release, signers: signers.into_iter().collect() })
    }

    /// A bundle of that name is there already.
    async fn push_again(
        &self,
        push: &Push,
        checked: &Checked,
        found: Versioned<BundleRecord>,
        now: Timestamp,
    ) -> Result<Pushed, PushError> {
        let Versioned { revision, value: old } = found;
        if old.digest != checked.release.manifest {
            return Err(PushError::CounterTaken { name: checked.name.clone(), existing: old.digest });
        }
        if old.release == EnvelopeDigest::of(&push.release) {
            return Ok(Pushed { outcome: PushOutcome::Unchanged, record: old });
        }
        let record = BundleRecord {
            release: EnvelopeDigest::of(&push.release),
            release_size: push.release.len() as u64,
            signers: checked.signers.clone(),
            ..old.clone()
        };
        let before = Some(old.release.to_string());
        let expect = Expect::Revision(revision);
        self.save(&record, &checked.manifest, push, expect, "bundle.resign", before, now).await?;
        Ok(Pushed { outcome: PushOutcome::Resigned, record })
    }

    async fn check_blobs(&self, manifest: &Manifest) -> Result<(), PushError> {
        let mut missing = Vec::new();
        for blob in manifest.blobs() {
            match self.blobs.size(&blob.digest).await {
                Ok(size) if size == blob.size => {}
                Ok(found) => {
                    return Err(PushError::BlobSize { digest: blob.digest, found, wanted: blob.size });
                }
                Err(BlobError::NotFound { .. }) => missing.push(blob.digest),
                Err(error) => return Err(error.into()),
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(PushError::BlobsMissing { missing }) }
    }

    /// Runs the probe; a child that crashed or hung is a failed check, a child that could not even be asked
    /// is none.
    async fn check_by_probe(&self, push: &Push, checked: &Checked) -> Result<Checks, PushError> {
        let prepare = |source| PushError::Prepare { source };
        let _turn = self.probes.acquire().await.map_err(|e| prepare(io::Error::other(e)))?;
        let folder =
            tempfile::Builder::new().prefix(PROBE_FOLDER_PREFIX).tempdir_in(&self.work).map_err(prepare)?;
        self.unpack(push, &checked.manifest, folder.path()).await?;
        let probed = self.prober.probe(folder.path(), &checked.name, checked.release.manifest).await;
        Ok(match probed {
            Ok(verdict) if verdict.ok => Checks { passed: true, problem: None, verdict: Some(verdict) },
            Ok(verdict) => {
                Checks { passed: false, problem: Some(why(&checked.name, &verdict)), verdict: Some(verdict) }
            }
            Err(
                error @ (ProbeError::TimedOut { .. }
                | ProbeError::NoVerdict { .. }
                | ProbeError::TooLong { .. }),
            ) => {
                tracing::warn!(bundle = %checked.name, %error, "bundle.probe");
                Checks {
                    passed: false,
                    problem: Some(format!("{} failed its check: {error}", checked.name)),
                    verdict: None,
                }
            }
            Err(source) => return Err(PushError::CheckUnavailable { source }),
        })
    }

    /// Writes the bundle folder that the probe reads. Blobs are copied: the child gets no path into the store.
    async fn unpack(&self, push: &Push, manifest: &Manifest, dir: &Path) -> Result<(), PushError> {
        let prepare = |source| PushError::Prepare { source };
        tokio::fs::create_dir_all(dir.join("blobs").join("sha256")).await.map_err(prepare)?;
        tokio::fs::write(dir.join(MANIFEST_FILE), &push.manifest).await.map_err(prepare)?;
        tokio::fs::write(dir.join(RELEASE_FILE), &push.release).await.map_err(prepare)?;
        for BlobRef { digest, size } in manifest.blobs() {
            let mut file = tokio::fs::File::create(blob_path(dir, digest)).await.map_err(prepare)?;
            let mut at = 0;
            while at < *size {
                let bytes = self.blobs.read_range(digest, at, COPY_BYTES.min(size - at)).await?;
                at += bytes.len() as u64;
                file.write_all(&bytes).await.map_err(prepare)?;
            }
            file.flush().await.map_err(prepare)?;
        }
        Ok(())
    }

    /// Whether a failed check is let through, and by whom.
    fn overridden(&self, push: &Push, checks: &Checks) -> Result<Option<Override>, PushError> {
        if checks.passed {
            return Ok(None);
        }
        let Some(reason) = &push.override_reason else {
            let problem = checks.problem.clone().unwrap_or_default();
            return Err(PushError::CheckFailed { problem, verdict: checks.verdict.clone().map(Box::new) });
        };
        if !push.by.may_override {
            return Err(PushError::OverrideForbidden { by: push.by.name.clone() });
        }
        if reason.trim().is_empty() || reason.chars().count() > MAX_REASON_CHARS {
            return Err(PushError::OverrideReason);
        }
        Ok(Some(Override { reason: reason.clone(), by: push.by.name.clone() }))
    }

    fn record(
        &self,
        push: &Push,
        checked: &Checked,
        checks: Checks,
        overridden: Option<Override>,
        now: Timestamp,
    ) -> BundleRecord {
        let blobs = checked.manifest.blobs();
        let card = &checked.manifest.model;
        BundleRecord {
            schema: RECORD_SCHEMA,
            name: checked.name.clone(),
            digest: checked.release.manifest,
            manifest_size: push.manifest.len() as u64,
            release: EnvelopeDigest::of(&push.release),
            release_size: push.release.len() as u64,
            signers: checked.signers.clone(),
            version: card.version.clone(),
            task: card.task.clone(),
            description: card.description.clone(),
            hardware: checked.release.hardware.clone(),
            blobs: blobs.len(),
            size: blobs.iter().map(|blob| blob.size).sum(),
            checks,
            pushed_by: push.by.name.clone(),
            at: now,
            overridden,
        }
    }

    /// Manifest and release become blobs first; then record, fetch list and audit entry in one step.
    #[allow(clippy::too_many_arguments)] // one transaction, written out once
    async fn save(
        &self,
        record: &BundleRecord,
        manifest: &Manifest,
        push: &Push,
        expect: Expect,
        action: &str,
        before: Option<String>,
        now: Timestamp,
    ) -> Result<(), PushError> {
        self.blobs.put(push.manifest.clone()).await?;
        self.blobs.put(push.release.clone()).await?;
        let own = [
            BlobRef { digest: record.digest.into(), size: record.manifest_size },
            BlobRef { digest: record.release.into(), size: record.release_size },
        ];
        let fetchable: BTreeMap<BlobDigest, u64> =
            manifest.blobs().into_iter().chain(&own).map(|blob| (blob.digest, blob.size)).collect();
        let mut transaction =
            self.bundles.stage(Transaction::new(), &bundle_id(&record.name), expect, record)?;
        for (digest, size) in fetchable {
            let shared = SharedBlob { size };
            transaction = transaction.put_json(BUNDLE_BLOB, digest.to_hex(), Expect::Any, &shared)?;
        }
        let after = serde_json::json!({
            "digest": record.digest,
            "release": record.release,
            "signers": record.signers,
            "checks": record.checks,
        });
        let draft = AuditDraft {
            at: now.to_string(),
            who: push.by.name.clone(),
            action: action.to_owned(),
            subject: format!("bundle/{}", record.name),
            before,
            after: Some(after.to_string()),
            note: record.overridden.as_ref().map(|o| o.reason.clone()),
        };
        self.audit.commit(transaction, &[draft]).await?;
        Ok(())
    }

    /// A bundle by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find(&self, name: &BundleName) -> Result<Option<BundleRecord>, StoreError> {
        Ok(self.bundles.find_json(&bundle_id(name)).await?.map(|found| found.value))
    }

    /// The manifest of an accepted bundle.
    ///
    /// # Errors
    /// [`BlobError`] if it is not there or not readable.
    pub async fn manifest(&self, record: &BundleRecord) -> Result<Bytes, BlobError> {
        self.blobs.read(&record.digest.into(), MAX_MANIFEST_BYTES).await
    }

    /// All models in the order of their names.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn models(&self) -> Result<Vec<ModelSummary>, StoreError> {
        self.summaries("").await
    }

    /// One model; `None` if nothing was ever pushed under that name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn model(&self, name: &ModelName) -> Result<Option<ModelSummary>, StoreError> {
        Ok(self.summaries(&format!("{name}@")).await?.pop())
    }

    async fn summaries(&self, prefix: &str) -> Result<Vec<ModelSummary>, StoreError> {
        let mut models: BTreeMap<ModelName, Vec<BundleLine>> = BTreeMap::new();
        for (_, found) in self.bundles.list_all(prefix).await? {
            models.entry(found.value.name.model.clone()).or_default().push(BundleLine::from(&found.value));
        }
        let summary = |(name, mut bundles): (ModelName, Vec<BundleLine>)| {
            bundles.sort_by_key(|line| line.counter);
            let newest = bundles.last().map(|line| line.counter).unwrap_or_default();
            ModelSummary { name, newest, bundles }
        };
        Ok(models.into_iter().map(summary).collect())
    }

    /// Size of something a device asks for; `None` if it may not have it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fetchable(&self, object: &FetchObject) -> Result<Option<u64>, StoreError> {
        match object {
            FetchObject::Trust(version) => Ok(self.trust.version(*version).map(|raw| raw.len() as u64)),
            FetchObject::Blob(digest) => {
                let id = digest.to_hex();
                let Some(found) = self.store.get(BUNDLE_BLOB, &id).await? else { return Ok(None) };
                let shared: SharedBlob = serde_json::from_slice(&found.body)
                    .map_err(|source| StoreError::Unreadable { kind: BUNDLE_BLOB, id, source })?;
                Ok(Some(shared.size))
            }
        }
    }
}

/// One sentence with what failed, where and by how much.
fn why(name: &BundleName, verdict: &ProbeVerdict) -> String {
    let Some(failure) = &verdict.failure else {
        return format!("{name} failed its check without a reason");
    };
    let mut text = format!("{name} failed its check: {}: {}", failure.code.as_str(), failure.message);
    let place = [("node", &failure.node), ("operator", &failure.op)];
    for (what, value) in place {
        if let Some(value) = value.as_ref().filter(|value| !failure.message.contains(value.as_str())) {
            text.push_str(&format!(" ({what} `{value}`)"));
        }
    }
    let failed: Vec<_> = verdict.golden.iter().filter(|golden| !golden.passed).collect();
    if !failed.is_empty() {
        let names: Vec<_> = failed.iter().map(|golden| golden.name.as_str()).collect();
        let worst = failed.iter().map(|golden| golden.max_abs_diff).fold(0.0, f64::max);
        text.push_str(&format!(
            "; golden samples that differ: {} (largest difference {worst:.3e})",
            names.join(", ")
        ));
    }
    text.chars().filter(|c| !c.is_control()).take(2_000).collect()
}

#[async_trait]
impl Library for Registry {
    async fn size(&self, object: &FetchObject) -> Result<Option<u64>, LibraryError> {
        self.fetchable(object).await.map_err(|e| unreadable(object, &e))
    }

    async fn read(&self, object: &FetchObject, offset: u64, len: u64) -> Result<Bytes, LibraryError> {
        match object {
            FetchObject::Blob(digest) => {
                self.blobs.read_range(digest, offset, len).await.map_err(|e| unreadable(object, &e))
            }
            FetchObject::Trust(version) => {
                let range = || {
                    let start = usize::try_from(offset).ok()?;
                    Some(start..start.checked_add(usize::try_from(len).ok()?)?)
                };
                let raw = self.trust.version(*version).unwrap_or_default();
                let range = range().filter(|range| range.end <= raw.len());
                let range = range.ok_or_else(|| LibraryError {
                    object: format!("trust {version}"),
                    reason: format!("bytes {offset} to {} of {}", offset.saturating_add(len), raw.len()),
                })?;
                Ok(raw.slice(range))
            }
        }
    }
}

fn unreadable(object: &FetchObject, error: &dyn std::error::Error) -> LibraryError {
    let object = match object {
        FetchObject::Blob(digest) => format!("blob {digest}"),
        FetchObject::Trust(version) => format!("trust {version}"),
    };
    LibraryError { object, reason: error.to_string() }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
