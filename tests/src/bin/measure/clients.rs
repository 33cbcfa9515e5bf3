//! Many light devices: real keys, real enrolment, real mTLS sessions, no models.

use anyhow::{Context, bail};
use edgefleet_shared::{
    enroll::{ENROLL_SCHEMA, EnrollRequest, EnrollResponse, Enrolled, JoinCode},
    ids::DeviceId,
    message::{MESSAGE_SCHEMA, Presence},
    reported::Facts,
    topics::{Channel, TRUST_HEAD},
};
use rcgen::{CertificateParams, KeyPair};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::JoinSet};

/// Enrolments and handshakes under way at once: more only queue on two cores.
const AT_ONCE: usize = 32;

/// An enrolled device with its key.
pub(super) struct Device {
    enrolled: Enrolled,
    key: String,
}

impl Device {
    pub(super) fn id(&self) -> &DeviceId {
        &self.enrolled.device
    }
}

/// Sessions kept alive until dropped.
pub(super) struct Clients(#[allow(dead_code)] JoinSet<()>); // held, never read

/// Enrols `count` devices with one join code.
pub(super) async fn enrol(code: &str, count: usize) -> anyhow::Result<Vec<Device>> {
    let code: JoinCode = code.parse()?;
    // The load is what is measured here; that agents check the pin is tested elsewhere.
    let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy().build()?;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for number in 0..count {
        let (client, code, places) = (client.clone(), code.clone(), places.clone());
        running.spawn(async move {
            let _place = places.acquire_owned().await?;
            let key = KeyPair::generate()?;
            let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
            let request = EnrollRequest {
                schema: ENROLL_SCHEMA,
                invite: code.invite.clone(),
                secret: code.secret.clone(),
                csr,
                device: None,
                name: Some(format!("light-{number}")),
                facts: Facts::default(),
            };
            let url = format!("{}/api/v1/enroll", code.url);
            let response = client.post(url).json(&request).send().await?.error_for_status()?;
            match response.json::<EnrollResponse>().await? {
                EnrollResponse::Enrolled(enrolled) => {
                    Ok(Device { enrolled: *enrolled, key: key.serialize_pem() })
                }
                EnrollResponse::Pending { .. } => bail!("the invite wants approval"),
            }
        });
    }
    let mut devices = Vec::with_capacity(count);
    while let Some(done) = running.join_next().await {
        devices.push(done??);
    }
    Ok(devices)
}

/// Connects every device as an agent does: last will, exact subscriptions, presence.
pub(super) async fn connect(devices: &[Device]) -> anyhow::Result<Clients> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut sessions = JoinSet::new();
    let (ready, mut readies) = tokio::sync::mpsc::channel(64);
    for device in devices {
        let options = options(device)?;
        let id = device.enrolled.device.clone();
        let boot = edgefleet_shared::ids::BootId::from_random(rand_bytes(id.as_str()));
        let (places, ready) = (places.clone(), ready.clone());
        sessions.spawn(async move {
            let place = places.acquire_owned().await;
            let (client, mut events) = AsyncClient::new(options, 16);
            let online = Presence {
                schema: MESSAGE_SCHEMA,
                device: id.clone(),
                boot,
                online: true,
                reason: "online".into(),
            };
            let mut place = Some(place);
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        for channel in [
                            Channel::Desired,
                            Channel::Blocks,
                            Channel::Command,
                            Channel::Ack,
                            Channel::Label,
                        ] {
                            let _ = client.try_subscribe(channel.of(&id), QoS::AtLeastOnce);
                        }
                        let _ = client.try_subscribe(TRUST_HEAD, QoS::AtLeastOnce);
                        let payload = serde_json::to_vec(&online).unwrap_or_default();
                        let _ =
                            client.try_publish(Channel::Presence.of(&id), QoS::AtLeastOnce, true, payload);
                    }
                    Ok(Event::Incoming(Packet::PubAck(_))) => {
                        if place.take().is_some() {
                            let _ = ready.send(()).await;
                        }
                    }
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                }
            }
        });
    }
    drop(ready);
    for number in 0..devices.len() {
        let next = tokio::time::timeout(Duration::from_secs(60), readies.recv()).await;
        if next.ok().flatten().is_none() {
            bail!("only {number} of {} devices connected", devices.len());
        }
    }
    Ok(Clients(sessions))
}

pub(super) fn options(device: &Device) -> anyhow::Result<MqttOptions> {
    let enrolled = &device.enrolled;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(enrolled.ca.as_bytes()) {
        roots.add(certificate.map_err(|e| anyhow::anyhow!("CA: {e:?}"))?)?;
    }
    let chain: Vec<_> = CertificateDer::pem_slice_iter(enrolled.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| anyhow::anyhow!("certificate: {e:?}"))?;
    let key =
        PrivateKeyDer::from_pem_slice(device.key.as_bytes()).map_err(|e| anyhow::anyhow!("key: {e:?}"))?;
    let tls = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .context("client certificate")?;
    let mut options = MqttOptions::new(enrolled.device.as_str(), &enrolled.mqtt_host, enrolled.mqtt_port);
    options
        .set_keep_alive(Duration::from_secs(30))
        .set_clean_session(true)
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls))));
    Ok(options)
}

/// Distinct bytes for each device; nothing here needs to be secret.
fn rand_bytes(id: &str) -> [u8; 16] {
    let digest = edgefleet_shared::digest::BlobDigest::of(id.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    bytes
}
