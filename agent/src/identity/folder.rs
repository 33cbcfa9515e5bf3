//! The identity on disk. A folder appears whole or not at all: it is written beside its place and
//! renamed; [`load`] finishes a rename that a power cut interrupted.
//!
//! ```text
//! <data>/identity/  key.pem (0600)  certificate.pem  ca.pem  controller.json  trust/1.json ...
//! ```

use super::{
    Identity,
    signer::{DeviceSigner, FileSigner, SignerError},
};
use crate::store::files::{read_bounded, replace, sync_folder, with_suffix};
use edgefleet_shared::{
    digest::{BlobDigest, EnvelopeDigest},
    ids::DeviceId,
    trust::envelope::MAX_ENVELOPE_BYTES,
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Certificates and the controller's address are far smaller.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// `controller.json`: where this device belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerFile {
    pub schema: u32,
    pub device: DeviceId,
    pub url: String,
    pub mqtt_host: String,
    pub mqtt_port: u16,
    pub ca_pin: BlobDigest,
    pub trust_pin: EnvelopeDigest,
}

/// Why the identity could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("could not read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("could not write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("the device key in `{}` cannot be used", path.display())]
    Key { path: PathBuf, source: SignerError },
}

pub(super) fn place(data: &Path) -> PathBuf {
    data.join("identity")
}

/// Reads the identity below `data`; `None` if the device was never enrolled.
///
/// # Errors
/// [`FolderError`].
pub fn load(data: &Path) -> Result<Option<Identity>, FolderError> {
    let place = place(data);
    let (new, old) = (with_suffix(&place, ".new"), with_suffix(&place, ".old"));
    if !place.exists() {
        // controller.json is written last: a folder that has it is whole.
        let Some(whole) = [new, old].into_iter().find(|folder| folder.join("controller.json").exists())
        else {
            return Ok(None);
        };
        fs::rename(&whole, &place)
            .and_then(|()| sync_folder(data))
            .map_err(|source| FolderError::Write { path: place.clone(), source })?;
    }
    let text = |name: &str| {
        let path = place.join(name);
        let bytes = read_bounded(&path, MAX_FILE_BYTES)
            .map_err(|source| FolderError::Read { path: path.clone(), source })?;
        String::from_utf8(bytes).map_err(|_| FolderError::Damaged { path, reason: "it is not UTF-8".into() })
    };
    let controller: ControllerFile = serde_json::from_str(&text("controller.json")?)
        .map_err(|e| FolderError::Damaged { path: place.join("controller.json"), reason: e.to_string() })?;
    let mut trust = Vec::new();
    loop {
        let path = place.join("trust").join(format!("{}.json", trust.len() + 1));
        match read_bounded(&path, MAX_ENVELOPE_BYTES as u64) {
            Ok(bytes) => trust.push(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(source) => return Err(FolderError::Read { path, source }),
        }
    }
    let key_path = place.join("key.pem");
    let signer = FileSigner::from_pem(text("key.pem")?.as_bytes())
        .map_err(|source| FolderError::Key { path: key_path, source })?;
    Ok(Some(Identity {
        certificate: text("certificate.pem")?,
        ca: text("ca.pem")?,
        signer: Arc::new(signer) as Arc<dyn DeviceSigner>,
        controller,
        trust,
    }))
}

/// The folder in which an enrolment is prepared, with its key: kept over repeated attempts, so that a
/// device that waits for approval is always the same one.
///
/// # Errors
/// [`FolderError`].
pub(super) fn prepare(data: &Path, reuse: Option<&Path>) -> Result<(PathBuf, FileSigner), FolderError> {
    let folder = with_suffix(&place(data), ".new");
    let written = |path: PathBuf| move |source| FolderError::Write { path, source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(written(folder.clone()))?;
    let path = folder.join("key.pem");
    if let Some(old) = reuse {
        let pem = read_bounded(old, MAX_FILE_BYTES)
            .map_err(|source| FolderError::Read { path: old.to_owned(), source })?;
        replace(&path, &pem, 0o600).map_err(written(path.clone()))?;
    } else if !path.exists() {
        let pem =
            FileSigner::generate_pem().map_err(|source| FolderError::Key { path: path.clone(), source })?;
        replace(&path, pem.as_bytes(), 0o600).map_err(written(path.clone()))?;
    }
    let pem = read_bounded(&path, MAX_FILE_BYTES)
        .map_err(|source| FolderError::Read { path: path.clone(), source })?;
    let signer = FileSigner::from_pem(&pem).map_err(|source| FolderError::Key { path, source })?;
    Ok((folder, signer))
}

/// Completes the prepared folder and puts it in its place; an earlier identity goes away.
///
/// # Errors
/// [`FolderError::Write`].
pub(super) fn commit(data: &Path, folder: &Path, identity: &Identity) -> Result<(), FolderError> {
    let write = |path: PathBuf, bytes: &[u8]| {
        replace(&path, bytes, 0o644).map_err(|source| FolderError::Write { path, source })
    };
    let trust = folder.join("trust");
    let moved = |path: &Path, result: io::Result<()>| {
        result.map_err(|source| FolderError::Write { path: path.to_owned(), source })
    };
    let gone = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
    moved(&trust, fs::remove_dir_all(&trust).or_else(gone))?;
    moved(&trust, fs::create_dir(&trust))?;
    for (at, document) in identity.trust.iter().enumerate() {
        write(trust.join(format!("{}.json", at + 1)), document)?;
    }
    write(folder.join("certificate.pem"), identity.certificate.as_bytes())?;
    write(folder.join("ca.pem"), identity.ca.as_bytes())?;
    let json = serde_json::to_vec_pretty(&identity.controller).unwrap_or_default(); // plain data
    write(folder.join("controller.json"), &json)?;
    let place = place(data);
    let old = with_suffix(&place, ".old");
    moved(&old, fs::remove_dir_all(&old).or_else(gone))?;
    moved(&old, fs::rename(&place, &old).or_else(gone))?;
    moved(&place, fs::rename(folder, &place))?;
    moved(&place, sync_folder(data))?;
    moved(&old, fs::remove_dir_all(&old).or_else(gone))
}

/// Stores a renewed certificate. The CA goes first: a crash between the two leaves a CA file that is
/// at least as new as the certificate.
///
/// # Errors
/// [`FolderError::Write`].
pub(super) fn store_certificate(data: &Path, certificate: &str, ca: &str) -> Result<(), FolderError> {
    for (name, text) in [("ca.pem", ca), ("certificate.pem", certificate)] {
        let path = place(data).join(name);
        replace(&path, text.as_bytes(), 0o644).map_err(|source| FolderError::Write { path, source })?;
    }
    Ok(())
}
