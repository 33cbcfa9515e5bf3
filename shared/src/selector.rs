//! Selectors: boolean expressions over labels and facts.
//!
//! Grammar: Kubernetes label selectors (`a=b`, `a!=b`, `a in (b, c)`, `a notin (b)`, `a`, `!a`, comma
//! is AND) plus `< <= > >=` on numbers, dotted versions and durations. Union by repeating the flag.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{cmp::Ordering, collections::BTreeMap, fmt, str::FromStr};

const MAX_TEXT: usize = 4096;

/// One selector; all requirements must hold. Empty selects everything.
#[derive(Clone, PartialEq, Eq)]
pub struct Selector {
    text: String,
    requirements: Vec<Requirement>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Compare(String, Comparison, String),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("selector {text:?}, character {at}: {reason}")]
pub struct SelectorError {
    pub text: String,
    /// Counted from 1.
    pub at: usize,
    pub reason: String,
}

impl Selector {
    /// Selects everything.
    pub fn everything() -> Self {
        Self { text: String::new(), requirements: vec![] }
    }

    /// Whether `attributes` (labels and facts by key) satisfy every requirement.
    pub fn matches(&self, attributes: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::Exists(key) => attributes.contains_key(key),
            Requirement::Absent(key) => !attributes.contains_key(key),
            Requirement::In(key, values) => attributes.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => attributes.get(key).is_none_or(|v| !values.contains(v)),
            Requirement::Compare(key, comparison, wanted) => attributes
                .get(key)
                .and_then(|found| compare(found, wanted))
                .is_some_and(|ordering| comparison.holds(ordering)),
        })
    }
}

impl Comparison {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

/// Orders two values as numbers, durations (`90s`, `7d`) or dotted versions; `None` if they are not
/// of one such kind.
fn compare(a: &str, b: &str) -> Option<Ordering> {
    if let (Ok(a), Ok(b)) = (a.parse::<f64>(), b.parse::<f64>()) {
        return a.partial_cmp(&b);
    }
    if let (Ok(a), Ok(b)) = (humantime::parse_duration(a), humantime::parse_duration(b)) {
        return Some(a.cmp(&b));
    }
    let version = |text: &str| -> Option<Vec<u64>> {
        let core = text.strip_prefix('v').unwrap_or(text).split(['-', '+']).next()?;
        let mut parts: Vec<u64> = core.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        while parts.last() == Some(&0) {
            parts.pop(); // 1.2 equals 1.2.0
        }
        Some(parts)
    };
    Some(version(a)?.cmp(&version(b)?))
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn fail<T>(&self, reason: impl Into<String>) -> Result<T, SelectorError> {
        Err(SelectorError {
            text: self.text.chars().take(200).collect(),
            at: self.text[..self.at].chars().count() + 1,
            reason: reason.into(),
        })
    }
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }
    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }
    fn eat(&mut self, token: &str) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }
    fn word(&mut self, what: &str) -> Result<String, SelectorError> {
        self.skip_space();
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@');
        let len = self.rest().find(|c| !ok(c)).unwrap_or(self.rest().len());
        if len == 0 {
            return self.fail(format!("{what} is missing"));
        }
        let word = self.rest()[..len].to_owned();
        self.at += len;
        Ok(word)
    }
    fn list(&mut self) -> Result<Vec<String>, SelectorError> {
        if !self.eat("(") {
            return self.fail("`(` and values must follow, as in `site in (a, b)`");
        }
        let mut values = vec![self.word("a value")?];
        while self.eat(",") {
            values.push(self.word("a value")?);
        }
        if self.eat(")") { Ok(values) } else { self.fail("`)` is missing") }
    }
    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.eat("!") {
            return Ok(Requirement::Absent(self.word("a key")?));
        }
        let key = self.word("a key")?;
        for (token, comparison) in [
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ] {
            if self.eat(token) {
                return Ok(Requirement::Compare(key, comparison, self.word("a value")?));
            }
        }
        if self.eat("!=") {
            return Ok(Requirement::NotIn(key, vec![self.word("a value")?]));
        }
        if self.eat("==") || self.eat("=") {
            return Ok(Requirement::In(key, vec![self.word("a value")?]));
        }
        let before = self.at;
        match self.word("an operator").as_deref() {
            Ok("in") => Ok(Requirement::In(key, self.list()?)),
            Ok("notin") => Ok(Requirement::NotIn(key, self.list()?)),
            Ok(other) => {
                self.at = before;
                self.skip_space();
                self.fail(format!("`{other}` is no operator; use = != in notin < <= > >="))
            }
            Err(_) => Ok(Requirement::Exists(key)),
        }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text, at: 0 };
        if text.len() > MAX_TEXT {
            return parser.fail(format!("{} bytes, at most {MAX_TEXT}", text.len()));
        }
        let mut requirements = Vec::new();
        parser.skip_space();
        while !parser.rest().is_empty() {
            requirements.push(parser.requirement()?);
            parser.skip_space();
            if parser.rest().is_empty() {
                break;
            }
            if !parser.eat(",") {
                return parser.fail("a comma is missing");
            }
            parser.skip_space();
            if parser.rest().is_empty() {
                return parser.fail("a requirement must follow the comma");
            }
        }
        Ok(Self { text: text.trim().to_owned(), requirements })
    }
}
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({})", self.text)
    }
}
impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}
impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attributes() -> BTreeMap<String, String> {
        [("site", "plant-7"), ("arch", "arm64"), ("agent", "1.10.2"), ("cores", "4"), ("seen", "90s")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into()
    }

    #[test]
    fn the_grammar_selects_as_kubernetes_does() {
        for (text, wanted) in [
            ("", true),
            ("site=plant-7", true),
            ("site == plant-7", true),
            ("site!=plant-7", false),
            ("zone!=a", true),
            ("site=plant-7, arch in (arm64, amd64), !quarantined", true),
            ("arch notin (arm64)", false),
            ("zone notin (a)", true),
            ("site", true),
            ("quarantined", false),
            ("agent>=1.9", true),
            ("agent<1.10", false),
            ("agent>=1.10.2", true),
            ("cores>3", true),
            ("cores<=3", false),
            ("seen<7d", true),
            ("seen>2m", false),
            ("site>3", false),
            ("missing<3", false),
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().matches(&attributes()), wanted, "{text}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, at) in
            [("site=", 6), ("=a", 1), ("a in b", 6), ("a in (b", 8), ("a b", 3), ("a=b,", 5), ("a=b c=d", 5)]
        {
            assert_eq!(text.parse::<Selector>().unwrap_err().at, at, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}") {
            let _ = text.parse::<Selector>();
        }
    }
}
