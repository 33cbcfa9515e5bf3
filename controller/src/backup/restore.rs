//! Bringing a controller back into an empty folder.

use super::{
    BackupError, Passphrase, RestoredNote, Summary,
    create::{FILES, FOLDERS, MAX_DEPTH, MAX_FILE_BYTES},
    note,
    place::Target,
    walk::{Visitor, Walked, not_among, small, unpacked, walk},
};
use crate::{
    blobs::{BlobError, BlobInfo, BlobStore, local::LocalBlobs},
    fleet::data_dir::create_private_dir,
    signing::{TrustStore, setup::trust_dir},
    store::{
        ExportSummary, FleetStore,
        sled_home::{SledConfig, SledStore},
    },
};
use bytes::Bytes;
use edgefleet_shared::{digest::BlobDigest, time::Timestamp};
use serde::Serialize;
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use tokio::runtime::Handle;

const PIECE_BYTES: usize = 1 << 20;

/// What to restore and where to.
#[derive(Clone, Debug)]
pub struct RestoreOrder {
    pub passphrase: Passphrase,
    /// Missing or empty.
    pub data: PathBuf,
    /// A folder of blobs, or a data folder that has one: what the backup only names is copied from there.
    pub blobs: Option<PathBuf>,
    pub now: Timestamp,
}

/// A blob that the restored controller knows of and does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingBlob {
    pub digest: BlobDigest,
    pub size: u64,
    /// If a copy was found and could not be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a restore went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    pub backup: Summary,
    /// From the folder named, beside those in the backup.
    pub blobs_copied: u64,
    pub missing: Vec<MissingBlob>,
    /// What the controller will complain about when it starts.
    pub warnings: Vec<String>,
}

/// Whether a backup may write a file with this path: below the known folders, plain names only.
pub(super) fn is_acceptable(path: &str) -> bool {
    let plain = |name: &str| {
        !name.is_empty()
            && name.len() <= 128
            && !name.starts_with('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    let names: Vec<_> = path.split('/').collect();
    names.iter().all(|name| plain(name))
        && match names.as_slice() {
            [file] => FILES.contains(file),
            [folder, ..] => FOLDERS.contains(folder) && names.len() <= MAX_DEPTH + 1,
            [] => false,
        }
}

/// Restores a backup. The target appears only once everything was decrypted, checked and written to disk; with
/// any error it stays as it was. A kill leaves at most a folder `.edgefleet-restore-…` beside it.
///
/// # Errors
/// [`BackupError`].
pub async fn restore(from: impl Read + Send + 'static, order: RestoreOrder) -> Result<Restored, BackupError> {
    let target = Target::prepare(&order.data)?;
    restore_to(target, from, order).await
}

pub(super) async fn restore_to(
    target: Target,
    from: impl Read + Send + 'static,
    order: RestoreOrder,
) -> Result<Restored, BackupError> {
    let staging = target.staging().to_owned();
    let (blobs, _) = LocalBlobs::open(staging.join("blobs")).await?;
    let mut unpack = Unpack {
        staging: staging.clone(),
        blobs: blobs.clone(),
        runtime: Handle::current(),
        export: None,
        damaged: Vec::new(),
    };
    let passphrase = order.passphrase.clone();
    let (walked, unpack) = tokio::task::spawn_blocking(move || {
        let walked = walk(from, &passphrase, &mut unpack)?;
        Ok::<_, BackupError>((walked, unpack))
    })
    .await??;
    let Walked { summary, export, listed } = walked;
    if let Some((raw_bytes, file)) = unpack.export {
        let note = RestoredNote { created: summary.created, restored: order.now, revision: export.revision };
        import(&staging, raw_bytes, file, &export, &note).await?;
    }
    let there: Vec<_> = blobs.list().await?.into_iter().map(|blob| blob.digest).collect();
    let mut missing = Vec::new();
    let mut blobs_copied = 0;
    let source = order.blobs.map(|dir| if dir.join("sha256").is_dir() { dir } else { dir.join("blobs") });
    for blob in not_among(&listed, &there) {
        let BlobInfo { digest, size } = blob;
        let damaged =
            unpack.damaged.contains(&digest).then(|| "its bytes in the backup are damaged".to_owned());
        match &source {
            None => missing.push(MissingBlob { digest, size, reason: damaged }),
            Some(dir) => match copy(dir, blob, &blobs).await? {
                Copied::Yes => blobs_copied += 1,
                Copied::No(reason) => missing.push(MissingBlob { digest, size, reason: reason.or(damaged) }),
            },
        }
    }
    let warnings = warnings(&staging);
    target.put_in_place()?;
    Ok(Restored { backup: summary, blobs_copied, missing, warnings })
}

async fn import(
    staging: &Path,
    raw_bytes: u64,
    file: File,
    promised: &ExportSummary,
    note: &RestoredNote,
) -> Result<(), BackupError> {
    let unpacked = unpacked(raw_bytes, file).map_err(BackupError::io("unpack the store in", staging))?;
    let (store, _) = SledStore::open(SledConfig::new(staging.join("store"))).await?;
    let found = store.import(Box::new(unpacked)).await?;
    if found != *promised {
        return Err(BackupError::Content { reason: "the store's export is not the one promised".into() });
    }
    note::leave(&store, note).await?;
    store.close().await?;
    Ok(())
}

fn warnings(staging: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    if !staging.join("ca").join("ca.key").is_file() {
        warnings.push("the backup has no certificate authority; devices will have to enrol again".to_owned());
    }
    match TrustStore::open(&trust_dir(staging)) {
        Ok(Some(_)) => {}
        Ok(None) => warnings.push("the backup has no trust documents".to_owned()),
        Err(error) => warnings.push(format!("the trust documents of the backup are not usable: {error}")),
    }
    warnings
}

/// Puts the parts into the folder under construction.
struct Unpack {
    staging: PathBuf,
    blobs: LocalBlobs,
    runtime: Handle,
    export: Option<(u64, File)>,
    damaged: Vec<BlobDigest>,
}

impl Visitor for Unpack {
    fn store(&mut self, raw_bytes: u64, _: &ExportSummary, body: &mut dyn Read) -> Result<(), BackupError> {
        let failed = || BackupError::io("copy the store to an unnamed file in", &self.staging);
        let mut file = tempfile::tempfile_in(&self.staging).map_err(failed())?;
        copy_out(body, &mut file, failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed())?;
        self.export = Some((raw_bytes, file));
        Ok(())
    }

    fn file(&mut self, path: &str, mode: u32, body: &mut dyn Read) -> Result<(), BackupError> {
        if !is_acceptable(path) {
            return Err(BackupError::Content { reason: format!("it has a file {path:?}") });
        }
        let bytes = small(body, MAX_FILE_BYTES)?;
        let path = self.staging.join(path);
        if let Some(folder) = path.parent() {
            create_private_dir(folder)?;
        }
        let failed = || BackupError::io("write", &path);
        // Never more than the owner may write and others may read.
        let mode = 0o600 | (mode & 0o044);
        let mut file =
            OpenOptions::new().create_new(true).write(true).mode(mode).open(&path).map_err(failed())?;
        file.write_all(&bytes).map_err(failed())
    }

    fn blob(&mut self, blob: BlobInfo, body: &mut dyn Read) -> Result<(), BackupError> {
        let BlobInfo { digest, size } = blob;
        let mut writer = self.runtime.block_on(self.blobs.writer(digest, size))?;
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let read = read_some(body, &mut piece).map_err(BackupError::reading)?;
            if read == 0 {
                break;
            }
            piece.truncate(read);
            self.runtime.block_on(writer.write(Bytes::from(piece)))?;
        }
        match self.runtime.block_on(writer.finish()) {
            Ok(_) => Ok(()),
            // It rotted before the backup; a good copy may still turn up.
            Err(BlobError::DigestMismatch { .. }) => {
                self.damaged.push(digest);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// As `io::copy`, telling apart which side failed.
fn copy_out<F: FnOnce(io::Error) -> BackupError>(
    from: &mut dyn Read,
    to: &mut File,
    failed: impl Fn() -> F,
) -> Result<(), BackupError> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = read_some(from, &mut piece).map_err(BackupError::reading)?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&piece[..read]).map_err(failed())?;
    }
}

fn read_some(from: &mut dyn Read, piece: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

enum Copied {
    Yes,
    No(Option<String>),
}

/// Copies one blob out of another folder, if it is there and its bytes are right.
async fn copy(dir: &Path, blob: BlobInfo, to: &LocalBlobs) -> Result<Copied, BackupError> {
    let hex = blob.digest.to_hex();
    let path = dir.join("sha256").join(&hex[..2]).join(&hex);
    let opened = tokio::fs::File::open(&path).await;
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Copied::No(None)),
        Err(error) => return Ok(Copied::No(Some(format!("could not open its copy: {error}")))),
    };
    let mut writer = to.writer(blob.digest, blob.size).await?;
    loop {
        use tokio::io::AsyncReadExt as _;
        let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
        match file.read_buf(&mut piece).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return Ok(Copied::No(Some(format!("could not read its copy: {error}")))),
        }
        match writer.write(piece.freeze()).await {
            Ok(()) => {}
            Err(error @ BlobError::TooLarge { .. }) => return Ok(Copied::No(Some(error.to_string()))),
            Err(error) => return Err(error.into()),
        }
    }
    match writer.finish().await {
        Ok(_) => Ok(Copied::Yes),
        Err(error @ BlobError::DigestMismatch { .. }) => Ok(Copied::No(Some(error.to_string()))),
        Err(error) => Err(error.into()),
    }
}
