//! From a source folder to a bundle folder: `manifest.json` and `blobs/sha256/<64 hex digits>`.
//!
//! Deterministic: the same files give the same bytes and the same digest on every machine, whatever
//! the clock or the order of the directory. The folder appears as a whole or not at all.

use super::{
    mistakes::{Mistakes, SourceMistake},
    source::{self, BundleSource, LibrarySource, SourceError},
};
use edgefleet_shared::{
    bundle::{
        Artifact, BlobRef, EngineCard, GoldenRef, Kind, Library, Manifest,
        manifest::{MAX_BLOB_BYTES, MAX_MANIFEST_BYTES, SCHEMA},
    },
    digest::{BlobDigest, BundleDigest, DigestHasher},
    ids::BundleName,
};
use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// Names inside a bundle folder.
pub const MANIFEST_FILE: &str = "manifest.json";
pub const RELEASE_FILE: &str = "release.json";

/// Path of a blob inside a bundle folder.
pub fn blob_path(bundle: &Path, digest: &BlobDigest) -> PathBuf {
    bundle.join("blobs").join("sha256").join(digest.to_hex())
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub dir: PathBuf,
    pub name: BundleName,
    pub digest: BundleDigest,
    /// Different blobs, manifest not counted.
    pub blobs: usize,
    /// Bytes of those blobs.
    pub bytes: u64,
    /// The release of an earlier build of exactly this manifest, kept.
    pub kept_release: bool,
}

/// Why no bundle folder was made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("could not write the bundle to `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("could not copy `{}` into the bundle", path.display())]
    Copy { path: PathBuf, source: io::Error },
    #[error("`{}` exists and is not a bundle folder; it was left as it is", path.display())]
    Occupied { path: PathBuf },
}

/// Builds the source folder `source_dir` into the bundle folder `out`, replacing an older build there.
///
/// # Errors
/// [`BuildError`]; `out` is unchanged then.
pub fn build(source_dir: &Path, out: &Path) -> Result<Built, BuildError> {
    build_source(source::read(source_dir)?, source_dir, out)
}

/// The same from a source that was read from `source_dir` before.
///
/// # Errors
/// As [`build`].
pub fn build_source(source: BundleSource, source_dir: &Path, out: &Path) -> Result<Built, BuildError> {
    let write = |source| BuildError::Write { path: out.to_owned(), source };
    let occupied = out.exists();
    if occupied && !out.join(MANIFEST_FILE).is_file() && !is_empty_dir(out).map_err(write)? {
        return Err(BuildError::Occupied { path: out.to_owned() });
    }
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(write)?;
    let fresh = tempfile::Builder::new().prefix(".bundle-").tempdir_in(parent).map_err(write)?;
    let built = fill(source_dir, source, fresh.path())?;
    let bytes = fs::read(fresh.path().join(MANIFEST_FILE)).map_err(write)?;
    let kept_release = fs::read(out.join(MANIFEST_FILE)).is_ok_and(|old| old == bytes)
        && fs::copy(out.join(RELEASE_FILE), fresh.path().join(RELEASE_FILE)).is_ok();
    set_mode(fresh.path()).map_err(write)?;
    if occupied {
        // Only the folder is moved aside first: a kill in between leaves both under other names, none torn.
        let old = tempfile::Builder::new().prefix(".bundle-old-").tempdir_in(parent).map_err(write)?;
        fs::rename(out, old.path().join("bundle")).map_err(write)?;
        fs::rename(fresh.path(), out).map_err(write)?;
    } else {
        fs::rename(fresh.path(), out).map_err(write)?;
    }
    let _ = fresh.keep(); // renamed away: nothing left to delete
    Ok(Built { dir: out.to_owned(), kept_release, ..built })
}

fn is_empty_dir(path: &Path) -> io::Result<bool> {
    if !path.is_dir() {
        return Ok(false);
    }
    Ok(fs::read_dir(path)?.next().is_none())
}

/// A temporary folder is private; a bundle is not.
fn set_mode(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

/// Writes blobs and manifest into the empty folder `dir`.
fn fill(source_dir: &Path, source: BundleSource, dir: &Path) -> Result<Built, BuildError> {
    let write = |source| BuildError::Write { path: dir.to_owned(), source };
    fs::create_dir_all(dir.join("blobs").join("sha256")).map_err(write)?;
    let mut artifacts = Vec::new();
    for artifact in source.artifacts {
        let copied = add_file(dir, &artifact.path);
        let blob = copied.map_err(|source| BuildError::Copy { path: artifact.path.clone(), source })?;
        let (format, precision, targets) = (artifact.format, artifact.precision, artifact.targets);
        artifacts.push(Artifact { format, precision, blob, targets });
    }
    let (mut engine, mut kind) = (None, Kind::Model);
    if let Some(source) = source.engine {
        let mut libraries = Vec::new();
        for LibrarySource { path, target } in source.libraries {
            let copied = add_file(dir, &path);
            let blob = copied.map_err(|source| BuildError::Copy { path: path.clone(), source })?;
            libraries.push(Library { target, blob });
        }
        (engine, kind) = (Some(EngineCard { api: source.api, libraries }), Kind::Engine);
    }
    let mut golden = Vec::new();
    for sample in source.golden {
        let blob = add_bytes(dir, &sample.sample.to_bytes()).map_err(write)?;
        golden.push(GoldenRef { name: sample.name, blob, rtol: sample.rtol, atol: sample.atol });
    }
    let baseline = source.baseline.map(|bytes| add_bytes(dir, &bytes)).transpose().map_err(write)?;
    let manifest = Manifest {
        schema: SCHEMA,
        kind,
        model: source.card,
        engine,
        artifacts,
        interface: source.interface,
        prediction: source.prediction,
        labels: source.labels,
        pipeline: source.pipeline,
        golden,
        baseline,
        limits: source.limits,
        lineage: source.lineage,
        compat: source.compat,
    };
    let bytes = manifest.to_bytes();
    let mut wrong: Vec<String> = manifest.mistakes().iter().map(ToString::to_string).collect();
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        let size = bytes.len();
        wrong.push(format!("the manifest would have {size} bytes, {MAX_MANIFEST_BYTES} are allowed"));
    }
    if !wrong.is_empty() {
        let file = PathBuf::from(source::SOURCE_FILE);
        let mistake = |reason| SourceMistake { file: file.clone(), line: None, key: String::new(), reason };
        let wrong = Mistakes(wrong.into_iter().map(mistake).collect());
        return Err(SourceError::Wrong { dir: source_dir.to_owned(), wrong }.into());
    }
    fs::write(dir.join(MANIFEST_FILE), &bytes).map_err(write)?;
    let blobs = manifest.blobs();
    Ok(Built {
        dir: dir.to_owned(),
        name: manifest.name(),
        digest: Manifest::digest_of(&bytes),
        bytes: blobs.iter().map(|blob| blob.size).sum(),
        blobs: blobs.len(),
        kept_release: false,
    })
}

fn add_bytes(dir: &Path, bytes: &[u8]) -> io::Result<BlobRef> {
    let digest = BlobDigest::of(bytes);
    fs::write(blob_path(dir, &digest), bytes)?;
    Ok(BlobRef { digest, size: bytes.len() as u64 })
}

/// Copies a file while hashing it, so that digest and copy cannot disagree.
fn add_file(dir: &Path, path: &Path) -> io::Result<BlobRef> {
    let mut from = fs::File::open(path)?;
    let mut to = tempfile::NamedTempFile::new_in(dir)?;
    let mut hasher = DigestHasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0u64;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        size += count as u64;
        if size > MAX_BLOB_BYTES {
            let reason = format!("it has more than {MAX_BLOB_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
        }
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
    }
    let digest = BlobDigest::from_bytes(hasher.finish());
    to.persist(blob_path(dir, &digest)).map_err(|e| e.error)?;
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(blob_path(dir, &digest), fs::Permissions::from_mode(0o644))?;
    Ok(BlobRef { digest, size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use edgefleet_shared::bundle::GoldenSample;

    fn digits(version: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits").join(version)
    }

    fn build_digits(version: &str) -> (tempfile::TempDir, Built, Manifest) {
        let dir = tempfile::tempdir().unwrap();
        let built = build(&digits(version), &dir.path().join("out")).unwrap();
        let manifest = Manifest::parse(&fs::read(built.dir.join(MANIFEST_FILE)).unwrap()).unwrap();
        (dir, built, manifest)
    }

    #[test]
    fn the_same_source_gives_the_same_digest_and_the_same_files() {
        let (_a, first, manifest) = build_digits("v1");
        let (_b, second, _) = build_digits("v1");
        assert_eq!(first.digest, second.digest);
        assert_eq!(first.name.to_string(), "digits@1");
        for blob in manifest.blobs() {
            let bytes = fs::read(blob_path(&first.dir, &blob.digest)).unwrap();
            assert_eq!((BlobDigest::of(&bytes), bytes.len() as u64), (blob.digest, blob.size));
        }
        assert_eq!(manifest.blobs().len(), first.blobs);
        let mut entries: Vec<_> =
            fs::read_dir(&first.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        entries.sort();
        assert_eq!(entries, ["blobs", "manifest.json"]);
        assert_ne!(build_digits("v2").1.digest, first.digest);
    }

    #[test]
    fn golden_blobs_hold_the_numbers_of_the_json_files() {
        let (_dir, built, manifest) = build_digits("v1");
        assert_eq!(manifest.golden.len(), 8);
        for golden in &manifest.golden {
            let bytes = Bytes::from(fs::read(blob_path(&built.dir, &golden.blob.digest)).unwrap());
            let sample = GoldenSample::parse(&bytes).unwrap();
            let json = fs::read(digits("v1").join("golden").join(format!("{}.json", golden.name))).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let wanted: Vec<f32> = json["outputs"][0]["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|value| value.as_f64().unwrap() as f32)
                .collect();
            let found: Vec<f32> = sample.outputs[0]
                .data()
                .chunks_exact(4)
                .map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap()))
                .collect();
            assert_eq!(found, wanted, "{}", golden.name);
        }
    }

    #[test]
    fn a_rebuild_keeps_the_release_only_if_nothing_changed() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        build(&digits("v1"), &out).unwrap();
        fs::write(out.join(RELEASE_FILE), "signed").unwrap();
        assert!(build(&digits("v1"), &out).unwrap().kept_release);
        assert!(out.join(RELEASE_FILE).exists());
        assert!(!build(&digits("v2"), &out).unwrap().kept_release);
        assert!(!out.join(RELEASE_FILE).exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing temporary is left");
    }

    #[test]
    fn a_folder_that_is_no_bundle_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
        assert!(matches!(build(&digits("v1"), dir.path()), Err(BuildError::Occupied { .. })));
        assert!(dir.path().join("thesis.txt").exists());
    }
}
