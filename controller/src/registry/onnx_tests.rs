use super::*;
use proptest::prelude::*;
use std::path::Path;

fn file(path: &str) -> Bytes {
    Bytes::from(std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(path)).unwrap())
}

fn value(name: &str, elem_type: i32, dims: &[i64]) -> ValueInfo {
    let dim = dims.iter().map(|dim| Dim { value: Some(*dim), param: None }).collect();
    let tensor = Some(TensorType { elem_type, shape: Some(ShapeProto { dim }) });
    ValueInfo { name: name.into(), kind: Some(TypeProto { tensor, ..Default::default() }) }
}

fn model(input: Vec<ValueInfo>, output: Vec<ValueInfo>) -> Bytes {
    let graph = GraphProto { input, output, ..Default::default() };
    let model = ModelProto { ir_version: 8, graph: Some(graph.encode_to_vec().into()), ..Default::default() };
    model.encode_to_vec().into()
}

#[test]
fn the_digits_model_is_described_as_it_is() {
    let summary = inspect(file("digits/v1/model.onnx")).unwrap();
    assert_eq!(summary.opsets.get(""), Some(&17));
    assert_eq!(summary.inputs.len(), 1);
    assert_eq!((summary.inputs[0].name.as_str(), summary.inputs[0].datatype), ("image", Datatype::Fp32));
    assert_eq!(summary.inputs[0].shape, [-1, 64]);
    assert_eq!(summary.inputs[0].open, [(0, "batch".to_owned())]);
    let outputs: Vec<_> = summary.outputs.iter().map(|t| (t.name.as_str(), t.shape.clone())).collect();
    assert_eq!(outputs, [("probabilities", vec![-1, 10]), ("label", vec![-1])]);
    assert!(!summary.operators.is_empty());
}

#[test]
fn all_datatypes_of_the_protocol_are_known() {
    let summary = inspect(file("fixtures/datatypes.onnx")).unwrap();
    assert_eq!(summary.inputs.len(), 12);
}

#[test]
fn files_that_are_no_model_are_refused() {
    for path in ["fixtures/corrupt.onnx", "fixtures/not-onnx.onnx", "digits/v1/labels.txt"] {
        let wrong = inspect(file(path)).unwrap_err();
        assert!(matches!(wrong[0], OnnxError::NotOnnx { .. }), "{path}: {wrong:?}");
    }
    assert!(inspect(Bytes::new()).is_err());
    assert!(inspect(model(vec![], vec![])).is_err());
}

#[test]
fn every_truncation_is_refused_or_described_but_never_a_panic() {
    let whole = file("fixtures/slow.onnx");
    for cut in (0..whole.len()).step_by(97) {
        let _ = inspect(whole.slice(..cut));
    }
}

#[test]
fn tensors_that_cannot_be_served_are_all_named() {
    let mut sequence = value("s", 1, &[]);
    sequence.kind = Some(TypeProto { sequence: Some(Bytes::new()), ..Default::default() });
    let untyped = ValueInfo { name: "u".into(), kind: None };
    let wrong = inspect(model(
        vec![value("a", 14, &[1]), value("b", 99, &[1]), sequence, untyped],
        vec![value("c", 1, &[i64::MAX]), value("d", 1, &[1; 9]), value("e", 1, &[-2]), value("f", 1, &[1])],
    ))
    .unwrap_err();
    let text: Vec<_> = wrong.iter().map(ToString::to_string).collect();
    for (index, part) in [
        "input `a`: holds complex64",
        "input `b`: holds elements of the unknown type 99",
        "input `s`: is a sequence",
        "input `u`: has no type",
        "output `c`: has a dimension of 9223372036854775807",
        "output `d`: has 9 dimensions",
        "output `e`: has a dimension of -2",
    ]
    .iter()
    .enumerate()
    {
        assert!(text[index].contains(part), "{part}: {text:#?}");
    }
    assert_eq!(text.len(), 7);
}

#[test]
fn more_tensors_than_a_manifest_can_list_are_refused() {
    let many = (0..65).map(|n| value(&n.to_string(), 1, &[1])).collect();
    let wrong = inspect(model(vec![], many)).unwrap_err();
    assert_eq!(wrong, [OnnxError::TooMany { what: "outputs", found: 65, limit: 64 }]);
}

#[test]
fn weights_listed_as_inputs_are_not_inputs() {
    let graph = GraphProto {
        input: vec![value("x", 1, &[1]), value("w", 1, &[1])],
        output: vec![value("y", 1, &[1])],
        initializer: vec![TensorName { name: "w".into() }],
        ..Default::default()
    };
    let model = ModelProto { ir_version: 3, graph: Some(graph.encode_to_vec().into()), ..Default::default() };
    let summary = inspect(model.encode_to_vec().into()).unwrap();
    assert_eq!(summary.inputs.len(), 1);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = inspect(bytes.into());
    }

    #[test]
    fn no_flipped_byte_makes_it_panic(at in 0usize..2_000, to in any::<u8>()) {
        let mut bytes = file("digits/v1/model.onnx").to_vec();
        let at = at % bytes.len();
        bytes[at] = to;
        let _ = inspect(bytes.into());
    }
}
