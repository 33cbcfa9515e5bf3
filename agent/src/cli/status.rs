//! `edgefleet-agent status`: asks the running agent over its own HTTP port.

use super::{ConfigArgs, Failure, Output};
use crate::{run::addresses::Addresses, store::files};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{fmt::Write, process::ExitCode, time::Duration};
use tokio::{net::TcpStream, time::timeout};

const PATIENCE: Duration = Duration::from_secs(10);
const MAX_BYTES: usize = 4 << 20;

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) async fn status(args: StatusArgs) -> Result<ExitCode, Failure> {
    let config = args.config.load(vec![])?;
    let path = Addresses::path(&config.data);
    let hint = format!("start it with `edgefleet-agent run --data {}`", config.data.display());
    let not_running = |e: anyhow::Error| {
        Failure::hinted(e.context(format!("no agent runs on `{}`", config.data.display())), hint.clone())
    };
    let bytes = files::read_bounded(&path, 1 << 16).map_err(|e| not_running(e.into()))?;
    let addresses: Addresses = serde_json::from_slice(&bytes).map_err(|e| not_running(e.into()))?;
    let text =
        timeout(PATIENCE, ask(&addresses)).await.map_err(|e| not_running(e.into()))?.map_err(not_running)?;
    match args.output {
        Output::Json => println!("{}", text.trim_end()),
        Output::Table => {
            let status: Value = serde_json::from_str(&text).map_err(|e| not_running(e.into()))?;
            print!("{}", table(&addresses, &status));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(addresses: &Addresses) -> anyhow::Result<String> {
    let tcp = TcpStream::connect(addresses.http).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get("/v1/status")
        .header(header::HOST, addresses.http.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let code = answer.status();
    let body =
        Limited::new(answer.into_body(), MAX_BYTES).collect().await.map_err(anyhow::Error::from_boxed)?;
    driver.abort();
    let text = String::from_utf8(body.to_bytes().to_vec())?;
    match code.is_success() {
        true => Ok(text),
        false => anyhow::bail!("it answered {code}: {}", text.trim()),
    }
}

fn table(addresses: &Addresses, status: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {value}"); // writing to memory cannot fail
    };
    let plain = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    line("device", addresses.device.to_string());
    line("agent", plain(&status["agent"]));
    line("http", addresses.http.to_string());
    line("uptime", format!("{} s", plain(&status["uptime_secs"])));
    let link = &status["link"];
    let connected = if link["connected"] == Value::Bool(true) { "connected" } else { "not connected" };
    line("controller", format!("{connected}, {}", plain(&link["controller"])));
    line(
        "outbox",
        format!("{} records, {} lost", plain(&status["outbox"]["records"]), plain(&status["outbox"]["lost"])),
    );
    line("generation", plain(&status["update"]["generation"]));
    let phases = &status["update"]["slots"];
    for (name, slot) in status["slots"].as_object().into_iter().flatten() {
        let phase = plain(&phases[name]["phase"]);
        let p95 = plain(&slot["total_ms"]["p95"]);
        line(
            "slot",
            format!("{name}: {} ({phase}), {} ok, p95 {p95} ms", plain(&slot["bundle"]), plain(&slot["ok"])),
        );
    }
    for (name, slot) in phases.as_object().into_iter().flatten() {
        if let Some(error) = slot["last_error"]["message"].as_str() {
            line("last error", format!("{name}: {error}"));
        }
    }
    text
}
