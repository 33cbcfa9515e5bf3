//! Whether what a client names fits the interface of the model; the same for JSON and protocol buffers.

use super::{OipError, bounded::Parameters, request::Parameter};
use crate::engine::pool::Priority;
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{Interface, TensorSpec},
    tensor::{Datatype, Tensor, element_count},
};
use std::{collections::BTreeSet, time::Duration};

/// Bytes of a request id, which is echoed.
const MAX_ID: usize = 1_024;

/// How the client wants one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedOutput {
    pub name: String,
    /// Over HTTP: as raw bytes behind the JSON. gRPC has no other form.
    pub binary: bool,
    /// The `k` best as `value:index[:label]`.
    pub classification: Option<usize>,
    /// Written there instead of being sent.
    pub place: Option<Place>,
}

/// A piece of a registered shared-memory region; offsets count from the start of the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub region: String,
    pub offset: u64,
    pub size: u64,
}

/// Where tensors lie that are not sent.
pub trait Memory {
    /// # Errors
    /// [`OipError`] if there is no such region, or `place` is not within it, now.
    fn read(&mut self, place: &Place) -> Result<Bytes, OipError>;
    /// Writes at the start of `place`, which is large enough.
    ///
    /// # Errors
    /// As reading.
    fn write(&mut self, place: &Place, data: &[u8]) -> Result<(), OipError>;
    /// Asked before `bytes` are allocated for what a request decodes to.
    ///
    /// # Errors
    /// [`OipError::Busy`] if there is no room for them.
    fn charge(&mut self, bytes: usize) -> Result<(), OipError>;
}

/// Where there is no shared memory, and decoding is not counted.
pub struct NoMemory;

impl Memory for NoMemory {
    fn read(&mut self, place: &Place) -> Result<Bytes, OipError> {
        bad(format!("there is no shared memory `{}` here", place.region))
    }
    fn write(&mut self, place: &Place, _: &[u8]) -> Result<(), OipError> {
        bad(format!("there is no shared memory `{}` here", place.region))
    }
    fn charge(&mut self, _: usize) -> Result<(), OipError> {
        Ok(())
    }
}

pub(super) fn bad<T>(message: String) -> Result<T, OipError> {
    Err(OipError::Bad(message))
}

/// Inputs seen so far.
pub(super) struct Inputs<'i> {
    interface: &'i Interface,
    batch_max: usize,
    seen: BTreeSet<&'i str>,
}

impl<'i> Inputs<'i> {
    pub(super) fn of(interface: &'i Interface, batch_max: usize) -> Self {
        Self { interface, batch_max, seen: BTreeSet::new() }
    }

    /// # Errors
    /// [`OipError::Bad`] if the model has no such input, or it was given before.
    pub(super) fn take(&mut self, name: &str) -> Result<&'i TensorSpec, OipError> {
        let Some(spec) = self.interface.inputs.iter().find(|spec| spec.name == name) else {
            return bad(unknown("input", name, &self.interface.inputs));
        };
        if !self.seen.insert(&spec.name) {
            return bad(format!("input `{}` is given twice", spec.name));
        }
        Ok(spec)
    }

    /// The shape, once type and shape are what `spec` takes.
    ///
    /// # Errors
    /// [`OipError::Bad`].
    pub(super) fn shape(
        &self,
        spec: &TensorSpec,
        datatype: &str,
        given: &[i64],
    ) -> Result<Vec<usize>, OipError> {
        let name = &spec.name;
        if datatype != spec.datatype.as_str() {
            let found: String = datatype.chars().take(20).collect();
            return bad(format!("input `{name}` is {}, not {found}", spec.datatype));
        }
        let fits = |(dim, wanted): (&i64, &i64)| *dim >= 0 && (*wanted == -1 || dim == wanted);
        if given.len() != spec.shape.len() || !given.iter().zip(&spec.shape).all(fits) {
            return bad(format!("input `{name}` has shape {given:?}, the model takes {:?}", spec.shape));
        }
        let shape: Vec<usize> = given.iter().filter_map(|dim| usize::try_from(*dim).ok()).collect();
        let batch_max = self.batch_max;
        if spec.shape.first() == Some(&-1) && shape.first().is_some_and(|rows| *rows > batch_max) {
            return bad(format!("input `{name}` has {} rows, the model takes at most {batch_max}", shape[0]));
        }
        Ok(shape)
    }

    /// # Errors
    /// [`OipError::Bad`] names an input that was not given.
    pub(super) fn complete(&self) -> Result<(), OipError> {
        let missing = self.interface.inputs.iter().find(|spec| !self.seen.contains(spec.name.as_str()));
        match missing {
            None => Ok(()),
            Some(spec) => {
                bad(format!("input `{}` ({} {:?}) is missing", spec.name, spec.datatype, spec.shape))
            }
        }
    }
}

fn unknown(side: &str, name: &str, specs: &[TensorSpec]) -> String {
    let name: String = name.chars().take(100).collect();
    let known: Vec<_> = specs.iter().map(|spec| format!("`{}`", spec.name)).collect();
    format!("the model has no {side} `{name}`; it has {}", known.join(", "))
}

/// The tensor in shared memory; nothing is read before its size is what the shape needs.
pub(super) fn tensor_at(
    place: &Place,
    spec: &TensorSpec,
    shape: Vec<usize>,
    memory: &mut dyn Memory,
) -> Result<Tensor, OipError> {
    let wanted = spec.datatype.size().and_then(|size| element_count(&shape)?.checked_mul(size));
    if let Some(wanted) = wanted.filter(|wanted| *wanted as u64 != place.size) {
        return bad(format!(
            "input `{}` of shape {shape:?} needs {wanted} bytes, `shared_memory_byte_size` is {}",
            spec.name, place.size
        ));
    }
    checked(&spec.name, spec.datatype, shape, memory.read(place)?)
}

pub(super) fn checked(
    name: &str,
    datatype: Datatype,
    shape: Vec<usize>,
    data: Bytes,
) -> Result<Tensor, OipError> {
    if datatype == Datatype::Bool
        && let Some(element) = data.iter().position(|byte| *byte > 1)
    {
        return bad(format!("tensor `{name}` element {element}: {} is neither 0 nor 1", data[element]));
    }
    Tensor::new(name, datatype, shape, data).map_err(|e| OipError::Bad(e.to_string()))
}

pub(super) fn check_id(id: &str) -> Result<(), OipError> {
    if id.len() > MAX_ID {
        return bad(format!("a request id has at most {MAX_ID} bytes"));
    }
    Ok(())
}

/// How urgent a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Urgency {
    /// Longest time the client wants to wait.
    pub timeout: Option<Duration>,
    pub priority: Priority,
}

/// What the parameters of a whole request say: how urgent it is. Names that are not ours are left alone.
///
/// # Errors
/// [`OipError::Unsupported`] for a member of a sequence; [`OipError::Bad`] for a timeout that is no number and a priority that is none.
pub(super) fn urgency(parameters: &Parameters) -> Result<Urgency, OipError> {
    let none = |parameter: &Parameter| match parameter {
        Parameter::Unsigned(0) | Parameter::Bool(false) => true,
        Parameter::Text(text) => text.is_empty(),
        _ => false,
    };
    let sequence = ["sequence_id", "sequence_start", "sequence_end"];
    let asked = sequence.into_iter().find(|name| parameters.0.get(*name).is_some_and(|p| !none(p)));
    if let Some(name) = asked {
        return Err(OipError::Unsupported(format!(
            "requests are independent: `{name}` is not supported, models keep no state between requests"
        )));
    }
    let timeout = match parameters.0.get("timeout") {
        None | Some(Parameter::Unsigned(0)) => None,
        Some(Parameter::Unsigned(us)) => Some(Duration::from_micros(*us)),
        Some(_) => return bad("parameter `timeout` is a whole number of microseconds".into()),
    };
    let priority = match parameters.0.get("priority") {
        None => Some(Priority::default()),
        Some(Parameter::Unsigned(number)) => Priority::of(*number),
        Some(_) => None,
    };
    let Some(priority) = priority else {
        let (first, last) = (Priority::FIRST, Priority::LAST);
        return bad(format!("parameter `priority` is {first} (first) to {last}, or 0 for the usual one"));
    };
    Ok(Urgency { timeout, priority })
}

pub(super) fn flag(parameters: &Parameters, name: &str) -> Result<Option<bool>, OipError> {
    match parameters.0.get(name) {
        None => Ok(None),
        Some(Parameter::Bool(value)) => Ok(Some(*value)),
        Some(_) => bad(format!("parameter `{name}` is true or false")),
    }
}

pub(super) fn all_outputs(interface: &Interface, binary: bool) -> Vec<RequestedOutput> {
    let each = |spec: &TensorSpec| RequestedOutput {
        name: spec.name.clone(),
        binary,
        classification: None,
        place: None,
    };
    interface.outputs.iter().map(each).collect()
}

/// The outputs asked for, in that order; all of them if none is. `binary`: unless an output says otherwise.
///
/// # Errors
/// [`OipError::Bad`] for an output the model has not, one asked for twice, or parameters of another kind.
pub(super) fn outputs(
    asked: Vec<(String, Parameters)>,
    binary: bool,
    interface: &Interface,
) -> Result<Vec<RequestedOutput>, OipError> {
    if asked.is_empty() {
        return Ok(all_outputs(interface, binary));
    }
    let mut seen = BTreeSet::new();
    let mut wanted = Vec::with_capacity(asked.len());
    for (name, parameters) in asked {
        if !interface.outputs.iter().any(|spec| spec.name == name) {
            return bad(unknown("output", &name, &interface.outputs));
        }
        if !seen.insert(name.clone()) {
            return bad(format!("output `{name}` is asked for twice"));
        }
        let place = place(&name, &parameters)?;
        let classification = match parameters.0.get("classification") {
            None | Some(Parameter::Unsigned(0)) => None,
            Some(Parameter::Unsigned(k)) => Some(usize::try_from(*k).unwrap_or(usize::MAX)),
            Some(_) => return bad(format!("output `{name}`: `classification` is a count of classes")),
        };
        let binary = flag(&parameters, "binary_data")?.unwrap_or(binary);
        wanted.push(RequestedOutput { name, binary, classification, place });
    }
    Ok(wanted)
}

/// Where in shared memory a tensor lies, if it does.
///
/// # Errors
/// [`OipError::Bad`] for parameters of another kind.
pub(super) fn place(tensor: &str, parameters: &Parameters) -> Result<Option<Place>, OipError> {
    let region = match parameters.0.get("shared_memory_region") {
        None => return Ok(None),
        Some(Parameter::Text(region)) => region.clone(),
        Some(_) => return bad(format!("tensor `{tensor}`: `shared_memory_region` is a name")),
    };
    let number = |name: &str, otherwise: Option<u64>| match (parameters.0.get(name), otherwise) {
        (Some(Parameter::Unsigned(number)), _) => Ok(*number),
        (None, Some(number)) => Ok(number),
        _ => bad(format!("tensor `{tensor}`: `{name}` is a count of bytes")),
    };
    let size = number("shared_memory_byte_size", None)?;
    let offset = number("shared_memory_offset", Some(0))?;
    Ok(Some(Place { region, offset, size }))
}
