//! Who was right, on how many devices, and how those did: the same at every level.

use super::*;
use edgefleet_shared::telemetry::{DeviceHealth, Versus};

const DAY: Duration = Duration::from_secs(86_400);

fn begin() -> Timestamp {
    "2026-03-15T00:00:00Z".parse().expect("time")
}

fn versus(start: Timestamp, candidate: &str, [wins, losses, both_right, both_wrong]: [u64; 4]) -> RecordBody {
    let RecordBody::Labels(mut labels) =
        labels_at(wins + losses + both_right + both_wrong, losses + both_right, start)
    else {
        unreachable!("labels are labels")
    };
    labels.versus = Some(Versus {
        bundle: candidate.parse().expect("bundle"),
        digest: BundleDigest::of(b"c"),
        attempt: AttemptId { rollout: "r-2".parse().expect("id"), number: 1 },
        wins,
        losses,
        both_right,
        both_wrong,
    });
    RecordBody::Labels(labels)
}

fn healthy(start: Timestamp, minutes: u64, temp_c: i32, slowed: bool, cpu_ms: u64) -> RecordBody {
    let RecordBody::Window(mut window) = window_at("digits@1", 1, start) else {
        unreachable!("a window is a window")
    };
    (window.mono_start_ms, window.mono_end_ms) = ((minutes - 5) * 60_000, minutes * 60_000);
    window.device = Some(DeviceHealth {
        cpu_ms: Some(cpu_ms),
        temp_c: Some(temp_c),
        slowed: Some(slowed),
        ..DeviceHealth::default()
    });
    RecordBody::Window(window)
}

async fn fold(bench: &Bench, now: Timestamp) {
    let retention = Retention { five_minutes: 1, hours: 5, days: 60 };
    bench.monitoring.set_retention(&Actor::controller(), retention, now).await.expect("retention");
    Keeper::new(bench.store.clone(), bench.monitoring.clone()).round(now).await.expect("a round");
}

#[tokio::test]
async fn wins_and_losses_are_exact_at_every_level_and_devices_count_once() {
    let bench = Bench::new().await;
    for device in 0..5 {
        for day in 0..10_u32 {
            let start = begin() + DAY * day;
            let body = versus(start, "digits@2", [3, 1, 10, 2]);
            bench.take(&format!("dev-{device}"), vec![(u64::from(day) + 1, body)], start).await;
        }
    }
    let now = begin() + DAY * 10;
    let odd = vec![(90, versus(now, "other@2", [9; 4])), (91, versus(now, "digits@1", [9; 4]))];
    bench.take("dev-0", odd, now).await;
    let before = bench.total(None).await;
    let found = &before.versus[&"digits@2".parse().expect("bundle")];
    assert_eq!((found.wins, found.losses, found.both_right, found.both_wrong), (150, 50, 500, 100));
    assert_eq!((found.labels(), found.devices.estimate(), before.versus.len()), (800, 5, 1));
    fold(&bench, now).await;
    assert!(!bench.ids(AGGREGATE_DAY).await.is_empty() && !bench.ids(AGGREGATE_HOUR).await.is_empty());
    assert_eq!(bench.total(None).await, before);
    assert_eq!(before.confusion()[&("1", "7")], 5 * 10 * 5 + 2 * 18);
}

#[tokio::test]
async fn heat_and_processors_are_shares_of_the_time_devices_tell_of() {
    let bench = Bench::new().await;
    let start = begin();
    // Half a processor, then all of one; slowed in one window of four. A repeat counts once.
    let records = vec![
        (1, healthy(start, 5, 60, false, 150_000)),
        (2, healthy(start, 10, 85, true, 450_000)),
        (3, healthy(start, 15, 999, false, 450_000)),
    ];
    bench.take("dev-1", records.clone(), start).await;
    bench.take("dev-1", records, start).await;
    // An agent that starts anew counts from nothing.
    bench.take("dev-1", vec![(4, healthy(start, 5, 40, false, 150_000))], start).await;
    let check = |health: HealthTotals| {
        assert_eq!((health.told_ms, health.hottest_c), (4 * 300_000, Some(85)));
        assert_eq!((health.slowed(), health.cpu()), (Some(0.25), Some(0.5)));
    };
    check(bench.total(None).await.health);
    fold(&bench, begin() + DAY * 9).await;
    check(bench.total(None).await.health);
    assert_eq!(bench.ids(AGGREGATE).await.len(), 0);
}
