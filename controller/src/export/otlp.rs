//! Pure: metrics as an OTLP `ExportMetricsServiceRequest` in JSON.
//!
//! Own code instead of `opentelemetry-otlp`: the metrics exist already, so what is needed is one document of four
//! shapes; that crate comes with an SDK that wants to collect them itself. Numbers of 64 bits are texts, as the
//! protocol's JSON has them.

use crate::api::metrics::{Family, MetricKind, Sample};
use edgefleet_shared::time::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// `CUMULATIVE`: a document that is lost is made good by the next.
const CUMULATIVE: u8 = 2;

/// `since`: when counting began. `instance`: which controller this is.
pub fn request(families: &[Family], instance: &str, since: Timestamp, now: Timestamp) -> Value {
    // A family without samples has nothing to tell.
    let families = families.iter().filter(|family| !family.samples.is_empty());
    let metrics: Vec<_> = families.map(|family| metric(family, since, now)).collect();
    json!({"resourceMetrics": [{
        "resource": {"attributes": [
            attribute("service.name", "edgefleet"),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
            attribute("service.instance.id", instance),
        ]},
        "scopeMetrics": [{"scope": {"name": "edgefleet"}, "metrics": metrics}],
    }]})
}

fn metric(family: &Family, since: Timestamp, now: Timestamp) -> Value {
    let mut metric = json!({"name": family.name, "description": family.help, "unit": unit(&family.name)});
    let points = || family.samples.iter().filter_map(|sample| point(sample, since, now)).collect::<Vec<_>>();
    let (shape, data) = match family.kind {
        MetricKind::Gauge => ("gauge", json!({"dataPoints": points()})),
        MetricKind::Counter => (
            "sum",
            json!({"dataPoints": points(), "aggregationTemporality": CUMULATIVE, "isMonotonic": true}),
        ),
        MetricKind::Histogram => (
            "histogram",
            json!({"dataPoints": histograms(family, since, now), "aggregationTemporality": CUMULATIVE}),
        ),
    };
    metric[shape] = data;
    metric
}

/// In the code of units that OpenTelemetry uses.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "1",
    }
}

fn point(sample: &Sample, since: Timestamp, now: Timestamp) -> Option<Value> {
    let mut point = stamped(attributes(&sample.labels), since, now);
    match sample.value.parse::<i64>() {
        Ok(whole) => point["asInt"] = whole.to_string().into(),
        Err(_) => point["asDouble"] = finite(&sample.value)?.into(),
    }
    Some(point)
}

fn finite(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite())
}

fn stamped(attributes: Vec<Value>, since: Timestamp, now: Timestamp) -> Value {
    json!({"attributes": attributes, "startTimeUnixNano": nanos(since), "timeUnixNano": nanos(now)})
}

fn nanos(at: Timestamp) -> String {
    (u128::from(at.as_millis()) * 1_000_000).to_string()
}

fn attributes(labels: &[(String, String)]) -> Vec<Value> {
    labels.iter().map(|(key, value)| attribute(key, value)).collect()
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// One point of a histogram, put together from its series.
#[derive(Default)]
struct Histogram {
    /// Upper bound and how many are at or below it.
    below: Vec<(f64, u64)>,
    count: u64,
    sum: f64,
}

fn histograms(family: &Family, since: Timestamp, now: Timestamp) -> Vec<Value> {
    let mut all = BTreeMap::<Vec<(String, String)>, Histogram>::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        let bound = labels.iter().position(|(key, _)| key == "le").map(|at| labels.remove(at).1);
        let one = all.entry(labels).or_default();
        match (sample.suffix(&family.name), bound) {
            ("_count", _) => one.count = sample.value.parse().unwrap_or_default(),
            ("_sum", _) => one.sum = finite(&sample.value).unwrap_or_default(),
            ("_bucket", Some(bound)) => {
                if let Some(bound) = finite(&bound) {
                    one.below.push((bound, sample.value.parse().unwrap_or_default()));
                }
            }
            _ => {}
        }
    }
    let one = |(labels, one): (Vec<(String, String)>, Histogram)| {
        // Prometheus counts everything below a bound, OTLP what lies between two.
        let mut before = 0;
        let mut counts: Vec<String> = Vec::with_capacity(one.below.len() + 1);
        for (_, below) in &one.below {
            counts.push(below.saturating_sub(before).to_string());
            before = *below;
        }
        counts.push(one.count.saturating_sub(before).to_string());
        let mut point = stamped(attributes(&labels), since, now);
        point["count"] = one.count.to_string().into();
        point["sum"] = one.sum.into();
        point["explicitBounds"] = one.below.iter().map(|(bound, _)| *bound).collect();
        point["bucketCounts"] = counts.into();
        point
    };
    all.into_iter().map(one).collect()
}
