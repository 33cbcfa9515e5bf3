//! What the fleet does for an external broker: names, revocation list, takeovers.

use crate::{
    broker::external::{ClientIdentity, ExternalControl},
    clock,
    fleet::{
        Fleet,
        ca::{Ca, Identity},
        data_dir::write_public,
    },
};
use async_trait::async_trait;
use edgefleet_shared::ids::DeviceId;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// How long a reload may take; the removal of a device waits for it.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);
/// The list lives for 90 days.
const REFRESH: Duration = Duration::from_secs(86_400);

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Life of a certificate that only throws a removed device out.
const TAKEOVER_LIFE: Duration = Duration::from_secs(60);

pub(super) struct Control {
    fleet: Arc<Fleet>,
    ca: Arc<Ca>,
    list: PathBuf,
    reload: Option<String>,
    /// One list at a time: an older one must not be written over a newer.
    writing: Mutex<()>,
}

impl Control {
    pub(super) fn new(fleet: Arc<Fleet>, ca: Arc<Ca>, dir: &Path, reload: Option<String>) -> Self {
        Self { fleet, ca, list: dir.join("broker/ca.crl"), reload, writing: Mutex::new(()) }
    }

    /// Readable by everybody: the broker runs as another user, and a list of refused numbers is no secret.
    pub(super) async fn write_list(&self) -> Result<(), Source> {
        let _writing = self.writing.lock().await;
        if let Some(folder) = self.list.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let list = self.fleet.revocation_list().await?;
        write_public(&self.list, list.as_bytes())?;
        Ok(())
    }

    /// Writes the list anew once a day until `stop`: one that runs out has the broker refuse everybody.
    pub(super) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(REFRESH) => {}
                () = stop.cancelled() => return,
            }
            if let Err(error) = self.announce().await {
                tracing::error!(error, "the revocation list could not be renewed");
            }
        }
    }

    async fn announce(&self) -> Result<(), Source> {
        self.write_list().await?;
        let Some(command) = &self.reload else {
            tracing::warn!(
                "the revocation list was written; without --broker-reload the broker must be told by hand"
            );
            return Ok(());
        };
        let status = tokio::process::Command::new("sh").args(["-c", command]).kill_on_drop(true).status();
        let status = tokio::time::timeout(RELOAD_LIMIT, status)
            .await
            .map_err(|_| format!("`{command}` did not end within {} s", RELOAD_LIMIT.as_secs()))??;
        if status.success() { Ok(()) } else { Err(format!("`{command}` ended with {status}").into()) }
    }
}

#[async_trait]
impl ExternalControl for Control {
    fn takeover_identity(&self, device: &DeviceId) -> Result<ClientIdentity, Source> {
        let identity = self.ca.client_identity(device, TAKEOVER_LIFE, clock::now())?;
        Ok(client(&identity))
    }
    async fn refuse(&self, _: &DeviceId) -> Result<(), Source> {
        self.announce().await
    }
    async fn admit(&self, _: &DeviceId) -> Result<(), Source> {
        self.announce().await
    }
}

pub(super) fn client(identity: &Identity) -> ClientIdentity {
    ClientIdentity { chain: identity.chain.clone(), key: identity.key.clone_key() }
}

/// The common name in the controller's own certificate: its identity at the broker.
pub fn controller_name(identity: &Identity) -> anyhow::Result<DeviceId> {
    let leaf = identity.chain.first().ok_or_else(|| anyhow::anyhow!("the controller has no certificate"))?;
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf)?;
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    Ok(name.ok_or_else(|| anyhow::anyhow!("the controller's certificate has no name"))?.parse()?)
}
