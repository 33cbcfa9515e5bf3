//! What selectors see of a device, and the grammar of labels.
//!
//! | attribute | from |
//! |---|---|
//! | every label | set by people at the controller |
//! | `id`, `name`, `state`, `online` | the controller |
//! | `agent_version`, `arch`, `os`, `cpu`, `cores`, `memory_bytes`, `hardware`, `hostname` | facts: claims of the device |
//!
//! Labels cannot use the names of the other rows. Facts never grant rights: permission scopes are matched
//! against [`scope_attributes`] only.

use edgefleet_shared::{ids::DeviceId, reported::Facts};
use std::collections::BTreeMap;

pub type Labels = BTreeMap<String, String>;

/// Most labels one device may have.
pub const MAX_LABELS: usize = 64;
const MAX_WORD: usize = 63;
/// Longest text fact, bytes; longer ones are cut.
const MAX_FACT: usize = 128;

const RESERVED: [&str; 12] = [
    "id",
    "name",
    "state",
    "online",
    "agent_version",
    "arch",
    "os",
    "cpu",
    "cores",
    "memory_bytes",
    "hardware",
    "hostname",
];

/// Why a label or a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    #[error(
        "{what} {text:?} must have 1 to {MAX_WORD} characters of a-z, A-Z, 0-9, `-`, `_`, `.` and begin and end with a letter or digit"
    )]
    Form { what: &'static str, text: String },
    #[error("label `{key}` is taken by an attribute of the same name")]
    Reserved { key: String },
    #[error("{found} labels, at most {MAX_LABELS} are allowed")]
    TooMany { found: usize },
}

/// # Errors
/// [`LabelError`] naming the first label that is not acceptable.
pub fn check_labels(labels: &Labels) -> Result<(), LabelError> {
    if labels.len() > MAX_LABELS {
        return Err(LabelError::TooMany { found: labels.len() });
    }
    for (key, value) in labels {
        check_label_key(key)?;
        check_word("a label's value", value)?;
    }
    Ok(())
}

/// # Errors
/// [`LabelError`] if no label can have this key.
pub fn check_label_key(key: &str) -> Result<(), LabelError> {
    check_word("a label's key", key)?;
    if RESERVED.contains(&key) { Err(LabelError::Reserved { key: key.to_owned() }) } else { Ok(()) }
}

/// The words a selector can write: names, label keys, label values.
///
/// # Errors
/// [`LabelError::Form`].
pub fn check_word(what: &'static str, text: &str) -> Result<(), LabelError> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let ok = text.len() <= MAX_WORD
        && text.chars().all(inner)
        && edge(text.chars().next())
        && edge(text.chars().next_back());
    if ok { Ok(()) } else { Err(LabelError::Form { what, text: text.chars().take(80).collect() }) }
}

/// Engines kept of those a device claims to have.
const MAX_ENGINES: usize = 8;

/// Facts with every text cut to 128 bytes and freed of control characters: they are claims of a stranger and
/// end up in tables and logs.
pub fn tame(facts: Facts) -> Facts {
    let cut = |text: String| -> String {
        let mut text: String = text.chars().filter(|c| !c.is_control()).collect();
        while text.len() > MAX_FACT {
            text.pop();
        }
        text
    };
    Facts {
        agent_version: cut(facts.agent_version),
        arch: cut(facts.arch),
        os: cut(facts.os),
        cpu: cut(facts.cpu),
        cores: facts.cores,
        memory_bytes: facts.memory_bytes,
        hardware: cut(facts.hardware),
        hostname: cut(facts.hostname),
        engines: facts.engines.into_iter().take(MAX_ENGINES).map(cut).collect(),
    }
}

/// What a selector is matched against; see the module's table. Facts that are not known are absent.
pub fn attributes(
    id: &DeviceId,
    name: &str,
    state: &str,
    online: bool,
    labels: &Labels,
    facts: &Facts,
) -> BTreeMap<String, String> {
    let mut all = labels.clone();
    let texts = [
        ("agent_version", &facts.agent_version),
        ("arch", &facts.arch),
        ("os", &facts.os),
        ("cpu", &facts.cpu),
        ("hardware", &facts.hardware),
        ("hostname", &facts.hostname),
    ];
    all.extend(texts.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), v.clone())));
    let numbers = [("cores", u64::from(facts.cores)), ("memory_bytes", facts.memory_bytes)];
    all.extend(numbers.into_iter().filter(|(_, v)| *v > 0).map(|(k, v)| (k.to_owned(), v.to_string())));
    all.insert("id".into(), id.to_string());
    all.insert("name".into(), name.into());
    all.insert("state".into(), state.into());
    all.insert("online".into(), online.to_string());
    all
}

/// What a permission scope is matched against: labels and the id, nothing the device says itself.
pub fn scope_attributes(id: &DeviceId, labels: &Labels) -> BTreeMap<String, String> {
    let mut all = labels.clone();
    all.insert("id".into(), id.to_string());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_words_a_selector_can_write_and_never_shadow_an_attribute() {
        for (key, value, good) in [
            ("site", "plant-7", true),
            ("a.b_c-d", "X.1", true),
            ("", "x", false),
            ("site", "", false),
            ("site", "a b", false),
            ("site", "-a", false),
            ("site", "a,b", false),
            ("arch", "arm64", false),
            ("id", "dev-1", false),
            ("site", &"x".repeat(63), true),
            ("site", &"x".repeat(64), false),
            ("größe", "1", false),
        ] {
            let labels = [(key.to_owned(), value.to_owned())].into();
            assert_eq!(check_labels(&labels).is_ok(), good, "{key:?}={value:?}");
        }
        let many = (0..65).map(|n| (format!("k{n}"), "v".to_owned())).collect();
        assert_eq!(check_labels(&many), Err(LabelError::TooMany { found: 65 }));
    }

    #[test]
    fn every_attribute_of_the_controller_and_of_facts_is_reserved() {
        let facts = Facts {
            agent_version: "1".into(),
            arch: "1".into(),
            os: "1".into(),
            cpu: "1".into(),
            cores: 1,
            memory_bytes: 1,
            hardware: "1".into(),
            hostname: "1".into(),
            engines: vec!["1".into()],
        };
        let id: DeviceId = "dev-1".parse().unwrap();
        let all = attributes(&id, "n", "enrolled", true, &Labels::new(), &facts);
        let mut names: Vec<_> = all.keys().map(String::as_str).collect();
        let mut reserved = RESERVED.to_vec();
        names.sort_unstable();
        reserved.sort_unstable();
        assert_eq!(names, reserved);
    }

    #[test]
    fn facts_are_cut_and_freed_of_control_characters() {
        let facts =
            tame(Facts { hostname: "ä".repeat(200), cpu: "a\u{1b}[31mb".into(), ..Facts::default() });
        assert_eq!((facts.hostname.len(), facts.cpu.as_str()), (128, "a[31mb"));
    }
}
