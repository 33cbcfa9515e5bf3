//! What people and other programs are told: alerts that survive a killed controller, and exported files.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    controller::Controller,
    fleet::Fleet,
    inference::answers,
    place::Place,
    waiting::{PATIENCE, until},
};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// One request: its idempotency key and its body.
type Told = (String, Value);

/// Somebody who is told, and takes nothing until it is well.
#[derive(Clone, Default)]
struct Receiver {
    told: Arc<Mutex<Vec<Told>>>,
    well: Arc<AtomicBool>,
}

impl Receiver {
    async fn start() -> Result<(Self, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/alerts", listener.local_addr()?);
        let own = Self::default();
        let taking = own.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let taking = taking.clone();
                tokio::spawn(async move { taking.take(stream).await });
            }
        });
        Ok((own, url))
    }

    /// One request of one connection.
    async fn take(&self, stream: TcpStream) -> Result<()> {
        let mut stream = BufReader::new(stream);
        let (mut key, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            match line.split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("idempotency-key") => {
                    value.clone_into(&mut key)
                }
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse()?
                }
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        self.told.lock().expect("no panic").push((key, serde_json::from_slice(&body)?));
        let status =
            if self.well.load(Ordering::SeqCst) { "204 No Content" } else { "503 Service Unavailable" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).await?;
        Ok(())
    }

    fn of(&self, kind: &str) -> Vec<Told> {
        self.told.lock().expect("no panic").iter().filter(|(_, body)| body["kind"] == kind).cloned().collect()
    }
}

#[tokio::test]
async fn an_alert_outlives_a_killed_controller_and_telemetry_becomes_files() -> Result<()> {
    let place = Place::new()?;
    let (receiver, url) = Receiver::start().await?;
    let (secret, config) = (place.join("hook.secret"), place.join("serve.toml"));
    fs::write(&secret, "a secret of 20 bytes\n")?;
    fs::write(
        &config,
        format!(
            "limits = \"none\"\n[[alerts.webhook]]\nname = \"ops\"\nurl = {url:?}\nsecret_file = {:?}\n\
             kinds = [\"rollout.*\"]\n",
            secret.to_string_lossy()
        ),
    )?;
    let config = config.to_string_lossy().into_owned();
    let more = ["--config", config.as_str()];
    let data = place.join("controller");
    let controller = Controller::start_with(&place, &data, "127.0.0.1:0", "127.0.0.1:0", &more).await?;
    let mut fleet = Fleet::join(&place, controller, 1).await?;
    fleet.publish_first(&place).await?;

    // The rollout is over; whom that is told does not take it.
    until("a first try", PATIENCE, async || {
        ensure!(!receiver.of("rollout.finished").is_empty());
        Ok(())
    })
    .await?;
    until("the note of it", PATIENCE, async || {
        let waiting = fleet.controller.run(&["alert", "list", "--state", "pending"]).await?;
        ensure!(waiting[0]["last"]["status"] == 503, "{waiting}");
        Ok(())
    })
    .await?;
    let refused = fleet.controller.attempt(&["alert", "test"]).await?;
    ensure!(refused.code == Some(1) && refused.err.contains("did not arrive at ops"), "{refused:?}");
    fleet.controller.process.kill();
    receiver.well.store(true, Ordering::SeqCst);
    let before = receiver.of("rollout.finished").len();
    fleet.controller.start_again(&more).await?;
    until("the alert after the kill", PATIENCE, async || {
        ensure!(receiver.of("rollout.finished").len() > before);
        Ok(())
    })
    .await?;
    let told = receiver.of("rollout.finished");
    ensure!(told.iter().all(|(key, _)| *key == told[0].0), "one alert, one key: {told:?}");
    ensure!(told[0].1["subject"]["bundle"] == "digits@1", "{told:?}");
    until("its end", PATIENCE, async || {
        let over = fleet.controller.run(&["alert", "list", "--state", "delivered"]).await?;
        ensure!(over[0]["event"]["kind"] == "rollout.finished", "{over}");
        Ok(())
    })
    .await?;
    let tested = fleet.controller.run(&["alert", "test", "--channel", "ops"]).await?;
    ensure!(tested[0]["outcome"]["status"] == 204, "{tested}");

    // What the device counted, as files.
    let agent = &fleet.agents[0];
    fleet.controller.sees(&agent.id, true).await?;
    answers(&agent.base, "digits@1").await?;
    fleet.controller.run(&["device", "report", &agent.id]).await?;
    agent.all_acknowledged().await?;
    let lake = place.join("lake");
    let to = lake.to_string_lossy().into_owned();
    let args = ["export", "telemetry", "--to", to.as_str(), "--table", "telemetry", "--table", "classes"];
    let summary = until("its telemetry", PATIENCE, async || {
        let summary = fleet.controller.run(&args).await?;
        ensure!(summary["files"].as_array().is_some_and(|files| files.len() >= 2), "{summary}");
        Ok(summary)
    })
    .await?;
    let path = summary["files"][0]["path"].as_str().context("a path")?;
    ensure!(path.starts_with("table=telemetry/model=digits/date=") && lake.join(path).is_file(), "{path}");
    let parquet = fs::read(lake.join(path))?;
    ensure!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
    let again = fleet.controller.table(&args).await?;
    ensure!(again.contains("unchanged"), "{again}");
    ensure!(
        !fs::read_dir(&lake)?
            .any(|entry| entry.is_ok_and(|e| e.path().extension() == Some(OsStr::new("tmp"))))
    );
    fleet.stop().await?;
    place.end()
}
