//! Turns tract's words into errors that name node and operator.

use super::{NAME, VERSION};
use crate::engine::{LoadError, panic_text};
use edgefleet_shared::reported::RefusalCode;
use std::any::Any;

/// Longest excerpt of the engine's own words, in characters; it likes to print whole graphs.
const MAX_WORDS: usize = 400;

/// What a failed allocation says, in tract and in the standard library. A wrong guess only changes
/// the code under which a refusal is reported.
const OUT_OF_MEMORY: [&str; 4] =
    ["failed to allocate", "memory allocation of", "!self.data.is_null()", "capacity overflow"];

pub(in crate::engine) fn is_out_of_memory(words: &str) -> bool {
    OUT_OF_MEMORY.iter().any(|text| words.contains(text))
}

pub(super) fn invalid(message: String) -> LoadError {
    LoadError { code: RefusalCode::ModelInvalid, message, node: None, op: None }
}

pub(super) fn mismatch(message: String) -> LoadError {
    LoadError { code: RefusalCode::InterfaceMismatch, message, node: None, op: None }
}

/// `why` ends the sentence "node `n` uses operator `op`...".
pub(super) fn unsupported(node: &str, op: &str, why: &str) -> LoadError {
    LoadError {
        code: RefusalCode::UnsupportedOperator,
        message: format!("node `{node}` uses operator `{op}`{why}"),
        node: Some(node.to_owned()),
        op: Some(op.to_owned()),
    }
}

pub(super) fn load_panic(panic: &(dyn Any + Send)) -> LoadError {
    load_error(&format!("it panicked: {}", panic_text(panic)))
}

/// `words` is the engine's whole error chain on one line.
pub(super) fn load_error(words: &str) -> LoadError {
    let (node, op) = match culprit(words) {
        Some((node, op)) => (Some(node), Some(op)),
        None => (None, None),
    };
    let lower = words.to_ascii_lowercase();
    let code = if is_out_of_memory(words) {
        RefusalCode::OverMemory
    } else if ["unsupported", "not supported", "unimplemented", "not implemented"]
        .iter()
        .any(|text| lower.contains(text))
    {
        RefusalCode::UnsupportedOperator
    } else {
        RefusalCode::ModelInvalid
    };
    let at = match (&node, &op) {
        (Some(node), Some(op)) => format!(" at node `{node}` ({op})"),
        _ => String::new(),
    };
    let mut reason = words;
    while let Some((_, rest)) = reason.strip_prefix("Building node ").and_then(|rest| rest.split_once("): "))
    {
        reason = rest;
    }
    let message = format!("engine {NAME} {VERSION} could not load the model{at}: {}", excerpt(reason));
    LoadError { code, message, node, op }
}

/// One line of at most [`MAX_WORDS`] characters.
pub(in crate::engine) fn excerpt(words: &str) -> String {
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// Node and operator out of `#12 "name" Op` or `Building node name (Op)`.
fn culprit(words: &str) -> Option<(String, String)> {
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '.')).collect()
    };
    // tract says it first, with the name in the file, which may be empty; our own builders say it again.
    let mut built = words.split("Building node ").skip(1).filter_map(|rest| rest.split_once(" ("));
    if let Some((name, rest)) = built.find(|(name, _)| !name.is_empty()) {
        return Some((name.to_owned(), word(rest)));
    }
    let mut rest = words;
    while let Some((_, after)) = rest.split_once('#') {
        rest = after;
        let digits = after.chars().take_while(char::is_ascii_digit).count();
        if digits == 0 {
            continue;
        }
        if let Some((name, op)) = after[digits..].strip_prefix(" \"").and_then(|t| t.split_once("\" ")) {
            return Some((name.to_owned(), word(op)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_and_operator_are_found_in_the_engines_words() {
        for (words, wanted) in [
            (
                r#"Failed analyse for node #4 "project" MatMulInference: x"#,
                Some(("project", "MatMulInference")),
            ),
            ("Building node resize_1 (Resize): no mode", Some(("resize_1", "Resize"))),
            ("Building node  (Scaler): Building node y (Scaler): no scale", Some(("y", "Scaler"))),
            ("# nothing #x #7", None),
            (r#"#7 "cut"#, None),
            ("", None),
        ] {
            let found = culprit(words);
            assert_eq!(found.as_ref().map(|(n, o)| (n.as_str(), o.as_str())), wanted, "{words}");
        }
    }

    #[test]
    fn an_excerpt_is_one_short_line() {
        let long = excerpt(&"é\n".repeat(2_000));
        assert!(long.chars().count() <= MAX_WORDS + 3 && !long.contains('\n'));
    }
}
