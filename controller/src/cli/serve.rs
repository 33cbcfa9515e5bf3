//! `edgefleet serve`.

use super::serve_file::ServeFile;
use crate::{
    server::{self, BrokerChoice, ServeOptions},
    transfer::Limits,
};
use anyhow::Context;
use clap::Args;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Run the controller: API, broker and store in one process.
///
/// The first start makes everything: certificate authority, signing keys, store, and an administrator's
/// token in DIR/admin-token. Later starts need nothing but the folder.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet serve --data /var/lib/edgefleet
  edgefleet serve --data ./fleet --https 127.0.0.1:0 --mqtt 127.0.0.1:0
  edgefleet serve --data ./fleet --public-url https://fleet.example.com:8443
  edgefleet serve --data ./fleet --broker mqtts://mqtt.example.com:8883 \\
                  --broker-reload 'systemctl reload mosquitto'")]
pub struct ServeArgs {
    /// Settings as TOML, named like the flags with `_` for `-`; flags and environment win
    #[arg(long, value_name = "FILE", env = "EDGEFLEET_CONFIG")]
    config: Option<PathBuf>,
    /// Folder for everything the controller keeps; made if missing [default: /var/lib/edgefleet]
    #[arg(long, value_name = "DIR", env = "EDGEFLEET_DATA")]
    data: Option<PathBuf>,
    /// Where the API listens; port 0 takes a free one [default: 0.0.0.0:8443]
    #[arg(long, value_name = "ADDR", env = "EDGEFLEET_HTTPS")]
    https: Option<SocketAddr>,
    /// Where the embedded broker listens; port 0 takes a free one [default: 0.0.0.0:8883]
    #[arg(long, value_name = "ADDR", env = "EDGEFLEET_MQTT")]
    mqtt: Option<SocketAddr>,
    /// How devices and people reach this controller, if not by the listening address
    #[arg(long, value_name = "URL", env = "EDGEFLEET_PUBLIC_URL")]
    public_url: Option<String>,
    /// The `edgefleet-agent` program that checks pushed bundles [default: beside this program, then PATH]
    #[arg(long, value_name = "FILE", env = "EDGEFLEET_AGENT_BIN")]
    agent_bin: Option<PathBuf>,
    /// A libonnxruntime.so: pushed bundles are checked with ONNX Runtime too, and pass if one engine takes them
    #[arg(long, value_name = "FILE", env = "EDGEFLEET_ORT_LIB")]
    ort_lib: Option<PathBuf>,
    /// Byte budgets for what devices fetch: `default` (100 Mbit/s in all, 4 Mbit/s for each device) or `none`
    #[arg(long, value_name = "LIMITS", env = "EDGEFLEET_LIMITS")]
    limits: Option<LimitsArg>,
    /// `embedded`, or an external broker as mqtts://HOST:PORT [default: embedded]
    #[arg(long, value_name = "BROKER", env = "EDGEFLEET_BROKER")]
    broker: Option<BrokerArg>,
    /// Shell command that makes an external broker read the revocation list again
    #[arg(long, value_name = "COMMAND", env = "EDGEFLEET_BROKER_RELOAD")]
    broker_reload: Option<String>,
}

const DATA: &str = "/var/lib/edgefleet";
const HTTPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);
const MQTT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8883);

#[derive(Clone, Copy, Debug)]
pub(super) enum LimitsArg {
    Default,
    None,
}

impl FromStr for LimitsArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            "none" => Ok(Self::None),
            _ => Err(format!("`{text}` is neither `default` nor `none`")),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum BrokerArg {
    Embedded,
    External { host: String, port: u16 },
}

impl FromStr for BrokerArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "embedded" {
            return Ok(Self::Embedded);
        }
        let wanted = || format!("`{text}` is neither `embedded` nor `mqtts://HOST:PORT`");
        let (host, port) =
            text.strip_prefix("mqtts://").and_then(|rest| rest.rsplit_once(':')).ok_or_else(wanted)?;
        let port = port.trim_end_matches('/').parse().map_err(|_| wanted())?;
        if host.is_empty() {
            return Err(wanted());
        }
        Ok(Self::External { host: host.to_owned(), port })
    }
}

impl ServeArgs {
    pub async fn run(self) -> anyhow::Result<()> {
        let file = match &self.config {
            Some(path) => ServeFile::read(path)?,
            None => ServeFile::default(),
        };
        let reload = self.broker_reload.or(file.broker_reload);
        let broker = match self.broker.or(file.broker) {
            None | Some(BrokerArg::Embedded) => BrokerChoice::Embedded,
            Some(BrokerArg::External { host, port }) => BrokerChoice::External { host, port, reload },
        };
        let options = ServeOptions {
            data: self.data.or(file.data).unwrap_or_else(|| DATA.into()),
            https: self.https.or(file.https).unwrap_or(HTTPS),
            mqtt: self.mqtt.or(file.mqtt).unwrap_or(MQTT),
            public_url: self.public_url.or(file.public_url),
            agent_bin: self.agent_bin.or(file.agent_bin),
            ort_lib: self.ort_lib.or(file.ort_lib),
            limits: match self.limits.or(file.limits) {
                None | Some(LimitsArg::Default) => Limits::default(),
                Some(LimitsArg::None) => Limits::NONE,
            },
            broker,
            alerts: file.alerts,
            otlp: file.otlp,
        };
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("could not watch for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("could not watch for SIGINT")?;
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
            stop.cancel();
        });
        server::serve(options, shutdown).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_embedded_or_an_mqtts_address() {
        for (text, good) in [
            ("embedded", true),
            ("mqtts://localhost:8883", true),
            ("mqtt://localhost:1883", false),
            ("mqtts://:8883", false),
            ("mqtts://host", false),
            ("mqtts://host:99999", false),
        ] {
            assert_eq!(text.parse::<BrokerArg>().is_ok(), good, "{text}");
        }
    }
}
