//! From a store to files, and what other programs make of them.

use super::{
    BundleGauges, Day, OtlpPush, OtlpSettings, Source,
    folder::{Exporter, FileDone, Place, Written},
    otlp,
    row::{Bucket, ChannelRow, Fields, Row, Table},
    s3::{S3Access, S3Place},
};
use crate::{
    api::metrics::{MetricKind, Metrics},
    ingest::{AGGREGATE, Aggregate, BucketId, Cohort, LabelTotals},
    store::{
        Expect, FleetStore, Transaction,
        sled_home::{SledConfig, SledStore},
    },
};
use edgefleet_shared::{telemetry::Role, time::Timestamp};
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const FLEET: &str = "0123456789abcdef";
const BUCKET_SECS: u64 = 300;
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs the readers' script and demands that all its checks hold.
pub(crate) fn readers(args: &[&str]) {
    let python = std::env::var_os("EDGEFLEET_TEST_PYTHON").expect(
        "EDGEFLEET_TEST_PYTHON names no interpreter with duckdb and pandas; `make setup` installs them",
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let script = root.join("tests/python/readers.py");
    let done = Command::new(python).arg(script).args(args).current_dir(root).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}\n{err}");
    let report: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert!(report["ok"] == true && !report["checks"].as_array().unwrap().is_empty(), "{report}");
}

fn day(text: &str) -> Day {
    text.parse().unwrap()
}

fn aggregate(requests: u64, labelled: bool) -> Aggregate {
    let mut one = Aggregate { windows: 2, ..Aggregate::default() };
    one.counts.requests = requests;
    one.counts.ok = requests - requests / 10;
    one.counts.rows = requests;
    (1..=requests).for_each(|ms| one.latency.total.record_us(ms * 1_000));
    one.classes = BTreeMap::from([("seven".to_owned(), requests / 2), ("größe \"x\"".to_owned(), 1)]);
    if labelled {
        let labels = LabelTotals { matched: 10, correct: 9, unmatched: 1, ..LabelTotals::default() };
        one.labels.insert("controller".to_owned(), labels);
    }
    one
}

/// Two models, three bundles, shadows, over two days with a day between them.
async fn store(dir: &Path) -> Arc<dyn FleetStore> {
    let store: Arc<dyn FleetStore> =
        Arc::new(SledStore::open(SledConfig::new(dir.join("store"))).await.unwrap().0);
    for (bundle, role) in [
        ("digits@2", Role::Primary),
        ("digits@10", Role::Primary),
        ("digits@10", Role::Shadow),
        ("vibration@1", Role::Primary),
    ] {
        let mut transaction = Transaction::new();
        for begin in ["2026-11-21", "2026-11-23"] {
            for n in 0..288 {
                let at = day(begin).start() + Duration::from_secs(n * BUCKET_SECS);
                let id = BucketId { bundle: bundle.parse().unwrap(), role, start: at, cohort: Cohort::all() };
                transaction = transaction
                    .put_json(AGGREGATE, id.to_string(), Expect::Any, &aggregate(n % 20, n < 10))
                    .unwrap();
            }
        }
        store.commit(transaction).await.unwrap();
    }
    store
}

/// All rows of a day, as the stream has them.
async fn rows(source: &Source, day: Day) -> Vec<Row> {
    let mut all = Vec::new();
    for series in source.series(None).await.unwrap() {
        all.extend(source.rows(&series, day).await.unwrap());
    }
    all
}

async fn export(to: &Path, rows: Vec<Row>, replace: bool) -> Vec<FileDone> {
    export_to(Place::Folder(to.to_owned()), rows, replace).await
}

async fn export_to(place: Place, rows: Vec<Row>, replace: bool) -> Vec<FileDone> {
    let mut exporter = Exporter::new(place, FLEET, replace);
    let mut done = Vec::new();
    for row in rows {
        done.extend(exporter.take(row).await.unwrap());
    }
    done.extend(exporter.finish().await.unwrap());
    done
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

#[tokio::test]
async fn a_source_finds_every_series_and_every_bucket_of_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::new(store(dir.path()).await);
    let all = source.series(None).await.unwrap();
    let names: Vec<_> = all.iter().map(|one| format!("{}/{}", one.bundle, one.role)).collect();
    assert_eq!(names, ["digits@10/primary", "digits@10/shadow", "digits@2/primary", "vibration@1/primary"]);
    let some = source.series(Some(&"vibration".parse().unwrap())).await.unwrap();
    assert_eq!(some.len(), 1);
    let day = day("2026-11-21");
    assert_eq!(source.first(&all[0], Timestamp::EPOCH).await.unwrap(), Some(day.start()));
    let buckets = source.buckets::<Aggregate>(&all[0], day.start(), day.next().start()).await.unwrap();
    assert_eq!(buckets.len(), 288);
    assert!(source.rows(&all[0], day.next()).await.unwrap().is_empty());
    let after = source.first(&all[0], day.next().start()).await.unwrap();
    assert_eq!(after, Some(day.next().next().start()));
    let telemetry = source.rows(&all[0], day).await.unwrap();
    assert_eq!(telemetry.iter().filter(|row| row.table() == Table::Telemetry).count(), 288);
    assert_eq!(telemetry.iter().filter(|row| row.table() == Table::Labels).count(), 10);
}

#[tokio::test]
async fn a_day_is_replaced_as_a_whole_and_never_by_less() {
    let dir = tempfile::tempdir().unwrap();
    let (source, to) = (Source::new(store(dir.path()).await), dir.path().join("lake"));
    let mut all = rows(&source, day("2026-11-21")).await;
    all.extend(rows(&source, day("2026-11-23")).await);
    let outcomes = |done: &[FileDone]| done.iter().map(|file| file.outcome).collect::<Vec<_>>();
    let done = export(&to, all.clone(), false).await;
    // Two days, two models, three tables.
    assert_eq!(outcomes(&done), [Written::New; 12]);
    assert!(done[0].path.starts_with("table=telemetry/model=digits/date=2026-11-21"), "{done:?}");
    let before = files(&to);
    assert_eq!(before.len(), 12);
    assert_eq!(outcomes(&export(&to, all.clone(), false).await), [Written::Unchanged; 12]);
    assert_eq!(files(&to), before, "nothing is left beside the files");
    let fewer: Vec<_> = all.iter().filter(|row| row.bucket.role == "shadow").cloned().collect();
    assert_eq!(outcomes(&export(&to, fewer.clone(), false).await), [Written::Kept; 6]);
    assert_eq!(outcomes(&export(&to, all.clone(), false).await), [Written::Unchanged; 12]);
    assert_eq!(outcomes(&export(&to, fewer, true).await), [Written::Replaced; 6]);
    assert_eq!(
        outcomes(&export(&to, all, false).await).iter().filter(|one| **one == Written::Replaced).count(),
        6
    );
    assert_eq!(files(&to), before);
}

#[tokio::test]
async fn duckdb_and_pandas_read_the_files_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (source, to) = (Source::new(store(dir.path()).await), dir.path().join("lake"));
    let mut all = rows(&source, day("2026-11-21")).await;
    all.extend(rows(&source, day("2026-11-23")).await);
    let channels = all.iter().filter(|row| row.table() == Table::Telemetry).take(3).map(|row| Row {
        bucket: Bucket { cohort: "site=a".to_owned(), ..row.bucket.clone() },
        fields: Fields::Channels(ChannelRow {
            channel: "luma".to_owned(),
            n: 7,
            missing: 0,
            mean: Some(0.5),
            sd: None,
            min: Some(f64::NAN),
            max: None,
            bins: "[3,4]".to_owned(),
        }),
    });
    let channels: Vec<_> = channels.collect();
    // One folder of one table, as the command writes it by default, and one with all.
    let only: Vec<_> = all.iter().filter(|row| row.table() == Table::Telemetry).cloned().collect();
    export(&to.join("one"), only, false).await;
    export(&to.join("all"), all.into_iter().chain(channels).collect(), false).await;
    readers(&["parquet", to.join("one").to_str().unwrap(), to.join("all").to_str().unwrap()]);
}

#[tokio::test]
async fn gauges_show_the_last_hour_of_what_is_primary() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::new(store(dir.path()).await);
    let metrics = Metrics::default();
    let gauges = BundleGauges::default();
    let now = day("2026-11-23").start() + Duration::from_secs(12 * BUCKET_SECS - 1);
    gauges.look(&source, now).await.unwrap();
    let shown = gauges.clone();
    metrics.add_source(Box::new(move |text| shown.metrics(text)));
    let text = metrics.render();
    let name = "{model=\"digits\",bundle=\"digits@10\"";
    for line in [
        // Buckets 0 to 11 ...
        format!("edgefleet_bundle_requests{name}}} 66"),
        format!("edgefleet_bundle_errors{name}}} 2"),
        // ... of which ten have labels.
        format!("edgefleet_bundle_labels{name},source=\"controller\"}} 100"),
        format!("edgefleet_bundle_accuracy_ratio{name},source=\"controller\"}} 0.9"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert_eq!(text.lines().filter(|line| line.starts_with("edgefleet_bundle_requests{")).count(), 3);
    gauges.look(&source, now + Duration::from_secs(90_000)).await.unwrap();
    assert!(!metrics.render().contains("edgefleet_bundle_requests{"), "an hour later it is history");
}

#[tokio::test]
async fn a_collector_gets_what_metrics_has_in_a_form_that_protobuf_reads() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/otlp", listener.local_addr().unwrap()).parse().unwrap();
    type Arrived = (String, Option<String>, Vec<u8>);
    let arrived: Arc<Mutex<Vec<Arrived>>> = Arc::default();
    let own = arrived.clone();
    let app = axum::Router::new().fallback(
        |uri: axum::http::Uri, headers: axum::http::HeaderMap, body: axum::body::Bytes| async move {
            let token = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
            let mut all = own.lock();
            all.push((uri.path().to_owned(), token, body.to_vec()));
            // The first is refused: the next makes it good.
            if all.len() == 1 { axum::http::StatusCode::BAD_GATEWAY } else { axum::http::StatusCode::OK }
        },
    );
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });

    let metrics = Arc::new(Metrics::default());
    metrics.record("GET", "/x", 200, Duration::from_millis(3));
    metrics.record("GET", "/x", 500, Duration::from_secs(100));
    metrics.add_source(Box::new(|text| {
        text.single("edgefleet_bundle_accuracy_ratio", MetricKind::Gauge, "Share", 0.9);
        text.single("edgefleet_alerts_pending", MetricKind::Gauge, "Waiting", 3);
    }));
    let settings = OtlpSettings {
        endpoint,
        interval: Duration::from_millis(50),
        headers: [("authorization".parse().unwrap(), "Bearer t".parse().unwrap())].into_iter().collect(),
        ca: None,
    };
    let push = OtlpPush::new(settings).unwrap();
    let stop = CancellationToken::new();
    let running =
        tokio::spawn(push.clone().run(metrics.clone(), "fleet-1".into(), crate::clock::wall(), stop.clone()));
    let begun = Instant::now();
    while arrived.lock().len() < 2 {
        assert!(begun.elapsed() < DEADLINE, "nothing arrived");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    running.await.unwrap();
    let (path, token, body) = arrived.lock()[1].clone();
    assert_eq!((path.as_str(), token.as_deref()), ("/otlp/v1/metrics", Some("Bearer t")));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("request.json");
    fs::write(&file, body).unwrap();
    readers(&["otlp", file.to_str().unwrap()]);
    metrics.add_source(Box::new(move |text| push.metrics(text)));
    assert!(metrics.render().contains("edgefleet_otlp_pushes_total{outcome=\"failed\"} 1"));
}

#[test]
fn histograms_are_counted_between_bounds() {
    let metrics = Metrics::default();
    for millis in [1, 3, 4, 200, 100_000] {
        metrics.record("GET", "/x", 200, Duration::from_millis(millis));
    }
    let (since, now) = (Timestamp::from_secs(1), Timestamp::from_millis(2_500));
    let request = otlp::request(&metrics.families(), "i", since, now);
    let all = request["resourceMetrics"][0]["scopeMetrics"][0]["metrics"].as_array().unwrap();
    let found = all.iter().find(|one| one["name"] == "edgefleet_http_request_seconds").unwrap();
    let point = &found["histogram"]["dataPoints"][0];
    assert_eq!(point["bucketCounts"], serde_json::json!(["1", "2", "0", "0", "1", "0", "0", "0", "0", "1"]));
    assert_eq!((&point["count"], &point["explicitBounds"][0]), (&"5".into(), &0.001.into()));
    assert_eq!(
        (&point["startTimeUnixNano"], &point["timeUnixNano"]),
        (&"1000000000".into(), &"2500000000".into())
    );
    assert_eq!((&found["unit"], &point["attributes"][0]["key"]), (&"s".into(), &"route".into()));
}

/// An S3 server of its own, on a free port.
struct Moto {
    child: std::process::Child,
    endpoint: String,
}

impl Moto {
    fn start() -> Self {
        use std::io::BufRead as _;
        let python = std::env::var_os("EDGEFLEET_TEST_PYTHON").expect("`make setup` makes the interpreter");
        let mut child = Command::new(python)
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (said, told) = std::sync::mpsc::channel();
        let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        // Reads on to the end: a full pipe would stop the server.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(said.send(line))));
        let endpoint = loop {
            let line = told.recv_timeout(DEADLINE).expect("moto did not start");
            if let Some((_, address)) = line.split_once("Running on ") {
                break address.trim().to_owned();
            }
        };
        Self { child, endpoint }
    }

    fn place(&self, bucket: &str) -> S3Place {
        S3Place::new(&format!("s3://{bucket}/fleet-1").parse().unwrap(), access(&self.endpoint)).unwrap()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn access(endpoint: &str) -> S3Access {
    S3Access {
        endpoint: Some(endpoint.to_owned()),
        region: None,
        key: "key".into(),
        secret: "secret".into(),
        token: None,
        ca: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_holds_what_a_folder_would() {
    use rusty_s3::{Bucket, Credentials, S3Action as _, UrlStyle, actions::CreateBucket};
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let source = Source::new(store(dir.path()).await);
    let mut all = rows(&source, day("2026-11-21")).await;
    all.extend(rows(&source, day("2026-11-23")).await);
    let moto = Moto::start();
    let nowhere = moto.place("lake").put("a", bytes::Bytes::from_static(b"x")).await.unwrap_err();
    assert!(nowhere.to_string().contains("NoSuchBucket") && nowhere.hint().is_some(), "{nowhere}");
    let lake = Bucket::new(moto.endpoint.parse().unwrap(), UrlStyle::Path, "lake", "us-east-1").unwrap();
    let (key, client) =
        (Credentials::new("key", "secret"), reqwest::Client::builder().no_proxy().build().unwrap());
    let made = client
        .put(CreateBucket::new(&lake, &key).sign(Duration::from_secs(60)))
        .header("content-length", 0)
        .send()
        .await
        .unwrap();
    assert!(made.status().is_success(), "{}", made.status());

    let to = dir.path().join("lake");
    let in_folder = export(&to, all.clone(), false).await;
    let s3 = || Place::S3(Box::new(moto.place("lake")));
    let in_bucket = export_to(s3(), all.clone(), false).await;
    assert_eq!(in_folder, in_bucket);
    let again = export_to(s3(), all.clone(), false).await;
    assert!(again.iter().all(|one| one.outcome == Written::Unchanged), "{again:?}");
    let fewer: Vec<_> = all.iter().skip(1).cloned().collect();
    let kept = export_to(s3(), fewer, false).await;
    assert_eq!(kept.iter().filter(|one| one.outcome == Written::Kept).count(), 1);
    readers(&["s3", &moto.endpoint, "lake", "fleet-1", to.to_str().unwrap()]);
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = asked.clone();
    let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
        let n = counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let path = request.uri().path().to_owned();
        async move {
            match (n, path.contains("forbidden")) {
                (_, true) => (axum::http::StatusCode::FORBIDDEN, "<Code>AccessDenied</Code>"),
                (0 | 1, false) => (axum::http::StatusCode::SERVICE_UNAVAILABLE, "<Code>SlowDown</Code>"),
                _ => (axum::http::StatusCode::OK, ""),
            }
        }
    });
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let place = S3Place::new(&"s3://lake".parse().unwrap(), access(&endpoint)).unwrap();
    place.put("a", bytes::Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(asked.swap(0, std::sync::atomic::Ordering::SeqCst), 3);
    let refused = place.put("forbidden", bytes::Bytes::from_static(b"x")).await.unwrap_err();
    assert!(refused.to_string().contains("403 Forbidden AccessDenied"), "{refused}");
    assert!(!refused.to_string().contains("secret"));
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1);
}
