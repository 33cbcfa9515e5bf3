//! Profiles in: sound ones of known bundles, thinned, beside each device's own.

use super::*;

fn hour(n: u64) -> Timestamp {
    Level::Hour.start_of(at()) - Duration::from_secs(200 * 3_600) + Duration::from_secs(n * 3_600)
}

#[tokio::test]
async fn profiles_add_up_by_hour_and_each_device_has_its_own() {
    let mut bench = Bench::new().await;
    let mut odd = content(vec![1, 2]);
    odd.channels[0].bins = vec![7, 7];
    let RecordBody::Profile(mut unsound) = profile_at("digits@1", vec![1], hour(0)) else {
        panic!("a profile")
    };
    unsound.content = odd;
    let records = vec![
        (1, profile_at("digits@1", vec![10, 5], hour(0))),
        (2, profile_at("digits@1", vec![10, 5], hour(1))),
        (3, RecordBody::Profile(unsound)),
        (4, profile_at("invented@1", vec![10, 5], hour(1))),
    ];
    bench.take("dev-1", records.clone(), hour(2)).await;
    bench.take("dev-1", records, hour(2)).await;
    bench.take("dev-2", vec![(1, profile_at("digits@1", vec![0, 30], hour(1)))], hour(2)).await;
    assert_eq!(bench.acked()[&"dev-1".parse().expect("id")].boots[0].contiguous, 4);

    assert_eq!(bench.ids(PROFILE_HOUR).await.len(), 2);
    let all = bench.profile(None).await;
    assert_eq!((all.profiles, all.devices, all.content.rows, all.told), (3, 2, 60, 60));
    assert_eq!(all.content.channels[0].bins, [20, 40]);
    let bundle = bundle();
    let range = Range { from: hour(1), until: hour(2), ..ever(&bundle, None) };
    let second = bench.monitoring.profile(range).await.expect("profile");
    assert_eq!(second.content.channels[0].bins, [10, 35]);

    let own = |device: &str| {
        let device: DeviceId = device.parse().expect("id");
        let (monitoring, bundle) = (bench.monitoring.clone(), bundle.clone());
        async move { monitoring.device_profile(&device, &bundle).await.expect("a profile") }
    };
    let first = own("dev-1").await.expect("it sent one");
    assert_eq!((first.recent.len(), first.lately().rows, first.last), (2, 30, hour(2)));
    assert!(own("dev-3").await.is_none());
    let (page, next) = bench.monitoring.device_profiles(None, 10).await.expect("page");
    assert_eq!((page.len(), next), (2, None));
}

/// Ninety-nine devices say little, one says a lot, in many records: it has a tenth of the hour, not all of it.
#[tokio::test]
async fn a_single_device_counts_with_ten_thousand_rows_an_hour() {
    let bench = Bench::new().await;
    for n in 0..9 {
        let quiet = vec![(1, profile_at("digits@1", vec![8_000, 0], hour(0)))];
        bench.take(&format!("dev-{n}"), quiet, hour(1)).await;
    }
    let claims = (1..=50).map(|seq| (seq, profile_at("digits@1", vec![0, 1_000_000], hour(0))));
    bench.take("dev-loud", claims.collect(), hour(1)).await;
    let all = bench.profile(None).await;
    assert!(all.content.is_sound());
    let [quiet, loud] = all.content.channels[0].bins[..] else { panic!("two bins") };
    assert_eq!(quiet, 72_000);
    assert!((8_000..=ROWS_PER_DEVICE_HOUR).contains(&loud), "{loud}");
    assert_eq!((all.devices, all.largest), (10, ROWS_PER_DEVICE_HOUR));
    // What it is like itself is not cut: it only speaks of itself.
    let (loud, bundle) = ("dev-loud".parse().expect("id"), bundle());
    let own = bench.monitoring.device_profile(&loud, &bundle).await.expect("read").expect("some");
    assert_eq!(own.lately().rows, 3_000_000);
}

/// What is held of a device in the store, with windows and profiles of a week.
#[tokio::test]
async fn the_state_of_a_device_is_small() {
    let bench = Bench::new().await;
    let mut seq = 0;
    for day in 0..7 {
        let mut records = Vec::new();
        for n in day * 24..(day + 1) * 24 {
            let RecordBody::Profile(mut profile) = profile_at("digits@1", vec![1], hour(n)) else { panic!() };
            profile.content = wide(n);
            seq += 2;
            records
                .extend([(seq - 1, window_at("digits@1", 50, hour(n))), (seq, RecordBody::Profile(profile))]);
        }
        bench.take("dev-1", records, hour((day + 1) * 24)).await;
    }
    let telemetry = bench.store.get(DEVICE_TELEMETRY, "dev-1").await.expect("get").expect("some");
    let profile = bench.store.get(DEVICE_PROFILE, "dev-1/digits@1").await.expect("get").expect("some");
    println!("device-telemetry {} bytes, device-profile {} bytes", telemetry.body.len(), profile.body.len());
    assert!(telemetry.body.len() < 4 << 10 && profile.body.len() < 16 << 10);
}

/// Thirty-two numbers, 22 bins each, 360 rows.
fn wide(seed: u64) -> edgefleet_shared::telemetry::ProfileContent {
    let mut content = edgefleet_shared::telemetry::ProfileContent { rows: 360, ..Default::default() };
    for at in 0..32u64 {
        let mut channel =
            edgefleet_shared::telemetry::Channel::new(format!("input/features/{at:02}").parse().expect("id"));
        channel.bins = vec![0; 22];
        for row in 0..360u64 {
            let mixed = (seed * 7_919 + at * 104_729 + row * 1_299_709) % 9_973;
            let x = mixed as f64 / 9_973.0;
            channel.moments.take(x);
            channel.bins[((x * x) * 22.0) as usize] += 1;
            channel.n += 1;
        }
        content.channels.push(channel);
    }
    assert!(content.is_sound());
    content
}
