//! `edgefleet-agent status`: asks the running agent over its own HTTP port.

use super::{ConfigArgs, Failure, Output};
use crate::{run::addresses::Addresses, store::files};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};
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

/// An address to connect to: one that listens everywhere is asked on loopback, the name it knows itself by.
pub(super) fn reachable(listens: SocketAddr) -> SocketAddr {
    match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, listens.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, listens.port()).into(),
        _ => listens,
    }
}

async fn ask(addresses: &Addresses) -> anyhow::Result<String> {
    let address = reachable(addresses.http);
    let tcp = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get("/v1/status")
        .header(header::HOST, address.to_string())
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
    let connected = match (link["connected"] == Value::Bool(true), link["trouble"].as_str()) {
        (true, _) => "connected".to_owned(),
        (false, None) => "not connected".to_owned(),
        (false, Some(trouble)) => format!("not connected ({trouble})"),
    };
    line("controller", format!("{}: {connected}", plain(&link["controller"])));
    line(
        "outbox",
        format!("{} records, {} lost", plain(&status["outbox"]["records"]), plain(&status["outbox"]["lost"])),
    );
    line("generation", plain(&status["update"]["generation"]));
    if let Some(refused) = status["update"]["refused"]["message"].as_str() {
        line("refused", refused.to_owned());
    }
    let (served, phases) = (&status["slots"], &status["update"]["slots"]);
    // A slot whose first bundle is on its way serves nothing yet.
    let names = [served, phases].into_iter().filter_map(Value::as_object).flat_map(|slots| slots.keys());
    for name in names.collect::<BTreeSet<_>>() {
        let (slot, phase) = (&served[name], &phases[name]);
        let mut text = match slot["bundle"].as_str() {
            None => format!("{name}: nothing"),
            Some(bundle) => {
                let p95 = slot["total_ms"]["p95"].as_f64().map_or("-".to_owned(), |ms| format!("{ms:.2}"));
                let counts = ["ok", "rejected"].map(|count| format!("{} {count}", plain(&slot[count])));
                format!("{name}: {bundle}, {}, {} failed, p95 {p95} ms", counts.join(", "), failures(slot))
            }
        };
        if slot["available"] == Value::Bool(false) {
            text.push_str(", unloaded by hand");
        }
        let _ = write!(text, " ({}", plain(&phase["phase"]));
        if let Some(target) = phase["target"]["bundle"].as_str() {
            let _ = write!(text, " {target}");
        }
        if let (Some(done), Some(total)) =
            (phase["progress"]["done_bytes"].as_u64(), phase["progress"]["total_bytes"].as_u64())
        {
            let _ = write!(text, ", {done} of {total} bytes");
        }
        if let Some(reason) = phase["deferred"]["reason"].as_str() {
            let until = phase["deferred"]["until"].as_str().map(|at| format!(" until {at}"));
            let _ = write!(text, ", waits for {}{}", waits_for(reason), until.unwrap_or_default());
        }
        line("slot", text + ")");
        if let Some(text) = candidate(slot, phase) {
            line("candidate", format!("{name}: {text}"));
        }
        if let Some(error) = phase["last_error"]["message"].as_str() {
            line("last error", format!("{name}: {error}"));
        }
    }
    for (name, binding) in status["bindings"].as_object().into_iter().flatten() {
        line("binding", format!("{name}: {}", bound(binding)));
    }
    text
}

/// Where inputs come from without a client, and what became of them.
fn bound(binding: &Value) -> String {
    let side = |side: &str| {
        let (what, trouble) = (&binding[side]["what"], &binding[side]["trouble"]);
        match (binding[side]["up"] == Value::Bool(true), trouble.as_str()) {
            (true, _) => what.as_str().unwrap_or("-").to_owned(),
            (false, None) => format!("{} (not reached)", what.as_str().unwrap_or("-")),
            (false, Some(trouble)) => format!("{} ({trouble})", what.as_str().unwrap_or("-")),
        }
    };
    let slot = binding["slot"].as_str().unwrap_or("-");
    let mut text = format!("{} -> {slot} -> {}", side("source"), side("sink"));
    for (count, always) in
        [("answered", true), ("failed", true), ("dropped", false), ("undelivered", false), ("queued", false)]
    {
        let n = binding[count].as_u64().unwrap_or(0);
        if always || n > 0 {
            let _ = write!(text, ", {n} {count}");
        }
    }
    text
}

/// What a person understands of a reason to wait.
fn waits_for(reason: &str) -> &str {
    match reason {
        "window" => "its maintenance window",
        "zone-unknown" => "a time zone this device does not know",
        "busy" => "the slot to settle",
        other => other,
    }
}

/// The bundle in the shadow of the active one: where it is, and what it was given to do.
fn candidate(slot: &Value, phase: &Value) -> Option<String> {
    let told = &phase["candidate"];
    let mut text = format!("{} ({}", told["installed"]["bundle"].as_str()?, told["phase"].as_str()?);
    if let (Some(done), Some(total)) =
        (told["progress"]["done_bytes"].as_u64(), told["progress"]["total_bytes"].as_u64())
    {
        let _ = write!(text, ", {done} of {total} bytes");
    }
    text.push(')');
    // The server's own counts are newer than the last report.
    let counts = if slot["shadow"].is_object() { &slot["shadow"] } else { told };
    if let Some(mirrored) = counts["mirrored"].as_u64() {
        let _ = write!(text, ", {mirrored} mirrored");
    }
    let shed = counts["shed"].as_object().into_iter().flatten();
    for (reason, n) in shed {
        let _ = write!(text, ", {n} shed ({reason})");
    }
    if let Some(now) = slot["shadow"]["shedding"].as_str() {
        let _ = write!(text, ", steps back now: {now}");
    }
    if let Some(error) = told["error"]["message"].as_str() {
        let _ = write!(text, ": {error}");
    }
    Some(text)
}

fn failures(slot: &Value) -> u64 {
    slot["errors"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_person_sees_every_slot_its_trouble_and_why_there_is_no_connection() {
        let addresses = Addresses {
            http: "0.0.0.0:8000".parse().unwrap(),
            grpc: None,
            remote: None,
            socket: None,
            metrics: "127.0.0.1:8002".parse().unwrap(),
            device: "dev-1".parse().unwrap(),
            pid: 1,
        };
        assert_eq!(reachable(addresses.http), "127.0.0.1:8000".parse().unwrap());
        assert_eq!(reachable("[::]:1".parse().unwrap()), "[::1]:1".parse().unwrap());
        let status = json!({
            "agent": "0.1.0", "uptime_secs": 7,
            "link": {"connected": false, "controller": "https://c:8443", "trouble": "refused"},
            "outbox": {"records": 3, "lost": 0},
            "slots": {"digits": {
                "bundle": "digits@2", "ok": 5, "rejected": 1, "errors": {"engine": 1, "bad-input": 2},
                "available": true, "total_ms": {"p50": 0.4, "p95": 0.123_456},
                "shadow": {"mirrored": 90, "shed": {"queue-full": 7}, "shedding": "heat"},
            }},
            "update": {
                "generation": 4,
                "refused": {"message": "generation 3 is older than 4"},
                "slots": {
                    "digits": {
                        "phase": "deferred", "target": {"bundle": "digits@4"},
                        "deferred": {"reason": "window", "until": "2026-11-24T01:00:00.000Z"},
                        "candidate": {
                            "installed": {"bundle": "digits@3"}, "phase": "shadowing",
                            "mirrored": 80, "shed": {},
                        },
                    },
                    "faces": {
                        "phase": "fetching", "target": {"bundle": "faces@1"},
                        "progress": {"done_bytes": 10, "total_bytes": 20},
                        "last_error": {"message": "no block came"},
                    },
                },
            },
            "bindings": {"door": {
                "slot": "faces", "answered": 7, "failed": 0, "dropped": 2, "queued": 0,
                "source": {"what": "mqtt 127.0.0.1:1883 cam/#", "up": false, "trouble": "connection refused"},
                "sink": {"what": "stdout", "up": true, "trouble": null},
            }},
        });
        assert_eq!(
            table(&addresses, &status),
            "device       dev-1\n\
             agent        0.1.0\n\
             http         0.0.0.0:8000\n\
             uptime       7 s\n\
             controller   https://c:8443: not connected (refused)\n\
             outbox       3 records, 0 lost\n\
             generation   4\n\
             refused      generation 3 is older than 4\n\
             slot         digits: digits@2, 5 ok, 1 rejected, 3 failed, p95 0.12 ms (deferred digits@4, \
             waits for its maintenance window until 2026-11-24T01:00:00.000Z)\n\
             candidate    digits: digits@3 (shadowing), 90 mirrored, 7 shed (queue-full), steps back now: heat\n\
             slot         faces: nothing (fetching faces@1, 10 of 20 bytes)\n\
             last error   faces: no block came\n\
             binding      door: mqtt 127.0.0.1:1883 cam/# (connection refused) -> faces -> stdout, 7 answered, \
             0 failed, 2 dropped\n"
        );
    }
}
