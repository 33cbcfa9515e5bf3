//! `edgefleet-agent`: enrolled once, run and ended as often as a story wants.

use crate::{
    binaries,
    cli::{self, Done},
    place::Place,
    process::Process,
    waiting::{PATIENCE, until},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// One device. Its process is killed when this is dropped.
pub struct Agent<'p> {
    place: &'p Place,
    pub name: String,
    /// As the controller knows it.
    pub id: String,
    pub data: PathBuf,
    /// More environment for every process of this agent.
    pub env: Vec<(String, OsString)>,
    process: Option<Process>,
    /// `http://host:port` of the last start.
    pub base: String,
    pub metrics: String,
    /// `host:port`.
    pub grpc: String,
}

impl<'p> Agent<'p> {
    /// `edgefleet-agent enroll CODE`, whatever comes of it.
    ///
    /// # Errors
    /// If it cannot be run.
    pub async fn try_enroll(data: &Path, name: &str, code: &str, env: &[(String, OsString)]) -> Result<Done> {
        let args = ["enroll", code, "--name", name, "--data"].map(OsString::from);
        let env: Vec<_> = env.iter().map(|(key, value)| (key.as_str(), value.as_os_str())).collect();
        cli::run(&binaries::agent()?, args.into_iter().chain([data.into()]), &env).await
    }

    /// A device that has joined but does not run yet.
    ///
    /// # Errors
    /// If it is not let in.
    pub async fn enroll(place: &'p Place, name: &str, code: &str) -> Result<Self> {
        Self::enroll_with(place, name, code, vec![]).await
    }

    /// The same with more environment.
    ///
    /// # Errors
    /// If it is not let in.
    pub async fn enroll_with(
        place: &'p Place,
        name: &str,
        code: &str,
        env: Vec<(String, OsString)>,
    ) -> Result<Self> {
        let data = place.join(name);
        let done = Self::try_enroll(&data, name, code, &env).await?.ok()?;
        let id = done.out.trim().to_owned();
        ensure!(!id.is_empty(), "enrolment printed no device id");
        Ok(Self::at(place, name, id, data, env))
    }

    /// A device from a folder that is an identity already, such as a copy.
    pub fn at(place: &'p Place, name: &str, id: String, data: PathBuf, env: Vec<(String, OsString)>) -> Self {
        let name = name.to_owned();
        let (base, metrics, grpc) = Default::default();
        Self { place, name, id, data, env, process: None, base, metrics, grpc }
    }

    /// `edgefleet-agent run`; returns once it listens.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(&mut self) -> Result<()> {
        let mut command = Command::new(binaries::agent()?);
        command.arg("run").arg("--data").arg(&self.data);
        command.args(["--http-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
        command.env("EDGEFLEET_AGENT_GRPC_LISTEN", "127.0.0.1:0");
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        let mut process = Process::start(self.place, &self.name, &mut command)?;
        let addresses = process.addresses(&self.data.join("run/addresses.json")).await?;
        let url = |key: &str| format!("http://{}", addresses[key].as_str().unwrap_or_default());
        (self.base, self.metrics) = (url("http"), url("metrics"));
        self.grpc = addresses["grpc"].as_str().unwrap_or_default().to_owned();
        self.process = Some(process);
        Ok(())
    }

    /// # Errors
    /// If it does not run.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} was not started", self.name))
    }

    /// What its last process has printed.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// An orderly end.
    ///
    /// # Errors
    /// If it is none.
    pub async fn stop(&mut self) -> Result<()> {
        self.process()?.stop().await?;
        self.process = None;
        Ok(())
    }

    /// A power cut.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status(&self) -> Result<Value> {
        let response = reqwest::get(format!("{}/v1/status", self.base)).await?;
        Ok(response.error_for_status()?.json().await?)
    }

    /// Waits until its status is as `check` wants it.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn until(&self, what: &str, mut check: impl FnMut(&Value) -> bool) -> Result<Value> {
        until(&format!("{}: {what}", self.name), PATIENCE, async || {
            let status = self.status().await?;
            ensure!(check(&status), "{status}");
            Ok(status)
        })
        .await
    }

    /// The outbox is empty: the controller has acknowledged all there was.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn all_acknowledged(&self) -> Result<()> {
        let done = |status: &Value| status["outbox"]["records"] == 0 && status["records_waiting"] == 0;
        self.until("all telemetry acknowledged", done).await?;
        Ok(())
    }
}
