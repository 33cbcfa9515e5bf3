//! Puts the branch that an If always takes in its place.

use super::{
    Done,
    constants::Constants,
    graph::{Budget, Graph, Node, field},
    wire::{Message, NotWire},
};
use bytes::Bytes;
use edgefleet_shared::bundle::Interface;
use std::collections::HashMap;

pub(super) fn take(graph: &mut Graph, interface: &Interface, done: &mut Vec<Done>) -> Result<(), NotWire> {
    if !graph.nodes.iter().any(|node| node.is("If")) {
        return Ok(());
    }
    let mut constants = Constants::new(graph, interface)?;
    let mut made = made(graph)?;
    // A stack, so that an If inside a branch is looked at as well: each node is pushed once per level.
    let mut open: Vec<Node> = std::mem::take(&mut graph.nodes);
    open.reverse();
    while let Some(node) = open.pop() {
        let condition = node.inputs.first().and_then(|name| constants.get(name)).and_then(|it| it.truth());
        let taken = match condition.filter(|_| node.is("If")) {
            Some(taken) => branch(&node, taken, &mut made)?.map(|branch| (branch, taken)),
            None => None,
        };
        let Some((branch, taken)) = taken else {
            constants.learn(&node)?;
            graph.nodes.push(node);
            continue;
        };
        done.push(Done::Branch { node: node.label(), taken });
        for (name, tensor) in branch.weights {
            constants.weight(&name, &tensor)?;
            graph.weights.push((name, tensor));
        }
        open.extend(branch.nodes.into_iter().rev());
    }
    Ok(())
}

/// How often every name is made, in all graphs.
fn made(graph: &Graph) -> Result<HashMap<String, u32>, NotWire> {
    let mut made: HashMap<String, u32> = HashMap::new();
    let mut add = |name: &str, count: u32| *made.entry(name.to_owned()).or_default() += count;
    graph.inputs()?.iter().for_each(|name| add(name, 1));
    graph.weights.iter().for_each(|(name, _)| add(name, 1));
    for node in &graph.nodes {
        node.outputs.iter().filter(|name| !name.is_empty()).for_each(|name| add(name, 1));
        node.nested.made.iter().for_each(|(name, count)| add(name, *count));
    }
    Ok(made)
}

/// What stands for `node`, its outputs included; `made` is brought up to date. `None`: it cannot be done,
/// and `made` is as it was.
fn branch(node: &Node, taken: bool, made: &mut HashMap<String, u32>) -> Result<Option<Graph>, NotWire> {
    let side = if taken { "then_branch" } else { "else_branch" };
    let Some(attribute) = node.attributes.get(side) else { return Ok(None) };
    let Some(bytes) = attribute.bytes(field::ATTRIBUTE_G).last() else { return Ok(None) };
    let mut branch = Graph::parse(&Bytes::clone(bytes), 0, &mut Budget::new())?;
    let plain = branch.rest.all(field::INPUTS).next().is_none()
        && branch.rest.all(field::SPARSE).next().is_none()
        && branch.rest.all(field::QUANTISATION).next().is_none();
    let results = branch.outputs()?;
    if !plain || results.len() != node.outputs.len() {
        return Ok(None);
    }
    // What the If makes, inside and out, is about to go.
    for name in node.outputs.iter().filter(|name| !name.is_empty()) {
        lower(made, name, 1);
    }
    node.nested.made.iter().for_each(|(name, count)| lower(made, name, *count));
    let mut fresh: Vec<(String, u32)> = Vec::new();
    for (name, _) in &branch.weights {
        fresh.push((name.clone(), 1));
    }
    for inner in &branch.nodes {
        fresh.extend(inner.outputs.iter().filter(|name| !name.is_empty()).map(|name| (name.clone(), 1)));
        fresh.extend(inner.nested.made.iter().map(|(name, count)| (name.clone(), *count)));
    }
    for (from, to) in results.iter().zip(&node.outputs).filter(|(from, to)| from != to && !to.is_empty()) {
        branch.nodes.push(Node::identity(from, to));
        fresh.push((to.clone(), 1));
    }
    // A name of the branch that means something else outside: it would have to be renamed everywhere.
    let clash = fresh.iter().any(|(name, _)| made.get(name).is_some_and(|count| *count > 0)) || {
        let mut own: HashMap<&str, u32> = HashMap::new();
        let top = branch.nodes.iter().flat_map(|inner| &inner.outputs).filter(|name| !name.is_empty());
        top.chain(branch.weights.iter().map(|(name, _)| name)).any(|name| {
            let count = own.entry(name).or_default();
            *count += 1;
            *count > 1
        })
    };
    if clash {
        for name in node.outputs.iter().filter(|name| !name.is_empty()) {
            *made.entry(name.clone()).or_default() += 1;
        }
        for (name, count) in &node.nested.made {
            *made.entry(name.clone()).or_default() += count;
        }
        return Ok(None);
    }
    for (name, count) in fresh {
        *made.entry(name).or_default() += count;
    }
    branch.rest = Message::default();
    Ok(Some(branch))
}

fn lower(made: &mut HashMap<String, u32>, name: &str, by: u32) {
    if let Some(count) = made.get_mut(name) {
        *count = count.saturating_sub(by);
    }
}
