//! Somebody with root on the controller's machine: its store, its blobs and its online key, all of
//! which are written here through the controller's own library while it is stopped.

#![allow(unreachable_pub)] // a module of one test

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use edgefleet_controller::{
    blobs::{BlobStore, local::LocalBlobs},
    clock,
    desired::{DESIRED, DesiredRecord},
    registry::{
        builder,
        record::{BUNDLE, BUNDLE_BLOB, BundleRecord, SharedBlob, bundle_id},
    },
    signing::{key_file, setup},
    store::{
        Expect, FleetStore, Repository, Transaction,
        sled_home::{SledConfig, SledStore},
    },
};
use edgefleet_shared::{
    bundle::Manifest,
    desired::Desired,
    digest::{BlobDigest, EnvelopeDigest},
    ids::BundleName,
    trust::{
        Envelope, Release, Role, RoleName, SigningKey, Trust,
        documents::Roles,
        envelope::{RELEASE_TYPE, TRUST_TYPE, seal},
    },
};
use edgefleet_tests::faults::source::Source;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub struct Thief {
    data: PathBuf,
    store: Arc<dyn FleetStore>,
    blobs: LocalBlobs,
    bundles: Repository<BundleRecord>,
    desired: Repository<DesiredRecord>,
    work: tempfile::TempDir,
}

pub fn fresh_key() -> Result<SigningKey> {
    Ok(SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()?)?)
}

pub fn name(counter: u64) -> Result<BundleName> {
    Ok(format!("digits@{counter}").parse()?)
}

impl Thief {
    /// Opens the folder of a controller that does not run.
    pub async fn enter(data: &Path) -> Result<Self> {
        let (store, _) = SledStore::open(SledConfig::new(data.join("store"))).await?;
        let store: Arc<dyn FleetStore> = Arc::new(store);
        let (blobs, _) = LocalBlobs::open(data.join("blobs")).await?;
        Ok(Self {
            bundles: Repository::new(store.clone(), BUNDLE),
            desired: Repository::new(store.clone(), DESIRED),
            data: data.to_owned(),
            store,
            blobs,
            work: tempfile::tempdir()?,
        })
    }

    pub async fn leave(self) -> Result<()> {
        Ok(self.store.close().await?)
    }

    /// The online key: part of the loot, always.
    pub fn controller_key(&self) -> Result<SigningKey> {
        Ok(key_file::read_private(&setup::key_path(&self.data, RoleName::Controller))?)
    }

    /// Makes devices able to fetch `bytes`.
    async fn share(&self, bytes: Vec<u8>) -> Result<BlobDigest> {
        let info = self.blobs.put(Bytes::from(bytes)).await?;
        let transaction = Transaction::new().put_json(
            BUNDLE_BLOB,
            info.digest.to_hex(),
            Expect::Any,
            &SharedBlob { size: info.size },
        )?;
        self.store.commit(transaction).await?;
        Ok(info.digest)
    }

    /// A bundle that nobody ever pushed: manifest and blobs are put into the store. What is left to
    /// forge is its release.
    pub async fn plant(&self, counter: u64) -> Result<Release> {
        let source =
            Source::digits(2)?.write(&self.work.path().join(format!("source-{counter}")), counter)?;
        let built = builder::build(&source, &self.work.path().join(format!("bundle-{counter}")))?;
        let bytes = fs::read(built.dir.join(builder::MANIFEST_FILE))?;
        let manifest = Manifest::parse(&bytes).map_err(|wrong| anyhow::anyhow!("{wrong:?}"))?;
        for blob in manifest.blobs() {
            self.share(fs::read(builder::blob_path(&built.dir, &blob.digest))?).await?;
        }
        let release = Release {
            bundle: name(counter)?,
            manifest: built.digest,
            length: bytes.len() as u64,
            hardware: vec![],
            issued: clock::now(),
        };
        self.share(bytes).await?;
        Ok(release)
    }

    /// The signed release that the registry names for `digits@COUNTER`.
    pub async fn release(&self, counter: u64) -> Result<Vec<u8>> {
        let record = self.bundles.get_json(&bundle_id(&name(counter)?)).await?.value;
        Ok(self.blobs.read_range(&record.release.into(), 0, record.release_size).await?.to_vec())
    }

    /// Files `envelope` as the release of `digits@COUNTER`, as if it had been pushed.
    pub async fn file(&self, counter: u64, envelope: Vec<u8>) -> Result<()> {
        let size = envelope.len() as u64;
        let digest = self.share(envelope).await?;
        let name = name(counter)?;
        let model = self.bundles.get_json(&bundle_id(&self::name(1)?)).await?.value;
        let record = BundleRecord {
            name: name.clone(),
            release: EnvelopeDigest::from_bytes(*digest.as_bytes()),
            release_size: size,
            ..model
        };
        self.bundles.put_json(&bundle_id(&name), Expect::Any, &record).await?;
        Ok(())
    }

    /// Replaces the largest blob of a genuine bundle by as many other bytes, below the library's feet.
    pub async fn replace_blob(&self, counter: u64) -> Result<()> {
        let release: Release =
            serde_json::from_slice(&Envelope::parse(&self.release(counter).await?)?.payload()?)?;
        let manifest = self.blobs.read_range(&release.manifest.into(), 0, release.length).await?;
        let manifest = Manifest::parse(&manifest).map_err(|wrong| anyhow::anyhow!("{wrong:?}"))?;
        let largest = manifest.blobs().into_iter().max_by_key(|blob| blob.size).context("no blobs")?;
        let path =
            find(&self.data.join("blobs"), &largest.digest.to_hex()).context("the blob has no file")?;
        let mut bytes = fs::read(&path)?;
        bytes.reverse();
        fs::remove_file(&path)?;
        Ok(fs::write(&path, bytes)?)
    }

    pub async fn desired(&self, device: &str) -> Result<DesiredRecord> {
        Ok(self.desired.get_json(device).await?.value)
    }

    /// Lets the controller send `envelope` to `device` for what it wanted of it.
    pub async fn send(&self, device: &str, envelope: &str) -> Result<()> {
        let found = self.desired.get_json(device).await?;
        let record = DesiredRecord { envelope: envelope.to_owned(), ..found.value };
        self.desired.put_json(device, Expect::Revision(found.revision), &record).await?;
        Ok(())
    }

    /// The same content for the same generation and device, with another bundle, signed by `key`.
    pub fn wish(desired: &Desired, release: &[u8], key: &SigningKey) -> Result<String> {
        let mut forged = desired.clone();
        forged.generation += 1;
        let slot = forged.slots.values_mut().next().context("no slot")?;
        slot.active.release = EnvelopeDigest::of(release);
        slot.active.release_size = release.len() as u64;
        Ok(BASE64.encode(seal(edgefleet_shared::trust::envelope::DESIRED_TYPE, &forged, &[key])))
    }

    /// Puts a chain of trust of the thief's own in place, one version ahead of the devices, in which
    /// the thief may publish. The controller believes it: it has nothing else to go by.
    pub fn replace_trust(&self, own: &SigningKey) -> Result<()> {
        let controller = self.controller_key()?;
        let folder = setup::trust_dir(&self.data);
        let last = fs::read_dir(&folder)?.count() as u64;
        let role = |key: &SigningKey| Role { keys: vec![key.public().id()], threshold: 1 };
        for version in 1..=last + 1 {
            let document = Trust {
                version,
                issued: clock::now(),
                expires: clock::now() + Duration::from_secs(300 * 86_400),
                keys: [own, &controller].map(|key| (key.public().id(), key.public())).into(),
                roles: Roles { trust: role(own), publisher: role(own), controller: role(&controller) },
                floors: Default::default(),
            };
            let path = folder.join(format!("{version}.json"));
            let _ = fs::remove_file(&path); // the one ahead does not exist
            fs::write(&path, seal(TRUST_TYPE, &document, &[own]))?;
        }
        Ok(())
    }
}

/// A release as `keys` sign it.
pub fn sealed(release: &Release, keys: &[&SigningKey]) -> Vec<u8> {
    seal(RELEASE_TYPE, release, keys)
}

/// One bit of the first signature is another one.
pub fn flipped(envelope: &[u8]) -> Result<Vec<u8>> {
    let mut envelope = Envelope::parse(envelope)?;
    let signature = envelope.signatures.first_mut().context("no signature")?;
    let mut raw = BASE64.decode(&signature.sig)?;
    raw[7] ^= 1;
    signature.sig = BASE64.encode(raw);
    Ok(envelope.to_bytes())
}

/// Genuine signatures over another release.
pub fn moved(genuine: &[u8], release: &Release) -> Result<Vec<u8>> {
    let mut envelope = Envelope::parse(genuine)?;
    envelope.payload = BASE64.encode(serde_json::to_vec(release)?);
    ensure!(!envelope.signatures.is_empty());
    Ok(envelope.to_bytes())
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        match path.is_dir() {
            true => find(&path, name),
            false => (path.file_name()?.to_str()? == name).then_some(path),
        }
    })
}
