//! Inference requests and responses as protocol buffers (`inference.ModelInferRequest`, `ModelInferResponse`).
//!
//! Source: `grpc_service.proto` as the stock client ships it; the numbers here are its field numbers.

use super::{
    InferRequest, OipError,
    bounded::{MAX_PARAMETERS, Parameters},
    contents::read_contents,
    fit::{Inputs, Memory, bad, check_id, checked, flag, outputs, place, tensor_at, urgency},
    json::MAX_RANK,
    protobuf::{Fields, Value, Writer},
    request::{MAX_TENSORS, Parameter},
    response::{Delivered, ResponseParameters},
};
use bytes::Bytes;
use edgefleet_shared::bundle::Interface;

/// A request as read: nothing about the model is known yet.
#[derive(Default)]
pub struct ProtoRequest {
    pub model: String,
    pub version: String,
    pub id: String,
    parameters: Parameters,
    inputs: Vec<ProtoInput>,
    outputs: Vec<(String, Parameters)>,
    raw: Vec<Bytes>,
}

#[derive(Default)]
struct ProtoInput {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    parameters: Parameters,
    contents: Option<Bytes>,
}

impl ProtoRequest {
    /// # Errors
    /// [`OipError::Bad`] if it is none, or has more than 64 tensors on a side.
    pub fn read(message: Bytes) -> Result<Self, OipError> {
        let mut request = Self::default();
        let mut fields = Fields::of(message);
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => request.model = value.text()?,
                2 => request.version = value.text()?,
                3 => request.id = value.text()?,
                4 => parameter(value, &mut request.parameters)?,
                5 => {
                    room(request.inputs.len(), "inputs")?;
                    request.inputs.push(input(value)?);
                }
                6 => {
                    room(request.outputs.len(), "outputs")?;
                    request.outputs.push(output(value)?);
                }
                7 => {
                    room(request.raw.len(), "raw_input_contents")?;
                    request.raw.push(value.bytes()?);
                }
                _ => {}
            }
        }
        Ok(request)
    }

    /// Whether there are typed contents, which cost more than slicing.
    pub fn has_contents(&self) -> bool {
        self.inputs.iter().any(|input| input.contents.is_some())
    }

    /// Whether the client wants to be told that the one response of a request in a stream is its last.
    ///
    /// # Errors
    /// [`OipError::Bad`] if the parameter is no truth value.
    pub fn wants_final(&self) -> Result<bool, OipError> {
        Ok(flag(&self.parameters, "triton_enable_empty_final_response")?.unwrap_or(false))
    }

    /// Holds the request against the interface of the model it names.
    ///
    /// # Errors
    /// [`OipError::Bad`] names tensor and element; [`OipError::Unsupported`] for sequences.
    pub fn fit(
        self,
        interface: &Interface,
        batch_max: usize,
        memory: &mut dyn Memory,
    ) -> Result<InferRequest, OipError> {
        check_id(&self.id)?;
        let urgency = urgency(&self.parameters)?;
        let outputs = outputs(self.outputs, true, interface)?;
        let mut fit = Inputs::of(interface, batch_max);
        let mut inputs = Vec::with_capacity(self.inputs.len());
        let has_raw = !self.raw.is_empty();
        let mut raw = self.raw.into_iter();
        for input in self.inputs {
            let spec = fit.take(&input.name)?;
            let shape = fit.shape(spec, &input.datatype, &input.shape)?;
            let (name, datatype) = (&spec.name, spec.datatype);
            let place = place(name, &input.parameters)?;
            inputs.push(match (place, input.contents) {
                (Some(_), Some(_)) => {
                    return bad(format!("input `{name}` is both sent and in shared memory"));
                }
                (Some(place), None) => tensor_at(&place, spec, shape, memory)?,
                (None, Some(_)) if has_raw => {
                    return bad(format!(
                        "input `{name}` has typed contents beside raw_input_contents; send one or the other"
                    ));
                }
                (None, None) if has_raw => match raw.next() {
                    Some(data) => checked(name, datatype, shape, data)?,
                    None => return bad(format!("input `{name}` has no entry in raw_input_contents")),
                },
                (None, contents) => {
                    let data = read_contents(name, datatype, &shape, contents.unwrap_or_default(), memory)?;
                    checked(name, datatype, shape, data.into())?
                }
            });
        }
        fit.complete()?;
        if raw.next().is_some() {
            return bad(
                "raw_input_contents has more entries than there are inputs without shared memory".into()
            );
        }
        let id = Some(self.id).filter(|id| !id.is_empty());
        Ok(InferRequest { id, inputs, outputs, urgency })
    }
}

fn room(taken: usize, what: &str) -> Result<(), OipError> {
    if taken == MAX_TENSORS {
        return bad(format!("a request has at most {MAX_TENSORS} {what}"));
    }
    Ok(())
}

fn input(value: Value) -> Result<ProtoInput, OipError> {
    let mut input = ProtoInput::default();
    let mut fields = value.message()?;
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => input.name = value.text()?,
            2 => input.datatype = value.text()?,
            3 => value.numbers(&mut input.shape, MAX_RANK)?,
            4 => parameter(value, &mut input.parameters)?,
            5 if input.contents.is_some() => {
                return bad(format!("input `{}` has its contents twice", input.name));
            }
            5 => input.contents = Some(value.bytes()?),
            _ => {}
        }
    }
    Ok(input)
}

fn output(value: Value) -> Result<(String, Parameters), OipError> {
    let mut output = <(String, Parameters)>::default();
    let mut fields = value.message()?;
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => output.0 = value.text()?,
            2 => parameter(value, &mut output.1)?,
            _ => {}
        }
    }
    Ok(output)
}

/// One entry of a map of parameters.
fn parameter(entry: Value, into: &mut Parameters) -> Result<(), OipError> {
    let (mut name, mut found) = (String::new(), Parameter::OtherNumber);
    let mut fields = entry.message()?;
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => name = value.text()?,
            2 => {
                let mut choice = value.message()?;
                while let Some((kind, value)) = choice.next()? {
                    found = match kind {
                        1 => Parameter::Bool(value.flag()?),
                        2 => match u64::try_from(value.number()?.cast_signed()) {
                            Ok(number) => Parameter::Unsigned(number),
                            Err(_) => Parameter::OtherNumber,
                        },
                        3 => Parameter::Text(value.text()?),
                        5 => Parameter::Unsigned(value.number()?),
                        _ => Parameter::OtherNumber,
                    };
                }
            }
            _ => {}
        }
    }
    if into.0.len() == MAX_PARAMETERS && !into.0.contains_key(&name) {
        return bad(format!("at most {MAX_PARAMETERS} parameters are taken"));
    }
    into.0.insert(name, found);
    Ok(())
}

/// Everything about a response but its tensors.
pub struct ProtoResponse<'a> {
    pub model: &'a str,
    pub version: &'a str,
    pub id: Option<&'a str>,
    pub parameters: ResponseParameters<'a>,
    /// In a stream: this is the request's only response, and the client wants that said.
    pub is_final: bool,
}

impl ProtoResponse<'_> {
    /// The message in pieces; tensors are not copied. Every output has its entry in `raw_output_contents`, empty
    /// where it went to shared memory, because clients count.
    pub fn write(&self, outputs: &[Delivered<'_>]) -> Vec<Bytes> {
        let mut head = Writer::new();
        head.text(1, self.model).text(2, self.version).text(3, self.id.unwrap_or_default());
        let mut text = |name: &str, value: &str| {
            head.entry(4, name, |choice| {
                choice.element(3, value);
            });
        };
        let ResponseParameters { bundle, attempt, prediction_id, prediction_count } = &self.parameters;
        text("bundle", bundle);
        text("attempt", attempt);
        prediction_id.iter().for_each(|id| text("prediction_id", id));
        if let Some(count) = prediction_count {
            head.entry(4, "prediction_count", |choice| {
                choice.choice(2, *count as u64);
            });
        }
        if self.is_final {
            head.entry(4, "triton_final_response", |choice| {
                choice.choice(1, 1);
            });
        }
        for output in outputs {
            let tensor = &output.tensor;
            head.message(5, |message| {
                message.text(1, tensor.name()).text(2, tensor.datatype().as_str());
                message.numbers(3, tensor.shape().iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)));
                if let Some(place) = output.place {
                    message.entry(4, "shared_memory_region", |choice| {
                        choice.element(3, &place.region);
                    });
                    let size = tensor.data().len() as u64;
                    message.entry(4, "shared_memory_byte_size", |choice| {
                        choice.choice(2, size);
                    });
                    if place.offset > 0 {
                        message.entry(4, "shared_memory_offset", |choice| {
                            choice.choice(2, place.offset);
                        });
                    }
                }
            });
        }
        let mut chunks = Vec::with_capacity(2 * outputs.len());
        for output in outputs {
            let data = if output.place.is_some() { Bytes::new() } else { output.tensor.data().clone() };
            head.head(6, data.len());
            if !data.is_empty() {
                chunks.push(std::mem::take(&mut head).finish().into());
                chunks.push(data);
            }
        }
        chunks.push(head.finish().into());
        chunks
    }
}

#[cfg(test)]
mod tests {
    use super::{super::NoMemory, *};
    use edgefleet_shared::{bundle::TensorSpec, tensor::Datatype};
    use proptest::prelude::*;

    fn interface() -> Interface {
        let spec =
            |name: &str| TensorSpec { name: name.into(), datatype: Datatype::Fp32, shape: vec![-1, 2] };
        Interface { inputs: vec![spec("x")], outputs: vec![spec("y")] }
    }

    fn request(name: &str, shape: &[i64], raw: &[u8]) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.text(1, "m").text(3, "id");
        writer.message(5, |input| {
            input.text(1, name).text(2, "FP32").numbers(3, shape.iter().copied());
        });
        writer.head(7, raw.len());
        let mut message = writer.finish();
        message.extend_from_slice(raw);
        message
    }

    #[test]
    fn raw_contents_are_slices_of_the_message() {
        let message = Bytes::from(request("x", &[1, 2], &[7; 8]));
        let read = ProtoRequest::read(message.clone()).unwrap();
        assert_eq!((read.model.as_str(), read.id.as_str()), ("m", "id"));
        let fitted = read.fit(&interface(), 8, &mut NoMemory).unwrap();
        assert_eq!(fitted.inputs[0].data().as_ptr(), message[message.len() - 8..].as_ptr(), "not copied");
    }

    #[test]
    fn many_small_fields_are_refused_before_they_become_many_large_values() {
        let flood = Bytes::from([0x2a, 0x00].repeat(1 << 20));
        assert!(ProtoRequest::read(flood).is_err_and(|e| e.to_string().contains("at most 64 inputs")));
        let mut inner = Writer::new();
        inner.message(5, |input| {
            input.numbers(3, std::iter::repeat_n(1, 1 << 20));
        });
        assert!(ProtoRequest::read(inner.finish().into()).is_err());
    }

    proptest! {
        #[test]
        fn no_message_breaks_the_reader(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in 0usize..80, shape in prop::collection::vec(-2i64..4, 0..4)) {
            let mut message = request("x", &shape, &[1; 16]);
            message.truncate(cut.max(1));
            for (at, byte) in flips {
                let at = at.index(message.len());
                message[at] = byte;
            }
            if let Ok(read) = ProtoRequest::read(message.into()) {
                let _ = read.fit(&interface(), 8, &mut NoMemory);
            }
        }
    }
}
