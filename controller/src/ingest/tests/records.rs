//! Records counted once, acknowledged when stored, by cohort.

use super::*;
use std::sync::atomic::Ordering::Relaxed;

#[tokio::test]
async fn each_record_counts_once_however_often_it_comes_and_only_stored_ones_are_acknowledged() {
    let Bench { _dir, store, monitoring, worker, queue, mut acks, .. } = Bench::new().await;
    let totals = worker.totals();
    let running = tokio::spawn(worker.run());
    let device: DeviceId = "dev-1".parse().expect("device");

    let first = bytes("dev-1", vec![(1, window("digits@1", 10)), (2, labels(10, 9))]);
    for _ in 0..3 {
        queue.offer(&device, &first).expect("room");
    }
    queue.offer(&device, &bytes("dev-1", vec![(4, window("invented@7", 5))])).expect("room");
    queue.offer(&device, &bytes("dev-2", vec![(1, window("digits@1", 5))])).expect("room"); // forged
    queue.offer(&device, b"garbage").expect("room");
    drop(queue);
    running.await.expect("worker");

    let mut last = None;
    while let Ok((who, ack)) = acks.try_recv() {
        assert_eq!(who, device);
        last = Some(ack);
    }
    let ack = &last.expect("an acknowledgement").boots[0];
    assert_eq!((ack.contiguous, ack.extra.as_slice()), (2, &[(4, 4)][..]));

    let aggregates = Repository::<Aggregate>::new(store.clone(), AGGREGATE);
    let all = aggregates.list_all("").await.expect("aggregates");
    assert!(all.iter().all(|(id, _)| id.starts_with("digits@1/primary/")), "{all:?}");
    let bundle = bundle();
    let sum = monitoring.total(ever(&bundle, None)).await.expect("total");
    assert_eq!((sum.counts.requests, sum.windows, sum.all_labels().accuracy()), (10, 1, Some(0.9)));
    assert_eq!(sum.labels["local"].confusion["1"]["7"], 1);
    let devices = Repository::<DeviceTelemetry>::new(store, DEVICE_TELEMETRY);
    let own = devices.get_json("dev-1").await.expect("totals").value;
    assert_eq!((own.bundles.len(), own.bundles[0].counts.requests), (1, 10));
    assert!(own.bundles[0].labels.confusion.is_empty(), "documents of devices stay small");
    assert_eq!((totals.repeats.load(Relaxed), totals.refused.load(Relaxed)), (4, 2));
}

#[tokio::test]
async fn a_full_queue_turns_messages_away_instead_of_growing() {
    let bench = Bench::new().await;
    let device: DeviceId = "dev-1".parse().expect("device");
    let message = bytes("dev-1", vec![(1, labels(1, 1))]);
    let taken = (0..5_000).take_while(|_| bench.queue.offer(&device, &message).is_ok()).count();
    assert!((1..5_000).contains(&taken), "{taken}");
}

#[tokio::test]
async fn records_of_a_shared_identity_are_acknowledged_and_are_no_evidence() {
    let mut bench = Bench::new().await;
    let records =
        vec![(1, window("digits@1", 10)), (2, labels(10, 1)), (3, profile_at("digits@1", vec![5, 5], at()))];
    bench.take("dev-shared", records, at()).await;
    let (_, ack) = bench.acked().pop_first().expect("an acknowledgement");
    assert_eq!(ack.boots[0].contiguous, 3);
    for kind in [AGGREGATE, PROFILE_HOUR, DEVICE_PROFILE] {
        assert!(bench.ids(kind).await.is_empty(), "{kind}");
    }
}

#[tokio::test]
async fn cohorts_are_counted_apart_and_add_up_to_what_was_counted_before_there_were_any() {
    let bench = Bench::new().await;
    let now = at();
    let send = |device: &'static str, seq, requests| {
        let records = vec![
            (seq, window_at("digits@1", requests, now)),
            (seq + 1, labels_at(requests, requests - 1, now)),
            (seq + 2, profile_at("digits@1", vec![requests, requests], now)),
        ];
        bench.take(device, records, now)
    };
    send("dev-1", 1, 10).await;
    bench.label("dev-1", "site", "berlin");
    bench.label("dev-2", "site", "paris");
    bench.cohorts(&["site"], now).await;
    send("dev-1", 4, 20).await;
    send("dev-2", 1, 40).await;
    send("dev-3", 1, 80).await;
    for (cohort, requests) in [
        (None, 150),
        (Some("all"), 150),
        (Some("site=berlin"), 20),
        (Some("site=paris"), 40),
        (Some("site=-"), 80),
        (Some("site=rome"), 0),
    ] {
        let (sum, profile) = (bench.total(cohort).await, bench.profile(cohort).await);
        assert_eq!(sum.counts.requests, requests, "{cohort:?}");
        assert_eq!(sum.all_labels().matched, requests, "{cohort:?}");
        assert_eq!(profile.content.rows, requests * 2, "{cohort:?}");
    }
    let bundle = bundle();
    let cohorts = bench.monitoring.cohorts(ever(&bundle, None)).await.expect("cohorts");
    let names: Vec<_> = cohorts.iter().map(Cohort::as_str).collect();
    assert_eq!(names, ["all", "site=-", "site=berlin", "site=paris"]);
    let watched = bench.monitoring.watched(now - Duration::from_secs(3_600), now).await.expect("watched");
    assert_eq!(watched.iter().map(|one| one.cohort.as_str()).collect::<Vec<_>>(), names);
    // A device that moves counts under its new label from then on.
    bench.label("dev-3", "site", "berlin");
    send("dev-3", 4, 1_000).await;
    assert_eq!(bench.total(Some("site=berlin")).await.counts.requests, 1_020);
}

#[tokio::test]
async fn sites_beyond_the_bound_are_counted_together() {
    let bench = Bench::new().await;
    let now = at();
    bench.cohorts(&["site"], now).await;
    for n in 0..40 {
        let device = format!("dev-{n}");
        bench.label(&device, "site", &format!("s{n}"));
        bench.take(&device, vec![(1, window_at("digits@1", 1, now))], now).await;
    }
    assert_eq!(bench.ids(AGGREGATE).await.len(), 33);
    assert_eq!(bench.total(Some("other")).await.counts.requests, 8);
    assert_eq!(bench.total(None).await.counts.requests, 40);
}
