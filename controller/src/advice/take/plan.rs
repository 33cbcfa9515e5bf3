//! From a finding and what is known to steps.

use super::{
    bundle::{Seen, Source, make},
    policy,
    step::{Change, Doing, QueueFilter, Step},
    words::{of_cohort, quoted, select_of},
};
use crate::{
    advice::{Action, Finding, LabelFilter, ProposedThreshold},
    rollout::{Mode, Plan, Share, Span, plan::OnOverlap},
};
use edgefleet_shared::{
    bundle::{Baseline, Manifest},
    capture::{CapturePolicy, Reason},
    digest::BundleDigest,
    ids::{BundleName, DeviceId, RolloutId, SlotName},
    selector::Selector,
    time::Timestamp,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// After people's own rules, which have 100 if they say nothing: what was asked for last holds.
const RULE_ORDER: u32 = 200;
/// Such a rule is for a while: labels are there by then, or nobody wanted them.
const RULE_DAYS: u32 = 30;
/// Devices that are named one by one.
const NAMED: usize = 8;

/// What the controller knows beside the finding. Parts that are missing make a step less certain, never wrong.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// `adv-` and 12 hex digits.
    pub advice: String,
    pub opened: Timestamp,
    /// What devices keep of the model now; absent: nothing.
    pub policy: Option<CapturePolicy>,
    /// The filter of [`queue`], counted: captures that nobody has labelled.
    pub waiting: u64,
    /// The finding's bundle.
    pub manifest: Option<(BundleDigest, Manifest)>,
    pub baseline: Option<Baseline>,
    /// Highest counter of the model.
    pub newest: u64,
    pub seen: Option<Seen>,
    /// A rollout of the action's bundle that is under way.
    pub rollout: Option<RolloutId>,
}

/// The steps for one finding.
pub fn plan(finding: &Finding, state: &State) -> Vec<Step> {
    let bundle = finding.scope.bundle();
    match &finding.action {
        Action::InspectDevice { device, .. } => look_at(bundle, std::slice::from_ref(device)),
        Action::InspectDevices { devices, .. } => look_at(bundle, devices),
        Action::ListStragglers { by_reason, examples } => stragglers(bundle, by_reason, examples),
        Action::OpenLabelling { filter } => labelling(finding, state, filter.count),
        Action::LabelDisagreements { count, .. } | Action::TargetCaptures { count, .. } => {
            labelling(finding, state, *count)
        }
        Action::RaiseAuditRate { to, .. } => {
            let policy = policy::raised(state.policy.clone().unwrap_or_default(), *to);
            let share = policy.random.share;
            let text = format!("Devices keep {:.2} % of all answers by chance for labelling.", 100.0 * share);
            vec![captures_rule(finding, state, &policy, text)]
        }
        Action::ChangeQuota { strategy, to_per_day, .. } => quota(finding, state, strategy, *to_per_day),
        Action::PushCalibration { .. }
        | Action::ProposeBaseline { .. }
        | Action::SeasonalBaselines { .. }
        | Action::ProposeThresholds { .. } => new_bundle(finding, state),
        Action::StartCanary { bundle, canaries, controls, hours } => {
            canary(finding, state, bundle, (*canaries, *controls, *hours))
        }
        Action::RollBack { from, to, .. } => roll_back(finding, state, from, to.as_ref()),
        Action::CompareSteps { bundle, with } => compare(bundle, with.as_ref()),
        Action::DistrustEstimator { estimator } => vec![distrust(bundle, estimator)],
        Action::ShowFault { .. }
        | Action::EnableImputation { .. }
        | Action::RelieveQueue { .. }
        | Action::LowerDuty { .. }
        | Action::LighterModel { .. }
        | Action::PreferVariant { .. }
        | Action::EnableCache { .. }
        | Action::CheaperInput { .. } => by_hand(bundle, &finding.action),
    }
}

/// The captures that a finding's labelling is about; `None` if it is about none.
pub fn queue(finding: &Finding) -> Option<QueueFilter> {
    let bundle = finding.scope.bundle().clone();
    let of_scope = || (select_of(&finding.scope).filter(|select| *select != Selector::everything()), vec![]);
    let (select, devices, reasons, classes) = match &finding.action {
        Action::OpenLabelling { filter } => {
            let LabelFilter { cohort, devices, strategies, classes, .. } = filter;
            let select = cohort.as_deref().and_then(of_cohort).filter(|s| *s != Selector::everything());
            let reasons: Vec<Reason> = strategies.iter().filter_map(|one| one.parse().ok()).collect();
            (select, devices.clone(), reasons, classes.clone())
        }
        Action::LabelDisagreements { .. } => {
            let (select, devices) = of_scope();
            (select, devices, vec![Reason::Disagreement], vec![])
        }
        Action::TargetCaptures { cohort, .. } => {
            (of_cohort(cohort).filter(|s| *s != Selector::everything()), vec![], vec![], vec![])
        }
        _ => return None,
    };
    Some(QueueFilter { bundle, select, devices, reasons, classes })
}

fn step(text: impl Into<String>, doing: Doing) -> Step {
    Step { text: text.into(), links: vec![], commands: vec![], doing }
}

fn look_at(bundle: &BundleName, devices: &[DeviceId]) -> Vec<Step> {
    let one = |device: &DeviceId| {
        let text = format!("Look at {device}: what it runs, what its inputs are like, what it captured.");
        let filter = QueueFilter {
            bundle: bundle.clone(),
            select: None,
            devices: vec![device.clone()],
            reasons: vec![],
            classes: vec![],
        };
        let commands = vec![
            format!("edgefleet device show {device}"),
            format!("edgefleet monitor device {device} {bundle}"),
            filter.command(),
        ];
        Step { links: vec![filter.link()], commands, ..step(text, Doing::Look) }
    };
    devices.iter().take(NAMED).map(one).collect()
}

fn stragglers(bundle: &BundleName, by_reason: &BTreeMap<String, u64>, examples: &[DeviceId]) -> Vec<Step> {
    let counted: Vec<_> = by_reason.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    let text = format!("See why devices are behind {bundle}: {}.", counted.join(", "));
    let devices = examples.iter().take(NAMED).map(|device| format!("edgefleet device show {device}"));
    let commands = std::iter::once(format!("edgefleet model show {bundle}")).chain(devices).collect();
    vec![Step { commands, ..step(text, Doing::Look) }]
}

fn labelling(finding: &Finding, state: &State, wanted: u64) -> Vec<Step> {
    let Some(filter) = queue(finding) else { return vec![] };
    let waiting = state.waiting;
    let text = format!("Label captures of {}: {waiting} wait, {wanted} are enough.", finding.scope);
    let mut steps = vec![Step {
        links: vec![filter.link()],
        commands: vec![filter.command()],
        ..step(text, Doing::OpenQueue { filter: filter.clone(), waiting, wanted })
    }];
    if waiting < wanted {
        let policy = state.policy.clone().unwrap_or_default();
        let missing = wanted - waiting;
        let policy = policy::targeted(policy, &filter.reasons, filter.classes.len(), missing);
        let text = format!("Devices keep more of this kind: {missing} are missing.");
        steps.push(captures_rule(finding, state, &policy, text));
    }
    steps
}

/// A rule of settings for the finding's devices with a whole capture policy: rules win over the model's own policy.
fn captures_rule(finding: &Finding, state: &State, policy: &CapturePolicy, text: String) -> Step {
    let slot = SlotName::from(&finding.scope.bundle().model);
    let Some(select) = select_of(&finding.scope) else {
        return Step {
            commands: vec![format!("edgefleet capture policy show {slot}")],
            ..step(
                format!(
                    "{text} No selector says which devices `{}` are: change the model's policy.",
                    finding.scope
                ),
                Doing::ByHand {
                    what: format!(
                        "the capture policy of {slot}, as a file for `edgefleet capture policy set`"
                    ),
                    lines: vec![serde_json::to_string(policy).unwrap_or_default()], // plain data
                },
            )
        };
    };
    let rule = state.advice.clone();
    let mut set = Map::new();
    let value = serde_json::to_value(policy).unwrap_or_default(); // plain data
    set.insert("captures".to_owned(), json!({ slot.as_str(): value }));
    let news = match state.policy {
        Some(_) => "",
        None => " So far they keep none: inputs come to the controller then.",
    };
    let text = format!(
        "{text}{news} It ends after {RULE_DAYS} days; take it away earlier if it is no longer needed."
    );
    let commands = vec![format!("edgefleet settings remove {rule}")];
    let select = Some(select).filter(|select| *select != Selector::everything());
    Step { commands, ..step(text, Doing::SetRule { rule, order: RULE_ORDER, select, set, days: RULE_DAYS }) }
}

fn quota(finding: &Finding, state: &State, strategy: &str, to: u64) -> Vec<Step> {
    let policy = state.policy.clone().unwrap_or_default();
    match policy::with_quota(policy, strategy, to) {
        Some(policy) => {
            let text = format!("Devices keep up to {to} captures of `{strategy}` a day.");
            vec![captures_rule(finding, state, &policy, text)]
        }
        None => {
            let model = &finding.scope.bundle().model;
            let lines = vec![
                "[[rules]]".to_owned(),
                format!("strategy = {}", Value::from(strategy)),
                format!("quota = {{ per_day = {to} }}"),
            ];
            let what = format!("the capture policy of {model}, as a file for `edgefleet capture policy set`");
            let text = format!("The policy of {model} has no strategy `{strategy}`: add it.");
            let commands = vec![format!("edgefleet capture policy show {model}")];
            vec![Step { commands, ..step(text, Doing::ByHand { what, lines }) }]
        }
    }
}

fn new_bundle(finding: &Finding, state: &State) -> Vec<Step> {
    let from = finding.scope.bundle().clone();
    let made = state.manifest.as_ref().and_then(|(digest, manifest)| {
        let baseline = state.baseline.as_ref();
        let source = Source { digest: *digest, manifest, baseline, newest: state.newest };
        make(&finding.action, source, state.seen.as_ref(), &state.advice)
    });
    let mut steps = Vec::new();
    match made {
        Some(Ok(made)) => {
            let advice = &state.advice;
            let what = match made.change {
                Change::Calibration => "the calibration that the labels give".to_owned(),
                Change::Baseline { rows } => format!("a baseline from {rows} rows that devices saw"),
                Change::Threshold { from, to } => format!("the threshold {to} instead of {from}"),
            };
            let text = format!(
                "Make {} from {from} with {what}; a publisher signs and pushes it, then it is rolled out.",
                made.name
            );
            let folder = format!("{}-{}", made.name.model, made.name.counter);
            let commands = vec![
                format!("edgefleet advice take {advice} --out {folder}"),
                format!("edgefleet model sign {folder} --key publisher.pk8"),
                format!("edgefleet model push {folder}"),
                assign(&made.name, select_of(&finding.scope).as_ref(), ""),
            ];
            let links = vec![format!("/api/v1/advice/{advice}/file")];
            let doing = Doing::MakeBundle { from, bundle: made.name, change: made.change };
            steps.push(Step { links, commands, ..step(text, doing) });
        }
        Some(Err(unable)) => steps.push(without_bundle(finding, &unable.to_string())),
        None => steps.push(without_bundle(finding, &format!("{from} is not in the registry"))),
    }
    if let Action::SeasonalBaselines { hours, weekly, .. } = &finding.action {
        let hours: Vec<_> = hours.iter().map(ToString::to_string).collect();
        let of = if *weekly { "of the week" } else { "of the day" };
        let text = "A bundle has one baseline: this one covers the whole rhythm, so single hours are judged less sharply.";
        let what = "recipe.py of the model: rows of all these hours in its held-out data".to_owned();
        let lines = vec![format!("# loud hours {of} (UTC): {}", hours.join(", "))];
        steps.push(step(text, Doing::ByHand { what, lines }));
    }
    steps
}

fn without_bundle(finding: &Finding, why: &str) -> Step {
    let bundle = finding.scope.bundle();
    let (what, lines) = match &finding.action {
        Action::ProposeThresholds { thresholds } => {
            let line = |one: &ProposedThreshold| {
                format!(
                    "# {}: {:.3} gives precision {:.3} and recall {:.3} (now {:.3} and {:.3}; {} labels)",
                    one.class,
                    one.threshold,
                    one.precision,
                    one.recall,
                    one.precision_now,
                    one.recall_now,
                    one.n
                )
            };
            let step =
                thresholds.iter().map(|one| format!("{{ op = \"threshold\", at = {} }}", one.threshold));
            ("bundle.toml, [pipeline] post", thresholds.iter().map(line).chain(step).collect())
        }
        Action::PushCalibration { calibration, .. } => {
            let json = serde_json::to_string(calibration).unwrap_or_default(); // plain data
            ("baseline.json, quality.calibration", vec![format!("\"calibration\": {json}")])
        }
        _ => ("bundle.toml", vec!["[baseline]".to_owned(), "data = \"held-out.npz\"".to_owned()]),
    };
    let commands = vec![format!("edgefleet model show {bundle}")];
    let text = format!("The next release of {} needs this: {why}.", bundle.model);
    Step { commands, ..step(text, Doing::ByHand { what: what.to_owned(), lines }) }
}

fn assign(bundle: &BundleName, select: Option<&Selector>, more: &str) -> String {
    let select = select.map_or_else(String::new, ToString::to_string);
    format!("edgefleet assign {bundle} --select {}{more}", quoted(&select))
}

fn canary(
    finding: &Finding,
    state: &State,
    candidate: &BundleName,
    (canaries, controls, hours): (u32, u32, f64),
) -> Vec<Step> {
    if let Some(rollout) = &state.rollout {
        let text = format!(
            "Rollout {rollout} of {candidate} is under way and has its own canary: see what it waits for."
        );
        let commands = vec![
            format!("edgefleet rollout explain {rollout}"),
            format!("edgefleet rollout resume {rollout} --reason {}", quoted(&state.advice)),
        ];
        return vec![Step { commands, ..step(text, Doing::Look) }];
    }
    let slot = SlotName::from(&candidate.model);
    let mut plan = Plan::new(slot, candidate.clone());
    if let Some(select) = select_of(&finding.scope) {
        plan.select = vec![select];
    }
    // It ran beside the active bundle already: that is what the finding rests on.
    plan.stages.retain(|stage| stage.mode != Mode::Shadow);
    plan.assign.controls_per_canary = controls.div_ceil(canaries.max(1));
    let hours = if hours.is_finite() { hours.clamp(3.0, 24.0 * 30.0) as u64 } else { 72 };
    if let Some(stage) = plan.stages.first_mut() {
        (stage.min, stage.max) = (Some(u64::from(canaries)), Some(u64::from(canaries)));
        (stage.soak, stage.max_soak) = (Span::hours(hours / 3), Some(Span::hours(hours)));
        stage.size = stage.size.or(Some(Share::Percent(1.0)));
    }
    let text = format!(
        "Start a rollout of {candidate} with {canaries} canaries beside {controls} controls for up to {hours} h, then wider stages."
    );
    let commands = vec![format!("edgefleet advice take {} --dry-run", state.advice)];
    vec![Step { commands, ..step(text, Doing::StartRollout { plan: Box::new(plan) }) }]
}

fn roll_back(finding: &Finding, state: &State, from: &BundleName, to: Option<&BundleName>) -> Vec<Step> {
    let Some(to) = to else {
        let text = format!("No earlier bundle than {from} is known: choose one to go back to.");
        let commands = vec![format!("edgefleet model show {}", from.model)];
        return vec![Step { commands, ..step(text, Doing::Look) }];
    };
    let reason = format!("{}: {}", state.advice, finding.text.what);
    let Some(select) = select_of(&finding.scope) else {
        let text =
            format!("Go back to {to}. No selector says which devices `{}` are: choose them.", finding.scope);
        let lines = vec![format!("{} --supersede", assign(to, None, ""))];
        let commands = vec!["edgefleet device list".to_owned()];
        let what = "the command, with a selector of your own (as it stands: everybody)".to_owned();
        return vec![Step { commands, ..step(text, Doing::ByHand { what, lines }) }];
    };
    let mut plan = Plan::single_stage(SlotName::from(&to.model), to.clone(), vec![select.clone()]);
    plan.rollout.allow_downgrade = Some(reason.clone());
    plan.rollout.on_overlap = OnOverlap::Supersede;
    let text = format!(
        "Give {to} back to the devices of {}, in place of rollouts that still run there.",
        finding.scope
    );
    let more = format!(" --supersede --reason {}", quoted(&reason));
    let commands = vec![assign(to, Some(&select), &more)];
    vec![Step { commands, ..step(text, Doing::StartRollout { plan: Box::new(plan) }) }]
}

fn compare(bundle: &BundleName, with: Option<&BundleName>) -> Vec<Step> {
    let both = std::iter::once(bundle).chain(with);
    let commands = both.map(|one| format!("edgefleet model show {one} --output json")).collect();
    let text = "Compare the steps before and after the model, and the labels, of both bundles.";
    vec![Step { commands, ..step(text, Doing::Look) }]
}

fn distrust(bundle: &BundleName, estimator: &str) -> Step {
    let text = format!(
        "Do not decide by {estimator} here until labels agree with it again: go by audited accuracy."
    );
    let commands =
        vec![format!("edgefleet capture audit {}", bundle.model), format!("edgefleet monitor show {bundle}")];
    Step { commands, ..step(text, Doing::Look) }
}

/// Lines of files that no setting reaches: the device's `agent.toml` and the author's `bundle.toml`.
fn by_hand(bundle: &BundleName, action: &Action) -> Vec<Step> {
    let agent = "agent.toml of the devices";
    let source = "bundle.toml of the next release";
    let steps = "the pipeline's `pre` in the next release";
    let (text, what, lines): (String, &str, Vec<String>) = match action {
        Action::RelieveQueue { batch_delay_us, workers, expected_p95_ms } => {
            let mut lines = vec!["[serving]".to_owned()];
            lines.extend(
                batch_delay_us
                    .iter()
                    .flat_map(|us| ["batch = 8".to_owned(), format!("batch_delay = \"{us}us\"")]),
            );
            lines.extend(workers.iter().map(|workers| format!("threads = {workers}")));
            (
                format!("Shorten the queue: a 95th percentile of {expected_p95_ms:.1} ms is expected then."),
                agent,
                lines,
            )
        }
        Action::EnableCache { saved_share, .. } => {
            let lines = vec!["[serving]".to_owned(), "cache = \"16MiB\"".to_owned()];
            (
                format!("Remember answers: {:.0} % of requests need no inference then.", 100.0 * saved_share),
                agent,
                lines,
            )
        }
        Action::LowerDuty { devices, to_share } => {
            let lines = vec![
                "[[bindings]]".to_owned(),
                format!("# {:.0} % of what it is now, so that it is not throttled", 100.0 * to_share),
                "rate = 1".to_owned(),
            ];
            let named: Vec<_> = devices.iter().take(NAMED).map(ToString::to_string).collect();
            (format!("Ask for less per second on {}, or cool them.", named.join(", ")), agent, lines)
        }
        Action::PreferVariant { hardware, variant, .. } => {
            let lines = vec!["[engine]".to_owned(), format!("prefer = {}", Value::from(variant.as_str()))];
            (format!("Run {variant} on `{hardware}`: it was measured to be the fastest."), agent, lines)
        }
        Action::EnableImputation { channels } => {
            let mut lines: Vec<_> = channels.iter().map(|channel| format!("# {channel}")).collect();
            lines.push("{\"op\": \"impute\", \"value\": 0.0}".to_owned());
            let text = "Replace the sensor; until then fill in what is missing with what the training data had in its place.";
            (text.to_owned(), steps, lines)
        }
        Action::CheaperInput { pre_ms, infer_ms } => {
            let lines = vec![
                "{\"op\": \"resize\", \"width\": 224, \"height\": 224, \"filter\": \"bilinear\"}".to_owned(),
            ];
            (
                format!(
                    "Preparing takes {pre_ms:.1} ms, inferring {infer_ms:.1} ms: send smaller inputs, or make them small in the first step."
                ),
                steps,
                lines,
            )
        }
        Action::LighterModel { .. } => {
            let lines =
                ["[[artifact]]", "path = \"model-f16.onnx\"", "format = \"onnx\"", "precision = \"f16\""];
            (
                "Give devices a second variant to choose from, or a smaller input.".to_owned(),
                source,
                lines.map(str::to_owned).to_vec(),
            )
        }
        Action::ShowFault { fault, suggestion } => (
            format!("`{fault}`: {suggestion}."),
            "what sends the inputs",
            vec![format!("# {fault}: {suggestion}")],
        ),
        _ => return vec![],
    };
    let commands = vec![format!("edgefleet model show {bundle}")];
    vec![Step { commands, ..step(text, Doing::ByHand { what: what.to_owned(), lines }) }]
}
