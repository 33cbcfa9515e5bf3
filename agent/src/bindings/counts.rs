//! What a binding has done, for status and metrics.

use super::config::{Binding, Sink, Source};
use crate::serving::http::{Family, StatusProvider};
use edgefleet_shared::telemetry::Sketch;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tracing::{info, warn};

/// Characters of a text from outside that are kept.
const SHOWN: usize = 300;

/// The side of a binding that has trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Sink,
}

/// Whether a side can be reached, and why not.
#[derive(Default)]
struct Reach {
    up: AtomicBool,
    /// How often it came about.
    reached: AtomicU64,
    trouble: Mutex<Option<String>>,
}

pub(super) struct Counts {
    name: String,
    pub(super) received: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    undelivered: AtomicU64,
    /// Answers that made place for newer ones in their folder.
    removed: AtomicU64,
    pub(super) queued: AtomicUsize,
    source: Reach,
    sink: Reach,
    last_error: Mutex<Option<String>>,
    latency: Mutex<Sketch>,
}

fn cut(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

impl Counts {
    pub(super) fn new(binding: &Binding) -> Self {
        let counts = Self {
            name: binding.name.clone(),
            received: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            undelivered: AtomicU64::new(0),
            removed: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            source: Reach::default(),
            sink: Reach::default(),
            last_error: Mutex::new(None),
            latency: Mutex::new(Sketch::default()),
        };
        // Brokers and folders have to be found first.
        let far = matches!(binding.source, Source::Mqtt { .. } | Source::Directory { .. });
        counts.source.up.store(!far, Ordering::Relaxed);
        counts.sink.up.store(!matches!(binding.sink, Sink::Mqtt { .. }), Ordering::Relaxed);
        counts
    }

    fn reach(&self, side: Side) -> &Reach {
        match side {
            Side::Source => &self.source,
            Side::Sink => &self.sink,
        }
    }

    pub(super) fn up(&self, side: Side) {
        let reach = self.reach(side);
        let was_down = !reach.up.swap(true, Ordering::Relaxed);
        *reach.trouble.lock() = None;
        if was_down {
            reach.reached.fetch_add(1, Ordering::Relaxed);
            info!(binding = self.name, ?side, "a binding reaches its side");
        }
    }

    /// Tells the log only what is new.
    pub(super) fn down(&self, side: Side, trouble: &str) {
        let (reach, trouble) = (self.reach(side), cut(trouble));
        reach.up.store(false, Ordering::Relaxed);
        let mut known = reach.trouble.lock();
        if known.as_deref() != Some(trouble.as_str()) {
            warn!(binding = self.name, ?side, trouble, "a binding does not reach its side");
            *known = Some(trouble);
        }
    }

    pub(super) fn answered(&self, took: Duration) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.latency.lock().record_us(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// Logged the 1st, 2nd, 4th, 8th time and so on.
    fn complain(&self, counter: &AtomicU64, what: &'static str, error: &str) {
        let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
        let error = cut(error);
        if count.is_power_of_two() {
            warn!(binding = self.name, count, error, "{what}");
        }
        *self.last_error.lock() = Some(error);
    }

    pub(super) fn failed(&self, error: &str) {
        self.complain(&self.failed, "an input was not answered", error);
    }
    pub(super) fn undelivered(&self, error: &str) {
        self.complain(&self.undelivered, "an answer was not delivered", error);
    }
    pub(super) fn dropped(&self, n: u64) {
        self.dropped.fetch_add(n, Ordering::Relaxed);
    }
    pub(super) fn removed(&self, n: u64) {
        self.removed.fetch_add(n, Ordering::Relaxed);
    }

    /// For the end of a source that ends.
    pub(super) fn report(&self) -> String {
        let [received, answered, failed, dropped, undelivered] = self.numbers();
        let ms = |q: f64| self.quantile_ms(q).map_or("-".to_owned(), |ms| format!("{ms:.2}"));
        format!(
            "the source has ended: {received} inputs, {answered} answered, {failed} failed, {dropped} dropped, \
             {undelivered} answers not delivered, p50 {} ms, p99 {} ms",
            ms(0.5),
            ms(0.99)
        )
    }

    fn numbers(&self) -> [u64; 5] {
        [&self.received, &self.answered, &self.failed, &self.dropped, &self.undelivered]
            .map(|count| count.load(Ordering::Relaxed))
    }

    fn quantile_ms(&self, q: f64) -> Option<f64> {
        self.latency.lock().quantile_us(q).map(|us| us / 1_000.0)
    }

    fn status(&self, binding: &Binding) -> Value {
        let [received, answered, failed, dropped, undelivered] = self.numbers();
        let side = |reach: &Reach, what: String| {
            json!({
                "what": what,
                "up": reach.up.load(Ordering::Relaxed),
                "reached": reach.reached.load(Ordering::Relaxed),
                "trouble": *reach.trouble.lock(),
            })
        };
        json!({
            "slot": binding.slot,
            "source": side(&self.source, binding.source.to_string()),
            "sink": side(&self.sink, binding.sink.to_string()),
            "received": received,
            "answered": answered,
            "failed": failed,
            "dropped": dropped,
            "undelivered": undelivered,
            "removed": self.removed.load(Ordering::Relaxed),
            "queued": self.queued.load(Ordering::Relaxed),
            "last_error": *self.last_error.lock(),
            "total_ms": {"p50": self.quantile_ms(0.5), "p99": self.quantile_ms(0.99)},
        })
    }
}

/// `bindings` in `GET /v1/status`, by name; and in `/metrics`.
pub(super) struct BindingStatus(pub(super) Vec<(Arc<Binding>, Arc<Counts>)>);

impl StatusProvider for BindingStatus {
    fn name(&self) -> &'static str {
        "bindings"
    }

    fn status(&self) -> Value {
        let each = self.0.iter().map(|(binding, counts)| (binding.name.clone(), counts.status(binding)));
        Value::Object(each.collect::<Map<_, _>>())
    }

    fn labelled(&self) -> Vec<Family> {
        if self.0.is_empty() {
            return vec![];
        }
        let mut inputs = Vec::new();
        let (mut queued, mut up, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        for (binding, counts) in &self.0 {
            let labels = || vec![("binding", binding.name.clone())];
            let [_, answered, failed, dropped, undelivered] = counts.numbers();
            let outcomes = [
                ("answered", answered),
                ("failed", failed),
                ("dropped", dropped),
                ("undelivered", undelivered),
            ];
            for (outcome, count) in outcomes {
                inputs.push(([labels(), vec![("outcome", outcome.to_owned())]].concat(), count as f64));
            }
            queued.push((labels(), counts.queued.load(Ordering::Relaxed) as f64));
            if let Sink::Directory { .. } = binding.sink {
                removed.push((labels(), counts.removed.load(Ordering::Relaxed) as f64));
            }
            let both = [&counts.source, &counts.sink].iter().all(|reach| reach.up.load(Ordering::Relaxed));
            up.push((labels(), f64::from(u8::from(both))));
        }
        vec![
            Family {
                name: "edgefleet_binding_inputs_total",
                help: "Inputs of a binding by what became of them; an answer that was not delivered counts twice.",
                lines: inputs,
            },
            Family {
                name: "edgefleet_binding_queue_inputs",
                help: "Inputs of a binding that wait for the model.",
                lines: queued,
            },
            Family {
                name: "edgefleet_binding_answers_removed_total",
                help: "Answers in a binding's folder that were removed for newer ones.",
                lines: removed,
            },
            Family {
                name: "edgefleet_binding_up",
                help: "1 while a binding reaches both its source and its sink.",
                lines: up,
            },
        ]
    }
}
