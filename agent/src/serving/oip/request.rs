//! An inference request: JSON, or JSON followed by raw tensors, or one raw tensor.

use super::{
    OipError,
    bounded::{List, Parameters},
    json::{MAX_RANK, parse_data},
};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{Interface, TensorSpec},
    tensor::{Datatype, Tensor, element_count},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeSet;

/// Tensors on either side of a request; a manifest allows as many.
const MAX_TENSORS: usize = 64;
/// Bytes of a request id, which is echoed.
const MAX_ID: usize = 1_024;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Parameter {
    Bool(bool),
    Unsigned(u64),
    /// Negative or fractional: no parameter of ours takes one.
    OtherNumber,
    Text,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    #[serde(borrow)]
    inputs: List<WireInput<'a>, MAX_TENSORS>,
    #[serde(default)]
    outputs: Option<List<WireOutput, MAX_TENSORS>>,
}

#[derive(Deserialize)]
struct WireInput<'a> {
    name: String,
    shape: List<i64, MAX_RANK>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    #[serde(default, borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireOutput {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// How the client wants one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedOutput {
    pub name: String,
    pub binary: bool,
    /// The `k` best as `value:index[:label]`.
    pub classification: Option<usize>,
}

/// A request that fits the interface.
#[derive(Debug)]
pub struct InferRequest {
    pub id: Option<String>,
    /// Slices of the body where the client sent binary data.
    pub inputs: Vec<Tensor>,
    /// In the order asked for, or of the interface if nothing was.
    pub outputs: Vec<RequestedOutput>,
}

fn bad<T>(message: String) -> Result<T, OipError> {
    Err(OipError::Bad(message))
}

impl InferRequest {
    /// `header_length`: value of `Inference-Header-Content-Length`; absent, all of `body` is JSON.
    ///
    /// # Errors
    /// [`OipError::Bad`] names tensor and element; [`OipError::Unsupported`] for shared memory and
    /// sequences.
    pub fn parse(
        body: Bytes,
        header_length: Option<usize>,
        interface: &Interface,
        batch_max: usize,
    ) -> Result<Self, OipError> {
        if header_length == Some(0) {
            let inputs = vec![raw_input(body, interface)?];
            return Ok(Self { id: None, inputs, outputs: all_outputs(interface, true) });
        }
        let json_len = header_length.unwrap_or(body.len());
        let Some(json) = body.get(..json_len) else {
            let found = body.len();
            return bad(format!(
                "the inference header is said to have {json_len} bytes, but the body has {found}"
            ));
        };
        let wire: Wire<'_> = serde_json::from_slice(json).map_err(|e| not_json(json, &e))?;
        if wire.id.as_ref().is_some_and(|id| id.len() > MAX_ID) {
            return bad(format!("a request id has at most {MAX_ID} bytes"));
        }
        if wire.parameters.0.get("sequence_id").is_some_and(|id| !matches!(id, Parameter::Unsigned(0))) {
            return Err(OipError::Unsupported(
                "requests are independent: `sequence_id` is not supported".into(),
            ));
        }
        let outputs = requested(wire.outputs, &wire.parameters, interface)?;
        let mut binary = body.slice(json_len..);
        let mut inputs = Vec::with_capacity(wire.inputs.0.len());
        let mut seen = BTreeSet::new();
        for input in wire.inputs.0 {
            let Some(spec) = interface.inputs.iter().find(|spec| spec.name == input.name) else {
                return bad(unknown("input", &input.name, &interface.inputs));
            };
            if !seen.insert(&spec.name) {
                return bad(format!("input `{}` is given twice", spec.name));
            }
            inputs.push(tensor(input, spec, &mut binary, header_length.is_some(), batch_max)?);
        }
        if let Some(missing) = interface.inputs.iter().find(|spec| !seen.contains(&spec.name)) {
            return bad(format!(
                "input `{}` ({} {:?}) is missing",
                missing.name, missing.datatype, missing.shape
            ));
        }
        if !binary.is_empty() {
            return bad(format!("{} bytes of binary data belong to no input", binary.len()));
        }
        Ok(Self { id: wire.id, inputs, outputs })
    }
}

fn unknown(side: &str, name: &str, specs: &[TensorSpec]) -> String {
    let name: String = name.chars().take(100).collect();
    let known: Vec<_> = specs.iter().map(|spec| format!("`{}`", spec.name)).collect();
    format!("the model has no {side} `{name}`; it has {}", known.join(", "))
}

/// Says where JSON breaks off, and what to do about NaN, which many writers emit.
fn not_json(json: &[u8], error: &serde_json::Error) -> OipError {
    let line_start = json
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum::<usize>();
    // The column points at or just behind the offending byte.
    let at = line_start + error.column().saturating_sub(2);
    let near = json.get(at..).unwrap_or_default();
    let near = &near[..near.len().min(12)];
    let is_not_finite =
        [&b"NaN"[..], b"Infinity"].iter().any(|word| near.windows(word.len()).any(|w| w == *word));
    let hint = if is_not_finite {
        "; JSON has neither NaN nor Infinity, send such tensors as binary data"
    } else {
        ""
    };
    OipError::Bad(format!("the request is not an inference request in JSON: {error}{hint}"))
}

fn requested(
    outputs: Option<List<WireOutput, MAX_TENSORS>>,
    parameters: &Parameters,
    interface: &Interface,
) -> Result<Vec<RequestedOutput>, OipError> {
    let by_default = flag(parameters, "binary_data_output")?.unwrap_or(false);
    let Some(List(outputs)) = outputs.filter(|list| !list.0.is_empty()) else {
        return Ok(all_outputs(interface, by_default));
    };
    let mut seen = BTreeSet::new();
    let mut wanted = Vec::with_capacity(outputs.len());
    for output in outputs {
        if !interface.outputs.iter().any(|spec| spec.name == output.name) {
            return bad(unknown("output", &output.name, &interface.outputs));
        }
        if !seen.insert(output.name.clone()) {
            return bad(format!("output `{}` is asked for twice", output.name));
        }
        no_shared_memory(&output.name, &output.parameters)?;
        let classification = match output.parameters.0.get("classification") {
            None | Some(Parameter::Unsigned(0)) => None,
            Some(Parameter::Unsigned(k)) => Some(usize::try_from(*k).unwrap_or(usize::MAX)),
            Some(_) => {
                return bad(format!("output `{}`: `classification` is a count of classes", output.name));
            }
        };
        let binary = flag(&output.parameters, "binary_data")?.unwrap_or(by_default);
        wanted.push(RequestedOutput { name: output.name, binary, classification });
    }
    Ok(wanted)
}

fn all_outputs(interface: &Interface, binary: bool) -> Vec<RequestedOutput> {
    let each = |spec: &TensorSpec| RequestedOutput { name: spec.name.clone(), binary, classification: None };
    interface.outputs.iter().map(each).collect()
}

fn flag(parameters: &Parameters, name: &str) -> Result<Option<bool>, OipError> {
    match parameters.0.get(name) {
        None => Ok(None),
        Some(Parameter::Bool(value)) => Ok(Some(*value)),
        Some(_) => bad(format!("parameter `{name}` is true or false")),
    }
}

fn no_shared_memory(tensor: &str, parameters: &Parameters) -> Result<(), OipError> {
    if parameters.0.contains_key("shared_memory_region") {
        return Err(OipError::Unsupported(format!("tensor `{tensor}`: shared memory is not supported")));
    }
    Ok(())
}

fn tensor(
    input: WireInput<'_>,
    spec: &TensorSpec,
    binary: &mut Bytes,
    has_binary: bool,
    batch_max: usize,
) -> Result<Tensor, OipError> {
    let name = &spec.name;
    if input.datatype != spec.datatype.as_str() {
        let found: String = input.datatype.chars().take(20).collect();
        return bad(format!("input `{name}` is {}, not {found}", spec.datatype));
    }
    let given = &input.shape.0;
    let fits = |(dim, wanted): (&i64, &i64)| *dim >= 0 && (*wanted == -1 || dim == wanted);
    if given.len() != spec.shape.len() || !given.iter().zip(&spec.shape).all(fits) {
        return bad(format!("input `{name}` has shape {given:?}, the model takes {:?}", spec.shape));
    }
    let shape: Vec<usize> = given.iter().filter_map(|dim| usize::try_from(*dim).ok()).collect();
    if spec.shape.first() == Some(&-1) && shape[0] > batch_max {
        return bad(format!("input `{name}` has {} rows, the model takes at most {batch_max}", shape[0]));
    }
    no_shared_memory(name, &input.parameters)?;
    let datatype = spec.datatype;
    let data = match (input.parameters.0.get("binary_data_size"), input.data) {
        (Some(_), Some(_)) => return bad(format!("input `{name}` has both `data` and `binary_data_size`")),
        (None, None) => return bad(format!("input `{name}` has neither `data` nor `binary_data_size`")),
        (None, Some(text)) => Bytes::from(parse_data(name, datatype, &shape, text.get())?),
        (Some(Parameter::Unsigned(size)), None) => {
            if !has_binary {
                return bad(format!(
                    "input `{name}` announces binary data, but the header Inference-Header-Content-Length is missing"
                ));
            }
            let size = usize::try_from(*size).unwrap_or(usize::MAX);
            if size > binary.len() {
                let left = binary.len();
                return bad(format!(
                    "input `{name}` announces {size} bytes of binary data, only {left} are left"
                ));
            }
            binary.split_to(size)
        }
        (Some(_), None) => return bad(format!("input `{name}`: `binary_data_size` is a count of bytes")),
    };
    checked(name, datatype, shape, data)
}

fn checked(name: &str, datatype: Datatype, shape: Vec<usize>, data: Bytes) -> Result<Tensor, OipError> {
    if datatype == Datatype::Bool
        && let Some(element) = data.iter().position(|byte| *byte > 1)
    {
        return bad(format!("tensor `{name}` element {element}: {} is neither 0 nor 1", data[element]));
    }
    Tensor::new(name, datatype, shape, data).map_err(|e| OipError::Bad(e.to_string()))
}

/// The body is the one input of a model, with a batch of 1 and at most one free dimension, whose
/// size follows from the length. A BYTES input takes the whole body as its one element.
fn raw_input(body: Bytes, interface: &Interface) -> Result<Tensor, OipError> {
    let [spec] = interface.inputs.as_slice() else {
        let found = interface.inputs.len();
        return bad(format!("a raw body fits only a model with one input, this one has {found}"));
    };
    let batched = spec.shape.first() == Some(&-1);
    let mut shape: Vec<i64> = spec.shape.clone();
    if batched && shape.len() > 1 {
        shape[0] = 1;
    }
    let free: Vec<usize> = (0..shape.len()).filter(|at| shape[*at] == -1).collect();
    if free.len() > 1 {
        return bad(format!("a raw body leaves the shape {:?} of input `{}` open", spec.shape, spec.name));
    }
    let fixed =
        |shape: &[i64]| -> Vec<usize> { shape.iter().filter_map(|d| usize::try_from(*d).ok()).collect() };
    let Some(size) = spec.datatype.size() else {
        free.iter().for_each(|at| shape[*at] = 1);
        let len =
            u32::try_from(body.len()).map_err(|_| OipError::Bad("the body is longer than 4 GiB".into()))?;
        let data = [&len.to_le_bytes()[..], &body].concat();
        return checked(&spec.name, spec.datatype, fixed(&shape), Bytes::from(data));
    };
    if let [at] = free[..] {
        let row = element_count(&fixed(&shape)).and_then(|n| n.checked_mul(size)).unwrap_or(0);
        if row == 0 || !body.len().is_multiple_of(row) {
            let found = body.len();
            return bad(format!(
                "a raw body of {found} bytes does not fit input `{}` {:?}",
                spec.name, spec.shape
            ));
        }
        shape[at] = i64::try_from(body.len() / row).unwrap_or(i64::MAX);
    }
    checked(&spec.name, spec.datatype, fixed(&shape), body)
}
