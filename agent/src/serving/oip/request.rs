//! An inference request: JSON, or JSON followed by raw tensors, or one raw tensor.

use super::{
    OipError,
    bounded::{List, Parameters},
    fit::{
        Inputs, Memory, RequestedOutput, Urgency, all_outputs, bad, check_id, checked, flag, outputs, place,
        tensor_at, urgency,
    },
    json::{MAX_RANK, parse_data},
};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{Interface, TensorSpec},
    tensor::{Tensor, element_count},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Tensors on either side of a request; a manifest allows as many.
pub(super) const MAX_TENSORS: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Parameter {
    Bool(bool),
    Unsigned(u64),
    /// Negative or fractional: no parameter of ours takes one.
    OtherNumber,
    Text(String),
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

/// A request that fits the interface.
#[derive(Debug)]
pub struct InferRequest {
    pub id: Option<String>,
    /// Slices of the body where the client sent binary data.
    pub inputs: Vec<Tensor>,
    /// In the order asked for, or of the interface if nothing was.
    pub outputs: Vec<RequestedOutput>,
    pub urgency: Urgency,
}

impl InferRequest {
    /// `header_length`: value of `Inference-Header-Content-Length`; absent, all of `body` is JSON.
    ///
    /// # Errors
    /// [`OipError::Bad`] names tensor and element; [`OipError::Unsupported`] for sequences.
    pub fn parse(
        body: Bytes,
        header_length: Option<usize>,
        interface: &Interface,
        batch_max: usize,
        memory: &mut dyn Memory,
    ) -> Result<Self, OipError> {
        if header_length == Some(0) {
            let inputs = vec![raw_input(body, interface, batch_max, memory)?];
            return Ok(Self {
                id: None,
                inputs,
                outputs: all_outputs(interface, true),
                urgency: Urgency::default(),
            });
        }
        let json_len = header_length.unwrap_or(body.len());
        let Some(json) = body.get(..json_len) else {
            let found = body.len();
            return bad(format!(
                "the inference header is said to have {json_len} bytes, but the body has {found}"
            ));
        };
        let wire: Wire<'_> = serde_json::from_slice(json).map_err(|e| not_json(json, &e))?;
        wire.id.as_deref().map_or(Ok(()), check_id)?;
        let urgency = urgency(&wire.parameters)?;
        let binary_outputs = flag(&wire.parameters, "binary_data_output")?.unwrap_or(false);
        let asked = wire.outputs.map(|list| list.0).unwrap_or_default();
        let asked = asked.into_iter().map(|output| (output.name, output.parameters)).collect();
        let outputs = outputs(asked, binary_outputs, interface)?;
        let mut binary = body.slice(json_len..);
        let mut inputs = Vec::with_capacity(wire.inputs.0.len());
        let mut fit = Inputs::of(interface, batch_max);
        for input in wire.inputs.0 {
            let spec = fit.take(&input.name)?;
            let shape = fit.shape(spec, &input.datatype, &input.shape.0)?;
            inputs.push(match place(&input.name, &input.parameters)? {
                None => {
                    let binary = header_length.is_some().then_some(&mut binary);
                    tensor(input, spec, shape, binary, memory)?
                }
                Some(_) if input.data.is_some() || input.parameters.0.contains_key("binary_data_size") => {
                    return bad(format!("input `{}` is both sent and in shared memory", spec.name));
                }
                Some(place) => tensor_at(&place, spec, shape, memory)?,
            });
        }
        fit.complete()?;
        if !binary.is_empty() {
            return bad(format!("{} bytes of binary data belong to no input", binary.len()));
        }
        Ok(Self { id: wire.id, inputs, outputs, urgency })
    }
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

fn tensor(
    input: WireInput<'_>,
    spec: &TensorSpec,
    shape: Vec<usize>,
    binary: Option<&mut Bytes>,
    memory: &mut dyn Memory,
) -> Result<Tensor, OipError> {
    let name = &spec.name;
    let datatype = spec.datatype;
    let data = match (input.parameters.0.get("binary_data_size"), input.data) {
        (Some(_), Some(_)) => return bad(format!("input `{name}` has both `data` and `binary_data_size`")),
        (None, None) => return bad(format!("input `{name}` has neither `data` nor `binary_data_size`")),
        (None, Some(text)) => Bytes::from(parse_data(name, datatype, &shape, text.get(), memory)?),
        (Some(Parameter::Unsigned(size)), None) => {
            let Some(binary) = binary else {
                return bad(format!(
                    "input `{name}` announces binary data, but the header Inference-Header-Content-Length is missing"
                ));
            };
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

/// The body is the one input of a model, with a batch of 1 and at most one free dimension, whose
/// size follows from the length. A BYTES input takes the whole body as its one element.
fn raw_input(
    body: Bytes,
    interface: &Interface,
    batch_max: usize,
    memory: &mut dyn Memory,
) -> Result<Tensor, OipError> {
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
        memory.charge(body.len().saturating_add(4))?;
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
        let rows = body.len() / row;
        if at == 0 && rows > batch_max {
            return bad(format!("a raw body of {rows} rows, the model takes at most {batch_max}"));
        }
        shape[at] = i64::try_from(rows).unwrap_or(i64::MAX);
    }
    checked(&spec.name, spec.datatype, fixed(&shape), body)
}
