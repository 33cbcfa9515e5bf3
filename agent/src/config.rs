//! The agent's settings: TOML file, then `EDGEFLEET_AGENT_*`, then flags; the last one wins.
//!
//! Every key is visited before giving up, so that one start shows all mistakes with file, line and
//! key. Unknown keys are refused: a typing error must not become a default.

use crate::{
    bindings::{self, Binding},
    engine::{chooser::Policy, setup::Pattern},
};
use std::{
    collections::BTreeMap,
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::de::{DeTable, DeValue};

/// Prefix of environment variables: `http.listen` is `EDGEFLEET_AGENT_HTTP_LISTEN`.
pub const ENV_PREFIX: &str = "EDGEFLEET_AGENT_";
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Characters of a token that cannot be guessed over the local API.
const SHORTEST_TOKEN: usize = 16;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File { path: PathBuf, line: usize },
    Env(String),
    Flag(String),
    Default,
}
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {problem}")]
pub struct ConfigError {
    pub origin: Origin,
    pub problem: String,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// A secret that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct LocalToken(String);
impl LocalToken {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}
impl fmt::Debug for LocalToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LocalToken")
    }
}

/// What a listener shows to prove who it is, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Everything the agent can be told on its device. What the fleet decides comes from the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub data: PathBuf,
    /// Hardware class, as bundles name it; empty for none.
    pub hardware: String,
    pub http_listen: SocketAddr,
    /// gRPC on a port of its own; every other listener but that of the metrics speaks it too.
    pub grpc_listen: Option<SocketAddr>,
    /// Somebody chose it: then it must be free.
    pub grpc_is_chosen: bool,
    /// HTTP and gRPC for other machines.
    pub remote_listen: Option<SocketAddr>,
    /// `None`: in clear text.
    pub remote_tls: Option<CertificateFiles>,
    /// Bearer token of every request from another machine.
    pub remote_token: Option<LocalToken>,
    /// HTTP and gRPC by a socket file, and its rights.
    pub socket: Option<PathBuf>,
    pub socket_mode: u32,
    /// Whether programs on this machine may pass tensors through `/dev/shm`.
    pub shared_memory: bool,
    pub metrics_listen: SocketAddr,
    /// Said explicitly before anything listens beyond loopback without TLS or a token.
    pub allow_remote: bool,
    /// Names of this device that clients may use besides its addresses.
    pub host_names: Vec<String>,
    /// Bearer token of repository load and unload; `None` switches both off.
    pub local_token: Option<LocalToken>,
    pub body_limit: usize,
    /// Inference threads; 0 is one per core.
    pub threads: usize,
    /// Requests that may wait for a thread.
    pub queue: usize,
    /// Most rows of requests that run together; 1 runs each alone.
    pub batch: usize,
    /// Longest time that the first of them waits for others.
    pub batch_delay: Duration,
    pub write_timeout: Duration,
    pub idle_timeout: Duration,
    /// Bytes of answers remembered for inputs that come again.
    pub cache: u64,
    /// Whether metrics also go by Triton's names.
    pub triton_metrics: bool,
    /// Beyond the peak a bundle declares.
    pub probe_memory_headroom: u64,
    pub probe_timeout: Duration,
    /// Put before the agent's own program when it starts itself; usually empty.
    pub probe_runner: Vec<String>,
    /// The library to use; `None` looks through the system's folders.
    pub engine_onnxruntime: Option<PathBuf>,
    /// Which engines may run a bundle, and with how many threads.
    pub engine_policy: Policy,
    pub outbox_records: usize,
    pub outbox_bytes: u64,
    /// Most that captures may take on disk, whatever a policy says; 0 keeps none.
    pub captures_bytes: u64,
    /// The link is paid by volume: telemetry and captures go as the settings allow over such a link.
    pub link_metered: bool,
    /// Inputs that come without a client, and where their answers go.
    pub bindings: Vec<Binding>,
    pub log_level: String,
    pub log_format: LogFormat,
}

/// Key, default, and what it means; the one list that file, environment, flags and help share.
pub const KEYS: &[(&str, &str, &str)] = &[
    ("data", "/var/lib/edgefleet-agent", "folder for identity, bundles, state and outbox"),
    ("hardware", "", "hardware class, as bundles name it"),
    ("http.listen", "127.0.0.1:8000", "Open Inference Protocol; port 0 takes a free one"),
    ("http.allow_remote", "false", "allow listening beyond loopback without TLS or a token"),
    ("http.host_names", "", "names clients may call this device by, separated by spaces"),
    ("http.local_token", "", "bearer token of repository load and unload; without one both are off"),
    ("http.body_limit", "16MiB", "largest request body"),
    (
        "grpc.listen",
        "127.0.0.1:8001",
        "the same over gRPC; port 0 takes a free one, empty opens none, as does this default if it is taken",
    ),
    ("remote.listen", "", "HTTP and gRPC for other machines; needs TLS or a token"),
    ("remote.tls_certificate", "", "PEM file with the certificate chain of `remote.listen`"),
    ("remote.tls_key", "", "PEM file with its private key"),
    ("remote.token", "", "bearer token that requests from other machines must carry"),
    ("metrics.listen", "127.0.0.1:8002", "Prometheus metrics; port 0 takes a free one"),
    ("metrics.triton_names", "false", "show counts under the names of Triton's metrics too"),
    ("serving.socket", "", "socket file for HTTP and gRPC, such as `/run/edgefleet/agent.sock`"),
    ("serving.socket_mode", "0660", "rights of the socket file, in octal"),
    ("serving.shared_memory", "true", "take tensors through /dev/shm from programs on this machine"),
    ("serving.threads", "0", "inference threads, 0 is one per core"),
    ("serving.queue", "64", "requests that may wait for an inference thread"),
    ("serving.batch", "1", "most rows of requests that run together, for models with a free first dimension"),
    ("serving.batch_delay", "0s", "longest time that a request waits for others to run with"),
    (
        "serving.write_timeout",
        "60s",
        "longest time that a client takes nothing of its answer; then its connection is closed",
    ),
    ("serving.idle_timeout", "5m", "time after which an HTTP/2 connection without a call is closed"),
    ("serving.cache", "0B", "memory for answers to inputs that come again; only for models without chance"),
    ("probe.memory_headroom", "32MiB", "memory a bundle under test may use beyond its declared peak"),
    ("probe.timeout", "60s", "time a bundle under test may take"),
    ("probe.runner", "", "program and arguments to start the test with, such as `qemu-aarch64`"),
    ("engine.onnxruntime", "", "path of a libonnxruntime.so; empty takes the system's, where there is one"),
    ("engine.threads", "1", "most threads of one inference that are tried, 0 is one per core"),
    ("engine.prefer", "", "engines that stay unless another is 10 % faster, such as `onnxruntime tract/f32`"),
    ("engine.forbid", "", "engines never used: `engine`, `engine/precision` or `engine/precision/threads`"),
    ("engine.pin", "", "the only engines used, however slow"),
    ("outbox.records", "20000", "telemetry records kept while offline"),
    ("outbox.bytes", "16MiB", "bytes of telemetry kept while offline"),
    ("captures.bytes", "256MiB", "most that inputs kept for labelling take on disk; 0B keeps none"),
    ("link.metered", "false", "the link is paid by volume; what is sent then, the controller's settings say"),
    (
        "log.level",
        "info",
        "error, warn, info, debug or trace, or a filter such as `info,edgefleet_agent::link=debug`",
    ),
    ("log.format", "text", "text or json"),
];

/// Values as written, by key, with their origin; and what only a file can say.
#[derive(Clone, Debug, Default)]
pub struct Raw(BTreeMap<&'static str, (String, Origin)>, Vec<Binding>);

fn known(key: &str) -> Option<&'static str> {
    KEYS.iter().map(|(known, ..)| *known).find(|known| *known == key)
}

fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// Reads all sources. `env` is the process environment; `flags` are (key, value) pairs.
///
/// # Errors
/// Every mistake found, in the order of the sources and then of [`KEYS`].
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: impl IntoIterator<Item = (&'static str, String)>,
) -> Result<Config, Vec<ConfigError>> {
    let mut wrong = Vec::new();
    let mut raw = Raw::default();
    if let Some(path) = file {
        raw.add_file(path, &mut wrong);
    }
    raw.add_env(env, &mut wrong);
    for (key, value) in flags {
        if let Some(key) = known(key) {
            raw.0.insert(key, (value, Origin::Flag(key.replace(['.', '_'], "-"))));
        }
    }
    match check(&raw, &mut wrong) {
        Some(config) if wrong.is_empty() => Ok(config),
        _ => Err(wrong),
    }
}

impl Raw {
    fn add_file(&mut self, path: &Path, wrong: &mut Vec<ConfigError>) {
        let mut fail = |line: usize, problem: String| {
            wrong.push(ConfigError { origin: Origin::File { path: path.to_owned(), line }, problem });
        };
        let text = match crate::store::files::read_bounded(path, MAX_FILE_BYTES) {
            Err(e) => return fail(1, format!("cannot be read: {e}")),
            Ok(bytes) => match String::from_utf8(bytes) {
                Err(_) => return fail(1, "is not UTF-8".into()),
                Ok(text) => text,
            },
        };
        let line_of =
            |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
        let (table, errors) = DeTable::parse_recoverable(&text);
        for error in errors {
            fail(line_of(error.span().map_or(0, |span| span.start)), error.message().to_owned());
        }
        let mut open: Vec<(String, &DeTable<'_>)> = vec![(String::new(), table.get_ref())];
        while let Some((prefix, table)) = open.pop() {
            for (name, value) in table.iter() {
                let line = line_of(name.span().start);
                let key = format!("{prefix}{}", name.get_ref());
                if key == "bindings" {
                    self.1 = bindings::read(value, &mut |at, problem| fail(line_of(at), problem));
                    continue;
                }
                let written = match value.get_ref() {
                    DeValue::Table(inner) if KEYS.iter().any(|(k, ..)| k.starts_with(&format!("{key}."))) => {
                        open.push((format!("{key}."), inner));
                        continue;
                    }
                    DeValue::String(text) => Some(text.to_string()),
                    DeValue::Integer(number) => Some(number.to_string()),
                    DeValue::Boolean(flag) => Some(flag.to_string()),
                    _ => None,
                };
                match (known(&key), written) {
                    (Some(key), Some(text)) => {
                        let origin = Origin::File { path: path.to_owned(), line };
                        self.0.insert(key, (text, origin));
                    }
                    (Some(key), None) => {
                        fail(line, format!("`{key}` must be text, a whole number or true/false"))
                    }
                    (None, _) => fail(line, unknown(&key)),
                }
            }
        }
    }

    fn add_env(&mut self, env: impl IntoIterator<Item = (String, String)>, wrong: &mut Vec<ConfigError>) {
        for (name, value) in env {
            // `..._CONFIG` names the file; `..._BIN` names this program to the controller on the same machine.
            let other = ["CONFIG", "BIN"].map(|key| format!("{ENV_PREFIX}{key}"));
            if !name.starts_with(ENV_PREFIX) || other.contains(&name) {
                continue;
            }
            match KEYS.iter().find(|(key, ..)| env_name(key) == name) {
                Some((key, ..)) => drop(self.0.insert(key, (value, Origin::Env(name)))),
                None => {
                    let key = name[ENV_PREFIX.len()..].to_lowercase();
                    wrong.push(ConfigError { origin: Origin::Env(name), problem: unknown(&key) });
                }
            }
        }
    }

    fn take<T>(
        &self,
        key: &'static str,
        wrong: &mut Vec<ConfigError>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let default = KEYS.iter().find(|(known, ..)| *known == key).map_or("", |(_, default, _)| default);
        let (text, origin) = match self.0.get(key) {
            Some((text, origin)) => (text.as_str(), origin.clone()),
            None => (default, Origin::Default),
        };
        parse(text)
            .map_err(|problem| {
                let shown = if key.ends_with("token") { "..." } else { text };
                wrong.push(ConfigError { origin, problem: format!("`{key}` is `{shown}`, {problem}") });
            })
            .ok()
    }

    fn origin(&self, key: &str) -> Origin {
        self.0.get(key).map_or(Origin::Default, |(_, origin)| origin.clone())
    }
}

fn unknown(key: &str) -> String {
    let near = KEYS
        .iter()
        .map(|(known, ..)| *known)
        .filter(|known| known.rsplit('.').next() == key.rsplit(['.', '_']).next())
        .collect::<Vec<_>>();
    match near.as_slice() {
        [] => format!("`{key}` is not a setting; `edgefleet-agent run --help` lists them"),
        near => format!("`{key}` is not a setting; did you mean `{}`?", near.join("` or `")),
    }
}

fn check(raw: &Raw, wrong: &mut Vec<ConfigError>) -> Option<Config> {
    let address = |text: &str| {
        text.parse::<SocketAddr>().map_err(|_| "which is no address; write it as `127.0.0.1:8000`".to_owned())
    };
    let data = raw.take("data", wrong, |text| match text {
        "" => Err("which is no folder".into()),
        text => Ok(PathBuf::from(text)),
    });
    let hardware = raw.take("hardware", wrong, |text| {
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match text.len() <= 64 && text.chars().all(ok) {
            true => Ok(text.to_owned()),
            false => Err("which may hold only letters, digits, `-`, `_` and `.`, at most 64".into()),
        }
    });
    let http_listen = raw.take("http.listen", wrong, address);
    let metrics_listen = raw.take("metrics.listen", wrong, address);
    let or_none = |text: &str| if text.is_empty() { Ok(None) } else { address(text).map(Some) };
    let grpc_listen = raw.take("grpc.listen", wrong, or_none);
    let remote_listen = raw.take("remote.listen", wrong, or_none);
    let truth =
        |text: &str| text.parse::<bool>().map_err(|_| "which is neither `true` nor `false`".to_owned());
    let file = |text: &str| Ok((!text.is_empty()).then(|| PathBuf::from(text)));
    let allow_remote = raw.take("http.allow_remote", wrong, truth);
    let token = |text: &str| match text {
        "" => Ok(None),
        text if text.len() < SHORTEST_TOKEN => {
            Err(format!("at least {SHORTEST_TOKEN} characters are needed"))
        }
        text => Ok(Some(LocalToken(text.to_owned()))),
    };
    let remote_token = raw.take("remote.token", wrong, token);
    let certificate = raw.take("remote.tls_certificate", wrong, file);
    let key = raw.take("remote.tls_key", wrong, file);
    let remote_tls = match (certificate.flatten(), key.flatten()) {
        (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
        (None, None) => None,
        (certificate, _) => {
            let (given, missing) = match certificate {
                Some(_) => ("remote.tls_certificate", "remote.tls_key"),
                None => ("remote.tls_key", "remote.tls_certificate"),
            };
            let problem = format!("`{given}` needs `{missing}` too");
            wrong.push(ConfigError { origin: raw.origin(given), problem });
            None
        }
    };
    let has_token = remote_token.as_ref().is_some_and(Option::is_some);
    for (key, listen, is_guarded) in [
        ("http.listen", http_listen, has_token),
        ("grpc.listen", grpc_listen.flatten(), has_token),
        ("remote.listen", remote_listen.flatten(), has_token || remote_tls.is_some()),
        ("metrics.listen", metrics_listen, has_token),
    ] {
        if let (Some(listen), Some(false)) = (listen, allow_remote)
            && !listen.ip().is_loopback()
            && !is_guarded
        {
            let problem = format!(
                "`{key}` is `{listen}`, which others can reach without any authentication; use `remote.listen` with \
                 TLS or a `remote.token`, or write `http.allow_remote = true` if that is meant"
            );
            wrong.push(ConfigError { origin: raw.origin(key), problem });
        }
    }
    let socket = raw.take("serving.socket", wrong, file);
    let socket_mode = raw.take("serving.socket_mode", wrong, |text| {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.ok_or_else(|| "which are no rights in octal; write them as `0660`".to_owned())
    });
    let shared_memory = raw.take("serving.shared_memory", wrong, truth);
    let host_names = raw.take("http.host_names", wrong, |text| {
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let names: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        match names.iter().find(|name| !name.chars().all(ok)) {
            None => Ok(names),
            Some(name) => Err(format!("but `{name}` is no host name; leave scheme and port away")),
        }
    });
    let local_token = raw.take("http.local_token", wrong, token);
    let body_limit = raw.take("http.body_limit", wrong, |text| bytes_within(text, 1024, 1 << 30));
    let threads = raw.take("serving.threads", wrong, |text| number_within(text, 0, 1024));
    let queue = raw.take("serving.queue", wrong, |text| number_within(text, 1, 100_000));
    let batch = raw.take("serving.batch", wrong, |text| number_within(text, 1, 4096));
    let batch_delay = raw.take("serving.batch_delay", wrong, |text| {
        duration_within(text, Duration::ZERO, Duration::from_secs(1))
    });
    let patience = |text: &str| duration_within(text, Duration::from_secs(1), Duration::from_secs(86_400));
    let write_timeout = raw.take("serving.write_timeout", wrong, patience);
    let idle_timeout = raw.take("serving.idle_timeout", wrong, patience);
    let cache = raw.take("serving.cache", wrong, |text| bytes_within(text, 0, 1 << 34));
    let triton_metrics = raw.take("metrics.triton_names", wrong, truth);
    let probe_memory_headroom =
        raw.take("probe.memory_headroom", wrong, |text| bytes_within(text, 1 << 20, 1 << 40));
    let probe_runner =
        raw.take("probe.runner", wrong, |text| Ok(text.split_whitespace().map(str::to_owned).collect()));
    let probe_timeout = raw.take("probe.timeout", wrong, |text| {
        duration_within(text, Duration::from_secs(1), Duration::from_secs(3600))
    });
    let engine_onnxruntime = raw.take("engine.onnxruntime", wrong, |text| match text {
        "" => Ok(None),
        text if text.starts_with('/') => Ok(Some(PathBuf::from(text))),
        _ => Err("which is no absolute path".into()),
    });
    let engine_threads = raw.take("engine.threads", wrong, |text| number_within(text, 0, 1024));
    let engine_prefer = raw.take("engine.prefer", wrong, patterns);
    let engine_forbid = raw.take("engine.forbid", wrong, patterns);
    let engine_pin = raw.take("engine.pin", wrong, patterns);
    let outbox_records = raw.take("outbox.records", wrong, |text| number_within(text, 10, 10_000_000));
    let outbox_bytes = raw.take("outbox.bytes", wrong, |text| bytes_within(text, 1 << 20, 1 << 34));
    let captures_bytes = raw.take("captures.bytes", wrong, |text| bytes_within(text, 0, 1 << 36));
    let link_metered = raw.take("link.metered", wrong, truth);
    let log_level = raw.take("log.level", wrong, |text| {
        text.parse::<tracing_subscriber::filter::Targets>()
            .map(|_| text.to_owned())
            .map_err(|_| "which is no log filter; write `info` or `warn,edgefleet_agent=debug`".to_owned())
    });
    let log_format = raw.take("log.format", wrong, |text| match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("which is neither `text` nor `json`".into()),
    });
    Some(Config {
        data: data?,
        hardware: hardware?,
        http_listen: http_listen?,
        grpc_listen: grpc_listen?,
        grpc_is_chosen: raw.origin("grpc.listen") != Origin::Default,
        remote_listen: remote_listen?,
        remote_tls,
        remote_token: remote_token?,
        socket: socket?,
        socket_mode: socket_mode?,
        shared_memory: shared_memory?,
        metrics_listen: metrics_listen?,
        allow_remote: allow_remote?,
        host_names: host_names?,
        local_token: local_token?,
        body_limit: usize::try_from(body_limit?).ok()?,
        threads: threads?,
        queue: queue?,
        batch: batch?,
        batch_delay: batch_delay?,
        write_timeout: write_timeout?,
        idle_timeout: idle_timeout?,
        cache: cache?,
        triton_metrics: triton_metrics?,
        probe_memory_headroom: probe_memory_headroom?,
        probe_timeout: probe_timeout?,
        probe_runner: probe_runner?,
        engine_onnxruntime: engine_onnxruntime?,
        engine_policy: Policy {
            prefer: engine_prefer?,
            forbid: engine_forbid?,
            pin: engine_pin?,
            threads: match engine_threads? {
                0 => std::thread::available_parallelism().map_or(1, usize::from),
                threads => threads,
            },
            rows: batch?,
        },
        outbox_records: outbox_records?,
        outbox_bytes: outbox_bytes?,
        captures_bytes: captures_bytes?,
        link_metered: link_metered?,
        bindings: raw.1.clone(),
        log_level: log_level?,
        log_format: log_format?,
    })
}

pub(crate) fn number_within(text: &str, least: usize, most: usize) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "which is no whole number".to_owned())?;
    match (least..=most).contains(&number) {
        true => Ok(number),
        false => Err(format!("{least} to {most} are allowed")),
    }
}

/// `onnxruntime tract/f32`.
fn patterns(text: &str) -> Result<Vec<Pattern>, String> {
    text.split_whitespace()
        .map(|one| one.parse::<Pattern>().map_err(|reason| format!("but {reason}")))
        .collect()
}

/// `64MiB`, `500kB`, `1GiB`, `100B`.
pub(crate) fn bytes_within(text: &str, least: u64, most: u64) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "which is no size; write it as `64MiB`".to_owned())?;
    let factor = match unit.trim() {
        "" => return Err(format!("which has no unit; write `{number}B`, `{number}KiB` or `{number}MiB`")),
        unit => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor),
    };
    let factor = factor.ok_or("which has no known unit; use B, KiB, MiB, GiB, kB, MB or GB")?;
    match number.checked_mul(factor) {
        Some(bytes) if (least..=most).contains(&bytes) => Ok(bytes),
        _ => Err(format!("{least}B to {most}B are allowed")),
    }
}

/// `90s`, `5m`, `1h 30m`.
pub(crate) fn duration_within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    if text.parse::<u64>().is_ok() {
        return Err(format!("which has no unit; write `{text}s` or `{text}m`"));
    }
    let duration = humantime::parse_duration(text)
        .map_err(|_| "which is no time span; write it as `90s` or `5m`".to_owned())?;
    match (least..=most).contains(&duration) {
        true => Ok(duration),
        false => Err(format!(
            "{} to {} are allowed",
            humantime::format_duration(least),
            humantime::format_duration(most)
        )),
    }
}

/// The file to read when none is named: `/etc/edgefleet-agent.toml`, if it is there.
pub fn default_file() -> Option<PathBuf> {
    let path = PathBuf::from("/etc/edgefleet-agent.toml");
    fs::exists(&path).unwrap_or(false).then_some(path)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
