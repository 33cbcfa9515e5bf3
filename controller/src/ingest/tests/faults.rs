//! What goes wrong out there: a controller that was away, clocks that jump, boots that look alike, messages too large.

use super::*;
use std::sync::atomic::Ordering::Relaxed;

const HOUR: Duration = Duration::from_secs(3_600);

fn noon() -> Timestamp {
    "2026-10-25T12:00:00Z".parse().expect("time") // the day on which Europe's clocks go back
}

/// The controller was away for a day. Every device sends its day, in pieces, some of them twice, all at once.
#[tokio::test]
async fn a_day_of_everybody_at_once_counts_exactly() {
    let mut bench = Bench::new().await;
    let begin = noon() - Duration::from_secs(86_400);
    let mut messages = Vec::new();
    for device in 0..6u64 {
        let name = format!("dev-{device}");
        let mut records = Vec::new();
        for n in 0..288u64 {
            let start = begin + Duration::from_secs(n * 300);
            records.push(window_at("digits@1", device + 1, start));
            if n % 12 == 11 {
                records.push(profile_at(
                    "digits@1",
                    vec![device + 1, n],
                    start - Duration::from_secs(55 * 60),
                ));
                records.push(labels_at(10, 9, start));
            }
        }
        let numbered: Vec<_> = (1..).zip(records).collect();
        for (at, piece) in numbered.chunks(100).enumerate() {
            // Acknowledgements are lost, too: every second piece comes twice, the second time beside the next.
            for copy in 0..=at % 2 {
                messages.push(((at + copy) as u64 * 7 + device, batch(&name, piece.to_vec())));
            }
        }
    }
    messages.sort_by_key(|(order, _)| *order);
    let messages: Vec<_> = messages.into_iter().map(|(_, message)| message).collect();
    for together in messages.chunks(5) {
        bench.settle(together, noon()).await;
    }

    let sum = bench.total(None).await;
    assert_eq!((sum.windows, sum.counts.requests), (6 * 288, 288 * 21));
    assert_eq!(sum.latency.total.count(), 288 * 21);
    let labels = &sum.labels["local"];
    assert_eq!((labels.matched, labels.correct, labels.confusion["1"]["7"]), (6 * 240, 6 * 216, 6 * 24));
    let hours: u64 = (0..24).map(|n| n * 12 + 11).sum();
    assert_eq!(bench.profile(None).await.content.channels[0].bins, [24 * 21, 6 * hours]);

    // Each window in its own five minutes, each hour whole: a day has 24 of them.
    let bundle = bundle();
    let range = Range { from: begin, until: noon(), ..ever(&bundle, None) };
    let series = bench.monitoring.series(range, HOUR).await.expect("series");
    assert_eq!(series.len(), 24);
    assert!(series.iter().all(|point| point.aggregate.windows == 72 && point.length == HOUR));
    assert_eq!(bench.ids(AGGREGATE).await.len(), 288);
    for (device, ack) in bench.acked() {
        assert_eq!((ack.boots[0].contiguous, ack.boots[0].extra.len()), (336, 0), "{device}");
    }
}

#[tokio::test]
async fn two_boots_with_the_same_numbers_are_two_and_a_boot_that_comes_back_is_none() {
    let mut bench = Bench::new().await;
    let other = BootId::from_random([2; 16]);
    let records = |requests| (1..=20).map(|seq| (seq, window_at("digits@1", requests, noon()))).collect();
    bench.settle(&[batch("dev-1", records(1))], noon()).await;
    bench.settle(&[batch_of("dev-1", other, records(100))], noon()).await;
    bench.settle(&[batch("dev-1", records(1)), batch_of("dev-1", other, records(100))], noon()).await;
    assert_eq!(bench.total(None).await.counts.requests, 20 + 2_000);
    let (_, ack) = bench.acked().pop_first().expect("acknowledged");
    assert!(ack.boots.len() == 2 && ack.boots.iter().all(|boot| boot.contiguous == 20), "{ack:?}");
}

/// A believable time is believed, a week and more back; an unbelievable one is the time of arrival. Sums stay exact.
#[tokio::test]
async fn clocks_that_jump_move_windows_to_where_they_can_have_been() {
    let bench = Bench::new().await;
    let day = 24 * HOUR;
    let claims = [
        (noon() - 7 * day, true),
        (noon() - 29 * day, true),
        (noon() - 31 * day, false),
        (Timestamp::EPOCH, false),
        (Timestamp::from_secs(17), false),
        (noon() + HOUR / 2, true),
        (noon() + 2 * HOUR, false),
        (noon() + 365 * day, false),
        (Timestamp::from_millis(u64::MAX), false),
    ];
    let mut records = Vec::new();
    for (at, (claimed, _)) in claims.iter().enumerate() {
        let seq = 3 * at as u64 + 1;
        records.push((seq, window_at("digits@1", 1 << at, *claimed)));
        records.push((seq + 1, labels_at(1 << at, 1 << at, *claimed)));
        records.push((seq + 2, profile_at("digits@1", vec![1 << at], *claimed)));
    }
    bench.take("dev-1", records, noon()).await;
    let bundle = bundle();
    for (at, (claimed, believed)) in claims.iter().enumerate() {
        let bucket = Level::FiveMinutes.start_of(if *believed { *claimed } else { noon() });
        let range = Range { from: bucket, until: bucket + Duration::from_secs(1), ..ever(&bundle, None) };
        let found = bench.monitoring.total(range).await.expect("total");
        assert_eq!(found.counts.requests & (1 << at), 1 << at, "{claimed}");
        assert_eq!(found.all_labels().matched & (1 << at), 1 << at, "{claimed}");
        let hour = bench.monitoring.profile(range).await.expect("profile");
        assert_eq!(hour.content.rows & (1 << at), 1 << at, "{claimed}");
    }
    assert_eq!(bench.total(None).await.counts.requests, (1 << claims.len()) - 1);
    assert_eq!(bench.profile(None).await.content.rows, (1 << claims.len()) - 1);
}

/// Windows of distinct buckets, each with sketches as large as they get: more than one transaction may hold.
fn hoard(device: &str) -> TelemetryBatch {
    let mut total = Sketch::default();
    (0..3_000u64).for_each(|n| total.record_us((1.02f64.powi(n as i32 % 1_000) as u64).max(1) * 7));
    let records = (1..=256).map(|seq| {
        let start = noon() - Duration::from_secs(300 * seq);
        let RecordBody::Window(mut window) = window_at("digits@1", 1, start) else { panic!("a window") };
        window.latency = Latency {
            total: total.clone(),
            queue: total.clone(),
            infer: total.clone(),
            ..Latency::default()
        };
        window.classes = (0..128).map(|n| (format!("{n:0>120}"), 1)).collect();
        (seq, RecordBody::Window(window))
    });
    batch(device, records.collect())
}

#[tokio::test]
async fn what_is_too_much_for_one_transaction_is_cut_and_everybody_is_acknowledged() {
    let mut bench = Bench::new().await;
    let messages = [hoard("dev-1"), batch("dev-2", vec![(1, window_at("digits@1", 10, noon()))])];
    bench.settle(&messages, noon()).await;
    let acks = bench.acked();
    let upto = |device: &str| acks[&device.parse().expect("id")].boots[0].contiguous;
    assert_eq!((upto("dev-1"), upto("dev-2")), (256, 1));
    assert_eq!(bench.total(None).await.counts.requests, 266);
    let totals = bench.worker.totals();
    assert!(totals.split.load(Relaxed) >= 2);
    assert_eq!((totals.refused.load(Relaxed), totals.records.load(Relaxed)), (0, 257));
    // Again, as after a lost acknowledgement: nothing counts twice.
    bench.settle(&messages, noon()).await;
    assert_eq!(bench.total(None).await.counts.requests, 266);
    assert_eq!(totals.records.load(Relaxed), 257);
}

/// One stored bucket that cannot be read costs the records that belong there, and no device repeats them for ever.
#[tokio::test]
async fn a_record_that_cannot_be_stored_is_given_up_alone() {
    let mut bench = Bench::new().await;
    let id = BucketId { bundle: bundle(), role: Role::Primary, start: noon(), cohort: Cohort::all() };
    let damage = crate::store::Transaction::new().put(
        AGGREGATE,
        id.to_string(),
        crate::store::Expect::Absent,
        b"not JSON".to_vec(),
    );
    bench.store.commit(damage).await.expect("commit");
    let window = |seq, start| (seq, window_at("digits@1", 1, start));
    let later = noon() + Duration::from_secs(300);
    let records = vec![window(1, later), window(2, noon()), window(3, later)];
    let messages = [batch("dev-1", records), batch("dev-2", vec![window(1, later)])];
    bench.settle(&messages, later).await;
    for (device, ack) in bench.acked() {
        assert_eq!(ack.boots[0].contiguous, if device.as_str() == "dev-1" { 3 } else { 1 });
    }
    assert_eq!(bench.worker.totals().refused.load(Relaxed), 1);
    let bundle = bundle();
    let range = Range { from: later, ..ever(&bundle, None) };
    assert_eq!(bench.monitoring.total(range).await.expect("total").counts.requests, 3);
}
