//! The agent's own operators: ONNX Runtime's answers, hostile attributes, and texts in and out.

mod support;

use edgefleet_agent::engine::{LoadError, LoadedModel, RunError, golden, tract::TractEngine};
use edgefleet_shared::{
    bundle::Interface,
    reported::RefusalCode,
    tensor::{Datatype, Tensor},
};
use proptest::prelude::*;
use support::{floats, onnx, parity, spec, values};
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, tensor_proto::DataType};

fn load(model: Vec<u8>, interface: &Interface) -> Result<impl LoadedModel + use<>, LoadError> {
    TractEngine::new().load_bytes(model, interface).map(|(model, _)| model)
}

#[test]
fn every_parity_case_gets_the_answer_of_onnx_runtime_whole_and_with_an_open_batch() {
    let mut wrong = Vec::new();
    let cases = parity::cases();
    assert!(cases.len() > 200, "{}", cases.len());
    for case in &cases {
        // What is computed from fixed shapes, or gives one answer for all rows, has no open batch.
        let batched = !case.name.starts_with("if-") && !case.name.starts_with("fixed-");
        for batched in if batched { vec![false, true] } else { vec![false] } {
            let model = match load(case.model.clone(), &case.interface(batched)) {
                Ok(model) => model,
                Err(error) => {
                    wrong.push(format!("{}: {error}", case.name));
                    continue;
                }
            };
            match model.run(&case.inputs) {
                Ok(found) => {
                    // Near one half the inverse of the error function loses most digits of ONNX Runtime's FP32.
                    let rtol = if case.name.contains("probit") { 1e-3 } else { 1e-5 };
                    let result = golden::compare(&case.name, &case.outputs, &found, rtol, 2e-6);
                    wrong.extend(result.mismatch.map(|words| format!("{}: {words}", case.name)));
                }
                Err(error) => wrong.push(format!("{}: {error}", case.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn ml(op: &str, outputs: &[&str], attributes: Vec<AttributeProto>) -> Vec<u8> {
    let mut node = onnx::node(op, &["x"], outputs);
    node.domain = "ai.onnx.ml".into();
    node.attribute = attributes;
    let output = |name: &&str| onnx::value(name, DataType::Float, &[-1, 1]);
    onnx::bytes(GraphProto {
        node: vec![node],
        input: vec![onnx::value("x", DataType::Float, &[-1, 2])],
        output: outputs.iter().map(output).collect(),
        ..Default::default()
    })
}

fn one() -> Interface {
    Interface {
        inputs: vec![spec("x", Datatype::Fp32, &[-1, 2])],
        outputs: vec![spec("y", Datatype::Fp32, &[-1, 1])],
    }
}

/// A regressor of one tree: node 0 asks, 1 and 2 answer 10 and 20; `change` spoils it.
fn stump(change: impl Fn(&mut Vec<AttributeProto>)) -> Vec<u8> {
    let mut attributes = vec![
        onnx::ints("nodes_treeids", &[0, 0, 0]),
        onnx::ints("nodes_nodeids", &[0, 1, 2]),
        onnx::ints("nodes_featureids", &[1, 0, 0]),
        onnx::strings("nodes_modes", &["BRANCH_LEQ", "LEAF", "LEAF"]),
        onnx::floats("nodes_values", &[0.5, 0.0, 0.0]),
        onnx::ints("nodes_truenodeids", &[1, 0, 0]),
        onnx::ints("nodes_falsenodeids", &[2, 0, 0]),
        onnx::ints("target_treeids", &[0, 0]),
        onnx::ints("target_nodeids", &[1, 2]),
        onnx::ints("target_ids", &[0, 0]),
        onnx::floats("target_weights", &[10.0, 20.0]),
        onnx::int("n_targets", 1),
    ];
    change(&mut attributes);
    ml("TreeEnsembleRegressor", &["y"], attributes)
}

fn set(attributes: &mut Vec<AttributeProto>, attribute: AttributeProto) {
    attributes.retain(|a| a.name != attribute.name);
    attributes.push(attribute);
}

type Change = Box<dyn Fn(&mut Vec<AttributeProto>)>;

#[test]
fn a_tree_asks_and_answers() {
    let model = load(stump(|_| {}), &one()).unwrap();
    let x = floats("x", &[4, 2], [9.0, 0.5, 9.0, 0.6, 9.0, f32::NAN, 9.0, f32::NEG_INFINITY]);
    assert_eq!(values(&model.run(&[x]).unwrap()[0]), [10.0, 20.0, 20.0, 10.0]);
}

#[test]
fn hostile_trees_are_refused_with_the_name_of_the_node() {
    let changes: Vec<(&str, Change)> = vec![
        ("reached twice", Box::new(|a| set(a, onnx::ints("nodes_truenodeids", &[0, 0, 0])))),
        ("not there", Box::new(|a| set(a, onnx::ints("nodes_truenodeids", &[7, 0, 0])))),
        ("not there", Box::new(|a| set(a, onnx::ints("nodes_falsenodeids", &[i64::MIN, 0, 0])))),
        ("two nodes", Box::new(|a| set(a, onnx::ints("nodes_nodeids", &[0, 1, 1])))),
        ("`nodes_falsenodeids` 2", Box::new(|a| set(a, onnx::ints("nodes_falsenodeids", &[2, 0])))),
        ("`nodes_values` 2", Box::new(|a| set(a, onnx::floats("nodes_values", &[0.5, 0.0])))),
        ("`target_weights` 1", Box::new(|a| set(a, onnx::floats("target_weights", &[10.0])))),
        (
            "does not know",
            Box::new(|a| set(a, onnx::strings("nodes_modes", &["BRANCH_LEQ", "LEAF", "TWIG"]))),
        ),
        ("the index -1", Box::new(|a| set(a, onnx::ints("nodes_featureids", &[-1, 0, 0])))),
        ("ask for 3 columns", Box::new(|a| set(a, onnx::ints("nodes_featureids", &[2, 0, 0])))),
        ("the index 1", Box::new(|a| set(a, onnx::ints("target_ids", &[0, 1])))),
        ("node 9 of tree 0", Box::new(|a| set(a, onnx::ints("target_nodeids", &[1, 9])))),
        ("`n_targets` is 0", Box::new(|a| set(a, onnx::int("n_targets", 0)))),
        ("`n_targets` is 9223372036854775807", Box::new(|a| set(a, onnx::int("n_targets", i64::MAX)))),
        ("no trees", Box::new(|a| a.retain(|a| !a.name.starts_with("nodes_")))),
        ("does not know", Box::new(|a| set(a, onnx::text("post_transform", "SHARPEN")))),
        ("does not know", Box::new(|a| set(a, onnx::text("aggregate_function", "MEDIAN")))),
        ("3 elements for 1 targets", Box::new(|a| set(a, onnx::floats("base_values", &[1.0, 2.0, 3.0])))),
    ];
    for (words, change) in changes {
        let Err(error) = load(stump(change), &one()) else { panic!("{words}: it was loaded") };
        assert!(error.message.contains(words), "{words}: {error}");
        assert_eq!(error.node.as_deref(), Some("my_treeensembleregressor"), "{error}");
    }
}

#[test]
fn a_chain_of_five_thousand_splits_is_walked_to_its_end() {
    let count = 10_001i64;
    let last = count - 1;
    // Splits have even numbers; "true" leads to the leaf behind a split, "false" to the next split.
    let model = stump(|a| {
        let list = |f: &dyn Fn(i64) -> i64| (0..count).map(f).collect::<Vec<i64>>();
        let splits = |n: i64| n % 2 == 0 && n < last;
        set(a, onnx::ints("nodes_treeids", &list(&|_| 0)));
        set(a, onnx::ints("nodes_nodeids", &list(&|n| n)));
        set(a, onnx::ints("nodes_featureids", &list(&|_| 0)));
        set(a, onnx::ints("nodes_truenodeids", &list(&|n| if splits(n) { n + 1 } else { 0 })));
        set(a, onnx::ints("nodes_falsenodeids", &list(&|n| if splits(n) { n + 2 } else { 0 })));
        let modes: Vec<&str> = (0..count).map(|n| if splits(n) { "BRANCH_LT" } else { "LEAF" }).collect();
        set(a, onnx::strings("nodes_modes", &modes));
        set(a, onnx::floats("nodes_values", &vec![0.5; count as usize]));
        set(a, onnx::ints("target_nodeids", &[1, last]));
    });
    let x = floats("x", &[2, 2], [0.25, 0.0, 0.75, 0.0]);
    assert_eq!(values(&load(model, &one()).unwrap().run(&[x]).unwrap()[0]), [10.0, 20.0]);
}

#[test]
fn texts_go_in_and_come_out() {
    let mut node: NodeProto = onnx::node("LabelEncoder", &["x"], &["y"]);
    node.domain = "ai.onnx.ml".into();
    node.attribute = vec![
        onnx::strings("keys_strings", &["rouge", "été"]),
        onnx::strings("values_strings", &["red", "summer"]),
        onnx::text("default_string", "?"),
    ];
    let model = onnx::bytes(GraphProto {
        node: vec![node],
        input: vec![onnx::value("x", DataType::String, &[-1, 1])],
        output: vec![onnx::value("y", DataType::String, &[-1, 1])],
        ..Default::default()
    });
    let interface = Interface {
        inputs: vec![spec("x", Datatype::Bytes, &[-1, 1])],
        outputs: vec![spec("y", Datatype::Bytes, &[-1, 1])],
    };
    let texts = |name: &str, list: &[&[u8]]| {
        let raw = list.iter().flat_map(|t| [&(t.len() as u32).to_le_bytes()[..], t].concat());
        Tensor::new(name, Datatype::Bytes, vec![list.len(), 1], raw.collect::<Vec<u8>>().into()).unwrap()
    };
    let model = load(model, &interface).unwrap();
    let found = model.run(&[texts("x", &["été".as_bytes(), b"", b"rouge"])]).unwrap();
    assert_eq!(found[0], texts("y", &[b"summer", b"?", b"red"]));
    let Err(RunError::BadInput(words)) = model.run(&[texts("x", &[b"rouge", b"\xff"])]) else {
        panic!("bytes that are no text were taken")
    };
    assert!(words.contains("element 1"), "{words}");
}

#[test]
fn a_zip_map_that_feeds_a_node_is_refused_for_there_are_no_dictionaries() {
    let mut zip = onnx::node("ZipMap", &["x"], &["z"]);
    zip.domain = "ai.onnx.ml".into();
    zip.attribute = vec![onnx::ints("classlabels_int64s", &[0, 1])];
    let model = onnx::bytes(GraphProto {
        node: vec![zip, onnx::node("Neg", &["z"], &["y"])],
        input: vec![onnx::value("x", DataType::Float, &[-1, 2])],
        output: vec![onnx::value("y", DataType::Float, &[-1, 2])],
        ..Default::default()
    });
    let interface = Interface { outputs: vec![spec("y", Datatype::Fp32, &[-1, 2])], ..one() };
    let Err(error) = load(model, &interface) else { panic!("it was loaded") };
    assert_eq!(error.code, RefusalCode::UnsupportedOperator, "{error}");
    assert_eq!(error.op.as_deref(), Some("ai.onnx.ml.ZipMap"), "{error}");
}

#[test]
fn the_maximum_of_infinities_is_one() {
    for (op, sign) in [("ReduceMax", -1.0), ("ReduceMin", 1.0)] {
        let node = onnx::with(onnx::node(op, &["x"], &["y"]), onnx::ints("axes", &[1]));
        let mut graph = onnx::around(node);
        graph.output = vec![onnx::value("y", DataType::Float, &[-1, 1])];
        let interface = Interface {
            inputs: vec![spec("x", Datatype::Fp32, &[-1, 4])],
            outputs: vec![spec("y", Datatype::Fp32, &[-1, 1])],
        };
        let model = load(onnx::bytes(graph), &interface).unwrap();
        let infinite = sign * f32::INFINITY;
        let x =
            floats("x", &[2, 4], [infinite, infinite, infinite, infinite, 3.0, infinite, sign * 7.0, 3.0]);
        assert_eq!(values(&model.run(&[x]).unwrap()[0]), [infinite, 3.0], "{op}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn trees_of_random_numbers_are_refused_or_answer_but_never_panic_or_hang(
        children in prop::collection::vec((-1i64..7, -1i64..7), 1..7),
        leaves in prop::collection::vec(any::<bool>(), 6),
        votes in prop::collection::vec((-1i64..7, -1i64..2), 0..6),
    ) {
        let count = children.len();
        let model = stump(|a| {
            let list = |f: &dyn Fn(usize) -> i64| (0..count).map(f).collect::<Vec<i64>>();
            set(a, onnx::ints("nodes_treeids", &list(&|_| 0)));
            set(a, onnx::ints("nodes_nodeids", &list(&|n| n as i64)));
            set(a, onnx::ints("nodes_featureids", &list(&|n| n as i64 % 2)));
            set(a, onnx::ints("nodes_truenodeids", &list(&|n| children[n].0)));
            set(a, onnx::ints("nodes_falsenodeids", &list(&|n| children[n].1)));
            let modes: Vec<&str> = (0..count).map(|n| if leaves[n] { "LEAF" } else { "BRANCH_GTE" }).collect();
            set(a, onnx::strings("nodes_modes", &modes));
            set(a, onnx::floats("nodes_values", &vec![0.5; count]));
            set(a, onnx::ints("target_treeids", &vec![0; votes.len()]));
            set(a, onnx::ints("target_nodeids", &votes.iter().map(|v| v.0).collect::<Vec<_>>()));
            set(a, onnx::ints("target_ids", &votes.iter().map(|v| v.1).collect::<Vec<_>>()));
            set(a, onnx::floats("target_weights", &vec![1.0; votes.len()]));
        });
        match load(model, &one()) {
            Ok(model) => {
                model.run(&[floats("x", &[1, 2], [0.25, 0.75])]).unwrap();
            }
            Err(error) => prop_assert!(!error.message.contains("panicked"), "{error}"),
        }
    }
}
