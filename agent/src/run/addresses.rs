//! `<data>/run/addresses.json`: where this run listens, for port 0 and for `status`.

use crate::store::files;
use edgefleet_shared::ids::DeviceId;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub http: SocketAddr,
    /// gRPC, besides `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<SocketAddr>,
    /// HTTP and gRPC for other machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// HTTP and gRPC by file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    pub metrics: SocketAddr,
    pub device: DeviceId,
    /// A file of an earlier run names another process.
    pub pid: u32,
}

impl Addresses {
    pub(crate) fn path(data: &Path) -> PathBuf {
        data.join("run").join("addresses.json")
    }
    /// # Errors
    /// As writing.
    pub(crate) fn write(&self, data: &Path) -> io::Result<()> {
        let path = Self::path(data);
        fs::create_dir_all(data.join("run"))?;
        files::replace(&path, &serde_json::to_vec(self)?, 0o644)
    }
    pub(crate) fn remove(data: &Path) {
        fs::remove_file(Self::path(data)).ok(); // a stale one names a process that is gone
    }
}
