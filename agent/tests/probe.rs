//! The probe as it runs in the field: a real child process of the real program.

mod support;

use edgefleet_agent::engine::probe::{self, Attempt, BundleFiles, ProbeOptions};
use edgefleet_shared::{
    probe::ProbeVerdict,
    reported::RefusalCode,
    tensor::{Datatype, Tensor},
};
use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};
use support::{Bundle, Source};

fn options() -> ProbeOptions {
    ProbeOptions::new(env!("CARGO_BIN_EXE_edgefleet-agent"))
}
fn probe(bundle: &Bundle) -> ProbeVerdict {
    probe::run(&BundleFiles::in_folder(bundle.folder.path()), &options())
}
/// Code and message of a refusal.
fn refusal(bundle: &Bundle) -> (RefusalCode, String) {
    let verdict = probe(bundle);
    assert!(!verdict.ok);
    let failure = verdict.failure.expect("a reason");
    (failure.code, failure.message)
}

#[test]
fn a_sound_bundle_passes_and_its_verdict_tells_what_was_seen() {
    let bundle = Source::digits(2).write();
    let verdict = probe(&bundle);
    assert!(verdict.ok, "{verdict:#?}");
    assert_eq!(verdict.bundle, bundle.manifest.name());
    assert_eq!(verdict.passed, ["tract/f32/1"]);
    assert_eq!(verdict.golden.len(), 8);
    assert!(verdict.operators.values().sum::<u32>() > 0);
    let measured = verdict.measured.unwrap();
    assert!(measured.p50_ms > 0.0 && measured.p95_ms >= measured.p50_ms && measured.load_ms > 0.0);
    assert!(measured.peak_memory_bytes > 1 << 20);
    let shares: f64 = measured.nodes.iter().map(|(_, share)| share).sum();
    assert!(measured.nodes.len() > 2 && (shares - 1.0).abs() < 0.01, "{:?}", measured.nodes);
    eprintln!("{measured:?} {:?}", verdict.confinement);
}

/// `digits` for clients that send pictures and want words: golden samples are what these send and get.
fn digits_of_pictures(last: &str) -> Source {
    let mut source = Source::digits(1);
    source.labels = (0..10).map(|digit| format!("digit {digit}")).collect();
    let section = format!(
        r#"{{"inputs": [{{"name": "picture", "datatype": "BYTES", "shape": [-1]}}],
             "outputs": [{{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}},
                         {{"name": "word", "datatype": "BYTES", "shape": [-1]}}],
             "pre": [{{"op": "decode_image", "color": "gray"}}, {{"op": "layout", "order": "nhwc"}},
                     {{"op": "normalize", "mean": 0, "std": 15}},
                     {{"op": "reshape", "shape": [0, 64], "to": "image"}}],
             "post": [{{"op": "label", "from": "label", "to": "word"}}{last}]}}"#
    );
    source.pipeline = Some(serde_json::from_str(&section).unwrap());
    for (_, sample) in &mut source.golden {
        let digit = i64::from_le_bytes(sample.outputs[1].data()[..].try_into().unwrap());
        let pixels = sample.inputs[0].data().chunks_exact(4);
        let pixels = pixels.map(|raw| (f32::from_le_bytes(raw.try_into().unwrap()) * 15.0) as u8).collect();
        sample.inputs = vec![text("picture", &png(pixels))];
        sample.outputs[1] = text("word", format!("digit {digit}").as_bytes());
    }
    source
}

fn text(name: &str, bytes: &[u8]) -> Tensor {
    let raw = [&(bytes.len() as u32).to_le_bytes(), bytes].concat();
    Tensor::new(name, Datatype::Bytes, vec![1], raw.into()).unwrap()
}

fn png(pixels: Vec<u8>) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 8, 8);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    file
}

#[test]
fn golden_samples_are_what_clients_send_and_get_around_the_pipeline() {
    let verdict = probe(&digits_of_pictures("").write());
    assert!(verdict.ok, "{verdict:#?}");
    assert_eq!(verdict.passed, ["tract/f32/1"]);
    assert_eq!(verdict.golden.len(), 8);

    let mut other = digits_of_pictures("");
    other.labels[0] = "nought".into();
    let (code, message) = refusal(&other.write());
    assert_eq!(code, RefusalCode::GoldenMismatch, "{message}");
    assert!(message.contains("output `word`"), "{message}");

    let misfit = digits_of_pictures(r#", {"op": "top_k", "k": 11, "from": "probabilities", "indices": "i"}"#);
    let (code, message) = refusal(&misfit.write());
    assert_eq!(code, RefusalCode::InterfaceMismatch, "{message}");
    assert_eq!(message, "pipeline `post` step 2 (`top_k`): cannot take 11 of 10");
}

#[test]
fn the_program_prints_the_same_verdict_as_json() {
    for (version, code) in [(1, 0), (3, 1), (5, 0), (6, 0)] {
        let bundle = Source::digits(version).write();
        let output = Command::new(env!("CARGO_BIN_EXE_edgefleet-agent"))
            .args(["probe", "--output", "json"])
            .arg(bundle.folder.path())
            .output()
            .unwrap();
        let verdict: ProbeVerdict = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{verdict:?}");
        assert_eq!(verdict.ok, code == 0);
    }
}

#[tokio::test]
async fn answers_other_than_the_golden_ones_are_refused_by_sample_place_and_value() {
    let bundle = Source::digits(3).write();
    let files = BundleFiles::in_folder(bundle.folder.path());
    let verdict = probe::run_async(files, options()).await;
    let failure = verdict.failure.unwrap();
    assert_eq!(failure.code, RefusalCode::GoldenMismatch);
    assert!(verdict.golden.iter().any(|result| !result.passed));
    for word in ["golden sample `", "output `", " at [", "expected", "found"] {
        assert!(failure.message.contains(word), "{}", failure.message);
    }
}

#[test]
fn models_that_cannot_be_served_are_refused_with_code_node_and_operator() {
    for (file, code) in [
        ("corrupt.onnx", RefusalCode::ModelInvalid),
        ("not-onnx.onnx", RefusalCode::ModelInvalid),
        ("wrong-shape.onnx", RefusalCode::ModelInvalid),
        ("datatypes.onnx", RefusalCode::InterfaceMismatch),
    ] {
        assert_eq!(refusal(&Source::fixture(file).write()).0, code, "{file}");
    }
    let failure = probe(&Source::fixture("unsupported-op.onnx").write()).failure.unwrap();
    assert_eq!(failure.code, RefusalCode::UnsupportedOperator);
    assert_eq!((failure.node.as_deref(), failure.op.as_deref()), (Some("volume"), Some("Det")));
}

#[test]
fn a_memory_blow_up_costs_the_child_only() {
    for file in ["out-of-memory.onnx", "out-of-memory-load.onnx"] {
        let (code, message) = refusal(&Source::fixture(file).write());
        assert_eq!(code, RefusalCode::OverMemory, "{file}: {message}");
    }
}

#[test]
fn a_model_beyond_the_limits_of_its_manifest_is_refused_with_the_numbers() {
    let mut slow = Source::digits(1);
    slow.limits.p95_latency_ms = 1e-6;
    let (code, message) = refusal(&slow.write());
    assert_eq!(code, RefusalCode::OverLatency);
    assert!(message.contains("0.000001 ms"), "{message}");
    let mut big = Source::digits(1);
    big.limits.peak_memory_bytes = 1 << 20;
    let (code, message) = refusal(&big.write());
    assert_eq!(code, RefusalCode::OverMemory);
    assert!(message.contains("1048576"), "{message}");
}

/// One golden sample that keeps the child computing for many seconds.
fn busy() -> Bundle {
    let mut source = Source::fixture("slow.onnx");
    let rows = 1_000;
    let image = support::floats("image", &[rows, 64], vec![1.0; rows * 64]);
    source.golden.truncate(1);
    source.golden[0].1.inputs = vec![image];
    source.limits.peak_memory_bytes = 4 << 30;
    source.write()
}

#[test]
fn a_hang_is_cut_off() {
    let options = ProbeOptions { time_limit: Duration::from_millis(700), ..options() };
    let verdict = probe::run(&BundleFiles::in_folder(busy().folder.path()), &options);
    let failure = verdict.failure.unwrap();
    assert_eq!(failure.code, RefusalCode::ProbeTimedOut, "{failure:?}");
    assert!(failure.message.contains("running golden sample `00-zero` after 0.7 s"), "{failure:?}");
}

#[test]
fn a_model_of_real_weight_passes_with_its_own_samples() {
    let golden = support::golden(&support::models().join("fixtures/golden/slow"));
    let mut source = Source { golden, ..Source::fixture("slow.onnx") };
    source.limits.p95_latency_ms = 10_000.0; // a debug build on a busy machine
    let verdict = probe(&source.write());
    assert!(verdict.ok, "{:?}", verdict.failure);
    eprintln!("{:?}", verdict.measured);
}

#[test]
fn damaged_missing_and_swapped_blobs_are_named() {
    let bundle = Source::digits(1).write();
    let path = bundle.blob(&bundle.manifest.golden[3].blob);
    let sound = std::fs::read(&path).unwrap();
    let mut damaged = sound.clone();
    damaged[10] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    assert_eq!(refusal(&bundle).0, RefusalCode::DigestMismatch);
    std::fs::write(&path, &sound[1..]).unwrap();
    assert_eq!(refusal(&bundle).0, RefusalCode::SizeMismatch);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(refusal(&bundle).0, RefusalCode::NotFound);
    let elsewhere = bundle.folder.path().join("elsewhere");
    std::fs::write(&elsewhere, &sound).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    assert_eq!(refusal(&bundle).0, RefusalCode::StorageFailed);
    std::fs::write(bundle.folder.path().join("manifest.json"), b"{\"schema\": 9}").unwrap();
    assert_eq!(refusal(&bundle).0, RefusalCode::UnknownSchema);
    std::fs::remove_file(bundle.folder.path().join("manifest.json")).unwrap();
    assert_eq!(refusal(&bundle).0, RefusalCode::ManifestInvalid);
}

#[test]
fn a_bundle_for_other_machines_and_a_missing_program_are_told_apart() {
    let mut foreign = Source::digits(1);
    foreign.targets = vec!["s390x".into()];
    let (code, message) = refusal(&foreign.write());
    assert_eq!(code, RefusalCode::NoArtifact);
    assert!(message.contains("s390x"), "{message}");

    let bundle = Source::digits(1).write();
    let files = BundleFiles::in_folder(bundle.folder.path());
    for exe in ["/nonexistent/edgefleet-agent", "/bin/false"] {
        let failure = probe::run(&files, &ProbeOptions::new(exe)).failure.unwrap();
        assert_eq!(failure.code, RefusalCode::ProbeUnavailable, "{exe}: {failure:?}");
    }
}

/// The shell stands in for the child: `script` is all it does.
fn instead(script: &str) -> RefusalCode {
    let bundle = Source::digits(1).write();
    let options = ProbeOptions {
        runner: vec!["/bin/sh".into(), "-c".into(), script.into()],
        time_limit: Duration::from_millis(500),
        ..options()
    };
    let verdict = probe::run(&BundleFiles::in_folder(bundle.folder.path()), &options);
    assert!(!verdict.ok, "{verdict:?}");
    verdict.failure.unwrap().code
}

#[test]
fn whatever_a_child_does_there_is_a_verdict_in_time() {
    for (script, code) in [
        ("kill -SEGV $$", RefusalCode::ProbeCrashed),
        ("kill -KILL $$", RefusalCode::OverMemory),
        ("exit 3", RefusalCode::ProbeUnavailable),
        ("echo '{\"Done\":{}}'", RefusalCode::ProbeUnavailable),
        // Never ends; closes its output and never ends; hides behind a grandchild that holds the pipe.
        ("exec tail -f /dev/null", RefusalCode::ProbeTimedOut),
        ("exec >&- 2>&-; exec sleep 60", RefusalCode::ProbeTimedOut),
        ("tail -f /dev/null & wait", RefusalCode::ProbeTimedOut),
        // Floods both pipes: what it may say is bounded, and it dies of the closed pipe.
        ("yes >&2 & exec yes", RefusalCode::ProbeCrashed),
    ] {
        assert_eq!(instead(script), code, "{script}");
    }
}

#[test]
fn a_runner_may_stand_before_the_program() {
    let bundle = Source::digits(1).write();
    let options = ProbeOptions { runner: vec!["/usr/bin/env".into(), "--".into()], ..options() };
    let verdict = probe::run(&BundleFiles::in_folder(bundle.folder.path()), &options);
    assert!(verdict.ok, "{verdict:?}");
}

#[test]
fn nothing_a_child_started_outlives_it() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("alive");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // The grandchild holds the pipe's only writing end: the read ends when it is dead.
    let script = format!("sleep 60 >{} & exit 0", pipe.display());
    let reader = std::thread::spawn(move || std::fs::read(pipe).unwrap());
    assert_eq!(instead(&script), RefusalCode::ProbeUnavailable);
    assert!(reader.join().unwrap().is_empty());
}

/// True once the process is gone or a zombie.
fn is_dead(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().is_empty() || rest.starts_with(" Z"))
}

#[test]
fn a_child_dies_with_its_supervisor() {
    // Meanwhile the child writes nothing, so no broken pipe ends it.
    let bundle = busy();
    let mut supervisor = Command::new(env!("CARGO_BIN_EXE_edgefleet-agent"))
        .arg("probe")
        .arg(bundle.folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let until = |what: &str, found: &mut dyn FnMut() -> Option<String>| loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    };
    let id = supervisor.id();
    let child = until("no child came", &mut || {
        let path = format!("/proc/{id}/task/{id}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        children.split_whitespace().next().map(str::to_owned)
    });
    until("the child does not compute", &mut || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // `utime` is the 14th field, in ticks of 10 ms.
        let ticks = stat.rsplit(')').next()?.split_whitespace().nth(11)?.parse::<u64>().ok()?;
        (ticks > 50).then_some(stat)
    });
    let killed = Instant::now();
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    until("the child lives on", &mut || is_dead(&child).then(String::new));
    assert!(killed.elapsed() < Duration::from_secs(1), "it ended by itself, or late: {:?}", killed.elapsed());
}

#[test]
fn a_descriptor_the_parent_left_open_is_closed() {
    let report = |runner: &str| {
        let runner = vec!["/bin/sh".into(), "-c".into(), runner.into(), "sh".into()];
        let report = probe::self_test(vec![Attempt::Descriptor(9)], &ProbeOptions { runner, ..options() });
        report.unwrap().attempts.remove(0).succeeded
    };
    assert!(!report(r#"exec 9</etc/passwd; exec "$@""#));
}

#[test]
fn a_hostile_probe_gets_no_key_no_network_no_process_and_no_environment() {
    let folder = tempfile::tempdir().unwrap();
    let key: PathBuf = folder.path().join("device.key");
    std::fs::write(&key, b"secret").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let socket = folder.path().join("socket");
    let _unix = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut attempts = vec![
        Attempt::Read(key),
        Attempt::Write(folder.path().join("new")),
        Attempt::Connect(address.clone()),
        Attempt::Datagram(address),
        Attempt::UnixSocket(socket),
    ];
    attempts.extend(Attempt::usual());
    let count = attempts.len();
    let report = probe::self_test(attempts, &options()).unwrap();
    eprintln!("{:?}", report.confinement);
    for attempt in &report.attempts {
        eprintln!("{attempt:?}");
    }
    assert_eq!(report.attempts.len(), count, "the child fell silent: {report:?}");
    let holes: Vec<_> = report.attempts.iter().filter(|attempt| attempt.succeeded).collect();
    assert!(holes.is_empty(), "{holes:?}");
    assert!(report.confinement.seccomp == "enforced", "{:?}", report.confinement);
}

#[test]
fn a_model_is_looked_into_and_loaded_without_being_run() {
    let file = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models").join(name);
    let look = |name: &str| probe::look(&file(name), None, &options()).unwrap();

    let digits = look("digits/v1/model.onnx");
    let traits = digits.traits.unwrap();
    assert_eq!((traits.operators["Gemm"], traits.inputs[0].shape.clone()), (1, Some(vec![-1, 64])));
    assert_eq!(traits.weight_bytes, 4 * (64 * 10 + 10));
    assert!(digits.unusable.is_none() && digits.engines[0].refusal.is_none());

    let lacking = look("fixtures/unsupported-op.onnx");
    let tract = &lacking.engines[0];
    assert_eq!(tract.problems.keys().collect::<Vec<_>>(), ["Det"]);
    assert_eq!(tract.refusal.as_ref().unwrap().op.as_deref(), Some("Det"));

    let quantised = look("fixtures/lint.onnx");
    assert!(quantised.engines[0].problems["Softmax"].contains("wrong"));
    let quantised = quantised.traits.unwrap().quantised.unwrap();
    assert_eq!((quantised.softmax, quantised.activations["INT8"], quantised.weights["UINT8"]), (1, 2, 1));

    // 64 GiB at load: the child's loss, and what was seen before is told.
    let greedy = look("fixtures/out-of-memory-load.onnx");
    assert_eq!(greedy.engines[0].refusal.as_ref().unwrap().code, RefusalCode::OverMemory);
    assert!(greedy.traits.unwrap().operators.contains_key("ConstantOfShape"));

    for name in ["fixtures/corrupt.onnx", "fixtures/not-onnx.onnx"] {
        let broken = look(name);
        assert_eq!(broken.unusable.unwrap().code, RefusalCode::ModelInvalid, "{name}");
        assert!(broken.engines.is_empty());
    }
    assert!(probe::look(&file("nowhere.onnx"), None, &options()).is_err());
}
