//! Words of a command line and of an address, and a cohort as a selector.

use crate::advice::Scope;
use edgefleet_shared::selector::Selector;

/// One word of a POSIX shell.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./@:=,+%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Part of a query (RFC 3986).
pub(super) fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

/// The devices of a scope. `None`: no selector says it (what is beyond the cohorts, names that were cut).
pub fn select_of(scope: &Scope) -> Option<Selector> {
    match scope {
        Scope::Bundle { .. } => Some(Selector::everything()),
        Scope::Device { device, .. } => format!("id={device}").parse().ok(),
        Scope::Cohort { cohort, .. } => of_cohort(cohort),
    }
}

/// `all`, or `site=berlin,floor=-`, where `-` is a label that is missing.
pub(super) fn of_cohort(cohort: &str) -> Option<Selector> {
    match cohort {
        "all" => Some(Selector::everything()),
        "other" => None,
        cut if cut.contains('~') => None,
        labels => {
            let parts: Option<Vec<String>> = labels
                .split(',')
                .map(|part| match part.split_once('=')? {
                    (key, "-") => Some(format!("!{key}")),
                    (key, value) => Some(format!("{key}={value}")),
                })
                .collect();
            parts?.join(",").parse().ok()
        }
    }
}
