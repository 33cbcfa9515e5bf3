//! Real processes: started with their own log, found by the addresses they write, ended for sure.

use super::DemoError;
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// How long a process may take to say where it listens. A busy two-core machine needs seconds.
const START_LIMIT: Duration = Duration::from_secs(30);
/// From SIGTERM to SIGKILL; the programs promise five seconds, a machine under load may need a few more.
const STOP_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

/// A running child; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with standard output and error in `log`.
    ///
    /// # Errors
    /// [`DemoError::Start`].
    pub fn start(
        name: &str,
        program: &Path,
        args: &[&OsStr],
        env: &[(&str, &str)],
        log: &Path,
    ) -> Result<Self, DemoError> {
        let failed = |source| DemoError::Start { program: program.to_owned(), source };
        let out = File::create(log).map_err(failed)?;
        let err = out.try_clone().map_err(failed)?;
        let child = Command::new(program)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(failed)?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The addresses the process wrote to `file` after its start.
    ///
    /// # Errors
    /// [`DemoError::Ended`] with the end of its log, or [`DemoError::Silent`].
    pub async fn addresses(&mut self, file: &Path) -> Result<Value, DemoError> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.has_ended() {
                return Err(DemoError::Ended { name: self.name.clone(), status, log: self.log_tail() });
            }
            let pid = u64::from(self.pid());
            let read = fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            // A file of an earlier run names another process.
            if let Some(addresses) = read.filter(|a| a["pid"].as_u64().is_none_or(|found| found == pid)) {
                return Ok(addresses);
            }
            if started.elapsed() > START_LIMIT {
                return Err(DemoError::Silent { name: self.name.clone(), log: self.log_tail() });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The last lines of its log, for an error a person reads.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Asks it to stop and waits; kills it if it does not.
    pub async fn stop(&mut self) -> Option<ExitStatus> {
        self.signal(libc::SIGTERM);
        let started = Instant::now();
        while started.elapsed() < STOP_LIMIT {
            if let Some(status) = self.has_ended() {
                return Some(status);
            }
            tokio::time::sleep(POLL).await;
        }
        self.kill();
        None
    }

    /// SIGKILL, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    #[allow(unsafe_code)] // std can only kill
    fn signal(&self, signal: i32) {
        if let Ok(pid) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: a plain system call; the child has not been waited for, so the pid is its own.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Lets it run on after this program has ended.
    pub fn leave_running(mut self) -> u32 {
        let pid = self.pid();
        self.log = PathBuf::new();
        std::mem::forget(self);
        pid
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.has_ended().is_none() {
            self.kill();
        }
    }
}
