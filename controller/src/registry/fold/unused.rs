//! Removes nodes and weights that nothing reads, and notes about values that are gone.

use super::{
    Done,
    graph::{Graph, field},
    wire::{Message, NotWire, Value},
};
use std::collections::{HashMap, HashSet};

pub(super) fn remove(graph: &mut Graph, done: &mut Vec<Done>) -> Result<(), NotWire> {
    let mut uses = graph.uses()?;
    let mut makers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        node.outputs.iter().for_each(|name| makers.entry(name).or_default().push(index));
    }
    let mut gone = HashSet::new();
    let unread = |index: usize, uses: &HashMap<String, u32>| {
        let outputs = graph.nodes[index].outputs.iter().filter(|name| !name.is_empty());
        outputs.clone().next().is_some()
            && outputs.clone().all(|name| uses.get(name).is_none_or(|count| *count == 0))
    };
    let mut open: Vec<usize> = (0..graph.nodes.len()).filter(|index| unread(*index, &uses)).collect();
    while let Some(index) = open.pop() {
        if !gone.insert(index) {
            continue;
        }
        let node = &graph.nodes[index];
        let own = node.inputs.iter().filter(|name| !name.is_empty()).map(|name| (name, 1));
        for (name, count) in own.chain(node.nested.read.iter().map(|(name, count)| (name, *count))) {
            if let Some(left) = uses.get_mut(name) {
                *left = left.saturating_sub(count);
            }
            let makers = makers.get(name.as_str()).into_iter().flatten();
            open.extend(makers.filter(|index| !gone.contains(index) && unread(**index, &uses)));
        }
    }
    if !gone.is_empty() {
        done.push(Done::Unused { nodes: gone.len() });
    }
    let mut index = 0;
    graph.nodes.retain(|_| {
        index += 1;
        !gone.contains(&(index - 1))
    });
    let read = |name: &String| uses.get(name).is_some_and(|count| *count > 0);
    let dropped: HashSet<String> =
        graph.weights.iter().map(|(name, _)| name).filter(|name| !read(name)).cloned().collect();
    graph.weights.retain(|(name, _)| !dropped.contains(name));
    let made: HashSet<&String> = graph.nodes.iter().flat_map(|node| &node.outputs).collect();
    let mut rest = Vec::with_capacity(graph.rest.0.len());
    for (number, value) in std::mem::take(&mut graph.rest.0) {
        let keep = match (&value, number) {
            // A weight that was listed as an input would become one that clients have to send.
            (Value::Bytes(bytes), field::INPUTS) => {
                !dropped.contains(&Message::parse(bytes.clone())?.text(field::VALUE_NAME)?)
            }
            (Value::Bytes(bytes), field::VALUES) => {
                made.contains(&Message::parse(bytes.clone())?.text(field::VALUE_NAME)?)
            }
            _ => true,
        };
        if keep {
            rest.push((number, value));
        }
    }
    graph.rest.0 = rest;
    Ok(())
}
