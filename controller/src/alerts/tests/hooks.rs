//! Webhooks.

use super::receivers::{Hand, Receiver, SECRET, event, hook, open, store};
use crate::alerts::{
    AlertKind, Alerts, Channel, DeliveryState, Severity, TestError, Wants, Way,
    queue::MAX_PENDING,
    schedule::GIVE_UP_AFTER,
    signature::{KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign},
};
use axum::{
    http::{StatusCode, header},
    response::IntoResponse,
};
use edgefleet_shared::time::Timestamp;
use std::{collections::BTreeSet, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One look at every channel; when there is something to do again.
async fn round(alerts: &Alerts) -> Option<Timestamp> {
    alerts.route_once().await.unwrap();
    let mut next = None::<Timestamp>;
    for strand in &alerts.0.strands {
        if let Some(at) = alerts.pass(strand).await.unwrap() {
            next = Some(next.map_or(at, |next| next.min(at)));
        }
    }
    next
}

#[tokio::test]
async fn a_receiver_that_fails_twice_gets_the_same_alert_with_the_same_key_and_a_fresh_signature() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let fails = || (StatusCode::SERVICE_UNAVAILABLE, "tired\u{7}").into_response();
    let receiver = Receiver::start(vec![fails(), fails()]).await;
    let store = store(dir.path()).await;
    let alerts = open(&store, vec![hook("ops", &receiver.url, Wants::default())], &hand).await;
    alerts.raise(event(&hand, "inc-1")).await.unwrap();

    let mut times = vec![hand.now()];
    for (tries, least, most) in [(1, 2_500, 5_000), (2, 5_000, 10_000)] {
        let next = round(&alerts).await.expect("a next try");
        let wait = next.since(hand.now()).as_millis();
        assert!((least..=most).contains(&wait), "{wait} ms after {tries} failures");
        // Not a moment earlier.
        hand.set(next - Duration::from_millis(1));
        assert_eq!(round(&alerts).await, Some(next));
        assert_eq!(receiver.arrived().len(), tries);
        let [waiting] = alerts.list(None, None, 10).await.unwrap().try_into().unwrap();
        assert_eq!((waiting.state, waiting.tries as usize), (DeliveryState::Pending, tries));
        let said = waiting.last.unwrap();
        assert_eq!((said.status, said.error.unwrap().contains("tired")), (Some(503), true));
        hand.set(next);
        times.push(next);
    }
    assert_eq!(round(&alerts).await, None);
    let arrived = receiver.arrived();
    assert_eq!(arrived.len(), 3);
    let keys: BTreeSet<_> = arrived.iter().map(|one| one.header(KEY_HEADER).to_owned()).collect();
    assert_eq!(keys.len(), 1, "{keys:?}");
    for (one, at) in arrived.iter().zip(&times) {
        assert_eq!(one.header(TIMESTAMP_HEADER), at.as_secs().to_string());
        assert_eq!(one.header(SIGNATURE_HEADER), sign(SECRET, *at, &one.body));
        assert_eq!(one.header("content-type"), "application/json");
        assert_eq!(one.body, arrived[0].body);
    }
    let body: serde_json::Value = serde_json::from_slice(&arrived[0].body).unwrap();
    assert_eq!(body["idempotency_key"], *keys.first().unwrap());
    assert_eq!((&body["kind"], &body["severity"]), (&"incident.opened".into(), &"critical".into()));
    assert_eq!((&body["subject"]["device"], &body["numbers"]["js"]), (&"dev-1".into(), &0.42.into()));
    let [over] =
        alerts.list(Some(DeliveryState::Delivered), Some("ops"), 10).await.unwrap().try_into().unwrap();
    assert_eq!((over.tries, over.last.unwrap().status), (3, Some(204)));

    // The same occurrence again, and noticed later, is no news.
    hand.forward(Duration::from_secs(60));
    alerts.raise(event(&hand, "inc-1")).await.unwrap();
    round(&alerts).await;
    assert_eq!(alerts.list(None, None, 10).await.unwrap().len(), 1, "{:?}", receiver.arrived());
}

#[tokio::test]
async fn redirects_are_not_followed_and_a_receiver_that_is_gone_is_left_alone() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let other = Receiver::start(vec![]).await;
    let moved = (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, other.url.clone())]).into_response();
    let limited = (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "90")]).into_response();
    let receiver = Receiver::start(vec![moved, limited, StatusCode::GONE.into_response()]).await;
    let store = store(dir.path()).await;
    let alerts = open(&store, vec![hook("ops", &receiver.url, Wants::default())], &hand).await;
    alerts.raise(event(&hand, "inc-1")).await.unwrap();
    hand.set(round(&alerts).await.unwrap());
    let next = round(&alerts).await.unwrap();
    assert_eq!(next.since(hand.now()), Duration::from_secs(90), "as the receiver asked");
    hand.set(next);
    assert_eq!(round(&alerts).await, None);
    assert!(other.arrived().is_empty());
    let [dead] = alerts.list(Some(DeliveryState::Dead), None, 10).await.unwrap().try_into().unwrap();
    assert_eq!((dead.tries, dead.last.unwrap().status), (3, Some(410)));
}

#[tokio::test]
async fn a_receiver_that_stays_away_is_given_up_after_a_day_and_holds_up_nobody() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let good = Receiver::start(vec![]).await;
    // Nobody listens there any more.
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token-in-the-path", gone.local_addr().unwrap());
    drop(gone);
    let store = store(dir.path()).await;
    let channels = vec![hook("away", &url, Wants::default()), hook("good", &good.url, Wants::default())];
    let alerts = open(&store, channels, &hand).await;
    let begun = hand.now();
    alerts.raise(event(&hand, "inc-1")).await.unwrap();
    let mut rounds = 0;
    while let Some(next) = round(&alerts).await {
        assert!(next.since(begun) <= GIVE_UP_AFTER);
        hand.set(next);
        rounds += 1;
    }
    assert!((48..=110).contains(&rounds), "{rounds} tries in a day");
    assert_eq!(good.arrived().len(), 1);
    let [dead] = alerts.list(Some(DeliveryState::Dead), None, 10).await.unwrap().try_into().unwrap();
    let error = dead.last.unwrap().error.unwrap();
    assert!(!error.contains("token-in-the-path"), "{error}");
}

#[tokio::test]
async fn a_storm_is_two_messages_and_a_failed_one_comes_again_as_it_was() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let ok = || StatusCode::NO_CONTENT.into_response();
    let receiver = Receiver::start(vec![ok(), StatusCode::SERVICE_UNAVAILABLE.into_response(), ok()]).await;
    let store = store(dir.path()).await;
    let window = Duration::from_secs(300);
    let channel = Channel { digest: window, ..hook("ops", &receiver.url, Wants::default()) };
    let begun = hand.now();
    let alerts = open(&store, vec![channel.clone()], &hand).await;
    for n in 0..30 {
        alerts.raise(event(&hand, &format!("inc-{n}"))).await.unwrap();
    }
    assert_eq!(round(&alerts).await, Some(begun + window));
    assert_eq!(receiver.arrived().len(), 1);
    hand.set(begun + window);
    let next = round(&alerts).await.expect("it failed");
    // What comes meanwhile is no part of it.
    alerts.raise(event(&hand, "inc-late")).await.unwrap();
    hand.set(next);
    round(&alerts).await;
    let arrived = receiver.arrived();
    assert_eq!(arrived.len(), 3);
    assert_eq!(arrived[1].header(KEY_HEADER), arrived[2].header(KEY_HEADER));
    assert_eq!(arrived[1].body, arrived[2].body);
    let body: serde_json::Value = serde_json::from_slice(&arrived[2].body).unwrap();
    assert_eq!((&body["kind"], &body["numbers"]["alerts"]), (&"incident.opened".into(), &29.into()));
    assert!(body["title"].as_str().unwrap().starts_with("29 alerts incident.opened"), "{body}");
    assert_eq!(alerts.list(Some(DeliveryState::Delivered), None, 99).await.unwrap().len(), 30);
    assert_eq!(alerts.list(Some(DeliveryState::Pending), None, 99).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_queue_is_bounded_and_what_it_does_not_take_is_seen() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let away = "http://127.0.0.1:1/";
    let store = store(dir.path()).await;
    let alerts = open(&store, vec![hook("away", away, Wants::default())], &hand).await;
    for n in 0..MAX_PENDING + 3 {
        alerts.0.queue.raise(&event(&hand, &format!("inc-{n}"))).await.unwrap();
    }
    alerts.route_once().await.unwrap();
    assert_eq!(alerts.list(Some(DeliveryState::Pending), None, 9_999).await.unwrap().len(), MAX_PENDING);
    let dead = alerts.list(Some(DeliveryState::Dead), None, 10).await.unwrap();
    assert_eq!(dead.len(), 3);
    let begun = std::time::Instant::now();
    let next = alerts.pass(&alerts.0.strands[0]).await.unwrap().unwrap();
    assert!(next > hand.now());
    let tried = alerts.list(Some(DeliveryState::Pending), None, 9_999).await.unwrap();
    assert_eq!(tried.iter().filter(|one| one.tries > 0).count(), 3, "then it rests ({:?})", begun.elapsed());
}

#[tokio::test]
async fn channels_get_what_they_want_and_a_test_passes_filters_by() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let (all, few) = (Receiver::start(vec![]).await, Receiver::start(vec![]).await);
    let wants = Wants { kinds: [AlertKind::RolloutAborted].into(), min_severity: Some(Severity::Critical) };
    let store = store(dir.path()).await;
    let channels = vec![hook("all", &all.url, Wants::default()), hook("few", &few.url, wants)];
    let alerts = open(&store, channels, &hand).await;
    alerts.raise(event(&hand, "inc-1")).await.unwrap();
    round(&alerts).await;
    assert_eq!((all.arrived().len(), few.arrived().len()), (1, 0));
    let tested = alerts.test(None, "token:ops").await.unwrap();
    assert!(tested.iter().all(|one| one.outcome.ok && one.outcome.status == Some(204)), "{tested:?}");
    assert_eq!((all.arrived().len(), few.arrived().len()), (2, 1));
    let body: serde_json::Value = serde_json::from_slice(&few.arrived()[0].body).unwrap();
    assert_eq!(body["kind"], "test");
    let none = alerts.test(Some("nobody"), "token:ops").await;
    assert!(matches!(none, Err(TestError::NoSuchChannel { .. })), "{none:?}");
    let mut text = crate::api::metrics::MetricsText::default();
    alerts.metrics(&mut text);
    let text = text.into_text();
    assert!(text.contains("edgefleet_alert_tries_total{channel=\"all\",outcome=\"ok\"} 2"), "{text}");
    assert!(text.contains("edgefleet_alerts_pending{channel=\"few\"} 0"), "{text}");
}

/// The function of the documentation's page, run by Python on a request as it is sent.
#[tokio::test]
async fn the_documented_receiver_believes_us_and_nobody_else() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let receiver = Receiver::start(vec![]).await;
    let store = store(dir.path()).await;
    let alerts = open(&store, vec![hook("ops", &receiver.url, Wants::default())], &hand).await;
    alerts.test(None, "token:ops").await.unwrap();
    let [arrived] = receiver.arrived().try_into().unwrap();
    let headers: serde_json::Map<_, _> = [TIMESTAMP_HEADER, SIGNATURE_HEADER]
        .into_iter()
        .map(|name| (name.to_owned(), arrived.header(name).into()))
        .collect();
    let body = String::from_utf8(arrived.body.to_vec()).unwrap();
    let secret = String::from_utf8(SECRET.to_vec()).unwrap();
    let case = serde_json::json!({"secret": secret, "headers": headers, "body": body});
    let file = dir.path().join("case.json");
    std::fs::write(&file, case.to_string()).unwrap();
    crate::export::tests::readers(&["webhook", file.to_str().unwrap()]);
}

#[tokio::test]
async fn a_receiver_with_its_own_authority_is_believed_only_where_the_settings_name_it() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let (acceptor, pem) = super::receivers::tls();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/hook", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut read = [0; 4_096];
            // A small request arrives in at most two pieces, head and body.
            let mut seen = String::new();
            while !seen.ends_with('}') {
                match stream.read(&mut read).await {
                    Ok(n) if n > 0 => seen.push_str(&String::from_utf8_lossy(&read[..n])),
                    _ => break,
                }
            }
            let _ = stream
                .write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .await;
            let _ = stream.shutdown().await;
        }
    });
    let store = store(dir.path()).await;
    let with = |name: &str, ca: Option<Vec<u8>>| {
        let mut channel = hook(name, &url, Wants::default());
        if let Way::Webhook(webhook) = &mut channel.way {
            webhook.ca = ca;
        }
        channel
    };
    let (_, stranger) = super::receivers::tls();
    let alerts = open(&store, vec![with("named", Some(pem)), with("other", Some(stranger))], &hand).await;
    let [named, other] = alerts.test(None, "token:ops").await.unwrap().try_into().unwrap();
    assert_eq!((named.outcome.ok, named.outcome.status), (true, Some(202)), "{named:?}");
    assert_eq!((other.outcome.ok, other.outcome.status), (false, None), "{other:?}");
}
