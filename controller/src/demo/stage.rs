//! Everything on stage: the controller, the agents, the load, and how to ask them.

use super::{
    DemoError,
    load::{Holdout, Load, Source, Trial},
    processes::Process,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(200);
/// One image per agent in this time: a steady load that leaves a two-core machine room to answer. More agents
/// than [`PROMPT`] share it.
const PAUSE: Duration = Duration::from_millis(25);
/// Agents that two cores answer for at this pace.
const PROMPT: usize = 8;

pub struct Agent {
    pub id: String,
    pub name: String,
    pub process: Process,
    pub base: String,
    pub load: Option<Load>,
}

pub struct Stage {
    /// This program.
    pub exe: PathBuf,
    pub agent_bin: PathBuf,
    pub dir: PathBuf,
    pub serve: Process,
    /// `https://host:port`
    pub url: String,
    pub mqtt: String,
    pub token: String,
    pub agents: Vec<Agent>,
    pub trial: Trial,
    client: reqwest::Client,
}

impl Stage {
    pub fn controller_dir(&self) -> PathBuf {
        self.dir.join("controller")
    }

    /// Starts `edgefleet serve` on a fresh folder below `dir` and waits until it is ready.
    pub async fn open(exe: PathBuf, agent_bin: PathBuf, dir: PathBuf) -> Result<Self, DemoError> {
        let controller = dir.join("controller");
        let (mut serve, addresses) =
            start_controller(&exe, &agent_bin, &dir, "127.0.0.1:0", "127.0.0.1:0").await?;
        let read = |file: &str| {
            let path = controller.join(file);
            std::fs::read(&path).map_err(|source| DemoError::Write { path, source })
        };
        let token = String::from_utf8_lossy(&read("admin-token")?).trim().to_owned();
        let ca = read("ca/ca.pem")?;
        let failed = |action: &str| {
            let action = action.to_owned();
            move |source| DemoError::Ask { action, source }
        };
        let ca = reqwest::Certificate::from_pem(&ca).map_err(failed("read its CA"))?;
        let client = reqwest::Client::builder()
            .tls_certs_only([ca])
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()
            .map_err(failed("make a client"))?;
        let https = text(&addresses["https"]);
        if https.is_empty() {
            serve.kill();
            return Err(DemoError::Silent { name: "edgefleet serve".into(), log: serve.log_tail() });
        }
        Ok(Self {
            url: format!("https://{https}"),
            mqtt: text(&addresses["mqtt"]),
            exe,
            agent_bin,
            dir,
            serve,
            token,
            agents: vec![],
            trial: Trial::default(),
            client,
        })
    }

    /// Starts the controller again on the addresses it had: devices come back by themselves.
    pub async fn reopen(&mut self) -> Result<(), DemoError> {
        let https = self.url.trim_start_matches("https://").to_owned();
        let (serve, _) = start_controller(&self.exe, &self.agent_bin, &self.dir, &https, &self.mqtt).await?;
        self.serve = serve;
        Ok(())
    }

    /// Runs `edgefleet ARGS --output json` against this controller, as a person would.
    ///
    /// Returns the exit's success, the JSON of standard output (null if none) and standard error.
    pub async fn try_command(&self, args: &[&str]) -> Result<(bool, Value, String), DemoError> {
        let output = tokio::process::Command::new(&self.exe)
            .args(args)
            .args(["--output", "json"])
            .env("EDGEFLEET_SERVER", &self.url)
            .env("EDGEFLEET_TOKEN", &self.token)
            .env("EDGEFLEET_CA", self.controller_dir().join("ca/ca.pem"))
            .env("EDGEFLEET_AGENT_BIN", &self.agent_bin)
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|source| DemoError::Start { program: self.exe.clone(), source })?;
        let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Ok((output.status.success(), json, errors))
    }

    /// As [`Self::try_command`], but failing is an error.
    pub async fn command(&self, args: &[&str]) -> Result<Value, DemoError> {
        match self.try_command(args).await? {
            (true, json, _) => Ok(json),
            (false, _, output) => Err(DemoError::Command { command: args.join(" "), output }),
        }
    }

    /// Asks for something that is not JSON.
    ///
    /// # Errors
    /// [`DemoError::Ask`].
    pub async fn get_text(&self, path: &str) -> Result<String, DemoError> {
        let failed = |source| DemoError::Ask { action: format!("GET {path}"), source };
        self.ask(path).await?.text().await.map_err(failed)
    }

    /// # Errors
    /// [`DemoError::Ask`].
    pub async fn get(&self, path: &str) -> Result<Value, DemoError> {
        let failed = |source| DemoError::Ask { action: format!("GET {path}"), source };
        self.ask(path).await?.json().await.map_err(failed)
    }

    async fn ask(&self, path: &str) -> Result<reqwest::Response, DemoError> {
        let failed = |source| DemoError::Ask { action: format!("GET {path}"), source };
        self.client
            .get(format!("{}{path}", self.url))
            .bearer_auth(&self.token)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map_err(failed)
    }

    /// Enrols and starts one more agent.
    pub async fn add_agent(&mut self, number: usize, code: &str) -> Result<(), DemoError> {
        let name = format!("demo-{number:02}");
        let data = self.dir.join("agents").join(&name);
        std::fs::create_dir_all(&data).map_err(|source| DemoError::Write { path: data.clone(), source })?;
        let log = self.dir.join("logs").join(format!("{name}.log"));
        let data_text = data.to_string_lossy().into_owned();
        let output = tokio::process::Command::new(&self.agent_bin)
            .args(["enroll", code, "--data", &data_text, "--name", &name])
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|source| DemoError::Start { program: self.agent_bin.clone(), source })?;
        if !output.status.success() {
            let command = "enroll".to_owned();
            return Err(DemoError::Command {
                command,
                output: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        let args: Vec<OsString> = ["run", "--data", &data_text].map(OsString::from).into();
        let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
        let env = [
            ("EDGEFLEET_AGENT_HTTP_LISTEN", "127.0.0.1:0"),
            ("EDGEFLEET_AGENT_GRPC_LISTEN", "127.0.0.1:0"),
            ("EDGEFLEET_AGENT_METRICS_LISTEN", "127.0.0.1:0"),
        ];
        let mut process = Process::start(&name, &self.agent_bin, &args, &env, &log)?;
        let addresses = process.addresses(&data.join("run/addresses.json")).await?;
        let base = format!("http://{}", text(&addresses["http"]));
        let id = text(&addresses["device"]);
        self.agents.push(Agent { id, name, process, base, load: None });
        Ok(())
    }

    /// Deals the images to the devices and starts to send them.
    pub fn start_load(&mut self, holdout: &Arc<Holdout>) {
        let devices = self.agents.len().max(1);
        for (number, agent) in self.agents.iter_mut().enumerate() {
            agent.load = Some(Load::start(Source {
                base: agent.base.clone(),
                model: "digits",
                holdout: holdout.clone(),
                images: (number..holdout.images.len()).step_by(devices).collect(),
                pause: PAUSE * pace(devices),
                trial: self.trial.clone(),
            }));
        }
    }

    /// Requests that `bundle` answered, over all devices, as the load saw it.
    pub fn answered(&self, bundle: &str) -> u64 {
        let loads = self.agents.iter().filter_map(|agent| agent.load.as_ref());
        loads.map(|load| load.seen.lock().by_bundle.get(bundle).map_or(0, |own| own.requests)).sum()
    }

    /// Distinct images whose label was compared with what `candidate` said in the shadow.
    pub fn compared(&self, candidate: &str) -> u64 {
        let loads = self.agents.iter().filter_map(|agent| agent.load.as_ref());
        loads.map(|load| load.seen.lock().compared.get(candidate).copied().unwrap_or(0)).sum()
    }

    /// Asks every device for what it has counted so far. One that is away says it later by itself.
    pub async fn ask_for_counts(&self) {
        let asked = self.agents.iter().map(|agent| async move {
            let path = format!("/api/v1/devices/{}/commands", agent.id);
            let _ = self.post(&path, &self.token, &json!({"action": {"kind": "report"}})).await;
        });
        futures::future::join_all(asked).await;
    }

    /// Sends a document as the owner of `token`. Returns whether it was taken, and the answer.
    ///
    /// # Errors
    /// [`DemoError::Ask`] if there was no answer.
    pub async fn post(
        &self,
        path: &str,
        token: &str,
        body: &impl Serialize,
    ) -> Result<(bool, Value), DemoError> {
        let failed = |source| DemoError::Ask { action: format!("POST {path}"), source };
        let sent = self.client.post(format!("{}{path}", self.url)).bearer_auth(token).json(body);
        let answer = sent.send().await.map_err(failed)?;
        let taken = answer.status().is_success();
        Ok((taken, answer.json().await.map_err(failed)?))
    }

    /// As [`Self::get`], read as what it is.
    ///
    /// # Errors
    /// [`DemoError::Ask`].
    pub async fn get_as<T: DeserializeOwned>(&self, path: &str) -> Result<T, DemoError> {
        let failed = |source| DemoError::Ask { action: format!("GET {path}"), source };
        self.ask(path).await?.json().await.map_err(failed)
    }

    /// Waits until `done` says so, with `tick` called in between.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        seconds: u64,
        mut tick: impl AsyncFnMut(&Self),
        mut done: impl AsyncFnMut(&Self) -> Result<Result<T, String>, DemoError>,
    ) -> Result<T, DemoError> {
        let started = Instant::now();
        loop {
            let state = match done(self).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(state)) => state,
                // A controller that is just starting again does not answer: that is a state too.
                Err(error @ DemoError::Ask { .. }) => error.to_string(),
                Err(error) => return Err(error),
            };
            if started.elapsed() > Duration::from_secs(seconds) {
                return Err(DemoError::Waited { what: what.to_owned(), seconds, state });
            }
            tick(self).await;
            tokio::time::sleep(POLL).await;
        }
    }
}

/// How many times slower each of so many agents is asked than each of a few.
pub(super) fn pace(devices: usize) -> u32 {
    u32::try_from(devices.div_ceil(PROMPT)).unwrap_or(u32::MAX).max(1)
}

async fn start_controller(
    exe: &Path,
    agent_bin: &Path,
    dir: &Path,
    https: &str,
    mqtt: &str,
) -> Result<(Process, Value), DemoError> {
    let controller = dir.join("controller");
    let args: Vec<OsString> = vec![
        "serve".into(),
        "--data".into(),
        controller.clone().into(),
        "--https".into(),
        https.into(),
        "--mqtt".into(),
        mqtt.into(),
        "--agent-bin".into(),
        agent_bin.into(),
    ];
    let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
    let log = dir.join("logs/controller.log");
    let mut serve = Process::start("edgefleet serve", exe, &args, &[], &log)?;
    let addresses = serve.addresses(&controller.join("run/addresses.json")).await?;
    Ok((serve, addresses))
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
