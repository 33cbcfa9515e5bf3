//! A controller and its devices, all of them processes.

use super::{
    load::{KeepAlive, Oracle},
    program::{Program, agent_bin, controller_bin},
    source::Source,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const POLL: Duration = Duration::from_millis(20);
/// For anything that should just happen; a debug build on two busy cores takes its time.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `done` gives a value; the text it gives instead is what the error says.
///
/// # Errors
/// After 90 s, or if `done` fails.
pub async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Result<Result<T, String>>) -> Result<T> {
    let started = Instant::now();
    loop {
        let state = match done().await? {
            Ok(value) => return Ok(value),
            Err(state) => state,
        };
        ensure!(started.elapsed() < PATIENCE, "waited {} s for {what}: {state}", PATIENCE.as_secs());
        tokio::time::sleep(POLL).await;
    }
}

/// A controller with its folder. The folder stays if the test panics, or where EDGEFLEET_TEST_KEEP is set.
pub struct Stage {
    dir: Option<TempDir>,
    serve: Option<Program>,
    client: reqwest::Client,
    /// Where it was first; it comes back there.
    pub https: String,
    pub mqtt: String,
    token: String,
    /// The key that signs what [`Stage::publish`] pushes.
    pub publisher: PathBuf,
}

impl Stage {
    /// A fresh controller that made all keys itself.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn open() -> Result<Self> {
        Self::open_in(tempfile::tempdir()?).await
    }

    /// As [`Stage::open`]; `DIR/controller` may have been prepared.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn open_in(dir: TempDir) -> Result<Self> {
        // Whoever asks for a provider gets the only one there is.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut stage = Self {
            publisher: dir.path().join("controller/keys/publisher.pk8"),
            dir: Some(dir),
            serve: None,
            client: reqwest::Client::new(),
            https: "127.0.0.1:0".into(),
            mqtt: "127.0.0.1:0".into(),
            token: String::new(),
        };
        stage.start().await?;
        let ca = reqwest::Certificate::from_pem(&fs::read(stage.data().join("ca/ca.pem"))?)?;
        stage.client = reqwest::Client::builder()
            .tls_certs_only([ca])
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .build()?;
        stage.token = fs::read_to_string(stage.data().join("admin-token"))?.trim().to_owned();
        Ok(stage)
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("."), TempDir::path)
    }

    /// Everything the controller keeps.
    pub fn data(&self) -> PathBuf {
        self.dir().join("controller")
    }

    /// Starts the controller, at its former addresses if it had any.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(&mut self) -> Result<()> {
        let (data, agent) = (self.data(), agent_bin()?);
        let (data_text, agent) = (data.to_string_lossy(), agent.to_string_lossy());
        let args = [
            "serve",
            "--data",
            &data_text,
            "--https",
            &self.https,
            "--mqtt",
            &self.mqtt,
            "--agent-bin",
            &agent,
            "--limits",
            "none",
        ];
        let mut serve = Program::start(&controller_bin()?, &args, &[], &self.dir().join("controller.log"))?;
        let addresses = serve.addresses(&data.join("run/addresses.json")).await?;
        let text = |key: &str| addresses[key].as_str().map(str::to_owned).context("no address");
        (self.https, self.mqtt) = (text("https")?, text("mqtt")?);
        self.serve = Some(serve);
        Ok(())
    }

    /// Stops the controller in good order.
    ///
    /// # Errors
    /// If it does not stop.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut serve) = self.serve.take() {
            let status = serve.stop().await?;
            ensure!(status.success(), "the controller ended with {status}:\n{}", serve.log_tail());
        }
        Ok(())
    }

    /// Runs `edgefleet ARGS` against this controller: success, standard output, standard error.
    ///
    /// # Errors
    /// If it cannot be run.
    pub async fn run(&self, args: &[&str]) -> Result<(bool, String, String)> {
        let output = tokio::process::Command::new(controller_bin()?)
            .args(args)
            .env("EDGEFLEET_SERVER", format!("https://{}", self.https))
            .env("EDGEFLEET_TOKEN", &self.token)
            .env("EDGEFLEET_CA", self.data().join("ca/ca.pem"))
            .env("EDGEFLEET_AGENT_BIN", agent_bin()?)
            .stdin(Stdio::null())
            .output()
            .await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
    }

    /// As [`Stage::run`]; gives standard output.
    ///
    /// # Errors
    /// If the command fails.
    pub async fn command(&self, args: &[&str]) -> Result<String> {
        match self.run(args).await? {
            (true, out, _) => Ok(out),
            (false, out, err) => bail!("edgefleet {}: {out}\n{err}", args.join(" ")),
        }
    }

    /// # Errors
    /// If the controller does not answer with success.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(reqwest::Method::GET, path, None).await
    }

    /// # Errors
    /// If the controller does not answer with success.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(reqwest::Method::POST, path, Some(body)).await
    }

    /// # Errors
    /// If the controller does not answer with success; with its words.
    pub async fn call(&self, method: reqwest::Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let url = format!("https://{}{path}", self.https);
        let mut request = self.client.request(method, &url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.with_context(|| url.clone())?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{url}: {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// Builds, signs and pushes a source as `digits@COUNTER`; gives the bundle's folder.
    ///
    /// # Errors
    /// If a step fails.
    pub async fn publish(&self, source: Source, counter: u64) -> Result<PathBuf> {
        let source = source.write(&self.dir().join(format!("sources/{counter}")), counter)?;
        let built = self.dir().join(format!("bundles/{counter}"));
        let (source, out) = (source.to_string_lossy(), built.to_string_lossy());
        self.command(&["model", "build", &source, "--out", &out, "--no-probe"]).await?;
        self.command(&["model", "sign", &out, "--key", &self.publisher.to_string_lossy()]).await?;
        self.command(&["model", "push", &out]).await?;
        Ok(built)
    }

    /// Gives `digits@COUNTER` to everybody, replacing what is under way; gives the rollout's id.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn assign(&self, counter: u64, probation_secs: u64) -> Result<String> {
        self.assign_to("", counter, probation_secs).await
    }

    /// As [`Stage::assign`], to those that `selector` selects; `unit=NAME` is the device enrolled as NAME.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn assign_to(&self, selector: &str, counter: u64, probation_secs: u64) -> Result<String> {
        let body = crate::plans::assign(&format!("digits@{counter}"), selector, probation_secs);
        let started = self.post("/api/v1/rollouts", &body).await?;
        Ok(started["id"].as_str().context("a rollout without id")?.to_owned())
    }

    /// Waits until `device` committed to its attempt in `rollout`.
    ///
    /// # Errors
    /// If it fails or does not end.
    pub async fn committed(&self, rollout: &str, device: &Device) -> Result<()> {
        let attempt = self.attempt_ended(rollout, device).await?;
        ensure!(attempt["state"] == "committed", "{attempt}");
        Ok(())
    }

    /// Waits for the end of the device's attempt, whatever it is.
    ///
    /// # Errors
    /// If it does not end.
    pub async fn attempt_ended(&self, rollout: &str, device: &Device) -> Result<Value> {
        until(&format!("the end of {rollout}"), async || {
            let all = self.get(&format!("/api/v1/rollouts/{rollout}/attempts")).await?;
            let own = all["items"].as_array().into_iter().flatten().find(|a| a["device"] == *device.id);
            let own = own.cloned().unwrap_or_default();
            if !crate::plans::has_ended(&own) {
                let shown = self.get(&format!("/api/v1/devices/{}", device.id)).await?;
                return Ok(Err(shown.to_string()));
            }
            Ok(Ok(own))
        })
        .await
    }

    /// What the controller shows of a device.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn device(&self, device: &Device) -> Result<Value> {
        self.get(&format!("/api/v1/devices/{}", device.id)).await
    }

    /// What the controller counted of a device.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn telemetry(&self, device: &Device) -> Result<Value> {
        self.get(&format!("/api/v1/devices/{}/telemetry", device.id)).await
    }

    /// Enrols one more device, labelled `unit=NAME`; its agent is not started yet.
    ///
    /// # Errors
    /// If it is not let in.
    pub async fn enrol(&self, name: &str) -> Result<Device> {
        let unit = format!("unit={name}");
        let invite = self.command(&["device", "invite", "--labels", &unit, "--output", "json"]).await?;
        let invite: Value = serde_json::from_str(&invite)?;
        let code = invite["code"].as_str().with_context(|| format!("no code in {invite}"))?;
        let data = self.dir().join("agents").join(name);
        fs::create_dir_all(&data)?;
        let data_text = data.to_string_lossy();
        let output = tokio::process::Command::new(agent_bin()?)
            .args(["enroll", code, "--data", &data_text, "--name", name])
            .stdin(Stdio::null())
            .output()
            .await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Device { id, data, program: agent_bin()?, agent: None, http: String::new(), queue: 64 })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let keep = std::thread::panicking() || std::env::var_os("EDGEFLEET_TEST_KEEP").is_some();
        if keep && let Some(dir) = self.dir.take() {
            eprintln!("the stage stays in `{}`", dir.keep().display());
        }
    }
}

/// An enrolled device.
pub struct Device {
    pub id: String,
    pub data: PathBuf,
    /// Which agent program it runs.
    pub program: PathBuf,
    pub agent: Option<Program>,
    /// Where the running agent answers.
    pub http: String,
    /// Requests that may wait.
    pub queue: usize,
}

impl Device {
    /// Sends its MQTT session elsewhere: to a relay.
    ///
    /// # Errors
    /// If the identity cannot be read or written.
    pub fn connect_to(&self, mqtt: std::net::SocketAddr) -> Result<()> {
        let path = self.data.join("identity/controller.json");
        let mut file: Value = serde_json::from_slice(&fs::read(&path)?)?;
        file["mqtt_host"] = json!(mqtt.ip().to_string());
        file["mqtt_port"] = json!(mqtt.port());
        Ok(fs::write(&path, serde_json::to_vec(&file)?)?)
    }

    /// # Errors
    /// If the agent does not start.
    pub async fn start(&mut self) -> Result<()> {
        self.start_with(&[]).await
    }

    /// # Errors
    /// If the agent does not start.
    pub async fn start_with(&mut self, env: &[(&str, String)]) -> Result<()> {
        let mut agent = self.spawn(env)?;
        let addresses = agent.addresses(&self.data.join("run/addresses.json")).await?;
        self.http = addresses["http"].as_str().context("no address")?.to_owned();
        self.agent = Some(agent);
        Ok(())
    }

    /// Starts the agent without waiting for it to listen.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn spawn(&self, env: &[(&str, String)]) -> Result<Program> {
        let loopback = "127.0.0.1:0".to_owned();
        let mut all = vec![
            ("EDGEFLEET_AGENT_HTTP_LISTEN", loopback.clone()),
            ("EDGEFLEET_AGENT_GRPC_LISTEN", loopback.clone()),
            ("EDGEFLEET_AGENT_METRICS_LISTEN", loopback),
            ("EDGEFLEET_AGENT_SERVING_QUEUE", self.queue.to_string()),
        ];
        all.extend_from_slice(env);
        let data = self.data.to_string_lossy();
        Program::start(&self.program, &["run", "--data", &data], &all, &self.data.with_extension("log"))
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill();
        }
    }

    /// SIGTERM.
    ///
    /// # Errors
    /// If it does not stop in good order.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            let status = agent.stop().await?;
            ensure!(status.success(), "the agent ended with {status}:\n{}", agent.log_tail());
        }
        Ok(())
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// If the agent does not answer.
    pub async fn status(&self) -> Result<Value> {
        let mut connection = KeepAlive::connect(&self.http).await?;
        let (status, body) = connection.ask("GET", "/v1/status", b"").await?;
        ensure!(status == 200, "status {status}");
        Ok(serde_json::from_slice(&body)?)
    }

    /// Asks every question of `oracle` once; gives the bundles that answered, each once, the last at the
    /// end: an update may come to its switch in between.
    ///
    /// # Errors
    /// If an answer is missing or wrong.
    pub async fn answering(&self, oracle: &Oracle) -> Result<Vec<String>> {
        let mut connection = KeepAlive::connect(&self.http).await?;
        let mut bundles = Vec::new();
        for n in 0..oracle.questions() {
            let answer = oracle.ask(&mut connection, n).await?;
            bundles.retain(|known| *known != answer.bundle);
            bundles.push(answer.bundle);
        }
        Ok(bundles)
    }

    /// The one bundle that answers every question of `oracle`.
    ///
    /// # Errors
    /// If an answer is missing or wrong, or two bundles answered.
    pub async fn examine(&self, oracle: &Oracle) -> Result<String> {
        let mut bundles = self.answering(oracle).await?;
        ensure!(bundles.len() == 1, "{bundles:?} answered");
        bundles.pop().context("an oracle without questions")
    }
}
