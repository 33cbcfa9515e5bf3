//! Answers in files: lines of one that is rotated, or a file each.

use super::DeliverError;
use crate::store::files;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
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
    /// Within this run, for answers whose input has no name, or one that is taken.
    sequence: u64,
}

impl AnswerFolder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, sequence: 0 }
    }

    pub(super) fn add(&mut self, id: Option<&str>, answer: &[u8]) -> Result<(), DeliverError> {
        let stem = id.map(stem).unwrap_or_default();
        fs::create_dir_all(&self.path).map_err(|e| failed(&self.path, &e))?;
        let mut path = self.path.join(format!("{stem}.json"));
        if stem.is_empty() || path.exists() {
            self.sequence += 1;
            let number = format!("{:013}-{:06}", crate::clock::now().as_millis(), self.sequence);
            let dash = if stem.is_empty() { "" } else { "-" };
            path = self.path.join(format!("{stem}{dash}{number}.json"));
        }
        files::replace(&path, &[answer, b"\n"].concat(), MODE).map_err(|e| failed(&path, &e))
    }
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
    fn answers_get_plain_names_and_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let mut answers = AnswerFolder::new(out.clone());
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
