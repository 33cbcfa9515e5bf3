//! `edgefleet serve`, and the command line as a person on its machine uses it.

use crate::{
    api::Api,
    binaries,
    cli::{self, Done},
    place::Place,
    process::Process,
    waiting::{PATIENCE, until},
};
use anyhow::{Context, Result, ensure};
use edgefleet_shared::enroll::JoinCode;
use serde_json::Value;
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

/// Where it listens until it is told a port.
const ANY: &str = "127.0.0.1:0";
pub const PASSPHRASE: &str = "a passphrase that is long enough for a story";

/// A running controller; killed when dropped.
pub struct Controller<'p> {
    place: &'p Place,
    /// Its data folder.
    pub data: PathBuf,
    pub process: Process,
    /// `host:port`
    pub https: String,
    /// `host:port` of the broker
    pub mqtt: String,
    pub api: Api,
}

impl<'p> Controller<'p> {
    /// On a fresh folder, with the embedded broker, on free ports, without byte budgets.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(place: &'p Place) -> Result<Self> {
        Self::start_with(place, &place.join("controller"), ANY, ANY, &["--limits", "none"]).await
    }

    /// # Errors
    /// If it does not start.
    pub async fn start_with(
        place: &'p Place,
        data: &Path,
        https: &str,
        mqtt: &str,
        more: &[&str],
    ) -> Result<Self> {
        let mut process =
            Process::start(place, "controller", &mut Self::serve_command(data, https, mqtt, more)?)?;
        let addresses = process.addresses(&data.join("run/addresses.json")).await?;
        let text = |key: &str| addresses[key].as_str().unwrap_or_default().to_owned();
        let (https, mqtt) = (text("https"), text("mqtt"));
        let api = Api::open(data, &https)?;
        Ok(Self { place, data: data.to_owned(), process, https, mqtt, api })
    }

    /// `edgefleet serve` as it would be started here.
    ///
    /// # Errors
    /// If a program is not built.
    pub fn serve_command(data: &Path, https: &str, mqtt: &str, more: &[&str]) -> Result<Command> {
        let mut command = Command::new(binaries::edgefleet()?);
        command.arg("serve").arg("--data").arg(data).args(["--https", https, "--mqtt", mqtt]);
        command.arg("--agent-bin").arg(binaries::agent()?).args(more);
        Ok(command)
    }

    /// Starts it again on its folder and ports, after it was stopped or killed.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start_again(&mut self, more: &[&str]) -> Result<()> {
        let (data, https, mqtt) = (self.data.clone(), self.https.clone(), self.mqtt.clone());
        *self = Self::start_with(self.place, &data, &https, &mqtt, more).await?;
        Ok(())
    }

    /// `edgefleet ARGS --data DIR --output json`, whatever comes of it.
    ///
    /// # Errors
    /// If it cannot be run.
    pub async fn attempt(&self, args: &[&str]) -> Result<Done> {
        let data = self.data.to_string_lossy();
        let args = args.iter().copied().chain(["--data", &data, "--output", "json"]);
        let agent = binaries::agent()?;
        let env = [
            ("EDGEFLEET_AGENT_BIN", agent.as_os_str()),
            ("EDGEFLEET_BACKUP_PASSPHRASE", OsStr::new(PASSPHRASE)),
        ];
        cli::run(&binaries::edgefleet()?, args, &env).await
    }

    /// The same, expected to succeed; its answer.
    ///
    /// # Errors
    /// If it fails.
    pub async fn run(&self, args: &[&str]) -> Result<Value> {
        let done = self.attempt(args).await?.ok().with_context(|| format!("edgefleet {}", args.join(" ")))?;
        done.json()
    }

    /// The same for people: the text of standard output.
    ///
    /// # Errors
    /// If it fails.
    pub async fn table(&self, args: &[&str]) -> Result<String> {
        let data = self.data.to_string_lossy();
        let args: Vec<_> = args.iter().copied().chain(["--data", &data]).collect();
        let done = cli::run(&binaries::edgefleet()?, &args, &[]).await?;
        Ok(done.ok().with_context(|| format!("edgefleet {}", args.join(" ")))?.out)
    }

    /// A join code for `uses` devices of `site=lab`.
    ///
    /// # Errors
    /// If there is none.
    pub async fn invite(&self, uses: u32) -> Result<String> {
        let uses = uses.to_string();
        let made = self.run(&["device", "invite", "--labels", "site=lab", "--uses", &uses]).await?;
        let code = made["code"].as_str().context("no code")?;
        code.parse::<JoinCode>()?;
        Ok(code.to_owned())
    }

    /// Assigns to everybody in the lab with the least probation; the rollout's id.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn assign(&self, bundle: &str) -> Result<String> {
        let args = ["assign", bundle, "--select", "site=lab", "--probation", "1s", "--yes"];
        let started = self.run(&args).await?;
        Ok(started["id"].as_str().context("no rollout id")?.to_owned())
    }

    /// Waits until every attempt of a rollout has ended; the attempts.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn ended(&self, rollout: &str) -> Result<Vec<Value>> {
        let path = format!("/api/v1/rollouts/{rollout}/attempts");
        until(&format!("the end of rollout {rollout}"), PATIENCE, async || {
            let found = self.api.get(&path).await?;
            let all = found["items"].as_array().context("no attempts")?.clone();
            ensure!(!all.is_empty() && all.iter().all(crate::plans::has_ended), "{found}");
            Ok(all)
        })
        .await
    }

    /// Assigns and waits until all have committed and the rollout is over: the next one may begin.
    ///
    /// # Errors
    /// If one does not.
    pub async fn assign_and_commit(&self, bundle: &str) -> Result<()> {
        let rollout = self.assign(bundle).await?;
        let attempts = self.ended(&rollout).await?;
        ensure!(attempts.iter().all(|one| one["state"] == "committed"), "{bundle}: {attempts:?}");
        until(&format!("the completion of rollout {rollout}"), PATIENCE, async || {
            let found = self.api.get(&format!("/api/v1/rollouts/{rollout}")).await?;
            ensure!(found["state"] == "completed", "{found}");
            Ok(())
        })
        .await
    }

    /// `device show`.
    ///
    /// # Errors
    /// If it is unknown.
    pub async fn device(&self, id: &str) -> Result<Value> {
        self.api.get(&format!("/api/v1/devices/{id}")).await
    }

    /// Waits until it is seen to be on- or offline.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn sees(&self, id: &str, online: bool) -> Result<()> {
        until(&format!("{id} to be online={online}"), PATIENCE, async || {
            let device = self.device(id).await?;
            ensure!(device["online"] == online, "it is {}: {}", device["online"], device["presence"]);
            Ok(())
        })
        .await
    }
}
