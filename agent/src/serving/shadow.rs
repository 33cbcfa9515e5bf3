//! Runs a candidate on the inputs of the active bundle, for evidence only.
//!
//! The request path hands over a copy of the decoded input (shared bytes, not copied ones) and goes on: it
//! never waits here. Its only lock is tried, not taken, because the thread on the other side has the
//! lowest priority there is and might hold it until the device is idle. Whatever does not fit is shed and
//! counted. A panic costs one answer; a candidate that hangs costs its thread, and nobody waits for it.

use super::slots::{Active, ServedBundle};
use crate::{
    capture::Late,
    engine::{aside, panic_text, priority},
    monitor::{
        Class, ClassReader, ErrorCode, Monitor, Outcome, RowVerdict, ShadowAnswer, ShadowRecorder, Subject,
        classes::numbers, profile::Profiler,
    },
};
use edgefleet_shared::{
    capture::Reason, desired::ShadowSettings, reported::ShedReason, telemetry::Role, tensor::Tensor,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};

/// Requests that may wait for the shadow, the one it works on included.
pub const MAX_REQUESTS: usize = 32;
/// Bytes of inputs that may wait.
const MAX_BYTES: usize = 16 << 20;
/// What can be counted as shed, in the order of the counters.
const REASONS: [ShedReason; 5] =
    [ShedReason::QueueFull, ShedReason::Latency, ShedReason::Memory, ShedReason::Heat, ShedReason::Quota];
/// 2^64 divided by the golden ratio: multiples of it are spread evenly, whatever the share.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// What the active bundle answered.
pub enum ActiveAnswer {
    Classes(Vec<Class>),
    /// Outputs without classes are compared number by number.
    Numbers(Vec<Tensor>),
}

/// A candidate beside the active bundle of one slot.
pub struct Shadow {
    pub served: Arc<ServedBundle>,
    pub recorder: Arc<ShadowRecorder>,
    against: Arc<Subject>,
    reader: Option<ClassReader>,
    profiler: Arc<Profiler>,
    is_batched: bool,
    share: AtomicU64,
    tolerance: AtomicU64,
    max_rows: AtomicU64,
    queue: Mutex<VecDeque<Mirrored>>,
    /// Places and bytes taken, from admission until the answer.
    places: AtomicUsize,
    bytes: AtomicUsize,
    open: AtomicBool,
    thread: OnceLock<Thread>,
    seen: AtomicU64,
    mirrored: AtomicU64,
    shed: [AtomicU64; REASONS.len()],
    /// 1 + index of the reason for which nothing is admitted now; 0 if there is none.
    shedding: AtomicU8,
    answered: AtomicU64,
    failed: AtomicU64,
    origin: Instant,
    /// Milliseconds after `origin` at which the present run began; 0 between runs.
    run_since_ms: AtomicU64,
}

struct Mirrored {
    inputs: Vec<Tensor>,
    rows: u64,
    bytes: usize,
    sequence: Option<u64>,
    active: ActiveAnswer,
    since: Instant,
    mono_ms: u64,
    late: Option<Late>,
}

/// A place in the queue, and the input that will take it.
pub struct Mirror {
    shadow: Arc<Shadow>,
    /// Taken out by [`Mirror::offer`].
    inputs: Vec<Tensor>,
    rows: u64,
    bytes: usize,
    since: Instant,
    offered: bool,
    late: Option<Late>,
}

impl Shadow {
    /// A shadow of `active`, counted from now on. Nothing runs before [`Shadow::work`].
    pub fn beside(
        monitor: &Monitor,
        active: &Active,
        served: Arc<ServedBundle>,
        settings: ShadowSettings,
    ) -> Arc<Self> {
        let subject = Subject {
            slot: served.slot.clone(),
            bundle: served.bundle.clone(),
            digest: served.digest,
            role: Role::Shadow,
            attempt: served.attempt.clone(),
            classes: Arc::new(served.manifest.labels.as_slice().into()),
        };
        let against = active.recorder.subject().clone();
        let profiler = Arc::new(Profiler::new(&served.manifest, served.baseline.clone()));
        let shadow = Self {
            recorder: monitor.watch_shadow(subject, &against, Some(profiler.clone())),
            profiler,
            reader: ClassReader::new(&served.manifest),
            served,
            against,
            is_batched: active.is_batched(),
            share: AtomicU64::new(0),
            tolerance: AtomicU64::new(0),
            max_rows: AtomicU64::new(0),
            queue: Mutex::default(),
            places: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            open: AtomicBool::new(true),
            thread: OnceLock::new(),
            seen: AtomicU64::new(0),
            mirrored: AtomicU64::new(0),
            shed: Default::default(),
            shedding: AtomicU8::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            origin: Instant::now(),
            run_since_ms: AtomicU64::new(0),
        };
        shadow.set(settings);
        Arc::new(shadow)
    }

    pub fn set(&self, settings: ShadowSettings) {
        let share = if settings.share.is_finite() { settings.share.clamp(0.0, 1.0) } else { 1.0 };
        // As a part of all numbers: rounding makes 1.0 the largest of them.
        self.share.store((share * u64::MAX as f64) as u64, Ordering::Relaxed);
        let tolerance = if settings.tolerance >= 0.0 { settings.tolerance } else { 0.0 };
        self.tolerance.store(tolerance.to_bits(), Ordering::Relaxed);
        self.max_rows.store(settings.max_rows.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Takes a place for a request, if the shadow may have it. From the request path: waits for nothing.
    pub fn admit(self: &Arc<Self>, inputs: &[Tensor], rows: u64) -> Option<Mirror> {
        let turn = self.seen.fetch_add(1, Ordering::Relaxed).wrapping_mul(GOLDEN);
        if turn > self.share.load(Ordering::Relaxed) || !self.open.load(Ordering::Relaxed) {
            return None;
        }
        if let Some(now) = self.shedding.load(Ordering::Relaxed).checked_sub(1) {
            return self.count_shed(usize::from(now));
        }
        if self.mirrored.load(Ordering::Relaxed).saturating_add(rows) > self.max_rows.load(Ordering::Relaxed)
        {
            return self.count_shed(4);
        }
        let bytes: usize = inputs.iter().map(|tensor| tensor.data().len()).sum();
        let place = self.places.fetch_add(1, Ordering::AcqRel) < MAX_REQUESTS;
        let room = self.bytes.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes) <= MAX_BYTES;
        let mut mirror = Mirror {
            shadow: self.clone(),
            inputs: Vec::new(),
            rows,
            bytes,
            since: Instant::now(),
            offered: false,
            late: None,
        };
        if !(place && room) {
            return self.count_shed(0); // and the mirror gives both back
        }
        mirror.inputs = inputs.to_vec();
        Some(mirror)
    }

    fn count_shed<T>(&self, reason: usize) -> Option<T> {
        if let Some(count) = self.shed.get(reason) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    fn give_back(&self, bytes: usize) {
        self.places.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Admits nothing from now on for this reason; `None` ends that.
    pub fn shed_for(&self, reason: Option<ShedReason>) {
        let at = reason.and_then(|reason| (1u8..).zip(REASONS).find(|(_, known)| *known == reason));
        self.shedding.store(at.map_or(0, |(at, _)| at), Ordering::Relaxed);
    }

    pub fn shedding(&self) -> Option<ShedReason> {
        let at = usize::from(self.shedding.load(Ordering::Relaxed).checked_sub(1)?);
        REASONS.get(at).copied()
    }

    pub fn mirrored(&self) -> u64 {
        self.mirrored.load(Ordering::Relaxed)
    }
    pub fn shed(&self) -> BTreeMap<ShedReason, u64> {
        let counts = self.shed.iter().map(|count| count.load(Ordering::Relaxed));
        REASONS.into_iter().zip(counts).filter(|(_, n)| *n > 0).collect()
    }
    /// Requests answered, and of these the ones that failed in the engine.
    pub fn answered(&self) -> (u64, u64) {
        (self.answered.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
    /// How long the present run takes already.
    pub fn running_for(&self) -> Option<Duration> {
        let since = Some(self.run_since_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0)?;
        Some(self.origin.elapsed().saturating_sub(Duration::from_millis(since)))
    }
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Takes nothing more; its thread ends after the run it is in.
    pub fn stop(&self) {
        self.open.store(false, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// The life of the shadow's thread.
    pub fn work(&self) {
        self.thread.get_or_init(std::thread::current);
        while self.open.load(Ordering::Acquire) {
            let next = self.queue.lock().pop_front();
            match next {
                Some(item) => self.run(item),
                None => std::thread::park_timeout(Duration::from_secs(1)),
            }
        }
    }

    fn run(&self, item: Mirrored) {
        let started = Instant::now();
        let ms = u64::try_from(started.duration_since(self.origin).as_millis()).unwrap_or(u64::MAX);
        self.run_since_ms.store(ms.max(1), Ordering::Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let (outputs, aside) = aside::collect(|| self.served.model.run(&item.inputs));
            let outputs = outputs.map_err(|e| e.to_string())?;
            let classes = self.reader.as_ref().map(|reader| reader.read(&outputs)).unwrap_or_default();
            let verdicts = self.compare(&item, &outputs, &classes);
            let scores = self.profiler.scores(&outputs, &classes);
            Ok((classes, verdicts, scores, aside.steps))
        }));
        let infer = started.elapsed();
        self.run_since_ms.store(0, Ordering::Relaxed);
        self.answered.fetch_add(1, Ordering::Relaxed);
        let result = result.unwrap_or_else(|panic| Err(panic_text(&*panic)));
        let (outcome, (classes, verdicts, scores, steps)) = match result {
            Ok(compared) => (Outcome::Ok, compared),
            Err(reason) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(bundle = %self.served.bundle, reason, "the shadow failed an input");
                (Outcome::Failed(ErrorCode::Engine), Default::default())
            }
        };
        let Mirrored { rows, sequence, since, mono_ms, bytes, late, .. } = item;
        if let (Some(late), Some(first)) = (late, sequence) {
            let rows = (first..).zip(&verdicts).filter(|(_, verdict)| !verdict.agrees);
            rows.for_each(|(sequence, _)| late.tell(sequence, Reason::Disagreement));
        }
        let queue = started - since;
        self.recorder.tell(ShadowAnswer {
            sequence,
            rows,
            outcome,
            queue,
            infer,
            steps,
            classes,
            verdicts,
            scores,
            mono_ms: mono_ms + u64::try_from(since.elapsed().as_millis()).unwrap_or(0),
        });
        self.give_back(bytes);
    }

    /// One verdict per row, by class where the active bundle's answer is one. A candidate whose answer
    /// has another form disagrees.
    fn compare(&self, item: &Mirrored, outputs: &[Tensor], classes: &[Class]) -> Vec<RowVerdict> {
        match &item.active {
            ActiveAnswer::Classes(active) => {
                let agrees = |row: usize, mine: &Class| {
                    let theirs = classes.get(row).filter(|_| classes.len() == active.len());
                    theirs.is_some_and(|theirs| {
                        self.against.is_same_class(mine.index, self.recorder.subject(), theirs.index)
                    })
                };
                let rows = active.iter().enumerate();
                rows.map(|(row, mine)| RowVerdict { class: Some(mine.index), agrees: agrees(row, mine) })
                    .collect()
            }
            ActiveAnswer::Numbers(active) => {
                let rows = if self.is_batched { usize::try_from(item.rows).unwrap_or(1).max(1) } else { 1 };
                let tolerance = f64::from_bits(self.tolerance.load(Ordering::Relaxed));
                let agree = numbers_agree(active, outputs, rows, tolerance);
                agree.into_iter().map(|agrees| RowVerdict { class: None, agrees }).collect()
            }
        }
    }
}

/// By row, whether every number of every output is within `tolerance` of the active bundle's.
fn numbers_agree(active: &[Tensor], candidate: &[Tensor], rows: usize, tolerance: f64) -> Vec<bool> {
    let mut agree = vec![true; rows];
    for mine in active {
        let same = |theirs: &&Tensor| theirs.name() == mine.name() && theirs.shape() == mine.shape();
        let pair = candidate.iter().find(same).map(|theirs| (numbers(mine), numbers(theirs), theirs));
        match pair {
            Some((Some(mine), Some(theirs), _)) if mine.len() == theirs.len() && mine.len() % rows == 0 => {
                let width = (mine.len() / rows).max(1);
                let near =
                    |(a, b): (&f64, &f64)| (a - b).abs() <= tolerance || a == b || a.is_nan() && b.is_nan();
                let chunks = mine.chunks(width).zip(theirs.chunks(width));
                for (agree, (mine, theirs)) in agree.iter_mut().zip(chunks) {
                    *agree &= mine.iter().zip(theirs).all(near);
                }
            }
            // Texts and truth values: equal or not, as a whole.
            Some((None, None, theirs)) if theirs.data() == mine.data() => {}
            _ => agree.fill(false),
        }
    }
    agree
}

impl Mirror {
    pub fn recorder(&self) -> &ShadowRecorder {
        &self.shadow.recorder
    }

    /// Rows that the candidate answers otherwise are told there.
    pub fn tell_disagreements(&mut self, late: Option<Late>) {
        self.late = late;
    }

    /// Hands the input over, with what the active bundle answered. Waits for nothing.
    pub fn offer(mut self, sequence: Option<u64>, active: ActiveAnswer, mono_ms: u64) {
        let Some(mut queue) = self.shadow.queue.try_lock() else {
            self.shadow.count_shed::<()>(0);
            return;
        };
        let item = Mirrored {
            inputs: std::mem::take(&mut self.inputs),
            rows: self.rows,
            bytes: self.bytes,
            sequence,
            active,
            since: self.since,
            mono_ms,
            late: self.late.take(),
        };
        queue.push_back(item);
        drop(queue);
        self.offered = true; // the worker gives the place back
        self.shadow.mirrored.fetch_add(self.rows, Ordering::Relaxed);
        if let Some(thread) = self.shadow.thread.get() {
            thread.unpark();
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if !self.offered {
            self.shadow.give_back(self.bytes);
        }
    }
}

/// Starts the thread of a shadow, at the lowest priority from its first instruction on: loading a large
/// model is work too. The thread waits for its [`Shadow`] at the returned sender.
///
/// # Errors
/// The system refused a thread.
pub fn spawn<T: Send + 'static>(
    load: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<(Loaded<T>, std::sync::mpsc::Sender<Arc<Shadow>>)> {
    let (loaded, model) = tokio::sync::oneshot::channel();
    let (sender, shadow) = std::sync::mpsc::channel::<Arc<Shadow>>();
    std::thread::Builder::new().name("shadow".into()).spawn(move || {
        priority::lowest();
        let _ = loaded.send(load()); // nobody waits any more: then nobody sends a shadow either
        if let Ok(shadow) = shadow.recv() {
            shadow.work();
        }
    })?;
    Ok((model, sender))
}

/// What came of loading, from the shadow's thread.
pub type Loaded<T> = tokio::sync::oneshot::Receiver<T>;
