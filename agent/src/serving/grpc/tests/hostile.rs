//! Giants, liars, and clients that leave.

use super::*;
use crate::serving::{
    http::tests::{echo_bundle, limits::held, pool},
    state::ServingConfig,
};
use edgefleet_shared::tensor::Datatype;
use std::sync::atomic::Ordering;

async fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn sizes_that_are_announced_are_refused_before_they_are_believed() {
    let config = ServingConfig {
        body_limit_bytes: 1 << 20,
        body_pause: Duration::from_millis(300),
        ..ServingConfig::default()
    };
    let server = Server::with(config, pool(1, 1), vec![echo_bundle(Datatype::Fp32)]).await;
    let mut client = Client::connect(&server).await;
    let giant = [&[0][..], &u32::MAX.to_be_bytes(), b"x"].concat();
    for (method, body, code, text) in [
        ("ModelInfer", giant.clone(), 8, "4294967295 bytes, 1048576 bytes are allowed"),
        ("ServerLive", giant, 8, "65536 bytes are allowed"),
        ("ModelInfer", frame(&[0; 10])[..9].to_vec(), 3, "breaks off after 4 of 10 bytes"),
        ("ModelInfer", vec![0, 0], 3, "breaks off after 2 of 5 bytes"),
        ("ModelInfer", vec![], 3, "no message"),
        ("ModelInfer", frame(&[0x2a, 0].repeat(400_000)), 3, "at most 64 inputs"),
    ] {
        let request = client.request(method, &[], body);
        let told = client.send(request).await;
        assert_eq!(told.code, code, "{told:?}");
        assert!(told.text.contains(text), "{told:?}");
    }
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 64 << 20), &mut bomb).unwrap();
    let mut body = frame(&bomb.finish().unwrap());
    body[0] = 1;
    let request = client.request("ModelInfer", &[("grpc-encoding", "gzip")], body);
    assert_eq!(client.send(request).await.code, 8);
    until("the budget is given back", || server.state.0.body_bytes.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_queue_that_is_full_is_unavailable_and_time_that_is_up_a_deadline() {
    let (held, gate) = held();
    let model = held.slot.to_string();
    let server = Server::with(ServingConfig::default(), pool(1, 1), vec![held]).await;
    let mut client = Client::connect(&server).await;
    let message = inference(&model, "FP32", &[1, 2], &[0; 8]);
    let request = client.request("ModelInfer", &[], frame(&message));
    let running = tokio::spawn(client.send(request));
    gate.0.notified().await; // inside the model
    let stats = || server.state.slots().lease(&model).unwrap();
    // Queued, and given up by the deadline of the call, by the parameter, or by the client that leaves.
    let request = client.request("ModelInfer", &[("grpc-timeout", "50m")], frame(&message));
    let told = client.send(request).await;
    assert_eq!(told.code, 4, "{told:?}");
    let mut parameter = Writer::new();
    parameter.entry(4, "timeout", |choice| {
        choice.choice(2, 30_000);
    });
    let request = client.request("ModelInfer", &[], frame(&[parameter.finish(), message.clone()].concat()));
    let told = client.send(request).await;
    assert_eq!(told.code, 4, "{told:?}");
    assert!(told.text.contains("timeout of 30000 us"), "{told:?}");
    let request = client.request("ModelInfer", &[], frame(&message));
    let leaving = tokio::spawn(client.send(request));
    until("it waits", || stats().stats.in_flight() == 2).await;
    let request = client.request("ModelInfer", &[], frame(&message));
    let told = client.send(request).await;
    assert_eq!(told.code, 14, "the queue is full: {told:?}");
    leaving.abort();
    until("it has left", || stats().stats.in_flight() == 1).await;
    // Its place in the queue is free again, although the worker has not looked at it.
    let request = client.request("ModelInfer", &[], frame(&message));
    let waiting = tokio::spawn(client.send(request));
    until("it waits", || stats().stats.in_flight() == 2).await;
    *gate.2.lock() = true;
    gate.1.notify_all();
    assert_eq!(running.await.unwrap().code, 0);
    assert_eq!(waiting.await.unwrap().code, 0);
    let totals = stats().stats.totals();
    assert_eq!((totals.success.count, totals.rejected, totals.fail.count), (2, 1, 3), "{totals:?}");
}

#[tokio::test]
async fn an_unreadable_deadline_is_refused_and_no_deadline_is_none() {
    for (text, wanted) in [
        ("1H", Some(3_600_000)),
        ("2M", Some(120_000)),
        ("3S", Some(3_000)),
        ("99999999m", Some(99_999_999)),
        ("5000u", Some(5)),
        ("5000000n", Some(5)),
        ("", None),
        ("5", None),
        ("S", None),
        ("123456789S", None),
        ("-1S", None),
        ("+1S", None),
        ("1s", None),
    ] {
        let headers = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]);
        let found = timeout_of(&headers).ok().flatten();
        assert_eq!(found, wanted.map(Duration::from_millis), "{text:?}");
    }
    assert_eq!(timeout_of(&HeaderMap::new()).unwrap(), None);
}
