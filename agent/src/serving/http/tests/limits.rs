//! Hostile and unlucky clients: giants, slow senders, too many, and a stop in between.

use super::*;
use tokio::sync::Notify;

const INFER: &str = "/v2/models/echo-fp32/infer";

fn small() -> ServingConfig {
    ServingConfig {
        body_limit_bytes: 4 << 20,
        header_timeout: Duration::from_millis(300),
        body_pause: Duration::from_millis(300),
        ..Default::default()
    }
}

#[tokio::test]
async fn giant_bodies_are_refused_by_their_length_and_by_count() {
    let server = Server::with(small(), pool(1, 1), vec![echo_bundle(Datatype::Fp32)]).await;
    let mut client = server.connect().await;
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1073741824\r\n\r\n");
    client.stream.write_all(head.as_bytes()).await.unwrap();
    let answer = client.answer().await.unwrap();
    assert_eq!(answer.status, 413, "refused before a byte of the body came");
    assert!(answer.error().contains("1073741824 bytes, 4194304 bytes are allowed"), "{answer:?}");
    // In chunks nobody knows the length: counted, refused at the limit.
    let mut client = server.connect().await;
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n");
    client.stream.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = client.stream.split();
    let chunk = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
    let send = async {
        let mut sent = 0usize;
        // The connection is closed behind the answer, so writing ends by itself.
        while write.write_all(&chunk).await.is_ok() && sent < 1 << 30 {
            sent += 0x10000;
        }
        sent
    };
    let mut answer = [0; 12];
    let (sent, got) = tokio::join!(send, read.read_exact(&mut answer));
    got.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    assert!(sent < 64 << 20, "{sent} bytes were taken");
    // The same for what unpacks to too much.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::copy(&mut std::io::Read::take(std::io::repeat(b' '), 64 << 20), &mut bomb).unwrap();
    let bomb = bomb.finish().unwrap();
    let answer = server.call("POST", INFER, "content-encoding: gzip\r\n", &bomb).await;
    assert_eq!(answer.status, 413, "{} packed bytes", bomb.len());
    assert_eq!(server.state.0.body_bytes.load(Ordering::SeqCst), 0, "nothing is left in the budget");
}

#[tokio::test]
async fn bodies_share_one_budget() {
    let config = ServingConfig { body_budget_bytes: 100_000, ..small() };
    let server = Server::with(config, pool(1, 1), vec![echo_bundle(Datatype::Fp32)]).await;
    let answer = server.call("POST", INFER, "", &vec![b' '; 200_000]).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(server.state.0.body_bytes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn big_tensors_pass() {
    let big = bundle(
        manifest("big", 1, &[spec("x", Datatype::Fp32, &[-1])], &[spec("y", Datatype::Fp32, &[-1])]),
        echo(),
    );
    let mut manifest = big.manifest.clone();
    manifest.limits.batch_max = 1 << 20;
    let server = Server::start(vec![bundle(manifest, echo())]).await;
    let rows = 1 << 20;
    let json = serde_json::json!({
        "parameters": {"binary_data_output": true},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [rows], "parameters": {"binary_data_size": rows * 4}}],
    })
    .to_string();
    let data: Vec<u8> = (0..rows).flat_map(|n| (n as f32).to_le_bytes()).collect();
    let headers = format!("inference-header-content-length: {}\r\n", json.len());
    let body = [json.as_bytes(), &data].concat();
    let answer = server.call("POST", "/v2/models/big/infer", &headers, &body).await;
    assert_eq!(answer.split().1, data);
    let values: Vec<u32> = (0..200_000).collect();
    let body = json_infer("x", Datatype::Fp32, &[200_000], &serde_json::json!(values));
    let said = server.post("/v2/models/big/infer", &body).await.json();
    assert_eq!(said["outputs"][0]["data"][199_999], 199_999.0);
}

#[tokio::test]
async fn slow_senders_lose_their_connection() {
    let server = Server::with(small(), pool(1, 1), vec![echo_bundle(Datatype::Fp32)]).await;
    let mut slow = server.connect().await;
    slow.stream.write_all(b"GET /v2 HTTP/1.1\r\nhost: local").await.unwrap();
    assert!(slow.answer().await.is_none_or(|answer| answer.status == 408), "an unfinished head");
    let mut slow = server.connect().await;
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{{");
    slow.stream.write_all(head.as_bytes()).await.unwrap();
    let answer = slow.answer().await.unwrap();
    assert_eq!(answer.status, 408, "{answer:?}");
    assert!(answer.error().contains("after 1 bytes"), "{answer:?}");
    let mut many = server.connect().await;
    let head = format!("GET /v2 HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "a: b\r\n".repeat(1_000));
    many.stream.write_all(head.as_bytes()).await.unwrap();
    assert!(many.answer().await.is_none_or(|answer| answer.status == 431), "too many headers");
    assert_eq!(server.get("/v2").await.status, 200);
}

#[tokio::test]
async fn a_request_without_a_length_is_told_so() {
    let server = Server::start(vec![echo_bundle(Datatype::Fp32)]).await;
    let mut client = server.connect().await;
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    client.stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(client.answer().await.unwrap().status, 411);
}

#[tokio::test]
async fn foreign_hosts_are_refused_over_the_wire() {
    let server = Server::start(vec![]).await;
    for (host, status) in [("evil.example", 403), ("localhost:8000", 200), ("127.0.0.1", 200)] {
        let mut client = server.connect().await;
        client
            .stream
            .write_all(format!("GET /v2 HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        assert_eq!(client.answer().await.unwrap().status, status, "{host}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_to_come_back() {
    let config = ServingConfig { max_connections: 2, ..ServingConfig::default() };
    let server = Server::with(config, pool(1, 1), vec![]).await;
    let (mut a, mut b) = (server.connect().await, server.connect().await);
    for client in [&mut a, &mut b] {
        assert_eq!(client.call("GET", "/v2", "", b"").await.status, 200);
    }
    let mut third = server.connect().await;
    let answer = third.answer().await.unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert!(answer.error().contains("too many connections"), "{answer:?}");
}

/// Entered, and the condition and flag that let everybody out.
pub(in crate::serving) type Gate = (Notify, parking_lot::Condvar, Mutex<bool>);

/// A model that waits until it is let go.
pub(in crate::serving) fn held() -> (Arc<ServedBundle>, Arc<Gate>) {
    let gate: Arc<Gate> = Arc::default();
    let inner = gate.clone();
    let model = move |inputs: &[Tensor]| {
        inner.0.notify_one();
        let mut open = inner.2.lock();
        while !*open {
            inner.1.wait(&mut open);
        }
        Ok(inputs.iter().map(|x| x.clone().with_name("y")).collect())
    };
    let (x, y) = (spec("x", Datatype::Fp32, &[-1, 2]), spec("y", Datatype::Fp32, &[-1, 2]));
    (bundle(manifest("echo-fp32", 1, &[x], &[y]), Arc::new(Function(model))), gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_when_to_come_back_and_a_stop_lets_requests_finish() {
    let (bundle, gate) = held();
    let server = Server::with(ServingConfig::default(), pool(1, 0), vec![bundle]).await;
    let body = json_infer("x", Datatype::Fp32, &[1, 2], &serde_json::json!([1, 2]));
    let mut first = server.connect().await;
    let sent = body.clone();
    let first = tokio::spawn(async move { first.call("POST", INFER, "", sent.as_bytes()).await });
    gate.0.notified().await;
    let mut second = server.connect().await;
    let sent = body.clone();
    let second = tokio::spawn(async move { second.call("POST", INFER, "", sent.as_bytes()).await });
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.state.0.pool.waiting() == 0 {
        assert!(Instant::now() < deadline, "the second request never queued");
        tokio::task::yield_now().await;
    }
    let answer = server.post(INFER, &body).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert!(answer.error().contains("all 1 places of the inference queue"), "{answer:?}");
    let mut idle = server.connect().await;
    assert_eq!(idle.call("GET", "/v2/health/ready", "", b"").await.status, 200);
    server.stop.cancel();
    assert!(idle.answer().await.is_none(), "an idle connection is closed");
    *gate.2.lock() = true;
    gate.1.notify_all();
    assert_eq!(first.await.unwrap().status, 200, "the request in flight is answered");
    assert_eq!(second.await.unwrap().status, 200, "the request in the queue is answered");
    for task in server.tasks {
        tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    }
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
    server.monitor.flush();
    let records = server.kept.0.lock();
    let RecordBody::Window(window) = &records[0] else { panic!("{records:?}") };
    assert_eq!((window.counts.requests, window.counts.ok, window.counts.rejected), (2, 2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_is_counted() {
    let (bundle, gate) = held();
    let server = Server::with(ServingConfig::default(), pool(1, 0), vec![bundle]).await;
    let body = json_infer("x", Datatype::Fp32, &[1, 2], &serde_json::json!([1, 2]));
    let mut client = server.connect().await;
    let head =
        format!("POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    client.stream.write_all(head.as_bytes()).await.unwrap();
    gate.0.notified().await;
    drop(client);
    let deadline = Instant::now() + Duration::from_secs(10);
    let stats = || server.state.0.slots.lease("echo-fp32").unwrap().stats.totals();
    while stats().errors.iter().sum::<u64>() == 0 {
        assert!(Instant::now() < deadline, "never counted");
        tokio::task::yield_now().await;
    }
    assert_eq!(stats().errors[crate::monitor::ErrorCode::Cancelled as usize], 1);
    *gate.2.lock() = true;
    gate.1.notify_all();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_nobody_waits_for_any_more_is_not_run() {
    let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let gate: Arc<Gate> = Arc::default();
    let (counted, inner) = (runs.clone(), gate.clone());
    let model = move |inputs: &[Tensor]| {
        counted.fetch_add(1, Ordering::SeqCst);
        inner.0.notify_one();
        let mut open = inner.2.lock();
        while !*open {
            inner.1.wait(&mut open);
        }
        Ok(inputs.iter().map(|x| x.clone().with_name("y")).collect())
    };
    let (x, y) = (spec("x", Datatype::Fp32, &[-1, 2]), spec("y", Datatype::Fp32, &[-1, 2]));
    let held = bundle(manifest("echo-fp32", 1, &[x], &[y]), Arc::new(Function(model)));
    let server = Server::with(ServingConfig::default(), pool(1, 8), vec![held]).await;
    let body = json_infer("x", Datatype::Fp32, &[1, 2], &serde_json::json!([1, 2]));
    let mut first = server.connect().await;
    let sent = body.clone();
    let first = tokio::spawn(async move { first.call("POST", INFER, "", sent.as_bytes()).await });
    gate.0.notified().await;
    let in_flight = || server.state.0.slots.lease("echo-fp32").unwrap().stats.in_flight();
    let until = async |wanted: u64| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while in_flight() != wanted {
            assert!(Instant::now() < deadline, "{} in flight, not {wanted}", in_flight());
            tokio::task::yield_now().await;
        }
    };
    // One leaves while it waits, the time of another is up.
    let mut leaving = server.connect().await;
    let head =
        format!("POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    leaving.stream.write_all(head.as_bytes()).await.unwrap();
    until(2).await;
    drop(leaving);
    until(1).await;
    let hasty = body.replace("{\"inputs\"", "{\"parameters\":{\"timeout\":30000},\"inputs\"");
    let answer = server.post(INFER, &hasty).await;
    assert_eq!(answer.status, 504);
    assert!(answer.error().contains("within its timeout of 30000 us"), "{answer:?}");
    *gate.2.lock() = true;
    gate.1.notify_all();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(server.post(INFER, &body).await.status, 200);
    assert_eq!(runs.load(Ordering::SeqCst), 2, "the two in between were not run");
}
