//! Pure: parts of the fleet that are looked at apart, by labels chosen per model.
//!
//! Only labels count, which the controller alone sets: what a device claims of itself could put it wherever it likes.

use edgefleet_shared::{digest::BlobDigest, time::Timestamp};
use serde::{Deserialize, Deserializer, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

/// Label keys that may make up the cohorts of a model.
pub(super) const MAX_KEYS: usize = 3;
/// Cohorts told apart in one model; devices of later ones are counted under [`Cohort::other`]. Each is a document per
/// bundle and five minutes.
pub(super) const MAX_COHORTS: usize = 32;
/// Longest name, bytes: it is part of an id.
const MAX_BYTES: usize = 96;
/// Hex digits of the digest that ends a name which was cut.
const DIGEST_CHARS: usize = 12;
/// In place of a label that a device does not have. No label has this value.
const NONE: &str = "-";

/// `all`, `other`, or the values of labels: `site=berlin,board=pi4`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Cohort(String);

/// Why a text names no cohort.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no cohort; write `all`, `other`, or labels as in `site=berlin,board=pi4`")]
pub struct CohortError {
    text: String,
}

impl Cohort {
    /// Every device, whatever its labels.
    pub fn all() -> Self {
        Self("all".to_owned())
    }
    /// What is beyond [`MAX_COHORTS`].
    pub fn other() -> Self {
        Self("other".to_owned())
    }
    pub fn is_all(&self) -> bool {
        self.0 == "all"
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Of a device with these labels; [`Cohort::all`] without keys.
    pub fn of(keys: &[String], labels: &BTreeMap<String, String>) -> Self {
        if keys.is_empty() {
            return Self::all();
        }
        let value = |key: &String| labels.get(key).map_or(NONE, String::as_str);
        let parts: Vec<_> = keys.iter().map(|key| format!("{key}={}", value(key))).collect();
        let name = parts.join(",");
        if name.len() <= MAX_BYTES {
            return Self(name);
        }
        let digest = BlobDigest::of(name.as_bytes()).to_string();
        let digest: String = digest.trim_start_matches("sha256:").chars().take(DIGEST_CHARS).collect();
        let kept: String = name.chars().take(MAX_BYTES - DIGEST_CHARS - 1).collect(); // labels are ASCII
        Self(format!("{kept}~{digest}"))
    }
}

impl fmt::Display for Cohort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl FromStr for Cohort {
    type Err = CohortError;
    fn from_str(text: &str) -> Result<Self, CohortError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=' | ',' | '~');
        match (1..=MAX_BYTES).contains(&text.len()) && text.chars().all(allowed) {
            true => Ok(Self(text.to_owned())),
            false => Err(CohortError { text: text.chars().take(40).collect() }),
        }
    }
}
impl<'de> Deserialize<'de> for Cohort {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which labels make up the cohorts of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CohortChoice {
    /// Empty: one cohort, `all`.
    pub by: Vec<String>,
    /// Choosing again, be it the same, forgets which cohorts there were.
    pub since: Timestamp,
}

/// The cohorts that were met since the choice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Cohorts {
    since: Timestamp,
    names: BTreeSet<Cohort>,
}

impl Cohorts {
    /// The cohort that a device with these labels is counted under, and whether `self` changed.
    pub(super) fn place(
        &mut self,
        choice: &CohortChoice,
        labels: &BTreeMap<String, String>,
    ) -> (Cohort, bool) {
        let cohort = Cohort::of(&choice.by, labels);
        if cohort.is_all() {
            return (cohort, false);
        }
        let mut changed = false;
        if self.since != choice.since {
            (*self, changed) = (Self { since: choice.since, names: BTreeSet::new() }, true);
        }
        if self.names.contains(&cohort) {
            return (cohort, changed);
        }
        if self.names.len() >= MAX_COHORTS {
            return (Cohort::other(), changed);
        }
        self.names.insert(cohort.clone());
        (cohort, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_cohort_is_the_values_of_the_chosen_labels() {
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let device = labels(&[("site", "berlin"), ("board", "pi4"), ("line", "2")]);
        for (by, wanted) in [
            (keys(&[]), "all"),
            (keys(&["site"]), "site=berlin"),
            (keys(&["site", "board"]), "site=berlin,board=pi4"),
            (keys(&["floor", "site"]), "floor=-,site=berlin"),
        ] {
            let cohort = Cohort::of(&by, &device);
            assert_eq!(cohort.to_string(), wanted);
            assert_eq!(wanted.parse(), Ok(cohort));
        }
        for bad in ["", "a/b", "site=ber lin", &"x".repeat(97)] {
            assert!(bad.parse::<Cohort>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn long_names_are_cut_and_stay_apart() {
        let long = |end: &str| labels(&[("a", &format!("{}{end}", "x".repeat(60))), ("b", &"y".repeat(63))]);
        let by = ["b".to_owned(), "a".to_owned()];
        let (one, two) = (Cohort::of(&by, &long("1")), Cohort::of(&by, &long("2")));
        assert_ne!(one, two);
        assert_eq!(one.as_str().len(), MAX_BYTES);
        assert!(one.as_str().parse::<Cohort>().is_ok());
    }

    #[test]
    fn cohorts_beyond_the_bound_are_others_until_somebody_chooses_again() {
        let mut choice = CohortChoice { by: vec!["site".into()], since: Timestamp::from_secs(1) };
        let mut cohorts = Cohorts::default();
        let site = |n: usize| labels(&[("site", &format!("s{n}"))]);
        for n in 0..MAX_COHORTS {
            assert_eq!(cohorts.place(&choice, &site(n)), (Cohort(format!("site=s{n}")), true));
        }
        assert_eq!(cohorts.place(&choice, &site(3)), (Cohort("site=s3".into()), false));
        assert_eq!(cohorts.place(&choice, &site(99)), (Cohort::other(), false));
        choice.since = Timestamp::from_secs(2);
        assert_eq!(cohorts.place(&choice, &site(99)), (Cohort("site=s99".into()), true));
        assert_eq!(cohorts.names.len(), 1);
        assert_eq!(cohorts.place(&CohortChoice::default(), &site(1)), (Cohort::all(), false));
    }
}
