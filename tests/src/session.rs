//! An MQTT session made by hand, with whatever certificate: what a broken or hostile device could do.

use anyhow::{Context, Result, bail};
use rumqttc::{
    AsyncClient, ConnectReturnCode, Event, MqttOptions, NetworkOptions, Packet, QoS, TlsConfiguration,
    Transport,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

const CONNECT: Duration = Duration::from_secs(20);
/// Far above what any broker here takes, so that this side refuses nothing.
const ANY_SIZE: usize = 64 << 20;

/// Who connects, with what.
pub struct Credentials {
    pub device: String,
    pub host: String,
    pub port: u16,
    pub ca: Vec<u8>,
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

impl Credentials {
    /// The identity below an agent's data folder.
    ///
    /// # Errors
    /// If it is not enrolled.
    pub fn of(data: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = data.join("identity").join(name);
            std::fs::read(&path).with_context(|| path.display().to_string())
        };
        let controller: Value = serde_json::from_slice(&read("controller.json")?)?;
        let text = |key: &str| controller[key].as_str().unwrap_or_default().to_owned();
        Ok(Self {
            device: text("device"),
            host: text("mqtt_host"),
            port: u16::try_from(controller["mqtt_port"].as_u64().context("no port")?)?,
            ca: read("ca.pem")?,
            certificate: read("certificate.pem")?,
            key: read("key.pem")?,
        })
    }

    fn tls(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&self.ca)?)?;
        let chain = CertificateDer::pem_slice_iter(&self.certificate).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)?;
        Ok(ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?)
    }
}

/// Connected; ends when dropped. Does not come back by itself.
pub struct Session {
    client: AsyncClient,
    ended: watch::Receiver<Option<String>>,
    acknowledged: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Session {
    /// # Errors
    /// If the broker does not take it.
    pub async fn connect(credentials: &Credentials) -> Result<Self> {
        let tls = TlsConfiguration::Rustls(Arc::new(credentials.tls()?));
        let mut options = MqttOptions::new(&credentials.device, &credentials.host, credentials.port);
        options
            .set_keep_alive(Duration::from_secs(30))
            .set_max_packet_size(ANY_SIZE, ANY_SIZE)
            .set_transport(Transport::tls_with_config(tls));
        let (client, mut connection) = AsyncClient::new(options, 64);
        let mut network = NetworkOptions::new();
        network.set_connection_timeout(CONNECT.as_secs());
        connection.set_network_options(network);
        match timeout(CONNECT, connection.poll()).await.context("no answer to CONNECT")?? {
            Event::Incoming(Packet::ConnAck(ack)) if ack.code == ConnectReturnCode::Success => {}
            other => bail!("not taken: {other:?}"),
        }
        let (end, ended) = watch::channel(None);
        let (count, acknowledged) = watch::channel(0);
        let task = tokio::spawn(async move {
            loop {
                match connection.poll().await {
                    Ok(Event::Incoming(Packet::PubAck(_))) => count.send_modify(|n| *n += 1),
                    Ok(_) => {}
                    Err(error) => {
                        end.send_replace(Some(error.to_string()));
                        return;
                    }
                }
            }
        });
        Ok(Self { client, ended, acknowledged, task })
    }

    /// QoS 1; returns once the broker has it.
    ///
    /// # Errors
    /// If the session ends first.
    pub async fn publish(&mut self, topic: &str, payload: &[u8]) -> Result<()> {
        let before = *self.acknowledged.borrow_and_update();
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).await?;
        let acknowledged = self.acknowledged.wait_for(|count| *count > before);
        timeout(CONNECT, acknowledged).await.with_context(|| format!("{topic} was not acknowledged"))??;
        Ok(())
    }

    /// Sends without waiting for anything.
    ///
    /// # Errors
    /// If the session has ended.
    pub async fn send(&self, topic: &str, payload: &[u8]) -> Result<()> {
        Ok(self.client.publish(topic, QoS::AtLeastOnce, false, payload).await?)
    }

    pub fn is_open(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// Waits for the broker to end the session; why.
    ///
    /// # Errors
    /// If it does not.
    pub async fn ended(&mut self, limit: Duration) -> Result<String> {
        let ended = timeout(limit, self.ended.wait_for(Option::is_some)).await.context("still open")??;
        Ok(ended.clone().unwrap_or_default())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}
