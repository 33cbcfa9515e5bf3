//! Debian's Mosquitto beside the controller, configured by `edgefleet broker mosquitto-config`.

use crate::{binaries, cli, place::Place, process::Process, waiting::until};
use anyhow::{Context, Result, bail, ensure};
use std::{
    ffi::OsStr,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Killed when dropped.
pub struct Mosquitto {
    pub process: Process,
    pub port: u16,
}

impl Mosquitto {
    /// For the controller whose folder is `data`; it must have run once.
    ///
    /// # Errors
    /// If Mosquitto is not installed or does not listen.
    pub async fn start(place: &Place, data: &Path) -> Result<Self> {
        let listen = free_port()?;
        let out = place.join("mosquitto");
        let mut args: Vec<&OsStr> = ["broker", "mosquitto-config", "--data"].map(OsStr::new).into();
        let text = listen.to_string();
        args.extend([data.as_os_str(), OsStr::new("--listen"), OsStr::new(&text)]);
        args.extend([OsStr::new("--out"), out.as_os_str()]);
        if std::fs::metadata(place.path())?.uid() == 0 {
            // Its own account could not read this folder.
            args.extend(["--user", "root"].map(OsStr::new));
        }
        let made = cli::run(&binaries::edgefleet()?, &args, &[]).await?.ok()?;
        let mut command = Command::new(program()?);
        command.arg("-c").arg(made.out.trim());
        let mut process = Process::start(place, "mosquitto", &mut command)?;
        until("Mosquitto", Duration::from_secs(20), async || {
            let ended = process.has_ended()?;
            ensure!(ended.is_none(), "it ended with {ended:?}:\n{}", process.log());
            TcpStream::connect(listen)?;
            Ok(())
        })
        .await?;
        Ok(Self { process, port: listen.port() })
    }

    /// As `serve --broker` wants it.
    pub fn url(&self) -> String {
        format!("mqtts://localhost:{}", self.port)
    }

    /// As `serve --broker-reload` wants it.
    pub fn reload(&self) -> String {
        format!("kill -HUP {}", self.process.pid())
    }
}

/// A port that was free a moment ago; Mosquitto cannot choose one.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Daemons live in sbin, which is not on everybody's PATH.
fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("no PATH")?;
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    match folders.map(|folder| folder.join("mosquitto")).find(|file| file.is_file()) {
        Some(program) => Ok(program),
        None => bail!("mosquitto is not installed; run `make setup`"),
    }
}
