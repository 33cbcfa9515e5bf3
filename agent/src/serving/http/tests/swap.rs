//! Switching bundles under load loses nothing and mixes nothing.

use super::*;
use std::sync::atomic::AtomicU64;

/// Answers its own counter, after the time a small real model takes.
fn counted(counter: u64) -> Arc<ServedBundle> {
    let model = move |inputs: &[Tensor]| {
        std::thread::sleep(Duration::from_millis(5));
        let rows = inputs.first().map_or(0, |x| x.shape()[0]);
        let data: Vec<u8> = std::iter::repeat_n((counter as f32).to_le_bytes(), rows * 2).flatten().collect();
        Tensor::new("y", Datatype::Fp32, vec![rows, 2], data.into())
            .map(|y| vec![y])
            .map_err(|e| RunError::Engine(e.to_string()))
    };
    let (x, y) = (spec("x", Datatype::Fp32, &[-1, 2]), spec("y", Datatype::Fp32, &[-1, 2]));
    bundle(manifest("swap", counter, &[x], &[y]), Arc::new(Function(model)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_swaps_under_64_connections_fail_nothing_and_mix_nothing() {
    let server = Server::with(ServingConfig::default(), pool(8, 128), vec![counted(1)]).await;
    let answered = Arc::new(AtomicU64::new(0));
    let done = CancellationToken::new();
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = server.connect().await;
        let (answered, done) = (answered.clone(), done.clone());
        clients.push(tokio::spawn(async move {
            let body = json_infer("x", Datatype::Fp32, &[1, 2], &serde_json::json!([1, 2]));
            let mut seen = std::collections::BTreeSet::new();
            while !done.is_cancelled() {
                // Always the same connection: a reset would fail the read.
                let answer = client.call("POST", "/v2/models/swap/infer", "", body.as_bytes()).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                let said = answer.json();
                let counter = said["outputs"][0]["data"][0].as_f64().unwrap() as u64;
                assert_eq!(said["parameters"]["bundle"], format!("swap@{counter}"));
                assert_eq!(said["model_version"], counter.to_string());
                assert_eq!(answer.header("x-edgefleet-bundle"), Some(format!("swap@{counter}").as_str()));
                assert_eq!(said["parameters"]["attempt"], format!("r1/{counter}"));
                seen.insert(counter);
                answered.fetch_add(1, Ordering::SeqCst);
            }
            seen
        }));
    }
    for counter in 2..=51 {
        let before = answered.load(Ordering::SeqCst);
        while answered.load(Ordering::SeqCst) < before + 64 {
            tokio::task::yield_now().await;
        }
        let old = server.state.slots().activate(counted(counter)).unwrap();
        assert_eq!(old.bundle.counter, counter - 1);
        let drained = server.state.slots().drained(&old);
        tokio::time::timeout(Duration::from_secs(10), drained).await.expect("the old bundle drains");
        assert_eq!(Arc::strong_count(&old), 1, "nothing holds the old bundle any more");
    }
    done.cancel();
    let mut bundles = 0;
    for client in clients {
        bundles = bundles.max(client.await.unwrap().len());
    }
    assert!(bundles > 10, "each connection lives through many swaps, one saw {bundles}");
    server.monitor.flush();
    let mut rows: BTreeMap<u64, u64> = BTreeMap::new();
    for record in server.kept.0.lock().iter() {
        if let RecordBody::Window(window) = record {
            assert_eq!(window.attempt.number as u64, window.bundle.counter);
            assert_eq!(window.counts.requests, window.counts.ok);
            *rows.entry(window.bundle.counter).or_default() += window.counts.rows;
        }
    }
    assert_eq!(rows.values().sum::<u64>(), answered.load(Ordering::SeqCst), "every answer is in a window");
    assert_eq!(rows.len(), 51);
}

#[tokio::test]
async fn an_active_bundle_is_not_drained_and_a_removed_slot_is_gone() {
    let server = Server::start(vec![counted(1)]).await;
    let slot = "swap".parse().unwrap();
    let first = server.state.slots().get(&slot).unwrap();
    let waits = server.state.slots().drained(&first);
    assert!(tokio::time::timeout(Duration::from_millis(20), waits).await.is_err());
    let lease = server.state.slots().lease("swap").unwrap();
    let removed = server.state.slots().deactivate(&slot).unwrap();
    assert!(Arc::ptr_eq(&removed, &first));
    let waits = server.state.slots().drained(&removed);
    tokio::pin!(waits);
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut waits).await.is_err(), "a request runs");
    drop(lease);
    tokio::time::timeout(Duration::from_secs(5), waits).await.unwrap();
    assert!(server.state.slots().get(&slot).is_none() && server.state.slots().list().is_empty());
    assert!(server.state.slots().deactivate(&slot).is_none());
    assert_eq!(server.get("/v2/models/swap/ready").await.status, 404);
}
