//! What was predicted, by the active bundle and by its shadow, kept for labels that come later: 28 bytes
//! a row, bounded in bytes and age.
//!
//! Sequences of one boot have no gaps, so an id finds its entry by subtraction. The memory lives in
//! the process: labels for an earlier boot are counted as expired (DECISIONS 17 bounds the ring, it
//! does not ask for a durable one).

use super::{
    classes::Class,
    labels::{Joined, LabelSource, Rival, Unmatched},
    window::{Moment, Subject},
};
use edgefleet_shared::time::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// Predictions are gathered by five minutes of wall time, as windows are aggregated.
pub const BUCKET_SECS: u64 = 300;
const LOCAL: u32 = 1 << 31;
const CONTROLLER: u32 = 1 << 30;
/// Subjects before the first sweep: activations are rare, requests are not.
const SWEEP_AT: usize = 64;
/// Room for so many rows at first.
const FIRST: usize = 1_024;
/// Labels that came before the candidate's answer to the same input, at most.
const MAX_EARLY: usize = 4_096;
/// In [`Entry::candidate`]: no shadow was given this row, or it has no answer.
const NO_CANDIDATE: u32 = u32::MAX;
/// In [`Entry::answer`]: the candidate has not answered yet. No model has a class of this number.
const PENDING: u32 = u32::MAX;

struct Entry {
    class: u32,
    confidence: f32,
    subject: u32,
    /// Place within its request, so that a label cannot reach into the next one.
    row: u32,
    /// The subject that was given the same input as a shadow, and the class it answered.
    candidate: u32,
    answer: u32,
    /// Number of the bucket (30 bits reach beyond the year 9999) and who has labelled the row.
    bucket: u32,
}

/// Start of the bucket that holds `at`.
pub fn bucket_start(at: Timestamp) -> Timestamp {
    Timestamp::from_secs(at.as_secs() / BUCKET_SECS * BUCKET_SECS)
}

pub struct Ring {
    entries: VecDeque<Entry>,
    /// Sequence of the front entry; the first ever is 1.
    first: u64,
    limit: usize,
    max_age_ms: u64,
    /// (first sequence, mono ms) about every bucket, for expiry by age.
    marks: VecDeque<(u64, u64)>,
    subjects: HashMap<u32, Arc<Subject>>,
    next_subject: u32,
    sweep_at: usize,
    /// By sequence: who labelled a row, and how, before the candidate answered.
    early: BTreeMap<u64, Vec<(LabelSource, u32)>>,
}

impl Ring {
    pub fn new(bytes: usize, age: Duration) -> Self {
        Self {
            entries: VecDeque::new(),
            first: 1,
            limit: (bytes / size_of::<Entry>()).max(1),
            max_age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            marks: VecDeque::new(),
            subjects: HashMap::new(),
            next_subject: 0,
            sweep_at: SWEEP_AT,
            early: BTreeMap::new(),
        }
    }

    /// Gives a subject its number. Subjects that nothing refers to any more are forgotten here.
    pub fn adopt(&mut self, subject: Arc<Subject>) -> u32 {
        if self.subjects.len() >= self.sweep_at {
            let used: BTreeSet<u32> = self.entries.iter().flat_map(|e| [e.subject, e.candidate]).collect();
            self.subjects.retain(|index, subject| used.contains(index) || Arc::strong_count(subject) > 1);
            self.sweep_at = SWEEP_AT.max(self.subjects.len() * 2);
        }
        let index = self.next_subject;
        self.next_subject = self.next_subject.wrapping_add(1);
        self.subjects.insert(index, subject);
        index
    }

    /// Remembers rows; returns the sequence of the first. More rows than fit push each other out.
    /// `candidate`: the subject that is given the same rows as a shadow.
    pub fn push(&mut self, subject: u32, rows: &[Class], candidate: Option<u32>, now: Moment) -> u64 {
        let sequence = self.first + self.entries.len() as u64;
        if self.marks.back().is_none_or(|(_, at)| now.mono_ms.saturating_sub(*at) >= BUCKET_SECS * 1_000) {
            self.marks.push_back((sequence, now.mono_ms));
        }
        let bucket = (now.wall.as_secs() / BUCKET_SECS) as u32 & !(LOCAL | CONTROLLER);
        for (row, class) in (0u32..).zip(rows) {
            if self.entries.len() >= self.limit {
                self.entries.pop_front();
                self.first += 1;
            }
            // Left to itself it doubles beyond the limit, and goes round through all of it.
            if self.entries.len() == self.entries.capacity() {
                let more = self.entries.len().max(FIRST).min(self.limit - self.entries.len());
                self.entries.reserve_exact(more);
            }
            let Class { index, confidence } = *class;
            let candidate = candidate.unwrap_or(NO_CANDIDATE);
            let answer = PENDING;
            self.entries.push_back(Entry {
                class: index,
                confidence,
                subject,
                row,
                candidate,
                answer,
                bucket,
            });
        }
        sequence
    }

    /// Forgets what is older than the ring may reach back, by the clock that never jumps.
    pub fn expire(&mut self, mono_ms: u64) {
        while let (Some((_, _)), Some((next, at))) = (self.marks.front(), self.marks.get(1)) {
            // Everything before the next mark is at least as old as that mark.
            if mono_ms.saturating_sub(*at) < self.max_age_ms {
                break;
            }
            let gone = next.saturating_sub(self.first).min(self.entries.len() as u64);
            self.entries.drain(..gone as usize);
            self.first += gone;
            self.marks.pop_front();
        }
        if let (1, Some((_, at))) = (self.marks.len(), self.marks.front())
            && mono_ms.saturating_sub(*at) >= self.max_age_ms + BUCKET_SECS * 1_000
        {
            self.first += self.entries.len() as u64;
            self.entries = VecDeque::new();
            self.marks.clear();
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Marks the row as labelled and says what was predicted: `row` counts from `sequence` and must
    /// belong to the same request. A row counts once for the controller
    /// and once for local sources, which are counted apart: nobody on the device's own network can
    /// use up the label that the controller will send.
    ///
    /// # Errors
    /// [`Unmatched`] with the reason.
    pub fn join(
        &mut self,
        sequence: u64,
        row: u64,
        truth: &str,
        source: &LabelSource,
    ) -> Result<Joined, Unmatched> {
        let sequence = sequence.checked_add(row).ok_or(Unmatched::Unknown)?;
        let Some(at) = sequence.checked_sub(self.first) else {
            return Err(if sequence == 0 { Unmatched::Unknown } else { Unmatched::Expired });
        };
        let at = usize::try_from(at).map_err(|_| Unmatched::Unknown)?;
        let entry = self.entries.get_mut(at).ok_or(Unmatched::Unknown)?;
        if u64::from(entry.row) < row {
            return Err(Unmatched::Unknown); // it is of a later request
        }
        let subject = self.subjects.get(&entry.subject).ok_or(Unmatched::Expired)?;
        let truth = subject.class_index(truth).ok_or(Unmatched::UnknownLabel)?;
        let flag = if source.is_controller() { CONTROLLER } else { LOCAL };
        if entry.bucket & flag != 0 {
            return Err(Unmatched::Duplicate);
        }
        entry.bucket |= flag;
        let beside = self.subjects.get(&entry.candidate).cloned();
        let rival = match &beside {
            Some(_) if entry.answer == PENDING => {
                if self.early.len() >= MAX_EARLY {
                    self.early.pop_first();
                }
                self.early.entry(sequence).or_default().push((source.clone(), truth));
                None
            }
            Some(candidate) => {
                Some(Rival { index: entry.candidate, subject: candidate.clone(), class: entry.answer })
            }
            None => None,
        };
        Ok(joined(entry, subject, truth, rival, beside))
    }

    /// The shadow `candidate` answered the rows from `sequence` on; no classes if it failed. Returns the
    /// labels that had come before, each once.
    pub fn answered(
        &mut self,
        sequence: u64,
        candidate: u32,
        answers: &[Option<u32>],
    ) -> Vec<(LabelSource, Joined)> {
        let mut late = Vec::new();
        for (sequence, answer) in (sequence..).zip(answers) {
            let labels = self.early.remove(&sequence).unwrap_or_default();
            let at = sequence.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
            let Some(entry) = at.and_then(|at| self.entries.get_mut(at)) else { continue };
            if entry.candidate != candidate || entry.answer != PENDING {
                continue;
            }
            let Some(class) = answer.filter(|class| *class != PENDING) else {
                entry.candidate = NO_CANDIDATE;
                continue;
            };
            entry.answer = class;
            let subjects = (self.subjects.get(&entry.subject), self.subjects.get(&candidate));
            let (Some(subject), Some(rival)) = subjects else { continue };
            for (source, truth) in labels {
                let rival = Rival { index: candidate, subject: rival.clone(), class };
                late.push((source, joined(entry, subject, truth, Some(rival), None)));
            }
        }
        late
    }
}

fn joined(
    entry: &Entry,
    subject: &Arc<Subject>,
    truth: u32,
    rival: Option<Rival>,
    beside: Option<Arc<Subject>>,
) -> Joined {
    Joined {
        index: entry.subject,
        subject: subject.clone(),
        bucket: Timestamp::from_secs(u64::from(entry.bucket & !(LOCAL | CONTROLLER)) * BUCKET_SECS),
        truth,
        predicted: entry.class,
        confidence: entry.confidence,
        rival,
        beside,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, subject};
    use super::*;

    const ROW: Class = Class { index: 3, confidence: 0.5 };

    #[test]
    fn the_oldest_rows_leave_first_when_the_bytes_are_used_up() {
        let mut ring = Ring::new(size_of::<Entry>() * 4, Duration::from_secs(1_000));
        let index = ring.adopt(Arc::new(subject("digits", 1, 1)));
        assert_eq!(ring.push(index, &[ROW; 3], None, at(0)), 1);
        assert_eq!(ring.push(index, &[ROW; 3], None, at(1)), 4);
        assert_eq!(ring.len(), 4);
        assert_eq!(ring.join(2, 0, "3", &LabelSource::Local).unwrap_err(), Unmatched::Expired);
        assert_eq!(ring.join(7, 0, "3", &LabelSource::Local).unwrap_err(), Unmatched::Unknown);
        assert_eq!(ring.join(0, 0, "3", &LabelSource::Local).unwrap_err(), Unmatched::Unknown);
        assert_eq!(
            ring.join(3, 0, "no such class", &LabelSource::Local).unwrap_err(),
            Unmatched::UnknownLabel
        );
        assert_eq!(ring.join(3, 0, "three", &LabelSource::Local).unwrap().predicted, 3);
        assert_eq!(ring.join(3, 0, "three", &LabelSource::Local).unwrap_err(), Unmatched::Duplicate);
        assert!(
            ring.join(3, 0, "three", &LabelSource::Controller).is_ok(),
            "the controller's label is counted apart"
        );
    }

    #[test]
    fn no_more_memory_is_taken_than_the_limit_says() {
        let bytes = size_of::<Entry>() * 600_001;
        let mut ring = Ring::new(bytes, Duration::from_secs(1_000));
        let index = ring.adopt(Arc::new(subject("digits", 1, 1)));
        for _ in 0..700_000 {
            ring.push(index, &[ROW], None, at(0));
        }
        assert_eq!(ring.len(), 600_001);
        assert_eq!(ring.entries.capacity() * size_of::<Entry>(), bytes);
    }

    #[test]
    fn a_row_beyond_its_request_is_not_the_next_requests_row() {
        let mut ring = Ring::new(1 << 10, Duration::from_secs(1_000));
        let index = ring.adopt(Arc::new(subject("digits", 1, 1)));
        assert_eq!(
            (ring.push(index, &[ROW; 3], None, at(0)), ring.push(index, &[ROW; 2], None, at(1))),
            (1, 4)
        );
        for (sequence, row, found) in [
            (1, 2, true),
            (1, 3, false),
            (1, 4, false),
            (2, 1, false),
            (3, 1, false),
            (4, 1, true),
            (4, 2, false),
        ] {
            // Row 2 by its own sequence was labelled just before: the same row, not another one.
            let wanted = match (sequence, row) {
                (2, 1) => Some(Unmatched::Duplicate),
                _ if found => None,
                _ => Some(Unmatched::Unknown),
            };
            assert_eq!(
                ring.join(sequence, row, "3", &LabelSource::Local).err(),
                wanted,
                "{sequence} + {row}"
            );
        }
        assert_eq!(ring.join(u64::MAX, 1, "3", &LabelSource::Local).unwrap_err(), Unmatched::Unknown);
    }

    #[test]
    fn rows_expire_by_age_and_sequences_go_on() {
        let mut ring = Ring::new(1 << 20, Duration::from_secs(3_600));
        let index = ring.adopt(Arc::new(subject("digits", 1, 1)));
        for minute in 0..120u64 {
            assert_eq!(ring.push(index, &[ROW], None, at(minute * 60_000)), minute + 1);
        }
        ring.expire(120 * 60_000);
        // Kept: the last hour and at most one bucket more.
        assert!((60..=66).contains(&ring.len()), "{}", ring.len());
        ring.expire(10 * 3_600_000);
        assert!(ring.is_empty());
        assert_eq!(ring.push(index, &[ROW], None, at(10 * 3_600_000)), 121);
        assert_eq!(ring.join(120, 0, "3", &LabelSource::Local).unwrap_err(), Unmatched::Expired);
    }

    #[test]
    fn subjects_are_forgotten_with_their_last_row() {
        let mut ring = Ring::new(size_of::<Entry>(), Duration::from_secs(3_600));
        for n in 0..10_000 {
            let index = ring.adopt(Arc::new(subject("digits", 1, n)));
            ring.push(index, &[ROW], None, at(0));
        }
        assert!(ring.subjects.len() <= SWEEP_AT + 1, "{}", ring.subjects.len());
    }

    #[test]
    fn a_label_meets_the_candidates_answer_whichever_comes_first() {
        let mut ring = Ring::new(1 << 10, Duration::from_secs(1_000));
        let active = ring.adopt(Arc::new(subject("digits", 1, 1)));
        let candidate = ring.adopt(Arc::new(subject("digits", 2, 1)));
        let (local, controller) = (&LabelSource::Local, &LabelSource::Controller);
        assert_eq!(ring.push(active, &[ROW; 4], Some(candidate), at(0)), 1);
        assert_eq!(ring.push(active, &[ROW], None, at(0)), 5);
        // Early, by two sources; the candidate says 2 where the active one said 3.
        assert!(ring.join(1, 0, "three", local).unwrap().rival.is_none());
        assert!(ring.join(1, 0, "three", controller).unwrap().rival.is_none());
        let late = ring.answered(1, candidate, &[Some(2), Some(3), None, Some(PENDING)]);
        let told: Vec<_> =
            late.iter().map(|(source, j)| (source.clone(), j.rival.as_ref().unwrap().class)).collect();
        assert_eq!(told, [(local.clone(), 2), (controller.clone(), 2)]);
        // Afterwards the answer is there at once; a failed one never is.
        assert_eq!(ring.join(1, 1, "two", local).unwrap().rival.unwrap().class, 3);
        for row in [2, 3] {
            assert!(ring.join(1, row, "two", local).unwrap().rival.is_none());
        }
        assert!(ring.join(5, 0, "two", local).unwrap().rival.is_none(), "not mirrored");
        // Answers that come twice, late or for something else change nothing.
        assert!(ring.answered(1, candidate, &[Some(0); 9]).is_empty());
        assert!(ring.answered(u64::MAX, candidate, &[Some(0); 2]).is_empty());
        assert!(ring.early.is_empty());
    }
}
