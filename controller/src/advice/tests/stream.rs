//! Synthetic streams: profiles of a small fleet, hour by hour, through the real drift code.

use super::super::*;
use crate::{
    drift::{DriftSettings, Look, SubjectStates, group, look, others},
    evidence::random::Random,
};
use edgefleet_shared::{
    bundle::{
        Baseline,
        baseline::{BaselineChannel, BaselineQuality, Calibration, ChannelKind},
    },
    ids::DeviceId,
    telemetry::{Channel, ClassQuality, ProfileContent, Quality, channel::bin_of},
    time::Timestamp,
};
use std::{collections::BTreeMap, sync::Arc};

pub(super) const CLASSES: [&str; 3] = ["bolt", "nut", "washer"];
const IDS: [(&str, ChannelKind); 3] = [
    ("image/luma", ChannelKind::Image),
    ("input/temp", ChannelKind::Input),
    ("score/confidence", ChannelKind::Score),
];

pub(super) fn hour(n: u64) -> Timestamp {
    Timestamp::from_secs(1_800_000_000 + 3_600 * n)
}

/// What one device shows in one hour.
#[derive(Clone, Copy)]
pub(super) struct Hour {
    pub luma: f64,
    pub temp: f64,
    /// Mean confidence; the standard deviation is 0.1.
    pub confidence: f64,
    pub rows: u64,
}

impl Default for Hour {
    fn default() -> Self {
        Self { luma: 0.0, temp: 0.0, confidence: 0.85, rows: 300 }
    }
}

fn edges(kind: ChannelKind) -> Vec<f64> {
    match kind {
        ChannelKind::Score => (1..20).map(|x| f64::from(x) / 20.0).collect(),
        _ => (-6..=6).map(|x| f64::from(x) * 0.4).collect(),
    }
}

pub(super) fn profile(seed: u64, at: Hour) -> ProfileContent {
    let mut random = Random::new(seed);
    let mut content = ProfileContent { rows: at.rows, ..ProfileContent::default() };
    let mut quality = Quality::default();
    for (id, kind) in IDS {
        let edges = edges(kind);
        let mut channel = Channel::new(id.parse().unwrap());
        channel.bins = vec![0; edges.len() + 1];
        channel.longest_run = 2;
        for _ in 0..at.rows {
            let x = match id {
                "image/luma" => at.luma + random.normal(),
                "input/temp" => at.temp + random.normal(),
                _ => (at.confidence + 0.1 * random.normal()).clamp(0.01, 0.99),
            };
            channel.n += 1;
            channel.bins[bin_of(&edges, x)] += 1;
            channel.moments.take(x);
            if kind == ChannelKind::Score {
                quality.n += 1;
                quality.expected_correct += x;
                quality.variance += x * (1.0 - x);
                quality.above += u64::from(x >= 0.7);
            }
        }
        content.channels.push(channel);
    }
    quality.classes = CLASSES
        .iter()
        .map(|class| {
            let n = quality.n / 3;
            ((*class).to_owned(), ClassQuality { n, expected_correct: n as f64 * at.confidence })
        })
        .collect();
    content.quality = Some(quality);
    content
}

pub(super) fn baseline() -> Arc<Baseline> {
    let content = profile(424_242, Hour { rows: 3_000, ..Hour::default() });
    let channels = content.channels.iter().zip(IDS).map(|(channel, (_, kind))| BaselineChannel {
        id: channel.id.clone(),
        kind,
        n: channel.n,
        missing: 0,
        edges: edges(kind),
        bins: channel.bins.clone(),
        moments: channel.moments,
        categories: BTreeMap::new(),
    });
    Arc::new(Baseline {
        schema: 1,
        rows: 3_000,
        dataset: String::new(),
        channels: channels.collect(),
        classes: CLASSES.iter().map(|class| ((*class).to_owned(), 1_000)).collect(),
        quality: Some(BaselineQuality {
            n: 3_000,
            accuracy: 0.85,
            atc_threshold: 0.74,
            calibration: Calibration::default(),
            ece_before: 0.02,
            ece_after: 0.01,
            confusion: Vec::new(),
        }),
    })
}

pub(super) fn bundle() -> Scope {
    Scope::Bundle { bundle: "sort@2".parse().unwrap() }
}
pub(super) fn cohort(name: &str) -> Scope {
    Scope::Cohort { bundle: "sort@2".parse().unwrap(), cohort: name.to_owned() }
}
pub(super) fn device(name: &str) -> Scope {
    Scope::Device { bundle: "sort@2".parse().unwrap(), cohort: "all".into(), device: name.parse().unwrap() }
}

/// Nothing wrong anywhere: a bundle, a cohort and a device.
pub(super) fn quiet() -> Evidence {
    let slices = [bundle(), cohort("all"), device("cam-0")].map(|scope| {
        let mut slice = Slice::new(scope);
        (slice.now, slice.usual) =
            (Some(profile(1, Hour::default())), Some(profile(2, Hour { rows: 2_000, ..Hour::default() })));
        slice.classes = CLASSES.iter().map(|class| ((*class).to_owned(), 400)).collect();
        slice
    });
    Evidence {
        bundle: Some("sort@2".parse().unwrap()),
        baseline: Some(baseline()),
        slices: slices.into(),
        incidents: Some(Vec::new()),
        ..Evidence::default()
    }
}

/// Ten devices over hours 0 to `hours`, through looks, states and incidents; `adapt` adds what is not in profiles.
pub(super) fn fleet(
    hours: u64,
    shows: impl Fn(usize, u64) -> Hour,
    adapt: impl Fn(&mut Evidence, u64),
) -> Vec<(Timestamp, Evidence)> {
    let (baseline, settings) = (baseline(), DriftSettings::default());
    let ids: Vec<DeviceId> = (0..10).map(|n| format!("cam-{n}").parse().unwrap()).collect();
    let usual: Vec<_> =
        (0..10).map(|n| profile(7_000 + n, Hour { rows: 3_000, ..Hour::default() })).collect();
    let mut all_usual = ProfileContent::default();
    usual.iter().for_each(|one| all_usual.merge(one));
    let mut states = vec![SubjectStates::default(); 11];
    let mut incidents = Vec::new();
    let mut stream = Vec::new();
    for at in 0..hours {
        let now = hour(at);
        let profiles: Vec<_> = (0..10_usize).map(|n| profile(at * 100 + n as u64, shows(n, at))).collect();
        let mut sum = ProfileContent::default();
        profiles.iter().for_each(|one| sum.merge(one));
        for n in 0..10 {
            let rest = others(&sum, &profiles[n]);
            let seen = Look {
                baseline: &baseline,
                now: &profiles[n],
                usual: Some(&usual[n]),
                cohort_now: Some(&rest),
            };
            states[n] = look(&states[n], &seen, &settings, now).0;
        }
        let seen = Look { baseline: &baseline, now: &sum, usual: Some(&all_usual), cohort_now: None };
        states[10] = look(&states[10], &seen, &settings, now).0;
        let mut subjects: Vec<_> = (0..10).map(|n| states[n].drift("all", Some(&ids[n]))).collect();
        subjects.push(states[10].drift("all", None));
        incidents = group(&"sort@2".parse().unwrap(), &incidents, &subjects, &settings, now).0;
        let slices = (0..10).map(|n| {
            let mut slice = Slice::new(device(ids[n].as_str()));
            (slice.now, slice.usual) = (Some(profiles[n].clone()), Some(usual[n].clone()));
            slice
        });
        let mut whole = Slice::new(cohort("all"));
        (whole.now, whole.usual, whole.devices) = (Some(sum), Some(all_usual.clone()), 10);
        let mut evidence = Evidence {
            slices: slices.chain([whole]).collect(),
            incidents: Some(incidents.clone()),
            ..quiet()
        };
        adapt(&mut evidence, at);
        stream.push((now, evidence));
    }
    stream
}

/// The same evidence for some hours.
pub(super) fn steady(adapt: impl Fn(&mut Evidence)) -> Vec<(Timestamp, Evidence)> {
    let mut evidence = quiet();
    adapt(&mut evidence);
    (300..306).map(|at| (hour(at), evidence.clone())).collect()
}

/// Fills a slice with whatever a device may claim.
pub(super) fn disturb(slice: &mut Slice, n: &dyn Fn(usize) -> f64, c: &dyn Fn(usize) -> u64) {
    if let Some(now) = &mut slice.now {
        now.rows = c(0);
        now.faults = [("out-of-range:temp".to_owned(), c(1)), ("decode_image".to_owned(), c(2))].into();
        for (at, channel) in now.channels.iter_mut().enumerate() {
            (channel.n, channel.missing, channel.longest_run, channel.lag1) =
                (c(at), c(at + 1), c(at + 2), n(at));
            (channel.moments.mean, channel.moments.m2, channel.moments.n) = (n(at + 1), n(at + 2), c(at + 3));
        }
        let quality = now.quality.get_or_insert_default();
        (quality.n, quality.expected_correct, quality.variance, quality.above) = (c(5), n(7), n(8), c(6));
    }
    slice.classes = CLASSES.iter().enumerate().map(|(at, class)| ((*class).to_owned(), c(at + 7))).collect();
    let audited = |at: usize| Audited {
        accuracy: n(at),
        low: n(at + 1),
        high: n(at + 2),
        labels: c(at),
        effective: n(at),
    };
    (slice.audited, slice.audited_before) = (Some(audited(9)), Some(audited(12)));
    slice.labels = (0..300)
        .map(|at| ScoredLabel {
            confidence: n(at),
            predicted: "bolt".into(),
            correct: c(at).is_multiple_of(2),
            weight: n(at + 1),
        })
        .collect();
    slice.confusion = vec![("bolt".into(), "nut".into(), n(15)), ("nut".into(), "washer".into(), n(16))];
    let parts = |at: usize| LatencyParts {
        n: c(at),
        queue_mean: n(at),
        pre_mean: n(at + 1),
        infer_mean: n(at + 2),
        post_mean: n(at + 3),
        infer_p50: n(at + 4),
        total_p95: n(at + 5),
        rate: n(at + 6),
        workers: c(at + 1) as u32,
        max_batch: c(at + 2) as u32,
    };
    (slice.latency, slice.latency_usual) = (Some(parts(17)), Some(parts(24)));
    let health = |at: usize| Health {
        hours: n(at),
        temperature_max: Some(n(at + 1)),
        throttled: n(at + 2),
        cpu_share: n(at + 3),
    };
    (slice.health, slice.health_usual) = (Some(health(31)), Some(health(35)));
    slice.repeats =
        Some(Repeats { inputs: c(20), distinct: c(21), cache_enabled: false, hours: c(22) as u32 });
    slice.captures = vec![CaptureCounts {
        strategy: "low-margin".into(),
        seen: c(23),
        taken: c(24),
        dropped: c(25),
        quota_per_day: c(26),
        days: c(27) as u32,
        labelled_share: n(39),
        devices: 1,
    }];
}
