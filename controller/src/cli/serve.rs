//! `edgefleet serve`.

use crate::{
    server::{self, BrokerChoice, ServeOptions},
    transfer::Limits,
};
use anyhow::Context;
use clap::{Args, ValueEnum};
use std::{net::SocketAddr, path::PathBuf};
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
    /// Folder for everything the controller keeps; made if missing
    #[arg(long, value_name = "DIR", env = "EDGEFLEET_DATA", default_value = "/var/lib/edgefleet")]
    data: PathBuf,
    /// Where the API listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8443")]
    https: SocketAddr,
    /// Where the embedded broker listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8883")]
    mqtt: SocketAddr,
    /// How devices and people reach this controller, if not by the listening address
    #[arg(long, value_name = "URL", env = "EDGEFLEET_PUBLIC_URL")]
    public_url: Option<String>,
    /// The `edgefleet-agent` program that checks pushed bundles [default: beside this program, then PATH]
    #[arg(long, value_name = "FILE", env = "EDGEFLEET_AGENT_BIN")]
    agent_bin: Option<PathBuf>,
    /// Byte budgets for what devices fetch
    #[arg(long, value_enum, default_value_t = LimitsArg::Default)]
    limits: LimitsArg,
    /// `embedded`, or an external broker as mqtts://HOST:PORT
    #[arg(long, value_name = "BROKER", default_value = "embedded", value_parser = parse_broker)]
    broker: BrokerArg,
    /// Shell command that makes an external broker read the revocation list again
    #[arg(long, value_name = "COMMAND", requires = "broker")]
    broker_reload: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LimitsArg {
    /// 100 Mbit/s in all, 4 Mbit/s for each device
    Default,
    /// As fast as it goes
    None,
}

#[derive(Clone, Debug)]
enum BrokerArg {
    Embedded,
    External { host: String, port: u16 },
}

fn parse_broker(text: &str) -> Result<BrokerArg, String> {
    if text == "embedded" {
        return Ok(BrokerArg::Embedded);
    }
    let wanted = || format!("`{text}` is neither `embedded` nor `mqtts://HOST:PORT`");
    let (host, port) =
        text.strip_prefix("mqtts://").and_then(|rest| rest.rsplit_once(':')).ok_or_else(wanted)?;
    let port = port.trim_end_matches('/').parse().map_err(|_| wanted())?;
    if host.is_empty() {
        return Err(wanted());
    }
    Ok(BrokerArg::External { host: host.to_owned(), port })
}

impl ServeArgs {
    pub async fn run(self) -> anyhow::Result<()> {
        let broker = match self.broker {
            BrokerArg::Embedded => BrokerChoice::Embedded,
            BrokerArg::External { host, port } => {
                BrokerChoice::External { host, port, reload: self.broker_reload }
            }
        };
        let options = ServeOptions {
            data: self.data,
            https: self.https,
            mqtt: self.mqtt,
            public_url: self.public_url,
            agent_bin: self.agent_bin,
            limits: match self.limits {
                LimitsArg::Default => Limits::default(),
                LimitsArg::None => Limits::NONE,
            },
            broker,
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
            assert_eq!(parse_broker(text).is_ok(), good, "{text}");
        }
    }
}
