//! Per rule: a stream that makes it the only open finding, and one just short of it that tells nothing.

use super::{
    super::*,
    stream::{CLASSES, Hour, cohort, device, fleet, hour, quiet, steady},
};
use crate::{
    estimate::{Estimator, EstimatorScore, Trust},
    evidence::random::Random,
};
use edgefleet_shared::time::Timestamp;

type Stream = Vec<(Timestamp, Evidence)>;

pub(super) struct Fixture {
    pub rule: RuleId,
    pub name: &'static str,
    pub hit: Stream,
    pub near: Stream,
}

fn fixture(rule: RuleId, name: &'static str, hit: Stream, near: Stream) -> Fixture {
    Fixture { rule, name, hit, near }
}

/// Changes the cohort's slice.
fn slice(change: impl Fn(&mut Slice)) -> Stream {
    steady(|evidence| {
        evidence.slices.iter_mut().filter(|slice| slice.scope == cohort("all")).for_each(&change);
    })
}

fn nothing(_: &mut Evidence, _: u64) {}

fn audited(accuracy: f64, labels: u64) -> Option<Audited> {
    let half = 1.96 * (accuracy * (1.0 - accuracy) / labels as f64).sqrt();
    Some(Audited { accuracy, low: accuracy - half, high: accuracy + half, labels, effective: labels as f64 })
}

/// Labels whose answers are right with a probability that depends on the confidence.
fn labels(n: u32, right: impl Fn(f64) -> f64) -> Vec<ScoredLabel> {
    let mut random = Random::new(17);
    (0..n)
        .map(|_| {
            let confidence = 0.3 + 0.7 * random.unit();
            let correct = random.chance(right(confidence));
            ScoredLabel { confidence, predicted: "bolt".into(), correct, weight: 1.0 }
        })
        .collect()
}

fn released(evidence: &mut Evidence, at: Timestamp) {
    evidence.release = Some(Release {
        activated: [("all".to_owned(), at)].into(),
        previous: Some("sort@1".parse().unwrap()),
        changed: vec!["pipeline.normalize.mean".into()],
        steps_changed: true,
    });
}

pub(super) fn all() -> Vec<Fixture> {
    let mut all = drifts();
    all.extend(quality());
    all.extend(answers());
    all.extend(operation());
    all
}

fn drifts() -> Vec<Fixture> {
    let from = |at: u64, hour: Hour| move |now: u64| if now >= at { hour } else { Hour::default() };
    let dark = from(4, Hour { luma: 1.0, ..Hour::default() });
    let worse = from(4, Hour { luma: 1.0, confidence: 0.7, ..Hour::default() });
    let faint = from(4, Hour { luma: 0.05, ..Hour::default() });
    vec![
        fixture(
            RuleId::A01,
            "one of ten cameras goes dark",
            fleet(9, |n, at| if n == 3 { dark(at) } else { Hour::default() }, nothing),
            fleet(9, |n, at| if n == 3 { faint(at) } else { Hour::default() }, nothing),
        ),
        fixture(
            RuleId::A02,
            "all cameras go dark, answers hold",
            fleet(9, |_, at| dark(at), nothing),
            // One hour only: two of three looks are needed.
            fleet(9, |_, at| if at == 4 { dark(at) } else { Hour::default() }, nothing),
        ),
        fixture(
            RuleId::A03,
            "all cameras go dark and the model doubts",
            fleet(9, |_, at| worse(at), nothing),
            fleet(9, |_, at| if at == 4 { worse(at) } else { Hour::default() }, nothing),
        ),
        fixture(
            RuleId::A08,
            "drift begins with the bundle",
            fleet(9, |_, at| dark(at), |evidence, _| released(evidence, hour(3))),
            fleet(9, |_, at| faint(at), |evidence, _| released(evidence, hour(3))),
        ),
        fixture(
            RuleId::A11,
            "nights are another world",
            rhythm(|at, noise| if at % 24 < 8 { 0.3 } else { 0.04 } + 0.02 * noise),
            rhythm(|_, noise| 0.06 + 0.02 * noise),
        ),
    ]
}

fn rhythm(score: impl Fn(u64, f64) -> f64) -> Stream {
    let mut random = Random::new(3);
    let scores: Vec<_> = (0..10 * 24).map(|at| (hour(at), score(at, random.normal()))).collect();
    steady(|evidence| {
        let channel = "image/luma".parse().unwrap();
        evidence.scores = vec![ScoreSeries { cohort: "all".into(), channel, scores: scores.clone() }];
    })
}

fn quality() -> Vec<Fixture> {
    let audit = |now: f64, n: u64| {
        slice(move |slice| (slice.audited, slice.audited_before) = (audited(now, n), audited(0.86, 400)))
    };
    let estimator = |mean_gap: f64, trust: Trust| {
        steady(move |evidence| {
            let score =
                EstimatorScore { hours: 60, labels: 400, mean_gap, bias: mean_gap, by_chance: 0.02, trust };
            evidence.estimators = [(Estimator::Cbpe, score)].into();
        })
    };
    let threshold = |present: f64| {
        steady(move |evidence| {
            evidence.thresholds = [("*".to_owned(), present)].into();
            let step = |c: f64| if c > 0.6 { 0.95 } else { 0.05 };
            evidence.slices[1].labels = labels(150, step);
        })
    };
    let parts = |bad: f64, n: u64| {
        steady(move |evidence| {
            for (name, accuracy) in [("north", 0.9), ("south", bad), ("west", 0.88)] {
                let mut slice = Slice::new(cohort(name));
                slice.audited = audited(accuracy, n);
                evidence.slices.push(slice);
            }
            // Without a baseline to fall from: rule A04 has nothing to say.
            evidence.incidents = None;
        })
    };
    vec![
        fixture(RuleId::A04, "audits fall, nothing else moves", audit(0.6, 300), audit(0.84, 300)),
        fixture(
            RuleId::A05,
            "surer than it may be",
            slice(|slice| slice.labels = labels(800, |c| c * c * c)),
            slice(|slice| slice.labels = labels(800, |c| c)),
        ),
        fixture(RuleId::A06, "a threshold amid the scores", threshold(0.85), threshold(0.6)),
        fixture(RuleId::A12, "one site is worse", parts(0.7, 300), parts(0.85, 300)),
        fixture(
            RuleId::A23,
            "the estimate was wrong",
            estimator(0.2, Trust::Untrusted),
            estimator(0.03, Trust::Trusted),
        ),
    ]
}

fn counts(bolt: u64, nut: u64, washer: u64) -> Stream {
    slice(move |slice| {
        let all = CLASSES.iter().zip([bolt, nut, washer]);
        slice.classes = all.filter(|(_, n)| *n > 0).map(|(class, n)| ((*class).to_owned(), n)).collect();
    })
}

fn answers() -> Vec<Fixture> {
    let confused = |ab: f64, rest: f64| {
        slice(move |slice| {
            let one = |t: &str, p: &str, n: f64| (t.to_owned(), p.to_owned(), n);
            slice.confusion = vec![
                one("bolt", "bolt", 500.0),
                one("bolt", "nut", ab / 2.0),
                one("nut", "bolt", ab / 2.0),
                one("nut", "washer", rest / 2.0),
                one("bolt", "washer", rest / 2.0),
            ];
        })
    };
    let shadow = |wins: u64, losses: u64, disagree: u64, cost: f64| {
        steady(move |evidence| {
            evidence.shadow = Some(Shadow {
                candidate: "sort@3".parse().unwrap(),
                since: hour(0),
                devices: 5,
                compared: 4_000,
                disagree,
                wins,
                losses,
                both_right: 400 - wins - losses,
                both_wrong: 20,
                cost: Some(cost),
                fleet: 2_000,
                bad_rate: 0.02,
            });
        })
    };
    vec![
        fixture(RuleId::A07, "a class is gone", counts(600, 600, 0), counts(700, 500, 20)),
        fixture(RuleId::A13, "two classes are mixed up", confused(60.0, 40.0), confused(30.0, 70.0)),
        fixture(RuleId::A14, "the candidate is better", shadow(40, 10, 300, 1.0), shadow(16, 12, 300, 1.0)),
        fixture(RuleId::A15, "as good, otherwise wrong", shadow(31, 30, 700, 1.1), shadow(31, 30, 200, 1.1)),
    ]
}

fn parts(queue: f64, infer: f64) -> LatencyParts {
    LatencyParts {
        n: 1_000,
        queue_mean: queue,
        pre_mean: 0.5,
        infer_mean: infer,
        post_mean: 0.1,
        infer_p50: infer,
        total_p95: 2.0 * (queue + infer),
        rate: 80.0,
        workers: 2,
        max_batch: 8,
    }
}

fn operation() -> Vec<Fixture> {
    let faults = |n: u64, usually: u64| {
        slice(move |slice| {
            let fault = |n| [("out-of-range:temp".to_owned(), n)].into();
            slice.now.as_mut().unwrap().faults = fault(n);
            slice.usual.as_mut().unwrap().faults = fault(usually);
        })
    };
    let run = |longest: u64, missing: u64| {
        steady(move |evidence| {
            let of_device = evidence.slices.iter_mut().find(|slice| slice.scope == device("cam-0")).unwrap();
            let channel = &mut of_device.now.as_mut().unwrap().channels[1];
            (channel.longest_run, channel.missing) = (longest, missing);
        })
    };
    let latency = |now: LatencyParts, health: Health| {
        slice(move |slice| {
            (slice.latency, slice.latency_usual) = (Some(now), Some(parts(0.5, 10.0)));
            let usual = Health { hours: 100.0, temperature_max: Some(60.0), throttled: 0.0, cpu_share: 0.5 };
            (slice.health, slice.health_usual) = (Some(health), Some(usual));
        })
    };
    let cool = Health { hours: 3.0, temperature_max: Some(62.0), throttled: 0.0, cpu_share: 0.5 };
    let hot = Health { hours: 3.0, temperature_max: Some(85.0), throttled: 0.3, cpu_share: 0.8 };
    let nodes = |heavy: f64| {
        steady(move |evidence| {
            let rest = (1.0 - heavy) / 17.0;
            let share = |at: usize| if at < 3 { heavy / 3.0 } else { rest };
            evidence.nodes = Some(NodeTimes {
                nodes: (0..20).map(|at| (format!("Conv_{at}"), share(at))).collect(),
                setups_us: [("tract/f32".to_owned(), 9_000.0)].into(),
                infer_ms: 9.0,
            });
        })
    };
    let engines = |int8: f64| {
        steady(move |evidence| {
            let medians_us = [("tract/f32".to_owned(), 900.0), ("tract/int8".to_owned(), int8)].into();
            evidence.engines = vec![EngineMedians { hardware: "pi4".into(), devices: 30, medians_us }];
        })
    };
    let repeats = |distinct: u64, cache_enabled: bool| {
        slice(move |slice| {
            slice.repeats = Some(Repeats { inputs: 10_000, distinct, cache_enabled, hours: 168 })
        })
    };
    let around = |pre: f64| {
        slice(move |slice| slice.latency = Some(LatencyParts { pre_mean: pre, ..parts(0.1, 10.0) }))
    };
    let quota = |taken: u64, dropped: u64| {
        slice(move |slice| {
            slice.captures = vec![CaptureCounts {
                strategy: "low-margin".into(),
                seen: 50_000,
                taken,
                dropped,
                quota_per_day: 50,
                days: 7,
                labelled_share: 0.5,
                devices: 1,
            }];
        })
    };
    let behind = |n: u64, days: u64| -> Stream {
        let mut evidence = quiet();
        evidence.versions = Some(Versions {
            assigned: hour(0),
            wanted: 200,
            behind: [("offline".to_owned(), n), ("disk-full".to_owned(), n / 2)].into(),
            examples: vec!["cam-9".parse().unwrap()],
        });
        vec![(hour(24 * days), evidence)]
    };
    vec![
        fixture(RuleId::A09, "values leave their range", faults(90, 5), faults(5, 30)),
        fixture(RuleId::A10, "a sensor is stuck", run(290, 0), run(15, 10)),
        fixture(
            RuleId::A16,
            "the queue grows",
            latency(parts(30.0, 10.0), cool),
            latency(parts(4.0, 10.0), cool),
        ),
        fixture(
            RuleId::A17,
            "the clock is lowered",
            latency(parts(0.5, 16.0), hot),
            latency(parts(0.5, 16.0), cool),
        ),
        fixture(RuleId::A18, "three operators take it all", nodes(0.8), nodes(0.4)),
        fixture(RuleId::A19, "int8 brings nothing", engines(950.0), engines(500.0)),
        fixture(RuleId::A20, "a still scene", repeats(5_000, false), repeats(7_500, false)),
        fixture(RuleId::A20, "a still scene, remembered", repeats(5_000, false), repeats(5_000, true)),
        fixture(RuleId::A21, "decoding costs more than the model", around(14.0), around(6.0)),
        fixture(RuleId::A22, "a quota that is full at noon", quota(350, 900), quota(300, 20)),
        fixture(RuleId::A22, "a quota that is never used", quota(3, 0), quota(100, 0)),
        fixture(RuleId::A24, "devices left behind", behind(20, 5), behind(20, 1)),
        fixture(RuleId::A24, "a few left behind", behind(20, 5), behind(5, 5)),
    ]
}
