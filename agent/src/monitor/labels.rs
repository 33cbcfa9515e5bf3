//! Counts labels by the bucket their prediction was made in. Pure.

use super::{
    ring::bucket_start,
    window::{Moment, Subject},
};
use edgefleet_shared::{
    ids::{BundleName, IdError},
    telemetry::{LabelCounts, Versus, window::MAX_KEYS},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
    sync::Arc,
};

/// Entries gathered before they are turned into records at once.
const MAX_ENTRIES: usize = 1_024;
/// Names that senders give themselves, told apart between two records; the rest is `local`.
const MAX_NAMES: usize = 16;
/// Candidates compared with one bundle within one bucket.
const MAX_RIVALS: usize = 8;

/// Who says what the truth is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LabelSource {
    /// Through the local API, unauthenticated; with the name the sender gives itself.
    #[default]
    Local,
    Named(SourceName),
    Controller,
}

/// 1 to 32 lower-case letters, digits and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceName(String);

impl FromStr for SourceName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (kind, allowed) = ("label source", "lower-case letters, digits and `-`");
        if text.is_empty() {
            return Err(IdError::Empty { kind });
        }
        if text.len() > 32 {
            return Err(IdError::TooLong { kind, found: text.len(), limit: 32 });
        }
        let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        match text.chars().find(|c| !ok(*c)) {
            Some(found) => Err(IdError::BadCharacter { kind, found, allowed }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl LabelSource {
    pub fn is_controller(&self) -> bool {
        matches!(self, Self::Controller)
    }
    /// As [`LabelCounts::source`] has it: `local`, `local:NAME` or `controller`.
    pub fn to_text(&self) -> String {
        match self {
            Self::Local => "local".into(),
            Self::Named(SourceName(name)) => format!("local:{name}"),
            Self::Controller => "controller".into(),
        }
    }
}

/// Why a label found no prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unmatched {
    /// Beyond the ring's age or bytes, or of an earlier start of the agent.
    Expired,
    /// Of another device.
    Foreign,
    /// The row has its label already.
    Duplicate,
    /// No prediction ever had this id.
    Unknown,
    /// Neither a class name of the bundle nor an index.
    UnknownLabel,
}

impl Unmatched {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Foreign => "foreign",
            Self::Duplicate => "duplicate",
            Self::Unknown => "unknown-id",
            Self::UnknownLabel => "unknown-label",
        }
    }
}

/// A label beside its prediction.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The ring's number of the subject.
    pub index: u32,
    pub subject: Arc<Subject>,
    pub bucket: Timestamp,
    pub truth: u32,
    pub predicted: u32,
    pub confidence: f32,
    /// What the candidate said to the same input.
    pub rival: Option<Rival>,
    /// The candidate that was given the same input, whether it has answered or still will.
    pub beside: Option<Arc<Subject>>,
}

/// The candidate's answer beside the active bundle's.
#[derive(Clone, Debug)]
pub struct Rival {
    /// The ring's number of the candidate.
    pub index: u32,
    pub subject: Arc<Subject>,
    pub class: u32,
}

/// What one batch of labels came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinSummary {
    pub matched: u64,
    pub correct: u64,
    pub unmatched: BTreeMap<&'static str, u64>,
    /// Labels that also tell how a candidate did on the same input, by its bundle.
    pub compared: BTreeMap<BundleName, u64>,
}

impl JoinSummary {
    pub(super) fn count(&mut self, found: &Result<Joined, Unmatched>) {
        match found {
            Ok(joined) => {
                self.matched += 1;
                self.correct += u64::from(joined.truth == joined.predicted);
                if let Some(beside) = &joined.beside {
                    *self.compared.entry(beside.bundle.clone()).or_default() += 1;
                }
            }
            Err(reason) => *self.unmatched.entry(reason.as_str()).or_default() += 1,
        }
    }
}

struct Tally {
    subject: Arc<Subject>,
    matched: u64,
    correct: u64,
    confusion: BTreeMap<(u32, u32), u64>,
    other: u64,
    versus: BTreeMap<u32, Versus>,
}

impl Tally {
    fn new(subject: Arc<Subject>) -> Self {
        Self {
            subject,
            matched: 0,
            correct: 0,
            confusion: BTreeMap::new(),
            other: 0,
            versus: BTreeMap::new(),
        }
    }

    /// Who of the two was right.
    fn compare(&mut self, joined: &Joined) {
        let Some(rival) = &joined.rival else { return };
        if self.versus.len() >= MAX_RIVALS && !self.versus.contains_key(&rival.index) {
            return;
        }
        let versus = self.versus.entry(rival.index).or_insert_with(|| Versus {
            bundle: rival.subject.bundle.clone(),
            digest: rival.subject.digest,
            attempt: rival.subject.attempt.clone(),
            wins: 0,
            losses: 0,
            both_right: 0,
            both_wrong: 0,
        });
        let right = joined.subject.is_same_class(joined.truth, &rival.subject, rival.class);
        *match (joined.truth == joined.predicted, right) {
            (false, true) => &mut versus.wins,
            (true, false) => &mut versus.losses,
            (true, true) => &mut versus.both_right,
            (false, false) => &mut versus.both_wrong,
        } += 1;
    }
}

/// Labels gathered since the last record.
#[derive(Default)]
pub struct LabelBook {
    tallies: BTreeMap<(u32, Timestamp, LabelSource), Tally>,
    unmatched: BTreeMap<(LabelSource, Unmatched), u64>,
    names: BTreeSet<SourceName>,
}

impl LabelBook {
    pub fn is_full(&self) -> bool {
        self.tallies.len() + self.unmatched.len() >= MAX_ENTRIES
    }

    /// The source as it is counted: names that senders give themselves are bounded.
    fn counted(&mut self, source: &LabelSource) -> LabelSource {
        match source {
            LabelSource::Named(name) if !self.names.contains(name) => {
                if self.names.len() >= MAX_NAMES {
                    return LabelSource::Local;
                }
                self.names.insert(name.clone());
                source.clone()
            }
            known => known.clone(),
        }
    }

    fn tally(&mut self, source: LabelSource, joined: &Joined) -> &mut Tally {
        let key = (joined.index, joined.bucket, source);
        self.tallies.entry(key).or_insert_with(|| Tally::new(joined.subject.clone()))
    }

    pub fn count(&mut self, source: &LabelSource, found: &Result<Joined, Unmatched>) {
        let source = self.counted(source);
        let joined = match found {
            Ok(joined) => joined,
            Err(reason) => {
                *self.unmatched.entry((source, *reason)).or_default() += 1;
                return;
            }
        };
        let tally = self.tally(source, joined);
        tally.matched += 1;
        tally.correct += u64::from(joined.truth == joined.predicted);
        let pair = (joined.truth, joined.predicted);
        if tally.confusion.len() < MAX_KEYS - 1 || tally.confusion.contains_key(&pair) {
            *tally.confusion.entry(pair).or_default() += 1;
        } else {
            tally.other += 1;
        }
        tally.compare(joined);
    }

    /// A label that was counted before, and whose candidate has answered only now.
    pub fn count_late(&mut self, source: &LabelSource, joined: &Joined) {
        let source = self.counted(source);
        self.tally(source, joined).compare(joined);
    }

    /// Everything gathered, as records to be added up. Labels without a prediction have no window
    /// of their own: they are told under `home` and the bucket of `now`, and wait if there is none.
    pub fn drain(&mut self, home: Option<&Subject>, now: Moment) -> Vec<LabelCounts> {
        let bare = |subject: &Subject, bucket, source: &LabelSource| LabelCounts {
            slot: subject.slot.clone(),
            bundle: subject.bundle.clone(),
            digest: subject.digest,
            attempt: subject.attempt.clone(),
            bucket,
            source: source.to_text(),
            matched: 0,
            correct: 0,
            confusion: vec![],
            unmatched: BTreeMap::new(),
            versus: None,
        };
        self.names.clear();
        let mut records: Vec<LabelCounts> = Vec::new();
        for ((_, bucket, source), tally) in std::mem::take(&mut self.tallies) {
            let name = |index| tally.subject.class_name(index);
            let pairs = tally.confusion.iter().map(|((truth, said), n)| (name(*truth), name(*said), *n));
            let other = (tally.other > 0).then(|| ("other".to_owned(), "other".to_owned(), tally.other));
            let mut versus = tally.versus.into_values();
            records.push(LabelCounts {
                matched: tally.matched,
                correct: tally.correct,
                confusion: pairs.chain(other).collect(),
                versus: versus.next(),
                ..bare(&tally.subject, bucket, &source)
            });
            // One record speaks of one candidate; two within five minutes are rare.
            records.extend(
                versus.map(|versus| LabelCounts {
                    versus: Some(versus),
                    ..bare(&tally.subject, bucket, &source)
                }),
            );
        }
        let Some(home) = home else { return records };
        let mut lost: BTreeMap<LabelSource, LabelCounts> = BTreeMap::new();
        for ((source, reason), n) in std::mem::take(&mut self.unmatched) {
            let record =
                lost.entry(source.clone()).or_insert_with(|| bare(home, bucket_start(now.wall), &source));
            record.unmatched.insert(reason.as_str().to_owned(), n);
        }
        records.extend(lost.into_values());
        records
    }
}
