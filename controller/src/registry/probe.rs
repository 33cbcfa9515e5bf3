//! Asks `edgefleet-agent probe` what a device would say about a bundle, in a child process.
//!
//! A model file is never parsed inside the controller: it may be hostile. The child confines itself; here it
//! gets a clean environment, a time limit and a bounded pipe, and whatever it does is a typed error.

use edgefleet_shared::{
    digest::BundleDigest,
    ids::BundleName,
    probe::{PROBE_PROTOCOL, ProbeVerdict},
};
use serde::Deserialize;
use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Name of the program that probes.
pub const AGENT_PROGRAM: &str = "edgefleet-agent";
/// Longest time a probe may take, loading and golden samples included.
pub const DEFAULT_PROBE_LIMIT: Duration = Duration::from_secs(120);
/// Largest verdict: a manifest names at most 64 golden samples. Also keeps the stored document small.
const MAX_VERDICT_BYTES: usize = 512 * 1024;
const MAX_STDERR_BYTES: usize = 16 * 1024;
/// What the child inherits. Nothing else: no tokens, no proxies.
const PASSED_ON: [&str; 4] = ["PATH", "TMPDIR", "LD_LIBRARY_PATH", "ORT_DYLIB_PATH"];

/// Why there is no verdict. Always means: not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("the check needs the program `{AGENT_PROGRAM}`, which was not found in {}", looked.join(", "))]
    Missing { looked: Vec<String> },
    #[error("could not start `{}`", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("`{}` was stopped after {} s without a verdict", program.display(), limit.as_secs_f32())]
    TimedOut { program: PathBuf, limit: Duration },
    #[error("`{}` ended without a verdict ({status}){}", program.display(), quoted(stderr))]
    NoVerdict { program: PathBuf, status: String, stderr: String },
    #[error("`{}` printed more than {MAX_VERDICT_BYTES} bytes", program.display())]
    TooLong { program: PathBuf },
    #[error("`{}` speaks probe protocol {found}, this program {PROBE_PROTOCOL}; install the same version", program.display())]
    Protocol { program: PathBuf, found: u32 },
    #[error("`{}` probed {found}, not {wanted}", program.display())]
    OtherBundle { program: PathBuf, found: String, wanted: String },
}

fn quoted(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

/// Finds the agent: the path given, beside this program, in the search path.
///
/// # Errors
/// [`ProbeError::Missing`] names every place that was looked at.
pub fn find_agent(
    given: Option<&Path>,
    beside: Option<&Path>,
    search_path: Option<&OsStr>,
) -> Result<PathBuf, ProbeError> {
    let is_program = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if let Some(given) = given {
        return if is_program(given) {
            Ok(given.to_owned())
        } else {
            Err(ProbeError::Missing { looked: vec![format!("`{}` (no executable file)", given.display())] })
        };
    }
    let mut looked = Vec::new();
    let folders = beside.map(Path::to_owned).into_iter();
    for folder in folders.chain(search_path.map(std::env::split_paths).into_iter().flatten()) {
        let path = folder.join(AGENT_PROGRAM);
        if is_program(&path) {
            return Ok(path);
        }
        looked.push(format!("`{}`", folder.display()));
    }
    Err(ProbeError::Missing { looked })
}

/// [`find_agent`] with the places of this process.
///
/// # Errors
/// [`ProbeError::Missing`].
pub fn find_agent_here(given: Option<&Path>) -> Result<PathBuf, ProbeError> {
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    find_agent(given, beside.as_deref(), std::env::var_os("PATH").as_deref())
}

/// Runs probes.
#[derive(Clone, Debug)]
pub struct Prober {
    /// Where the agent was asked to be; looked up anew at each probe, so that it may be installed later.
    pub agent: Option<PathBuf>,
    /// A libonnxruntime.so to try bundles with besides tract, which is part of the agent.
    pub library: Option<PathBuf>,
    pub limit: Duration,
}

impl Prober {
    pub fn new(agent: Option<PathBuf>, library: Option<PathBuf>) -> Self {
        // With a library every variant is tried with two engines, one after the other.
        let factor = if library.is_some() { 4 } else { 1 };
        Self { agent, library, limit: DEFAULT_PROBE_LIMIT * factor }
    }

    /// Probes the bundle folder `dir`, whose manifest names `name` and has the digest `digest`.
    ///
    /// # Errors
    /// [`ProbeError`] if there is no verdict; a verdict that says no is `Ok`.
    pub async fn probe(
        &self,
        dir: &Path,
        name: &BundleName,
        digest: BundleDigest,
    ) -> Result<ProbeVerdict, ProbeError> {
        let program = find_agent_here(self.agent.as_deref())?;
        let verdict = run(&program, dir, self.library.as_deref(), self.limit).await?;
        if verdict.digest != digest || verdict.bundle != *name {
            let found = format!("{} {}", verdict.bundle, verdict.digest);
            return Err(ProbeError::OtherBundle { program, found, wanted: format!("{name} {digest}") });
        }
        Ok(verdict)
    }
}

async fn run(
    program: &Path,
    dir: &Path,
    library: Option<&Path>,
    limit: Duration,
) -> Result<ProbeVerdict, ProbeError> {
    let mut command = tokio::process::Command::new(program);
    command
        .args(["probe", "--output", "json"])
        .arg(dir)
        .args(library.iter().flat_map(|library| [OsStr::new("--ort-lib"), library.as_os_str()]))
        .env_clear()
        .envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let spawn = |source| ProbeError::Spawn { program: program.to_owned(), source };
    let mut child = command.spawn().map_err(spawn)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        // Both pipes are read to the end, so that a talkative child never blocks on a full one.
        let (out, err) =
            tokio::join!(read_capped(stdout, MAX_VERDICT_BYTES), read_capped(stderr, MAX_STDERR_BYTES));
        Ok::<_, io::Error>((out?, err?, child.wait().await?))
    };
    let (out, err, status) = match tokio::time::timeout(limit, work).await {
        Err(_) => return Err(ProbeError::TimedOut { program: program.to_owned(), limit }),
        Ok(done) => done.map_err(spawn)?,
    };
    if out.overflow {
        return Err(ProbeError::TooLong { program: program.to_owned() });
    }
    let stderr = last_lines(&err.bytes);
    let no_verdict = |status: String| ProbeError::NoVerdict {
        program: program.to_owned(),
        status,
        stderr: stderr.clone(),
    };
    #[derive(Deserialize)]
    struct Head {
        protocol: u32,
    }
    let head: Head = serde_json::from_slice(&out.bytes).map_err(|_| no_verdict(status.to_string()))?;
    if head.protocol != PROBE_PROTOCOL {
        return Err(ProbeError::Protocol { program: program.to_owned(), found: head.protocol });
    }
    let verdict: ProbeVerdict = serde_json::from_slice(&out.bytes)
        .map_err(|e| no_verdict(format!("{status}; its answer cannot be read: {e}")))?;
    if verdict.ok && !status.success() {
        return Err(no_verdict(format!("{status} after a good verdict")));
    }
    Ok(verdict)
}

struct Capped {
    bytes: Vec<u8>,
    overflow: bool,
}

/// Keeps the first `limit` bytes and swallows the rest.
async fn read_capped(pipe: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Capped> {
    let mut bytes = Vec::new();
    let Some(mut pipe) = pipe else { return Ok(Capped { bytes, overflow: false }) };
    (&mut pipe).take(limit as u64 + 1).read_to_end(&mut bytes).await?;
    let overflow = bytes.len() > limit;
    if overflow {
        bytes.truncate(limit);
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(Capped { bytes, overflow })
}

/// The last three lines, without control characters: what a person needs to see of a crash.
fn last_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" | ");
    last.chars().filter(|c| !c.is_control()).take(600).collect()
}

#[cfg(test)]
#[path = "probe_tests.rs"]
pub(crate) mod tests;
