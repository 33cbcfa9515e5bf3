use super::{json::parse_data, json::write_data, *};
use crate::serving::oip::NoMemory;
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{Interface, TensorSpec},
    tensor::{Datatype, Tensor},
};
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn interface(datatype: Datatype, shape: &[i64]) -> Interface {
    let spec = |name: &str| TensorSpec { name: name.into(), datatype, shape: shape.into() };
    Interface { inputs: vec![spec("x")], outputs: vec![spec("y")] }
}

/// Pieces of requests in any order, so that random bodies get deep into the parser.
fn fragments() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\"inputs\":",
        "\"name\":",
        "\"x\"",
        "\"shape\":",
        "\"datatype\":",
        "\"FP32\"",
        "\"BYTES\"",
        "\"data\":",
        "\"parameters\":",
        "\"binary_data_size\":",
        "\"outputs\":",
        "1",
        "-1",
        "1e99",
        "null",
        "true",
        "NaN",
        "0",
        "18446744073709551615",
        " ",
        "\n",
        "\u{0}",
        "ü",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_body_breaks_the_parser(body in fragments(), tail in prop::collection::vec(any::<u8>(), 0..64), length in prop::option::of(0usize..300)) {
        for (datatype, shape) in [(Datatype::Fp32, vec![-1, 2]), (Datatype::Bytes, vec![-1]), (Datatype::Bool, vec![]), (Datatype::Int16, vec![0, -1])] {
            let body = Bytes::from([body.as_bytes(), &tail].concat());
            if let Ok(request) = InferRequest::parse(body, length, &interface(datatype, &shape), 8, &mut NoMemory) {
                prop_assert_eq!(request.inputs.len(), 1);
            }
        }
    }

    #[test]
    fn data_of_any_text_is_a_tensor_or_an_error(text in "[\\[\\]{}0-9eE+., \"\\\\a-n-]{0,80}", shape in prop::collection::vec(0usize..5, 0..4)) {
        for datatype in [Datatype::Fp64, Datatype::Int8, Datatype::Bytes, Datatype::Bool] {
            if let Ok(raw) = parse_data("x", datatype, &shape, &text, &mut NoMemory) {
                prop_assert!(Tensor::new("x", datatype, shape.clone(), raw.into()).is_ok());
            }
        }
    }

    #[test]
    fn numbers_survive_json_bit_by_bit(floats in prop::collection::vec(any::<f32>().prop_filter("finite", |v| v.is_finite()), 0..40), wholes in prop::collection::vec(any::<i64>(), 0..40)) {
        let floats = (Datatype::Fp32, floats.len(), floats.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        let wholes = (Datatype::Int64, wholes.len(), wholes.iter().flat_map(|v| v.to_le_bytes()).collect());
        for (datatype, len, raw) in [floats, wholes] {
            let tensor = Tensor::new("x", datatype, vec![len], raw.clone().into()).unwrap();
            let mut text = Vec::new();
            write_data(&tensor, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
            prop_assert_eq!(parse_data("x", datatype, &[len], &text, &mut NoMemory).unwrap(), raw);
        }
    }
}

#[test]
fn binary_inputs_are_slices_of_the_body() {
    let json =
        r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
    let body = Bytes::from([json.as_bytes(), &[7; 8]].concat());
    let request = InferRequest::parse(
        body.clone(),
        Some(json.len()),
        &interface(Datatype::Fp32, &[-1, 2]),
        8,
        &mut NoMemory,
    )
    .unwrap();
    assert_eq!(request.inputs[0].data().as_ptr(), body[json.len()..].as_ptr(), "not copied");
}

#[test]
fn twice_the_body_takes_about_twice_the_time() {
    let took = |elements: usize| {
        let text = format!("[{}]", vec!["1.5"; elements].join(","));
        let best = (0..5).map(|_| {
            let began = Instant::now();
            parse_data("x", Datatype::Fp32, &[elements], &text, &mut NoMemory).unwrap();
            began.elapsed()
        });
        best.min().unwrap_or_default().max(Duration::from_micros(1))
    };
    let (small, large) = (took(20_000), took(160_000));
    assert!(large < small * 40, "8 times the data took {small:?} and {large:?}");
}
