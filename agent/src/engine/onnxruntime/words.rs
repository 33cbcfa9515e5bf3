//! Turns ONNX Runtime's words into errors that name node and operator.

use super::NAME;
use crate::engine::{LoadError, tract::excerpt};
use edgefleet_shared::reported::RefusalCode;

/// What a failed allocation says.
const OUT_OF_MEMORY: [&str; 3] = ["bad_alloc", "Failed to allocate memory", "Available memory of"];
/// What an operator or datatype that is not there says.
const UNSUPPORTED: [&str; 4] = [
    "is not a registered function/op",
    "Could not find an implementation",
    "Failed to find kernel",
    "not implemented",
];

pub(in crate::engine) fn is_out_of_memory(words: &str) -> bool {
    OUT_OF_MEMORY.iter().any(|text| words.contains(text))
}

/// `words` is what the engine said.
pub(super) fn load_error(version: &str, words: &str) -> LoadError {
    let (node, op) = culprit(words);
    let code = if is_out_of_memory(words) {
        RefusalCode::OverMemory
    } else if UNSUPPORTED.iter().any(|text| words.contains(text)) {
        RefusalCode::UnsupportedOperator
    } else {
        RefusalCode::ModelInvalid
    };
    let at = match (&node, &op) {
        (Some(node), Some(op)) => format!(" at node `{node}` ({op})"),
        (None, Some(op)) => format!(" at operator `{op}`"),
        (Some(node), None) => format!(" at node `{node}`"),
        (None, None) => String::new(),
    };
    let message = format!("engine {NAME} {version} could not load the model{at}: {}", excerpt(words));
    LoadError { code, message, node, op }
}

/// Node and operator, as far as the words name them.
fn culprit(words: &str) -> (Option<String>, Option<String>) {
    let between = |start: &str, end: &str| -> Option<String> {
        let (_, rest) = words.split_once(start)?;
        let (found, _) = rest.split_once(end)?;
        Some(found.to_owned()).filter(|found| !found.is_empty() && found.len() <= 256)
    };
    // "... Status Message: ...", from a run or from folding constants.
    if let Some(op) = between("while running ", " node.") {
        return (between("Name:'", "'"), Some(op));
    }
    // "Could not find an implementation for Celu(12) node with name 'x'"
    if let Some(op) = between("find an implementation for ", "(") {
        return (between("node with name '", "'"), Some(op));
    }
    if let Some(op) = between("Failed to find kernel for ", "(") {
        return (between("node:'", "'"), Some(op));
    }
    // "Fatal error: some.domain:Op(-1) is not a registered function/op"
    if let Some((before, _)) = words.split_once(" is not a registered function/op") {
        let name = before.rsplit(' ').next().unwrap_or_default();
        let name = name.split('(').next().unwrap_or_default();
        let op = name.trim_start_matches("ai.onnx:").replace(':', ".");
        return (None, Some(op).filter(|op| !op.is_empty()));
    }
    // "Node (name) Op (MatMul) [ShapeInferenceError] ..."
    if let (Some(node), Some(op)) = (between("Node (", ")"), between(" Op (", ")")) {
        return (Some(node), Some(op));
    }
    // "In Node, ("name", Op, "", -1) : ..."
    if let Some((_, rest)) = words.split_once("Node, (\"")
        && let Some((node, rest)) = rest.split_once("\", ")
        && let Some((op, _)) = rest.split_once(',')
    {
        return (Some(node.to_owned()), Some(op.to_owned()));
    }
    // "Type parameter (T) of Optype (Add) bound to different types (...) in node (x)."
    if let Some(op) = between("Optype (", ")") {
        return (between("in node (", ")"), Some(op));
    }
    (None, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_and_operator_are_found_in_the_engines_words() {
        for (words, node, op) in [
            (
                "Non-zero status code returned while running Reshape node. Name:'my_reshape' Status Message: x",
                Some("my_reshape"),
                Some("Reshape"),
            ),
            ("Could not find an implementation for Celu(12) node with name 'c'", Some("c"), Some("Celu")),
            (
                "Fatal error: com.example:Magic(-1) is not a registered function/op",
                None,
                Some("com.example.Magic"),
            ),
            ("Node (m) Op (MatMul) [ShapeInferenceError] Incompatible", Some("m"), Some("MatMul")),
            (
                "This is an invalid model. In Node, (\"n\", Add, \"\", -1) : (\"x\": x) , Error y",
                Some("n"),
                Some("Add"),
            ),
            (
                "Type Error: Type parameter (T) of Optype (Add) bound to different types (a and b in node (n).",
                Some("n"),
                Some("Add"),
            ),
            ("Protobuf parsing failed.", None, None),
            ("", None, None),
        ] {
            let (found_node, found_op) = culprit(words);
            assert_eq!((found_node.as_deref(), found_op.as_deref()), (node, op), "{words}");
        }
    }

    #[test]
    fn refusals_have_the_code_of_their_cause() {
        for (words, code) in [
            ("std::bad_alloc", RefusalCode::OverMemory),
            ("Fatal error: x:Y(-1) is not a registered function/op", RefusalCode::UnsupportedOperator),
            ("Protobuf parsing failed.", RefusalCode::ModelInvalid),
        ] {
            assert_eq!(load_error("1.0", words).code, code, "{words}");
        }
    }
}
