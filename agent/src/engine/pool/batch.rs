//! Several requests as one run, and its answers taken apart again. Rows are the first dimension.

use bytes::{Bytes, BytesMut};
use edgefleet_shared::{
    bundle::{Interface, Limits, PipelineSpec, TensorSpec},
    tensor::Tensor,
};

/// Whether every tensor clients see begins with a free dimension, the batch.
pub fn is_batched(interface: &Interface) -> bool {
    let free = |spec: &TensorSpec| spec.shape.first() == Some(&-1);
    interface.inputs.iter().chain(&interface.outputs).all(free)
}

/// Most rows of several requests that may run together, of `configured` ones; 1 runs each alone. `interface`
/// is the one clients see.
pub fn rows_together(
    configured: usize,
    limits: &Limits,
    interface: &Interface,
    pipeline: Option<&PipelineSpec>,
) -> usize {
    let rows = configured.min(limits.batch_max);
    // Off for most devices: then nothing is looked at.
    if rows <= 1 || !is_batched(interface) {
        return 1;
    }
    // Rows of several clients are no sequence.
    let in_time = pipeline.is_some_and(|pipeline| pipeline.post.iter().any(|step| step.op.is_over_time()));
    if in_time { 1 } else { rows }
}

/// Rows of a request all of whose tensors begin with the batch; `None` if they do not agree, or there are none.
pub(in crate::engine) fn rows(inputs: &[Tensor]) -> Option<usize> {
    let (first, rest) = inputs.split_first()?;
    let rows = *first.shape().first().filter(|rows| **rows > 0)?;
    rest.iter().all(|tensor| tensor.shape().first() == Some(&rows)).then_some(rows)
}

/// Whether two requests differ in nothing but their rows.
pub(super) fn fits(a: &[Tensor], b: &[Tensor]) -> bool {
    let row = |tensor: &Tensor| tensor.shape().get(1..).map(<[usize]>::to_vec);
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.name() == b.name() && a.datatype() == b.datatype() && row(a).is_some() && row(a) == row(b)
        })
}

/// One request with the rows of all, which fit each other.
pub(in crate::engine) fn join(requests: &[&[Tensor]]) -> Option<Vec<Tensor>> {
    let (first, rest) = requests.split_first()?;
    let tensor = |(at, model): (usize, &Tensor)| {
        let parts: Option<Vec<&Tensor>> = rest.iter().map(|request| request.get(at)).collect();
        let parts = parts?;
        let mut data = BytesMut::with_capacity(
            model.data().len() + parts.iter().map(|part| part.data().len()).sum::<usize>(),
        );
        let mut shape = model.shape().to_vec();
        data.extend_from_slice(model.data());
        for part in parts {
            *shape.first_mut()? += part.shape().first()?;
            data.extend_from_slice(part.data());
        }
        Tensor::new(model.name(), model.datatype(), shape, data.freeze()).ok()
    };
    first.iter().enumerate().map(tensor).collect()
}

/// The answers of requests with so many `rows` each; `None` if the outputs do not have their sum.
pub(in crate::engine) fn split(outputs: &[Tensor], rows: &[usize]) -> Option<Vec<Vec<Tensor>>> {
    let mut answers: Vec<Vec<Tensor>> = rows.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    let total: usize = rows.iter().sum();
    for output in outputs {
        if output.shape().first() != Some(&total) {
            return None;
        }
        let row: usize = output.shape()[1..].iter().product();
        let mut left = output.data().clone();
        for (answer, rows) in answers.iter_mut().zip(rows) {
            let length = match output.datatype().size() {
                Some(size) => rows * row * size,
                None => length_of(&left, rows * row)?,
            };
            if length > left.len() {
                return None;
            }
            let mut shape = output.shape().to_vec();
            shape[0] = *rows;
            let data = left.split_to(length);
            answer.push(Tensor::new(output.name(), output.datatype(), shape, data).ok()?);
        }
    }
    Some(answers)
}

/// Bytes of so many elements that carry their own length.
fn length_of(data: &Bytes, elements: usize) -> Option<usize> {
    let mut at = 0usize;
    for _ in 0..elements {
        let length = data.get(at..)?.first_chunk::<4>()?;
        at = at.checked_add(4)?.checked_add(u32::from_le_bytes(*length) as usize)?;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::tensor::Datatype;
    use proptest::prelude::*;
    use std::slice;

    fn numbers(rows: usize, first: u8) -> Tensor {
        let data: Vec<u8> = (0..rows * 4).map(|n| first.wrapping_add(n as u8)).collect();
        Tensor::new("x", Datatype::Int16, vec![rows, 2], data.into()).unwrap()
    }
    fn words(rows: usize, first: u8) -> Tensor {
        let data: Vec<u8> = (0..rows)
            .flat_map(|n| {
                let length = u32::from(first) % 5 + n as u32;
                [&length.to_le_bytes()[..], &vec![first; length as usize]].concat()
            })
            .collect();
        Tensor::new("words", Datatype::Bytes, vec![rows], data.into()).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_joined_comes_apart_as_it_was(parts in prop::collection::vec((1usize..5, any::<u8>()), 1..9)) {
            let requests: Vec<Vec<Tensor>> =
                parts.iter().map(|(rows, first)| vec![numbers(*rows, *first), words(*rows, *first)]).collect();
            let slices: Vec<&[Tensor]> = requests.iter().map(Vec::as_slice).collect();
            prop_assert!(slices.iter().all(|request| fits(slices[0], request)));
            let joined = join(&slices).unwrap();
            let rows: Vec<usize> = slices.iter().map(|request| super::rows(request).unwrap()).collect();
            prop_assert_eq!(super::rows(&joined), Some(rows.iter().sum()));
            prop_assert_eq!(split(&joined, &rows).unwrap(), requests);
        }
    }

    #[test]
    fn what_differs_in_more_than_rows_does_not_fit_and_odd_outputs_do_not_come_apart() {
        let wide = Tensor::new("x", Datatype::Int16, vec![1, 3], vec![0; 6].into()).unwrap();
        let scalar = Tensor::new("x", Datatype::Int16, vec![], vec![0; 2].into()).unwrap();
        assert!(!fits(&[numbers(1, 0)], slice::from_ref(&wide)));
        assert!(!fits(&[numbers(1, 0)], &[words(1, 0)]));
        assert!(!fits(&[numbers(1, 0)], &[numbers(1, 0), words(1, 0)]));
        assert!(!fits(slice::from_ref(&scalar), slice::from_ref(&scalar)));
        assert_eq!(rows(slice::from_ref(&scalar)), None);
        assert_eq!(rows(&[numbers(1, 0), words(2, 0)]), None);
        assert_eq!(rows(&[numbers(0, 0)]), None);
        assert_eq!(split(&[wide, scalar], &[1]), None);
        assert_eq!(split(&[numbers(3, 0)], &[1, 1]), None);
    }
}
