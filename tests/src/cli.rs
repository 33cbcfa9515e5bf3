//! Running a program to its end, as a person at a terminal would.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{ffi::OsStr, path::Path, process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

/// No command line of the stories may take longer.
const LIMIT: Duration = Duration::from_secs(120);

/// What came of it.
#[derive(Debug)]
pub struct Done {
    /// 0 done, 1 failed, 2 wrong usage.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    /// # Errors
    /// If it failed, with what it said.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.code == Some(0), "exit code {:?}: {}{}", self.code, self.out, self.err);
        Ok(self)
    }

    /// Standard output as JSON.
    ///
    /// # Errors
    /// If it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON: {}", self.out))
    }

    /// Expects failure with exit code 1 and every one of `words` in what it said.
    ///
    /// # Errors
    /// If it went well or said something else.
    pub fn refused(self, words: &[&str]) -> Result<String> {
        ensure!(self.code == Some(1), "expected a failure, got {self:?}");
        for word in words {
            ensure!(self.err.contains(word), "`{word}` is not named: {}", self.err);
        }
        Ok(self.err)
    }
}

/// Runs `program` with nothing on standard input.
///
/// # Errors
/// If it cannot be started or does not end.
pub async fn run<A: AsRef<OsStr>>(
    program: &Path,
    args: impl IntoIterator<Item = A>,
    env: &[(&str, &OsStr)],
) -> Result<Done> {
    let mut command = Command::new(program);
    command.args(args).envs(env.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LIMIT, command.output())
        .await
        .with_context(|| format!("{command:?} did not end within {} s", LIMIT.as_secs()))?
        .with_context(|| format!("could not start {command:?}"))?;
    Ok(Done {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
