//! Golden samples as people write them: JSON in the form of the Open Inference Protocol.
//!
//! `{"inputs":[{name,datatype,shape,data}],"outputs":[...],"rtol":1e-3,"atol":1e-4}`; `data` is flat or
//! nested, numbers for numeric types, `true`/`false` for BOOL, strings or `{"base64": "..."}` for BYTES. The
//! two tolerances are optional and override those of `bundle.toml`.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{GoldenSample, Interface, TensorSpec},
    tensor::{Datatype, Tensor},
};
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Value;

/// Largest golden file in bytes: a few megapixels as text.
pub(super) const MAX_GOLDEN_JSON_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GoldenFile {
    inputs: Vec<TensorJson>,
    outputs: Vec<TensorJson>,
    rtol: Option<f64>,
    atol: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorJson {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    data: Value,
}

/// A sample and the tolerances its file sets itself.
#[derive(Debug)]
pub(super) struct ParsedGolden {
    pub(super) sample: GoldenSample,
    pub(super) rtol: Option<f64>,
    pub(super) atol: Option<f64>,
}

/// Reads one golden file and holds it against the interface.
///
/// # Errors
/// Pairs of key and reason, all that were found.
pub(super) fn parse(json: &[u8], interface: &Interface) -> Result<ParsedGolden, Vec<(String, String)>> {
    let file: GoldenFile = serde_json::from_slice(json)
        .map_err(|e| vec![(String::new(), format!("is not a golden sample in JSON: {e}"))])?;
    let mut wrong = Vec::new();
    let inputs = side("inputs", file.inputs, &interface.inputs, &mut wrong);
    let outputs = side("outputs", file.outputs, &interface.outputs, &mut wrong);
    for (key, value) in [("rtol", file.rtol), ("atol", file.atol)] {
        if value.is_some_and(|t| !t.is_finite() || t < 0.0) {
            wrong.push((key.to_owned(), "must be finite and not negative".to_owned()));
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    Ok(ParsedGolden { sample: GoldenSample { inputs, outputs }, rtol: file.rtol, atol: file.atol })
}

fn side(
    side: &str,
    found: Vec<TensorJson>,
    wanted: &[TensorSpec],
    wrong: &mut Vec<(String, String)>,
) -> Vec<Tensor> {
    for spec in wanted {
        match found.iter().filter(|tensor| tensor.name == spec.name).count() {
            0 => wrong.push((side.to_owned(), format!("lacks `{}`, which the interface has", spec.name))),
            1 => {}
            _ => wrong.push((side.to_owned(), format!("names `{}` twice", spec.name))),
        }
    }
    let mut tensors = Vec::new();
    for (index, json) in found.into_iter().enumerate() {
        let key = format!("{side}[{index}]");
        let Some(spec) = wanted.iter().find(|spec| spec.name == json.name) else {
            wrong.push((key, format!("is `{}`, which the interface lacks", json.name)));
            continue;
        };
        if json.datatype != spec.datatype {
            let reason = format!("is {}, but the interface says {}", json.datatype, spec.datatype);
            wrong.push((format!("{key}.datatype"), reason));
            continue;
        }
        if !shape_fits(&json.shape, &spec.shape) {
            let reason = format!("is {:?}, which does not fit {:?}", json.shape, spec.shape);
            wrong.push((format!("{key}.shape"), reason));
            continue;
        }
        match tensor(json) {
            Ok(tensor) => tensors.push(tensor),
            Err((sub, reason)) => wrong.push((format!("{key}{sub}"), reason)),
        }
    }
    tensors
}

/// True if `shape` is one that `spec` allows; -1 allows any size.
fn shape_fits(shape: &[usize], spec: &[i64]) -> bool {
    shape.len() == spec.len()
        && shape.iter().zip(spec).all(|(dim, wanted)| *wanted == -1 || i64::try_from(*dim) == Ok(*wanted))
}

/// The tensor, or what is wrong with which part of it.
fn tensor(json: TensorJson) -> Result<Tensor, (String, String)> {
    let mut flat = Vec::new();
    flatten(&json.data, &mut flat);
    let mut bytes = Vec::new();
    for (index, value) in flat.iter().enumerate() {
        if encode(json.datatype, value, &mut bytes).is_none() {
            let shown: String = value.to_string().chars().take(40).collect();
            return Err((format!(".data[{index}]"), format!("is {shown}, not a {}", json.datatype)));
        }
    }
    let count = edgefleet_shared::tensor::element_count(&json.shape);
    if count != Some(flat.len()) {
        let reason = format!("has {} values, but the shape is {:?}", flat.len(), json.shape);
        return Err((".data".to_owned(), reason));
    }
    Tensor::new(json.name, json.datatype, json.shape, Bytes::from(bytes))
        .map_err(|e| (String::new(), e.to_string()))
}

fn flatten<'a>(value: &'a Value, out: &mut Vec<&'a Value>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| flatten(item, out)),
        single => out.push(single),
    }
}

/// Appends one element in the protocol's binary layout; `None` if it is not of that type.
fn encode(datatype: Datatype, value: &Value, out: &mut Vec<u8>) -> Option<()> {
    let unsigned = || value.as_u64();
    let signed = || value.as_i64();
    let float = || value.as_f64();
    match datatype {
        Datatype::Bool => out.push(u8::from(value.as_bool()?)),
        Datatype::Uint8 => out.push(u8::try_from(unsigned()?).ok()?),
        Datatype::Uint16 => out.extend(u16::try_from(unsigned()?).ok()?.to_le_bytes()),
        Datatype::Uint32 => out.extend(u32::try_from(unsigned()?).ok()?.to_le_bytes()),
        Datatype::Uint64 => out.extend(unsigned()?.to_le_bytes()),
        Datatype::Int8 => out.extend(i8::try_from(signed()?).ok()?.to_le_bytes()),
        Datatype::Int16 => out.extend(i16::try_from(signed()?).ok()?.to_le_bytes()),
        Datatype::Int32 => out.extend(i32::try_from(signed()?).ok()?.to_le_bytes()),
        Datatype::Int64 => out.extend(signed()?.to_le_bytes()),
        Datatype::Fp16 => out.extend(f16::from_f64(float()?).to_le_bytes()),
        Datatype::Bf16 => out.extend(bf16::from_f64(float()?).to_le_bytes()),
        Datatype::Fp32 => out.extend((float()? as f32).to_le_bytes()),
        Datatype::Fp64 => out.extend(float()?.to_le_bytes()),
        Datatype::Bytes => {
            let bytes = match value {
                Value::Object(object) if object.len() == 1 => {
                    BASE64.decode(object.get("base64")?.as_str()?).ok()?
                }
                text => text.as_str()?.as_bytes().to_vec(),
            };
            out.extend(u32::try_from(bytes.len()).ok()?.to_le_bytes());
            out.extend(bytes);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(datatype: Datatype, shape: &[i64]) -> Interface {
        let spec = |name: &str| TensorSpec { name: name.into(), datatype, shape: shape.to_vec() };
        Interface { inputs: vec![spec("a")], outputs: vec![spec("b")] }
    }

    fn read(datatype: Datatype, shape: &str, data: &str) -> Result<ParsedGolden, Vec<(String, String)>> {
        let tensor =
            |name| format!(r#"{{"name":"{name}","datatype":"{datatype}","shape":{shape},"data":{data}}}"#);
        let json = format!(r#"{{"inputs":[{}],"outputs":[{}]}}"#, tensor("a"), tensor("b"));
        parse(json.as_bytes(), &interface(datatype, &[-1]))
    }

    #[test]
    fn every_datatype_becomes_its_binary_layout() {
        for (datatype, data, bytes) in [
            (Datatype::Bool, "[true,false]", &[1u8, 0][..]),
            (Datatype::Uint8, "[7,255]", &[7, 255]),
            (Datatype::Uint16, "[1,256]", &[1, 0, 0, 1]),
            (Datatype::Uint32, "[1,2]", &[1, 0, 0, 0, 2, 0, 0, 0]),
            (Datatype::Int8, "[-1,1]", &[255, 1]),
            (Datatype::Int16, "[-1,1]", &[255, 255, 1, 0]),
            (Datatype::Int32, "[-1,1]", &[255, 255, 255, 255, 1, 0, 0, 0]),
            (Datatype::Fp16, "[1.0,-2]", &[0, 0x3c, 0, 0xc0]),
            (Datatype::Bf16, "[1.0,-2]", &[0x80, 0x3f, 0, 0xc0]),
            (Datatype::Fp32, "[[1.0],[0.5]]", &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x3f]),
            (Datatype::Bytes, r#"["a","bc"]"#, b"\x01\0\0\0a\x02\0\0\0bc"),
            (Datatype::Bytes, r#"["a",{"base64":"/9g="}]"#, b"\x01\0\0\0a\x02\0\0\0\xff\xd8"),
        ] {
            let golden = read(datatype, "[2]", data).unwrap();
            assert_eq!(&golden.sample.inputs[0].data()[..], bytes, "{datatype}");
        }
        for datatype in [Datatype::Int64, Datatype::Uint64, Datatype::Fp64] {
            assert_eq!(read(datatype, "[2]", "[1,2]").unwrap().sample.inputs[0].data().len(), 16);
        }
    }

    #[test]
    fn wrong_values_are_named_with_their_place() {
        for (datatype, shape, data, key) in [
            (Datatype::Uint8, "[2]", "[1,300]", "inputs[0].data[1]"),
            (Datatype::Uint8, "[2]", "[1,1.5]", "inputs[0].data[1]"),
            (Datatype::Bool, "[1]", "[1]", "inputs[0].data[0]"),
            (Datatype::Bytes, "[1]", "[1]", "inputs[0].data[0]"),
            (Datatype::Bytes, "[1]", r#"[{"base64":"?"}]"#, "inputs[0].data[0]"),
            (Datatype::Fp32, "[3]", "[1,2]", "inputs[0].data"),
            (Datatype::Fp32, "[1,2]", "[1,2]", "inputs[0].shape"),
        ] {
            let wrong = read(datatype, shape, data).unwrap_err();
            assert_eq!(wrong[0].0, key, "{wrong:?}");
            assert_eq!(wrong.len(), 2, "both sides are wrong: {wrong:?}");
        }
        let wrong = parse(br#"{"inputs":[],"outputs":[],"rtol":-1}"#, &interface(Datatype::Fp32, &[1]));
        assert_eq!(wrong.unwrap_err().len(), 3);
        assert!(parse(b"[", &interface(Datatype::Fp32, &[1])).is_err());
        assert!(parse(br#"{"inputs":[],"outputs":[],"x":1}"#, &interface(Datatype::Fp32, &[1])).is_err());
    }
}
