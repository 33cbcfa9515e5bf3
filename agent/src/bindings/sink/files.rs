//! Answers in files: lines of one that is rotated, or a file each.

use super::DeliverError;
use crate::store::files;
use std::{
    collections::BinaryHeap,
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Rights of what is written.
const MODE: u32 = 0o640;
/// Bytes of a file's name made of an input's.
const MAX_STEM: usize = 200;

fn failed(path: &Path, error: &io::Error) -> DeliverError {
    DeliverError::Later(format!("`{}`: {error}", path.display()))
}

/// `path`, and what it held before as `path.1` (newest) to `path.N`.
pub(super) struct RotatedFile {
    path: PathBuf,
    rotate_bytes: u64,
    keep: usize,
    open: Option<(File, u64)>,
}

impl RotatedFile {
    pub(super) fn new(path: PathBuf, rotate_bytes: u64, keep: usize) -> Self {
        Self { path, rotate_bytes, keep, open: None }
    }

    /// Appends one line in one write.
    pub(super) fn append(&mut self, answer: &[u8]) -> Result<(), DeliverError> {
        let line = [answer, b"\n"].concat();
        self.try_append(&line).map_err(|error| {
            self.open = None; // removed or full: opened anew next time
            failed(&self.path, &error)
        })
    }

    fn try_append(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if let Some((_, size)) = &self.open
            && *size > 0
            && size.saturating_add(length) > self.rotate_bytes
        {
            self.open = None;
            self.rotate()?;
        }
        let (mut file, size) = match self.open.take() {
            Some(open) => open,
            None => {
                let file = OpenOptions::new().append(true).create(true).mode(MODE).open(&self.path)?;
                let size = file.metadata()?.len();
                if size > 0 && size.saturating_add(length) > self.rotate_bytes {
                    self.open = Some((file, size));
                    return self.try_append(line);
                }
                (file, size)
            }
        };
        if let Err(error) = file.write_all(line) {
            // Half a line would swallow the next one.
            file.set_len(size)?;
            return Err(error);
        }
        self.open = Some((file, size + length));
        Ok(())
    }

    fn numbered(&self, number: usize) -> PathBuf {
        files::with_suffix(&self.path, &format!(".{number}"))
    }

    fn rotate(&self) -> io::Result<()> {
        let missing = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
        if self.keep == 0 {
            return fs::remove_file(&self.path).or_else(missing);
        }
        for number in (1..self.keep).rev() {
            fs::rename(self.numbered(number), self.numbered(number + 1)).or_else(missing)?;
        }
        fs::rename(&self.path, self.numbered(1)).or_else(missing)
    }
}

/// One file an answer, complete from the moment it has its name.
pub(super) struct AnswerFolder {
    path: PathBuf,
    keep: usize,
    keep_bytes: u64,
    /// Files and bytes that are there, as far as is known; others may have taken some away. `None`: not looked yet.
    known: Option<(usize, u64)>,
    /// Within this run, for answers whose input has no name, or one that is taken.
    sequence: u64,
}

/// Room that is made beyond what is needed, one part in so many: else every answer would look through the folder.
const SPARE: usize = 16;

impl AnswerFolder {
    /// At most `keep` answers of together `keep_bytes`.
    pub(super) fn new(path: PathBuf, keep: usize, keep_bytes: u64) -> Self {
        Self { path, keep, keep_bytes, known: None, sequence: 0 }
    }

    /// Returns how many older answers had to go.
    pub(super) fn add(&mut self, id: Option<&str>, answer: &[u8]) -> Result<u64, DeliverError> {
        let stem = id.map(stem).unwrap_or_default();
        fs::create_dir_all(&self.path).map_err(|e| failed(&self.path, &e))?;
        let mut path = self.path.join(format!("{stem}.json"));
        if stem.is_empty() || path.exists() {
            self.sequence += 1;
            let number = format!("{:013}-{:06}", crate::clock::now().as_millis(), self.sequence);
            let dash = if stem.is_empty() { "" } else { "-" };
            path = self.path.join(format!("{stem}{dash}{number}.json"));
        }
        let size = answer.len() as u64 + 1;
        if size > self.keep_bytes {
            let most = self.keep_bytes;
            return Err(DeliverError::Never(format!(
                "the answer has {size} bytes, the folder may have {most}"
            )));
        }
        let removed = self.make_room(size).map_err(|e| failed(&self.path, &e))?;
        files::replace(&path, &[answer, b"\n"].concat(), MODE).map_err(|e| failed(&path, &e))?;
        if let Some((files, bytes)) = &mut self.known {
            (*files, *bytes) = (*files + 1, bytes.saturating_add(size));
        }
        Ok(removed)
    }

    /// Removes the oldest answers until one of `size` bytes fits.
    fn make_room(&mut self, size: u64) -> io::Result<u64> {
        let fits =
            |files: usize, bytes: u64| files < self.keep && bytes.saturating_add(size) <= self.keep_bytes;
        if self.known.is_some_and(|(files, bytes)| fits(files, bytes)) {
            return Ok(0);
        }
        // Two passes, so that a folder of any size is looked through in bounded memory.
        let (mut files, mut bytes) = (0, 0u64);
        answers(&self.path, |_, found| {
            files += 1;
            bytes = bytes.saturating_add(found.len());
        })?;
        let mut removed = 0;
        while files > 0 && !fits(files, bytes) {
            let excess = (files + 1).saturating_sub(self.keep).max(1) + self.keep / SPARE;
            let mut oldest = BinaryHeap::new(); // the newest on top
            answers(&self.path, |name, found| {
                oldest.push((found.modified().unwrap_or(SystemTime::UNIX_EPOCH), name, found.len()));
                if oldest.len() > excess.min(MAX_REMOVED) {
                    oldest.pop();
                }
            })?;
            if oldest.is_empty() {
                break;
            }
            for (_, name, size) in oldest.into_sorted_vec() {
                fs::remove_file(self.path.join(name))?;
                (files, bytes) = (files.saturating_sub(1), bytes.saturating_sub(size));
                removed += 1;
                let spare = files + self.keep / SPARE < self.keep;
                if spare && fits(files, bytes.saturating_add(self.keep_bytes / SPARE as u64)) {
                    break;
                }
            }
        }
        self.known = Some((files, bytes));
        Ok(removed)
    }
}

/// Names held at a time while answers are removed.
const MAX_REMOVED: usize = 4_096;

/// Tells `each` of the answers in a folder: plain files by the name of one, and finished.
fn answers(folder: &Path, mut each: impl FnMut(OsString, &Metadata)) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let plain = name.as_encoded_bytes();
        if plain.starts_with(b".") || !plain.ends_with(b".json") {
            continue;
        }
        // Not followed; what vanished meanwhile is not there.
        if let Ok(found) = entry.metadata()
            && found.is_file()
        {
            each(name, &found);
        }
    }
    Ok(())
}

/// A plain file name: no folder, not hidden, not too long.
fn stem(id: &str) -> String {
    let plain = |c: char| if c == '/' || c == '\\' || c.is_control() { '_' } else { c };
    let mut stem: String = id.trim_start_matches('.').chars().map(plain).collect();
    let mut end = stem.len().min(MAX_STEM);
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    stem.truncate(end);
    stem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_rotated_by_size_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let mut file = RotatedFile::new(path.clone(), 20, 2);
        for number in 0..7 {
            if number == 5 {
                file = RotatedFile::new(path.clone(), 20, 2); // as after a restart
            }
            file.append(format!("answer {number}").as_bytes()).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "answer 6\n");
        assert_eq!(read(&file.numbered(1)), "answer 4\nanswer 5\n");
        assert_eq!(read(&file.numbered(2)), "answer 2\nanswer 3\n");
        assert!(!file.numbered(3).exists());
        // One that is too large on its own is not lost, and the one after it begins anew.
        file.append(&[b'x'; 50]).unwrap();
        file.append(b"y").unwrap();
        assert_eq!((read(&path).as_str(), read(&file.numbered(1)).len()), ("y\n", 51));
        let nowhere = folder.path().join("no/such/folder");
        let refused = RotatedFile::new(nowhere, 20, 2).append(b"x").unwrap_err();
        assert!(matches!(&refused, DeliverError::Later(why) if why.contains("no/such/folder")), "{refused}");
    }

    #[test]
    fn the_oldest_answers_go_for_places_and_for_bytes_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let files = || {
            let mut found: Vec<_> = fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            found.sort();
            found
        };
        let age = |name: &str, secs: u64| {
            let file = OpenOptions::new().write(true).open(folder.path().join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs)).unwrap();
        };
        for name in ["notes.txt", ".hidden.json"] {
            fs::write(folder.path().join(name), [b'x'; 4096]).unwrap();
        }
        let mut answers = AnswerFolder::new(folder.path().to_owned(), 3, 1 << 20);
        let mut removed = vec![];
        for number in 1..=5 {
            removed.push(answers.add(Some(&number.to_string()), b"{}").unwrap());
            age(&format!("{number}.json"), number);
        }
        assert_eq!(files(), [".hidden.json", "3.json", "4.json", "5.json", "notes.txt"]);
        assert_eq!(removed, [0, 0, 0, 1, 1]);
        // Somebody takes answers away: there is room.
        fs::remove_file(folder.path().join("3.json")).unwrap();
        assert_eq!(answers.add(Some("6"), b"{}").unwrap(), 0);
        age("6.json", 6);
        // After a restart with less room, by bytes.
        let mut answers = AnswerFolder::new(folder.path().to_owned(), 100, 1024);
        let removed: Vec<_> = (11..=15u64)
            .map(|number| {
                let removed = answers.add(Some(&number.to_string()), &[b' '; 299]).unwrap();
                age(&format!("{number}.json"), number);
                removed
            })
            .collect();
        assert_eq!(removed, [0, 0, 0, 4, 1], "four, {{4, 5, 6}} among them");
        assert_eq!(files(), [".hidden.json", "13.json", "14.json", "15.json", "notes.txt"]);
        assert!(matches!(answers.add(None, &[b' '; 1024]), Err(DeliverError::Never(_))));
        assert_eq!(files().len(), 5);
    }

    #[test]
    fn answers_get_plain_names_and_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let mut answers = AnswerFolder::new(out.clone(), 100, 1 << 20);
        for id in [Some("a.jpg"), Some("../../etc/passwd"), Some("..."), None, None, Some("a.jpg")] {
            answers.add(id, b"{}").unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 6, "{names:?}");
        assert_eq!(names.iter().filter(|name| name.starts_with("a.jpg-")).count(), 1, "{names:?}");
        assert!(
            names.contains(&"a.jpg.json".to_owned()) && names.contains(&"_.._etc_passwd.json".to_owned())
        );
        assert!(
            names.iter().all(|name| name.ends_with(".json") && fs::read(out.join(name)).unwrap() == b"{}\n")
        );
        assert_eq!(stem(&"ä".repeat(150)).chars().count(), 100);
    }
}
