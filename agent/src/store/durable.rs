//! One small value in two files, so that a power cut at any instant leaves one of them whole.
//!
//! Each save goes to the older file: temporary file, fsync, rename, fsync of the folder. A file is
//! `EFD1`, crc32, sequence, length and JSON; the CRC covers all that follows it. The newer valid
//! file wins. Not for big or frequent data: one save costs two fsyncs.

use crate::{failpoint, store::files::sync_folder};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    marker::PhantomData,
    path::{Path, PathBuf},
};

const MAGIC: &[u8; 4] = b"EFD1";
const HEADER: usize = 4 + 4 + 8 + 4;
/// Larger than any value kept this way; bounds what a damaged length makes us read.
const MAX_BYTES: u64 = 4 << 20;

/// What the two files held.
#[derive(Debug, PartialEq)]
pub enum Loaded<T> {
    /// Neither exists: never saved, or removed.
    Absent,
    Value(T),
    /// At least one exists, none is whole; why, for people.
    Lost(String),
}

/// Why a value could not be made durable. What was saved before still is.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("could not write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("`{name}` has {found} bytes, {MAX_BYTES} fit")]
    TooLarge { name: &'static str, found: usize },
    #[error("`{name}` cannot be written as JSON")]
    Encode { name: &'static str, source: serde_json::Error },
}

impl SaveError {
    /// No space left on the device.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// The two files of a value named `name`: `name.a` and `name.b`.
#[derive(Debug)]
pub struct DurableSlots<T> {
    dir: PathBuf,
    name: &'static str,
    /// Of the newest valid file; 0 before the first save.
    sequence: u64,
    /// Which file the next save replaces.
    next: Side,
    value: PhantomData<fn(T) -> T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    A,
    B,
}
impl Side {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl<T: Serialize + DeserializeOwned> DurableSlots<T> {
    /// Reads both files under `dir`, which is created if missing.
    ///
    /// # Errors
    /// Only if the folder cannot be made; damaged or unreadable files are [`Loaded::Lost`].
    pub fn open(dir: &Path, name: &'static str) -> io::Result<(Self, Loaded<T>)> {
        fs::create_dir_all(dir)?;
        Ok(Self::find(dir, name))
    }

    /// Reads both files under `dir` and makes nothing: another process may own them.
    pub fn look(dir: &Path, name: &'static str) -> Loaded<T> {
        Self::find(dir, name).1
    }

    fn find(dir: &Path, name: &'static str) -> (Self, Loaded<T>) {
        let mut slots = Self { dir: dir.to_owned(), name, sequence: 0, next: Side::A, value: PhantomData };
        let mut best: Option<(u64, Side, T)> = None;
        let mut damage = Vec::new();
        for side in [Side::A, Side::B] {
            let path = slots.path(side);
            match read(&path) {
                Ok(Some((sequence, value))) => {
                    if best.as_ref().is_none_or(|(seen, ..)| sequence > *seen) {
                        best = Some((sequence, side, value));
                    }
                }
                Ok(None) => {}
                Err(reason) => damage.push(format!("`{}`: {reason}", path.display())),
            }
        }
        let loaded = match best {
            Some((sequence, side, value)) => {
                slots.sequence = sequence;
                slots.next = side.other();
                Loaded::Value(value)
            }
            None if damage.is_empty() => Loaded::Absent,
            None => Loaded::Lost(damage.join("; ")),
        };
        (slots, loaded)
    }

    /// Returns once the value survives a power cut.
    ///
    /// # Errors
    /// [`SaveError`]; the value saved before is still there.
    pub fn save(&mut self, value: &T) -> Result<(), SaveError> {
        let json =
            serde_json::to_vec(value).map_err(|source| SaveError::Encode { name: self.name, source })?;
        if json.len() as u64 > MAX_BYTES {
            return Err(SaveError::TooLarge { name: self.name, found: json.len() });
        }
        let sequence = self.sequence + 1;
        let bytes = encode(sequence, &json);
        let path = self.path(self.next);
        self.replace(&path, &bytes).map_err(|source| SaveError::Write { path, source })?;
        self.sequence = sequence;
        self.next = self.next.other();
        failpoint::hit(if self.name == "trust" { "trust.saved" } else { "slots.saved" });
        Ok(())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temp = self.dir.join(format!("{}.tmp", self.name));
        let mut file = File::create(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        failpoint::hit(if self.name == "trust" { "trust.temp-written" } else { "slots.temp-written" });
        fs::rename(&temp, path)?;
        sync_folder(&self.dir)
    }

    fn path(&self, side: Side) -> PathBuf {
        self.dir.join(format!("{}.{}", self.name, if side == Side::A { "a" } else { "b" }))
    }
}

fn encode(sequence: u64, json: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(HEADER + json.len());
    body.extend_from_slice(&sequence.to_le_bytes());
    body.extend_from_slice(&(json.len() as u32).to_le_bytes());
    body.extend_from_slice(json);
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    out.extend_from_slice(&body);
    out
}

/// `None` if the file does not exist.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<(u64, T)>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + HEADER as u64 + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let (sequence, json) = decode(&bytes)?;
    let value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    Ok(Some((sequence, value)))
}

fn decode(bytes: &[u8]) -> Result<(u64, &[u8]), String> {
    let short = || format!("{} bytes are too few", bytes.len());
    let rest = bytes.strip_prefix(MAGIC).ok_or("does not start with EFD1")?;
    let (crc, body) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err("checksum does not match".into());
    }
    let (sequence, rest) = body.split_first_chunk::<8>().ok_or_else(short)?;
    let (len, json) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    if u32::from_le_bytes(*len) as usize != json.len() {
        return Err("length does not match".into());
    }
    Ok((u64::from_le_bytes(*sequence), json))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Slots = DurableSlots<Vec<u32>>;

    /// Saved 1, then 2: `.a` holds the first, `.b` the second.
    fn two_saves(dir: &Path) {
        let (mut slots, loaded) = Slots::open(dir, "slots").unwrap();
        assert_eq!(loaded, Loaded::Absent);
        slots.save(&vec![1]).unwrap();
        slots.save(&vec![2]).unwrap();
    }

    #[test]
    fn the_newest_value_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        two_saves(dir.path());
        for round in 3..20 {
            let (mut slots, loaded) = Slots::open(dir.path(), "slots").unwrap();
            assert_eq!(loaded, Loaded::Value(vec![round - 1]));
            slots.save(&vec![round]).unwrap();
        }
    }

    #[test]
    fn any_damage_to_one_file_leaves_the_other() {
        let dir = tempfile::tempdir().unwrap();
        two_saves(dir.path());
        for (file, other) in [("slots.a", 2), ("slots.b", 1)] {
            let path = dir.path().join(file);
            let whole = fs::read(&path).unwrap();
            let flips = (0..whole.len()).flat_map(|at| {
                let mut bad = whole.clone();
                bad[at] ^= 1 << (at % 8);
                let cut = whole[..at].to_vec();
                [bad, cut]
            });
            let longer = [&whole[..], b"x"].concat();
            for bad in flips.chain([longer, vec![0; whole.len()]]) {
                fs::write(&path, &bad).unwrap();
                assert_eq!(Slots::open(dir.path(), "slots").unwrap().1, Loaded::Value(vec![other]));
            }
            // The next save goes over the damaged file, never over the good one.
            let (mut slots, _) = Slots::open(dir.path(), "slots").unwrap();
            slots.save(&vec![9]).unwrap();
            let survivor = if file == "slots.a" { "slots.b" } else { "slots.a" };
            assert!(read::<Vec<u32>>(&dir.path().join(survivor)).unwrap().unwrap().1 == vec![other]);
            fs::remove_dir_all(dir.path()).unwrap();
            two_saves(dir.path());
        }
    }

    #[test]
    fn two_damaged_files_are_a_loss_and_not_a_first_start() {
        let dir = tempfile::tempdir().unwrap();
        two_saves(dir.path());
        for file in ["slots.a", "slots.b"] {
            let path = dir.path().join(file);
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        }
        assert!(matches!(Slots::open(dir.path(), "slots").unwrap().1, Loaded::Lost(_)));
    }

    #[test]
    fn a_leftover_temporary_file_means_nothing() {
        let dir = tempfile::tempdir().unwrap();
        two_saves(dir.path());
        fs::write(dir.path().join("slots.tmp"), b"half").unwrap();
        assert_eq!(Slots::open(dir.path(), "slots").unwrap().1, Loaded::Value(vec![2]));
    }
}
