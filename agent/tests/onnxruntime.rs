//! ONNX Runtime as an engine: the real library, real models, and libraries that are none.

mod support;

use bytes::Bytes;
use edgefleet_agent::engine::{
    Engine, LoadError, LoadedModel, RunError, golden,
    onnxruntime::{LibraryError, OnnxRuntime},
    tract::TractEngine,
};
use edgefleet_shared::{
    bundle::Interface,
    reported::RefusalCode,
    tensor::{Datatype, Tensor},
};
use std::{path::Path, process::Command, sync::Arc};
use support::{digits_interface, fixture, floats, onnx, spec};
use tract_onnx::pb::{GraphProto, tensor_proto::DataType};

/// `None` where a machine was said to have no library.
fn engine() -> Option<OnnxRuntime> {
    support::ort::library().map(|path| OnnxRuntime::open(&path, 1).unwrap())
}

fn load(
    engine: &OnnxRuntime,
    model: Vec<u8>,
    interface: &Interface,
) -> Result<Box<dyn LoadedModel>, LoadError> {
    engine.load_bytes(model, interface).map(|(model, _)| Box::new(model) as Box<dyn LoadedModel>)
}

fn refusal(engine: &OnnxRuntime, model: Vec<u8>, interface: &Interface) -> LoadError {
    load(engine, model, interface).err().expect("a refusal")
}

#[test]
fn it_answers_every_golden_sample_like_the_author_and_like_tract() {
    let Some(engine) = engine() else { return };
    eprintln!("{} {}", engine.name(), engine.version());
    for (version, good) in [(1, true), (2, true), (3, false), (5, true), (6, true)] {
        let source = support::Source::digits(version);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, &source.model).unwrap();
        let model = engine.load(&path, &source.interface).unwrap();
        let tract = TractEngine::new().load(&path, &source.interface).unwrap();
        let mut passed = true;
        for (name, sample) in &source.golden {
            let found = model.run(&sample.inputs).unwrap();
            passed &= golden::compare(name, &sample.outputs, &found, 1e-3, 1e-4).passed;
            let other = tract.run(&sample.inputs).unwrap();
            assert!(golden::compare(name, &other, &found, 1e-3, 1e-4).passed, "v{version} {name}");
        }
        assert_eq!(passed, good, "v{version}");
    }
}

/// The name, the ONNX type and the datatype of each.
const KINDS: [(&str, DataType, Datatype); 14] = [
    ("bool", DataType::Bool, Datatype::Bool),
    ("uint8", DataType::Uint8, Datatype::Uint8),
    ("uint16", DataType::Uint16, Datatype::Uint16),
    ("uint32", DataType::Uint32, Datatype::Uint32),
    ("uint64", DataType::Uint64, Datatype::Uint64),
    ("int8", DataType::Int8, Datatype::Int8),
    ("int16", DataType::Int16, Datatype::Int16),
    ("int32", DataType::Int32, Datatype::Int32),
    ("int64", DataType::Int64, Datatype::Int64),
    ("fp16", DataType::Float16, Datatype::Fp16),
    ("bf16", DataType::Bfloat16, Datatype::Bf16),
    ("fp32", DataType::Float, Datatype::Fp32),
    ("fp64", DataType::Double, Datatype::Fp64),
    ("bytes", DataType::String, Datatype::Bytes),
];

#[test]
fn every_datatype_goes_through_bit_for_bit_wherever_its_bytes_lie() {
    let Some(engine) = engine() else { return };
    for (name, kind, datatype) in KINDS {
        let graph = GraphProto {
            node: vec![onnx::node("Identity", &["x"], &["y"])],
            input: vec![onnx::value("x", kind, &[-1, 3])],
            output: vec![onnx::value("y", kind, &[-1, 3])],
            ..Default::default()
        };
        let side = |tensor: &str| vec![spec(tensor, datatype, &[-1, 3])];
        let interface = Interface { inputs: side("x"), outputs: side("y") };
        let model = load(&engine, onnx::bytes(graph), &interface).unwrap_or_else(|e| panic!("{name}: {e}"));
        for batch in [1usize, 4] {
            let count = batch * 3;
            let raw: Vec<u8> = match datatype.size() {
                Some(size) => (0..size * count)
                    .map(|n| if datatype == Datatype::Bool { n as u8 % 2 } else { (n * 37 + 3) as u8 })
                    .collect(),
                // Empty, with a zero byte, not UTF-8.
                None => (0..count)
                    .flat_map(|n| {
                        let text = [&b""[..], b"a\0b", b"\xff\xfe", b"edge"][n % 4];
                        [&(text.len() as u32).to_le_bytes()[..], text].concat()
                    })
                    .collect(),
            };
            for shift in [0usize, 1] {
                let moved = Bytes::from([vec![0; shift], raw.clone()].concat()).slice(shift..);
                let input = Tensor::new("x", datatype, vec![batch, 3], moved).unwrap();
                let outputs = model.run(&[input]).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!((outputs[0].name(), outputs[0].datatype()), ("y", datatype));
                assert_eq!(outputs[0].shape(), [batch, 3]);
                assert_eq!(outputs[0].data()[..], raw[..], "{name}, shifted by {shift}");
            }
        }
    }
}

#[test]
fn a_scalar_and_an_empty_answer_come_out_as_they_are() {
    let Some(engine) = engine() else { return };
    let graph = GraphProto {
        node: vec![onnx::node("NonZero", &["x"], &["y"])],
        input: vec![onnx::value("x", DataType::Float, &[-1])],
        output: vec![onnx::value("y", DataType::Int64, &[1, -1])],
        ..Default::default()
    };
    let interface = Interface {
        inputs: vec![spec("x", Datatype::Fp32, &[-1])],
        outputs: vec![spec("y", Datatype::Int64, &[1, -1])],
    };
    let model = load(&engine, onnx::bytes(graph), &interface).unwrap();
    let outputs = model.run(&[floats("x", &[2], [0.0, 0.0])]).unwrap();
    assert_eq!((outputs[0].shape(), outputs[0].data().len()), (&[1usize, 0][..], 0));

    let graph = GraphProto {
        node: vec![onnx::node("Abs", &["x"], &["y"])],
        input: vec![onnx::value("x", DataType::Float, &[])],
        output: vec![onnx::value("y", DataType::Float, &[])],
        ..Default::default()
    };
    let interface = Interface {
        inputs: vec![spec("x", Datatype::Fp32, &[])],
        outputs: vec![spec("y", Datatype::Fp32, &[])],
    };
    let model = load(&engine, onnx::bytes(graph), &interface).unwrap();
    let outputs = model.run(&[floats("x", &[], [-2.0])]).unwrap();
    assert_eq!((outputs[0].shape().len(), support::values(&outputs[0])), (0, vec![2.0]));
}

#[test]
fn what_is_no_model_is_refused_with_its_reason() {
    let Some(engine) = engine() else { return };
    let digits = digits_interface();
    for (file, code, words) in [
        ("corrupt.onnx", RefusalCode::ModelInvalid, "not ONNX"),
        ("not-onnx.onnx", RefusalCode::ModelInvalid, "not ONNX"),
        ("wrong-shape.onnx", RefusalCode::ModelInvalid, "project"),
    ] {
        let error = refusal(&engine, fixture(file), &digits);
        assert_eq!(error.code, code, "{file}: {error}");
        assert!(error.message.contains(words), "{file}: {error}");
    }
    let mut foreign = onnx::node("Magic", &["x"], &["y"]);
    foreign.domain = "com.example".into();
    let mut model = onnx::model(onnx::around(foreign));
    model.opset_import.push(tract_onnx::pb::OperatorSetIdProto { domain: "com.example".into(), version: 1 });
    let error = refusal(&engine, prost::Message::encode_to_vec(&model), &xy());
    assert_eq!(
        (error.code, error.op.as_deref()),
        (RefusalCode::UnsupportedOperator, Some("com.example.Magic"))
    );
}

fn xy() -> Interface {
    Interface {
        inputs: vec![spec("x", Datatype::Fp32, &[-1, 4])],
        outputs: vec![spec("y", Datatype::Fp32, &[-1, 4])],
    }
}

#[test]
fn weights_outside_the_file_are_refused_before_the_library_could_read_them() {
    let Some(engine) = engine() else { return };
    let mut graph = onnx::around(onnx::node("Add", &["x", "w"], &["y"]));
    let mut outside = onnx::weights("w", &[4], []);
    outside.data_location = Some(1);
    outside
        .external_data
        .push(tract_onnx::pb::StringStringEntryProto { key: "location".into(), value: "/etc/passwd".into() });
    graph.initializer.push(outside);
    let error = refusal(&engine, onnx::bytes(graph), &xy());
    assert!(error.message.contains("external file"), "{error}");
}

#[test]
fn a_run_that_fails_names_its_node_and_leaves_the_model_usable() {
    let Some(engine) = engine() else { return };
    // Fits any batch but only works for one row.
    let mut graph = onnx::around(onnx::node("Reshape", &["x", "shape"], &["y"]));
    graph.initializer.push(tract_onnx::pb::TensorProto {
        name: "shape".into(),
        dims: vec![2],
        data_type: DataType::Int64 as i32,
        int64_data: vec![1, 4],
        ..Default::default()
    });
    let model = load(&engine, onnx::bytes(graph), &xy()).unwrap();
    let error = model.run(&[floats("x", &[2, 4], [0.0; 8])]).unwrap_err();
    let RunError::Engine(words) = &error else { panic!("{error:?}") };
    assert!(words.contains("my_reshape") && words.contains("onnxruntime"), "{words}");
    assert!(matches!(model.run(&[floats("x", &[1, 5], [0.0; 5])]), Err(RunError::BadInput(_))));
    assert!(matches!(model.run(&[]), Err(RunError::BadInput(_))));
    let outputs = model.run(&[floats("x", &[1, 4], [1.0, 2.0, 3.0, 4.0])]).unwrap();
    assert_eq!(support::values(&outputs[0]), [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn an_interface_that_does_not_fit_names_both_sides() {
    let Some(engine) = engine() else { return };
    let mut interface = digits_interface();
    interface.inputs[0].name = "picture".into();
    let error = refusal(&engine, support::Source::digits(1).model, &interface);
    assert_eq!(error.code, RefusalCode::InterfaceMismatch);
    assert!(error.message.contains("picture") && error.message.contains("image"), "{error}");
    let mut fewer = digits_interface();
    fewer.outputs.remove(0);
    let model = load(&engine, support::Source::digits(1).model, &fewer).unwrap();
    let outputs = model.run(&[floats("image", &[1, 64], vec![0.0; 64])]).unwrap();
    assert_eq!(outputs.iter().map(Tensor::name).collect::<Vec<_>>(), ["label"]);
}

#[test]
fn many_threads_share_one_model() {
    let Some(engine) = engine() else { return };
    for threads in [1, 2] {
        let engine = engine.with_threads(threads);
        let model = load(&engine, support::Source::digits(2).model, &digits_interface()).unwrap();
        let model: Arc<dyn LoadedModel> = model.into();
        let image =
            |seed: usize| floats("image", &[1, 64], (0..64).map(move |n| ((n * 13 + seed * 7) % 17) as f32));
        let wanted: Vec<_> = (0..8).map(|seed| model.run(&[image(seed)]).unwrap()).collect();
        std::thread::scope(|scope| {
            for (seed, wanted) in wanted.iter().enumerate() {
                let model = model.clone();
                scope.spawn(move || {
                    for _ in 0..200 {
                        assert_eq!(model.run(&[image(seed)]).unwrap(), *wanted);
                    }
                });
            }
        });
    }
}

/// A shared library made from C for one test.
fn c_library(folder: &Path, source: &str) -> std::path::PathBuf {
    let (code, library) = (folder.join("library.c"), folder.join("libonnxruntime.so.1.99.0"));
    std::fs::write(&code, source).unwrap();
    let done = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status().unwrap();
    assert!(done.success());
    library
}

#[test]
fn a_library_that_is_none_or_too_old_is_refused_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| OnnxRuntime::open(path, 1).err().unwrap();
    let other = c_library(folder.path(), "int something_else(void) { return 1; }");
    assert!(matches!(open(&other), LibraryError::AnotherLibrary { .. }), "{}", open(&other));
    let folder = tempfile::tempdir().unwrap();
    let old = c_library(
        folder.path(),
        "static const char *version(void) { return \"1.9.1\"; }
         static const void *api(unsigned v) { (void)v; return 0; }
         static const void *base[2] = {(void *)api, (void *)version};
         const void *OrtGetApiBase(void) { return base; }",
    );
    let error = open(&old);
    assert!(matches!(&error, LibraryError::TooOld { found, .. } if found == "1.9.1"), "{error}");
    assert!(error.to_string().contains("at least 1.17"), "{error}");
    let error = open(&folder.path().join("missing.so"));
    assert!(error.to_string().contains("missing.so"), "{error}");
}
