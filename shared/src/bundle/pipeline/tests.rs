use super::*;

fn parse(json: &str) -> Result<PipelineSpec, String> {
    serde_json::from_str(json).map_err(|e| e.to_string())
}

const FRAME: &str = r#""inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [{"name": "label", "datatype": "BYTES", "shape": [-1]}]"#;

fn with(pre: &str, post: &str) -> Result<PipelineSpec, String> {
    parse(&format!(r#"{{{FRAME}, "pre": [{pre}], "post": [{post}]}}"#))
}

#[test]
fn a_pipeline_survives_the_round_trip_and_defaults_are_filled_in() {
    let spec = with(
        r#"{"op": "decode_image"},
           {"op": "resize", "shortest": 256, "filter": "pil-bilinear"},
           {"op": "crop", "center": [224, 224]},
           {"op": "layout", "order": "nchw"},
           {"op": "normalize", "scale": 0.00392156862745098, "mean": [0.5, 0.5, 0.5], "std": 0.25, "axis": 1, "to": "x"}"#,
        r#"{"op": "argmax", "from": "y", "to": "label"}, {"op": "sigmoid"}, {"op": "label"}"#,
    )
    .unwrap();
    assert_eq!(spec.mistakes(), []);
    assert_eq!(spec.pre[0].op, Op::DecodeImage { color: Color::Rgb, orient: true, max_pixels: 16 << 20 });
    assert_eq!((spec.pre[0].from.as_deref(), spec.pre[4].to.as_deref()), (None, Some("x")));
    let again = parse(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(again, spec);
}

#[test]
fn what_is_not_understood_is_named_with_its_step() {
    for (pre, post, said) in [
        (r#"{"op": "sharpen"}"#, "", "`pre` step 1 (`sharpen`): unknown variant `sharpen`"),
        (r#"{"resize": 3}"#, "", "`pre` step 1 (`?`): missing field `op`"),
        (
            "",
            r#"{"op": "argmax"}, {"op": "softmax", "axes": 1}"#,
            "`post` step 2 (`softmax`): unknown field `axes`",
        ),
        ("", r#"{"op": "sigmoid", "x": 1}"#, "`post` step 1 (`sigmoid`): unknown field `x`"),
        (r#"{"op": "color", "order": "cmyk"}"#, "", "`pre` step 1 (`color`): unknown variant `cmyk`"),
        (
            r#"{"op": "resize", "size": [1, -1], "filter": "cv-area"}"#,
            "",
            "`pre` step 1 (`resize`): invalid value",
        ),
        (r#"{"op": "argmax", "from": 3}"#, "", "`pre` step 1 (`argmax`): `from` is 3, not the name"),
        (r#"{"op": "top_k", "k": 5}"#, "", "`pre` step 1 (`top_k`): missing field `indices`"),
    ] {
        let why = with(pre, post).unwrap_err();
        assert!(why.contains(said), "{why}\nlacks {said}");
    }
    assert!(parse(&format!(r#"{{{FRAME}, "mid": []}}"#)).unwrap_err().contains("unknown field `mid`"));
    let many = vec![r#"{"op": "sigmoid"}"#; MAX_STEPS + 1].join(",");
    assert!(with(&many, "").unwrap_err().contains("65 steps, at most 64"));
}

#[test]
fn values_out_of_bounds_are_named_with_step_and_operation() {
    for (pre, post, said) in [
        (r#"{"op": "crop"}"#, "", "either `center` or `box`"),
        (r#"{"op": "crop", "center": [1, 1], "box": [0, 0, 1, 1]}"#, "", "either `center` or `box`"),
        (r#"{"op": "crop", "box": [5, 0, 5, 1]}"#, "", "is empty"),
        (r#"{"op": "resize", "size": [0, 9], "filter": "cv-area"}"#, "", "`size` is 0"),
        (r#"{"op": "resize", "size": [9, 99999], "filter": "cv-area"}"#, "", "`size` is 99999"),
        (r#"{"op": "decode_image", "max_pixels": 100000000000}"#, "", "`max_pixels` is"),
        (r#"{"op": "standardize", "mean": 0, "std": [1, 0]}"#, "", "holds 0, by which it divides"),
        (r#"{"op": "one_hot", "depth": 4000000000}"#, "", "`depth` is 4000000000"),
        (r#"{"op": "category_map", "values": ["a", "b", "a"]}"#, "", "a value twice"),
        (r#"{"op": "window", "length": 0, "hop": 1}"#, "", "`length` is 0"),
        (r#"{"op": "mel", "rate": 8000, "bins": 8, "fmax": 5000}"#, "", "no band"),
        (r#"{"op": "transpose", "axes": [0, 2]}"#, "", "no order"),
        (r#"{"op": "reshape", "shape": [-1, -1]}"#, "", "one of them -1"),
        (r#"{"op": "scale_boxes"}"#, "", "after the model only"),
        ("", r#"{"op": "debounce", "k": 2, "n": 4}"#, "more than half"),
        ("", r#"{"op": "nms", "iou": 1.5, "max": 10}"#, "`iou` is 1.5"),
        ("", r#"{"op": "top_k", "k": 0, "indices": "i"}"#, "`k` is 0"),
        ("", r#"{"op": "softmax", "temperature": 0}"#, "`temperature` is 0"),
    ] {
        let wrong = with(pre, post).unwrap().mistakes();
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].1.contains(said), "{wrong:?} lacks {said}");
        assert!(wrong[0].0.contains("step 1 ("), "{wrong:?}");
    }
}
