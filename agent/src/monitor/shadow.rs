//! Counts what a shadow answers.
//!
//! The thread that runs the shadow has the lowest priority: whoever waited for a lock that it holds would
//! wait for the whole device to be idle. So it only leaves its answers in a place of its own, and the
//! monitor's tick takes them over where the place happens to be free.

use super::{
    Monitor, Observation, Outcome, Recorder, RowVerdict, Subject,
    profile::{Profiler, Scores},
};
use crate::engine::aside::Steps;
use edgefleet_shared::telemetry::Role;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Answers waiting to be taken over, at most: a tick comes every second.
const MAX_ANSWERS: usize = 16_384;

/// One request as the shadow answered it.
#[derive(Clone, Debug)]
pub struct ShadowAnswer {
    /// The sequence under which its rows are remembered, if they are.
    pub sequence: Option<u64>,
    pub rows: u64,
    pub outcome: Outcome,
    /// From the request until the shadow took it, and inside the shadow's engine.
    pub queue: Duration,
    pub infer: Duration,
    pub steps: Option<Steps>,
    pub classes: Vec<super::Class>,
    /// One per row where both answered; empty if the shadow failed.
    pub verdicts: Vec<RowVerdict>,
    /// How sure it was of them.
    pub scores: Scores,
    pub mono_ms: u64,
}

/// Counts one shadow.
pub struct ShadowRecorder {
    recorder: Arc<Recorder>,
    answers: Mutex<Vec<ShadowAnswer>>,
    /// Answers that found no place.
    lost: AtomicU64,
}

impl ShadowRecorder {
    pub fn subject(&self) -> &Arc<Subject> {
        self.recorder.subject()
    }
    pub(super) fn index(&self) -> u32 {
        self.recorder.index
    }
    /// Answers lost because nobody took them over.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// From the shadow's own thread.
    pub fn tell(&self, answer: ShadowAnswer) {
        let mut answers = self.answers.lock();
        if answers.len() < MAX_ANSWERS {
            answers.push(answer);
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Monitor {
    /// Opens window and profile of a shadow of `against`.
    pub fn watch_shadow(
        &self,
        mut subject: Subject,
        against: &Arc<Subject>,
        profiler: Option<Arc<Profiler>>,
    ) -> Arc<ShadowRecorder> {
        if subject.classes == against.classes {
            subject.classes = against.classes.clone(); // so that equal classes are equal numbers
        }
        subject.role = Role::Shadow;
        let recorder = self.watch_beside(subject, Some(against.clone()), profiler);
        let shadow =
            Arc::new(ShadowRecorder { recorder, answers: Mutex::default(), lost: AtomicU64::new(0) });
        self.shadows.lock().push(shadow.clone());
        shadow
    }

    /// The shadow is given nothing any more. What it still answers is counted in one more window.
    pub fn retire_shadow(&self, shadow: &ShadowRecorder) {
        self.absorb();
        self.retire(&shadow.recorder);
    }

    /// Takes over what shadows have answered since the last time.
    pub(super) fn absorb(&self) {
        let shadows = self.shadows.lock().clone();
        for shadow in &shadows {
            let Some(answers) = shadow.answers.try_lock().map(|mut answers| std::mem::take(&mut *answers))
            else {
                continue; // its thread is just there: at the next tick
            };
            for answer in answers {
                self.take_over(shadow, &answer);
            }
        }
        drop(shadows);
        self.shadows.lock().retain(|shadow| {
            let retired = shadow.recorder.retired.load(Ordering::Acquire);
            !retired || Arc::strong_count(shadow) > 1 || !shadow.answers.lock().is_empty()
        });
    }

    fn take_over(&self, shadow: &ShadowRecorder, answer: &ShadowAnswer) {
        let seen = Observation {
            rows: answer.rows,
            outcome: answer.outcome,
            queue: answer.queue,
            infer: answer.infer,
            steps: answer.steps,
            pass_rows: 0,
            total: answer.queue + answer.infer,
            classes: &answer.classes,
        };
        let failed = if answer.outcome == Outcome::Ok { 0 } else { answer.rows };
        {
            let mut builder = shadow.recorder.builder.lock();
            builder.record(&seen, answer.mono_ms);
            builder.compare(&answer.verdicts, failed);
        }
        if let Some(profiling) = &shadow.recorder.profiling {
            profiling.take_over(answer);
        }
        let Some(sequence) = answer.sequence else { return };
        let rows = usize::try_from(answer.rows).unwrap_or(usize::MAX).min(MAX_ANSWERS);
        let classes: Vec<_> = (0..rows).map(|row| answer.classes.get(row).map(|c| c.index)).collect();
        let late = self.ring.lock().answered(sequence, shadow.index(), &classes);
        if !late.is_empty() {
            let mut book = self.labels.lock();
            late.iter().for_each(|(source, joined)| book.count_late(source, joined));
        }
    }
}
