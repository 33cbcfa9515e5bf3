//! Finds every mistake in a plan, each with its place.

use super::{
    plan::{AUTO_SEED, Mode, Plan, Severity, Stage},
    span::{Share, Span},
};
use crate::evidence::Gate;
use edgefleet_shared::ids::SlotName;
use std::{collections::BTreeSet, fmt};

/// Most stages; each has an entry in the rollout's document.
pub const MAX_STAGES: usize = 16;
/// Named devices of all stages together, and excluded ones.
pub const MAX_NAMED: usize = 200;
const MAX_SELECTORS: usize = 8;
/// Text of all selectors together, bytes.
const MAX_SELECT: usize = 8 << 10;
const MAX_STRATA_KEYS: usize = 6;
const MAX_NAME: usize = 40;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanMistake {
    /// `stages[2].size`.
    pub path: String,
    pub problem: String,
}
impl fmt::Display for PlanMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.path, self.problem)
    }
}
impl std::error::Error for PlanMistake {}

#[derive(Default)]
struct Mistakes(Vec<PlanMistake>);

impl Mistakes {
    fn must(&mut self, holds: bool, path: impl Into<String>, problem: impl Into<String>) {
        if !holds {
            self.0.push(PlanMistake { path: path.into(), problem: problem.into() });
        }
    }
    fn at_least(&mut self, path: &str, found: f64, least: f64) {
        self.must(
            found.is_finite() && found >= least,
            path,
            format!("is {found}; it must be at least {least}"),
        );
    }
    fn share(&mut self, path: &str, share: Share) {
        self.must(share.is_sound(), path, format!("is {share}; a share is between 0% and 100%"));
    }
}

impl Plan {
    /// Visits everything before giving up, so that one look shows all mistakes.
    ///
    /// # Errors
    /// All mistakes, in the order of the plan.
    pub fn check(&self) -> Result<(), Vec<PlanMistake>> {
        let mut wrong = Mistakes::default();
        self.check_head(&mut wrong);
        self.check_speed(&mut wrong);
        self.check_stages(&mut wrong);
        self.check_engine(&mut wrong);
        if let Err(mistakes) = self.gates.validate() {
            for mistake in mistakes {
                let problem = format!("is {}; it must be {}", mistake.found, mistake.wanted);
                wrong.must(false, format!("gates.{}", mistake.field), problem);
            }
        }
        if wrong.0.is_empty() { Ok(()) } else { Err(wrong.0) }
    }

    /// An engine serves nobody itself: it has no shadow, and no requests of its own that gates could count.
    fn check_engine(&self, wrong: &mut Mistakes) {
        let (slot, bundle) = (&self.rollout.slot, &self.rollout.bundle);
        let own = SlotName::from(&bundle.model);
        wrong.must(
            slot.takes(&bundle.model),
            "rollout.slot",
            format!("is `{slot}`, where `{bundle}` does not belong; its slot is `{own}`"),
        );
        if !slot.is_engine() {
            return;
        }
        for (index, stage) in self.stages.iter().enumerate() {
            wrong.must(
                stage.mode != Mode::Shadow,
                format!("stages[{index}].mode"),
                "is `shadow`; an engine pack runs beside nothing, devices try it before they take it",
            );
            for gate in stage.gates.iter().filter(|gate| **gate != Gate::Hard) {
                wrong.must(
                    false,
                    format!("stages[{index}].gates"),
                    format!("asks for `{gate}`; a rollout of an engine pack has the gate `hard` alone"),
                );
            }
        }
    }

    fn check_head(&self, wrong: &mut Mistakes) {
        let texts: usize = self.select.iter().map(|selector| selector.to_string().len()).sum();
        wrong.must(!self.select.is_empty(), "select", "is empty; write `\"\"` to select every device");
        wrong.must(
            self.select.len() <= MAX_SELECTORS && texts <= MAX_SELECT,
            "select",
            format!(
                "has {} selectors of {texts} bytes; at most {MAX_SELECTORS} of {MAX_SELECT} bytes",
                self.select.len()
            ),
        );
        for (path, reason) in [
            ("rollout.allow_downgrade", &self.rollout.allow_downgrade),
            ("override_freeze", &self.override_freeze),
        ] {
            let sound = reason.as_ref().is_none_or(|r| !r.trim().is_empty() && r.len() <= 500);
            wrong.must(sound, path, "must be a reason of 1 to 500 bytes");
        }
        wrong.must(
            self.override_freeze.is_none() || self.rollout.severity == Severity::Critical,
            "override_freeze",
            "is for rollouts of severity `critical` only",
        );
        let assign = &self.assign;
        let keys: BTreeSet<_> = assign.strata.iter().collect();
        wrong.must(
            keys.len() == assign.strata.len() && keys.len() <= MAX_STRATA_KEYS,
            "assign.strata",
            format!("has {} keys; at most {MAX_STRATA_KEYS}, all different", assign.strata.len()),
        );
        let seed = assign.seed == AUTO_SEED || assign.seed.parse::<super::Seed>().is_ok();
        wrong.must(seed, "assign.seed", "must be `auto` or 64 lower-case hexadecimal digits");
        wrong.must(
            assign.controls_per_canary <= 10,
            "assign.controls_per_canary",
            format!("is {}; at most 10", assign.controls_per_canary),
        );
        wrong.must(
            assign.max_in_flight_per.len() <= 1,
            "assign.max_in_flight_per",
            "names more than one kind of group",
        );
        for (label, share) in &assign.max_in_flight_per {
            wrong.share(&format!("assign.max_in_flight_per.{label}"), *share);
        }
        wrong.must(
            assign.exclude.len() <= MAX_NAMED,
            "assign.exclude",
            format!("names more than {MAX_NAMED} devices"),
        );
        wrong.must(assign.max_devices != Some(0), "assign.max_devices", "is 0: nobody would get it");
        if let Some(window) = &self.window {
            let length = window.length;
            let sound = window.on_device(false).is_ok();
            wrong.must(sound, "window.for", format!("is {length}; between 30 minutes and a week"));
        }
        let scale = self.time_scale;
        wrong.must(
            scale.is_finite() && (1.0..=100_000.0).contains(&scale),
            "time_scale",
            format!("is {scale}; between 1 and 100000"),
        );
    }

    fn check_speed(&self, wrong: &mut Mistakes) {
        let limits = &self.limits;
        wrong.must(
            limits.start_per_min.is_finite() && limits.start_per_min > 0.0,
            "limits.start_per_min",
            format!("is {}; it must be above 0", limits.start_per_min),
        );
        wrong.at_least("limits.growth", limits.growth, 1.0);
        wrong.at_least("limits.cap_per_min", limits.cap_per_min, limits.start_per_min);
        wrong.must(limits.per > 0, "limits.per", "is 0; the rate grows after this many successes");
        wrong.share("limits.concurrency", limits.concurrency);
        wrong.must(
            limits.concurrency_min > 0,
            "limits.concurrency_min",
            "is 0: nobody would ever get a turn",
        );
        wrong.must(
            limits.bytes_per_day != Some(0),
            "limits.bytes_per_day",
            "is 0: nobody would ever get a turn",
        );
        wrong.share("hard.failed", self.hard.failed);
        for (path, found) in [
            ("hard.verify_failed", self.hard.verify_failed),
            ("hard.rolled_back", self.hard.rolled_back),
            ("hard.lost", self.hard.lost),
            ("hard.preflight_failed", self.hard.preflight_failed),
            ("hard.min_attempts", self.hard.min_attempts),
        ] {
            wrong.must(found > 0, path, "is 0; at least 1");
        }
        let slower = self.hard.slower_percent;
        wrong.must(
            slower.is_none_or(|percent| (110..=100_000).contains(&percent)),
            "hard.slower_percent",
            format!("is {}; between 110 and 100000", slower.unwrap_or(0)),
        );
        let t = &self.timeouts;
        for (path, span) in [
            ("timeouts.first_report", t.first_report),
            ("timeouts.download", t.download),
            ("timeouts.preflight", t.preflight),
            ("timeouts.activation", t.activation),
            ("timeouts.probation", t.probation),
            ("timeouts.queued", t.queued),
            ("timeouts.silence", t.silence),
            ("timeouts.approval", t.approval),
            ("timeouts.rest", t.rest),
            ("on_inconclusive.unattended", self.on_inconclusive.unattended),
            ("retry.first_wait", self.retry.first_wait),
        ] {
            wrong.must(span > Span::ZERO, path, "is 0; nothing could ever happen in it");
        }
        wrong.must(
            t.seen >= t.silence,
            "timeouts.seen",
            format!("is {}; at least `timeouts.silence`, {}", t.seen, t.silence),
        );
        wrong.must(
            self.retry.longest_wait >= self.retry.first_wait,
            "retry.longest_wait",
            format!("is {}; at least `retry.first_wait`", self.retry.longest_wait),
        );
    }

    fn check_stages(&self, wrong: &mut Mistakes) {
        let count = self.stages.len();
        wrong.must(
            (1..=MAX_STAGES).contains(&count),
            "stages",
            format!("has {count} stages; 1 to {MAX_STAGES}"),
        );
        let mut names = BTreeSet::new();
        let mut named = BTreeSet::new();
        let mut before: [Option<f64>; 2] = [None, None];
        for (number, stage) in self.stages.iter().enumerate() {
            let at = |field: &str| format!("stages[{number}].{field}");
            wrong.must(names.insert(&stage.name), at("name"), format!("`{}` is taken", stage.name));
            wrong.must(
                !stage.name.is_empty() && stage.name.len() <= MAX_NAME,
                at("name"),
                format!("must have 1 to {MAX_NAME} bytes"),
            );
            self.check_stage(number, stage, wrong);
            for device in &stage.devices {
                wrong.must(named.insert(device), at("devices"), format!("names {device} a second time"));
            }
            if let Some(Share::Percent(share)) = stage.size {
                let last = &mut before[usize::from(stage.mode == Mode::Shadow)];
                let shrinks = last.is_some_and(|last| share < last);
                wrong.must(!shrinks, at("size"), "is smaller than an earlier stage's; sizes are cumulative");
                *last = Some(share);
            }
        }
        wrong.must(
            named.len() <= MAX_NAMED,
            "stages",
            format!("name {} devices; at most {MAX_NAMED}", named.len()),
        );
    }

    fn check_stage(&self, number: usize, stage: &Stage, wrong: &mut Mistakes) {
        let at = |field: &str| format!("stages[{number}].{field}");
        let last = self.is_last(number);
        let named = !stage.devices.is_empty();
        wrong.must(
            named != stage.size.is_some(),
            at("size"),
            "and `devices`: exactly one of both must be there",
        );
        if let Some(size) = stage.size {
            wrong.share(&at("size"), size);
            wrong.must(size != Share::Count(0), at("size"), "is 0: nobody's turn");
        }
        let limits = stage.min.unwrap_or(0) <= stage.max.unwrap_or(u64::MAX);
        wrong.must(limits, at("min"), "is larger than `max`");
        wrong.must(stage.max != Some(0), at("max"), "is 0: nobody's turn");
        wrong.must(
            !last || stage.mode == Mode::Active,
            at("mode"),
            "is shadow: the last stage must activate the bundle",
        );
        wrong.must(!last || !named, at("devices"), "cannot be the last stage: it is for everybody");
        wrong.must(last || !stage.dynamic, at("dynamic"), "is for the last stage only");
        if stage.max_soak.is_some() {
            wrong.must(stage.max_soak() >= stage.soak, at("max_soak"), "is shorter than `soak`");
        }
        let asks = stage.gates.iter().any(|gate| *gate != Gate::Hard);
        wrong.must(!asks || stage.soak > Span::ZERO, at("soak"), "is 0; gates need time to gather evidence");
        wrong.must(stage.spread != Some(Span::ZERO), at("spread"), "is 0; leave it out instead");
        if let Some(coverage) = stage.coverage {
            wrong.share(&at("coverage"), coverage);
            wrong.must(coverage.fraction(1) > 0.0, at("coverage"), "is 0; no telemetry is never success");
        }
        let device_level = stage.gates.iter().any(|gate| gate.is_device_level());
        wrong.must(
            !(device_level && stage.mode == Mode::Shadow),
            at("gates"),
            "compare active devices with controls; a shadow stage has none",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::plan::Head;

    fn plan() -> Plan {
        Plan::new("digits".parse().unwrap(), "digits@2".parse().unwrap())
    }

    #[test]
    fn the_default_plan_and_an_assignment_by_hand_are_sound() {
        assert_eq!(plan().check(), Ok(()));
        let hand = Plan::single_stage(
            "digits".parse().unwrap(),
            "digits@2".parse().unwrap(),
            vec!["".parse().unwrap()],
        );
        assert_eq!(hand.check(), Ok(()));
    }

    #[test]
    fn an_engine_pack_goes_into_its_own_slot_without_shadow_and_statistics() {
        let plan = |slot: &str, bundle: &str| Plan {
            rollout: Head {
                slot: slot.parse().unwrap(),
                ..Plan::new("digits".parse().unwrap(), bundle.parse().unwrap()).rollout
            },
            ..Plan::single_stage(
                "digits".parse().unwrap(),
                bundle.parse().unwrap(),
                vec!["".parse().unwrap()],
            )
        };
        assert_eq!(plan("engine/onnxruntime", "onnxruntime@1").check(), Ok(()));
        for (slot, bundle) in [
            ("onnxruntime", "onnxruntime@1"),
            ("engine/onnxruntime", "digits@1"),
            ("engine/other", "other@1"),
        ] {
            let wrong = plan(slot, bundle).check().unwrap_err();
            assert_eq!(wrong[0].path, "rollout.slot", "{slot} {bundle}: {wrong:?}");
        }
        // As docs/engines.md has it.
        let staged: Plan = serde_json::from_value(serde_json::json!({
            "rollout": { "slot": "engine/onnxruntime", "bundle": "onnxruntime@2" },
            "stages": [
                { "name": "first", "size": 10, "soak": "24h", "gates": ["hard"] },
                { "name": "tenth", "size": "10%", "soak": "24h" },
                { "name": "all", "size": "100%", "dynamic": true },
            ],
        }))
        .unwrap();
        assert_eq!(staged.check(), Ok(()));
        let whole = Plan::new("engine/onnxruntime".parse().unwrap(), "onnxruntime@1".parse().unwrap());
        let wrong: Vec<_> = whole.check().unwrap_err().into_iter().map(|mistake| mistake.path).collect();
        assert!(wrong.contains(&"stages[0].mode".to_owned()), "{wrong:?}");
        assert!(wrong.contains(&"stages[1].gates".to_owned()), "{wrong:?}");
    }

    #[test]
    fn every_mistake_is_found_and_named_by_its_place() {
        type Change = fn(&mut Plan);
        let table: &[(Change, &str)] = &[
            (|p| p.select.clear(), "select"),
            (|p| p.time_scale = 0.0, "time_scale"),
            (|p| p.limits.growth = 0.5, "limits.growth"),
            (|p| p.limits.start_per_min = f64::NAN, "limits.start_per_min"),
            (|p| p.limits.cap_per_min = 1.0, "limits.cap_per_min"),
            (|p| p.limits.concurrency_min = 0, "limits.concurrency_min"),
            (|p| p.stages.clear(), "stages"),
            (|p| p.stages[1].name = "shadow".into(), "stages[1].name"),
            (|p| p.stages[2].size = Some(Share::Percent(0.5)), "stages[2].size"),
            (|p| p.stages[2].size = None, "stages[2].size"),
            (|p| p.stages[1].soak = Span::ZERO, "stages[1].soak"),
            (|p| p.stages[1].dynamic = true, "stages[1].dynamic"),
            (|p| p.stages[4].mode = Mode::Shadow, "stages[4].mode"),
            (|p| p.stages[1].min = Some(60), "stages[1].min"),
            (|p| p.override_freeze = Some("now".into()), "override_freeze"),
            (|p| p.assign.seed = "x".into(), "assign.seed"),
            (|p| p.gates.alpha = 2.0, "gates.alpha"),
            (|p| p.timeouts.seen = Span::secs(1), "timeouts.seen"),
            (|p| p.hard.slower_percent = Some(100), "hard.slower_percent"),
            (|p| p.stages[0].gates = vec![crate::evidence::Gate::Errors], "stages[0].gates"),
        ];
        for (change, path) in table {
            let mut plan = plan();
            change(&mut plan);
            let found: Vec<_> = plan.check().unwrap_err().into_iter().map(|m| m.path).collect();
            assert!(found.iter().any(|found| found == path), "{path} not in {found:?}");
        }
        let mut all = plan();
        table.iter().take(3).for_each(|(change, _)| change(&mut all));
        assert_eq!(all.check().unwrap_err().len(), 3);
    }

    #[test]
    fn a_plan_file_is_read_with_defaults_and_unknown_keys_are_refused() {
        let text = r#"{
            "rollout": {"slot": "digits", "bundle": "digits@2", "allow_downgrade": false, "on_overlap": "queue"},
            "select": "site=lab",
            "assign": {"max_in_flight_per": {"site": "10%"}},
            "limits": {"concurrency": "2%"},
            "window": {"cron": "0 2 * * *", "for": "2h", "zone": "device-local"},
            "stages": [{"name": "canary", "size": "1%", "min": 10, "soak": "24h", "gates": ["hard", "errors"]},
                       {"name": "all", "size": "100%", "dynamic": true}],
            "gates": {"errors": {"margin": 1.5}}
        }"#;
        let plan: Plan = serde_json::from_str(text).unwrap();
        assert_eq!(plan.check(), Ok(()));
        assert_eq!((plan.stages[0].soak, plan.gates.errors.margin), (Span::hours(24), 1.5));
        assert_eq!(plan.group_rule(), Some(("site", Share::Percent(10.0))));
        let stored = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), plan);
        let typo = text.replace("\"min\"", "\"mni\"");
        assert!(serde_json::from_str::<Plan>(&typo).unwrap_err().to_string().contains("mni"));
    }
}
