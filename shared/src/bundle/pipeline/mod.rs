//! What happens to tensors before and after the model: the `pipeline` section of a manifest.
//!
//! A closed vocabulary ([`op`]), read strictly: an unknown operation or parameter is a mistake that names
//! the step. [`check`] looks at values; whether shapes and types fit is decided where the pipeline is
//! compiled, on the device and in the probe. An agent older than the vocabulary fails the bundle's golden
//! samples, which are recorded outside the pipeline, and so never runs a model without its steps.

mod check;
pub mod op;

pub use op::{Anchor, Color, Filter, Layout, LogScale, MelNorm, Op, Pad, PriorLevel, Spectrum, Taper};

use super::TensorSpec;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Map, Value};

/// Most steps on one side of the model.
pub const MAX_STEPS: usize = 64;
/// Most bytes of a tensor's name.
pub const MAX_NAME_BYTES: usize = 256;

/// Operations around the model, and the tensors clients see because of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineSpec {
    /// What clients send: the tensors there are before the first step of `pre`.
    pub inputs: Vec<TensorSpec>,
    /// What clients get: tensors there are after the last step of `post`.
    pub outputs: Vec<TensorSpec>,
    /// From `inputs` to the model's inputs, which have their names.
    #[serde(default, deserialize_with = "pre_steps", skip_serializing_if = "Vec::is_empty")]
    pub pre: Vec<Step>,
    /// From the model's outputs to `outputs`.
    #[serde(default, deserialize_with = "post_steps", skip_serializing_if = "Vec::is_empty")]
    pub post: Vec<Step>,
}

/// One operation and the tensors it works on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    #[serde(flatten)]
    pub op: Op,
    /// Tensor it reads; absent: what the step before wrote, or the only tensor there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Name of its result; absent: takes the place of what it read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// On which side of the model a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Pre,
    Post,
}
impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pre => "pre",
            Self::Post => "post",
        })
    }
}

impl PipelineSpec {
    /// What is wrong with its values, as (field, reason). Empty if sound.
    pub fn mistakes(&self) -> Vec<(String, String)> {
        check::mistakes(self)
    }
}

fn pre_steps<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Step>, D::Error> {
    steps(from, Side::Pre)
}
fn post_steps<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Step>, D::Error> {
    steps(from, Side::Post)
}

/// One by one, so that a mistake carries the number and the operation of its step.
fn steps<'de, D: Deserializer<'de>>(from: D, side: Side) -> Result<Vec<Step>, D::Error> {
    let raw = Vec::<Map<String, Value>>::deserialize(from)?;
    if raw.len() > MAX_STEPS {
        let found = raw.len();
        return Err(D::Error::custom(format!("`{side}` has {found} steps, at most {MAX_STEPS} are allowed")));
    }
    let numbered = raw.into_iter().enumerate();
    numbered
        .map(|(index, map)| {
            let name = map.get("op").and_then(Value::as_str).unwrap_or("?").to_owned();
            step(map)
                .map_err(|why| D::Error::custom(format!("`{side}` step {} (`{name}`): {why}", index + 1)))
        })
        .collect()
}

fn step(mut map: Map<String, Value>) -> Result<Step, String> {
    let mut take = |key: &str| match map.remove(key) {
        None => Ok(None),
        Some(Value::String(name)) if (1..=MAX_NAME_BYTES).contains(&name.len()) => Ok(Some(name)),
        Some(other) => {
            Err(format!("`{key}` is {other}, not the name of a tensor (1 to {MAX_NAME_BYTES} bytes)"))
        }
    };
    let (from, to) = (take("from")?, take("to")?);
    let op = Op::deserialize(Value::Object(map)).map_err(|e| e.to_string())?;
    Ok(Step { op, from, to })
}

#[cfg(test)]
mod tests;
