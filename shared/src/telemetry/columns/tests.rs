use super::*;
use proptest::prelude::*;
use serde_json::json;

const LIMIT: usize = 1 << 20;

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1_000i64..1_000).prop_map(Value::from),
        any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(Value::from),
        (-1_000i32..1_000, 0i32..6).prop_map(|(n, places)| Value::from(f64::from(n) / 10f64.powi(places))),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 120, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map("[a-c\"\\n]{0,3}", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Lists of one kind, as telemetry has them.
fn alike() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::collection::vec(any::<i64>(), 0..40).prop_map(Value::from),
        prop::collection::vec(50i64..70, 0..40).prop_map(Value::from),
        prop::collection::vec((-9_999i32..9_999).prop_map(|n| f64::from(n) / 1e3), 0..40)
            .prop_map(Value::from),
        prop::collection::vec((0i64..9).prop_map(|n| json!([n, n * n])), 0..40).prop_map(Value::from),
    ]
}

fn back(value: &Value) -> Value {
    let text = to_json(&to_payload(value).unwrap(), LIMIT).unwrap();
    serde_json::from_str(&text).unwrap()
}

proptest! {
    #[test]
    fn every_value_comes_back_as_it_was(value in prop_oneof![any_value(), alike()]) {
        prop_assert_eq!(back(&value), value);
    }

    #[test]
    fn no_bytes_break_it(shape in prop::collection::vec(any::<u8>(), 0..80), numbers in prop::collection::vec(any::<u8>(), 0..40)) {
        let _ = unpack::unpack(&shape, &numbers, 1_000);
        let _ = to_json(&shape, 1_000);
    }

    #[test]
    fn a_changed_byte_is_refused_or_is_another_value(
        value in any_value(), at in any::<prop::sample::Index>(), to in any::<u8>(),
    ) {
        let pack::Packed { mut shape, mut numbers } = pack::pack(&value).unwrap();
        let at = at.index(shape.len() + numbers.len());
        match at.checked_sub(shape.len()) {
            None => shape[at] = to,
            Some(at) => numbers[at] = to,
        }
        if let Ok(text) = unpack::unpack(&shape, &numbers, LIMIT) {
            prop_assert!(text.len() <= LIMIT + 64);
        }
    }
}

#[test]
fn equals_follow_equals_and_numbers_become_small() {
    let value = json!([
        {"at": 1_000, "bins": [60, 71, 57], "mean": 0.5, "pairs": [[7, 1], [9, 4]]},
        {"at": 2_000, "bins": [49, 66, 60], "mean": 0.25, "pairs": [[8, 2]]},
    ]);
    let pack::Packed { shape, numbers } = pack::pack(&value).unwrap();
    let mut expected = vec![1];
    expected.extend(b"[\"at\",\"bins\",\"mean\",\"pairs\"]\n");
    expected.push(10);
    expected.extend(b"\x00\x01[2\n\x00\x02{0\n"); // the list, its two objects
    expected.extend([3, 0, 2]); // `at`, as steps
    expected.extend(b"\x00\x02[3\n");
    expected.extend([4, 0, 6]); // `bins`, around their middle
    expected.extend([2, 2, 2]); // `mean`, with two decimals
    expected.extend(b"\x01\x02[2\n[1\n\x00\x03[2\n");
    expected.extend([3, 0, 3, 3, 0, 3]);
    assert_eq!(shape, expected, "{}", String::from_utf8_lossy(&shape));
    assert!(numbers.len() < 30, "{numbers:?}");
    assert_eq!(back(&value), value);
}

#[test]
fn numbers_keep_their_form() {
    for value in [
        json!([1, 1.0, -0.0, 0.0]),
        json!([0.1, 0.10000000000000002, 1e-7, 1e300]),
        json!([u64::MAX, i64::MIN, i64::MAX]),
        json!([0.5, 100.0, -3.25]),
        json!([123456789.123456, 0.000001]),
        json!([-0.5, 0.5, -12.0]),
    ] {
        let text = to_json(&to_payload(&value).unwrap(), LIMIT).unwrap();
        assert_eq!(text, value.to_string());
    }
}

#[test]
fn what_claims_more_than_it_holds_is_refused() {
    let refused = |shape: &[u8]| unpack::unpack(shape, &[], 100).unwrap_err();
    let many = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let same = |token: &[u8]| [&[SAME][..], &many, token, b"\n"].concat();
    // An array of billions of equal elements, in a few bytes.
    let bomb = [&[0, 2, SAME, 1][..], b"[4294967295\n", &same(b"1")].concat();
    assert_eq!(refused(&bomb), ColumnsError::Large { limit: 100 });
    let nothing = [&[0, 2, SAME, 1][..], b"[4294967295\n", &same(b"")].concat();
    assert_eq!(refused(&nothing), ColumnsError::Large { limit: 100 });
    // Billions of objects without keys.
    let hollow = [&[1][..], b"[]\n", &[2, SAME, 1], b"[4294967295\n", &same(b"{0")].concat();
    assert_eq!(refused(&hollow), ColumnsError::Large { limit: 100 });
    assert_eq!(refused(&[&[0, 1, SAME, 1][..], b"{0\n"].concat()), ColumnsError::UnknownKeys);
    assert_eq!(refused(&[&[1][..], b"[1]\n", &[1, SAME, 1], b"{0\n"].concat()), ColumnsError::Keys);
    assert_eq!(refused(&[&[0, 1, SAME, 2][..], b"1\n"].concat()), ColumnsError::Long { column: 0 });
    assert_eq!(refused(&[0, 1, NUMBERS, 0, 3]), ColumnsError::Column { column: 0 });
    assert_eq!(refused(&[0, 1, NUMBERS, 77, 0]), ColumnsError::Column { column: 0 });
    assert_eq!(refused(&[0, 1, 9, 0, 0]), ColumnsError::Column { column: 0 });
    assert_eq!(refused(&many), ColumnsError::Short);
    let deep = [&[0, 200][..], &[1], &[SAME, 1, b'[', b'1', b'\n'].repeat(200)].concat();
    assert_eq!(refused(&deep), ColumnsError::Deep);
}

#[test]
fn the_dictionary_is_part_of_the_format() {
    let digest = crate::digest::BlobDigest::of(DICTIONARY).to_string();
    assert_eq!(
        digest, "sha256:7c9435e0641bdb9096332be1ecc149643d8903ee73b65270c5017f6a48cf2e30",
        "another dictionary is another format"
    );
}
