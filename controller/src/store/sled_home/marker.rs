//! The note beside the store: the newest revision known to be on disk some time ago.
//!
//! sled opens an emptied or lost file as a new store without a word. A store whose revision is behind the
//! note has lost something that was acknowledged.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

pub(super) const FILE: &str = "marker.json";
const TEMPORARY: &str = "marker.json.new";
/// A note is a few dozen bytes.
const MAX_BYTES: u64 = 4_096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    version: u32,
    /// Everything up to this revision was acknowledged.
    pub(super) revision: u64,
}

impl Marker {
    pub(super) fn at(revision: u64) -> Self {
        Self { version: 1, revision }
    }
}

/// The note in `dir`; `None` if there is none yet.
///
/// # Errors
/// When it cannot be read or is not a note (`InvalidData`).
pub(super) fn read(dir: &Path) -> io::Result<Option<Marker>> {
    let path = dir.join(FILE);
    let size = match fs::metadata(&path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if size > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has {size} bytes")));
    }
    let marker: Marker = serde_json::from_slice(&fs::read(&path)?)?;
    if marker.version != 1 {
        let reason = format!("it has version {}, this program knows 1", marker.version);
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(Some(marker))
}

/// Replaces the note in `dir`: on disk when this returns, the old or the new one after a power cut.
pub(super) fn write(dir: &Path, marker: Marker) -> io::Result<()> {
    let temporary = dir.join(TEMPORARY);
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(&marker)?)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

/// Forgets the note, with the store it spoke of.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => File::open(dir)?.sync_all(),
    }
}
