use super::*;
use edgefleet_shared::{bundle::TensorSpec, tensor::Datatype};
use proptest::prelude::*;
use std::{path::Path, time::Instant};

fn file(path: &str) -> Bytes {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    Bytes::from(std::fs::read(models.join(path)).unwrap())
}

fn spec(name: &str, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype: Datatype::Fp32, shape: shape.to_vec() }
}

fn interface(x: &[i64]) -> Interface {
    Interface { inputs: vec![spec("x", x)], outputs: vec![spec("logits", &[x[0], 3])] }
}

fn ops(model: &Bytes) -> Vec<String> {
    let whole = Message::parse(model.clone()).unwrap();
    let graph = whole.bytes(field::MODEL_GRAPH).next().unwrap().clone();
    let graph = Graph::parse(&graph, 0, &mut Budget::new()).unwrap();
    graph.nodes.into_iter().map(|node| node.op).collect()
}

fn words(folded: &Folded) -> Vec<String> {
    folded.done.iter().map(ToString::to_string).collect()
}

#[test]
fn conditions_norms_and_shapes_are_folded_and_what_fed_them_goes() {
    let model = file("fixtures/folding/model.onnx");
    let folded = fold(&model, &interface(&[1, 3, 16, 16])).unwrap();
    assert_eq!(
        words(&folded),
        [
            "fixed dimension 0 of `x` at 1, as bundle.toml says",
            "fixed dimension 2 of `x` at 16, as bundle.toml says",
            "fixed dimension 3 of `x` at 16, as bundle.toml says",
            "fixed dimension 0 of `logits` at 1, as bundle.toml says",
            "`resize` (If) is always true: kept that branch",
            "`nested` (If) is always false: kept that branch",
            "folded `norm1` (BatchNormalization) into the weights of `conv1`",
            "folded `norm2` (BatchNormalization) into the weights of `conv2`",
            "folded `norm3` (BatchNormalization) into the weights of `deconv`",
            "folded `norm5` (BatchNormalization) into the weights of `gemm1`",
            "folded `norm6` (BatchNormalization) into the weights of `gemm2`",
            "removed 6 nodes that nothing reads",
        ]
    );
    let left = ops(&folded.bytes);
    assert_eq!(left.iter().filter(|op| *op == "BatchNormalization").count(), 1, "{left:?}");
    assert!(!left.iter().any(|op| matches!(op.as_str(), "If" | "Shape" | "Less" | "Concat")), "{left:?}");
    assert!(folded.bytes.len() < model.len());
    // The same again from the same, and nothing more to do.
    assert_eq!(fold(&model, &interface(&[1, 3, 16, 16])).unwrap().bytes, folded.bytes);
    assert!(fold(&folded.bytes, &interface(&[1, 3, 16, 16])).is_none());
}

#[test]
fn a_condition_that_the_manifest_leaves_open_stays() {
    let folded = fold(&file("fixtures/folding/model.onnx"), &interface(&[-1, 3, -1, -1])).unwrap();
    let left = ops(&folded.bytes);
    assert!(left.iter().any(|op| op == "If"), "{left:?}");
    assert!(!words(&folded).iter().any(|line| line.contains("If") || line.contains("fixed")));
    let other = fold(&file("fixtures/folding/model.onnx"), &interface(&[-1, 3, 64, -1])).unwrap();
    assert!(words(&other).contains(&"`resize` (If) is always false: kept that branch".to_owned()));
}

#[test]
fn what_only_looks_as_if_it_could_be_folded_is_left_alone() {
    let inputs = vec![spec("x", &[-1, 3, 16, 16]), spec("flag", &[]), spec("gain", &[1])];
    let interface = Interface { inputs, outputs: vec![] };
    let model = file("fixtures/fold-kept.onnx");
    let found = ops(&model);
    let count = |op: &str| found.iter().filter(|found| *found == op).count();
    assert_eq!((count("If"), count("BatchNormalization")), (2, 4), "it is understood");
    assert!(fold(&model, &interface).is_none());
}

#[test]
fn models_without_anything_to_fold_stay_byte_for_byte() {
    for path in ["digits/v1/model.onnx", "exercise/v1/model-int8.onnx", "orientation/v1/model.onnx"] {
        assert!(fold(&file(path), &Interface { inputs: vec![], outputs: vec![] }).is_none(), "{path}");
    }
    for path in ["fixtures/corrupt.onnx", "fixtures/not-onnx.onnx"] {
        assert!(fold(&file(path), &interface(&[1, 3, 16, 16])).is_none(), "{path}");
    }
}

#[test]
fn a_graph_that_comes_in_two_parts_is_left_to_the_engines() {
    let mut twice = file("fixtures/folding/model.onnx").to_vec();
    twice.extend(twice.clone());
    assert!(fold(&twice.into(), &interface(&[1, 3, 16, 16])).is_none());
}

/// A model of one graph in which `nodes` are the encoded nodes.
fn model(nodes: &[Message]) -> Bytes {
    let mut graph = Message::default();
    nodes.iter().for_each(|node| graph.push_message(field::NODES, node));
    let mut opset = Message::default();
    opset.push_int(field::OPSET_VERSION, 17);
    let mut whole = Message::default();
    whole.push_int(field::MODEL_IR, 8);
    whole.push_message(field::MODEL_OPSETS, &opset);
    whole.push_message(field::MODEL_GRAPH, &graph);
    whole.to_bytes()
}

fn node(op: &str, input: &str, output: &str) -> Message {
    let mut node = Message::default();
    node.push_text(field::NODE_INPUT, input);
    node.push_text(field::NODE_OUTPUT, output);
    node.push_text(field::NODE_OP, op);
    node
}

#[test]
fn hostile_graphs_cost_little() {
    let started = Instant::now();
    let any = Interface { inputs: vec![], outputs: vec![] };
    // Ifs inside Ifs, deeper than anything real.
    let mut inner = node("Relu", "x", "y");
    for _ in 0..64 {
        let mut graph = Message::default();
        graph.push_message(field::NODES, &inner);
        let mut attribute = Message::default();
        attribute.push_text(field::ATTRIBUTE_NAME, "then_branch");
        attribute.push_message(field::ATTRIBUTE_G, &graph);
        inner = node("If", "c", "y");
        inner.push_message(field::NODE_ATTRIBUTE, &attribute);
    }
    assert!(fold(&model(&[inner]), &any).is_none());
    // More nodes than the agent takes.
    let many: Vec<_> = (0..60_000).map(|n| node("Relu", &format!("a{n}"), &format!("a{}", n + 1))).collect();
    assert!(fold(&model(&many), &any).is_none());
    // A long chain, and one that bites its own tail.
    let chain: Vec<_> =
        (0..40_000).map(|n| node("Identity", &format!("a{n}"), &format!("a{}", n + 1))).collect();
    assert!(fold(&model(&chain), &any).is_none());
    let ring = [node("If", "a", "b"), node("BatchNormalization", "b", "a"), node("Conv", "a", "b")];
    assert!(fold(&model(&ring), &any).is_none());
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_changed_byte_makes_it_panic(at in 0usize..5_000, to in any::<u8>(), cut in 0usize..5_000) {
        let mut bytes = file("fixtures/folding/model.onnx").to_vec();
        let length = bytes.len();
        bytes[at % length] = to;
        let _ = fold(&Bytes::from(bytes.clone()), &interface(&[1, 3, 16, 16]));
        bytes.truncate(cut % length);
        let _ = fold(&bytes.into(), &interface(&[1, 3, 16, 16]));
    }
}
