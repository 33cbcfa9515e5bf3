//! Makes a BatchNormalization part of the weights of the Conv, ConvTranspose or Gemm before it:
//! `(Wx + b - mean) * s + shift` with `s = scale / sqrt(variance + epsilon)` is `(W s) x + (b - mean) s + shift`.

use super::{
    Done,
    graph::{Graph, Node},
    weights::{self, Floats},
    wire::NotWire,
};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};

pub(super) fn merge(graph: &mut Graph, done: &mut Vec<Done>) -> Result<(), NotWire> {
    if !graph.nodes.iter().any(|node| node.is("BatchNormalization")) {
        return Ok(());
    }
    let uses = graph.uses()?;
    let mut taken: HashSet<String> = graph.inputs()?.into_iter().collect();
    let mut weights: HashMap<String, Bytes> = HashMap::new();
    for (name, tensor) in &graph.weights {
        taken.insert(name.clone());
        weights.insert(name.clone(), tensor.clone());
    }
    let mut makers: HashMap<String, usize> = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        for output in node.outputs.iter().filter(|name| !name.is_empty()) {
            makers.insert(output.clone(), index);
            taken.insert(output.clone());
        }
        taken.extend(node.nested.made.keys().cloned());
    }
    let mut gone = HashSet::new();
    for index in 0..graph.nodes.len() {
        let norm = &graph.nodes[index];
        let Some(input) = norm.inputs.first().filter(|_| norm.is("BatchNormalization")) else { continue };
        let Some(&before) = makers.get(input) else { continue };
        // Whoever else reads it wants it as it was.
        if uses.get(input) != Some(&1) || before >= index || gone.contains(&before) {
            continue;
        }
        let Some(merged) = merged(&graph.nodes[before], norm, &weights)? else { continue };
        let output = norm.outputs[0].clone();
        done.push(Done::Norm { node: norm.label(), into: graph.nodes[before].label() });
        let mut fresh = |wanted: &str, floats: &Floats| {
            let mut name = format!("{wanted}_folded");
            while !taken.insert(name.clone()) {
                name.push('_');
            }
            let tensor = weights::tensor(&name, floats);
            weights.insert(name.clone(), tensor.clone());
            graph.weights.push((name.clone(), tensor));
            name
        };
        let weight = fresh(&graph.nodes[before].inputs[1], &merged.weight);
        let bias = fresh(&format!("{weight}_bias"), &merged.bias);
        let node = &mut graph.nodes[before];
        node.inputs.truncate(1);
        node.inputs.extend([weight, bias]);
        // A second normalisation right behind it finds the node under this name.
        makers.insert(output.clone(), before);
        node.outputs[0] = output;
        gone.insert(index);
    }
    let mut index = 0;
    graph.nodes.retain(|_| {
        index += 1;
        !gone.contains(&(index - 1))
    });
    Ok(())
}

struct Merged {
    weight: Floats,
    bias: Floats,
}

/// The weights of `node` with `norm` in them; `None` where that is not exactly the same computation.
fn merged(node: &Node, norm: &Node, weights: &HashMap<String, Bytes>) -> Result<Option<Merged>, NotWire> {
    let floats = |node: &Node, at: usize| -> Result<Option<Floats>, NotWire> {
        match node.inputs.get(at).and_then(|name| weights.get(name)) {
            Some(tensor) => weights::floats(tensor),
            None => Ok(None),
        }
    };
    let evaluates = norm.int("training_mode").unwrap_or(0) == 0
        && !norm.attributes.contains_key("spatial")
        && norm.outputs.first().is_some_and(|name| !name.is_empty())
        && norm.outputs.iter().skip(1).all(String::is_empty);
    if !evaluates || norm.inputs.len() != 5 || node.outputs.len() != 1 {
        return Ok(None);
    }
    let Some(mut weight) = floats(node, 1)? else { return Ok(None) };
    // The axis of the weights that is the channel of the answer.
    let axis = match node.op.as_str() {
        "Conv" if node.own && weight.dims.len() >= 3 => 0,
        "ConvTranspose" if node.own && weight.dims.len() >= 3 && node.int("group").unwrap_or(1) == 1 => 1,
        "Gemm" if node.own && weight.dims.len() == 2 => {
            let plain = |name: &str| node.float(name).unwrap_or(1.0) == 1.0;
            if !plain("alpha") || !plain("beta") {
                return Ok(None);
            }
            usize::from(node.int("transB").unwrap_or(0) == 0)
        }
        _ => return Ok(None),
    };
    let channels = weight.dims[axis];
    let has_bias = node.inputs.get(2).is_some_and(|name| !name.is_empty());
    let bias = match floats(node, 2)? {
        // A column would be spread over the rows of a Gemm, not over its channels.
        Some(bias) if bias.dims == [channels] || bias.dims == [1, channels] => bias.values,
        Some(_) => return Ok(None),
        None if !has_bias => vec![0.0; channels],
        None => return Ok(None),
    };
    let mut parameters = [bias, vec![], vec![], vec![], vec![]];
    for (at, slot) in parameters.iter_mut().enumerate().skip(1) {
        let Some(found) = floats(norm, at)? else { return Ok(None) };
        *slot = found.values;
    }
    if channels == 0 || parameters.iter().any(|values| values.len() != channels) {
        return Ok(None);
    }
    let [bias, scale, shift, mean, variance] = parameters;
    let epsilon = f64::from(norm.float("epsilon").unwrap_or(1e-5));
    let factors: Vec<f64> =
        scale.iter().zip(&variance).map(|(s, v)| f64::from(*s) / (f64::from(*v) + epsilon).sqrt()).collect();
    let inner: usize = weight.dims[axis + 1..].iter().product();
    for (index, value) in weight.values.iter_mut().enumerate() {
        *value = (f64::from(*value) * factors[index / inner.max(1) % channels]) as f32;
    }
    let bias: Vec<f32> = (0..channels)
        .map(|c| ((f64::from(bias[c]) - f64::from(mean[c])) * factors[c] + f64::from(shift[c])) as f32)
        .collect();
    let sound = weight.values.iter().chain(&bias).all(|value| value.is_finite());
    Ok(sound.then_some(Merged { weight, bias: Floats { dims: vec![channels], values: bias } }))
}
