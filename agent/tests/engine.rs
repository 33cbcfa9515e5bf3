//! The tract engine on real files: answers, batches, datatypes, and clear words for everything else.

mod support;

use edgefleet_agent::engine::{Engine, LoadError, LoadedModel, RunError, golden, tract::TractEngine};
use edgefleet_shared::{
    bundle::Interface,
    reported::RefusalCode,
    tensor::{Datatype, Tensor},
};
use proptest::prelude::*;
use support::{digits_interface, fixture, floats, onnx, spec, values};
use tract_onnx::pb::{GraphProto, TensorProto, tensor_proto::DataType};

fn load(model: Vec<u8>, interface: &Interface) -> Result<impl LoadedModel + use<>, LoadError> {
    TractEngine::new().load_bytes(model, interface).map(|(model, _)| model)
}
fn refusal(model: Vec<u8>, interface: &Interface) -> LoadError {
    match load(model, interface) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error,
    }
}
fn xy() -> Interface {
    Interface {
        inputs: vec![spec("x", Datatype::Fp32, &[-1, 4])],
        outputs: vec![spec("y", Datatype::Fp32, &[-1, 4])],
    }
}
fn graph_refusal(graph: GraphProto) -> LoadError {
    refusal(onnx::bytes(graph), &xy())
}

#[test]
fn the_version_the_engine_tells_is_the_one_it_is_built_with() {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).unwrap();
    let wanted = format!("name = \"tract-onnx\"\nversion = \"{}\"", TractEngine::new().version());
    assert!(lock.contains(&wanted), "{wanted}");
}

#[test]
fn digits_answer_their_golden_samples_and_the_broken_version_does_not() {
    for (version, good) in [(1, true), (2, true), (3, false), (5, true), (6, true)] {
        let source = support::Source::digits(version);
        let folder = source.write();
        let path = folder.blob(&folder.manifest.artifacts[0].blob);
        let model = TractEngine::new().load(&path, &source.interface).unwrap();
        for (name, sample) in &source.golden {
            let found = model.run(&sample.inputs).unwrap();
            let result = golden::compare(name, &sample.outputs, &found, 1e-3, 1e-4);
            assert_eq!(result.passed, good, "v{version} {result:?}");
        }
    }
}

#[test]
fn a_batch_equals_its_rows_whichever_way_it_is_run() {
    let conv = onnx::with(onnx::node("Conv", &["x", "w"], &["y"]), onnx::ints("kernel_shape", &[3]));
    let graph = GraphProto {
        node: vec![conv],
        initializer: vec![onnx::weights("w", &[2, 1, 3], (0..6).map(|n| n as f32 - 2.5))],
        input: vec![onnx::value("x", DataType::Float, &[-1, 1, 6])],
        output: vec![onnx::value("y", DataType::Float, &[-1, 2, 4])],
        ..Default::default()
    };
    let conv = Interface {
        inputs: vec![spec("x", Datatype::Fp32, &[-1, 1, 6])],
        outputs: vec![spec("y", Datatype::Fp32, &[-1, 2, 4])],
    };
    // Exported for one row: it plans for no other batch, but rows can go through it one by one.
    let shape = TensorProto {
        name: "shape".into(),
        dims: vec![2],
        data_type: DataType::Int64 as i32,
        int64_data: vec![1, 4],
        ..Default::default()
    };
    let mut fixed = onnx::around(onnx::node("Reshape", &["x", "shape"], &["y"]));
    fixed.initializer.push(shape);
    let digits = support::Source::digits(1).model;
    for (name, model, interface, input, row) in [
        ("digits", digits, digits_interface(), "image", vec![64]),
        ("conv", onnx::bytes(graph), conv, "x", vec![1, 6]),
        ("reshape", onnx::bytes(fixed), xy(), "x", vec![4]),
    ] {
        let model = load(model, &interface).unwrap();
        let size: usize = row.iter().product();
        for batch in 1..=8usize {
            let numbers: Vec<f32> = (0..batch * size).map(|n| ((n * 7919) % 17) as f32).collect();
            let shape = |rows: usize| [&[rows][..], &row].concat();
            let whole = model.run(&[floats(input, &shape(batch), numbers.clone())]).unwrap();
            let singles: Vec<Vec<Tensor>> = numbers
                .chunks(size)
                .map(|one| model.run(&[floats(input, &shape(1), one.to_vec())]).unwrap())
                .collect();
            for (position, output) in whole.iter().enumerate() {
                assert_eq!(output.shape()[0], batch, "{name}");
                let rows: Vec<u8> =
                    singles.iter().flat_map(|single| single[position].data().to_vec()).collect();
                if output.datatype() != Datatype::Fp32 {
                    assert_eq!(output.data()[..], rows[..], "{name} {batch}");
                    continue;
                }
                let rows = rows.chunks_exact(4).map(|raw| f32::from_le_bytes(raw.try_into().unwrap()));
                for (have, want) in values(output).into_iter().zip(rows) {
                    assert!(
                        (have - want).abs() <= 1e-5 * want.abs().max(1.0),
                        "{name} {batch}: {have} {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn many_threads_share_a_model_and_its_plans() {
    let model = load(support::Source::digits(2).model, &digits_interface()).unwrap();
    let image = |seed: usize| (0..64).map(move |n| ((n * 13 + seed * 7) % 17) as f32).collect::<Vec<_>>();
    let labels = |batch: usize| -> Vec<i64> {
        let numbers = (0..batch).flat_map(image).collect::<Vec<_>>();
        let outputs = model.run(&[floats("image", &[batch, 64], numbers)]).unwrap();
        outputs[1].data().chunks_exact(8).map(|raw| i64::from_le_bytes(raw.try_into().unwrap())).collect()
    };
    let wanted = labels(40);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (labels, wanted) = (&labels, &wanted);
            // More batch sizes than plans are kept.
            scope.spawn(move || {
                for batch in 1..=40 {
                    let batch = (batch * (thread * 2 + 1)) % 40 + 1;
                    assert_eq!(labels(batch), wanted[..batch]);
                }
            });
        }
    });
}

const ALL: [Datatype; 12] = [
    Datatype::Bool,
    Datatype::Uint8,
    Datatype::Int8,
    Datatype::Int16,
    Datatype::Uint16,
    Datatype::Int32,
    Datatype::Uint32,
    Datatype::Int64,
    Datatype::Uint64,
    Datatype::Fp16,
    Datatype::Fp32,
    Datatype::Fp64,
];

fn side(side: &str) -> Vec<edgefleet_shared::bundle::TensorSpec> {
    let name = |d: &Datatype| format!("{side}_{}", d.as_str().to_lowercase());
    ALL.iter().map(|d| spec(&name(d), *d, &[-1, 3])).collect()
}

#[test]
fn every_datatype_comes_back_bit_for_bit_in_any_order() {
    let interface = Interface { inputs: side("in"), outputs: side("out") };
    let model = load(fixture("datatypes.onnx"), &interface).unwrap();
    for batch in [1usize, 5] {
        let mut inputs: Vec<Tensor> = interface
            .inputs
            .iter()
            .map(|spec| {
                let size = spec.datatype.size().unwrap() * 3 * batch;
                let byte =
                    |n: usize| if spec.datatype == Datatype::Bool { n % 2 } else { (n * 31 + 1) % 120 };
                let raw: Vec<u8> = (0..size).map(|n| byte(n) as u8).collect();
                Tensor::new(&spec.name, spec.datatype, vec![batch, 3], raw.into()).unwrap()
            })
            .collect();
        let wanted: Vec<_> = inputs.iter().map(|t| t.data().clone()).collect();
        inputs.reverse();
        let outputs = model.run(&inputs).unwrap();
        for ((output, spec), wanted) in outputs.iter().zip(&interface.outputs).zip(wanted) {
            assert_eq!((output.name(), output.datatype()), (spec.name.as_str(), spec.datatype));
            assert_eq!(*output.data(), wanted, "{}", spec.name);
        }
    }
    let mut bad = interface.clone();
    bad.inputs[0].datatype = Datatype::Bytes;
    let error = refusal(fixture("datatypes.onnx"), &bad);
    assert_eq!(error.code, RefusalCode::InterfaceMismatch, "{error}");
}

#[test]
fn datatypes_the_engine_lacks_are_refused_by_name() {
    let graph = GraphProto {
        node: vec![onnx::node("Identity", &["x"], &["y"])],
        input: vec![onnx::value("x", DataType::Bfloat16, &[-1, 4])],
        output: vec![onnx::value("y", DataType::Bfloat16, &[-1, 4])],
        ..Default::default()
    };
    let interface = Interface {
        inputs: vec![spec("x", Datatype::Bf16, &[-1, 4])],
        outputs: vec![spec("y", Datatype::Bf16, &[-1, 4])],
    };
    let error = refusal(onnx::bytes(graph), &interface);
    assert_eq!(error.code, RefusalCode::UnsupportedOperator);
    assert!(error.message.contains("BF16"), "{error}");
}

#[test]
fn shapes_made_by_shape_operators_come_out_as_int64() {
    let graph = GraphProto {
        node: vec![onnx::node("Shape", &["x"], &["y"])],
        input: vec![onnx::value("x", DataType::Float, &[-1, 4])],
        output: vec![onnx::value("y", DataType::Int64, &[2])],
        ..Default::default()
    };
    let interface = Interface {
        inputs: vec![spec("x", Datatype::Fp32, &[-1, 4])],
        outputs: vec![spec("y", Datatype::Int64, &[2])],
    };
    let model = load(onnx::bytes(graph), &interface).unwrap();
    for rows in [1usize, 3] {
        let outputs = model.run(&[floats("x", &[rows, 4], vec![0.0; rows * 4])]).unwrap();
        let raw: Vec<u8> = [rows as i64, 4].iter().flat_map(|n| n.to_le_bytes()).collect();
        assert_eq!(outputs[0].data()[..], raw[..]);
    }
}

#[test]
fn what_is_no_model_is_refused_with_its_reason() {
    let digits = digits_interface();
    for (file, code, words) in [
        ("corrupt.onnx", RefusalCode::ModelInvalid, "not ONNX"),
        ("not-onnx.onnx", RefusalCode::ModelInvalid, "not ONNX"),
        ("wrong-shape.onnx", RefusalCode::ModelInvalid, "project"),
        ("unsupported-op.onnx", RefusalCode::UnsupportedOperator, "volume"),
    ] {
        let error = refusal(fixture(file), &digits);
        assert_eq!(error.code, code, "{file}: {error}");
        assert!(error.message.contains(words), "{file}: {error}");
    }
    assert_eq!(refusal(vec![], &digits).code, RefusalCode::ModelInvalid);
    let error = refusal(fixture("unsupported-op.onnx"), &digits);
    assert_eq!((error.node.as_deref(), error.op.as_deref()), (Some("volume"), Some("Det")));
    let error = refusal(fixture("wrong-shape.onnx"), &digits);
    assert_eq!(error.node.as_deref(), Some("project"), "{error}");
}

#[test]
fn an_interface_that_does_not_fit_names_both_sides() {
    let model = || support::Source::digits(1).model;
    let change = |change: fn(&mut Interface)| {
        let mut interface = digits_interface();
        change(&mut interface);
        let error = refusal(model(), &interface);
        assert_eq!(error.code, RefusalCode::InterfaceMismatch, "{error}");
        error.message
    };
    let message = change(|i| i.inputs[0].name = "picture".into());
    assert!(message.contains("picture") && message.contains("image"), "{message}");
    let message = change(|i| i.outputs[1].name = "class".into());
    assert!(message.contains("class") && message.contains("label"), "{message}");
    let message = change(|i| i.inputs[0].shape = vec![-1, 65]);
    assert!(message.contains("65") && message.contains("64"), "{message}");
    let message = change(|i| i.inputs[0].shape = vec![64]);
    assert!(message.contains("[64]"), "{message}");
    let message = change(|i| i.outputs[1].datatype = Datatype::Int32);
    assert!(message.contains("INT32") && message.contains("INT64"), "{message}");
    let message = change(|i| i.inputs.push(spec("more", Datatype::Fp32, &[1])));
    assert!(message.contains("more"), "{message}");
    let mut fewer = digits_interface();
    fewer.outputs.remove(0);
    let outputs = load(model(), &fewer).unwrap().run(&[floats("image", &[1, 64], vec![0.0; 64])]).unwrap();
    assert_eq!(outputs.iter().map(Tensor::name).collect::<Vec<_>>(), ["label"]);
}

#[test]
fn a_request_that_does_not_fit_is_the_callers_fault_and_leaves_the_model_usable() {
    let model = load(support::Source::digits(1).model, &digits_interface()).unwrap();
    let image = |shape: &[usize]| floats("image", shape, vec![0.0; shape.iter().product()]);
    for (bad, words) in [
        (vec![], "takes 1 inputs"),
        (vec![image(&[1, 64]), image(&[1, 64])], "takes 1 inputs"),
        (vec![image(&[1, 64]).with_name("picture")], "picture"),
        (vec![image(&[1, 65])], "[1, 65]"),
        (vec![image(&[64])], "[64]"),
        (vec![image(&[0, 64])], "no elements"),
        (vec![Tensor::new("image", Datatype::Uint8, vec![1, 64], vec![0; 64].into()).unwrap()], "UINT8"),
    ] {
        match model.run(&bad) {
            Err(RunError::BadInput(message)) => assert!(message.contains(words), "{message}"),
            other => panic!("{words}: {other:?}"),
        }
    }
    model.run(&[image(&[2, 64])]).unwrap();
}

#[test]
fn a_byte_that_is_no_truth_value_is_refused() {
    let interface = Interface { inputs: side("in"), outputs: side("out") };
    let model = load(fixture("datatypes.onnx"), &interface).unwrap();
    let inputs: Vec<Tensor> = interface
        .inputs
        .iter()
        .map(|spec| {
            let raw = vec![2; spec.datatype.size().unwrap() * 3];
            Tensor::new(&spec.name, spec.datatype, vec![1, 3], raw.into()).unwrap()
        })
        .collect();
    assert!(matches!(model.run(&inputs), Err(RunError::BadInput(m)) if m.contains("BOOL")));
}

#[test]
fn constructs_that_are_known_to_be_computed_wrongly_are_refused_by_node_and_operator() {
    let qdq = |last: &str| GraphProto {
        node: vec![
            onnx::node("QuantizeLinear", &["x", "s", "z"], &["q"]),
            onnx::node("DequantizeLinear", &["q", "s", "z"], &["d"]),
            onnx::node("Softmax", &["d"], &["m"]),
            onnx::node(last, if last == "Identity" { &["m"] } else { &["m", "s", "z"] }, &["y"]),
        ],
        initializer: vec![
            onnx::weights("s", &[], [0.05]),
            TensorProto {
                name: "z".into(),
                data_type: DataType::Uint8 as i32,
                int32_data: vec![3],
                ..Default::default()
            },
        ],
        ..onnx::around(Default::default())
    };
    let wrong = |node| onnx::around(node);
    let pool = onnx::with(onnx::node("AveragePool", &["x"], &["y"]), onnx::ints("dilations", &[2, 2]));
    let swish = || onnx::node("Swish", &["x"], &["y"]);
    let inner = onnx::around(onnx::with(swish(), onnx::float("alpha", 0.5)));
    let branch = onnx::with(onnx::node("If", &["c"], &["y"]), onnx::graph("then_branch", inner));
    for (graph, op) in [
        (wrong(onnx::with(swish(), onnx::float("alpha", 0.5))), "Swish"),
        (onnx::around(branch), "Swish"),
        (qdq("QuantizeLinear"), "Softmax"),
        (
            wrong(onnx::with(onnx::node("SpaceToDepth", &["x"], &["y"]), onnx::text("mode", "CRD"))),
            "SpaceToDepth",
        ),
        (wrong(onnx::with(pool, onnx::int("ceil_mode", 1))), "AveragePool"),
    ] {
        let error = graph_refusal(graph);
        assert_eq!(error.code, RefusalCode::UnsupportedOperator, "{error}");
        assert_eq!(error.op.as_deref(), Some(op), "{error}");
        assert!(error.node.is_some_and(|n| n.starts_with("my_")));
        assert!(error.message.contains("known to compute wrongly"), "{}", error.message);
    }
    // The limit of the rule: a Softmax that is only fed by quantised values is right.
    let model = load(onnx::bytes(qdq("Identity")), &xy()).unwrap();
    let found = values(&model.run(&[floats("x", &[1, 4], [1.0, 2.0, 3.0, 4.0])]).unwrap()[0]);
    for (have, want) in found.into_iter().zip([0.0321, 0.0871, 0.2369, 0.6439]) {
        assert!((have - want).abs() < 1e-3, "{have} {want}");
    }
}

#[test]
fn operators_of_foreign_domains_are_not_mistaken_for_onnx_ones() {
    for domain in ["com.example", "ai.onnx.ml", "com.microsoft"] {
        let mut node = onnx::node("Relu", &["x"], &["y"]);
        node.domain = domain.into();
        let error = graph_refusal(onnx::around(node));
        assert_eq!(error.op, Some(format!("{domain}.Relu")));
    }
    let mut node = onnx::node("DictVectorizer", &["x"], &["y"]);
    (node.domain, node.name) = ("ai.onnx.ml".into(), "tokenize".into());
    assert_eq!(
        graph_refusal(onnx::around(node)).message,
        "node `tokenize` uses operator `ai.onnx.ml.DictVectorizer`, which engine tract 0.23.9 does not have"
    );
}

#[test]
fn hostile_graphs_are_refused_before_the_engine_sees_them() {
    let relu = || onnx::around(onnx::node("Relu", &["x"], &["y"]));
    let hostile = |change: &dyn Fn(&mut GraphProto)| {
        let mut graph = relu();
        change(&mut graph);
        graph_refusal(graph)
    };
    let weights = |change: &dyn Fn(&mut TensorProto)| {
        let mut tensor = onnx::weights("w", &[1], [1.0]);
        change(&mut tensor);
        hostile(&|g| g.initializer.push(tensor.clone()))
    };
    let deep = (0..20).fold(relu(), |inner, _| {
        onnx::around(onnx::with(onnx::node("If", &["x"], &["y"]), onnx::graph("then_branch", inner)))
    });
    for (error, words) in [
        // tract itself panics on this one.
        (hostile(&|g| g.output[0].name = "nothing".into()), "made by no node"),
        (hostile(&|g| g.node.push(g.node[0].clone())), "made twice"),
        (hostile(&|g| g.input.push(g.input[0].clone())), "declared twice"),
        (hostile(&|g| g.node = vec![onnx::node("Relu", &["x"], &["y"]); 50_001]), "more than 50000 nodes"),
        (graph_refusal(deep), "graphs deep"),
        (weights(&|t| t.data_location = Some(1)), "external file"),
        (weights(&|t| t.dims = vec![i64::MAX, 3]), "impossible shape"),
        (weights(&|t| t.dims = vec![-1]), "impossible shape"),
        (weights(&|t| (t.dims, t.raw_data) = (vec![1 << 40], vec![0; 4])), "could not load"),
        (hostile(&|g| g.sparse_initializer.push(Default::default())), "sparse"),
    ] {
        assert_eq!(error.code, RefusalCode::ModelInvalid, "{error}");
        assert!(error.message.contains(words), "{error}");
    }
    // A cycle: each node waits for the other.
    let error = hostile(&|g| {
        g.node = vec![onnx::node("Add", &["x", "y"], &["a"]), onnx::node("Add", &["a", "x"], &["y"])];
    });
    assert_eq!(error.code, RefusalCode::ModelInvalid, "{error}");
}

#[test]
fn a_recurrent_model_forgets_between_calls() {
    // One GRU over a sequence of 3 with batch 1; weights that keep the state alive.
    let gru = onnx::with(onnx::node("GRU", &["x", "w", "r"], &["", "h"]), onnx::int("hidden_size", 4));
    let numbers = |count: usize| (0..count).map(|n| ((n * 37) % 11) as f32 / 11.0 - 0.4).collect::<Vec<_>>();
    let graph = GraphProto {
        node: vec![gru],
        initializer: vec![
            onnx::weights("w", &[1, 12, 4], numbers(48)),
            onnx::weights("r", &[1, 12, 4], numbers(48)),
        ],
        input: vec![onnx::value("x", DataType::Float, &[3, 1, 4])],
        output: vec![onnx::value("h", DataType::Float, &[1, 1, 4])],
        ..Default::default()
    };
    let interface = Interface {
        inputs: vec![spec("x", Datatype::Fp32, &[3, 1, 4])],
        outputs: vec![spec("h", Datatype::Fp32, &[1, 1, 4])],
    };
    let model = load(onnx::bytes(graph), &interface).unwrap();
    let input = [floats("x", &[3, 1, 4], numbers(12))];
    let first = model.run(&input).unwrap();
    assert!(values(&first[0]).iter().any(|v| *v != 0.0));
    for _ in 0..3 {
        assert_eq!(model.run(&input).unwrap(), first);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_is_refused_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = load(bytes, &digits_interface());
    }

    /// A sound model with some bytes changed: most survive the parser and reach the engine.
    #[test]
    fn damaged_models_never_panic(hits in proptest::collection::vec((0usize..2_900, any::<u8>()), 1..6)) {
        let mut bytes = support::Source::digits(1).model;
        for (at, byte) in hits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(model) = load(bytes, &digits_interface()) {
            let _ = model.run(&[floats("image", &[1, 64], vec![1.0; 64])]);
        }
    }
}
