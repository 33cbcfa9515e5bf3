//! An inference response: JSON, then the outputs that were asked for in binary, in order.

use super::{OipError, RequestedOutput, classify::classify, json::write_data};
use bytes::Bytes;
use edgefleet_shared::tensor::Tensor;
use serde::Serialize;

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

/// The body in order; tensors are not copied.
pub struct Part {
    pub chunks: Vec<Bytes>,
    /// Length of the JSON if binary data follows it.
    pub header_length: Option<usize>,
}

impl InferResponse<'_> {
    /// # Errors
    /// [`OipError`] if an output is missing or has no form in JSON.
    pub fn write(
        &self,
        tensors: &[Tensor],
        wanted: &[RequestedOutput],
        batched: bool,
        labels: &[String],
    ) -> Result<Part, OipError> {
        let mut json = serde_json::to_vec(self)
            .map_err(|e| OipError::Model(format!("the response cannot be written: {e}")))?;
        json.pop(); // the closing brace: the outputs follow
        json.extend_from_slice(b",\"outputs\":[");
        let mut binary: Vec<Bytes> = Vec::new();
        let mut is_binary = false;
        for (index, output) in wanted.iter().enumerate() {
            let Some(tensor) = tensors.iter().find(|tensor| tensor.name() == output.name) else {
                return Err(OipError::Model(format!("the model did not return output `{}`", output.name)));
            };
            let best = match output.classification {
                Some(k) => Some(classify(tensor, k, batched, labels)?),
                None => None,
            };
            let tensor = best.as_ref().unwrap_or(tensor);
            if index > 0 {
                json.push(b',');
            }
            #[derive(Serialize)]
            struct Head<'a> {
                name: &'a str,
                datatype: &'a str,
                shape: &'a [usize],
            }
            let head =
                Head { name: tensor.name(), datatype: tensor.datatype().as_str(), shape: tensor.shape() };
            serde_json::to_writer(&mut json, &head)
                .map_err(|e| OipError::Model(format!("the response cannot be written: {e}")))?;
            json.pop();
            if output.binary {
                is_binary = true;
                let size = tensor.data().len();
                json.extend_from_slice(
                    format!(",\"parameters\":{{\"binary_data_size\":{size}}}}}").as_bytes(),
                );
                binary.push(tensor.data().clone());
            } else {
                json.extend_from_slice(b",\"data\":");
                write_data(tensor, &mut json)?;
                json.push(b'}');
            }
        }
        json.extend_from_slice(b"]}");
        let header_length = is_binary.then_some(json.len());
        let mut chunks = vec![Bytes::from(json)];
        chunks.extend(binary.into_iter().filter(|data| !data.is_empty()));
        Ok(Part { chunks, header_length })
    }
}
