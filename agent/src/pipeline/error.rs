//! What can go wrong, at which step, and whose fault it is.

use edgefleet_shared::bundle::pipeline::Side;

/// Why a pipeline does not fit its bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("pipeline `{side}` step {step} (`{op}`): {reason}")]
    Step { side: Side, step: usize, op: &'static str, reason: String },
    /// A value is out of bounds; manifests that were parsed have none.
    #[error("{field}: {reason}")]
    Value { field: String, reason: String },
    /// The tensors after the last step are not what comes next.
    #[error("pipeline `{side}`: {reason}")]
    Ends { side: Side, reason: String },
}

/// Why one request or one answer did not get through.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// The request's tensors are not the ones the pipeline takes.
    #[error("{0}")]
    Input(String),
    /// Before the model: the request's content. The client can mend it.
    #[error("pipeline `pre` step {step} (`{op}`): {fault}")]
    Pre { step: usize, op: &'static str, fault: Fault },
    /// After the model: its answer. The client cannot.
    #[error("pipeline `post` step {step} (`{op}`): {fault}")]
    Post { step: usize, op: &'static str, fault: Fault },
    /// The model's answer is not what the pipeline was compiled for.
    #[error("{0}")]
    Output(String),
}

impl PipelineError {
    /// Whether another request may fare better: then it is the client's mistake (HTTP 400).
    pub fn is_clients(&self) -> bool {
        matches!(self, Self::Input(_) | Self::Pre { .. })
    }
}

/// What an operation has against its tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Refused before anything is allocated.
    #[error("{what} would be {found}, at most {limit} are allowed")]
    TooLarge { what: &'static str, found: u64, limit: u64 },
    #[error("image {image}: {reason}")]
    Image { image: usize, reason: String },
    #[error("{0}")]
    Shape(String),
    #[error("{0}")]
    Value(String),
}

impl Fault {
    pub(super) fn shape(reason: impl Into<String>) -> Self {
        Self::Shape(reason.into())
    }
    pub(super) fn value(reason: impl Into<String>) -> Self {
        Self::Value(reason.into())
    }
}

/// The operation of `pre` that refused a request, from what [`PipelineError::Pre`] says of it.
pub fn refusing_op(said: &str) -> Option<&str> {
    let (_, rest) = said.strip_prefix("pipeline `pre` step ")?.split_once(" (`")?;
    let (op, _) = rest.split_once("`): ")?;
    op.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then_some(op)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_operation_to_programs_too() {
        let fault = Fault::value("is neither JPEG nor PNG");
        let error = PipelineError::Pre { step: 12, op: "decode_image", fault };
        assert_eq!(refusing_op(&error.to_string()), Some("decode_image"));
        assert_eq!(refusing_op("input `x` (`y`): is unknown"), None);
        assert_eq!(refusing_op("pipeline `pre` step 1 (`de code`): x"), None);
    }
}
