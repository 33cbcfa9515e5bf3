//! A16, A17, A20, A21: where the time goes.

use super::super::{
    action::Action,
    evidence::{Evidence, LatencyParts, Slice},
    finding::{Confidence, Finding, RuleId, Scope, Severity, percent},
    rule::{AdviceSettings, Judged},
};
use edgefleet_shared::time::Timestamp;

/// p95 against last week's.
const SLOWER: f64 = 1.5;
const QUEUE: f64 = 0.5;
/// Median inference time against last week's.
const HOT_SLOWER: f64 = 1.2;
const THROTTLED: f64 = 0.05;
/// Most boards lower their clock from here on, degrees Celsius.
const HOT: f64 = 80.0;
const REPEATS: f64 = 0.3;
const REPEATED_INPUTS: u64 = 1_000;
/// Preparing that takes less is not worth a word, milliseconds.
const PREPARING: f64 = 2.0;

fn is_sound(parts: &LatencyParts) -> bool {
    let all = [
        parts.queue_mean,
        parts.pre_mean,
        parts.infer_mean,
        parts.post_mean,
        parts.infer_p50,
        parts.total_p95,
    ];
    all.iter().all(|x| x.is_finite() && *x >= 0.0)
}

fn both<'a>(slice: &'a Slice, settings: &AdviceSettings) -> Option<(&'a LatencyParts, &'a LatencyParts)> {
    let (now, usual) = (slice.latency.as_ref()?, slice.latency_usual.as_ref()?);
    let enough = now.n.min(usual.n) >= settings.min_rows;
    (enough && is_sound(now) && is_sound(usual) && usual.total_p95 > 0.0).then_some((now, usual))
}

fn sum(parts: &LatencyParts) -> f64 {
    parts.queue_mean + parts.pre_mean + parts.infer_mean + parts.post_mean
}

pub(in super::super) fn overload(evidence: &Evidence, settings: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    for slice in &evidence.slices {
        let Some((parts, usual)) = both(slice, settings) else { continue };
        let queue = parts.queue_mean / sum(parts).max(1e-9);
        let found = (parts.total_p95 >= SLOWER * usual.total_p95 && queue > QUEUE).then(|| {
            let worked = sum(parts) - parts.queue_mean;
            let busy = parts.rate * worked / 1_000.0 / f64::from(parts.workers.max(1));
            // M/M/1 by worker: waiting grows as 1 / (1 - busy). What would bring it to 70 %?
            let needed = (parts.rate * worked / 1_000.0 / 0.7).ceil().max(1.0);
            let workers = (needed as u32 > parts.workers).then_some(needed.min(64.0) as u32);
            // A batch waits as long as one inference takes: latency at most doubles, calls are shared.
            let batch_delay_us = (parts.max_batch > 1).then_some((1_000.0 * parts.infer_mean).min(20_000.0) as u64);
            let expected_p95_ms = worked * (1.0 + 0.7 / 0.3);
            let how = match (batch_delay_us, workers) {
                (Some(us), Some(n)) => format!("gather batches for {us} us, or work with {n} threads"),
                (Some(us), None) => format!("gather batches for {us} us"),
                (None, Some(n)) => format!("work with {n} threads, or skip frames"),
                (None, None) => "skip frames or send fewer requests".into(),
            };
            let action = Action::RelieveQueue { batch_delay_us, workers, expected_p95_ms };
            Finding::new(RuleId::A16, slice.scope.clone(), now, action)
                .rated(Severity::Warning, Confidence::High)
                .number("p95_ms", parts.total_p95)
                .number("usual_p95_ms", usual.total_p95)
                .number("queue_share", queue)
                .number("busy", busy)
                .says(
                    format!(
                        "95 % of requests end within {:.1} ms, {:.1} times last week's; {} of the time they wait in the queue. {:.0} requests a second keep {} threads {} busy.",
                        parts.total_p95,
                        parts.total_p95 / usual.total_p95,
                        percent(queue),
                        parts.rate,
                        parts.workers,
                        percent(busy.min(9.99))
                    ),
                    "More comes in than is worked off; the model itself is not slower.",
                    format!("To come back to about {expected_p95_ms:.1} ms: {how}."),
                )
        });
        judged.look(&slice.scope, found);
    }
    judged
}

pub(in super::super) fn thermal(evidence: &Evidence, settings: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    for slice in &evidence.slices {
        let (Some((parts, usual)), Some(health)) = (both(slice, settings), slice.health) else { continue };
        if health.hours < 1.0 || usual.infer_p50 <= 0.0 {
            continue;
        }
        let before = slice.health_usual.map_or(0.0, |usual| usual.throttled);
        let hot = health.temperature_max.is_some_and(|t| t >= HOT);
        let throttled = health.throttled >= THROTTLED && health.throttled >= 2.0 * before;
        let slower = parts.infer_p50 / usual.infer_p50;
        let found = (slower >= HOT_SLOWER && (throttled || (hot && health.throttled > before))).then(|| {
            let devices = match &slice.scope {
                Scope::Device { device, .. } => vec![device.clone()],
                Scope::Bundle { .. } | Scope::Cohort { .. } => Vec::new(),
            };
            let to_share = (health.cpu_share / slower).clamp(0.05, 1.0);
            let degrees = health.temperature_max.map_or(String::new(), |t| format!(" at up to {t:.0} degrees"));
            Finding::new(RuleId::A17, slice.scope.clone(), now, Action::LowerDuty { devices, to_share })
                .rated(Severity::Warning, if throttled { Confidence::High } else { Confidence::Medium })
                .number("slower", slower)
                .number("throttled", health.throttled)
                .number("throttled_before", before)
                .number("temperature", health.temperature_max.unwrap_or(f64::NAN))
                .says(
                    format!(
                        "Inference takes {:.1} ms in the median, {slower:.1} times last week's; the processor was throttled {} of the time{degrees} ({} before).",
                        parts.infer_p50,
                        percent(health.throttled),
                        percent(before)
                    ),
                    "Heat lowers the clock.",
                    format!("Let the model work at most {} of the time, use a smaller variant, or cool the device.", percent(to_share)),
                )
        });
        judged.look(&slice.scope, found);
    }
    judged
}

pub(in super::super) fn repeats(evidence: &Evidence, _: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    for slice in &evidence.slices {
        let Some(repeats) = slice.repeats.filter(|repeats| repeats.inputs >= REPEATED_INPUTS) else {
            continue;
        };
        let distinct = repeats.distinct.min(repeats.inputs);
        let saved_share = cache_saving(repeats.inputs, distinct);
        let found = (saved_share > REPEATS && !repeats.cache_enabled).then(|| {
            let each = slice.latency.map_or(0.0, |parts| parts.infer_mean.max(0.0));
            let saved_ms_per_day =
                (repeats.inputs - distinct) as f64 * each * 24.0 / f64::from(repeats.hours.max(1));
            Finding::new(
                RuleId::A20,
                slice.scope.clone(),
                now,
                Action::EnableCache { saved_share, saved_ms_per_day },
            )
            .rated(Severity::Info, if saved_share > 0.5 { Confidence::High } else { Confidence::Medium })
            .number("saved_share", saved_share)
            .number("inputs", repeats.inputs as f64)
            .number("distinct", distinct as f64)
            .number("saved_ms_per_day", saved_ms_per_day)
            .says(
                format!(
                    "Of {} inputs {distinct} were different: {} had been answered before.",
                    repeats.inputs,
                    percent(saved_share)
                ),
                "The same inputs come again: a still scene, a client that asks twice.",
                format!(
                    "Remember answers (response cache); it saves about {:.1} s of inference a day.",
                    saved_ms_per_day / 1_000.0
                ),
            )
        });
        judged.look(&slice.scope, found);
    }
    judged
}

/// Share of inferences that a cache without bounds would have saved. A sketch counts distinct inputs to 1.6 %.
pub fn cache_saving(inputs: u64, distinct: u64) -> f64 {
    if inputs == 0 { 0.0 } else { inputs.saturating_sub(distinct) as f64 / inputs as f64 }
}

pub(in super::super) fn decoding(evidence: &Evidence, settings: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    for slice in &evidence.slices {
        let Some(parts) = slice.latency.filter(|parts| parts.n >= settings.min_rows && is_sound(parts))
        else {
            continue;
        };
        let around = parts.pre_mean + parts.post_mean;
        let found = (around > parts.infer_mean && around >= PREPARING).then(|| {
            let action = Action::CheaperInput { pre_ms: parts.pre_mean, infer_ms: parts.infer_mean };
            let first = if parts.pre_mean >= parts.post_mean { "before" } else { "after" };
            Finding::new(RuleId::A21, slice.scope.clone(), now, action)
                .rated(Severity::Info, Confidence::High)
                .number("pre_ms", parts.pre_mean)
                .number("post_ms", parts.post_mean)
                .number("infer_ms", parts.infer_mean)
                .says(
                    format!(
                        "Steps around the model take {around:.1} ms ({:.1} before, {:.1} after), the model {:.1} ms.",
                        parts.pre_mean, parts.post_mean, parts.infer_mean
                    ),
                    "Decoding and scaling of large pictures, or sorting of many boxes, outweigh the model.",
                    format!("Most of it lies {first} the model: send smaller pictures or the camera's raw format, or decode in hardware."),
                )
        });
        judged.look(&slice.scope, found);
    }
    judged
}
