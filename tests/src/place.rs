//! The folder of one story, with the logs of its processes.

use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};
use tempfile::TempDir;

/// Lines of each log that are printed when a story fails.
const LINES: usize = 40;

/// A fresh folder; removed at the end of a story that went well.
pub struct Place {
    dir: Option<TempDir>,
    path: PathBuf,
    logs: AtomicUsize,
}

impl Place {
    /// # Errors
    /// If the folder cannot be made.
    pub fn new() -> Result<Self> {
        crate::install_crypto();
        let dir = tempfile::Builder::new().prefix("edgefleet-story-").tempdir()?;
        let path = dir.path().to_owned();
        fs::create_dir(path.join("logs"))?;
        Ok(Self { dir: Some(dir), path, logs: AtomicUsize::new(1) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside; nothing is made.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A new log file's path; the same name may be taken again.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{:02}-{name}.log", self.logs.fetch_add(1, Ordering::Relaxed)))
    }

    /// The story was told to its end: nothing is printed, nothing stays.
    ///
    /// # Errors
    /// If the folder cannot be removed.
    pub fn end(mut self) -> Result<()> {
        let dir = self.dir.take().context("a story ends once")?;
        dir.close().context("could not remove the story's folder")
    }

    fn print_logs(&self) {
        let mut logs: Vec<_> =
            fs::read_dir(self.path.join("logs")).into_iter().flatten().flatten().map(|e| e.path()).collect();
        logs.sort();
        for path in logs {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().collect();
            let from = lines.len().saturating_sub(LINES);
            eprintln!("--- {} (last {} of {} lines)", path.display(), lines.len() - from, lines.len());
            lines[from..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            self.print_logs();
            eprintln!("the story's folder stays: {}", dir.keep().display());
        }
    }
}
