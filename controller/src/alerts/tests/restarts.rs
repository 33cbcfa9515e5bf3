//! What waits survives; nothing waits for nobody.

use super::receivers::{Hand, Receiver, event, hook, open, store};
use crate::{
    alerts::{DeliveryState, Wants, outbox},
    findings::{FindingCode, Findings},
    fleet::Actor,
    store::{Transaction, audit::AuditLog},
};
use axum::{http::StatusCode, response::IntoResponse};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_was_pending_is_sent_by_the_next_process_with_its_key() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let receiver = Receiver::start(vec![StatusCode::BAD_GATEWAY.into_response()]).await;
    let channels = || vec![hook("ops", &receiver.url, Wants::default())];
    let first = store(dir.path()).await;
    let alerts = open(&first, channels(), &hand).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(alerts.clone().run(stop.clone()));
    alerts.raise(event(&hand, "inc-1")).await.unwrap();
    until("the first try", || !receiver.arrived().is_empty()).await;
    let begun = Instant::now();
    while alerts.list(None, None, 9).await.unwrap().first().is_none_or(|one| one.tries == 0) {
        assert!(begun.elapsed() < DEADLINE, "the try was not noted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One more that nobody has routed: it was part of somebody's transaction.
    running.abort();
    let _ = running.await;
    first.commit(outbox(Transaction::new(), &event(&hand, "inc-2")).unwrap()).await.unwrap();
    first.close().await.unwrap();
    drop((alerts, first));

    hand.forward(Duration::from_secs(10));
    let second = store(dir.path()).await;
    let alerts = open(&second, channels(), &hand).await;
    assert_eq!(alerts.channels()[0].waiting, 1);
    let running = tokio::spawn(alerts.clone().run(stop.clone()));
    until("both alerts", || receiver.arrived().len() == 3).await;
    let arrived = receiver.arrived();
    let keys: Vec<_> = arrived.iter().map(|one| one.header("idempotency-key").to_owned()).collect();
    assert_eq!(keys.iter().filter(|key| **key == keys[0]).count(), 2, "{keys:?}");
    stop.cancel();
    tokio::time::timeout(DEADLINE, running).await.unwrap().unwrap();
}

#[tokio::test]
async fn alerts_for_a_channel_that_is_gone_are_given_up_and_visible() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let store = store(dir.path()).await;
    let alerts = open(&store, vec![hook("old", "http://127.0.0.1:1/", Wants::default())], &hand).await;
    alerts.raise(event(&hand, "inc-1")).await.unwrap();
    alerts.route_once().await.unwrap();
    let alerts = open(&store, vec![], &hand).await;
    let [dead] = alerts.list(None, None, 10).await.unwrap().try_into().unwrap();
    assert_eq!((dead.state, dead.channel.as_str()), (DeliveryState::Dead, "old"));
    // And what is raised with no channels at all leaves nothing behind.
    alerts.raise(event(&hand, "inc-2")).await.unwrap();
    alerts.route_once().await.unwrap();
    assert_eq!(alerts.list(None, None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_finding_tells_people_when_it_opens_and_when_it_is_resolved() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let receiver = Receiver::start(vec![]).await;
    let store = store(dir.path()).await;
    let alerts = open(&store, vec![hook("ops", &receiver.url, Wants::default())], &hand).await;
    let audit = Arc::new(AuditLog::new(store.clone()));
    let findings = Findings::open(store.clone(), audit).await.unwrap();
    let device = "dev-1".parse().unwrap();
    let code = FindingCode::DuplicateIdentity;
    for _ in 0..3 {
        findings
            .note(&device, code, "two agents".into(), BTreeMap::from([("n".into(), 3)]), hand.now())
            .await;
        hand.forward(Duration::from_secs(90));
    }
    findings.resolve(&Actor::token("t", "ops"), &device, code, hand.now()).await.unwrap();
    alerts.route_once().await.unwrap();
    assert_eq!(alerts.pass(&alerts.0.strands[0]).await.unwrap(), None);
    let told: Vec<serde_json::Value> =
        receiver.arrived().iter().map(|one| serde_json::from_slice(&one.body).unwrap()).collect();
    let kinds: Vec<_> = told.iter().map(|one| one["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["finding.opened", "finding.resolved"]);
    assert_eq!((&told[0]["subject"]["device"], &told[0]["numbers"]["n"]), (&"dev-1".into(), &3.into()));
}
