//! Flags and shapes that can be known without running anything: what conditions are made of.

use super::{
    graph::{Graph, Node, field},
    weights,
    wire::NotWire,
};
use bytes::Bytes;
use edgefleet_shared::bundle::Interface;
use std::collections::HashMap;

/// Elements that are known; `None` is one that is not. At most 64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    values: Vec<Option<i64>>,
    scalar: bool,
}

impl Known {
    /// As a condition.
    pub(super) fn truth(&self) -> Option<bool> {
        match self.values[..] {
            [Some(value)] => Some(value != 0),
            _ => None,
        }
    }
}

/// Everything known so far, by name.
pub(super) struct Constants<'a> {
    interface: &'a Interface,
    known: HashMap<String, Known>,
}

impl<'a> Constants<'a> {
    /// From the weights of `graph`. The manifest says what clients may send: never a weight.
    pub(super) fn new(graph: &Graph, interface: &'a Interface) -> Result<Self, NotWire> {
        let mut all = Self { interface, known: HashMap::new() };
        graph.weights.iter().try_for_each(|(name, tensor)| all.weight(name, tensor))?;
        Ok(all)
    }

    pub(super) fn weight(&mut self, name: &str, tensor: &Bytes) -> Result<(), NotWire> {
        if let Some((values, scalar)) = weights::ints(tensor)? {
            let values = values.into_iter().map(Some).collect();
            self.known.insert(name.to_owned(), Known { values, scalar });
        }
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Known> {
        self.known.get(name)
    }

    /// Learns what `node` makes, if that is known. Nodes come in the order of the graph.
    pub(super) fn learn(&mut self, node: &Node) -> Result<(), NotWire> {
        if let [output] = &node.outputs[..]
            && node.own
            && let Some(known) = self.computed(node)?
        {
            self.known.insert(output.clone(), known);
        }
        Ok(())
    }

    fn computed(&self, node: &Node) -> Result<Option<Known>, NotWire> {
        let input = |at: usize| node.inputs.get(at).and_then(|name| self.get(name));
        let each = |f: fn(i64) -> i64| {
            input(0).map(|x| Known {
                values: x.values.iter().map(|value| value.map(f)).collect(),
                scalar: x.scalar,
            })
        };
        Ok(match node.op.as_str() {
            "Constant" => return constant(node),
            "Identity" => input(0).cloned(),
            "Not" => each(|value| i64::from(value == 0)),
            "Cast" => match node.int("to") {
                Some(9) => each(|value| i64::from(value != 0)),
                Some(7) => input(0).cloned(),
                _ => None,
            },
            "And" => self.pairs(node, |a, b| a != 0 && b != 0),
            "Or" => self.pairs(node, |a, b| a != 0 || b != 0),
            "Equal" => self.pairs(node, |a, b| a == b),
            "Less" => self.pairs(node, |a, b| a < b),
            "Greater" => self.pairs(node, |a, b| a > b),
            "LessOrEqual" => self.pairs(node, |a, b| a <= b),
            "GreaterOrEqual" => self.pairs(node, |a, b| a >= b),
            "Shape" => self.shape(node),
            "Gather" => gathered(node, input(0), input(1)),
            _ => None,
        })
    }

    fn pairs(&self, node: &Node, f: fn(i64, i64) -> bool) -> Option<Known> {
        let [a, b] = &node.inputs[..] else { return None };
        let (a, b) = (self.get(a)?, self.get(b)?);
        let length = a.values.len().max(b.values.len());
        if [a, b].iter().any(|side| side.values.len() != length && side.values.len() != 1) {
            return None;
        }
        let at =
            |side: &Known, index: usize| side.values.get(index).or(side.values.first()).copied().flatten();
        let values = (0..length).map(|i| Some(i64::from(f(at(a, i)?, at(b, i)?)))).collect();
        Some(Known { values, scalar: a.scalar && b.scalar })
    }

    /// Of an input, as the manifest fixes it.
    fn shape(&self, node: &Node) -> Option<Known> {
        let [input] = &node.inputs[..] else { return None };
        if !node.attributes.is_empty() {
            return None;
        }
        let spec = self.interface.inputs.iter().find(|spec| spec.name == *input)?;
        let values = spec.shape.iter().map(|size| Some(*size).filter(|size| *size >= 0)).collect();
        Some(Known { values, scalar: false })
    }
}

fn constant(node: &Node) -> Result<Option<Known>, NotWire> {
    if let Some(value) = node.attributes.get("value") {
        let Some(tensor) = value.bytes(field::ATTRIBUTE_T).last() else { return Ok(None) };
        let known = weights::ints(tensor)?;
        return Ok(
            known.map(|(values, scalar)| Known { values: values.into_iter().map(Some).collect(), scalar })
        );
    }
    if let Some(value) = node.int("value_int") {
        return Ok(Some(Known { values: vec![Some(value)], scalar: true }));
    }
    let Some(values) = node.attributes.get("value_ints") else { return Ok(None) };
    let values = values.ints(field::ATTRIBUTE_INTS)?;
    Ok((values.len() <= 64).then(|| Known { values: values.into_iter().map(Some).collect(), scalar: false }))
}

/// Elements of a list by their places.
fn gathered(node: &Node, list: Option<&Known>, places: Option<&Known>) -> Option<Known> {
    let (list, places) = (list?, places?);
    if list.scalar || node.int("axis").unwrap_or(0) != 0 {
        return None;
    }
    let length = i64::try_from(list.values.len()).ok()?;
    let one = |place: &Option<i64>| -> Option<Option<i64>> {
        let place = (*place)?;
        let place = if place < 0 { place.checked_add(length)? } else { place };
        list.values.get(usize::try_from(place).ok()?).copied()
    };
    let values = places.values.iter().map(one).collect::<Option<Vec<_>>>()?;
    Some(Known { values, scalar: places.scalar })
}
