//! Requests that run together, and answers that are remembered.

use super::*;
use serde_json::json;
use std::sync::{Barrier, atomic::AtomicUsize};

fn one(value: u32) -> String {
    json_infer("x", Datatype::Fp32, &[1, 2], &json!([value, value]))
}

async fn statistics(server: &Server) -> Value {
    server.get("/v2/models/echo-fp32/stats").await.json()["model_stats"][0].clone()
}

#[tokio::test]
async fn requests_that_wait_for_a_thread_run_in_one_pass_and_each_gets_its_answer() {
    let gate = Arc::new(Barrier::new(2));
    let passes = Arc::new(AtomicUsize::new(0));
    let (inner, counted) = (gate.clone(), passes.clone());
    let model = Function(move |inputs: &[Tensor]| {
        if counted.fetch_add(1, Ordering::SeqCst) == 0 {
            inner.wait(); // the first is inside
            inner.wait(); // and may go on
        }
        Ok(inputs.iter().map(|x| x.clone().with_name("y")).collect())
    });
    let echo = bundle(echo_bundle(Datatype::Fp32).manifest.clone(), Arc::new(model));
    // A long delay shows that a full batch does not wait for it.
    let config =
        ServingConfig { batch_rows: 64, batch_delay: Duration::from_secs(600), ..ServingConfig::default() };
    let pool = pool(1, 256);
    let server = Server::with(config, pool.clone(), vec![echo]).await;
    let infer = |value| {
        let (address, body) = (server.address, one(value));
        async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let mut client = Client { stream, rest: Vec::new() };
            client.call("POST", "/v2/models/echo-fp32/infer", "", body.as_bytes()).await
        }
    };
    // 8 rows are `batch_max` of the bundle: less than what the agent allows.
    let first = tokio::spawn(futures::future::join_all((0..8).map(infer)));
    tokio::task::spawn_blocking({
        let gate = gate.clone();
        move || gate.wait()
    })
    .await
    .unwrap();
    let second = tokio::spawn(futures::future::join_all((8..24).map(infer)));
    while pool.waiting() < 16 {
        tokio::task::yield_now().await;
    }
    tokio::task::spawn_blocking(move || gate.wait()).await.unwrap();
    let answers = first.await.unwrap().into_iter().chain(second.await.unwrap());
    for (value, answer) in answers.enumerate() {
        assert_eq!(answer.json()["outputs"][0]["data"], json!([value as f32, value as f32]), "{answer:?}");
    }
    assert_eq!(passes.load(Ordering::SeqCst), 3);
    let stats = statistics(&server).await;
    assert_eq!((&stats["inference_count"], &stats["execution_count"]), (&json!(24), &json!(3)));
    let batches =
        json!([stats["batch_stats"][0]["batch_size"], stats["batch_stats"][0]["compute_infer"]["count"]]);
    assert_eq!((batches, &stats["batch_stats"][1]), (json!([8, 3]), &json!(null)));
}

#[tokio::test]
async fn priorities_are_read_and_nonsense_is_refused() {
    let server = Server::start(vec![echo_bundle(Datatype::Fp32)]).await;
    for (priority, status) in
        [(json!(1), 200), (json!(0), 200), (json!(10), 200), (json!(11), 400), (json!("high"), 400)]
    {
        let mut body: Value = serde_json::from_str(&one(1)).unwrap();
        body["parameters"] = json!({"priority": priority});
        let answer = server.post("/v2/models/echo-fp32/infer", &body.to_string()).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(status == 200 || answer.error().contains("1 (first) to 10"), "{answer:?}");
    }
}

#[tokio::test]
async fn an_answer_is_remembered_until_another_bundle_answers() {
    let passes = Arc::new(AtomicUsize::new(0));
    let version = |counter: u64| {
        let mut manifest = echo_bundle(Datatype::Fp32).manifest.clone();
        manifest.model.counter = counter;
        let passes = passes.clone();
        let model = move |inputs: &[Tensor]| {
            passes.fetch_add(1, Ordering::SeqCst);
            Ok(inputs.iter().map(|x| x.clone().with_name("y")).collect())
        };
        bundle(manifest, Arc::new(Function(model)))
    };
    let config = ServingConfig { cache_bytes: 1 << 20, triton_metrics: true, ..ServingConfig::default() };
    let server = Server::with(config, pool(2, 16), vec![version(1)]).await;
    for value in [1, 1, 2, 1] {
        let answer = server.post("/v2/models/echo-fp32/infer", &one(value)).await;
        assert_eq!(answer.json()["outputs"][0]["data"], json!([value as f32, value as f32]));
    }
    assert_eq!(passes.load(Ordering::SeqCst), 2);
    let stats = statistics(&server).await;
    assert_eq!((&stats["inference_count"], &stats["execution_count"]), (&json!(4), &json!(2)));
    for (field, count) in [("success", 4), ("compute_infer", 2), ("cache_hit", 2), ("cache_miss", 2)] {
        assert_eq!(stats["inference_stats"][field]["count"], count, "{field}");
    }
    let metrics = Client { stream: TcpStream::connect(server.metrics).await.unwrap(), rest: vec![] }
        .call("GET", "/metrics", "", b"")
        .await;
    let text = String::from_utf8(metrics.body).unwrap();
    for line in [
        "nv_inference_count{model=\"echo-fp32\",version=\"1\"} 4",
        "nv_inference_exec_count{model=\"echo-fp32\",version=\"1\"} 2",
        "nv_cache_num_hits_per_model{model=\"echo-fp32\",version=\"1\"} 2",
        "nv_inference_pending_request_count{model=\"echo-fp32\",version=\"1\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    server.state.0.slots.activate(version(2));
    assert_eq!(server.post("/v2/models/echo-fp32/infer", &one(1)).await.status, 200);
    assert_eq!(passes.load(Ordering::SeqCst), 3);
}
