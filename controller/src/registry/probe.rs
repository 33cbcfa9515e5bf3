//! Asks `edgefleet-agent probe` what a device would say about a bundle, in a child process.
//!
//! A model file is never parsed inside the controller: it may be hostile. The child confines itself; here it
//! gets a clean environment, a time limit and a bounded pipe, and whatever it does is a typed error.

use super::source::{BaselineData, read_bounded};
use edgefleet_shared::{
    bundle::{Interface, baseline::MAX_BASELINE_BYTES},
    digest::BundleDigest,
    ids::BundleName,
    lint::{LINT_SCHEMA, ModelLook},
    probe::{PROBE_PROTOCOL, ProbeVerdict},
};
use serde::Deserialize;
use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
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
        let asked = ask(&program, "probe", &self.arguments(dir), self.limit).await?;
        let head: ProbeHead =
            serde_json::from_slice(&asked.answer).map_err(|_| asked.unreadable(&program, None))?;
        if head.protocol != PROBE_PROTOCOL {
            return Err(ProbeError::Protocol { program, found: head.protocol });
        }
        let verdict: ProbeVerdict =
            serde_json::from_slice(&asked.answer).map_err(|e| asked.unreadable(&program, Some(&e)))?;
        if verdict.ok && !asked.status.success() {
            return Err(asked.without(&program, format!("{} after a good verdict", asked.status)));
        }
        if verdict.digest != digest || verdict.bundle != *name {
            let found = format!("{} {}", verdict.bundle, verdict.digest);
            return Err(ProbeError::OtherBundle { program, found, wanted: format!("{name} {digest}") });
        }
        Ok(verdict)
    }

    /// Asks what the model file `model` is made of and what each engine makes of it. `interface`: of its
    /// manifest; without one, what the file declares.
    ///
    /// # Errors
    /// [`ProbeError`] if there is no answer.
    pub async fn look(&self, model: &Path, interface: Option<&Interface>) -> Result<ModelLook, ProbeError> {
        let program = find_agent_here(self.agent.as_deref())?;
        let spawn = |source| ProbeError::Spawn { program: program.clone(), source };
        let mut arguments = self.arguments(model);
        // Kept until the agent has read it.
        let file = match interface {
            None => None,
            Some(interface) => {
                let file = tempfile::NamedTempFile::new().map_err(spawn)?;
                let json = serde_json::to_vec(interface).unwrap_or_default(); // plain data: cannot fail
                std::fs::write(file.path(), json).map_err(spawn)?;
                arguments.extend(["--interface".into(), file.path().into()]);
                Some(file)
            }
        };
        let asked = ask(&program, "lint", &arguments, self.limit).await?;
        drop(file);
        let head: LookHead =
            serde_json::from_slice(&asked.answer).map_err(|_| asked.unreadable(&program, None))?;
        if head.schema != LINT_SCHEMA {
            return Err(ProbeError::Protocol { program, found: head.schema });
        }
        serde_json::from_slice(&asked.answer).map_err(|e| asked.unreadable(&program, Some(&e)))
    }

    /// Has the agent run the held-out rows of `data` through the bundle folder `dir`; the bytes of its baseline.
    ///
    /// # Errors
    /// [`ProbeError`]; `NoVerdict` has the agent's words.
    pub async fn baseline(&self, dir: &Path, data: &BaselineData) -> Result<Vec<u8>, ProbeError> {
        let program = find_agent_here(self.agent.as_deref())?;
        let spawn = |source| ProbeError::Spawn { program: program.clone(), source };
        let out = tempfile::NamedTempFile::new().map_err(spawn)?;
        let mut arguments: Vec<OsString> = ["--bundle".into(), dir.into(), "--data".into()].into();
        arguments.extend([data.data.clone().into(), "--out".into(), out.path().into()]);
        arguments.extend(data.labels.iter().flat_map(|labels| ["--labels".into(), labels.clone()]));
        let asked = ask(&program, "baseline", &arguments, self.limit).await?;
        if !asked.status.success() {
            return Err(asked.without(&program, asked.status.to_string()));
        }
        read_bounded(out.path(), MAX_BASELINE_BYTES).map_err(spawn)
    }

    /// The thing to look at, and the library to try it with.
    fn arguments(&self, what: &Path) -> Vec<OsString> {
        let library = self.library.iter().flat_map(|path| ["--ort-lib".into(), path.into()]);
        [what.into()].into_iter().chain(library).collect()
    }
}

#[derive(Deserialize)]
struct ProbeHead {
    protocol: u32,
}

#[derive(Deserialize)]
struct LookHead {
    schema: u32,
}

/// What the agent answered, and how it ended.
struct Asked {
    answer: Vec<u8>,
    stderr: String,
    status: ExitStatus,
}

impl Asked {
    fn without(&self, program: &Path, status: String) -> ProbeError {
        ProbeError::NoVerdict { program: program.to_owned(), status, stderr: self.stderr.clone() }
    }

    /// `error`: it answered, but not what was understood.
    fn unreadable(&self, program: &Path, error: Option<&serde_json::Error>) -> ProbeError {
        let status = match error {
            None => self.status.to_string(),
            Some(e) => format!("{}; its answer cannot be read: {e}", self.status),
        };
        self.without(program, status)
    }
}

/// Runs `program VERB --output json ARGUMENTS`.
async fn ask(
    program: &Path,
    verb: &str,
    arguments: &[OsString],
    limit: Duration,
) -> Result<Asked, ProbeError> {
    let mut command = tokio::process::Command::new(program);
    command
        .args([verb, "--output", "json"])
        .args(arguments)
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
    Ok(Asked { answer: out.bytes, stderr: last_lines(&err.bytes), status })
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
