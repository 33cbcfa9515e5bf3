//! `/metrics` in the Prometheus text format. Label values come from closed sets: route templates, not paths.

use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    time::Duration,
};

/// Upper bounds of request durations, seconds.
const BUCKETS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// One family with its samples, whatever format they are written in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    pub name: String,
    pub kind: MetricKind,
    pub help: String,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The family's name; of a histogram with `_bucket`, `_sum` or `_count`.
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub value: String,
}

impl Sample {
    /// What the name has beyond that of its family.
    pub fn suffix(&self, family: &str) -> &str {
        self.name.strip_prefix(family).unwrap_or("")
    }
}

/// Collects families, and writes them in the text format.
#[derive(Debug, Default)]
pub struct MetricsText(Vec<Family>);

impl MetricsText {
    /// Begins a family. `name`: `edgefleet_<noun>_<unit>[_total]`.
    pub fn family(&mut self, name: &str, kind: MetricKind, help: &str) {
        self.0.push(Family { name: name.to_owned(), kind, help: help.to_owned(), samples: Vec::new() });
    }

    /// A sample of the family that was begun last.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let Some(family) = self.0.last_mut() else { return };
        let labels = labels.iter().map(|(label, text)| ((*label).to_owned(), (*text).to_owned())).collect();
        family.samples.push(Sample { name: name.to_owned(), labels, value: value.to_string() });
    }

    /// A family with one sample without labels.
    pub fn single(&mut self, name: &str, kind: MetricKind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    pub fn into_families(self) -> Vec<Family> {
        self.0
    }

    pub fn into_text(self) -> String {
        let mut text = String::new();
        for family in &self.0 {
            family.write(&mut text);
        }
        text
    }
}

impl Family {
    fn write(&self, out: &mut String) {
        let kind = match self.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {0} {1}\n# TYPE {0} {kind}", self.name, self.help);
        for Sample { name, labels, value } in &self.samples {
            out.push_str(name);
            for (at, (label, text)) in labels.iter().enumerate() {
                let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                let _ = write!(out, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
            }
            let _ = writeln!(out, "{} {value}", if labels.is_empty() { "" } else { "}" });
        }
    }
}

/// Adds families of one part of the controller at every scrape.
pub type MetricsSource = Box<dyn Fn(&mut MetricsText) + Send + Sync>;

/// Everything that `/metrics` shows.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<(String, String, u16), u64>>,
    durations: Mutex<BTreeMap<String, Histogram>>,
    sources: Mutex<Vec<MetricsSource>>,
}

#[derive(Default)]
struct Histogram {
    counts: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Metrics {
    pub fn add_source(&self, source: MetricsSource) {
        self.sources.lock().push(source);
    }

    /// `route`: the template, or `unmatched`.
    pub(crate) fn record(&self, method: &str, route: &str, status: u16, took: Duration) {
        let key = (route.to_owned(), method.to_owned(), status);
        *self.requests.lock().entry(key).or_default() += 1;
        let seconds = took.as_secs_f64();
        let mut durations = self.durations.lock();
        let histogram = durations.entry(route.to_owned()).or_default();
        histogram.count += 1;
        histogram.sum += seconds;
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            histogram.counts[bucket] += 1;
        }
    }

    pub fn render(&self) -> String {
        self.collect().into_text()
    }

    /// Everything there is now, for other formats than the text.
    pub fn families(&self) -> Vec<Family> {
        self.collect().into_families()
    }

    fn collect(&self) -> MetricsText {
        let mut text = MetricsText::default();
        let name = "edgefleet_http_requests_total";
        text.family(name, MetricKind::Counter, "HTTP requests answered, by route template.");
        for ((route, method, status), count) in &*self.requests.lock() {
            let status = status.to_string();
            text.sample(name, &[("route", route), ("method", method), ("status", &status)], count);
        }
        let name = "edgefleet_http_request_seconds";
        text.family(name, MetricKind::Histogram, "Time from the request's head to the answer's head.");
        for (route, histogram) in &*self.durations.lock() {
            let mut below = 0;
            for (bound, count) in BUCKETS.iter().zip(histogram.counts) {
                below += count;
                let bound = bound.to_string();
                text.sample(&format!("{name}_bucket"), &[("route", route), ("le", &bound)], below);
            }
            text.sample(&format!("{name}_bucket"), &[("route", route), ("le", "+Inf")], histogram.count);
            text.sample(&format!("{name}_sum"), &[("route", route)], histogram.sum);
            text.sample(&format!("{name}_count"), &[("route", route)], histogram.count);
        }
        self.sources.lock().iter().for_each(|source| source(&mut text));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        metrics.record("GET", "/x/{id}", 200, Duration::from_millis(3));
        metrics.record("GET", "/x/{id}", 200, Duration::from_secs(100));
        metrics.add_source(Box::new(|text| {
            text.family("edgefleet_devices", MetricKind::Gauge, "Devices.");
            text.sample("edgefleet_devices", &[("state", "a\"b\\c\nd")], 7);
        }));
        let text = metrics.render();
        for line in [
            "# TYPE edgefleet_http_requests_total counter",
            "edgefleet_http_requests_total{route=\"/x/{id}\",method=\"GET\",status=\"200\"} 2",
            "edgefleet_http_request_seconds_bucket{route=\"/x/{id}\",le=\"0.001\"} 0",
            "edgefleet_http_request_seconds_bucket{route=\"/x/{id}\",le=\"0.005\"} 1",
            "edgefleet_http_request_seconds_bucket{route=\"/x/{id}\",le=\"60\"} 1",
            "edgefleet_http_request_seconds_bucket{route=\"/x/{id}\",le=\"+Inf\"} 2",
            "edgefleet_http_request_seconds_count{route=\"/x/{id}\"} 2",
            "edgefleet_devices{state=\"a\\\"b\\\\c\\nd\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
