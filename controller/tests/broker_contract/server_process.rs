//! The embedded broker in a process of its own (this test binary, started again), to be killed.

use crate::{
    home::embedded_params,
    pki::{Issued, Pki},
};
use edgefleet_controller::broker::{
    Broker, Message, Qos,
    embedded::EmbeddedBroker,
    tls::{ClockTime, mqtt_server_config},
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
};

const DIR: &str = "EDGEFLEET_TEST_BROKER_DIR";

pub struct ServerProcess {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub address: SocketAddr,
}

impl ServerProcess {
    pub fn start(pki: &Pki, server: &Issued, dir: &Path) -> Self {
        for (name, text) in [
            ("ca.pem", pki.ca_pem()),
            ("server.pem", server.pem.clone()),
            ("server.key", server.key.serialize_pem()),
        ] {
            std::fs::write(dir.join(name), text).unwrap();
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server_process::serves_when_asked_to", "--nocapture"])
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut server = Self { child, stdin, stdout, address: ([0, 0, 0, 0], 0).into() };
        server.address = server.answer("listening ").parse().unwrap();
        server
    }

    /// The rest of the next line that starts with `prefix` (the test harness prints lines of its own).
    fn answer(&mut self, prefix: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "the broker process ended");
            if let Some(at) = line.find(prefix) {
                return line[at + prefix.len()..].trim().to_owned();
            }
        }
    }

    /// Publishes retained; returns when the broker has it.
    pub fn retain(&mut self, topic: &str, payload: &str) {
        writeln!(self.stdin, "{topic} {payload}").unwrap();
        self.answer("published");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test of its own: does something only in the process that [`ServerProcess::start`] makes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serves_when_asked_to() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    let mut params = embedded_params(&Pki::new(), &Pki::new().device("server"), dir);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let config = mqtt_server_config(
        vec![CertificateDer::from_pem_file(dir.join("server.pem")).unwrap()],
        PrivateKeyDer::from_pem_file(dir.join("server.key")).unwrap(),
        roots,
        Arc::new(ClockTime(edgefleet_controller::clock::wall())),
    );
    params.tls.store(Arc::new(config.unwrap()));
    params.event_capacity = 4_096;
    let (broker, mut events) = EmbeddedBroker::start(params).await.unwrap();
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    println!("\nlistening {}", broker.address());
    let runtime = tokio::runtime::Handle::current();
    let commands = tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let (topic, payload) = line.split_once(' ').unwrap();
            let message = Message {
                topic: topic.to_owned(),
                payload: payload.to_owned().into(),
                retain: true,
                qos: Qos::AtLeastOnce,
            };
            runtime.block_on(broker.publish(message)).unwrap();
            println!("published");
        }
    });
    commands.await.unwrap();
}
