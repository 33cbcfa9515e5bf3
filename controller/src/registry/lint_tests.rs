use super::*;
use edgefleet_shared::{
    bundle::TensorSpec,
    lint::{EngineLook, TensorLook},
    probe::{Confinement, ProbeFailure},
    reported::RefusalCode,
    tensor::Datatype,
};

fn engine(name: &str, refusal: Option<(&str, &str)>) -> EngineLook {
    let refusal = refusal.map(|(op, message)| ProbeFailure {
        code: RefusalCode::UnsupportedOperator,
        message: message.into(),
        node: Some("n".into()),
        op: Some(op.into()),
    });
    let gains = match name {
        TRACT => vec![Precision::F32],
        _ => vec![Precision::F32, Precision::Int8Qdq],
    };
    EngineLook {
        name: name.into(),
        version: "1".into(),
        opsets: (name == TRACT).then_some((9, 18)),
        gains,
        problems: Default::default(),
        refusal,
        load_ms: None,
    }
}

fn look(engines: Vec<EngineLook>) -> ModelLook {
    let input = TensorLook { name: "x".into(), datatype: "FLOAT".into(), shape: Some(vec![-1, 3, -1, -1]) };
    let traits =
        ModelTraits { opsets: [(String::new(), 17)].into(), inputs: vec![input], ..ModelTraits::default() };
    let word = || "enforced".to_owned();
    ModelLook {
        schema: 1,
        agent_version: "0".into(),
        traits: Some(traits),
        unusable: None,
        engines,
        confinement: Confinement { landlock: word(), seccomp: word(), limits: word() },
    }
}

fn codes(look: &ModelLook, around: Around<'_>) -> Vec<(Level, &'static str)> {
    findings(look, around).into_iter().map(|finding| (finding.level, finding.code)).collect()
}

#[test]
fn only_what_no_engine_takes_is_an_error() {
    use Level::{Error, Warning};
    let refused = || Some(("Loop", "no Loop"));
    let open = (Warning, "open-shape");
    for (engines, wanted) in [
        (vec![engine(TRACT, None)], vec![open]),
        (
            vec![engine(TRACT, refused())],
            vec![(Warning, "engine-refuses"), (Warning, "engine-unasked"), open],
        ),
        (vec![engine(TRACT, refused()), engine(ORT, None)], vec![(Warning, "engine-refuses"), open]),
        (
            vec![engine(TRACT, refused()), engine(ORT, refused())],
            vec![(Error, "no-engine"), (Warning, "engine-refuses"), (Warning, "engine-refuses"), open],
        ),
    ] {
        assert_eq!(codes(&look(engines), Around::default()), wanted);
    }
    let unusable =
        ProbeFailure { code: RefusalCode::ModelInvalid, message: "no ONNX".into(), node: None, op: None };
    let hopeless = ModelLook { traits: None, unusable: Some(unusable), ..look(vec![]) };
    assert_eq!(codes(&hopeless, Around::default()), [(Error, "unusable")]);
}

#[test]
fn a_shape_that_the_manifest_fixes_is_no_finding() {
    let spec =
        |shape: &[i64]| TensorSpec { name: "x".into(), datatype: Datatype::Fp32, shape: shape.to_vec() };
    for (shape, open) in [([-1, 3, 16, 16], 0), ([-1, 3, -1, 16], 1)] {
        let interface = Interface { inputs: vec![spec(&shape)], outputs: vec![] };
        let around = Around { interface: Some(&interface), ..Around::default() };
        assert_eq!(codes(&look(vec![engine(TRACT, None)]), around).len(), open, "{shape:?}");
    }
}

#[test]
fn int8_is_worth_a_word_by_how_it_was_made_and_who_gains() {
    let said = |quantised: Option<Quantised>, precision, has_f32| -> Vec<&'static str> {
        let mut look = look(vec![engine(TRACT, None), engine(ORT, None)]);
        if let Some(traits) = &mut look.traits {
            traits.quantised = quantised;
            traits.inputs.clear();
        }
        let around = Around { precision: Some(precision), has_f32, golden: Some(3), ..Around::default() };
        findings(&look, around).into_iter().map(|finding| finding.code).collect()
    };
    let kinds = |kind: &str| [(kind.to_owned(), 2)].into();
    let good = Quantised { activations: kinds("UINT8"), weights: kinds("INT8"), ..Quantised::default() };
    let bad =
        Quantised { activations: kinds("INT8"), weights: kinds("UINT8"), integer_operators: 1, softmax: 1 };
    assert_eq!(said(Some(good.clone()), Precision::Int8Qdq, true), ["int8-gains", "int8-falls-back"]);
    assert_eq!(said(Some(good.clone()), Precision::Int8Qdq, false), ["int8-alone", "int8-gains"]);
    assert_eq!(said(Some(good), Precision::F32, true), ["precision", "int8-gains", "int8-falls-back"]);
    assert_eq!(said(None, Precision::Int8Qdq, true), ["not-quantised"]);
    let recipe = ["int8-activations", "int8-weights", "int8-form", "softmax-quantised"];
    assert_eq!(said(Some(bad), Precision::Int8Qdq, true)[..4], recipe);
}

#[test]
fn opsets_sizes_types_and_golden_samples_are_looked_at() {
    let mut look = look(vec![engine(TRACT, None)]);
    if let Some(traits) = &mut look.traits {
        traits.opsets = [(String::new(), 21)].into();
        traits.inputs[0] = TensorLook { name: "x".into(), datatype: "DOUBLE".into(), shape: None };
        traits.weight_bytes = 300 << 20;
        traits.largest_weight = Some(("table".into(), 100 << 20));
    }
    let folds = [Done::Unused { nodes: 2 }];
    let around = Around { golden: Some(1), folds: &folds, ..Around::default() };
    let found: Vec<_> = findings(&look, around).into_iter().map(|finding| finding.message).collect();
    insta::assert_snapshot!("findings", found.join("\n"));
}
