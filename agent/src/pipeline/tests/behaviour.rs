//! What no reference says: mistakes, hostile values, memory of streams.

use super::*;
use proptest::prelude::*;

fn spec(name: &str, datatype: &str, shape: &[i64]) -> TensorSpec {
    serde_json::from_value(json!({"name": name, "datatype": datatype, "shape": shape})).unwrap()
}

fn floats(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::new(name, Datatype::Fp32, shape.to_vec(), raw.into()).unwrap()
}

/// A pipeline around a model that takes and gives `model`.
fn compiled(
    inputs: &[TensorSpec],
    pre: &Json,
    model: (&[TensorSpec], &[TensorSpec]),
    post: &Json,
    outputs: &[TensorSpec],
) -> Result<Pipeline, String> {
    let section = json!({"inputs": inputs, "outputs": outputs, "pre": pre, "post": post});
    let section: PipelineSpec = serde_json::from_value(section).map_err(|e| e.to_string())?;
    let model = Interface { inputs: model.0.to_vec(), outputs: model.1.to_vec() };
    Pipeline::compile(&section, &model, &[]).map_err(|e| e.to_string())
}

/// Steps after a model that gives `y`.
fn post(y: TensorSpec, steps: &Json, outputs: &[TensorSpec]) -> Result<Pipeline, String> {
    let x = [spec("x", "FP32", &[-1, 2])];
    compiled(&x, &json!([]), (&x, &[y]), steps, outputs)
}

#[test]
fn what_does_not_fit_is_named_with_side_step_and_operation() {
    let x = [spec("x", "FP32", &[-1, 3, 8, 8])];
    let bytes = [spec("x", "BYTES", &[-1])];
    let decode = json!({"op": "decode_image"});
    for (inputs, steps, said) in [
        (&x, json!([decode]), "`pre` step 1 (`decode_image`): decodes BYTES"),
        (
            &bytes,
            json!([decode, {"op": "normalize", "mean": 0, "std": 1}]),
            "step 2 (`normalize`): works on numbers, not on images of any size; put `layout`",
        ),
        (
            &bytes,
            json!([decode, {"op": "layout", "order": "nchw"}]),
            "`pre`: does not end with the model's input: `x` is UINT8 [-1, 3, -1, -1], not FP32",
        ),
        (
            &x,
            json!([{"op": "normalize", "mean": [0, 0, 0], "std": 1}]),
            "`mean` has 3 numbers, but axis 3 of [-1, 3, 8, 8] has 8 elements",
        ),
        (&x, json!([{"op": "scale", "from": "y"}]), "there is no tensor `y` here, only x"),
        (
            &x,
            json!([{"op": "scale", "to": "y"}, {"op": "sigmoid", "from": "z"}]),
            "step 2 (`sigmoid`): there is no tensor `z` here, only x, y",
        ),
        (&x, json!([{"op": "select", "columns": [8]}]), "column 8"),
        (&x, json!([{"op": "concat", "parts": ["x", "x"]}]), "needs `to`"),
        (&x, json!([{"op": "transpose", "axes": [0, 1]}]), "orders 2 dimensions"),
        (&x, json!([{"op": "reshape", "shape": [0, 5]}]), ""),
        (&x, json!([{"op": "crop", "center": [9, 9]}]), "works on images"),
        (&x, json!([{"op": "top_k", "k": 9, "indices": "i"}]), "cannot take 9 of 8"),
        (&x, json!([{"op": "fft"}]), "does not end"),
        (&x, json!([{"op": "label"}]), "names classes by index"),
        (&x, json!([{"op": "template", "text": "{x", "to": "t"}]), "a single brace"),
        (&x, json!([{"op": "template", "text": "plain", "to": "t"}]), "names no tensor"),
    ] {
        let why = compiled(inputs, &steps, (&x, &x), &json!([]), &x).unwrap_err();
        assert!(why.contains(said), "{why}\nlacks {said}");
    }
    let three = [spec("a", "FP32", &[-1, 3]), spec("b", "FP32", &[-1, 3])];
    let why = compiled(&three, &json!([{"op": "sigmoid"}]), (&three, &x), &json!([]), &x).unwrap_err();
    assert!(why.contains("needs `from`: one of a, b"), "{why}");
    let mixed = [spec("a", "BOOL", &[-1, 1]), spec("b", "UINT8", &[-1, 1])];
    for parts in [["a", "b"], ["b", "a"]] {
        let steps = json!([{"op": "concat", "parts": parts, "to": "c"}]);
        let why = compiled(&mixed, &steps, (&mixed, &x), &json!([]), &x).unwrap_err();
        assert!(why.contains("put `cast` before it"), "{why}");
    }
    let boxes = spec("y", "FP32", &[-1, -1, 6]);
    let why = post(boxes.clone(), &json!([{"op": "scale_boxes"}]), &[boxes]).unwrap_err();
    assert!(why.contains("no model input is made of images"), "{why}");
}

#[test]
fn requests_that_are_not_as_declared_are_the_clients_mistake() {
    let x = [spec("x", "FP32", &[-1, 2])];
    let pipeline = compiled(&x, &json!([{"op": "scale", "mul": 2}]), (&x, &x), &json!([]), &x).unwrap();
    let good = floats("x", &[1, 2], &[1.0, f32::NAN]);
    let (done, _) = pipeline.prepare(std::slice::from_ref(&good)).unwrap();
    assert_eq!(done[0].data()[..4], 2f32.to_le_bytes());
    for (bad, said) in [
        (vec![], "input `x` is missing"),
        (vec![good.clone(), good.clone()], "came twice"),
        (vec![good.clone(), floats("z", &[1], &[0.0])], "input `z` is unknown; there are x"),
        (vec![floats("x", &[1, 3], &[0.0; 3])], "is FP32 [1, 3], not FP32 [-1, 2]"),
        (vec![floats("x", &[2], &[0.0; 2])], "is FP32 [2], not"),
    ] {
        let e = pipeline.prepare(&bad).unwrap_err();
        assert!(e.is_clients() && e.to_string().contains(said), "{e}\nlacks {said}");
    }
    let e = pipeline.finish(vec![], &Context::default()).unwrap_err();
    assert!(!e.is_clients() && e.to_string() == "the model's output `x` is missing", "{e}");
    assert_eq!(pipeline.finish(vec![good.clone()], &Context::default()).unwrap(), [good]);
}

#[test]
fn a_batch_of_none_passes_and_nan_never_becomes_a_class() {
    let class = [spec("y", "INT64", &[-1])];
    let argmax = post(spec("y", "FP32", &[-1, 3]), &json!([{"op": "argmax"}]), &class).unwrap();
    let empty = argmax.finish(vec![floats("y", &[0, 3], &[])], &Context::default()).unwrap();
    assert_eq!(empty[0].shape(), [0]);
    let nan = floats("y", &[2, 3], &[0.0, 1.0, 2.0, 0.0, f32::NAN, 0.0]);
    let e = argmax.finish(vec![nan.clone()], &Context::default()).unwrap_err();
    assert_eq!(e.to_string(), "pipeline `post` step 1 (`argmax`): score 1 of row 1 is NaN");
    let steps = json!([{"op": "top_k", "k": 2, "indices": "i"}]);
    let top = post(spec("y", "FP32", &[-1, 3]), &steps, &[spec("i", "INT64", &[-1, 2])]).unwrap();
    assert!(top.finish(vec![nan], &Context::default()).is_err());
    let none = floats("y", &[1, 0], &[]);
    let open = post(spec("y", "FP32", &[-1, -1]), &json!([{"op": "argmax"}]), &class).unwrap();
    assert!(open.finish(vec![none], &Context::default()).is_err());
}

#[test]
fn an_empty_tensor_excuses_no_huge_dimension() {
    let y = spec("y", "FP32", &[-1, -1]);
    let pipeline = post(y.clone(), &json!([{"op": "softmax"}]), &[y]).unwrap();
    let e = pipeline.finish(vec![floats("y", &[0, 1 << 40], &[])], &Context::default()).unwrap_err();
    assert!(matches!(e, PipelineError::Post { fault: Fault::TooLarge { .. }, .. }), "{e}");
}

#[test]
fn little_input_never_becomes_much_memory() {
    let x = [spec("x", "INT64", &[-1])];
    let hot = [spec("x", "FP32", &[-1, 65_536])];
    let pipeline =
        compiled(&x, &json!([{"op": "one_hot", "depth": 65_536}]), (&hot, &hot), &json!([]), &hot).unwrap();
    let many = Tensor::new("x", Datatype::Int64, vec![4096], vec![0u8; 8 * 4096].into()).unwrap();
    let e = pipeline.prepare(&[many]).unwrap_err();
    let too_large = matches!(&e, PipelineError::Pre { fault: Fault::TooLarge { .. }, .. });
    assert!(too_large && e.to_string().contains("1073741824"), "{e}");
}

#[test]
fn what_no_category_or_label_knows_is_said() {
    let x = [spec("x", "BYTES", &[-1])];
    let y = [spec("x", "INT64", &[-1])];
    let steps = json!([{"op": "category_map", "values": ["a"]}]);
    let pipeline = compiled(&x, &steps, (&y, &y), &json!([]), &y).unwrap();
    let text = Tensor::new("x", Datatype::Bytes, vec![1], b"\x02\0\0\0\xffb".to_vec().into()).unwrap();
    let e = pipeline.prepare(&[text]).unwrap_err();
    assert!(e.to_string().contains("is none of the 1 categories"), "{e}");
    let labels = post(
        spec("y", "INT64", &[-1]),
        &json!([{"op": "label", "names": ["a", "b"]}]),
        &[spec("y", "BYTES", &[-1])],
    );
    let nine = Tensor::new("y", Datatype::Int64, vec![1], 9i64.to_le_bytes().to_vec().into()).unwrap();
    let e = labels.unwrap().finish(vec![nine], &Context::default()).unwrap_err();
    assert!(e.to_string().contains("class 9 has no name; there are 2"), "{e}");
}

#[test]
fn a_debounced_answer_changes_only_when_enough_agree() {
    let steps = json!([{"op": "debounce", "k": 2, "n": 3}]);
    let y = || spec("y", "INT64", &[-1]);
    let pipeline = post(y(), &steps, &[y()]).unwrap();
    let answer = |class: i64, stream: &mut StreamState| {
        let tensor = Tensor::new("y", Datatype::Int64, vec![1], class.to_le_bytes().to_vec().into()).unwrap();
        let done = pipeline.finish_stream(vec![tensor], &Context::default(), stream).unwrap();
        i64::from_le_bytes(done[0].data()[..].try_into().unwrap())
    };
    let mut stream = StreamState::default();
    let mut other = StreamState::default();
    for (class, stable) in [(4, -1), (7, -1), (4, 4), (7, 7), (4, 4), (9, 4), (7, 4), (7, 7), (9, 7), (9, 9)]
    {
        assert_eq!(answer(class, &mut stream), stable, "after {class}");
    }
    assert_eq!(answer(9, &mut other), -1);
    assert_eq!(answer(9, &mut StreamState::default()), -1);
}

proptest! {
    #[test]
    fn softmax_sums_to_one_and_keeps_the_order(
        values in prop::collection::vec(-500.0..500.0f32, 2..40),
        temperature in 0.1..10.0f64,
    ) {
        let y = spec("y", "FP32", &[-1, -1]);
        let steps = json!([{"op": "softmax", "temperature": temperature}]);
        let pipeline = post(y.clone(), &steps, &[y]).unwrap();
        let done = pipeline.finish(vec![floats("y", &[1, values.len()], &values)], &Context::default()).unwrap();
        let shares: Vec<f32> = done[0].data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        prop_assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        for (value, share) in values.iter().zip(&shares) {
            prop_assert!(*value <= values[0] || *share >= shares[0]);
        }
    }

    /// No numbers, whatever they are, break a step after the model.
    #[test]
    fn any_answer_ends_in_a_result_or_an_error(
        bits in prop::collection::vec(any::<u32>(), 0..60),
        which in 0..7usize,
    ) {
        let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let rows = values.len() / 6;
        let boxes = spec("y", "FP32", &[-1, -1, 6]);
        let steps = [
            json!([{"op": "nms", "iou": 0.5, "max": 10}]),
            json!([{"op": "decode_yolo", "version": "v5", "score": 0.5}]),
            json!([{"op": "softmax"}, {"op": "log", "scale": "db", "top_db": 3}, {"op": "clip", "min": 0, "max": 1}]),
            json!([{"op": "cast", "datatype": "INT8"}, {"op": "dequantize", "scale": 0.5, "zero_point": 1}]),
            json!([{"op": "window", "length": 3, "hop": 2, "pad": "reflect"}, {"op": "fft"}, {"op": "reshape", "shape": [0, 0, -1]}]),
            json!([{"op": "threshold", "at": 0}, {"op": "cast", "datatype": "FP32"}]),
            json!([{"op": "impute", "value": [1, 2, 3, 4, 5, 6]}, {"op": "transpose", "axes": [0, 2, 1]}, {"op": "argmax", "axis": 1}]),
        ];
        let outputs = match which {
            4 => spec("y", "FP32", &[-1, -1, -1]),
            6 => spec("y", "INT64", &[-1, -1]),
            _ => boxes.clone(),
        };
        let pipeline = post(boxes, &steps[which], &[outputs]).unwrap();
        let tensor = floats("y", &[1, rows, 6], &values[..rows * 6]);
        let _ = pipeline.finish(vec![tensor], &Context::default());
    }
}
