//! `edgefleet broker`: files for an external broker.

use crate::{
    broker::mosquitto::{MosquittoParams, mosquitto_config},
    clock,
    fleet::{ca::Ca, data_dir::write_public, server_names::ServerNames},
    server::controller_name,
};
use anyhow::Context;
use clap::{Args, Subcommand};
use std::{net::SocketAddr, path::PathBuf};

/// Set up an external MQTT broker.
#[derive(Debug, Subcommand)]
pub enum BrokerCommand {
    MosquittoConfig(MosquittoArgs),
}

/// Write mosquitto.conf and its ACL file for this fleet.
///
/// Made from the same table of rights that the embedded broker uses. The broker shows the controller's
/// own server certificate and takes clients with certificates of the fleet's authority only.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  edgefleet broker mosquitto-config --data ./fleet --listen 0.0.0.0:8883 --out ./mosquitto
  mosquitto -c ./mosquitto/mosquitto.conf &
  edgefleet serve --data ./fleet --broker mqtts://localhost:8883 --broker-reload 'pkill -HUP mosquitto'")]
pub struct MosquittoArgs {
    /// The controller's folder; `edgefleet serve` must have run once
    #[arg(long, value_name = "DIR", env = "EDGEFLEET_DATA", default_value = "/var/lib/edgefleet")]
    data: PathBuf,
    /// Where Mosquitto shall listen
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Folder for the files; made if missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Account Mosquitto changes to when started by root [default: its own]. It reads certificates, key and
    /// revocation list in the controller's folder, on every reload too: give it the controller's account
    #[arg(long, value_name = "USER")]
    user: Option<String>,
}

impl BrokerCommand {
    pub fn run(self) -> anyhow::Result<()> {
        let Self::MosquittoConfig(args) = self;
        let data = std::fs::canonicalize(&args.data)
            .with_context(|| format!("`{}` is no controller's folder", args.data.display()))?;
        std::fs::create_dir_all(args.out.join("persistence"))?;
        let out = std::fs::canonicalize(&args.out)?;
        let ca = data.join("ca");
        let authority = Ca::open(&ca, &ServerNames::default(), clock::now())?;
        let crl_file = data.join("broker/ca.crl");
        if !crl_file.exists() {
            std::fs::create_dir_all(data.join("broker"))?;
            write_public(&crl_file, authority.revocation_list(&[], 1, clock::now())?.as_bytes())?;
        }
        let config = mosquitto_config(&MosquittoParams {
            listen: args.listen,
            ca_file: ca.join("ca.pem"),
            cert_file: ca.join("server.pem"),
            key_file: ca.join("server.key"),
            crl_file,
            acl_file: out.join("acl"),
            persistence_dir: out.join("persistence"),
            controllers: vec![controller_name(authority.controller())?],
            user: args.user,
        })?;
        write_public(&out.join("mosquitto.conf"), config.conf.as_bytes())?;
        write_public(&out.join("acl"), config.acl.as_bytes())?;
        println!("{}", out.join("mosquitto.conf").display());
        Ok(())
    }
}
