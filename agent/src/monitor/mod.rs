//! Watches what is served: windows of counts and latencies, joined labels.
//!
//! [`window`] and [`labels`] are pure (time comes in), [`ring`] remembers answered predictions,
//! [`Monitor`] is the shell: one recorder per bundle being served, cut at every change, and a queue
//! of finished records that [`Monitor::tick`] hands to the sink. The request path takes one short
//! lock and never touches the disk.

pub mod classes;
pub mod device;
pub mod labels;
pub mod profile;
mod profiling;
pub mod ring;
pub mod shadow;
pub mod window;

pub use classes::{Class, ClassReader};
pub use labels::{JoinSummary, LabelSource};
pub use shadow::{ShadowAnswer, ShadowRecorder};
pub use window::{ClassNames, ErrorCode, Moment, Observation, Outcome, RowVerdict, Subject, WindowBuilder};

use edgefleet_shared::{
    desired::Threshold,
    ids::{BootId, DeviceId, PredictionId, SlotName},
    message::Labels,
    telemetry::{DeviceHealth, RecordBody, Role},
};
use labels::LabelBook;
use parking_lot::Mutex;
use profile::Profiler;
use profiling::Profiling;
use ring::Ring;
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Where finished records go; the outbox. Called from [`Monitor::tick`] and [`Monitor::flush`] only.
pub trait RecordSink: Send + Sync {
    /// # Errors
    /// [`SinkError`]: the monitor keeps the record and tries again at the next tick.
    fn append(&self, record: RecordBody) -> Result<(), SinkError>;
}

/// Why a record could not be kept.
#[derive(Debug, Clone, thiserror::Error)]
#[error("could not keep a telemetry record: {reason}")]
pub struct SinkError {
    pub reason: String,
}

/// The two clocks of a device: one honest about durations, one about the calendar.
pub trait MonitorClock: Send + Sync {
    fn now(&self) -> Moment;
}

/// How the monitor behaves.
#[derive(Clone, Debug)]
pub struct MonitorConfig {
    pub device: DeviceId,
    pub boot: BootId,
    /// Length of a window; `desired.settings.window_secs`.
    pub window: Duration,
    /// Length of a profile; `desired.settings.profile_secs`, zero for none.
    pub profile: Duration,
    /// Joined labels are gathered this long before they become a record.
    pub label_flush: Duration,
    /// Bytes the memory of predictions may take, and how long it reaches back.
    pub ring_bytes: usize,
    pub ring_age: Duration,
    /// Answers are remembered (`serving.cache`).
    pub remembers: bool,
}

impl MonitorConfig {
    /// 5-minute windows, profiles of an hour, labels every 10 s, 16 MiB or 14 days of predictions.
    pub fn new(device: DeviceId, boot: BootId) -> Self {
        Self {
            device,
            boot,
            window: Duration::from_secs(300),
            profile: Duration::from_secs(3_600),
            label_flush: Duration::from_secs(10),
            ring_bytes: 16 << 20,
            ring_age: Duration::from_secs(14 * 86_400),
            remembers: false,
        }
    }
}

/// Records waiting for a sink that fails; beyond it the oldest are dropped and the loss is counted.
const MAX_WAITING: usize = 1_024;
/// Age at which what was seen of the device is no news any more: a disk may hang whoever asks it.
const STALE_MS: u64 = 300_000;

/// Counts what one bundle does in one role. Cheap to share; [`Recorder::record`] is the request path.
pub struct Recorder {
    subject: Arc<Subject>,
    /// Number under which the ring knows the subject.
    index: u32,
    builder: Mutex<WindowBuilder>,
    profiling: Option<Profiling>,
    retired: AtomicBool,
}

impl Recorder {
    pub fn subject(&self) -> &Arc<Subject> {
        &self.subject
    }
    /// `mono_ms`: milliseconds since the agent's start at the end of the request.
    pub fn record(&self, observation: &Observation<'_>, mono_ms: u64) {
        self.builder.lock().record(observation, mono_ms);
    }
}

/// The shell around windows, ring and labels.
pub struct Monitor {
    config: MonitorConfig,
    clock: Arc<dyn MonitorClock>,
    sink: Arc<dyn RecordSink>,
    inner: Mutex<Inner>,
    ring: Mutex<Ring>,
    labels: Mutex<LabelBook>,
    /// What shadows have answered is taken over at every tick: their threads take no lock of ours.
    shadows: Mutex<Vec<Arc<ShadowRecorder>>>,
    /// Whether profiles are wanted.
    profiling: Arc<AtomicBool>,
    /// Held while records go to the sink, so that two ticks do not send one twice.
    sending: Mutex<()>,
}

struct Inner {
    window: Duration,
    profile: Duration,
    recorders: Vec<Arc<Recorder>>,
    thresholds: HashMap<SlotName, Vec<Threshold>>,
    waiting: VecDeque<RecordBody>,
    /// As it was last looked at, and when.
    device: Option<(u64, DeviceHealth)>,
    dropped: u64,
    labels_since_ms: u64,
}

impl Inner {
    fn push(&mut self, record: RecordBody) {
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        self.waiting.push_back(record);
    }
    fn cut(&mut self, recorder: &Recorder, now: Moment) {
        if let Some(mut window) = recorder.builder.lock().cut(now) {
            let fresh = |(at, _): &(u64, DeviceHealth)| now.mono_ms.saturating_sub(*at) <= STALE_MS;
            let device = self.device.filter(fresh).map(|(_, device)| device);
            window.device = device.filter(|_| window.role == Role::Primary);
            self.push(RecordBody::Window(Box::new(window)));
        }
    }
}

impl Monitor {
    pub fn new(config: MonitorConfig, clock: Arc<dyn MonitorClock>, sink: Arc<dyn RecordSink>) -> Self {
        let inner = Inner {
            window: config.window,
            profile: config.profile,
            recorders: Vec::new(),
            thresholds: HashMap::new(),
            waiting: VecDeque::new(),
            device: None,
            dropped: 0,
            labels_since_ms: clock.now().mono_ms,
        };
        let ring = Ring::new(config.ring_bytes, config.ring_age);
        let profiling = Arc::new(AtomicBool::new(!config.profile.is_zero()));
        Self {
            config,
            profiling,
            clock,
            sink,
            inner: Mutex::new(inner),
            ring: Mutex::new(ring),
            labels: Mutex::default(),
            shadows: Mutex::default(),
            sending: Mutex::default(),
        }
    }

    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Opens a window for something that begins to serve (or to run as a shadow).
    pub fn watch(&self, subject: Subject) -> Arc<Recorder> {
        self.watch_beside(subject, None, None)
    }

    /// The same with a profile of its inputs and answers.
    pub fn watch_inputs(&self, subject: Subject, profiler: Arc<Profiler>) -> Arc<Recorder> {
        self.watch_beside(subject, None, Some(profiler))
    }

    fn watch_beside(
        &self,
        subject: Subject,
        against: Option<Arc<Subject>>,
        profiler: Option<Arc<Profiler>>,
    ) -> Arc<Recorder> {
        let now = self.clock.now();
        let subject = Arc::new(subject);
        let index = self.ring.lock().adopt(subject.clone());
        let mut inner = self.inner.lock();
        let thresholds = inner.thresholds.get(&subject.slot).cloned().unwrap_or_default();
        let builder = WindowBuilder::new(subject.clone(), thresholds, now);
        let builder = match against {
            Some(against) => builder.against(against),
            None => builder,
        };
        let (on, remembers) = (self.profiling.clone(), self.config.remembers);
        let profiling =
            profiler.map(|profiler| Profiling::new(profiler, subject.clone(), on, remembers, now));
        let recorder = Arc::new(Recorder {
            profiling,
            builder: Mutex::new(builder),
            subject,
            index,
            retired: AtomicBool::new(false),
        });
        inner.recorders.push(recorder.clone());
        recorder
    }

    /// How the device is doing; goes with every window of the next five minutes.
    pub fn set_device(&self, device: DeviceHealth) {
        let now = self.clock.now().mono_ms;
        self.inner.lock().device = Some((now, device));
    }

    /// Cuts the window: the bundle no longer gets new requests. What is still in flight opens one
    /// more window of the same bundle, cut at the next tick.
    pub fn retire(&self, recorder: &Recorder) {
        let now = self.clock.now();
        recorder.retired.store(true, Ordering::Release);
        let mut inner = self.inner.lock();
        inner.cut(recorder, now);
        inner.cut_profile(recorder, true, now);
    }

    /// `desired.settings.window_secs`; at least one second.
    pub fn set_window(&self, window: Duration) {
        self.inner.lock().window = window.max(Duration::from_secs(1));
    }

    /// What to count for `slot` from now on. A change cuts the window, so that one window counts
    /// one set of thresholds.
    pub fn set_thresholds(&self, slot: &SlotName, thresholds: Vec<Threshold>) {
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        if inner.thresholds.get(slot).is_some_and(|known| *known == thresholds) {
            return;
        }
        let concerned: Vec<_> = inner.recorders.iter().filter(|r| r.subject.slot == *slot).cloned().collect();
        for recorder in concerned {
            inner.cut(&recorder, now);
            recorder.builder.lock().set_thresholds(thresholds.clone());
        }
        inner.thresholds.insert(slot.clone(), thresholds);
    }

    /// Remembers answered rows for later labels. Row `i` has the returned sequence plus `i`. `shadow`: it
    /// is given the same rows.
    pub fn remember(
        &self,
        recorder: &Recorder,
        rows: &[Class],
        shadow: Option<&ShadowRecorder>,
    ) -> Option<PredictionId> {
        if rows.is_empty() {
            return None;
        }
        let now = self.clock.now();
        let candidate = shadow.map(ShadowRecorder::index);
        let sequence = self.ring.lock().push(recorder.index, rows, candidate, now);
        Some(PredictionId { device: self.config.device.clone(), boot: self.config.boot, sequence })
    }

    /// Joins labels with what was predicted. `labels`: prediction, row within it, truth.
    pub fn join<'a>(
        &self,
        source: &LabelSource,
        labels: impl IntoIterator<Item = (&'a PredictionId, u64, &'a str)>,
    ) -> JoinSummary {
        let now = self.clock.now();
        let mut summary = JoinSummary::default();
        self.ring.lock().expire(now.mono_ms);
        for (id, row, truth) in labels {
            // Locked for each label: answering requests must not wait for a long list of labels.
            let mut ring = self.ring.lock();
            let found = if id.device != self.config.device {
                Err(labels::Unmatched::Foreign)
            } else if id.boot != self.config.boot {
                // The memory of predictions does not outlive the agent's process.
                Err(labels::Unmatched::Expired)
            } else {
                ring.join(id.sequence, row, truth, source)
            };
            drop(ring);
            summary.count(&found);
            let mut book = self.labels.lock();
            book.count(source, &found);
            let is_full = book.is_full();
            drop(book);
            if is_full {
                let home = self.home();
                let records = self.labels.lock().drain(home.as_deref(), now);
                let mut inner = self.inner.lock();
                records.into_iter().for_each(|record| inner.push(RecordBody::Labels(record)));
            }
        }
        summary
    }

    /// Labels that were posted at the controller.
    pub fn join_from_controller(&self, labels: &Labels) -> JoinSummary {
        let each = labels.labels.iter().map(|label| (&label.prediction, 0, label.label.as_str()));
        self.join(&LabelSource::Controller, each)
    }

    /// Cuts what is due and hands everything finished to the sink. Call about once a second, where
    /// blocking on the disk is allowed. Returns how many records the sink took.
    pub fn tick(&self) -> usize {
        self.advance(false)
    }

    /// Cuts everything, whatever its age: for an orderly stop, after the last request has ended.
    pub fn flush(&self) -> usize {
        self.advance(true)
    }

    /// Records the sink has not taken yet.
    pub fn waiting(&self) -> usize {
        self.inner.lock().waiting.len()
    }

    /// The subject that labels without a known prediction are reported under.
    fn home(&self) -> Option<Arc<Subject>> {
        let inner = self.inner.lock();
        let mut primary = inner.recorders.iter().rev().filter(|r| r.subject.role == Role::Primary);
        let last = primary.clone().next();
        let serving = primary.find(|r| !r.retired.load(Ordering::Acquire));
        serving.or(last).map(|recorder| recorder.subject.clone())
    }

    fn advance(&self, everything: bool) -> usize {
        let _one_at_a_time = self.sending.lock();
        self.absorb();
        let now = self.clock.now();
        self.ring.lock().expire(now.mono_ms);
        let home = self.home();
        {
            let mut inner = self.inner.lock();
            let window_ms = u64::try_from(inner.window.as_millis()).unwrap_or(u64::MAX);
            let recorders = std::mem::take(&mut inner.recorders);
            for recorder in &recorders {
                let retired = recorder.retired.load(Ordering::Acquire);
                let age = now.mono_ms.saturating_sub(recorder.builder.lock().started_ms());
                if everything || retired || age >= window_ms {
                    inner.cut(recorder, now);
                }
                inner.cut_profile(recorder, everything || retired, now);
            }
            // A retired one that nobody holds any more can never record again.
            inner.recorders = recorders
                .into_iter()
                .filter(|r| !r.retired.load(Ordering::Acquire) || Arc::strong_count(r) > 1)
                .collect();
            let flush_ms = u64::try_from(self.config.label_flush.as_millis()).unwrap_or(u64::MAX);
            if everything || now.mono_ms.saturating_sub(inner.labels_since_ms) >= flush_ms {
                inner.labels_since_ms = now.mono_ms;
                for record in self.labels.lock().drain(home.as_deref(), now) {
                    inner.push(RecordBody::Labels(record));
                }
            }
            if inner.dropped > 0 && inner.waiting.len() < MAX_WAITING {
                let records = std::mem::take(&mut inner.dropped);
                inner.push(RecordBody::Dropped { records, reason: "outbox refused records".into() });
            }
        }
        self.send()
    }

    /// In order; stops at the first failure and keeps the rest.
    fn send(&self) -> usize {
        let mut sent = 0;
        loop {
            let Some(record) = self.inner.lock().waiting.pop_front() else { return sent };
            if let Err(error) = self.sink.append(record.clone()) {
                tracing::warn!(%error, "telemetry record kept in memory");
                self.inner.lock().waiting.push_front(record);
                return sent;
            }
            sent += 1;
        }
    }
}

#[cfg(test)]
mod tests;
