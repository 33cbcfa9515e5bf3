//! The same counts under the names of Triton's metrics, for dashboards and scalers that know those.
//!
//! Source: Triton Inference Server, user guide, "Metrics". GPU and pinned-memory metrics have no counterpart here.

use super::metrics::Text;
use crate::serving::{
    slots::Active,
    stats::{Timed, Totals},
};
use std::sync::Arc;

type Read = fn(&Totals) -> f64;

fn us(timed: Timed) -> f64 {
    timed.ns as f64 / 1e3
}

/// Name, what it is, and where it comes from; one line for each model.
const COUNTERS: [(&str, &str, Read); 13] = [
    ("nv_inference_request_success", "Successful requests.", |t| t.success.count as f64),
    ("nv_inference_request_failure", "Failed requests, those turned away included.", |t| {
        (t.fail.count + t.rejected) as f64
    }),
    ("nv_inference_count", "Inputs answered; a request of batch 8 has 8.", |t| t.rows as f64),
    ("nv_inference_exec_count", "Passes through the model.", |t| t.executions as f64),
    ("nv_inference_request_duration_us", "Whole time of answered requests.", |t| us(t.success)),
    ("nv_inference_queue_duration_us", "Time answered requests waited for a thread.", |t| us(t.queue)),
    ("nv_inference_compute_input_duration_us", "Time from body to tensors.", |t| us(t.input)),
    ("nv_inference_compute_infer_duration_us", "Time inside the model.", |t| us(t.infer)),
    ("nv_inference_compute_output_duration_us", "Time from tensors to body.", |t| us(t.output)),
    ("nv_cache_num_hits_per_model", "Answers found in the cache.", |t| t.cache_hit.count as f64),
    ("nv_cache_num_misses_per_model", "Answers not found in the cache.", |t| t.cache_miss.count as f64),
    ("nv_cache_hit_duration_us", "Time spent looking up what was found.", |t| us(t.cache_hit)),
    ("nv_cache_miss_duration_us", "Time spent looking up what was not.", |t| us(t.cache_miss)),
];

pub(super) fn write(text: &mut Text, all: &[(&Arc<Active>, Totals)]) {
    for (name, help, read) in COUNTERS {
        text.metric(name, "counter", help);
        for (active, totals) in all {
            text.line(name, &labels(active, &active.served.bundle.counter.to_string()), read(totals));
        }
    }
    let name = "nv_inference_pending_request_count";
    text.metric(name, "gauge", "Requests being worked on, or waiting for it.");
    for (active, _) in all {
        let version = active.served.bundle.counter.to_string();
        text.line(name, &labels(active, &version), active.stats.in_flight() as f64);
    }
}

fn labels<'a>(active: &'a Active, version: &'a str) -> [(&'static str, &'a str); 2] {
    [("model", active.served.slot.as_str()), ("version", version)]
}
