//! The programs under test, as processes.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// Unoptimised programs on a busy machine with two cores.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(5);

/// Programs lie beside the folder of the test that runs.
fn built(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let path = test.parent().and_then(Path::parent).context("a test lies in target/PROFILE/deps")?.join(name);
    ensure!(path.exists(), "`{}` is missing; `make test` builds it", path.display());
    Ok(path)
}

/// # Errors
/// If it was not built.
pub fn controller_bin() -> Result<PathBuf> {
    built("edgefleet")
}

/// # Errors
/// If it was not built.
pub fn agent_bin() -> Result<PathBuf> {
    built("edgefleet-agent")
}

/// The agent with feature `failpoints`.
///
/// # Errors
/// If it was not built.
pub fn failpoint_agent_bin() -> Result<PathBuf> {
    built("edgefleet-agent-failpoints")
}

/// A running process; killed when dropped.
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts it with both outputs appended to `log`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start<S: AsRef<OsStr>>(
        program: &Path,
        args: &[S],
        env: &[(&str, String)],
        log: &Path,
    ) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let child = Command::new(program)
            .args(args)
            .envs(env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("could not start `{}`", program.display()))?;
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, child, log: log.to_owned() })
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The addresses this very process wrote to `file`.
    ///
    /// # Errors
    /// If it ends, or says nothing for a minute; with the end of its log.
    pub async fn addresses(&mut self, file: &Path) -> Result<Value> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                bail!("{} ended with {status}:\n{}", self.name, self.log_tail());
            }
            let read = fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            if let Some(found) = read.filter(|a| a["pid"].as_u64() == Some(u64::from(self.child.id()))) {
                return Ok(found);
            }
            ensure!(started.elapsed() < START_LIMIT, "{} does not listen:\n{}", self.name, self.log_tail());
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGKILL: no destructor, no flush.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        let pid = self.child.id().to_string();
        ensure!(Command::new("kill").args(["-s", "TERM", &pid]).status()?.success(), "kill {pid} failed");
        self.wait(STOP_LIMIT).await
    }

    /// # Errors
    /// If it still runs after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            ensure!(started.elapsed() < limit, "{} still runs:\n{}", self.name, self.log_tail());
            tokio::time::sleep(POLL).await;
        }
    }

    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().rev().take(25).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}
