//! A real Mosquitto with mutual TLS, its own certificate authority, and an observer that plays the
//! controller.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rumqttc::{
    AsyncClient, Event, EventLoop, MqttOptions, Packet, Publish, QoS, TlsConfiguration, Transport,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};

/// Far longer than anything here takes, so that a hang is a failure and not a wait.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Broker {
    dir: tempfile::TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
    pub(crate) port: u16,
    process: Option<Child>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let mut ca = params("Test CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = params("localhost").signed_by(&key, &ca).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("ca.pem", &ca.pem());
        write("cert.pem", &leaf.pem());
        write("key.pem", &key.serialize_pem());
        let at = |name: &str| dir.path().join(name).display().to_string();
        write(
            "mosquitto.conf",
            &format!(
                "listener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n\
                 use_identity_as_username true\nallow_anonymous false\npersistence false\nuser root\n",
                at("ca.pem"),
                at("cert.pem"),
                at("key.pem")
            ),
        );
        let mut broker = Self { dir, ca, port, process: None };
        broker.restart().await;
        broker
    }

    /// Ends the broker and starts it again, with nothing remembered.
    pub(crate) async fn restart(&mut self) {
        self.stop();
        let process = Command::new("mosquitto")
            .arg("-c")
            .arg(self.dir.path().join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("install mosquitto (apt-get install mosquitto)");
        self.process = Some(process);
        let address = ("127.0.0.1", self.port);
        timeout(DEADLINE, async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("mosquitto does not listen");
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }

    /// What a client named `name` connects with.
    pub(crate) fn tls(&self, name: &str) -> Arc<ClientConfig> {
        let key = KeyPair::generate().unwrap();
        let leaf = params(name).signed_by(&key, &self.ca).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.ca.der().to_vec())).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![leaf.der().clone()], key)
            .unwrap();
        Arc::new(config)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sees everything below `edgefleet/v1` and may publish anywhere.
pub(crate) struct Observer {
    pub(crate) client: AsyncClient,
    seen: mpsc::UnboundedReceiver<Publish>,
}

impl Observer {
    pub(crate) async fn connect(broker: &Broker) -> Self {
        let mut options = MqttOptions::new("controller", "localhost", broker.port);
        let tls = TlsConfiguration::Rustls(broker.tls("controller"));
        options.set_transport(Transport::tls_with_config(tls)).set_max_packet_size(1 << 20, 1 << 20);
        let (client, connection) = AsyncClient::new(options, 64);
        let (sender, seen) = mpsc::unbounded_channel();
        client.subscribe("edgefleet/v1/#", QoS::AtLeastOnce).await.unwrap();
        let (ready, subscribed) = tokio::sync::oneshot::channel();
        tokio::spawn(pass_on(connection, sender, ready));
        timeout(DEADLINE, subscribed).await.unwrap().unwrap();
        Self { client, seen }
    }

    /// The next message for which `wanted` holds.
    pub(crate) async fn wait_for(&mut self, wanted: impl Fn(&Publish) -> bool) -> Publish {
        timeout(DEADLINE, async {
            loop {
                let message = self.seen.recv().await.expect("the observer lost its connection");
                if wanted(&message) {
                    return message;
                }
            }
        })
        .await
        .expect("the message did not come")
    }

    pub(crate) async fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
    }
}

async fn pass_on(
    mut connection: EventLoop,
    sender: mpsc::UnboundedSender<Publish>,
    ready: tokio::sync::oneshot::Sender<()>,
) {
    let mut ready = Some(ready);
    while let Ok(event) = connection.poll().await {
        match event {
            Event::Incoming(Packet::SubAck(_)) => drop(ready.take().map(|ready| ready.send(()))),
            Event::Incoming(Packet::Publish(message)) if sender.send(message.clone()).is_err() => return,
            _ => {}
        }
    }
}
