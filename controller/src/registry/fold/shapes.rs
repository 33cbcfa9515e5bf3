//! Gives open dimensions the size that the manifest fixes, and the same to every value that shares their name.

use super::{
    Done,
    graph::{Graph, field},
    wire::{Message, NotWire, Value},
};
use edgefleet_shared::bundle::{Interface, TensorSpec};
use std::collections::HashMap;

/// Sizes by the name of a dimension; `None` if two sizes were wanted for one name.
type Sizes = HashMap<String, Option<i64>>;

pub(super) fn fix(graph: &mut Graph, interface: &Interface, done: &mut Vec<Done>) -> Result<(), NotWire> {
    let mut sizes = Sizes::new();
    for (number, specs) in [(field::INPUTS, &interface.inputs), (field::OUTPUTS, &interface.outputs)] {
        for value in graph.rest.0.iter_mut().filter(|(at, _)| *at == number).map(|(_, value)| value) {
            let Value::Bytes(bytes) = value else { return Err(NotWire) };
            let mut info = Message::parse(bytes.clone())?;
            let name = info.text(field::VALUE_NAME)?;
            let Some(spec) = specs.iter().find(|spec| spec.name == name) else { continue };
            let by_place = |index: usize, _: &str| spec.shape.get(index).copied().filter(|size| *size >= 0);
            let fixed = with_dims(&mut info, Some(spec), by_place, |index, param, size| {
                done.push(Done::Shape { tensor: name.clone(), index, size });
                let known = sizes.entry(param.to_owned()).or_insert(Some(size));
                if *known != Some(size) {
                    *known = None;
                }
            })?;
            if fixed {
                *bytes = info.to_bytes();
            }
        }
    }
    if sizes.is_empty() {
        return Ok(());
    }
    // What the exporter noted about values in between must not contradict it.
    for (number, value) in &mut graph.rest.0 {
        if !matches!(*number, field::VALUES | field::OUTPUTS) {
            continue;
        }
        let Value::Bytes(bytes) = value else { return Err(NotWire) };
        let mut info = Message::parse(bytes.clone())?;
        let by_name = |_: usize, param: &str| {
            if param.is_empty() { None } else { sizes.get(param).copied().flatten() }
        };
        if with_dims(&mut info, None, by_name, |_, _, _| {})? {
            *bytes = info.to_bytes();
        }
    }
    Ok(())
}

/// Sets the open dimensions of a `ValueInfoProto` for which `size` of index and name knows one, and tells
/// each. With `spec`, only if the rank is the same. True if anything was set.
fn with_dims(
    info: &mut Message,
    spec: Option<&TensorSpec>,
    size: impl Fn(usize, &str) -> Option<i64>,
    mut tell: impl FnMut(usize, &str, i64),
) -> Result<bool, NotWire> {
    let path = [field::VALUE_TYPE, field::TYPE_TENSOR, field::TENSOR_TYPE_SHAPE];
    inside(info, &path, &mut |shape| {
        let rank = shape.all(field::SHAPE_DIM).count();
        if spec.is_some_and(|spec| spec.shape.len() != rank) {
            return Ok(false);
        }
        let mut fixed = false;
        let dims = shape.0.iter_mut().filter(|(number, _)| *number == field::SHAPE_DIM);
        for (index, (_, value)) in dims.enumerate() {
            let Value::Bytes(bytes) = value else { return Err(NotWire) };
            let mut dim = Message::parse(bytes.clone())?;
            if dim.int(field::DIM_VALUE).is_some_and(|size| size >= 0) {
                continue;
            }
            let param = dim.text(field::DIM_PARAM)?;
            let Some(size) = size(index, &param) else { continue };
            dim.0.retain(|(number, _)| !matches!(*number, field::DIM_VALUE | field::DIM_PARAM));
            dim.push_int(field::DIM_VALUE, size);
            *bytes = dim.to_bytes();
            tell(index, &param, size);
            fixed = true;
        }
        Ok(fixed)
    })
}

/// Applies `change` to the message that lies inside along `path`, and writes it back if it says true.
fn inside(
    message: &mut Message,
    path: &[u32],
    change: &mut impl FnMut(&mut Message) -> Result<bool, NotWire>,
) -> Result<bool, NotWire> {
    let Some((first, path)) = path.split_first() else { return change(message) };
    let Some((_, value)) = message.0.iter_mut().find(|(number, _)| number == first) else { return Ok(false) };
    let Value::Bytes(bytes) = value else { return Err(NotWire) };
    let mut child = Message::parse(bytes.clone())?;
    let changed = inside(&mut child, path, change)?;
    if changed {
        *bytes = child.to_bytes();
    }
    Ok(changed)
}
