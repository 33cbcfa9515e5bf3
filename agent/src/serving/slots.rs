//! Which bundle answers for each slot. Switching is one pointer swap: a request keeps the bundle it
//! began with, so none is dropped, delayed or mixed.

use super::{oip::response::ResponseParameters, shadow::Shadow, state::ServingConfig, stats::Stats};
use crate::{
    engine::{
        LoadedModel,
        pool::{Batching, is_batched, rows_together},
        setup::EngineName,
    },
    monitor::{
        ClassReader, Monitor, Recorder, Subject,
        profile::{BundleBaseline, Profiler},
    },
};
use arc_swap::{ArcSwap, ArcSwapOption};
use edgefleet_shared::{
    bundle::Manifest,
    digest::BundleDigest,
    ids::{AttemptId, BundleName, SlotName},
    telemetry::Role,
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::watch;

/// A bundle that is loaded, tested and may answer.
pub struct ServedBundle {
    pub slot: SlotName,
    pub bundle: BundleName,
    pub digest: BundleDigest,
    pub attempt: AttemptId,
    pub manifest: Manifest,
    pub model: Arc<dyn LoadedModel>,
    /// What runs it.
    pub engine: EngineName,
    /// What its held-out data was like.
    pub baseline: BundleBaseline,
}

/// One activation: the bundle and what is counted about it. Requests in flight hold it.
pub struct Active {
    pub served: Arc<ServedBundle>,
    pub recorder: Arc<Recorder>,
    pub stats: Stats,
    pub classes: Option<ClassReader>,
    /// Gets the same inputs, answers nobody.
    shadow: ArcSwapOption<Shadow>,
    /// Taken out of service by hand (repository unload).
    suspended: AtomicBool,
    /// `bundle` and `attempt` as responses carry them.
    pub bundle_text: String,
    pub attempt_text: String,
    is_batched: bool,
    /// Most rows of several requests in one pass; 1 runs each alone.
    joins: usize,
    /// Dropped with the last holder; that is how [`SlotTable::drained`] learns of it.
    _drained: watch::Sender<()>,
}

impl Active {
    pub fn is_available(&self) -> bool {
        !self.suspended.load(Ordering::Acquire)
    }
    pub fn shadow(&self) -> Option<Arc<Shadow>> {
        self.shadow.load_full()
    }
    /// How requests for it may run together; `None` if one at a time.
    pub(super) fn batching(&self, config: &ServingConfig) -> Option<Batching> {
        let rows = config.batch_rows.min(self.joins);
        (rows > 1).then_some(Batching { rows, delay: config.batch_delay })
    }
    /// Whether every tensor begins with a free dimension, the batch.
    pub fn is_batched(&self) -> bool {
        self.is_batched
    }
    /// What its answers say of it.
    pub(super) fn parameters(
        &self,
        prediction_id: Option<String>,
        prediction_count: Option<usize>,
    ) -> ResponseParameters<'_> {
        let (bundle, attempt) = (&self.bundle_text, &self.attempt_text);
        ResponseParameters { bundle, attempt, prediction_id, prediction_count }
    }
}

/// The slots of this device. Clones share one table.
#[derive(Clone)]
pub struct SlotTable(Arc<Inner>);

struct Inner {
    table: ArcSwap<BTreeMap<String, Arc<Active>>>,
    /// Held while the table changes. Activations and whether anything still holds them; weak, so
    /// that an old model is unloaded as soon as its last request and the update shell let go of it.
    activations: Mutex<Vec<(Weak<ServedBundle>, watch::Receiver<()>)>>,
    monitor: Arc<Monitor>,
}

impl SlotTable {
    /// The monitor cuts its windows at every switch of this table.
    pub fn new(monitor: Arc<Monitor>) -> Self {
        let table = ArcSwap::from_pointee(BTreeMap::new());
        Self(Arc::new(Inner { table, activations: Mutex::default(), monitor }))
    }

    /// From here on new requests for the slot are answered by `served`; those in flight finish on
    /// what they began with. Returns the bundle that was active. A new attempt with the same bundle
    /// is a switch too (its windows are cut).
    pub fn activate(&self, served: Arc<ServedBundle>) -> Option<Arc<ServedBundle>> {
        let subject = Subject {
            slot: served.slot.clone(),
            bundle: served.bundle.clone(),
            digest: served.digest,
            role: Role::Primary,
            attempt: served.attempt.clone(),
            classes: Arc::new(served.manifest.labels.as_slice().into()),
        };
        let (drained, finished) = watch::channel(());
        let manifest = &served.manifest;
        let is_batched = is_batched(&manifest.interface);
        let pipeline = manifest.pipeline.as_ref();
        let joins = rows_together(usize::MAX, &manifest.limits, &manifest.interface, pipeline);
        let profiler = Arc::new(Profiler::new(manifest, served.baseline.clone()));
        let active = Arc::new(Active {
            is_batched,
            joins,
            recorder: self.0.monitor.watch_inputs(subject, profiler),
            stats: Stats::default(),
            classes: ClassReader::new(&served.manifest),
            shadow: ArcSwapOption::empty(),
            suspended: AtomicBool::new(false),
            bundle_text: served.bundle.to_string(),
            attempt_text: served.attempt.to_string(),
            served,
            _drained: drained,
        });
        let slot = active.served.slot.clone();
        self.swap(&slot, Some((active, finished)))
    }

    /// The slot answers no more. Returns the bundle that was active.
    pub fn deactivate(&self, slot: &SlotName) -> Option<Arc<ServedBundle>> {
        self.swap(slot, None)
    }

    fn swap(
        &self,
        slot: &SlotName,
        next: Option<(Arc<Active>, watch::Receiver<()>)>,
    ) -> Option<Arc<ServedBundle>> {
        let mut activations = self.0.activations.lock();
        activations.retain(|(_, finished)| finished.has_changed().is_ok());
        let mut table = BTreeMap::clone(&self.0.table.load());
        let former =
            table.get(slot.as_str()).and_then(|former| former.shadow.swap(None).map(|s| (former, s)));
        // Another engine under the same bundle is nothing that people do: what they took out of service stays out.
        if let (Some(former), Some((active, _))) = (table.get(slot.as_str()), &next)
            && active.served.digest == former.served.digest
            && active.served.attempt == former.served.attempt
        {
            active.suspended.store(former.suspended.load(Ordering::Acquire), Ordering::Release);
        }
        if let Some((former, shadow)) = former {
            match &next {
                // The same bundle under another attempt: its shadow goes on.
                Some((active, _)) if active.served.digest == former.served.digest => {
                    active.shadow.store(Some(shadow));
                }
                Some(_) | None => self.end_shadow(&shadow),
            }
        }
        let old = match next {
            Some((active, finished)) => {
                activations.push((Arc::downgrade(&active.served), finished));
                table.insert(slot.as_str().to_owned(), active)
            }
            None => table.remove(slot.as_str()),
        };
        self.0.table.store(Arc::new(table));
        let old = old?;
        self.0.monitor.retire(&old.recorder);
        Some(old.served.clone())
    }

    fn end_shadow(&self, shadow: &Shadow) {
        shadow.stop();
        self.0.monitor.retire_shadow(&shadow.recorder);
    }

    /// Gives the slot's active bundle a shadow, or takes it away. `false` if the slot does not serve
    /// `against`; then nothing changes.
    pub fn set_shadow(&self, slot: &SlotName, next: Option<(Arc<Shadow>, BundleDigest)>) -> bool {
        let _activations = self.0.activations.lock();
        let Some(active) = self.lease(slot.as_str()) else { return false };
        if next.as_ref().is_some_and(|(_, against)| *against != active.served.digest) {
            return false;
        }
        if let Some(old) = active.shadow.swap(next.map(|(shadow, _)| shadow)) {
            self.end_shadow(&old);
        }
        true
    }

    /// Resolves when the last request on a bundle that was switched away from has ended; at once if
    /// none runs. Waits for ever on a bundle that is still active.
    pub fn drained(&self, bundle: &Arc<ServedBundle>) -> impl Future<Output = ()> + Send + use<> {
        let activations = self.0.activations.lock();
        let mine = activations.iter().filter(|(served, _)| served.as_ptr() == Arc::as_ptr(bundle));
        let waits: Vec<_> = mine.map(|(_, finished)| finished.clone()).collect();
        async move {
            for mut finished in waits {
                while finished.changed().await.is_ok() {}
            }
        }
    }

    pub fn get(&self, slot: &SlotName) -> Option<Arc<ServedBundle>> {
        self.lease(slot.as_str()).map(|active| active.served.clone())
    }

    /// What each slot serves, by slot name.
    pub fn list(&self) -> Vec<Arc<ServedBundle>> {
        self.0.table.load().values().map(|active| active.served.clone()).collect()
    }

    /// Takes a slot out of service, or back into it. `false` if there is no such slot. Lasts until
    /// the next activation or restart.
    pub fn set_available(&self, slot: &str, available: bool) -> bool {
        let active = self.lease(slot);
        if let Some(active) = &active {
            active.suspended.store(!available, Ordering::Release);
        }
        active.is_some()
    }

    /// Keeps the activation alive for one request.
    pub fn lease(&self, slot: &str) -> Option<Arc<Active>> {
        self.0.table.load().get(slot).cloned()
    }
    pub fn actives(&self) -> Vec<Arc<Active>> {
        self.0.table.load().values().cloned().collect()
    }
}
