//! The two homes of the same contract: the embedded broker in this process, and a real Mosquitto.

use crate::{
    device::PATIENCE,
    pki::{Issued, Pki},
};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use edgefleet_controller::{
    broker::{
        Broker, BrokerEvent, BrokerKind, Message, Qos, Upstream,
        embedded::{Admission, EmbeddedBroker, EmbeddedParams, Verdict},
        external::{ClientIdentity, ExternalBroker, ExternalControl, ExternalParams},
        mosquitto::{MosquittoParams, mosquitto_config},
        tls::{ClockTime, mqtt_server_config},
    },
    clock,
};
use edgefleet_shared::{ids::DeviceId, topics::Channel};
use parking_lot::Mutex;
use rcgen::SerialNumber;
use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

pub struct Home {
    pub pki: Arc<Pki>,
    pub broker: Arc<dyn Broker>,
    pub address: SocketAddr,
    pub fleet: Arc<Fleet>,
    events: mpsc::Receiver<BrokerEvent>,
    /// Everything that came, for assertions about what did not.
    pub log: Vec<BrokerEvent>,
    pub dir: TempDir,
    pub mosquitto: Option<Mosquitto>,
}

pub fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

impl Home {
    pub async fn embedded() -> Self {
        Self::embedded_with(|_| {}).await
    }

    pub async fn embedded_with(adjust: impl FnOnce(&mut EmbeddedParams)) -> Self {
        let (pki, dir, fleet) = (Pki::new(), tempfile::tempdir().unwrap(), Arc::new(Fleet::default()));
        let mut params = embedded_params(&pki, &pki.issue("server", "localhost", 3_600), dir.path());
        params.admission = Arc::clone(&fleet) as Arc<dyn Admission>;
        adjust(&mut params);
        let (broker, events) = EmbeddedBroker::start(params).await.unwrap();
        let address = broker.address();
        Self { pki, broker: Arc::new(broker), address, fleet, events, log: vec![], dir, mosquitto: None }
    }

    pub async fn mosquitto() -> Option<Self> {
        let (pki, dir, fleet) = (Pki::new(), tempfile::tempdir().unwrap(), Arc::new(Fleet::default()));
        let mosquitto = Mosquitto::start(&pki, dir.path())?;
        let address = mosquitto.address;
        let control = Control {
            pki: Arc::clone(&pki),
            fleet: Arc::clone(&fleet),
            crl: mosquitto.crl.clone(),
            pid: mosquitto.pid(),
        };
        let (broker, events) = ExternalBroker::start(ExternalParams {
            host: "localhost".into(),
            port: address.port(),
            name: id("controller-1"),
            identity: pki.device("controller-1").identity(),
            roots: pki.roots(),
            time: Arc::new(ClockTime(clock::wall())),
            control: Arc::new(control),
            event_capacity: 256,
        })
        .unwrap();
        let mut home = Self {
            pki,
            broker: Arc::new(broker),
            address,
            fleet,
            events,
            log: vec![],
            dir,
            mosquitto: Some(mosquitto),
        };
        home.until("upstream", |event| *event == BrokerEvent::Upstream(Upstream::Up)).await;
        Some(home)
    }

    pub fn is_embedded(&self) -> bool {
        self.broker.kind() == BrokerKind::Embedded
    }

    /// Waits for an event that `wanted` accepts; all others are logged.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&BrokerEvent) -> bool) -> BrokerEvent {
        let found = timeout(PATIENCE, async {
            loop {
                let event = self.events.recv().await.expect("the broker closed its events");
                self.log.push(event.clone());
                if wanted(&event) {
                    return event;
                }
            }
        });
        match found.await {
            Ok(event) => event,
            Err(_) => panic!("no {what} within {PATIENCE:?}; events: {:?}", self.log),
        }
    }

    pub async fn message(&mut self, device: &str, channel: Channel) -> bytes::Bytes {
        let wanted = id(device);
        let event = self
            .until(&format!("{channel} of {device}"), |event| {
                matches!(event, BrokerEvent::Message { device, channel: c, .. } if *device == wanted && *c == channel)
            })
            .await;
        let BrokerEvent::Message { payload, .. } = event else { unreachable!("until() checked it") };
        payload
    }

    /// Payloads seen so far.
    pub fn payloads(&self) -> Vec<String> {
        self.log
            .iter()
            .filter_map(|event| match event {
                BrokerEvent::Message { payload, .. } => Some(String::from_utf8_lossy(payload).into_owned()),
                _ => None,
            })
            .collect()
    }

    pub async fn publish(&self, topic: &str, payload: impl Into<bytes::Bytes>, retain: bool) {
        let message =
            Message { topic: topic.to_owned(), payload: payload.into(), retain, qos: Qos::AtLeastOnce };
        self.broker.publish(message).await.unwrap();
    }

    /// Resident memory of the broker's process, bytes.
    pub fn pid(&self) -> Option<u32> {
        self.mosquitto.as_ref().map(Mosquitto::pid)
    }
}

pub fn embedded_params(pki: &Pki, server: &Issued, dir: &Path) -> EmbeddedParams {
    let time = Arc::new(ClockTime(clock::wall()));
    let config =
        mqtt_server_config(vec![server.der.clone()], server.private_key(), pki.roots(), time).unwrap();
    EmbeddedParams {
        data_dir: dir.join("mqtt"),
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        tls: Arc::new(ArcSwap::from_pointee(config)),
        admission: Arc::new(Fleet::default()),
        clock: clock::wall(),
        max_connections: None,
        max_connections_per_address: None,
        event_capacity: 256,
    }
}

/// The fleet's part: which serials are out, and which certificates a device had.
#[derive(Default)]
pub struct Fleet {
    revoked: Mutex<HashSet<Vec<u8>>>,
    pub issued: Mutex<HashMap<DeviceId, Vec<SerialNumber>>>,
    refused: Mutex<HashSet<DeviceId>>,
    /// The revocation list is written, but its loading is left to the test.
    pub loads_late: AtomicBool,
}

impl Admission for Fleet {
    fn admit(&self, _: &DeviceId, serial: &[u8]) -> Verdict {
        if self.revoked.lock().contains(serial) {
            return Verdict::Refuse("the serial is revoked".into());
        }
        Verdict::Allow
    }
}

impl Fleet {
    pub fn revoke(&self, serial: &SerialNumber) {
        let digits = serial.to_bytes();
        let leading = digits.iter().take_while(|byte| **byte == 0).count();
        self.revoked.lock().insert(digits[leading..].to_vec());
    }
}

struct Control {
    pki: Arc<Pki>,
    fleet: Arc<Fleet>,
    crl: PathBuf,
    pid: u32,
}

impl Control {
    fn reload(&self) {
        let refused = self.fleet.refused.lock();
        let issued = self.fleet.issued.lock();
        let serials: Vec<_> =
            refused.iter().flat_map(|device| issued.get(device)).flatten().cloned().collect();
        write_crl(&self.crl, &self.pki.crl(&serials));
        if !self.fleet.loads_late.load(Ordering::SeqCst) {
            signal("HUP", self.pid);
        }
    }
}

fn write_crl(path: &Path, pem: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, pem).unwrap();
    std::fs::rename(new, path).unwrap();
}

pub fn signal(name: &str, pid: u32) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

type Source = Box<dyn std::error::Error + Send + Sync>;

#[async_trait]
impl ExternalControl for Control {
    fn takeover_identity(&self, device: &DeviceId) -> Result<ClientIdentity, Source> {
        Ok(self.pki.device(device.as_str()).identity())
    }
    async fn refuse(&self, device: &DeviceId) -> Result<(), Source> {
        self.fleet.refused.lock().insert(device.clone());
        self.reload();
        Ok(())
    }
    async fn admit(&self, device: &DeviceId) -> Result<(), Source> {
        self.fleet.refused.lock().remove(device);
        self.reload();
        Ok(())
    }
}

/// A Mosquitto process of its own, ended with the value.
pub struct Mosquitto {
    child: Child,
    conf: PathBuf,
    pub address: SocketAddr,
    pub crl: PathBuf,
}

impl Mosquitto {
    fn start(pki: &Pki, dir: &Path) -> Option<Self> {
        let Some(binary) = binary() else {
            assert!(
                std::env::var_os("EDGEFLEET_SKIP_MOSQUITTO").is_some(),
                "install mosquitto (make setup), or set EDGEFLEET_SKIP_MOSQUITTO=1 to leave its rows out"
            );
            return None;
        };
        // Freed again right away; a parallel test that takes it makes ours fail loudly at start.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let server = pki.issue("server", "localhost", 3_600);
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let params = MosquittoParams {
            listen: address,
            ca_file: file("ca.pem", &pki.ca_pem()),
            cert_file: file("server.pem", &server.pem),
            key_file: file("server.key", &server.key.serialize_pem()),
            crl_file: file("crl.pem", &pki.crl(&[])),
            acl_file: dir.join("acl"),
            persistence_dir: dir.to_owned(),
            controllers: vec![id("controller-1")],
            // Mosquitto started by root drops to an account that cannot read this folder.
            user: (std::fs::metadata(dir).unwrap().uid() == 0).then(|| "root".to_owned()),
        };
        let config = mosquitto_config(&params).unwrap();
        file("acl", &config.acl);
        let conf = file("mosquitto.conf", &config.conf);
        let child = spawn(&binary, &conf);
        Some(Self { child, conf, address, crl: params.crl_file })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        self.child = spawn(&binary().unwrap(), &self.conf);
    }
}

fn spawn(binary: &Path, conf: &Path) -> Child {
    let log = std::fs::File::create(conf.with_file_name("mosquitto.log")).unwrap();
    Command::new(binary).arg("-c").arg(conf).stderr(log).stdout(Stdio::null()).spawn().unwrap()
}

fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|dir| dir.join("mosquitto"))
        .find(|candidate| candidate.is_file())
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident set of a process, bytes.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}
