//! A graph taken apart as far as folding needs it. Field numbers: `onnx/onnx.proto`.

use super::wire::{Message, NotWire, Value};
use bytes::Bytes;
use std::collections::HashMap;

/// Nodes of all graphs together, as many as the agent takes.
const MAX_NODES: usize = 50_000;
/// Graphs inside graphs.
const MAX_DEPTH: usize = 8;

pub(super) mod field {
    pub(in super::super) const MODEL_IR: u32 = 1;
    pub(in super::super) const MODEL_GRAPH: u32 = 7;
    pub(in super::super) const MODEL_OPSETS: u32 = 8;
    pub(in super::super) const OPSET_DOMAIN: u32 = 1;
    pub(in super::super) const OPSET_VERSION: u32 = 2;
    pub(in super::super) const NODES: u32 = 1;
    pub(in super::super) const WEIGHTS: u32 = 5;
    pub(in super::super) const INPUTS: u32 = 11;
    pub(in super::super) const OUTPUTS: u32 = 12;
    pub(in super::super) const VALUES: u32 = 13;
    pub(in super::super) const QUANTISATION: u32 = 14;
    pub(in super::super) const SPARSE: u32 = 15;
    pub(in super::super) const NODE_INPUT: u32 = 1;
    pub(in super::super) const NODE_OUTPUT: u32 = 2;
    pub(in super::super) const NODE_NAME: u32 = 3;
    pub(in super::super) const NODE_OP: u32 = 4;
    pub(in super::super) const NODE_ATTRIBUTE: u32 = 5;
    pub(in super::super) const NODE_DOMAIN: u32 = 7;
    pub(in super::super) const ATTRIBUTE_NAME: u32 = 1;
    pub(in super::super) const ATTRIBUTE_F: u32 = 2;
    pub(in super::super) const ATTRIBUTE_I: u32 = 3;
    pub(in super::super) const ATTRIBUTE_T: u32 = 5;
    pub(in super::super) const ATTRIBUTE_G: u32 = 6;
    pub(in super::super) const ATTRIBUTE_INTS: u32 = 8;
    pub(in super::super) const ATTRIBUTE_GRAPHS: u32 = 11;
    pub(in super::super) const TENSOR_DIMS: u32 = 1;
    pub(in super::super) const TENSOR_TYPE: u32 = 2;
    pub(in super::super) const TENSOR_FLOATS: u32 = 4;
    pub(in super::super) const TENSOR_INT32S: u32 = 5;
    pub(in super::super) const TENSOR_INT64S: u32 = 7;
    pub(in super::super) const TENSOR_NAME: u32 = 8;
    pub(in super::super) const TENSOR_RAW: u32 = 9;
    pub(in super::super) const TENSOR_EXTERNAL: u32 = 13;
    pub(in super::super) const TENSOR_LOCATION: u32 = 14;
    pub(in super::super) const VALUE_NAME: u32 = 1;
    pub(in super::super) const VALUE_TYPE: u32 = 2;
    pub(in super::super) const TYPE_TENSOR: u32 = 1;
    pub(in super::super) const TENSOR_TYPE_SHAPE: u32 = 2;
    pub(in super::super) const SHAPE_DIM: u32 = 1;
    pub(in super::super) const DIM_VALUE: u32 = 1;
    pub(in super::super) const DIM_PARAM: u32 = 2;
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    pub(super) name: String,
    pub(super) op: String,
    /// Of ONNX itself, not of another domain.
    pub(super) own: bool,
    /// By name; small but for constants, which share the file's memory.
    pub(super) attributes: HashMap<String, Message>,
    /// All but inputs and outputs, as in the file.
    rest: Message,
    /// Names read and made by graphs inside it.
    pub(super) nested: Names,
}

/// How often names are read and made.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) read: HashMap<String, u32>,
    pub(super) made: HashMap<String, u32>,
}

impl Names {
    fn add(&mut self, other: Self) {
        for (name, count) in other.read {
            *self.read.entry(name).or_default() += count;
        }
        for (name, count) in other.made {
            *self.made.entry(name).or_default() += count;
        }
    }
}

/// What is left of what a file may hold.
pub(super) struct Budget {
    nodes: usize,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { nodes: MAX_NODES }
    }
}

impl Node {
    pub(super) fn parse(bytes: &Bytes, depth: usize, budget: &mut Budget) -> Result<Self, NotWire> {
        budget.nodes = budget.nodes.checked_sub(1).ok_or(NotWire)?;
        let whole = Message::parse(bytes.clone())?;
        let domain = whole.text(field::NODE_DOMAIN)?;
        let mut attributes = HashMap::new();
        let mut nested = Names::default();
        for attribute in whole.bytes(field::NODE_ATTRIBUTE) {
            let attribute = Message::parse(attribute.clone())?;
            for graph in attribute.bytes(field::ATTRIBUTE_G).chain(attribute.bytes(field::ATTRIBUTE_GRAPHS)) {
                nested.add(names(graph, depth + 1, budget)?);
            }
            attributes.insert(attribute.text(field::ATTRIBUTE_NAME)?, attribute);
        }
        let rest = |(number, _): &(u32, Value)| !matches!(*number, field::NODE_INPUT | field::NODE_OUTPUT);
        Ok(Self {
            inputs: whole.texts(field::NODE_INPUT)?,
            outputs: whole.texts(field::NODE_OUTPUT)?,
            name: whole.text(field::NODE_NAME)?,
            op: whole.text(field::NODE_OP)?,
            own: matches!(domain.as_str(), "" | "ai.onnx"),
            attributes,
            nested,
            rest: Message(whole.0.into_iter().filter(rest).collect()),
        })
    }

    /// `to` as a copy of `from`.
    pub(super) fn identity(from: &str, to: &str) -> Self {
        let mut rest = Message::default();
        rest.push_text(field::NODE_NAME, to);
        rest.push_text(field::NODE_OP, "Identity");
        Self {
            inputs: vec![from.to_owned()],
            outputs: vec![to.to_owned()],
            name: to.to_owned(),
            op: "Identity".to_owned(),
            own: true,
            attributes: HashMap::new(),
            nested: Names::default(),
            rest,
        }
    }

    pub(super) fn is(&self, op: &str) -> bool {
        self.own && self.op == op
    }

    /// What to call it in a report.
    pub(super) fn label(&self) -> String {
        let name = if self.name.is_empty() { self.outputs.first() } else { Some(&self.name) };
        name.map(|name| name.chars().filter(|c| !c.is_control()).take(80).collect()).unwrap_or_default()
    }

    pub(super) fn int(&self, attribute: &str) -> Option<i64> {
        self.attributes.get(attribute)?.int(field::ATTRIBUTE_I)
    }

    pub(super) fn float(&self, attribute: &str) -> Option<f32> {
        self.attributes.get(attribute)?.float(field::ATTRIBUTE_F)
    }

    fn to_message(&self) -> Message {
        let mut message = Message::default();
        self.inputs.iter().for_each(|name| message.push_text(field::NODE_INPUT, name));
        self.outputs.iter().for_each(|name| message.push_text(field::NODE_OUTPUT, name));
        message.0.extend(self.rest.0.iter().cloned());
        message
    }
}

/// Names read and made in a graph and those inside it.
fn names(graph: &Bytes, depth: usize, budget: &mut Budget) -> Result<Names, NotWire> {
    if depth > MAX_DEPTH {
        return Err(NotWire);
    }
    let graph = Graph::parse(graph, depth, budget)?;
    let mut all = Names::default();
    for node in graph.nodes {
        for name in node.inputs.into_iter().filter(|name| !name.is_empty()) {
            *all.read.entry(name).or_default() += 1;
        }
        for name in node.outputs.into_iter().filter(|name| !name.is_empty()) {
            *all.made.entry(name).or_default() += 1;
        }
        all.add(node.nested);
    }
    for name in graph.weights.into_iter().map(|(name, _)| name) {
        *all.made.entry(name).or_default() += 1;
    }
    for value in graph.rest.bytes(field::INPUTS) {
        *all.made.entry(Message::parse(value.clone())?.text(field::VALUE_NAME)?).or_default() += 1;
    }
    for value in graph.rest.bytes(field::OUTPUTS) {
        *all.read.entry(Message::parse(value.clone())?.text(field::VALUE_NAME)?).or_default() += 1;
    }
    Ok(all)
}

#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    /// Name and `TensorProto`.
    pub(super) weights: Vec<(String, Bytes)>,
    /// All else, as in the file.
    pub(super) rest: Message,
}

impl Graph {
    pub(super) fn parse(bytes: &Bytes, depth: usize, budget: &mut Budget) -> Result<Self, NotWire> {
        let whole = Message::parse(bytes.clone())?;
        let mut nodes = Vec::new();
        for node in whole.bytes(field::NODES) {
            nodes.push(Node::parse(node, depth, budget)?);
        }
        let mut weights = Vec::new();
        for weight in whole.bytes(field::WEIGHTS) {
            weights.push((Message::parse(weight.clone())?.text(field::TENSOR_NAME)?, weight.clone()));
        }
        let rest = |(number, _): &(u32, Value)| !matches!(*number, field::NODES | field::WEIGHTS);
        Ok(Self { nodes, weights, rest: Message(whole.0.into_iter().filter(rest).collect()) })
    }

    /// Names of its outputs.
    pub(super) fn outputs(&self) -> Result<Vec<String>, NotWire> {
        let name = |value: &Bytes| Message::parse(value.clone())?.text(field::VALUE_NAME);
        self.rest.bytes(field::OUTPUTS).map(name).collect()
    }

    /// Names of its inputs, weights with a default among them.
    pub(super) fn inputs(&self) -> Result<Vec<String>, NotWire> {
        let name = |value: &Bytes| Message::parse(value.clone())?.text(field::VALUE_NAME);
        self.rest.bytes(field::INPUTS).map(name).collect()
    }

    /// How often every name is read, outputs of the graph included.
    pub(super) fn uses(&self) -> Result<HashMap<String, u32>, NotWire> {
        let mut uses: HashMap<String, u32> = HashMap::new();
        for name in self.outputs()? {
            *uses.entry(name).or_default() += 1;
        }
        for node in &self.nodes {
            for name in node.inputs.iter().filter(|name| !name.is_empty()) {
                *uses.entry(name.clone()).or_default() += 1;
            }
            for (name, count) in &node.nested.read {
                *uses.entry(name.clone()).or_default() += count;
            }
        }
        Ok(uses)
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        let mut message = Message::default();
        self.nodes.iter().for_each(|node| message.push_message(field::NODES, &node.to_message()));
        for (_, weight) in &self.weights {
            message.0.push((field::WEIGHTS, Value::Bytes(weight.clone())));
        }
        message.0.extend(self.rest.0.iter().cloned());
        message.to_bytes()
    }
}
