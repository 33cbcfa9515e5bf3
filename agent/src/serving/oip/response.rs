//! An inference response: which outputs it has, and its form in JSON with the outputs that were asked for in
//! binary behind it, in order.

use super::{
    OipError,
    classify::classify,
    fit::{Memory, Place, RequestedOutput},
    json::write_data,
};
use bytes::Bytes;
use edgefleet_shared::tensor::Tensor;
use serde::Serialize;
use std::borrow::Cow;

/// Everything about a response but its tensors.
#[derive(Serialize)]
pub struct InferResponse<'a> {
    pub model_name: &'a str,
    pub model_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    pub parameters: ResponseParameters<'a>,
}

/// Which bundle answered, and under which ids the rows can be labelled.
#[derive(Serialize)]
pub struct ResponseParameters<'a> {
    pub bundle: &'a str,
    pub attempt: &'a str,
    /// Of row 0; row `i` has this sequence plus `i`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction_count: Option<usize>,
}

/// An output as it was asked for.
pub struct Delivered<'a> {
    pub tensor: Cow<'a, Tensor>,
    pub is_binary: bool,
    /// It was written there and is not sent.
    pub place: Option<&'a Place>,
}

/// Picks the outputs that were asked for, classifies them if that was asked, and writes to shared memory what
/// belongs there.
///
/// # Errors
/// [`OipError`] if an output is missing, has no best, or does not fit its place.
pub fn deliver<'a>(
    tensors: &'a [Tensor],
    wanted: &'a [RequestedOutput],
    batched: bool,
    labels: &[String],
    memory: &mut dyn Memory,
) -> Result<Vec<Delivered<'a>>, OipError> {
    let mut delivered = Vec::with_capacity(wanted.len());
    for output in wanted {
        let Some(tensor) = tensors.iter().find(|tensor| tensor.name() == output.name) else {
            return Err(OipError::Model(format!("the model did not return output `{}`", output.name)));
        };
        let tensor = match output.classification {
            Some(k) => Cow::Owned(classify(tensor, k, batched, labels)?),
            None => Cow::Borrowed(tensor),
        };
        delivered.push(Delivered { tensor, is_binary: output.binary, place: output.place.as_ref() });
    }
    // Nothing is written before everything fits.
    for Delivered { tensor, place, .. } in &delivered {
        let size = tensor.data().len() as u64;
        if let Some(place) = place.filter(|place| place.size < size) {
            return Err(OipError::Bad(format!(
                "output `{}` has {size} bytes, its place in shared memory {}",
                tensor.name(),
                place.size
            )));
        }
    }
    for Delivered { tensor, place, .. } in &delivered {
        if let Some(place) = place {
            memory.write(place, tensor.data())?;
        }
    }
    Ok(delivered)
}

/// The body in order; tensors are not copied.
pub struct Part {
    pub chunks: Vec<Bytes>,
    /// Length of the JSON if binary data follows it.
    pub header_length: Option<usize>,
}

impl InferResponse<'_> {
    /// # Errors
    /// [`OipError`] if an output has no form in JSON.
    pub fn write(&self, outputs: &[Delivered<'_>]) -> Result<Part, OipError> {
        let unwritable =
            |e: serde_json::Error| OipError::Model(format!("the response cannot be written: {e}"));
        let mut json = serde_json::to_vec(self).map_err(unwritable)?;
        json.pop(); // the closing brace: the outputs follow
        json.extend_from_slice(b",\"outputs\":[");
        let mut binary: Vec<Bytes> = Vec::new();
        let mut is_binary = false;
        for (index, output) in outputs.iter().enumerate() {
            let tensor = &output.tensor;
            if index > 0 {
                json.push(b',');
            }
            #[derive(Serialize)]
            struct Head<'a> {
                name: &'a str,
                datatype: &'a str,
                shape: &'a [usize],
                #[serde(skip_serializing_if = "Option::is_none")]
                parameters: Option<Elsewhere<'a>>,
            }
            #[derive(Serialize)]
            struct Elsewhere<'a> {
                #[serde(skip_serializing_if = "Option::is_none")]
                binary_data_size: Option<usize>,
                #[serde(skip_serializing_if = "Option::is_none")]
                shared_memory_region: Option<&'a str>,
                #[serde(skip_serializing_if = "Option::is_none")]
                shared_memory_offset: Option<u64>,
                #[serde(skip_serializing_if = "Option::is_none")]
                shared_memory_byte_size: Option<usize>,
            }
            let size = tensor.data().len();
            let is_sent = output.place.is_none();
            let parameters = (output.is_binary || !is_sent).then(|| Elsewhere {
                binary_data_size: is_sent.then_some(size),
                shared_memory_region: output.place.map(|place| place.region.as_str()),
                shared_memory_offset: output.place.map(|place| place.offset),
                shared_memory_byte_size: (!is_sent).then_some(size),
            });
            let in_json = parameters.is_none();
            let head = Head {
                name: tensor.name(),
                datatype: tensor.datatype().as_str(),
                shape: tensor.shape(),
                parameters,
            };
            serde_json::to_writer(&mut json, &head).map_err(unwritable)?;
            if in_json {
                json.pop();
                json.extend_from_slice(b",\"data\":");
                write_data(tensor, &mut json)?;
                json.push(b'}');
            } else if is_sent {
                is_binary = true;
                binary.push(tensor.data().clone());
            }
        }
        json.extend_from_slice(b"]}");
        let header_length = is_binary.then_some(json.len());
        let mut chunks = vec![Bytes::from(json)];
        chunks.extend(binary.into_iter().filter(|data| !data.is_empty()));
        Ok(Part { chunks, header_length })
    }
}
