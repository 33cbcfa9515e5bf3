//! A running program with its own log, ended for sure.

use crate::{place::Place, waiting::until};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

/// How long a program may take to say where it listens.
const START_LIMIT: Duration = Duration::from_secs(40);
/// The programs promise to end within 5 s of SIGTERM; the rest is for a busy machine.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with standard output and error in a log of the place.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(place: &Place, name: &str, command: &mut Command) -> Result<Self> {
        let log = place.log(name);
        let out = File::create(&log)?;
        let err = out.try_clone()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("could not start {name} ({command:?})"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// # Errors
    /// If the system does not tell.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the file in which the program says where it listens, as JSON with its `pid`.
    ///
    /// # Errors
    /// If it ends or stays silent.
    pub async fn addresses(&mut self, file: &Path) -> Result<Value> {
        let (name, pid) = (self.name.clone(), u64::from(self.pid()));
        let what = format!("the addresses of {name}");
        let found = until(&what, START_LIMIT, async || {
            if let Some(status) = self.has_ended()? {
                return Ok(Err(status));
            }
            let found: Value = serde_json::from_slice(&fs::read(file)?)?;
            ensure!(found["pid"].as_u64() == Some(pid), "the file is of another process");
            Ok(Ok(found))
        });
        match found.await? {
            Ok(found) => Ok(found),
            Err(status) => bail!("{name} ended with {status}:\n{}", self.log()),
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        until(&what, limit, async || self.has_ended()?.context("it still runs")).await
    }

    /// SIGTERM, and expects an orderly end.
    ///
    /// # Errors
    /// If it does not end in time or not with success.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal("TERM")?;
        let status = self.ended(STOP_LIMIT).await?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }

    /// SIGKILL, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill(); // fails only if it has ended
        let _ = self.child.wait();
    }

    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let status =
            Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.child.id())]).status()?;
        ensure!(status.success(), "could not send {signal} to {}", self.name);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
