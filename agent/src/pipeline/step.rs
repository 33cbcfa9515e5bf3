//! What every operation is once compiled: a pure function from the values it reads to those it writes.

use super::{
    appearance::Appearance,
    debounce::StreamState,
    error::Fault,
    image::Placement,
    kind::Kind,
    value::{Array, Value},
};
use std::sync::Arc;

/// A compiled operation. Immutable; shared by all requests.
pub(super) trait Run: Send + Sync {
    /// `inputs` in the order the operation named them; as many results as it declared.
    fn run(&self, inputs: Vec<Value>, around: &mut Around<'_>) -> Result<Vec<Value>, Fault>;

    /// How the pictures look that it has decoded; nothing of an operation that decodes none.
    fn appearances(&self, _written: &Value) -> Option<Vec<Appearance>> {
        None
    }
}

/// What an operation may know besides its tensors.
pub(super) struct Around<'a> {
    /// Placements of the images behind each model input.
    pub placements: &'a [(String, Arc<[Placement]>)],
    pub stream: &'a mut StreamState,
}

/// An operation with the kinds of what it writes.
pub(super) struct Compiled {
    pub run: Box<dyn Run>,
    pub writes: Vec<Kind>,
}

pub(super) type Built = Result<Compiled, String>;

impl Compiled {
    pub(super) fn one(kind: Kind, run: impl Run + 'static) -> Built {
        Ok(Self { run: Box::new(run), writes: vec![kind] })
    }
}

/// An operation of one array, as a closure.
pub(super) struct OnArray<F>(pub F);
impl<F: Fn(Array) -> Result<Array, Fault> + Send + Sync> Run for OnArray<F> {
    fn run(&self, inputs: Vec<Value>, _: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let [array] = arrays(inputs)?;
        Ok(vec![Value::Array((self.0)(array)?)])
    }
}

/// Exactly `N` arrays; what was compiled always passes them.
pub(super) fn arrays<const N: usize>(inputs: Vec<Value>) -> Result<[Array; N], Fault> {
    let found: Result<Vec<Array>, Fault> = inputs
        .into_iter()
        .map(|value| match value {
            Value::Array(array) => Ok(array),
            Value::Images(_) => Err(Fault::shape("got images instead of a tensor")),
        })
        .collect();
    found?
        .try_into()
        .map_err(|found: Vec<Array>| Fault::shape(format!("got {} tensors, not {N}", found.len())))
}
