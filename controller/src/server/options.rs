//! What `serve` can be told, and where it says it listens.

use crate::{alerts::AlertSettings, export::OtlpSettings, transfer::Limits};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

#[derive(Clone, Debug)]
pub struct ServeOptions {
    pub data: PathBuf,
    /// API, dashboard, enrolment; port 0 takes a free one.
    pub https: SocketAddr,
    /// The embedded broker; port 0 takes a free one.
    pub mqtt: SocketAddr,
    /// How devices and people reach it, if not by the listening address.
    pub public_url: Option<String>,
    /// The agent program that checks pushed bundles; looked for if absent.
    pub agent_bin: Option<PathBuf>,
    /// ONNX Runtime's library, if bundles are checked with it too.
    pub ort_lib: Option<PathBuf>,
    pub limits: Limits,
    pub broker: BrokerChoice,
    /// Who is told what, and where metrics are sent: from the settings file only.
    pub alerts: AlertSettings,
    pub otlp: Option<OtlpSettings>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerChoice {
    Embedded,
    External {
        host: String,
        port: u16,
        /// Shell command that makes the broker read the revocation list again.
        reload: Option<String>,
    },
}

/// `run/addresses.json`: where a running controller is found, ports of 0 resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    pub pid: u32,
    /// `host:port`
    pub https: String,
    pub mqtt: String,
    /// As join codes name it.
    pub url: String,
}

impl Addresses {
    fn path(dir: &Path) -> PathBuf {
        dir.join("run/addresses.json")
    }
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let path = Self::path(dir);
        let temp = path.with_extension("new");
        fs::create_dir_all(dir.join("run"))?;
        fs::write(&temp, serde_json::to_vec_pretty(self)?)?;
        fs::rename(temp, path)
    }
    /// # Errors
    /// If there is none or it is not one of ours.
    pub fn read(dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(Self::path(dir))?)?)
    }
    pub fn remove(&self, dir: &Path) {
        let _ = fs::remove_file(Self::path(dir)); // a stale one names a pid that is gone
    }
}
