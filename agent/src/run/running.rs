//! How the bundle of each slot is run now, as people here and the controller are told.

use crate::{
    engine::{
        LibraryFrom,
        chooser::{Passed, Refused, Selection},
        choosing::EngineChooser,
        setup::Setup,
    },
    serving::http::StatusProvider,
    update::BundleFiles,
};
use edgefleet_shared::{
    bundle::Manifest,
    digest::BundleDigest,
    ids::SlotName,
    reported::{ChosenAgain, EngineReport, MeasuredSetup, RefusedSetup, SlotReport, WhyAgain},
    time::Timestamp,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// How the bundle of a slot is run now.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) digest: BundleDigest,
    pub(super) setup: Setup,
    /// What ran it when it was loaded, if that is a library.
    pub(super) library: Option<PathBuf>,
    pub(super) files: BundleFiles,
    /// As signed: serving knows only what clients see of it.
    pub(super) manifest: Manifest,
    /// The last choice that was made anew for this bundle.
    again: Option<ChosenAgain>,
}

/// By slot.
#[derive(Default)]
pub(super) struct RunningEngines(Mutex<BTreeMap<SlotName, Running>>);

impl RunningEngines {
    pub(super) fn set(
        &self,
        slot: &SlotName,
        digest: BundleDigest,
        chosen: (Setup, Option<PathBuf>),
        (files, manifest): (BundleFiles, Manifest),
    ) {
        let (setup, library) = chosen;
        let mut all = self.0.lock();
        let again = all.get(slot).filter(|former| former.digest == digest).and_then(|f| f.again.clone());
        all.insert(slot.clone(), Running { digest, setup, library, files, manifest, again });
    }
    /// The choice for this bundle was made anew at `at`; `from` ran it before.
    pub(super) fn chosen_again(
        &self,
        slot: &SlotName,
        digest: BundleDigest,
        (why, from): (WhyAgain, Setup),
        at: Timestamp,
    ) {
        if let Some(running) = self.0.lock().get_mut(slot).filter(|running| running.digest == digest) {
            let times = running.again.as_ref().map_or(0, |again| again.times).saturating_add(1);
            running.again = Some(ChosenAgain { why, at, from: from.to_string(), times });
        }
    }
    /// Everything that serves, by slot.
    pub(super) fn all(&self) -> BTreeMap<SlotName, Running> {
        self.0.lock().clone()
    }
    pub(super) fn remove(&self, slot: &SlotName) {
        self.0.lock().remove(slot);
    }
    /// What runs this very bundle in the slot.
    pub(super) fn of(&self, slot: &SlotName, digest: BundleDigest) -> Option<Running> {
        self.0.lock().get(slot).filter(|running| running.digest == digest).cloned()
    }
}

/// What is told of the engines: `engines` in `GET /v1/status`, and `engine` of each slot in the reports.
#[derive(Clone)]
pub(super) struct EngineStatus {
    pub(super) chooser: Arc<EngineChooser>,
    pub(super) running: Arc<RunningEngines>,
}

impl EngineStatus {
    /// Engines by name and version.
    pub(super) fn names(&self) -> Vec<String> {
        self.chooser.engine_names()
    }

    /// Adds to the slots of a report how their active bundles are run.
    pub(super) fn tell(&self, slots: &mut BTreeMap<SlotName, SlotReport>) {
        for (slot, report) in slots {
            let digest = report.active.as_ref().and_then(|active| active.digest);
            let Some(running) = digest.and_then(|digest| self.running.of(slot, digest)) else { continue };
            let known = self.chooser.selection(running.digest);
            let current = self.chooser.is_current(running.digest);
            report.engine = Some(told(&running, known.as_ref(), current));
        }
    }
}

fn told(running: &Running, known: Option<&Selection>, current: bool) -> EngineReport {
    // A microsecond is enough for anybody.
    let round = |ms: f64| (ms * 1e3).round() / 1e3;
    let measured = |passed: &Passed| MeasuredSetup {
        setup: passed.setup.to_string(),
        median_ms: passed.median_ms.map(round),
        batch: passed
            .batch
            .map(|batch| (u32::try_from(batch.rows).unwrap_or(u32::MAX), round(batch.median_ms))),
    };
    let refused = |refused: &Refused| RefusedSetup {
        setup: refused.setup.to_string(),
        code: refused.code,
        reason: refused.reason.clone(),
    };
    // Verdicts before what the settings exclude: there is a bound.
    let mut all: Vec<&Refused> = known.iter().flat_map(|selection| &selection.refused).collect();
    all.sort_by_key(|refused| refused.code.is_none());
    EngineReport {
        digest: running.digest,
        setup: running.setup.to_string(),
        current,
        rounds: known.map_or(0, |known| u32::try_from(known.rounds).unwrap_or(u32::MAX)),
        measured: known.iter().flat_map(|known| &known.passed).map(measured).collect(),
        refused: all.into_iter().map(refused).collect(),
        again: running.again.clone(),
    }
    .bounded()
}

impl StatusProvider for EngineStatus {
    fn name(&self) -> &'static str {
        "engines"
    }
    fn status(&self) -> Value {
        let engines = self.chooser.engines();
        let slots: BTreeMap<String, Value> = self
            .running
            .all()
            .into_iter()
            .map(|(slot, running)| {
                let known = self.chooser.selection(running.digest);
                let measured: Vec<Value> = known.iter().flat_map(|s| &s.passed).map(|passed| {
                    json!({"setup": passed.setup.to_string(), "engine": passed.engine, "median_ms": passed.median_ms, "batch": passed.batch})
                }).collect();
                let refused: Vec<Value> = known.iter().flat_map(|s| &s.refused).map(|refused| {
                    json!({"setup": refused.setup.to_string(), "code": refused.code, "reason": refused.reason})
                }).collect();
                let slot_status = json!({
                    "digest": running.digest,
                    "setup": running.setup.to_string(),
                    "library": running.library.map(|path| path.display().to_string()),
                    "current": self.chooser.is_current(running.digest),
                    "measured": measured,
                    "refused": refused,
                    "rounds": known.as_ref().map(|s| s.rounds),
                    "again": running.again,
                });
                (slot.to_string(), slot_status)
            })
            .collect();
        json!({
            "present": self.chooser.engine_names(),
            "library": engines.library().map(|path| path.display().to_string()),
            "library_from": engines.library_from().map(LibraryFrom::as_str),
            "slots": slots,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        chooser::{Key, Policy, select},
        setup::EngineName,
    };
    use edgefleet_shared::{bundle::Precision, reported::RefusalCode};

    fn setup(engine: EngineName, threads: usize) -> Setup {
        Setup { engine, precision: Precision::F32, threads }
    }

    #[test]
    fn a_choice_is_told_with_its_medians_and_verdicts_and_of_this_bundle_alone() {
        let digest = BundleDigest::of(b"b");
        let key = Key { bundle: digest, engines: vec![], cpu: "cpu".into(), policy: Policy::default() };
        let (tract, ort) = (setup(EngineName::Tract, 1), setup(EngineName::Onnxruntime, 1));
        let passed = |setup, ms| Passed { setup, engine: "x 1".into(), median_ms: Some(ms), batch: None };
        let refused = |threads, code| Refused {
            setup: setup(EngineName::Onnxruntime, threads),
            code,
            reason: "r".repeat(9_000),
        };
        let others = vec![refused(2, None), refused(3, Some(RefusalCode::ProbeCrashed))];
        let known = select(key, vec![passed(tract, 2.000_04), passed(ort, 1.0)], others, (50, 1), None);
        let engines = RunningEngines::default();
        let slot: SlotName = "digits".parse().unwrap();
        let manifest: Manifest = serde_json::from_value(manifest()).unwrap();
        let files = BundleFiles { manifest_path: "m".into(), blobs_dir: "b".into() };
        let set = |digest, setup| {
            engines.set(&slot, digest, (setup, None), (files.clone(), manifest.clone()));
        };
        set(digest, ort);
        engines.chosen_again(&slot, digest, (WhyAgain::Drifted, ort), Timestamp::EPOCH);
        set(digest, tract);
        let running = engines.of(&slot, digest).unwrap();
        let told = told(&running, Some(&known), true);
        assert_eq!((told.setup.as_str(), told.median_ms(), told.rounds), ("tract/f32/1", Some(2.0), 50));
        assert_eq!(told.measured[0].setup, "onnxruntime/f32/1");
        assert_eq!(told.refused[0].code, Some(RefusalCode::ProbeCrashed), "verdicts first");
        assert!(told.refused[0].reason.len() < 200);
        let again = told.again.expect("it goes with the bundle, not with the setup");
        assert_eq!((again.from.as_str(), again.times), ("onnxruntime/f32/1", 1));
        // Another bundle begins anew, and late words of the one before change nothing.
        set(BundleDigest::of(b"c"), tract);
        engines.chosen_again(&slot, digest, (WhyAgain::Changed, ort), Timestamp::EPOCH);
        assert!(engines.of(&slot, digest).is_none());
        assert!(engines.of(&slot, BundleDigest::of(b"c")).unwrap().again.is_none());
    }

    fn manifest() -> Value {
        json!({"schema": 1, "model": {"name": "digits", "counter": 1, "version": "1"}})
    }
}
