//! Holds a request's tensors against the interface, the same way for every engine.

use super::RunError;
use edgefleet_shared::{
    bundle::TensorSpec,
    tensor::{Datatype, Tensor},
};

/// The request's tensors in the order of the interface, and the batch if there is one.
///
/// # Errors
/// [`RunError::BadInput`]: what the caller sent and what the model takes.
pub(super) fn accept<'a, 's>(
    specs: impl Iterator<Item = &'s TensorSpec> + Clone,
    given: &'a [Tensor],
) -> Result<(Vec<&'a Tensor>, Option<usize>), RunError> {
    let names = || -> Vec<&str> { given.iter().map(Tensor::name).collect() };
    let wanted = || -> Vec<&str> { specs.clone().map(|spec| spec.name.as_str()).collect() };
    let count = specs.clone().count();
    if given.len() != count {
        return Err(RunError::BadInput(format!(
            "the model takes {count} inputs {:?}, the request has {}: {:?}",
            wanted(),
            given.len(),
            names()
        )));
    }
    let mut batch = None;
    let mut ordered = Vec::with_capacity(given.len());
    for spec in specs.clone() {
        let Some(tensor) = given.iter().find(|t| t.name() == spec.name) else {
            return Err(RunError::BadInput(format!(
                "input `{}` is missing: the model takes {:?}, the request has {:?}",
                spec.name,
                wanted(),
                names()
            )));
        };
        check(spec, tensor)?;
        if spec.shape.first() == Some(&-1) {
            let rows = tensor.shape()[0];
            if *batch.get_or_insert(rows) != rows {
                return Err(RunError::BadInput(format!(
                    "input `{}` has {rows} rows, the one before has {}",
                    spec.name,
                    batch.unwrap_or_default()
                )));
            }
        }
        ordered.push(tensor);
    }
    Ok((ordered, batch))
}

/// Whether a shape is one the interface allows; -1 is variable.
pub(super) fn fits(shape: &[usize], allowed: &[i64]) -> bool {
    let fits = |(have, want): (&usize, &i64)| *want < 0 || i64::try_from(*have) == Ok(*want);
    shape.len() == allowed.len() && shape.iter().zip(allowed).all(fits)
}

fn check(spec: &TensorSpec, tensor: &Tensor) -> Result<(), RunError> {
    let bad = |text: String| Err(RunError::BadInput(text));
    if tensor.datatype() != spec.datatype {
        return bad(format!("input `{}` must be {}, not {}", spec.name, spec.datatype, tensor.datatype()));
    }
    if !fits(tensor.shape(), &spec.shape) {
        return bad(format!(
            "input `{}` must have shape {:?} (-1 is variable), not {:?}",
            spec.name,
            spec.shape,
            tensor.shape()
        ));
    }
    if tensor.is_empty() {
        return bad(format!("input `{}` of shape {:?} has no elements", spec.name, tensor.shape()));
    }
    // Any other byte in a truth value is undefined behaviour in the engines.
    if tensor.datatype() == Datatype::Bool
        && let Some((at, byte)) = tensor.data().iter().enumerate().find(|(_, byte)| **byte > 1)
    {
        return bad(format!("input `{}`: element {at} is the byte {byte}, a BOOL is 0 or 1", spec.name));
    }
    Ok(())
}
