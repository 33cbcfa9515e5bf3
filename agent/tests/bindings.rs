//! Inputs without a client: a real Mosquitto, real folders and a real model; recordings and lines of JSON by the
//! program itself.

mod support;

use bytes::Bytes;
use edgefleet_agent::{
    bindings::Bindings,
    clock,
    config::{self, Config},
    engine::{
        LoadedModel, RunError, pool::WorkerPool, setup::EngineName, subject::Subject, tract::TractEngine,
    },
    monitor::{Moment, Monitor, MonitorClock, MonitorConfig, RecordSink, SinkError},
    serving::{
        ServedBundle, SlotTable,
        http::{ServingConfig, ServingState, serve, serve_metrics},
    },
};
use edgefleet_shared::{
    bundle::{Precision, Prediction},
    digest::BundleDigest,
    ids::{AttemptId, BootId},
    reported::ClockQuality,
    telemetry::RecordBody,
    tensor::Tensor,
};
use parking_lot::Mutex;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, Publish, QoS};
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Arc, mpsc as std_mpsc},
    time::{Duration, Instant},
};
use support::Source;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

struct SinceStart(Instant);
impl MonitorClock for SinceStart {
    fn now(&self) -> Moment {
        let mono_ms = u64::try_from(self.0.elapsed().as_millis()).unwrap();
        Moment { mono_ms, wall: clock::now(), clock: ClockQuality::Plausible }
    }
}

struct Nowhere;
impl RecordSink for Nowhere {
    fn append(&self, _: RecordBody) -> Result<(), SinkError> {
        Ok(())
    }
}

/// `digits@7` as it is, or with another model behind its interface.
fn digits(model: Option<Arc<dyn LoadedModel>>) -> Arc<ServedBundle> {
    let bundle = Source::digits(2).write();
    let model = model.unwrap_or_else(|| {
        let subject = Subject::open(bundle.folder.path()).unwrap();
        let file = subject.file(Precision::F32).unwrap();
        subject.load(&TractEngine::new(), file).unwrap().into()
    });
    let mut manifest = bundle.manifest.clone();
    manifest.prediction =
        Some(Prediction { class: Some("label".into()), scores: Some("probabilities".into()) });
    manifest.labels = (0..10).map(|digit| format!("digit {digit}")).collect();
    Arc::new(ServedBundle {
        slot: "digits".parse().unwrap(),
        digest: BundleDigest::of(b"digits"),
        attempt: AttemptId { rollout: "r1".parse().unwrap(), number: 1 },
        bundle: manifest.name(),
        manifest,
        model,
        engine: EngineName::Tract,
        baseline: Default::default(),
    })
}

/// The first golden image as a request, as raw bytes, and its digit.
fn sample() -> (Value, Bytes, i64) {
    let (_, sample) = &Source::digits(2).golden[0];
    let image = &sample.inputs[0];
    let request = json!({"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": support::values(image)}]});
    let label = sample.outputs.iter().find(|tensor| tensor.name() == "label").unwrap();
    (request, image.data().clone(), i64::from_le_bytes(label.data()[..8].try_into().unwrap()))
}

/// The serving part of an agent with bindings.
struct Served {
    state: ServingState,
    http: SocketAddr,
    metrics: SocketAddr,
    stop: CancellationToken,
    bindings: JoinHandle<()>,
}

fn settings(folder: &Path, text: &str) -> Config {
    let path = folder.join("agent.toml");
    fs::write(&path, text).unwrap();
    config::load(Some(&path), [], []).unwrap_or_else(|wrong| panic!("{wrong:?}"))
}

impl Served {
    async fn start(folder: &Path, bindings: &str, bundle: Option<Arc<ServedBundle>>) -> Self {
        let config = settings(folder, bindings);
        let monitor = MonitorConfig::new("dev-1".parse().unwrap(), BootId::from_random([7; 16]));
        let monitor =
            Arc::new(Monitor::new(monitor, Arc::new(SinceStart(Instant::now())), Arc::new(Nowhere)));
        let slots = SlotTable::new(monitor.clone());
        if let Some(bundle) = bundle {
            slots.activate(bundle);
        }
        let pool = Arc::new(WorkerPool::new(1, 64).unwrap());
        let state = ServingState::new(ServingConfig::default(), slots, pool, monitor);
        let stop = CancellationToken::new();
        let [main, metrics] = [listen().await, listen().await];
        let [http, metrics_at] = [&main, &metrics].map(|listener| listener.local_addr().unwrap());
        tokio::spawn(serve(vec![main.into()], state.clone(), stop.clone()));
        tokio::spawn(serve_metrics(vec![metrics.into()], state.clone(), stop.clone()));
        let device = "dev-1".parse().unwrap();
        let bindings = Bindings::new(config.bindings, state.clone(), device, 1 << 20);
        let bindings = tokio::spawn(bindings.run(stop.clone()));
        Self { state, http, metrics: metrics_at, stop, bindings }
    }

    async fn status(&self) -> Value {
        serde_json::from_str(&get(self.http, "/v1/status").await).unwrap()
    }

    /// The binding's part of the status, once it is as wanted.
    async fn binding(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = timeout(DEADLINE, async {
            loop {
                last = self.status().await["bindings"][name].clone();
                if wanted(&last) {
                    return last.clone();
                }
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("the binding does not come to what is wanted: {last}"),
        }
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.bindings).await.expect("the bindings do not stop").unwrap();
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn get(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Waits for a file that holds `lines` lines.
async fn read_when(path: &Path, lines: usize) -> Vec<Value> {
    let found = timeout(DEADLINE, async {
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            if text.ends_with('\n') && text.lines().count() >= lines {
                return text;
            }
            tokio::task::yield_now().await;
        }
    });
    let text = found.await.unwrap_or_else(|_| panic!("{} does not come", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Debian's Mosquitto in clear text, for `edge` with the password `geheim` only.
struct Broker {
    process: Mutex<Child>,
    folder: PathBuf,
    port: u16,
}

impl Broker {
    async fn start(folder: &Path) -> Self {
        let port = listen().await.local_addr().unwrap().port();
        let passwords = folder.join("passwords");
        let made = std::process::Command::new("mosquitto_passwd")
            .args(["-b", "-c", passwords.to_str().unwrap(), "edge", "geheim"])
            .output()
            .expect("install mosquitto (apt-get install mosquitto)");
        assert!(made.status.success(), "{made:?}");
        fs::write(folder.join("password"), "geheim\n").unwrap();
        let settings = format!(
            "listener {port} 127.0.0.1\nallow_anonymous false\npersistence false\nuser root\npassword_file {}\n",
            passwords.display()
        );
        fs::write(folder.join("mosquitto.conf"), settings).unwrap();
        let process = Mutex::new(Self::spawn(folder));
        let broker = Self { process, folder: folder.to_owned(), port };
        broker.listens().await;
        broker
    }

    fn spawn(folder: &Path) -> Child {
        let mut command = std::process::Command::new("mosquitto");
        command.arg("-c").arg(folder.join("mosquitto.conf")).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    async fn listens(&self) {
        let listens = async {
            while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, listens).await.expect("mosquitto does not listen");
    }

    async fn restart(&self) {
        self.stop();
        *self.process.lock() = Self::spawn(&self.folder);
        self.listens().await;
    }

    fn stop(&self) {
        let mut process = self.process.lock();
        process.kill().ok();
        process.wait().ok();
    }

    /// Somebody else at the broker, who hears of `filter`.
    async fn peer(&self, filter: &str) -> (AsyncClient, mpsc::UnboundedReceiver<Publish>) {
        let mut options = MqttOptions::new("peer", "127.0.0.1", self.port);
        options.set_credentials("edge", "geheim").set_max_packet_size(8 << 20, 8 << 20);
        let (client, mut connection) = AsyncClient::new(options, 64);
        client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        let (ready, subscribed) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut ready = Some(ready);
            while let Ok(event) = connection.poll().await {
                match event {
                    Event::Incoming(Packet::SubAck(_)) => drop(ready.take().map(|ready| ready.send(()))),
                    Event::Incoming(Packet::Publish(message)) if sender.send(message.clone()).is_err() => {
                        return;
                    }
                    _ => {}
                }
            }
        });
        timeout(DEADLINE, subscribed).await.unwrap().unwrap();
        (client, receiver)
    }

    /// A binding from `in/#` to `answers/DEVICE/SLOT`.
    fn binding(&self, more: &str) -> String {
        let at = |name: &str| self.folder.join(name).display().to_string();
        format!(
            "[[bindings]]\nname = \"camera\"\nslot = \"digits\"\n{more}\n\
             source = {{ kind = \"mqtt\", host = \"localhost\", port = {}, topic = \"in/#\", qos = 1, \
             username = \"edge\", password_file = \"{}\" }}\n\
             sink = {{ kind = \"mqtt\", topic = \"answers/{{device}}/{{slot}}\" }}\n",
            self.port,
            at("password")
        )
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn next(heard: &mut mpsc::UnboundedReceiver<Publish>) -> Value {
    let message = timeout(DEADLINE, heard.recv()).await.expect("no answer comes").unwrap();
    assert_eq!(message.topic, "answers/dev-1/digits");
    serde_json::from_slice(&message.payload).unwrap()
}

fn is_up(binding: &Value) -> bool {
    binding["source"]["up"] == true && binding["sink"]["up"] == true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_local_broker_are_answered_there_also_after_it_was_away() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path()).await;
    let served = Served::start(folder.path(), &broker.binding(""), Some(digits(None))).await;
    served.binding("camera", is_up).await;
    let (client, mut heard) = broker.peer("answers/#").await;
    let (request, _, digit) = sample();
    let publish = async |client: &AsyncClient, payload: Vec<u8>| {
        client.publish("in/1", QoS::AtLeastOnce, false, payload).await.unwrap();
    };
    publish(&client, request.to_string().into_bytes()).await;
    let answer = next(&mut heard).await;
    assert_eq!(
        (&answer["model_version"], &answer["parameters"]["bundle"]),
        (&json!("7"), &json!("digits@7"))
    );
    assert!(answer["parameters"]["prediction_id"].is_string(), "{answer}");
    assert_eq!(answer["id"], "in/1", "the topic tells who asked: {answer}");
    let label = answer["outputs"].as_array().unwrap().iter().find(|o| o["name"] == "label").unwrap();
    assert_eq!(label["data"], json!([digit]));
    // Rubbish is answered with what is wrong, and costs nothing else.
    for (rubbish, why) in [
        (b"".to_vec(), "not an inference request"),
        (vec![0xff; 1_000], "not an inference request"),
        (br#"{"inputs":[]}"#.to_vec(), "input `image`"),
    ] {
        publish(&client, rubbish).await;
        let error = next(&mut heard).await;
        assert!(error["error"].as_str().unwrap().contains(why) && error["slot"] == "digits", "{error}");
    }
    let binding = served.binding("camera", |binding| binding["failed"] == 3).await;
    assert_eq!((&binding["received"], &binding["answered"]), (&json!(4), &json!(1)), "{binding}");
    // It went the way of every request.
    let status = served.status().await;
    assert_eq!(status["slots"]["digits"]["ok"], 1, "{status}");
    assert_eq!(status["slots"]["digits"]["errors"]["bad-input"], 3, "{status}");

    // More than may ever be held is not held: it costs the session, which comes back.
    assert_eq!(binding["source"]["reached"], 1, "{binding}");
    publish(&client, vec![b' '; 3 << 20]).await;
    let binding = served.binding("camera", |binding| binding["source"]["reached"] == 2).await;
    assert_eq!(binding["received"], 4, "{binding}");
    publish(&client, request.to_string().into_bytes()).await;
    assert_eq!(next(&mut heard).await["model_version"], "7");

    broker.stop();
    let away = served.binding("camera", |binding| !is_up(binding)).await;
    assert!(away["source"]["trouble"].is_string() || away["sink"]["trouble"].is_string(), "{away}");
    broker.restart().await;
    served.binding("camera", is_up).await;
    let (client, mut heard) = broker.peer("answers/#").await;
    publish(&client, request.to_string().into_bytes()).await;
    assert_eq!(next(&mut heard).await["model_version"], "7");
    served.end().await;
}

/// Tells of every run and waits for a word.
struct Gated(Mutex<std_mpsc::Receiver<()>>, Arc<dyn LoadedModel>);
impl LoadedModel for Gated {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        self.0.lock().recv_timeout(DEADLINE).map_err(|e| RunError::Engine(e.to_string()))?;
        self.1.run(inputs)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_faster_than_the_model_answers_pushes_the_oldest_out_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path()).await;
    let (go, gate) = std_mpsc::channel();
    let model = Gated(Mutex::new(gate), digits(None).model.clone());
    let text = broker.binding("queue = 2\nanswer = \"outputs\"");
    let served = Served::start(folder.path(), &text, Some(digits(Some(Arc::new(model))))).await;
    served.binding("camera", is_up).await;
    let (client, mut heard) = broker.peer("answers/#").await;
    let (mut request, _, digit) = sample();
    for id in 1..=6 {
        request["id"] = json!(format!("picture {id}"));
        client.publish("in/1", QoS::AtLeastOnce, false, request.to_string()).await.unwrap();
        served.binding("camera", |binding| binding["received"] == id).await;
        // The first is in the model before others come.
        let in_model = async { while served.status().await["slots"]["digits"]["in_flight"] != 1 {} };
        timeout(DEADLINE, in_model).await.expect("the first input does not reach the model");
    }
    let binding = served.binding("camera", |binding| binding["dropped"] == 3).await;
    assert_eq!(binding["queued"], 2, "{binding}");
    for _ in 0..3 {
        go.send(()).unwrap();
    }
    for id in [1, 5, 6] {
        let answer = next(&mut heard).await;
        assert_eq!(answer["id"], format!("picture {id}"), "{answer}");
        assert_eq!(answer["label"], format!("digit {digit}"), "{answer}");
        assert_eq!(answer["outputs"]["label"], json!([digit]), "{answer}");
    }
    served.binding("camera", |binding| binding["answered"] == 3).await;
    let metrics = get(served.metrics, "/metrics").await;
    for line in [
        "edgefleet_binding_inputs_total{binding=\"camera\",outcome=\"answered\"} 3",
        "edgefleet_binding_inputs_total{binding=\"camera\",outcome=\"dropped\"} 3",
        "edgefleet_binding_inputs_total{binding=\"camera\",outcome=\"failed\"} 0",
        "edgefleet_binding_queue_inputs{binding=\"camera\"} 0",
        "edgefleet_binding_up{binding=\"camera\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_wait_for_their_model_are_answered_oldest_first_and_put_away() {
    let folder = tempfile::tempdir().unwrap();
    let (inbox, answers) = (folder.path().join("in"), folder.path().join("answers.jsonl"));
    let copies = folder.path().join("copies");
    fs::create_dir(&inbox).unwrap();
    let text = format!(
        "[[bindings]]\nname = \"inbox\"\nslot = \"digits\"\nbody = \"bytes\"\nanswer = \"outputs\"\n\
         source = {{ kind = \"directory\", path = \"{}\", every = \"20ms\" }}\n\
         sink = {{ kind = \"file\", path = \"{}\" }}\n\
         [[bindings]]\nname = \"copies\"\nslot = \"digits\"\n\
         source = {{ kind = \"directory\", path = \"{}\", every = \"20ms\", after = \"delete\" }}\n\
         sink = {{ kind = \"directory\", path = \"{}\" }}\n",
        inbox.display(),
        answers.display(),
        copies.display(),
        copies.join("out").display()
    );
    let (request, raw, digit) = sample();
    for (name, secs) in [("second", 2), ("first", 1), (".hidden", 0), ("half.part", 0)] {
        fs::write(inbox.join(name), &raw).unwrap();
        let file = fs::File::options().write(true).open(inbox.join(name)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(secs)).unwrap();
    }
    let served = Served::start(folder.path(), &text, None).await;
    // Nobody serves the slot: the files wait. The other folder does not exist yet.
    let unserved = |binding: &Value| {
        let trouble = binding["source"]["trouble"].as_str();
        trouble.is_some_and(|trouble| trouble.contains("`digits` is not served"))
    };
    let waiting = served.binding("inbox", unserved).await;
    assert_eq!(waiting["queued"], 2, "{waiting}");
    served.binding("copies", |binding| binding["source"]["trouble"].is_string()).await;
    served.state.slots().activate(digits(None));
    let found = read_when(&answers, 2).await;
    for (answer, name) in found.iter().zip(["first", "second"]) {
        assert_eq!((&answer["id"], &answer["bundle"]), (&json!(name), &json!("digits@7")), "{answer}");
        assert_eq!(answer["label"], format!("digit {digit}"), "{answer}");
        assert!(answer["confidence"].as_f64().unwrap() > 0.5, "{answer}");
    }
    // Complete from the moment it has its name.
    fs::write(inbox.join("late.tmp"), &raw[..100]).unwrap();
    fs::rename(inbox.join("late.tmp"), inbox.join("late")).unwrap();
    let error = read_when(&answers, 3).await.remove(2);
    assert_eq!(error["id"], "late");
    assert!(error["error"].as_str().unwrap().contains("needs 256 bytes, but 100 came"), "{error}");
    let binding = served.binding("inbox", |binding| binding["failed"] == 1).await;
    assert_eq!((&binding["answered"], &binding["received"]), (&json!(2), &json!(3)));
    let put_away = timeout(DEADLINE, async {
        while !inbox.join("failed/late.error.txt").exists() {
            tokio::task::yield_now().await;
        }
    });
    put_away.await.expect("the file is not put away");
    for (path, there) in [
        ("done/first", true),
        ("done/second", true),
        ("failed/late", true),
        ("first", false),
        (".hidden", true),
        ("half.part", true),
    ] {
        assert_eq!(inbox.join(path).exists(), there, "{path}");
    }

    fs::create_dir(&copies).unwrap();
    fs::write(copies.join("a.json.tmp"), request.to_string()).unwrap();
    fs::rename(copies.join("a.json.tmp"), copies.join("a.json")).unwrap();
    let answer = read_when(&copies.join("out/a.json.json"), 1).await.remove(0);
    assert_eq!((&answer["id"], &answer["model_name"]), (&json!("a.json"), &json!("digits")));
    served.binding("copies", |binding| binding["answered"] == 1 && binding["source"]["up"] == true).await;
    assert!(!copies.join("a.json").exists());
    served.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_stays_until_the_broker_has_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path()).await;
    broker.stop();
    let inbox = folder.path().join("in");
    fs::create_dir(&inbox).unwrap();
    let (request, _, _) = sample();
    fs::write(inbox.join("a"), request.to_string()).unwrap();
    let text = format!(
        "[[bindings]]\nname = \"inbox\"\nslot = \"digits\"\n\
         source = {{ kind = \"directory\", path = \"{}\", every = \"20ms\" }}\n\
         sink = {{ kind = \"mqtt\", port = {}, topic = \"answers/{{device}}/{{slot}}\", retain = true, \
         username = \"edge\", password_file = \"{}\" }}\n",
        inbox.display(),
        broker.port,
        folder.path().join("password").display()
    );
    let served = Served::start(folder.path(), &text, Some(digits(None))).await;
    // One offer has been in vain.
    let trouble = |binding: &Value| binding["sink"]["trouble"] == "there is no connection to the broker";
    assert_eq!(served.binding("inbox", trouble).await["answered"], 1);
    assert!(inbox.join("a").exists());
    broker.restart().await;
    served.binding("inbox", |binding| binding["sink"]["up"] == true).await;
    let put_away = timeout(DEADLINE, async {
        while !inbox.join("done/a").exists() {
            tokio::task::yield_now().await;
        }
    });
    put_away.await.expect("the file is not put away");
    // Retained: it is there for who comes later.
    let (_client, mut heard) = broker.peer("answers/#").await;
    assert_eq!(next(&mut heard).await["id"], "a");
    let binding = served.binding("inbox", |binding| binding["received"] == 1).await;
    assert_eq!((&binding["answered"], &binding["undelivered"]), (&json!(1), &json!(0)), "{binding}");
    served.end().await;
}

/// Nine entries 20 ms apart, one of them rubbish, one a plain request, one raw.
fn recording(folder: &Path) -> PathBuf {
    let (request, raw, _) = sample();
    let mut lines: Vec<String> =
        (0..6).map(|n| json!({"at_ms": 1_000 + n * 20, "request": request}).to_string()).collect();
    lines.push("rubbish".into());
    lines.push(request.to_string());
    use base64::{Engine, engine::general_purpose::STANDARD};
    lines.push(json!({"at_ms": 1_120, "bytes": STANDARD.encode(raw)}).to_string());
    let path = folder.join("recording.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_is_replayed_by_a_binding_and_its_end_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let answers = folder.path().join("answers.jsonl");
    let text = format!(
        "[[bindings]]\nname = \"again\"\nslot = \"digits\"\nqueue = 100\non_error = \"drop\"\nrate = 200\n\
         source = {{ kind = \"replay\", file = \"{}\" }}\nsink = {{ kind = \"file\", path = \"{}\" }}\n",
        recording(folder.path()).display(),
        answers.display()
    );
    let started = Instant::now();
    let served = Served::start(folder.path(), &text, Some(digits(None))).await;
    let binding = served.binding("again", |binding| binding["answered"] == 8).await;
    assert!(started.elapsed() >= Duration::from_millis(120), "it did not keep the recorded pace");
    assert_eq!(
        (&binding["received"], &binding["failed"], &binding["dropped"]),
        (&json!(9), &json!(1), &json!(0))
    );
    assert!(binding["last_error"].as_str().unwrap().starts_with("line 7 is no entry"), "{binding}");
    let found = read_when(&answers, 8).await;
    let ids: Vec<_> = found.iter().map(|answer| answer["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, ["1", "2", "3", "4", "5", "6", "8", "9"]);
    served.end().await;
}

/// Runs the program; its answer, and whether it was content.
async fn agent(arguments: &[&str], input: &str) -> (bool, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_edgefleet-agent"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = timeout(DEADLINE, child.wait_with_output()).await.expect("it does not end").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_and_recordings_are_sent_to_the_agent_that_runs_here() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), "", Some(digits(None))).await;
    // As a running agent says where it listens.
    let data = folder.path().join("data");
    fs::create_dir_all(data.join("run")).unwrap();
    let addresses = json!({"http": served.http, "metrics": served.metrics, "device": "dev-1", "pid": 1});
    fs::write(data.join("run/addresses.json"), addresses.to_string()).unwrap();
    let data = data.to_str().unwrap();

    let (mut request, _, digit) = sample();
    request["id"] = json!("a");
    let input = format!("{request}\n\n{{\"inputs\":[]}}\nrubbish\n{request}\n");
    let bundle = Source::digits(2).write();
    for target in ["digits", bundle.folder.path().to_str().unwrap()] {
        let (ok, out, said) = agent(&["infer", target, "--lines", "--data", data], &input).await;
        assert!(!ok, "two lines were wrong");
        let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 4, "{out} {said}");
        for answer in [&lines[0], &lines[3]] {
            let label = answer["outputs"].as_array().unwrap().iter().find(|o| o["name"] == "label").unwrap();
            assert_eq!((&answer["id"], &label["data"]), (&json!("a"), &json!([digit])), "{answer}");
        }
        for (error, line, why) in
            [(&lines[1], 3, "input `image`"), (&lines[2], 4, "not an inference request")]
        {
            assert_eq!(error["line"], line, "{error}");
            assert!(error["error"].as_str().unwrap().contains(why), "{error}");
        }
    }
    let (ok, _, said) = agent(&["infer", "none", "--lines", "--data", "/nowhere"], "").await;
    assert!(!ok && said.contains("no agent runs on `/nowhere`"), "{said}");

    let recording = recording(folder.path());
    let recording = recording.to_str().unwrap();
    let to = format!("http://{}", served.http);
    for (speed, to) in [("1", "local"), ("0", to.as_str())] {
        let arguments = [
            "replay", recording, "--slot", "digits", "--speed", speed, "--to", to, "--data", data,
            "--output", "json",
        ];
        let (ok, out, said) = agent(&arguments, "").await;
        assert!(!ok && said.contains("failed: line 7 is no entry in JSON"), "{said}");
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&report["sent"], &report["failed"]), (&json!(8), &json!(1)), "{report}");
        assert!(report["p50_ms"].as_f64().unwrap() <= report["p99_ms"].as_f64().unwrap(), "{report}");
        assert!(speed == "0" || report["seconds"].as_f64().unwrap() >= 0.12, "{report}");
    }
    let arguments = ["replay", recording, "--slot", "faces", "--to", &to, "--speed", "0"];
    let (ok, out, said) = agent(&arguments, "").await;
    assert!(!ok && said.contains("model `faces` is not served here"), "{said}");
    assert!(out.starts_with("8 sent in "), "{out}");
    served.end().await;
}
