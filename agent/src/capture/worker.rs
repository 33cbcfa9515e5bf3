//! The thread that turns chosen rows into files. Nobody waits for it.

use super::{Inner, Job, describe::Chosen, near::Recent};
use crate::engine::priority;
use edgefleet_shared::capture::CapturePolicy;
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Weak, atomic::Ordering, mpsc::Receiver},
    time::Instant,
};

/// Sequences remembered as captured, so that a late reason does not keep a row twice.
const MAX_CAPTURED: usize = 4_096;

struct Worker {
    started: Instant,
    recent: Recent,
    captured: VecDeque<u64>,
}

/// Until every handle is gone.
pub(super) fn work(inner: &Weak<Inner>, queue: &Receiver<Job>) {
    priority::lowest();
    let mut worker = Worker { started: Instant::now(), recent: Recent::default(), captured: VecDeque::new() };
    while let Ok(job) = queue.recv() {
        let Some(inner) = inner.upgrade() else { return };
        match job {
            Job::Flush(done) => drop(done.try_send(())), // whoever asked may have given up
            Job::Keep(chosen, policy) => {
                let bytes = chosen.bytes();
                worker.keep(&inner, *chosen, &policy);
                inner.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
            }
            Job::Late { sequence, reason, label } => {
                if worker.captured.contains(&sequence) {
                    continue;
                }
                let mono_ms = worker.mono_ms();
                for slot in inner.slots.load().values().filter(|slot| slot.waits) {
                    // Requests only try this lock, so holding it at this priority delays nobody.
                    let mut recents = slot.recents.lock();
                    let found = recents.choose(&slot.policy, sequence, reason, label.as_deref(), mono_ms);
                    drop(recents);
                    if let Some(chosen) = found {
                        worker.keep(&inner, chosen, &slot.policy);
                        break;
                    }
                }
            }
        }
    }
}

impl Worker {
    fn mono_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn keep(&mut self, inner: &Inner, chosen: Chosen, policy: &CapturePolicy) {
        let (sequence, is_audit) = (chosen.prediction.sequence, chosen.is_audit());
        let slot = chosen.subject.slot.clone();
        // The audit sample is what chance says, copies and all.
        let mono_ms = self.mono_ms();
        let work = AssertUnwindSafe(|| {
            // A picture may be anything; a decoder that gives up on it costs this one comparison.
            let likeness = (policy.deduplicate && !is_audit).then(|| chosen.likeness());
            if likeness.is_some_and(|likeness| self.recent.has_seen(likeness, mono_ms)) {
                return Ok(None);
            }
            let file = chosen.to_file(policy).map_err(|e| e.to_string())?;
            let mut ring = inner.ring.lock();
            let put = ring.put(&file, is_audit, &slot);
            inner.show(&ring);
            put.map(Some).map_err(|e| e.to_string())
        });
        let kept = catch_unwind(work).unwrap_or_else(|_| Err("its input could not be read".to_owned()));
        let count = match kept {
            Ok(Some(_)) => {
                if self.captured.len() >= MAX_CAPTURED {
                    self.captured.pop_front();
                }
                self.captured.push_back(sequence);
                inner.kept.notify_one();
                &inner.counts.kept
            }
            Ok(None) => &inner.counts.duplicates,
            Err(reason) => {
                tracing::debug!(%slot, reason, "a capture was lost");
                &inner.counts.lost
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}
