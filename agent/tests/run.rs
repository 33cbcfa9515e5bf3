//! The whole agent as a process: enrolled over HTTPS, connected over MQTT to a real broker, given a
//! signed bundle, asked for answers, killed, restarted without a network, stopped.

mod mosquitto;
mod support;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{Baseline, Prediction},
    desired::{Assigned, DESIRED_SCHEMA, Desired, Settings, SlotDesired},
    digest::{BlobDigest, BundleDigest, EnvelopeDigest},
    enroll::{EnrollRequest, EnrollResponse, Enrolled, JoinCode},
    ids::{AttemptId, DeviceId},
    message::{Action, Command as DeviceCommand, Labels, MESSAGE_SCHEMA, Presence, Reply},
    reported::{DeferReason, Phase, Reported, SlotReport},
    telemetry::{Ack, Agreement, BootAck, RecordBody, Role as WindowRole, TelemetryBatch},
    time::Timestamp,
    topics::{Channel, TRUST_HEAD},
    transfer::{
        BlockAnswer, BlockFrame, BlockHeader, FetchObject, FetchRequest, TRANSFER_SCHEMA, block_length,
    },
    trust::{
        Release, Role, SigningKey, Trust,
        documents::Roles,
        envelope::{COMMAND_TYPE, DESIRED_TYPE, RELEASE_TYPE, TRUST_TYPE},
        seal,
    },
};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use mosquitto::{Broker, DEADLINE, Observer};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};
use support::Source;
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::timeout,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn device() -> DeviceId {
    "dev-1".parse().unwrap()
}

fn now() -> Timestamp {
    edgefleet_agent::clock::now()
}

/// Keys, documents and blobs of a controller; [`serve_blocks`] hands them out.
struct Controller {
    publisher: SigningKey,
    controller: SigningKey,
    trust: Vec<u8>,
    blobs: HashMap<BlobDigest, Vec<u8>>,
}

impl Controller {
    fn new() -> Self {
        let key = || SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap();
        let (root, publisher, controller) = (key(), key(), key());
        let role = |key: &SigningKey| Role { keys: vec![key.public().id()], threshold: 1 };
        let document = Trust {
            version: 1,
            issued: now() - DAY,
            expires: now() + DAY * 300,
            keys: [&root, &publisher, &controller].map(|k| (k.public().id(), k.public())).into(),
            roles: Roles { trust: role(&root), publisher: role(&publisher), controller: role(&controller) },
            floors: Default::default(),
        };
        let trust = seal(TRUST_TYPE, &document, &[&root]);
        Self { publisher, controller, trust, blobs: HashMap::new() }
    }

    fn store(&mut self, bytes: Vec<u8>) -> BlobDigest {
        let digest = BlobDigest::of(&bytes);
        self.blobs.insert(digest, bytes);
        digest
    }

    /// Signs and stores `digits` in `version`, as `digits@counter`.
    fn publish(&mut self, version: u32, counter: u64) -> Assigned {
        let baseline = std::fs::read(support::models().join(format!("digits/v{version}/baseline.json")));
        let mut bundle = Source { baseline: baseline.ok(), ..Source::digits(version) }.write();
        bundle.manifest.model.counter = counter;
        bundle.manifest.prediction =
            Some(Prediction { class: Some("label".into()), scores: Some("probabilities".into()) });
        bundle.manifest.labels = (0..10).map(|digit| digit.to_string()).collect();
        for blob in bundle.manifest.blobs() {
            self.store(std::fs::read(bundle.blob(blob)).unwrap());
        }
        let manifest = bundle.manifest.to_bytes();
        let release = Release {
            bundle: bundle.manifest.name(),
            manifest: BundleDigest::of(&manifest),
            length: manifest.len() as u64,
            hardware: vec![],
            issued: now() - DAY,
        };
        self.store(manifest);
        let release = seal(RELEASE_TYPE, &release, &[&self.publisher]);
        let assigned = Assigned {
            bundle: bundle.manifest.name(),
            release: EnvelopeDigest::of(&release),
            release_size: release.len() as u64,
            attempt: AttemptId { rollout: "r-1".parse().unwrap(), number: counter as u32 },
        };
        self.store(release);
        assigned
    }

    fn slot(&self, active: &Assigned) -> SlotDesired {
        SlotDesired {
            active: active.clone(),
            candidate: None,
            probation_secs: 1,
            slower_percent: None,
            thresholds: vec![],
            shadow: None,
            window: None,
        }
    }

    fn desired(&self, generation: u64, slot: SlotDesired) -> Vec<u8> {
        let desired = Desired {
            schema: DESIRED_SCHEMA,
            device: device(),
            generation,
            issued: now(),
            expires: now() + DAY * 10,
            nonce: None,
            trust_version: 1,
            slots: [("digits".parse().unwrap(), slot)].into(),
            settings: Settings { window_secs: 1, profile_secs: 1, heartbeat_secs: 1, ..Settings::default() },
        };
        seal(DESIRED_TYPE, &desired, &[&self.controller])
    }

    /// Signs and stores `digits@7`; returns a signed desired state that assigns it.
    fn assign(&mut self, generation: u64) -> Vec<u8> {
        let active = self.publish(1, 7);
        self.desired(generation, self.slot(&active))
    }

    /// Answers one fetch request, block by block.
    async fn answer(&self, observer: &Observer, request: &FetchRequest) {
        let content = match request.object {
            FetchObject::Blob(digest) => self.blobs.get(&digest).map(Vec::as_slice),
            FetchObject::Trust(version) => (version == 1).then_some(self.trust.as_slice()),
        };
        let frame = |answer: BlockAnswer, payload: Bytes| {
            let id = request.id.clone();
            let header = BlockHeader { schema: TRANSFER_SCHEMA, id, object: request.object, answer };
            BlockFrame { header, payload }.to_bytes()
        };
        let topic = Channel::Blocks.of(&device());
        let Some(content) = content else {
            return observer.publish(&topic, frame(BlockAnswer::NotFound, Bytes::new())).await;
        };
        let (block_bytes, total_bytes) = (request.block_bytes, content.len() as u64);
        for index in request.blocks.iter().flat_map(|(from, to)| *from..*to) {
            let start = (index * u64::from(block_bytes)) as usize;
            let length = block_length(index, block_bytes, total_bytes) as usize;
            let payload = Bytes::copy_from_slice(&content[start..start + length]);
            let answer = BlockAnswer::Block { index, block_bytes, total_bytes };
            observer.publish(&topic, frame(answer, payload)).await;
        }
    }

    /// Serves blocks until a report says that the slot is committed.
    async fn bring_to_commit(&self, observer: &mut Observer) -> Reported {
        self.bring_to(observer, false, |slot| slot.phase == Phase::Committed).await
    }

    /// Serves blocks until a report of the slot is as wanted. `takes`: telemetry too, unread.
    async fn bring_to(
        &self,
        observer: &mut Observer,
        takes: bool,
        wanted: impl Fn(&SlotReport) -> bool,
    ) -> Reported {
        timeout(DEADLINE, async {
            loop {
                let message = observer.wait_for(|_| true).await;
                if message.topic == Channel::Fetch.of(&device()) {
                    self.answer(observer, &FetchRequest::parse(&message.payload).unwrap()).await;
                } else if takes && message.topic == Channel::Telemetry.of(&device()) {
                    acknowledge(observer, &message.payload).await;
                } else if message.topic == Channel::Reported.of(&device()) {
                    let reported: Reported = serde_json::from_slice(&message.payload).unwrap();
                    assert!(reported.slots.values().all(|s| !s.phase.is_failure()), "{reported:#?}");
                    if reported.slots.values().any(&wanted) {
                        return reported;
                    }
                }
            }
        })
        .await
        .expect("the slot did not come to what was wanted")
    }
}

/// Enrols whoever comes; returns the join code.
async fn enroller(broker: &Arc<Broker>, trust: &[u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = tokio_rustls::TlsAcceptor::from(broker.https());
    let (broker_, trust_) = (broker.clone(), trust.to_vec());
    tokio::spawn(async move {
        loop {
            let Ok((tcp, _)) = listener.accept().await else { return };
            let (broker, trust) = (broker_.clone(), trust_.clone());
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            let service = service_fn(move |request: Request<Incoming>| {
                let (broker, trust) = (broker.clone(), trust.clone());
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    let request: EnrollRequest = serde_json::from_slice(&body).unwrap();
                    let enrolled = Enrolled {
                        device: device(),
                        certificate: broker.sign("dev-1", &request.csr),
                        ca: broker.ca_pem(),
                        trust: vec![BASE64.encode(trust)],
                        mqtt_host: "localhost".into(),
                        mqtt_port: broker.port,
                        issued: now(),
                    };
                    let answer = EnrollResponse::Enrolled(Box::new(enrolled));
                    let body = serde_json::to_vec(&answer).unwrap();
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(body))))
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            http.serve_connection(TokioIo::new(tls), service).await.ok();
        }
    });
    JoinCode {
        url: format!("https://localhost:{port}"),
        ca_pin: BlobDigest::of(&broker.ca_der()),
        invite: "inv-1".parse().unwrap(),
        secret: "s".into(),
        trust_pin: EnvelopeDigest::of(trust),
    }
    .to_string()
}

fn agent(args: &[&str], data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgefleet-agent"));
    command
        .args(args)
        .arg("--data")
        .arg(data)
        .env("EDGEFLEET_AGENT_HTTP_LISTEN", "127.0.0.1:0")
        .env("EDGEFLEET_AGENT_GRPC_LISTEN", "127.0.0.1:0")
        .env("EDGEFLEET_AGENT_METRICS_LISTEN", "127.0.0.1:0")
        .kill_on_drop(true);
    command
}

async fn finish(mut command: Command) -> Output {
    timeout(DEADLINE, command.output()).await.expect("it did not end").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_hears_of_start_life_and_stop_even_without_a_controller() {
    let broker = Arc::new(Broker::start().await);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("agent");
    let code = enroller(&broker, &Controller::new().trust).await;
    assert!(finish(agent(&["enroll", &code], &data)).await.status.success());
    broker.stop();

    let socket = dir.path().join("notify");
    let notify = tokio::net::UnixDatagram::bind(&socket).unwrap();
    let mut command = agent(&["run"], &data);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "400000").stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let heard = async |wanted: &str| {
        timeout(DEADLINE, async {
            let mut buffer = [0; 256];
            loop {
                let length = notify.recv(&mut buffer).await.unwrap();
                if text(&buffer[..length]).contains(wanted) {
                    return;
                }
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{wanted} did not come"));
    };
    heard("READY=1").await;
    heard("WATCHDOG=1").await;
    heard("WATCHDOG=1").await;
    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    heard("STOPPING=1").await;
    let status = timeout(Duration::from_secs(6), child.wait()).await.expect("it did not stop in time");
    assert_eq!(status.unwrap().code(), Some(0));
}

/// A running agent and where it listens.
struct Running {
    child: Child,
    http: String,
    metrics: String,
}

impl Running {
    async fn start(data: &Path) -> Self {
        Self::start_with(data, &[]).await
    }

    /// `settings` are names and values of the environment.
    async fn start_with(data: &Path, settings: &[(&str, &str)]) -> Self {
        let log =
            std::fs::File::options().create(true).append(true).open(data.with_extension("log")).unwrap();
        let mut command = agent(&["run"], data);
        let mut child =
            command.envs(settings.iter().copied()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let path = data.join("run/addresses.json");
        let addresses = timeout(DEADLINE, async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    let log = std::fs::read(data.with_extension("log")).unwrap();
                    panic!("the agent ended with {status}:\n{}", text(&log));
                }
                let found = std::fs::read(&path).ok();
                let found = found.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
                if let Some(found) = found.filter(|a| a["pid"].as_u64() == child.id().map(u64::from)) {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the agent does not say where it listens");
        let at = |key: &str| addresses[key].as_str().unwrap().to_owned();
        Self { http: at("http"), metrics: at("metrics"), child }
    }

    async fn request(&self, address: &str, path: &str, body: Option<Value>) -> (StatusCode, String) {
        let tcp = TcpStream::connect(address).await.unwrap();
        let io = TokioIo::new(tcp);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().uri(path).header("host", address).header("connection", "close");
        let boxed = match body {
            None => request.body(Empty::<Bytes>::new().boxed()),
            Some(body) => request
                .method("POST")
                .body(Full::new(Bytes::from(serde_json::to_vec(&body).unwrap())).boxed()),
        };
        let answer = timeout(DEADLINE, sender.send_request(boxed.unwrap())).await.unwrap().unwrap();
        let status = answer.status();
        (status, text(&answer.into_body().collect().await.unwrap().to_bytes()))
    }

    async fn infer(&self) -> Value {
        let body = json!({"inputs": [
            {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": vec![0.5; 64]}
        ]});
        let (status, answer) = self.request(&self.http, "/v2/models/digits/infer", Some(body)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }
}

/// Takes a telemetry message: without a word of it the agent waits before it sends more.
async fn acknowledge(observer: &Observer, payload: &[u8]) -> TelemetryBatch {
    let batch = TelemetryBatch::parse(payload).unwrap();
    let last = batch.records.last().unwrap();
    let ack = BootAck { boot: last.boot, contiguous: last.seq, extra: vec![] };
    let ack = Ack { schema: 1, boots: vec![ack] };
    observer.publish(&Channel::Ack.of(&device()), serde_json::to_vec(&ack).unwrap()).await;
    batch
}

fn presence(payload: &[u8], online: bool) -> bool {
    serde_json::from_slice::<Presence>(payload).is_ok_and(|p| p.online == online)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_enrols_installs_a_signed_bundle_answers_and_outlives_kill_and_controller() {
    let broker = Arc::new(Broker::start().await);
    let mut controller = Controller::new();
    let mut observer = Observer::connect(&broker).await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("agent");

    // Not enrolled: says so, and what to do.
    let refused = finish(agent(&["run"], &data)).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("hint: run `edgefleet-agent enroll CODE"), "{refused:?}");
    let code = enroller(&broker, &controller.trust).await;
    let enrolled = finish(agent(&["enroll", &code, "--name", "cam-1"], &data)).await;
    assert_eq!(
        (enrolled.status.code(), text(&enrolled.stdout).as_str()),
        (Some(0), "dev-1\n"),
        "{enrolled:?}"
    );

    let running = Running::start(&data).await;
    observer.wait_for(|m| presence(&m.payload, true)).await;
    // Rubbish on every channel costs nothing.
    for channel in [Channel::Desired, Channel::Blocks, Channel::Command, Channel::Ack, Channel::Label] {
        for rubbish in [b"".to_vec(), b"{}".to_vec(), vec![0xff; 9_000], b"{\"schema\":9}".to_vec()] {
            observer.publish(&channel.of(&device()), rubbish).await;
        }
    }
    observer.publish(TRUST_HEAD, "rubbish").await;
    // A second agent on the same data is refused.
    let second = finish(agent(&["run"], &data)).await;
    assert!(text(&second.stderr).contains("error: another agent (process"), "{second:?}");
    assert_eq!(second.status.code(), Some(1));

    let desired = controller.assign(1);
    observer.publish(&Channel::Desired.of(&device()), desired.clone()).await;
    let reported = controller.bring_to_commit(&mut observer).await;
    assert_eq!((reported.generation, reported.device.clone()), (1, device()));
    assert_eq!(
        reported.slots.values().next().unwrap().active.as_ref().unwrap().bundle.to_string(),
        "digits@7"
    );
    let answer = running.infer().await;
    assert_eq!(answer["model_version"], "7", "{answer}");
    let (status, metrics) = running.request(&running.metrics, "/metrics", None).await;
    assert!(status.is_success(), "{metrics}");
    for line in [
        "edgefleet_link_connected 1",
        "edgefleet_link_connects_total 1",
        "edgefleet_outbox_lost_records_total 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }

    // Windows and the terminal report come until they are acknowledged. What was sent before is sent
    // again at once because the controller asks for it.
    let command = |id: &str, action: Action| DeviceCommand {
        schema: MESSAGE_SCHEMA,
        id: id.parse().unwrap(),
        device: device(),
        nonce: format!("nonce of {id}"),
        deadline: now() + DAY,
        action,
    };
    let again = seal(COMMAND_TYPE, &command("cmd-0", Action::Report), &[&controller.controller]);
    observer.publish(&Channel::Command.of(&device()), again).await;
    let (mut windows, mut terminals) = (0, 0);
    while windows == 0 || terminals == 0 {
        let message = observer.wait_for(|m| m.topic == Channel::Telemetry.of(&device())).await;
        for record in &acknowledge(&observer, &message.payload).await.records {
            match &record.body {
                RecordBody::Window(window) if window.counts.ok > 0 => windows += 1,
                RecordBody::Terminal(report) if report.phase == Phase::Committed => terminals += 1,
                _ => {}
            }
        }
    }

    // Only signed commands are answered, and only once.
    let forged = seal(COMMAND_TYPE, &command("cmd-1", Action::Ping), &[&controller.publisher]);
    let good = seal(COMMAND_TYPE, &command("cmd-1", Action::Ping), &[&controller.controller]);
    let next = seal(COMMAND_TYPE, &command("cmd-2", Action::Report), &[&controller.controller]);
    for raw in [&forged, &good, &good, &next] {
        observer.publish(&Channel::Command.of(&device()), raw.clone()).await;
    }
    for wanted in ["cmd-1", "cmd-2"] {
        let from_now_on = |m: &[u8]| !String::from_utf8_lossy(m).contains("cmd-0");
        let topic = Channel::Reply.of(&device());
        let reply = observer.wait_for(|m| m.topic == topic && from_now_on(&m.payload)).await;
        let reply: Reply = serde_json::from_slice(&reply.payload).unwrap();
        assert!(reply.ok);
        assert_eq!(reply.id.as_str(), wanted);
    }
    let labels = Labels { schema: MESSAGE_SCHEMA, source: "test".into(), labels: vec![] };
    observer.publish(&Channel::Label.of(&device()), serde_json::to_vec(&labels).unwrap()).await;

    // `status` shows it to people and to scripts.
    let status = finish(agent(&["status", "--output", "json"], &data)).await;
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["link"]["connected"], true, "{status}");
    assert_eq!(status["update"]["slots"]["digits"]["phase"], "committed", "{status}");
    assert!(status["link"]["malformed"].as_u64().unwrap() >= 10, "{status}");
    let table = finish(agent(&["status"], &data)).await;
    assert!(
        text(&table.stdout).contains("digits: digits@7, ") && text(&table.stdout).contains(" ms (committed)"),
        "{table:?}"
    );

    // Killed: the will says so. Restarted without a controller: serves from disk.
    running.signal("KILL");
    observer.wait_for(|m| presence(&m.payload, false)).await;
    drop(running);
    broker.stop();
    let offline = Running::start(&data).await;
    assert_eq!(offline.infer().await["model_version"], "7");

    // The broker is back, with nothing remembered: the agent says all of it again by itself.
    broker.restart().await;
    let mut observer = Observer::connect(&broker).await;
    let again = observer.wait_for(|m| m.topic == Channel::Reported.of(&device())).await;
    let again: Reported = serde_json::from_slice(&again.payload).unwrap();
    assert_eq!(again.slots.values().next().unwrap().phase, Phase::Committed);
    assert_ne!(again.boot, reported.boot);

    // Told to stop: last windows are kept, the controller hears why, all within five seconds.
    offline.infer().await;
    offline.signal("TERM");
    let mut child = offline.child;
    let status = timeout(Duration::from_secs(6), child.wait()).await.expect("it did not stop in time");
    assert_eq!(status.unwrap().code(), Some(0));
    let gone = observer.wait_for(|m| presence(&m.payload, false)).await;
    let gone: Presence = serde_json::from_slice(&gone.payload).unwrap();
    assert_eq!(gone.reason, "stopped by SIGTERM");
    assert!(!data.join("run/addresses.json").exists());
    let stopped = finish(agent(&["status"], &data)).await;
    assert_eq!(stopped.status.code(), Some(1));
    assert!(text(&stopped.stderr).contains("error: no agent runs on"), "{stopped:?}");
}

/// The whole way of a candidate on a real agent: beside the active bundle, over a kill, and into service
/// when its window lets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_shadows_outlives_a_kill_and_takes_over_when_its_window_opens() {
    let broker = Arc::new(Broker::start().await);
    let mut controller = Controller::new();
    let mut observer = Observer::connect(&broker).await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("agent");
    let code = enroller(&broker, &controller.trust).await;
    assert!(finish(agent(&["enroll", &code], &data)).await.status.success());
    let running = Running::start(&data).await;
    observer.wait_for(|m| presence(&m.payload, true)).await;
    let topic = Channel::Desired.of(&device());
    let (one, two) = (controller.publish(1, 7), controller.publish(2, 8));
    observer.publish(&topic, controller.desired(1, controller.slot(&one))).await;
    controller.bring_to(&mut observer, true, |slot| slot.phase == Phase::Committed).await;

    let beside = SlotDesired { candidate: Some(two.clone()), ..controller.slot(&one) };
    observer.publish(&topic, controller.desired(2, beside.clone())).await;
    let shadows = |slot: &SlotReport| slot.candidate.as_ref().is_some_and(|c| c.phase == Phase::Shadowing);
    let reported = controller.bring_to(&mut observer, true, shadows).await;
    assert_eq!(reported.slots.values().next().unwrap().phase, Phase::Committed);
    for _ in 0..20 {
        assert_eq!(running.infer().await["model_version"], "7");
    }
    // Its window tells how it agrees; the report how much it was given.
    let mut agreement = Agreement::default();
    let mut profiles = BTreeMap::new();
    while agreement.n < 20 || profiles.len() < 2 {
        let message = observer.wait_for(|m| m.topic == Channel::Telemetry.of(&device())).await;
        for record in acknowledge(&observer, &message.payload).await.records {
            if let RecordBody::Profile(profile) = &record.body {
                profiles.insert(profile.role, profile.content.clone());
            }
            let RecordBody::Window(window) = record.body else { continue };
            let Some(found) = window.agreement else { continue };
            assert_eq!(
                (window.role, window.bundle.counter, window.attempt.number),
                (WindowRole::Shadow, 8, 8)
            );
            agreement.n += found.n;
            agreement.errors += found.errors;
        }
    }
    assert_eq!((agreement.n, agreement.errors), (20, 0));
    // Its profile tells how sure it is, that of the active bundle what the pictures look like as well: in the
    // bins of the baseline that came with the bundle.
    let bytes = std::fs::read(support::models().join("digits/v1/baseline.json")).unwrap();
    let baseline = Baseline::parse(&bytes).unwrap();
    let (active, shadow) = (&profiles[&WindowRole::Primary], &profiles[&WindowRole::Shadow]);
    assert!(active.is_sound() && shadow.is_sound());
    for id in ["input/image/luma", "input/image/sharpness", "confidence", "entropy"] {
        let (found, shipped) = (active.channel(id).unwrap(), baseline.channel(&id.parse().unwrap()).unwrap());
        assert_eq!((found.n, found.bins.len()), (20, shipped.edges.len() + 1), "{id}");
        assert_eq!(found.bins.iter().sum::<u64>(), 20, "{id}");
    }
    assert_eq!(active.quality.as_ref().map(|quality| quality.n), Some(20));
    assert!(shadow.channel("confidence").is_some() && shadow.channel("input/image/luma").is_none());
    let counted = |slot: &SlotReport| slot.candidate.as_ref().is_some_and(|c| c.mirrored == 20);
    controller.bring_to(&mut observer, true, counted).await;
    let table = finish(agent(&["status"], &data)).await;
    let wanted = "candidate    digits: digits@8 (shadowing), 20 mirrored\n";
    assert!(text(&table.stdout).contains(wanted), "{}", text(&table.stdout));

    // Killed: the same two run again, from disk, without a word from the controller.
    running.signal("KILL");
    let mut child = running.child;
    timeout(DEADLINE, child.wait()).await.expect("it does not die").unwrap();
    observer.wait_for(|m| presence(&m.payload, false)).await;
    let running = Running::start(&data).await;
    let status = timeout(DEADLINE, async {
        loop {
            let (_, status) = running.request(&running.http, "/v1/status", None).await;
            let status: Value = serde_json::from_str(&status).unwrap();
            if status["slots"]["digits"]["shadow"]["bundle"] == "digits@8" {
                return status;
            }
        }
    })
    .await
    .expect("the candidate does not run again");
    assert_eq!(status["slots"]["digits"]["bundle"], "digits@7");

    observer.wait_for(|m| presence(&m.payload, true)).await;

    // Promoted, but its window is closed for twelve hours; an urgent order passes it.
    let hour = (now().as_secs() / 3_600 + 12) % 24;
    let window = |urgent: bool| {
        let window = json!({"cron": format!("0 {hour} * * *"), "for_secs": 1800, "zone": "UTC", "ignore_window": urgent});
        serde_json::from_value(window).unwrap()
    };
    let two = Assigned { attempt: AttemptId { number: 9, ..two.attempt }, ..two };
    let promoted = SlotDesired { window: Some(window(false)), ..controller.slot(&two) };
    observer.publish(&topic, controller.desired(3, promoted)).await;
    let reported = controller.bring_to(&mut observer, true, |slot| slot.phase == Phase::Deferred).await;
    let deferred = reported.slots.values().next().unwrap().deferred.unwrap();
    assert_eq!(
        (deferred.reason, deferred.until.unwrap().as_secs() / 3_600 % 24),
        (DeferReason::Window, hour)
    );
    assert_eq!(running.infer().await["model_version"], "7");
    let urgent = SlotDesired { window: Some(window(true)), ..controller.slot(&two) };
    observer.publish(&topic, controller.desired(4, urgent)).await;
    let takes_over = |slot: &SlotReport| {
        slot.phase == Phase::Committed && slot.active.as_ref().is_some_and(|a| a.attempt.number == 9)
    };
    controller.bring_to(&mut observer, true, takes_over).await;
    assert_eq!(running.infer().await["model_version"], "8");
    broker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_agent_answers_files_by_its_settings_and_shows_it_to_people() {
    let broker = Arc::new(Broker::start().await);
    let mut controller = Controller::new();
    let mut observer = Observer::connect(&broker).await;
    let dir = tempfile::tempdir().unwrap();
    let (data, inbox, answers) =
        (dir.path().join("agent"), dir.path().join("in"), dir.path().join("answers.jsonl"));
    std::fs::create_dir(&inbox).unwrap();
    let settings = dir.path().join("agent.toml");
    let bindings = format!(
        "[[bindings]]\nname = \"inbox\"\nslot = \"digits\"\nanswer = \"outputs\"\n\
         source = {{ kind = \"directory\", path = \"{}\", every = \"20ms\" }}\n\
         sink = {{ kind = \"file\", path = \"{}\" }}\n",
        inbox.display(),
        answers.display()
    );
    std::fs::write(&settings, bindings).unwrap();
    let code = enroller(&broker, &controller.trust).await;
    assert!(finish(agent(&["enroll", &code], &data)).await.status.success());
    let running = Running::start_with(&data, &[("EDGEFLEET_AGENT_CONFIG", settings.to_str().unwrap())]).await;
    observer.wait_for(|m| presence(&m.payload, true)).await;
    // It is there before there is a model.
    let request = json!({"inputs": [
        {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": vec![0.5; 64]}
    ]});
    std::fs::write(inbox.join("early.tmp"), request.to_string()).unwrap();
    std::fs::rename(inbox.join("early.tmp"), inbox.join("early")).unwrap();
    let desired = controller.assign(1);
    observer.publish(&Channel::Desired.of(&device()), desired).await;
    controller.bring_to_commit(&mut observer).await;
    let answer = timeout(DEADLINE, async {
        loop {
            let text = std::fs::read_to_string(&answers).unwrap_or_default();
            if text.ends_with('\n') && inbox.join("done/early").exists() {
                return serde_json::from_str::<Value>(&text).unwrap();
            }
            tokio::task::yield_now().await;
        }
    });
    let answer = answer.await.expect("the file is not answered");
    assert_eq!((&answer["id"], &answer["bundle"]), (&json!("early"), &json!("digits@7")), "{answer}");
    assert_eq!(answer["label"], answer["outputs"]["label"][0].to_string(), "{answer}");
    let wanted = format!(
        "binding      inbox: directory {} -> digits -> file {}, 1 answered, 0 failed\n",
        inbox.display(),
        answers.display()
    );
    timeout(DEADLINE, async {
        loop {
            let table = finish(agent(&["status"], &data)).await;
            if text(&table.stdout).contains(&wanted) {
                return;
            }
        }
    })
    .await
    .expect("the status does not show the binding");
    running.signal("TERM");
    let mut child = running.child;
    let status = timeout(Duration::from_secs(6), child.wait()).await.expect("it did not stop in time");
    assert_eq!(status.unwrap().code(), Some(0));
}

/// The engines of the status document.
async fn engines(running: &Running) -> Value {
    let (status, text) = running.request(&running.http, "/v1/status", None).await;
    assert!(status.is_success(), "{text}");
    serde_json::from_str::<Value>(&text).unwrap()["engines"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_is_served_by_the_chosen_engine_and_by_another_that_passes_once_its_library_is_gone() {
    let Some(real) = support::ort::library() else { return };
    let broker = Arc::new(Broker::start().await);
    let mut controller = Controller::new();
    let mut observer = Observer::connect(&broker).await;
    let dir = tempfile::tempdir().unwrap();
    let (data, library) = (dir.path().join("agent"), dir.path().join("libonnxruntime.so.1"));
    std::fs::copy(real, &library).unwrap();
    let code = enroller(&broker, &controller.trust).await;
    assert!(finish(agent(&["enroll", &code], &data)).await.status.success());
    let at = ("EDGEFLEET_AGENT_ENGINE_ONNXRUNTIME", library.to_str().unwrap());
    let running = Running::start_with(&data, &[at, ("EDGEFLEET_AGENT_ENGINE_PIN", "onnxruntime")]).await;
    observer.wait_for(|m| presence(&m.payload, true)).await;
    let desired = controller.assign(1);
    observer.publish(&Channel::Desired.of(&device()), desired).await;
    controller.bring_to_commit(&mut observer).await;
    let first = running.infer().await;
    let seen = engines(&running).await;
    assert_eq!(seen["slots"]["digits"]["setup"], "onnxruntime/f32/1", "{seen}");
    assert_eq!(seen["slots"]["digits"]["refused"][0]["reason"], "the settings pin another", "{seen}");

    // The choice is remembered; the start needs no child and no network.
    running.signal("KILL");
    drop(running);
    let running = Running::start_with(&data, &[at, ("EDGEFLEET_AGENT_ENGINE_PIN", "onnxruntime")]).await;
    assert_eq!(running.infer().await["outputs"], first["outputs"]);
    assert_eq!(engines(&running).await["slots"]["digits"]["setup"], "onnxruntime/f32/1");

    running.signal("KILL");
    drop(running);
    std::fs::remove_file(&library).unwrap();
    let running = Running::start_with(&data, &[at]).await;
    let other = running.infer().await;
    let label = |answer: &Value| {
        let outputs = answer["outputs"].as_array().unwrap();
        outputs.iter().find(|output| output["name"] == "label").unwrap()["data"].clone()
    };
    assert_eq!(label(&other), label(&first));
    let seen = engines(&running).await;
    assert_eq!(seen["slots"]["digits"]["setup"], "tract/f32/1", "{seen}");
    assert_eq!(seen["slots"]["digits"]["current"], true, "{seen}");
}
