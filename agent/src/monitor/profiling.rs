//! The profile of one recorder, beside its window.

use super::{
    Class, Inner, Moment, Monitor, Recorder, ShadowAnswer, Subject,
    profile::{InputSigns, Look, ProfileBuilder, Profiler, Seen},
};
use crate::pipeline::{Pictures, refusing_op};
use edgefleet_shared::{telemetry::RecordBody, tensor::Tensor};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Profiles are on while `on` is; shared by all recorders.
pub(super) struct Profiling {
    profiler: Arc<Profiler>,
    builder: Mutex<ProfileBuilder>,
    on: Arc<AtomicBool>,
    remembers: bool,
}

impl Profiling {
    pub(super) fn new(
        profiler: Arc<Profiler>,
        subject: Arc<Subject>,
        on: Arc<AtomicBool>,
        remembers: bool,
        now: Moment,
    ) -> Self {
        let builder = Mutex::new(profiler.builder(subject, now));
        Self { profiler, builder, on, remembers }
    }
    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// From the monitor's tick.
    pub(super) fn take_over(&self, answer: &ShadowAnswer) {
        if self.is_on() && !answer.verdicts.is_empty() {
            let mut builder = self.builder.lock();
            builder.count_rows(answer.rows);
            builder.answer(&answer.scores);
        }
    }
}

impl Recorder {
    /// What a request's inputs are like, before they are given away; `None` if nobody wants to know.
    pub fn look(&self, inputs: &[Tensor]) -> Option<Look> {
        self.profiling.as_ref().filter(|p| p.is_on()).map(|p| p.profiler.look(inputs))
    }

    /// Adds an answered request to the profile. `look` is of its inputs, `pictures` of those its pipeline decoded.
    pub fn profile(&self, look: Option<&Look>, outputs: &[Tensor], classes: &[Class], pictures: &[Pictures]) {
        if let (Some(profiling), Some(look)) = (&self.profiling, look) {
            let scores = profiling.profiler.scores(outputs, classes);
            let remembers = profiling.remembers;
            profiling.builder.lock().take(&Seen { look, scores, pictures, remembers });
        }
    }

    /// What the monitor says of one row of a request; nothing without a profile of it.
    pub fn signs(&self, look: Option<&Look>, pictures: &[Pictures], row: usize) -> InputSigns {
        let known = self.profiling.as_ref().zip(look);
        known.map(|(profiling, look)| profiling.profiler.signs(look, pictures, row)).unwrap_or_default()
    }

    /// Counts a request whose content a step before the model refused, by what the refusal says.
    pub fn refused(&self, said: &str) {
        let profiling = self.profiling.as_ref().filter(|p| p.is_on());
        if let Some((profiling, op)) = profiling.zip(refusing_op(said)) {
            profiling.builder.lock().refused(op);
        }
    }
}

impl Inner {
    /// Cuts the profile if it has rows enough, or if none will follow.
    pub(super) fn cut_profile(&mut self, recorder: &Recorder, last: bool, now: Moment) {
        let Some(profiling) = &recorder.profiling else { return };
        let mut builder = profiling.builder.lock();
        let age = now.mono_ms.saturating_sub(builder.started_ms());
        let due = last || u128::from(age) >= self.profile.as_millis();
        if due && builder.is_ready(last) {
            let profile = builder.cut(now);
            drop(builder);
            if let Some(profile) = profile {
                self.push(RecordBody::Profile(Box::new(profile)));
            }
        }
    }
}

impl Monitor {
    /// `desired.settings.profile_secs`; zero turns profiles off.
    pub fn set_profile(&self, profile: Duration) {
        self.profiling.store(!profile.is_zero(), Ordering::Relaxed);
        if !profile.is_zero() {
            self.inner.lock().profile = profile;
        }
    }
}
