//! Sends captures to the controller, one at a time, within what the policy allows; deletes what it acknowledged.

use super::{Captures, ring::Stored};
use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::{
    capture::{CapturePolicy, UploadRules},
    digest::BlobDigest,
    ids::SlotName,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// Looks again after this long, whatever happened: a limit may have passed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// After a failure: doubled each time, up to the second; with up to as much again by chance.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
const DAY: Duration = Duration::from_secs(86_400);

/// What the controller said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has the capture, durably.
    Stored,
    /// It will never take this one.
    Refused { why: String },
    /// Not now.
    Later { why: String, after: Option<Duration> },
}

/// Takes a capture to the controller.
#[async_trait]
pub trait Carrier: Send + Sync {
    async fn put(&self, id: BlobDigest, file: Bytes) -> Answer;
}

/// Bytes of one slot within the last day.
struct Spent {
    since: Instant,
    bytes: u64,
}

pub struct Uploader {
    captures: Captures,
    carrier: Arc<dyn Carrier>,
    is_metered: bool,
    spent: BTreeMap<SlotName, Spent>,
    failures: u32,
}

impl Uploader {
    /// `is_metered`: what the device's settings say of its link.
    pub fn new(captures: Captures, carrier: Arc<dyn Carrier>, is_metered: bool) -> Self {
        Self { captures, carrier, is_metered, spent: BTreeMap::new(), failures: 0 }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        loop {
            let pause = self.send_one().await;
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => {
                    let inner = self.captures.0.clone();
                    tokio::select! {
                        () = inner.kept.notified() => {}
                        () = tokio::time::sleep(LOOK_AGAIN) => {}
                    }
                }
            }
        }
    }

    /// The rules of a slot; captures of one that has no policy any more still go out.
    fn rules(&self, slot: &SlotName) -> UploadRules {
        let slots = self.captures.0.slots.load();
        slots.get(slot.as_str()).map_or_else(|| CapturePolicy::default().upload, |slot| slot.policy.upload)
    }

    /// What may be sent now, as a question that can be asked on another thread.
    fn allowance(&self) -> impl Fn(&Stored) -> bool + Send + 'static {
        let slots = self.captures.0.slots.load_full();
        let spent = self.spent.iter().filter(|(_, spent)| spent.since.elapsed() < DAY);
        let spent: BTreeMap<_, _> = spent.map(|(slot, spent)| (slot.clone(), spent.bytes)).collect();
        let (is_metered, default) = (self.is_metered, CapturePolicy::default().upload);
        move |stored| {
            let Some(slot) = &stored.slot else { return true }; // read first, then judged
            let rules = slots.get(slot.as_str()).map_or(default, |slot| slot.policy.upload);
            let spent = spent.get(slot).copied().unwrap_or(0);
            let within =
                rules.bytes_per_day == 0 || spent.saturating_add(stored.bytes) <= rules.bytes_per_day;
            rules.enabled && (rules.metered || !is_metered) && within
        }
    }

    /// Sends one; how long to pause before the next, or `None` if there is nothing to do now.
    async fn send_one(&mut self) -> Option<Duration> {
        let (inner, may) = (self.captures.0.clone(), self.allowance());
        // The ring belongs to a thread that may hold it while its disk is slow: wait elsewhere.
        let found = tokio::task::spawn_blocking(move || {
            let mut ring = inner.ring.lock();
            loop {
                let (number, stored) = ring.next(&may)?;
                let read = ring.read(number);
                inner.show(&ring);
                let Some((file, slot)) = read else { continue };
                if stored.slot.is_some() || may(&Stored { slot: Some(slot.clone()), ..stored }) {
                    return Some((number, file, slot));
                }
            }
        });
        let (number, file, slot) = found.await.ok().flatten()?;
        let bytes = file.len() as u64;
        match self.carrier.put(BlobDigest::of(&file), file.into()).await {
            Answer::Stored => {
                self.failures = 0;
                self.captures.0.counts.uploaded.fetch_add(1, Ordering::Relaxed);
                self.forget(number).await;
                self.spend(&slot, bytes);
                let rate = self.rules(&slot).bytes_per_second;
                let secs = if rate == 0 { 0.0 } else { bytes as f64 / rate as f64 };
                Some(Duration::from_secs_f64(secs.min(3_600.0)))
            }
            Answer::Refused { why } => {
                tracing::warn!(%slot, why, "the controller refused a capture for good; it was removed");
                self.captures.0.counts.refused.fetch_add(1, Ordering::Relaxed);
                self.forget(number).await;
                Some(Duration::ZERO)
            }
            Answer::Later { why, after } => {
                self.failures = self.failures.saturating_add(1);
                let doubled = FIRST_PAUSE.saturating_mul(1 << (self.failures - 1).min(12));
                let pause = after.unwrap_or(doubled).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                tracing::debug!(%slot, why, pause_ms = pause.as_millis() as u64, "a capture waits");
                Some(pause.mul_f64(1.0 + rand::random::<f64>()))
            }
        }
    }

    async fn forget(&self, number: u64) {
        let inner = self.captures.0.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let mut ring = inner.ring.lock();
            ring.remove(number);
            inner.show(&ring);
        });
        removed.await.ok(); // cut off only when the agent ends
    }

    fn spend(&mut self, slot: &SlotName, bytes: u64) {
        let now = Instant::now();
        let spent = self.spent.entry(slot.clone()).or_insert(Spent { since: now, bytes: 0 });
        if spent.since.elapsed() >= DAY {
            *spent = Spent { since: now, bytes: 0 };
        }
        spent.bytes = spent.bytes.saturating_add(bytes);
    }
}
