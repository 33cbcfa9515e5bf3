//! `GET /metrics` in the Prometheus text format. Labels are slots, bundles and our own codes only.

use super::{Family, Metric, ServingState, triton_metrics};
use crate::monitor::ErrorCode;
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use std::{fmt::Write, sync::atomic::Ordering};

/// The text in the making; the format wants all lines of a metric together.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}"); // a String takes everything
    }
    pub(super) fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (key, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{key}=\"{value}\"", if index == 0 { "{" } else { "," });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

fn kind_of(name: &str) -> &'static str {
    if name.ends_with("_total") { "counter" } else { "gauge" }
}

pub(super) async fn metrics(State(state): State<ServingState>) -> Response {
    let mut text = Text::default();
    let actives = state.0.slots.actives();
    let all: Vec<_> = actives.iter().map(|active| (active, active.stats.totals())).collect();
    let name = "edgefleet_requests_total";
    text.metric(name, "counter", "Inference requests by outcome since the bundle was activated.");
    for (active, totals) in &all {
        let (model, bundle) = (active.served.slot.as_str(), active.bundle_text.as_str());
        let outcomes = [("ok", totals.success.count), ("rejected", totals.rejected)];
        let errors = ErrorCode::ALL.iter().map(|code| code.as_str()).zip(totals.errors);
        for (outcome, n) in outcomes.into_iter().chain(errors) {
            text.line(name, &[("model", model), ("bundle", bundle), ("outcome", outcome)], n as f64);
        }
    }
    let name = "edgefleet_rows_total";
    text.metric(name, "counter", "Inputs answered; a request of batch 8 has 8.");
    for (active, totals) in &all {
        let labels = [("model", active.served.slot.as_str()), ("bundle", active.bundle_text.as_str())];
        text.line(name, &labels, totals.rows as f64);
    }
    for (name, help, of) in [
        ("edgefleet_inference_seconds", "Time in the engine of answered requests.", true),
        ("edgefleet_request_seconds", "Whole time of answered requests in the agent.", false),
    ] {
        text.metric(name, "summary", help);
        for (active, totals) in &all {
            let sketch = if of { &totals.infer_us } else { &totals.total_us };
            let labels = [("model", active.served.slot.as_str()), ("bundle", active.bundle_text.as_str())];
            for (quantile, q) in [("0.5", 0.5), ("0.95", 0.95), ("0.99", 0.99)] {
                let value = sketch.quantile_us(q).map_or(f64::NAN, |us| us / 1e6);
                text.line(name, &[labels[0], labels[1], ("quantile", quantile)], value);
            }
            text.line(&format!("{name}_sum"), &labels, sketch.sum_us as f64 / 1e6);
            text.line(&format!("{name}_count"), &labels, sketch.count() as f64);
        }
    }
    let name = "edgefleet_requests_in_flight";
    text.metric(name, "gauge", "Inference requests being worked on.");
    for (active, _) in &all {
        text.line(name, &[("model", active.served.slot.as_str())], active.stats.in_flight() as f64);
    }
    let name = "edgefleet_http_responses_total";
    text.metric(name, "counter", "Responses of the serving listener by status code.");
    for (status, n) in state.0.responses.read().iter() {
        text.line(name, &[("code", &status.to_string())], n.load(Ordering::Relaxed) as f64);
    }
    for (name, kind, help, value) in [
        (
            "edgefleet_queue_requests",
            "gauge",
            "Inference requests waiting for a worker.",
            state.0.pool.waiting() as f64,
        ),
        (
            "edgefleet_http_connections",
            "gauge",
            "Open connections.",
            state.0.connections.load(Ordering::Relaxed) as f64,
        ),
        (
            "edgefleet_http_connections_refused_total",
            "counter",
            "Connections turned away because too many were open.",
            state.0.refused_connections.load(Ordering::Relaxed) as f64,
        ),
        (
            "edgefleet_body_bytes",
            "gauge",
            "Bytes of request bodies in memory.",
            state.0.body_bytes.load(Ordering::Relaxed) as f64,
        ),
        (
            "edgefleet_telemetry_waiting_records",
            "gauge",
            "Finished telemetry records the outbox has not taken.",
            state.0.monitor.waiting() as f64,
        ),
        (
            "edgefleet_uptime_seconds",
            "gauge",
            "Since the agent's start.",
            state.0.started.elapsed().as_secs_f64(),
        ),
    ] {
        text.metric(name, kind, help);
        text.line(name, &[], value);
    }
    if state.0.config.triton_metrics {
        triton_metrics::write(&mut text, &all);
    }
    let providers = state.0.providers.read().clone();
    for Metric { name, help, value } in providers.iter().flat_map(|provider| provider.metrics()) {
        text.metric(name, kind_of(name), help);
        text.line(name, &[], value);
    }
    for Family { name, help, lines } in providers.iter().flat_map(|provider| provider.labelled()) {
        text.metric(name, kind_of(name), help);
        for (labels, value) in lines {
            let labels: Vec<(&str, &str)> =
                labels.iter().map(|(key, value)| (*key, value.as_str())).collect();
            text.line(name, &labels, value);
        }
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.0).into_response()
}
