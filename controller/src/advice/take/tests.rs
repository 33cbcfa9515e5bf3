//! A finding of every action, and what taking each comes to.

use super::*;
use crate::advice::{
    Action, Confidence, Finding, LabelFilter, ProposedThreshold, RuleId, Scope, Severity, Text,
};
use edgefleet_shared::{
    bundle::{
        Artifact, Baseline, BaselineChannel, BaselineQuality, BlobRef, Calibration, ChannelKind, GoldenRef,
        Interface, Limits, Manifest, ModelCard, PipelineSpec, Precision, TensorSpec,
        baseline::BASELINE_SCHEMA, pipeline::Op,
    },
    capture::{CapturePolicy, Reason, Strategy},
    digest::{BlobDigest, BundleDigest},
    ids::{BundleName, DeviceId},
    telemetry::{Channel, Moments, ProfileContent},
    tensor::Datatype,
    time::Timestamp,
};
use std::collections::BTreeMap;

fn digits(counter: u64) -> BundleName {
    format!("digits@{counter}").parse().unwrap()
}
fn device() -> DeviceId {
    "dev-k3v7q2m5x4ab".parse().unwrap()
}

pub(crate) fn finding(action: Action, scope: Scope) -> Finding {
    Finding {
        rule: RuleId::A03,
        scope,
        detail: String::new(),
        severity: Severity::Warning,
        confidence: Confidence::High,
        since: Timestamp::from_secs(1_795_000_000),
        numbers: [("n".to_owned(), 1.0)].into(),
        plots: vec![],
        text: Text { what: "it's so".into(), why: "of that".into(), to_do: "do".into() },
        action,
    }
}

pub(crate) fn cohort(name: &str) -> Scope {
    Scope::Cohort { bundle: digits(1), cohort: name.to_owned() }
}

fn calibration() -> Calibration {
    Calibration { confidence: vec![0.3, 0.9], probability: vec![0.2, 0.8] }
}

/// One of each.
pub(crate) fn actions() -> Vec<Action> {
    let filter = LabelFilter {
        cohort: Some("site=berlin".into()),
        strategies: vec!["low-margin".into(), "random".into()],
        classes: vec!["größe 'x'".into()],
        count: 200,
        ..LabelFilter::default()
    };
    let threshold = ProposedThreshold {
        class: "*".into(),
        threshold: 0.7,
        precision: 0.9,
        recall: 0.8,
        precision_now: 0.8,
        recall_now: 0.8,
        n: 300,
    };
    let us = || BTreeMap::from([("tract/f32".to_owned(), 900.0)]);
    vec![
        Action::InspectDevice { device: device(), channels: vec!["input/x".parse().unwrap()] },
        Action::InspectDevices { devices: vec![device()], of: 9 },
        Action::OpenLabelling { filter },
        Action::ProposeThresholds { thresholds: vec![threshold] },
        Action::PushCalibration { calibration: calibration(), ece_before: 0.2, ece_after: 0.02 },
        Action::ProposeBaseline { cohort: "site=berlin".into(), rows: 5_000 },
        Action::SeasonalBaselines { cohort: "site=berlin".into(), weekly: false, hours: vec![1, 2] },
        Action::RollBack { from: digits(2), to: Some(digits(1)), changed: vec!["pipeline".into()] },
        Action::RollBack { from: digits(1), to: None, changed: vec![] },
        Action::CompareSteps { bundle: digits(2), with: Some(digits(1)) },
        Action::StartCanary { bundle: digits(2), canaries: 20, controls: 60, hours: 72.0 },
        Action::RaiseAuditRate { from: 0.01, to: 0.04 },
        Action::ShowFault { fault: "decode_image".into(), suggestion: "send JPEG".into() },
        Action::EnableImputation { channels: vec!["input/x".parse().unwrap()] },
        Action::TargetCaptures { cohort: "site=berlin,floor=-".into(), count: 300 },
        Action::LabelDisagreements { candidate: digits(2), count: 200 },
        Action::RelieveQueue { batch_delay_us: Some(500), workers: Some(4), expected_p95_ms: 12.0 },
        Action::LowerDuty { devices: vec![device()], to_share: 0.5 },
        Action::LighterModel { nodes: vec![("Conv_1".into(), 0.4)], setups: us() },
        Action::PreferVariant { hardware: "pi4".into(), variant: "tract/f32".into(), medians_us: us() },
        Action::EnableCache { saved_share: 0.6, saved_ms_per_day: 1e6 },
        Action::CheaperInput { pre_ms: 9.0, infer_ms: 4.0 },
        Action::ChangeQuota {
            strategy: "low-margin".into(),
            from_per_day: 100,
            to_per_day: 400,
            expected_labels_per_day: 20.0,
        },
        Action::DistrustEstimator { estimator: "cbpe".into() },
        Action::ListStragglers { by_reason: [("disk-full".to_owned(), 3)].into(), examples: vec![device()] },
    ]
}

fn manifest(pipeline: Option<PipelineSpec>) -> Manifest {
    let blob = |text: &str| BlobRef { digest: BlobDigest::of(text.as_bytes()), size: text.len() as u64 };
    let tensor = |name: &str| TensorSpec { name: name.into(), datatype: Datatype::Fp32, shape: vec![-1, 4] };
    Manifest {
        schema: 1,
        kind: Default::default(),
        model: ModelCard {
            name: "digits".parse().unwrap(),
            counter: 1,
            version: "1.0.0".into(),
            task: String::new(),
            description: String::new(),
            license: String::new(),
            owner: String::new(),
        },
        engine: None,
        artifacts: vec![Artifact {
            format: "onnx".into(),
            precision: Precision::F32,
            blob: blob("model"),
            targets: vec![],
        }],
        interface: Interface { inputs: vec![tensor("x")], outputs: vec![tensor("y")] },
        prediction: None,
        labels: vec![],
        pipeline,
        golden: vec![GoldenRef { name: "a".into(), blob: blob("golden"), rtol: 1e-3, atol: 1e-4 }],
        baseline: Some(blob("baseline")),
        limits: Limits { peak_memory_bytes: 1 << 26, p95_latency_ms: 50.0, batch_max: 8 },
        lineage: BTreeMap::new(),
        compat: Default::default(),
    }
}

fn baseline() -> Baseline {
    let channel = |id: &str, bins: Vec<u64>| BaselineChannel {
        id: id.parse().unwrap(),
        kind: ChannelKind::Input,
        n: bins.iter().sum(),
        missing: 0,
        edges: vec![0.0, 1.0],
        bins,
        moments: Moments::default(),
        categories: BTreeMap::new(),
    };
    Baseline {
        schema: BASELINE_SCHEMA,
        rows: 10,
        dataset: "sha256:old".into(),
        channels: vec![channel("input/x", vec![1, 8, 1]), channel("input/z", vec![2, 6, 2])],
        classes: [("7".to_owned(), 10)].into(),
        quality: Some(BaselineQuality {
            n: 100,
            accuracy: 0.9,
            atc_threshold: 0.4,
            calibration: Calibration::default(),
            ece_before: 0.1,
            ece_after: 0.1,
            confusion: vec![],
        }),
    }
}

fn seen(rows: u64) -> Seen {
    let mut channel = Channel::new("input/x".parse().unwrap());
    (channel.n, channel.bins) = (rows, vec![0, rows / 2, rows - rows / 2]);
    let content = ProfileContent { rows, channels: vec![channel], ..ProfileContent::default() };
    Seen { content, classes: [("1".to_owned(), rows)].into(), of: "profiles".into() }
}

fn known() -> State {
    State {
        advice: "adv-0123456789ab".into(),
        opened: Timestamp::from_secs(1_795_000_000),
        manifest: Some((BundleDigest::of(b"old"), manifest(None))),
        baseline: Some(baseline()),
        newest: 3,
        seen: Some(seen(2_000)),
        ..State::default()
    }
}

/// Every step of every action with much and with nothing known: for the test of commands.
pub(crate) fn all_steps() -> Vec<(String, Step)> {
    let mut all = Vec::new();
    let scopes = [
        Scope::Bundle { bundle: digits(1) },
        cohort("site=berlin,floor=-"),
        cohort("other"),
        Scope::Device { bundle: digits(1), cohort: "all".into(), device: device() },
    ];
    let nothing = State { advice: known().advice, ..State::default() };
    let under_way = State { rollout: Some("r-0mibjsxda-1f20".parse().unwrap()), ..known() };
    for action in actions() {
        for scope in &scopes {
            for state in [&known(), &nothing, &under_way] {
                let steps = plan(&finding(action.clone(), scope.clone()), state);
                assert!(!steps.is_empty(), "{action:?}");
                all.extend(steps.into_iter().map(|step| (format!("{action:?}"), step)));
            }
        }
    }
    all
}

#[test]
fn every_action_comes_to_steps_that_survive_json_and_say_what_they_do() {
    for (action, step) in all_steps() {
        assert!(step.text.ends_with('.') && !step.text.contains("NaN"), "{action}: {}", step.text);
        assert!(!step.text.contains("...") && !step.commands.iter().any(|c| c.contains("...")), "{step:?}");
        let helps = !step.links.is_empty() || !step.commands.is_empty();
        assert!(helps || matches!(&step.doing, Doing::ByHand { lines, .. } if !lines.is_empty()), "{step:?}");
        let json = serde_json::to_value(&step).unwrap();
        assert!(json["step"].is_string());
        assert_eq!(serde_json::from_value::<Step>(json).unwrap(), step);
    }
}

#[test]
fn a_cohort_is_a_selector_where_one_can_say_it() {
    for (name, wanted) in [
        ("all", Some("")),
        ("site=berlin", Some("site=berlin")),
        ("site=berlin,floor=-", Some("site=berlin,!floor")),
        ("other", None),
        ("site=very-lo~0123456789ab", None),
        ("nonsense", None),
    ] {
        let found = select_of(&cohort(name)).map(|selector| selector.to_string());
        assert_eq!(found.as_deref(), wanted, "{name}");
    }
    let scope = Scope::Device { bundle: digits(1), cohort: "all".into(), device: device() };
    assert_eq!(select_of(&scope).unwrap().to_string(), "id=dev-k3v7q2m5x4ab");
}

#[test]
fn labelling_opens_a_queue_and_asks_for_more_where_too_little_waits() {
    let finding = finding(actions()[2].clone(), cohort("site=berlin"));
    let steps = |waiting| plan(&finding, &State { waiting, ..known() });
    let enough = steps(200);
    let [Step { doing: Doing::OpenQueue { waiting: 200, wanted: 200, .. }, links, .. }] = enough.as_slice()
    else {
        panic!("{enough:?}")
    };
    assert_eq!(
        links,
        &["/label?model=digits&bundle=digits%401&select=site%3Dberlin&reason=low-margin&reason=random\
           &class=gr%C3%B6%C3%9Fe%20%27x%27"]
    );
    let few = steps(20);
    let Doing::SetRule { rule, select, set, .. } = &few[1].doing else { panic!("{few:?}") };
    assert_eq!(
        (rule.as_str(), select.as_ref().unwrap().to_string()),
        ("adv-0123456789ab", "site=berlin".into())
    );
    assert_eq!(crate::settings::check(set), Ok(()));
    let policy = CapturePolicy::read(set["captures"]["digits"].clone()).unwrap();
    assert!(policy.random.share > CapturePolicy::default().random.share);
    let by = |reason| policy.rules.iter().find(|rule| rule.strategy.reason() == reason).unwrap();
    assert!(by(Reason::LowMargin).quota.per_day.unwrap() >= 180);
    assert!(matches!(by(Reason::ClassQuota).strategy, Strategy::ClassQuota { per_class_per_day: 180 }));
}

#[test]
fn a_quota_changes_where_there_is_one_and_the_audit_share_never_falls() {
    let change = |strategy: &str, to| {
        let action = Action::ChangeQuota {
            strategy: strategy.into(),
            from_per_day: 100,
            to_per_day: to,
            expected_labels_per_day: 1.0,
        };
        plan(&finding(action, cohort("all")), &known()).remove(0).doing
    };
    for to in [400, 10] {
        let Doing::SetRule { set, select: None, .. } = change("low-margin", to) else { panic!() };
        let policy = CapturePolicy::read(set["captures"]["digits"].clone()).unwrap();
        let quota = policy.rules[0].quota;
        assert_eq!(quota.per_day, Some(to as u32));
        assert!(quota.per_hour.unwrap() <= to as u32 && quota.per_hour.unwrap() * 8 >= to as u32);
    }
    assert!(matches!(change("ood", 5), Doing::ByHand { .. }));
    for (to, share) in [(0.04, 0.04), (7.0, 1.0), (0.001, 0.01)] {
        let action = Action::RaiseAuditRate { from: 0.01, to };
        let Doing::SetRule { set, .. } = plan(&finding(action, cohort("all")), &known()).remove(0).doing
        else {
            panic!()
        };
        let policy = CapturePolicy::read(set["captures"]["digits"].clone()).unwrap();
        assert_eq!(policy.random.share, share);
    }
}

fn made(action: &Action, pipeline: Option<PipelineSpec>, seen: Option<&Seen>) -> Result<Made, Unable> {
    let (manifest, baseline) = (manifest(pipeline), baseline());
    let source = Source {
        digest: BundleDigest::of(b"old"),
        manifest: &manifest,
        baseline: Some(&baseline),
        newest: 3,
    };
    make(action, source, seen, "adv-0123456789ab").unwrap()
}

#[test]
fn a_calibration_alone_makes_the_next_bundle_of_the_same_model() {
    let action = Action::PushCalibration { calibration: calibration(), ece_before: 0.2, ece_after: 0.02 };
    let made = made(&action, None, None).unwrap();
    let (old, new) = (manifest(None), Manifest::parse(&made.manifest).unwrap());
    assert_eq!(
        (made.name.to_string(), new.model.version.as_str()),
        ("digits@4".into(), "1.0.0+adv-0123456789ab")
    );
    assert_eq!((&new.artifacts, &new.golden), (&old.artifacts, &old.golden));
    assert_eq!(new.lineage["parent"], BundleDigest::of(b"old").to_string());
    let bytes = made.baseline.unwrap();
    assert_eq!(new.baseline.unwrap().digest, BlobDigest::of(&bytes));
    let after = Baseline::parse(&bytes).unwrap();
    let quality = after.quality.unwrap();
    assert_eq!((quality.calibration, quality.ece_after, quality.accuracy), (calibration(), 0.02, 0.9));
    assert_eq!(after.channels, baseline().channels);
}

#[test]
fn a_baseline_comes_from_what_devices_saw_and_only_from_enough_of_it() {
    let action = Action::ProposeBaseline { cohort: "all".into(), rows: 0 };
    let bytes = made(&action, None, Some(&seen(2_000))).unwrap().baseline.unwrap();
    let after = Baseline::parse(&bytes).unwrap();
    assert_eq!((after.rows, after.classes["1"], after.dataset.as_str()), (2_000, 2_000, "profiles"));
    assert_eq!(after.channels[0].bins, [0, 1_000, 1_000]);
    assert_eq!(after.channels[1], baseline().channels[1], "nobody told of it: it stays");
    assert_eq!(after.quality, baseline().quality);
    assert!(matches!(made(&action, None, Some(&seen(999))), Err(Unable::FewRows { rows: 999 })));
    let mut other = seen(2_000);
    other.content.channels[0].bins = vec![1_000, 1_000];
    assert!(matches!(made(&action, None, Some(&other)), Err(Unable::NoChannel { .. })));
}

#[test]
fn a_threshold_moves_where_the_pipeline_has_one() {
    let spec = |ops: &[f64]| {
        let ops: Vec<_> =
            ops.iter().map(|at| serde_json::json!({"op": "threshold", "at": at, "from": "y"})).collect();
        let tensor = |name: &str| serde_json::json!({"name": name, "datatype": "FP32", "shape": [-1, 4]});
        let spec = serde_json::json!({"inputs": [tensor("x")], "outputs": [tensor("y")], "post": ops});
        serde_json::from_value::<PipelineSpec>(spec).unwrap()
    };
    let action = actions().remove(3);
    match made(&action, Some(spec(&[0.5])), None) {
        Ok(made) => {
            let new = Manifest::parse(&made.manifest).unwrap();
            assert!(matches!(new.pipeline.unwrap().post[0].op, Op::Threshold { at } if at == 0.7));
            assert_eq!((made.change, made.baseline), (Change::Threshold { from: 0.5, to: 0.7 }, None));
        }
        Err(unable) => panic!("{unable}"),
    }
    for (pipeline, steps) in [(None, 0), (Some(spec(&[0.5, 0.6])), 2)] {
        let refused = made(&action, pipeline, None).unwrap_err();
        assert!(matches!(refused, Unable::Thresholds { steps: found, .. } if found == steps), "{refused}");
    }
}

#[test]
fn a_canary_has_the_sizes_that_were_computed_and_no_second_shadow() {
    let action = Action::StartCanary { bundle: digits(2), canaries: 20, controls: 61, hours: 72.0 };
    let scope = Scope::Bundle { bundle: digits(1) };
    let steps = plan(&finding(action, scope), &known());
    let [Step { doing: Doing::StartRollout { plan }, .. }] = steps.as_slice() else { panic!("{steps:?}") };
    let canary = &plan.stages[0];
    assert_eq!((canary.name.as_str(), canary.min, canary.max), ("canary", Some(20), Some(20)));
    assert_eq!((plan.assign.controls_per_canary, canary.max_soak().as_secs()), (4, 72 * 3_600));
    assert_eq!(plan.stages.last().unwrap().name, "all");
}
