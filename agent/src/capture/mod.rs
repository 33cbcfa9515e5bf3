//! Captures: inputs kept for labelling, by the controller's policy, with a known probability.
//!
//! [`decide`] is pure. A request pays for the decision only: a look-up, one short lock and a few comparisons;
//! bytes are copied for chosen rows only, into a bounded queue that drops rather than waits. A thread of the lowest
//! priority ([`worker`]) redacts, recognises copies and writes to the disk ring ([`ring`]); [`upload`] sends what is
//! there and deletes what the controller acknowledged.

pub mod decide;
pub mod describe;
pub mod held;
pub mod near;
pub mod recent;
pub mod ring;
pub mod scores;
#[cfg(test)]
mod testing;
pub mod upload;
mod worker;

use crate::{
    monitor::{Class, Moment, Subject, profile::InputSigns},
    serving::{
        http::{Metric, StatusProvider},
        slots::Active,
    },
};
use arc_swap::ArcSwap;
use decide::{Decider, Row};
use describe::{Chosen, Why};
use edgefleet_shared::{
    capture::{CapturePolicy, MAX_RAW_BYTES, MAX_SHARE_OF_REQUEST, Reason, Strategy},
    ids::{BootId, DeviceId, PredictionId, SlotName},
    tensor::Tensor,
};
use held::Held;
use parking_lot::Mutex;
use recent::{Answered, Recents};
use ring::{Ring, RingError};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// Chosen rows that may wait for the disk, and their bytes.
const MAX_JOBS: usize = 128;
const MAX_QUEUED_BYTES: usize = 16 << 20;

enum Job {
    Keep(Box<Chosen>, Arc<CapturePolicy>),
    /// Something known late about the row with this sequence.
    Late {
        sequence: u64,
        reason: Reason,
        label: Option<String>,
    },
    Flush(SyncSender<()>),
}

/// The captures of this device. Clones share one state.
#[derive(Clone)]
pub struct Captures(Arc<Inner>);

struct Inner {
    device: DeviceId,
    boot: BootId,
    /// The device's own bound, whatever a policy says.
    limit: u64,
    slots: ArcSwap<BTreeMap<String, Arc<SlotCapture>>>,
    jobs: SyncSender<Job>,
    queued_bytes: AtomicUsize,
    ring: Mutex<Ring>,
    kept: Notify,
    counts: Counts,
    gauges: Gauges,
}

/// What the ring holds, for readers that must not wait for its disk.
#[derive(Default)]
struct Gauges {
    files: AtomicU64,
    bytes: AtomicU64,
    evicted: AtomicU64,
    evicted_audit: AtomicU64,
}

#[derive(Default)]
struct Counts {
    kept: AtomicU64,
    duplicates: AtomicU64,
    /// Chosen and then lost: a full queue, a full disk, too large.
    lost: AtomicU64,
    uploaded: AtomicU64,
    refused: AtomicU64,
}

/// One slot under its policy.
pub struct SlotCapture {
    policy: Arc<CapturePolicy>,
    with_entropy: bool,
    /// The monitor is asked about inputs.
    with_signs: bool,
    /// Rows are held for what is known late.
    waits: bool,
    decider: Arc<Mutex<Decider>>,
    recents: Arc<Mutex<Recents>>,
}

/// A request that may be captured, from before its inputs go to the model until its answer is there.
pub struct Capturing {
    captures: Arc<Inner>,
    slot: Arc<SlotCapture>,
    held: Held,
    rows: usize,
}

/// Says later that a row deserves to be kept. Waits for nothing and takes no lock.
#[derive(Clone)]
pub struct Late(Arc<Inner>);

impl Late {
    pub fn tell(&self, sequence: u64, reason: Reason) {
        self.0.send(Job::Late { sequence, reason, label: None });
    }
}

impl Captures {
    /// Opens the ring in `dir` and starts the thread that fills it. At most `limit` bytes are kept.
    ///
    /// # Errors
    /// [`RingError`] if the folder cannot be used or there is no thread.
    pub fn start(dir: &Path, limit: u64, device: DeviceId, boot: BootId) -> Result<Self, RingError> {
        let ring = Ring::open(dir, limit)?;
        let (jobs, queue) = std::sync::mpsc::sync_channel(MAX_JOBS);
        let inner = Arc::new(Inner {
            device,
            boot,
            limit,
            slots: ArcSwap::default(),
            jobs,
            queued_bytes: AtomicUsize::new(0),
            ring: Mutex::new(ring),
            kept: Notify::new(),
            counts: Counts::default(),
            gauges: Gauges::default(),
        });
        inner.show(&inner.ring.lock());
        let weak = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("captures".into())
            .spawn(move || worker::work(&weak, &queue))
            .map_err(|source| RingError::Io { path: dir.to_owned(), source })?;
        Ok(Self(inner))
    }

    /// What the controller wants from now on. What a slot has taken already still counts. May wait for the disk.
    pub fn set_policies(&self, policies: &BTreeMap<SlotName, CapturePolicy>) {
        let former = self.0.slots.load_full();
        let one = |(name, policy): (&SlotName, &CapturePolicy)| {
            let known = former.get(name.as_str());
            if let Some(known) = known.filter(|known| *known.policy == *policy) {
                return (name.to_string(), known.clone());
            }
            let decider = known.map(|known| known.decider.clone());
            let decider = decider.unwrap_or_else(|| Arc::new(Mutex::new(Decider::new(policy.clone()))));
            decider.lock().set_policy(policy.clone());
            let has = |wanted: fn(&Strategy) -> bool| policy.rules.iter().any(|r| wanted(&r.strategy));
            let slot = SlotCapture {
                with_entropy: has(|strategy| matches!(strategy, Strategy::Entropy { .. })),
                with_signs: has(|strategy| matches!(strategy, Strategy::Ood | Strategy::OutOfRange)),
                waits: has(|strategy| strategy.reason().is_late()),
                policy: Arc::new(policy.clone()),
                decider,
                recents: known.map(|known| known.recents.clone()).unwrap_or_default(),
            };
            (name.to_string(), Arc::new(slot))
        };
        let slots: BTreeMap<_, _> = policies.iter().filter(|_| self.0.limit > 0).map(one).collect();
        let wanted = slots.values().map(|slot| slot.policy.disk_bytes).max();
        self.0.slots.store(Arc::new(slots));
        if let Some(wanted) = wanted {
            let mut ring = self.0.ring.lock();
            ring.set_limit(wanted.min(self.0.limit));
            self.0.show(&ring);
        }
    }

    /// Before the inputs of a request go to the model; `None` where nothing is kept of the slot.
    pub fn begin(&self, active: &Active, inputs: &[Tensor], rows: u64) -> Option<Capturing> {
        let slot = self.0.slots.load().get(active.served.slot.as_str())?.clone();
        active.classes.as_ref()?; // without a class there is no prediction id to label by
        let held = Held::of(&active.served.manifest.interface, inputs);
        let rows = usize::try_from(rows).unwrap_or(usize::MAX).max(1);
        Some(Capturing { captures: self.0.clone(), slot, held, rows })
    }

    /// The truth about a row, if it is one of this start of the agent.
    pub fn labelled(&self, id: &PredictionId, row: u64, label: &str) {
        let waits = || self.0.slots.load().values().any(|slot| slot.waits);
        if id.device == self.0.device && id.boot == self.0.boot && waits() {
            let sequence = id.sequence.saturating_add(row);
            let (reason, label) = (Reason::FeedbackNegative, Some(label.to_owned()));
            self.0.send(Job::Late { sequence, reason, label });
        }
    }

    /// Keep the next `count` rows of a slot. `false` if nothing is kept of it.
    pub fn command(&self, slot: &SlotName, count: u32) -> bool {
        let slots = self.0.slots.load();
        let slot = slots.get(slot.as_str());
        if let Some(slot) = slot {
            slot.decider.lock().command(count);
        }
        slot.is_some()
    }

    /// Returns when everything chosen before is on disk or lost, or after `patience`. Blocks.
    pub fn flush(&self, patience: Duration) {
        let (done, waited) = std::sync::mpsc::sync_channel(1);
        if self.0.jobs.try_send(Job::Flush(done)).is_ok() {
            waited.recv_timeout(patience).ok();
        }
    }
}

impl Inner {
    fn show(&self, ring: &Ring) {
        let Gauges { files, bytes, evicted, evicted_audit } = &self.gauges;
        files.store(ring.len() as u64, Ordering::Relaxed);
        bytes.store(ring.bytes(), Ordering::Relaxed);
        evicted.store(ring.evicted, Ordering::Relaxed);
        evicted_audit.store(ring.evicted_audit, Ordering::Relaxed);
    }

    fn send(&self, job: Job) {
        if let Err(TrySendError::Full(Job::Keep(..)) | TrySendError::Disconnected(Job::Keep(..))) =
            self.jobs.try_send(job)
        {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn keep(&self, chosen: Chosen, policy: &Arc<CapturePolicy>) {
        let bytes = chosen.bytes();
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        if queued > MAX_QUEUED_BYTES || bytes > MAX_RAW_BYTES {
            self.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let job = Job::Keep(Box::new(chosen), policy.clone());
        if self.jobs.try_send(job).is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Capturing {
    /// For whoever will know more about these rows later.
    pub fn late(&self) -> Option<Late> {
        self.slot.waits.then(|| Late(self.captures.clone()))
    }

    /// The answer is there: decides about every row. `first` is the id of row 0; `signs` says what a row's inputs are
    /// like, if the policy asks for it.
    pub fn answered(
        self,
        active: &Active,
        first: &PredictionId,
        classes: &[Class],
        outputs: &[Tensor],
        now: Moment,
        signs: impl Fn(usize) -> InputSigns,
    ) {
        let Self { captures, slot, held, rows } = self;
        let manifest = &active.served.manifest;
        let scores = manifest.prediction.as_ref().and_then(|prediction| prediction.scores.as_deref());
        let scores = scores.and_then(|name| outputs.iter().find(|output| output.name() == name));
        let of_row = |class: &Class, row: usize| {
            let read =
                scores.and_then(|tensor| scores::of_row(tensor, classes.len(), row, slot.with_entropy));
            read.unwrap_or(scores::RowScores { top: class.confidence, ..scores::UNKNOWN })
        };
        let subject: &Arc<Subject> = active.recorder.subject();
        let id = |row: usize| PredictionId {
            sequence: first.sequence.saturating_add(row as u64),
            ..first.clone()
        };
        let mut taken = 0;
        let mut decider = slot.decider.lock();
        for (row, class) in classes.iter().enumerate() {
            let read = of_row(class, row);
            let signs = if slot.with_signs { signs(row) } else { InputSigns::default() };
            let seen = Row {
                class: Some(class.index),
                top: read.top,
                second: read.second,
                entropy: read.entropy,
                is_foreign: signs.is_foreign,
                is_out_of_range: signs.is_out_of_range,
            };
            let Some(choice) = decider.decide(&seen, now.mono_ms, rand::random()) else { continue };
            taken += 1;
            // Cheap to say and rare: one request with thousands of rows cannot fill the queue alone.
            let cut = (taken <= MAX_SHARE_OF_REQUEST).then(|| {
                let inputs = held.row(&manifest.interface, rows, row)?;
                Some((inputs, held::rows_of(outputs, rows, row)?))
            });
            let Some(Some((inputs, outputs))) = cut else {
                captures.counts.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let chosen = Chosen {
                prediction: id(row),
                subject: subject.clone(),
                at: now,
                why: Why::Choice(choice),
                class: class.index,
                scores: read,
                inputs,
                outputs,
                label: None,
            };
            captures.keep(chosen, &slot.policy);
        }
        drop(decider);
        if slot.waits
            && let Some(mut recents) = slot.recents.try_lock()
        {
            let inputs = held.whole(&manifest.interface);
            let answered = Answered {
                first: first.clone(),
                subject: subject.clone(),
                at: now,
                rows,
                classes: classes.to_vec(),
                scores: classes.iter().enumerate().map(|(row, class)| of_row(class, row)).collect(),
                inputs,
                outputs: outputs.to_vec(),
            };
            recents.push(answered);
        }
    }
}

/// `captures` in `GET /v1/status` and `/metrics`.
impl StatusProvider for Captures {
    fn name(&self) -> &'static str {
        "captures"
    }
    fn status(&self) -> Value {
        let slots: BTreeMap<_, _> = self
            .0
            .slots
            .load()
            .iter()
            .map(|(name, slot)| {
                let decider = slot.decider.lock();
                let reasons: BTreeMap<_, _> = decider
                    .tally()
                    .filter(|(_, tally)| tally.taken + tally.over_quota > 0)
                    .map(|(reason, t)| {
                        (reason.as_str(), json!({"taken": t.taken, "over_quota": t.over_quota}))
                    })
                    .collect();
                (name.clone(), json!({"audit_share": decider.policy().audit_share(), "reasons": reasons}))
            })
            .collect();
        let gauges = &self.0.gauges;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.0.counts;
        json!({
            "slots": slots,
            "waiting": count(&gauges.files),
            "waiting_bytes": count(&gauges.bytes),
            "kept": count(&counts.kept),
            "duplicates": count(&counts.duplicates),
            "lost": count(&counts.lost),
            "evicted": count(&gauges.evicted),
            "evicted_audit": count(&gauges.evicted_audit),
            "uploaded": count(&counts.uploaded),
            "refused": count(&counts.refused),
        })
    }
    fn metrics(&self) -> Vec<Metric> {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
        let counts = &self.0.counts;
        let (waiting, evicted) = (count(&self.0.gauges.bytes), count(&self.0.gauges.evicted));
        [
            ("edgefleet_captures_kept_total", "Inputs kept for labelling.", count(&counts.kept)),
            (
                "edgefleet_captures_duplicates_total",
                "Chosen inputs left out because the like was kept.",
                count(&counts.duplicates),
            ),
            (
                "edgefleet_captures_lost_total",
                "Chosen inputs lost to a full queue or disk, or too large.",
                count(&counts.lost),
            ),
            ("edgefleet_captures_evicted_total", "Captures removed to make room.", evicted),
            (
                "edgefleet_captures_uploaded_total",
                "Captures the controller has acknowledged.",
                count(&counts.uploaded),
            ),
            ("edgefleet_captures_waiting_bytes", "Bytes of captures on disk.", waiting),
        ]
        .map(|(name, help, value)| Metric { name, help, value })
        .into()
    }
}
