//! Rewrites an ONNX file into one that computes the same with less: conditions that are always the same,
//! batch normalisation after a convolution or a matrix product, shapes the manifest fixes. Pure.
//!
//! The file is hostile: it is taken apart without trust, everything is bounded, and what is not understood to
//! the last detail stays as it is. That the result still computes the same is not believed either:
//! `model build` has the agent compare golden samples before and after, and keeps the original otherwise.

mod branches;
mod constants;
mod graph;
mod norms;
mod shapes;
#[cfg(test)]
mod tests;
mod unused;
mod weights;
mod wire;

use bytes::Bytes;
use edgefleet_shared::bundle::Interface;
use graph::{Budget, Graph, field};
use serde::Serialize;
use std::fmt;
use wire::{Message, NotWire, Value};

/// Largest file that is rewritten: original, weights and result lie in memory side by side.
pub const MAX_FOLDED_BYTES: u64 = 512 << 20;
/// IR versions before list every weight among the inputs.
const LEAST_IR: i64 = 4;
/// Since then batch normalisation has the attributes that are read here.
const LEAST_OPSET: i64 = 9;

/// What a rewrite did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "fold", rename_all = "kebab-case")]
pub enum Done {
    /// The dimension `index` of a tensor has the size of the manifest.
    Shape { tensor: String, index: usize, size: i64 },
    /// The If `node` always takes one branch, which stands in its place.
    Branch { node: String, taken: bool },
    /// The BatchNormalization `node` is part of the weights of `into`.
    Norm { node: String, into: String },
    /// So many nodes were left that nobody reads.
    Unused { nodes: usize },
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { tensor, index, size } => {
                write!(f, "fixed dimension {index} of `{tensor}` at {size}, as bundle.toml says")
            }
            Self::Branch { node, taken } => write!(f, "`{node}` (If) is always {taken}: kept that branch"),
            Self::Norm { node, into } => {
                write!(f, "folded `{node}` (BatchNormalization) into the weights of `{into}`")
            }
            Self::Unused { nodes: 1 } => write!(f, "removed 1 node that nothing reads"),
            Self::Unused { nodes } => write!(f, "removed {nodes} nodes that nothing reads"),
        }
    }
}

/// A rewritten file.
#[derive(Clone, Debug)]
pub struct Folded {
    pub bytes: Bytes,
    pub done: Vec<Done>,
}

/// Rewrites `model`, whose tensors are those of `interface`. `None`: there is nothing to do, or nothing that
/// is understood well enough.
pub fn fold(model: &Bytes, interface: &Interface) -> Option<Folded> {
    if model.len() as u64 > MAX_FOLDED_BYTES {
        return None;
    }
    try_fold(model, interface).ok().flatten()
}

fn try_fold(model: &Bytes, interface: &Interface) -> Result<Option<Folded>, NotWire> {
    let mut whole = Message::parse(model.clone())?;
    // Twice means merged: left to the engines.
    if whole.bytes(field::MODEL_GRAPH).count() != 1 {
        return Ok(None);
    }
    let Some(bytes) = whole.bytes(field::MODEL_GRAPH).next().cloned() else { return Ok(None) };
    let mut graph = Graph::parse(&bytes, 0, &mut Budget::new())?;
    let mut done = Vec::new();
    shapes::fix(&mut graph, interface, &mut done)?;
    let modern = whole.int(field::MODEL_IR).is_some_and(|version| version >= LEAST_IR)
        && opset(&whole)? >= LEAST_OPSET
        && graph.rest.all(field::SPARSE).next().is_none();
    if modern {
        let before = done.len();
        branches::take(&mut graph, interface, &mut done)?;
        // Quantisation parameters are named there by the tensors that would change.
        if graph.rest.all(field::QUANTISATION).next().is_none() {
            norms::merge(&mut graph, &mut done)?;
        }
        if done.len() > before {
            unused::remove(&mut graph, &mut done)?;
        }
    }
    if done.is_empty() {
        return Ok(None);
    }
    let rewritten = graph.to_bytes();
    for (number, value) in &mut whole.0 {
        if *number == field::MODEL_GRAPH {
            *value = Value::Bytes(rewritten.clone());
        }
    }
    Ok(Some(Folded { bytes: whole.to_bytes(), done }))
}

/// Of ONNX's own operators.
fn opset(model: &Message) -> Result<i64, NotWire> {
    for set in model.bytes(field::MODEL_OPSETS) {
        let set = Message::parse(set.clone())?;
        if matches!(set.text(field::OPSET_DOMAIN)?.as_str(), "" | "ai.onnx") {
            return Ok(set.int(field::OPSET_VERSION).unwrap_or(0));
        }
    }
    Ok(0)
}
