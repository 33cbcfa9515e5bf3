//! Engines on probation: what a confined child makes of good, wrong, slow, crashing and hostile ones, and
//! which one then runs a bundle.

mod support;

use edgefleet_agent::engine::{
    Engines, LibraryFrom, PackLibrary,
    chooser::{Budget, Policy},
    choosing::EngineChooser,
    probe::{self, Attempt, BundleFiles, ProbeOptions},
    setup::{EngineName, Setup},
};
use edgefleet_shared::{bundle::Precision, probe::ProbeVerdict, reported::RefusalCode};
use std::{path::Path, time::Duration};
use support::{Bundle, Source, engine::Vice};

const ORT: Setup = Setup { engine: EngineName::Onnxruntime, precision: Precision::F32, threads: 1 };

fn options(library: &Path, setup: Setup) -> ProbeOptions {
    ProbeOptions {
        setup: Some(setup),
        library: Some(library.to_owned()),
        ..ProbeOptions::new(env!("CARGO_BIN_EXE_edgefleet-agent"))
    }
}

fn files(bundle: &Bundle) -> BundleFiles {
    BundleFiles::in_folder(bundle.folder.path())
}

fn probe(bundle: &Bundle, library: &Path, setup: Setup) -> ProbeVerdict {
    probe::run(&files(bundle), &options(library, setup))
}

fn policy(threads: usize) -> Policy {
    Policy { threads, ..Policy::default() }
}

fn chooser(library: Option<&Path>, policy: Policy, folder: Option<&Path>) -> EngineChooser {
    let engines = library.map_or_else(Engines::only_tract, |library| Engines::new(Some(library)));
    let program = ProbeOptions::new(env!("CARGO_BIN_EXE_edgefleet-agent"));
    let budget = Budget { time: Duration::from_millis(500), ..Budget::DEFAULT };
    EngineChooser::new(engines, policy, program, budget, folder.map(Path::to_owned))
}

#[test]
fn the_library_passes_behind_walls_with_one_thread_and_with_two() {
    let Some(library) = support::ort::library() else { return };
    let bundle = Source::digits(2).write();
    for threads in [1, 2] {
        let verdict = probe(&bundle, &library, Setup { threads, ..ORT });
        assert!(verdict.ok, "{threads}: {verdict:#?}");
        let engine = verdict.engine.unwrap();
        assert_eq!(engine.name, "onnxruntime");
        assert!(engine.version.starts_with("1."), "{}", engine.version);
        let measured = verdict.measured.unwrap();
        eprintln!("{threads}: {measured:?} {:?}", verdict.confinement);
        let tract = probe(&bundle, &library, Setup { engine: EngineName::Tract, threads: 1, ..ORT });
        assert_eq!(tract.confinement, verdict.confinement, "the same walls stand around both");
    }
    let verdict = probe(&Source::digits(3).write(), &library, ORT);
    assert_eq!(verdict.failure.unwrap().code, RefusalCode::GoldenMismatch);
}

#[test]
fn no_wall_is_lower_once_the_library_is_open() {
    let Some(library) = support::ort::library() else { return };
    for threads in [1, 2] {
        let options = options(&library, Setup { threads, ..ORT });
        let attempts = Attempt::usual().into_iter().chain([
            Attempt::Read(library.clone()),
            Attempt::Read("/proc/cpuinfo".into()),
            Attempt::Write("/tmp/edgefleet-choosing-test".into()),
        ]);
        let test = probe::self_test(attempts.collect(), &options).unwrap();
        for result in test.attempts {
            let allowed = threads > 1 && result.attempt == Attempt::Thread;
            assert_eq!(result.succeeded, allowed, "{threads}: {result:?}");
        }
    }
}

#[test]
fn every_vice_costs_the_child_and_comes_back_as_its_reason() {
    let Some(real) = support::ort::library() else { return };
    let bundle = Source::digits(2).write();
    for (vice, code, words) in [
        (Vice::Wrong, RefusalCode::GoldenMismatch, "expected"),
        (Vice::Remembers, RefusalCode::GoldenMismatch, "in the second run only"),
        (Vice::Crashes, RefusalCode::ProbeCrashed, "SIGSEGV while running golden sample"),
        (Vice::Hangs, RefusalCode::ProbeTimedOut, "still running golden sample"),
        (Vice::EatsMemory, RefusalCode::OverMemory, "memory"),
        (Vice::CrashesWhenOpened, RefusalCode::ProbeCrashed, "the engine crashed the probe with SIGSEGV"),
    ] {
        let (_folder, library) = support::engine::library(&real, vice);
        let options = ProbeOptions { time_limit: Duration::from_secs(3), ..options(&library, ORT) };
        let failure = probe::run(&files(&bundle), &options).failure.expect("a reason");
        assert_eq!(failure.code, code, "{vice:?}: {}", failure.message);
        assert!(failure.message.contains(words), "{vice:?}: {}", failure.message);
    }
    let (_folder, library) = support::engine::library(&real, Vice::None);
    let verdict = probe(&bundle, &library, ORT);
    assert!(verdict.ok, "the thin library itself does no harm: {verdict:#?}");
}

#[test]
fn a_hostile_library_gets_at_nothing_while_it_is_opened() {
    let Some(real) = support::ort::library() else { return };
    let (_folder, library) = support::engine::library(&real, Vice::Spies);
    let failure = probe(&Source::digits(2).write(), &library, ORT).failure.expect("a reason");
    assert!(failure.message.contains("secret -1, write -1, socket -1, fork -1"), "{}", failure.message);
}

#[test]
fn a_file_that_is_no_library_is_a_reason_and_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libonnxruntime.so");
    let bundle = Source::digits(2).write();
    for content in [None, Some("no library")] {
        if let Some(text) = content {
            std::fs::write(&path, text).unwrap();
        }
        let failure = probe(&bundle, &path, ORT).failure.expect("a reason");
        assert_eq!(failure.code, RefusalCode::ProbeUnavailable);
        assert!(failure.message.contains("libonnxruntime.so"), "{}", failure.message);
    }
    // The bundle is served all the same.
    let chooser = chooser(Some(&path), policy(1), None);
    let verdict = chooser.try_bundle(&files(&bundle), &bundle.manifest);
    assert!(verdict.ok && verdict.engine.unwrap().name == "tract");
    let selection = chooser.selection(verdict.digest).unwrap();
    assert_eq!(selection.refused.len(), 1, "{selection:#?}");
    assert_eq!(selection.refused[0].code, Some(RefusalCode::ProbeUnavailable));
}

/// How `bundle` is run by a device with this library: the setup it was loaded with.
fn loaded(chooser: &EngineChooser, bundle: &Bundle) -> String {
    let verdict = chooser.try_bundle(&files(bundle), &bundle.manifest);
    assert!(verdict.ok, "{verdict:#?}");
    let chosen = chooser.load(verdict.digest, &bundle.manifest, &files(bundle)).unwrap();
    let sample = &Source::digits(2).golden[0].1;
    chosen.model.run(&sample.inputs).unwrap();
    chosen.setup.to_string()
}

/// `slow.onnx`: 11 ms on tract, 6 on ONNX Runtime.
fn slow_bundle() -> Bundle {
    let golden = support::golden(&support::models().join("fixtures/golden/slow"));
    let mut source = Source { golden, ..Source::fixture("slow.onnx") };
    source.limits.p95_latency_ms = 10_000.0;
    source.write()
}

#[test]
fn the_measured_engine_serves_and_a_slow_or_wrong_one_does_not() {
    let Some(real) = support::ort::library() else { return };
    let bundle = Source::digits(2).write();
    let (_slow_folder, slow) = support::engine::library(&real, Vice::Slow);
    let (_wrong_folder, wrong) = support::engine::library(&real, Vice::Wrong);
    // A library that takes 20 ms more than ONNX Runtime loses against tract; the settings can insist.
    let measured = chooser(Some(&slow), policy(1), None);
    assert_eq!(loaded(&measured, &bundle), "tract/f32/1");
    let pinned = Policy { pin: vec!["onnxruntime".parse().unwrap()], ..policy(1) };
    assert_eq!(loaded(&chooser(Some(&slow), pinned, None), &bundle), "onnxruntime/f32/1");
    let chooser = chooser(Some(&wrong), policy(1), None);
    assert_eq!(loaded(&chooser, &bundle), "tract/f32/1");
    let digest = edgefleet_shared::bundle::Manifest::digest_of(
        &std::fs::read(bundle.folder.path().join("manifest.json")).unwrap(),
    );
    let selection = chooser.selection(digest).unwrap();
    assert_eq!(selection.refused[0].code, Some(RefusalCode::GoldenMismatch), "{selection:#?}");
}

#[test]
fn a_choice_is_remembered_until_engine_or_settings_change() {
    let Some(real) = support::ort::library() else { return };
    let (bundle, memory) = (slow_bundle(), tempfile::tempdir().unwrap());
    let folder = Some(memory.path());
    let first = chooser(Some(&real), policy(1), folder);
    let setup = loaded(&first, &bundle);
    let digest = first.try_bundle(&files(&bundle), &bundle.manifest).digest;
    let selection = first.selection(digest).unwrap();
    assert!(selection.rounds >= 1 && selection.passed.len() == 2, "{selection:#?}");
    assert!(selection.passed.iter().all(|passed| passed.median_ms.is_some_and(|ms| ms > 0.0)));
    assert_eq!(selection.chosen().unwrap().setup.to_string(), setup);
    let names = first.engine_names();
    assert!(names.len() == 2 && names[1].starts_with("onnxruntime 1."), "{names:?}");

    // The next start knows it.
    let blobs = files(&bundle);
    let next = chooser(Some(&real), policy(1), folder);
    assert!(next.is_current(digest));
    assert_eq!(next.load(digest, &bundle.manifest, &blobs).unwrap().setup.to_string(), setup);
    // Without the library, tract takes over at once; it gave right answers too.
    let without = chooser(None, policy(1), folder);
    assert!(!without.is_current(digest));
    assert_eq!(without.load(digest, &bundle.manifest, &blobs).unwrap().setup.to_string(), "tract/f32/1");
    // Other settings: the choice no longer holds.
    assert!(!chooser(Some(&real), policy(2), folder).is_current(digest));
    // Damaged memory is none.
    for entry in std::fs::read_dir(memory.path()).unwrap() {
        std::fs::write(entry.unwrap().path(), "{").unwrap();
    }
    assert!(chooser(Some(&real), policy(1), folder).selection(digest).is_none());
}

#[test]
fn where_batches_are_served_one_row_and_a_batch_are_measured_and_both_are_told() {
    let Some(real) = support::ort::library() else { return };
    let mut source = Source::digits(2);
    source.limits.batch_max = 6;
    let measured = |source: &Source, rows: usize| {
        let bundle = source.write();
        let chooser = chooser(Some(&real), Policy { rows, ..policy(2) }, None);
        let digest = chooser.try_bundle(&files(&bundle), &bundle.manifest).digest;
        chooser.selection(digest).unwrap()
    };
    let batches = measured(&source, 8);
    eprintln!("{batches:#?}");
    assert_eq!((batches.passed.len(), batches.rows), (3, 1));
    for passed in &batches.passed {
        let (single, batch) = (passed.median_ms.unwrap(), passed.batch.expect("a batch"));
        assert_eq!(batch.rows, 6, "never more than the bundle's own bound");
        assert!(batch.median_ms > 0.0 && single > 0.0, "{passed:?}");
    }
    let times: Vec<f64> = batches.passed.iter().map(|passed| passed.batch.unwrap().median_ms).collect();
    assert!(times[0] <= times[1] * 1.06 && times[0] <= times[2] * 1.06, "{times:?}");
    // Not configured, or not possible.
    assert!(measured(&source, 1).passed.iter().all(|passed| passed.batch.is_none()));
    source.limits.batch_max = 1;
    assert!(measured(&source, 8).passed.iter().all(|passed| passed.batch.is_none()));
}

#[test]
fn a_replaced_library_counts_after_the_next_start_and_what_runs_goes_on() {
    let Some(real) = support::ort::library() else { return };
    let (bundle, memory) = (Source::digits(2).write(), tempfile::tempdir().unwrap());
    let (_folder, library) = support::engine::library(&real, Vice::None);
    let (_new_folder, new) = support::engine::library(&real, Vice::Wrong);
    let pinned = Policy { prefer: vec!["onnxruntime".parse().unwrap()], ..policy(1) };
    let agent = chooser(Some(&library), pinned.clone(), Some(memory.path()));
    let verdict = agent.try_bundle(&files(&bundle), &bundle.manifest);
    assert!(verdict.ok, "{verdict:#?}");
    let selection = agent.selection(verdict.digest).unwrap();
    // Proved, but not opened here: what lies there is what counts.
    std::fs::copy(&library, library.with_extension("kept")).unwrap();
    std::fs::rename(library.with_extension("kept"), &library).unwrap();
    assert!(!agent.is_current(verdict.digest) && agent.can_try_all());

    // A forced first load: the one of the settings, however slow.
    let only = Policy { pin: vec!["onnxruntime".parse().unwrap()], ..policy(1) };
    let agent = chooser(Some(&library), only, Some(memory.path()));
    let digest = agent.try_bundle(&files(&bundle), &bundle.manifest).digest;
    let chosen = agent.load(digest, &bundle.manifest, &files(&bundle)).unwrap();
    assert_eq!(chosen.setup, ORT);
    std::fs::rename(&new, &library).unwrap();
    assert!(agent.is_current(digest), "what runs here is what was proved");
    assert!(!agent.can_try_all());
    let sample = &Source::digits(2).golden[0].1;
    let answers = |model: &dyn edgefleet_agent::engine::LoadedModel| model.run(&sample.inputs).unwrap();
    let right = answers(&*chosen.model);
    let again = agent.load(digest, &bundle.manifest, &files(&bundle)).unwrap();
    assert_eq!((again.setup, answers(&*again.model)), (ORT, right), "the old one answers");
    // Another bundle is not tried with it, and says why.
    let other = Source::digits(1).write();
    let failure = agent.try_bundle(&files(&other), &other.manifest).failure.unwrap();
    assert!(failure.message.contains("counts after the next start"), "{}", failure.message);
    // Not even if tried again is what was proved forgotten.
    agent.try_bundle(&files(&bundle), &bundle.manifest);
    assert_eq!(agent.selection(digest).unwrap().chosen().unwrap().setup, ORT);
    assert_eq!(selection.passed.len(), 2);
}

#[test]
fn what_the_settings_exclude_runs_nothing_not_even_as_the_last_resort() {
    let bundle = Source::digits(2).write();
    let memory = tempfile::tempdir().unwrap();
    let digest =
        chooser(None, policy(1), Some(memory.path())).try_bundle(&files(&bundle), &bundle.manifest).digest;
    let without = |policy: Policy, folder: Option<&Path>| {
        chooser(None, policy, folder)
            .load(digest, &bundle.manifest, &files(&bundle))
            .err()
            .expect("a refusal")
    };
    let forbid = Policy { forbid: vec!["tract".parse().unwrap()], ..policy(1) };
    let pin = Policy { pin: vec!["onnxruntime".parse().unwrap()], ..policy(1) };
    for (policy, folder) in
        [(forbid.clone(), Some(memory.path())), (forbid, None), (pin, Some(memory.path()))]
    {
        let message = without(policy, folder).message;
        assert!(message.contains("may run under its settings"), "{message}");
    }
}

#[test]
fn settings_that_leave_nothing_are_refused_with_each_reason() {
    let forbid = vec!["*".parse().unwrap()];
    let chooser = chooser(None, Policy { forbid, ..policy(1) }, None);
    let bundle = Source::digits(2).write();
    let failure = chooser.try_bundle(&files(&bundle), &bundle.manifest).failure.unwrap();
    assert!(failure.message.contains("tract/f32/1: the settings forbid"), "{}", failure.message);
}

#[test]
fn a_library_that_is_not_in_use_yet_is_tried_on_what_serves() {
    let Some(real) = support::ort::library() else { return };
    let bundle = Source::digits(2).write();
    let chooser = chooser(None, policy(1), None);
    let tried = |library: &Path| chooser.try_library(library, None, &files(&bundle), &bundle.manifest);
    for (vice, code) in [
        (Vice::None, None),
        (Vice::Wrong, Some(RefusalCode::GoldenMismatch)),
        (Vice::Crashes, Some(RefusalCode::ProbeCrashed)),
    ] {
        let (_folder, library) = support::engine::library(&real, vice);
        let verdict = tried(&library).expect("no settings exclude it");
        assert_eq!(verdict.failure.map(|failure| failure.code), code, "{vice:?}");
    }
    assert_eq!(loaded(&chooser, &bundle), "tract/f32/1", "trying it changed nothing");
    let forbid = Policy { forbid: vec!["onnxruntime".parse().unwrap()], ..policy(1) };
    let forbidden = self::chooser(None, forbid, None);
    assert!(forbidden.try_library(&real, None, &files(&bundle), &bundle.manifest).is_none());
}

#[test]
fn packs_follow_each_other_in_one_process_and_tract_follows_the_last() {
    let Some(real) = support::ort::library() else { return };
    let (bundle, folder) = (slow_bundle(), tempfile::tempdir().unwrap());
    let pin = Policy { prefer: vec!["onnxruntime".parse().unwrap()], ..policy(1) };
    let chooser = chooser(None, pin, None);
    assert_eq!(loaded(&chooser, &bundle), "tract/f32/1");
    let mut models = Vec::new();
    // The third time it is the first again, as a new file of the same content.
    for name in ["first", "second", "first"] {
        let path = folder.path().join(name);
        std::fs::copy(&real, &path).unwrap();
        let pack = PackLibrary { path: path.clone(), version: "1.2.3".into() };
        chooser.engines().set_pack(Some(pack));
        assert_eq!(chooser.engines().library_from(), Some(LibraryFrom::Pack));
        assert!(chooser.engine_names().contains(&"onnxruntime 1.2.3".to_owned()));
        let verdict = chooser.try_bundle(&files(&bundle), &bundle.manifest);
        assert!(verdict.ok, "{verdict:#?}");
        let selection = chooser.selection(verdict.digest).unwrap();
        assert_eq!(selection.passed.len(), 2, "both engines were tried: {selection:#?}");
        let chosen = chooser.load(verdict.digest, &bundle.manifest, &files(&bundle)).unwrap();
        if chosen.setup.engine == EngineName::Onnxruntime {
            assert_eq!(chosen.library, Some(path.clone()));
        }
        models.push(chosen.model);
        // What is loaded does not need the file any more.
        std::fs::remove_file(path).unwrap();
    }
    chooser.engines().set_pack(None);
    assert_eq!(loaded(&chooser, &bundle), "tract/f32/1");
    drop(models);
}
