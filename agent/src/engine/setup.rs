//! The ways a model can be run on a device: which engine, which variant, how many threads.

use edgefleet_shared::bundle::{Artifact, Precision};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// An engine by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineName {
    Tract,
    Onnxruntime,
}

impl EngineName {
    pub const ALL: [Self; 2] = [Self::Tract, Self::Onnxruntime];
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tract => super::tract::NAME,
            Self::Onnxruntime => super::onnxruntime::NAME,
        }
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One way to run a model, written `onnxruntime/f32/1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Setup {
    pub engine: EngineName,
    pub precision: Precision,
    /// Threads of one inference.
    pub threads: usize,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.engine, precision_name(self.precision), self.threads)
    }
}

const ALL_PRECISIONS: [Precision; 3] = [Precision::F32, Precision::F16, Precision::Int8Qdq];

/// As manifests write it.
pub fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::F16 => "f16",
        Precision::Int8Qdq => "int8-qdq",
    }
}

/// Names some setups: `engine`, `engine/precision` or `engine/precision/threads`; `*` is any.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    engine: Option<EngineName>,
    precision: Option<Precision>,
    threads: Option<usize>,
}

impl Pattern {
    /// Every setup.
    pub fn any() -> Self {
        Self { engine: None, precision: None, threads: None }
    }
    /// The number of threads it insists on.
    pub fn threads(&self) -> Option<usize> {
        self.threads
    }
    pub fn matches(&self, setup: &Setup) -> bool {
        self.engine.is_none_or(|engine| engine == setup.engine)
            && self.precision.is_none_or(|precision| precision == setup.precision)
            && self.threads.is_none_or(|threads| threads == setup.threads)
    }
}

impl FromStr for Pattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 3 {
            return Err(format!("`{text}` has more than `engine/precision/threads`"));
        }
        let part = |at: usize| parts.get(at).copied().filter(|part| *part != "*");
        let engine = match part(0) {
            None => None,
            Some(name) => {
                Some(EngineName::ALL.into_iter().find(|e| e.as_str() == name).ok_or_else(|| {
                    format!("`{name}` is no engine; there are `tract` and `onnxruntime`, and `*` for any")
                })?)
            }
        };
        let precision = match part(1) {
            None => None,
            Some(name) => {
                Some(ALL_PRECISIONS.into_iter().find(|p| precision_name(*p) == name).ok_or_else(|| {
                    format!("`{name}` is no precision; there are f32, f16, int8-qdq, and `*` for any")
                })?)
            }
        };
        let threads = match part(2) {
            None => None,
            Some(number) => match number.parse() {
                Ok(threads) if (1..=1024).contains(&threads) => Some(threads),
                _ => return Err(format!("`{number}` is no number of threads from 1 to 1024")),
            },
        };
        Ok(Self { engine, precision, threads })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = self.engine.map_or("*", EngineName::as_str);
        let precision = self.precision.map_or("*", precision_name);
        match self.threads {
            None => write!(f, "{engine}/{precision}"),
            Some(threads) => write!(f, "{engine}/{precision}/{threads}"),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

/// The artifact of this precision that is meant for this machine.
pub fn artifact(artifacts: &[Artifact], precision: Precision) -> Option<&Artifact> {
    artifacts.iter().find(|artifact| artifact.precision == precision && super::is_meant_for_us(artifact))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_what_it_names_and_says_what_it_cannot_read() {
        let setup = Setup { engine: EngineName::Onnxruntime, precision: Precision::Int8Qdq, threads: 2 };
        assert_eq!(setup.to_string(), "onnxruntime/int8-qdq/2");
        for (text, hit) in [
            ("onnxruntime", true),
            ("tract", false),
            ("*", true),
            ("*/int8-qdq", true),
            ("onnxruntime/f32", false),
            ("onnxruntime/*/2", true),
            ("onnxruntime/int8-qdq/1", false),
        ] {
            let pattern: Pattern = text.parse().unwrap();
            assert_eq!(pattern.matches(&setup), hit, "{text}");
            assert_eq!(pattern.to_string().parse::<Pattern>().unwrap(), pattern);
        }
        for text in ["openvino", "tract/f64", "tract/f32/0", "tract/f32/x", "a/b/c/d", ""] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }
}
