//! Work for many devices at a time, and for each device in order.
//!
//! A message of one device may wait for the disk. A fixed number of lanes, each device always in the same
//! one, lets the others go on meanwhile and lets their writes share an fsync. What waits is bounded in bytes
//! over all, and in messages for each device: one that floods loses its own messages and delays nobody.

use edgefleet_shared::ids::DeviceId;
use futures::FutureExt as _;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    future::Future,
    hash::{BuildHasher, RandomState},
    panic::AssertUnwindSafe,
    sync::Arc,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};

/// As many as the fleet has gates for status writes: more would wait there.
const LANES: usize = 64;
/// Messages of one device that may wait. A device that behaves has a handful under way.
const PER_DEVICE: usize = 64;
/// What may wait in all lanes, bytes; counted with [`OVERHEAD`] for each.
const MAX_WAITING_BYTES: usize = 64 << 20;
const OVERHEAD: usize = 1_024;

struct Item<T> {
    device: DeviceId,
    work: T,
    _bytes: OwnedSemaphorePermit,
}

/// See the module.
pub(super) struct Lanes<T> {
    lanes: Vec<mpsc::UnboundedSender<Item<T>>>,
    tasks: JoinSet<()>,
    bytes: Arc<Semaphore>,
    waiting: Arc<Mutex<HashMap<DeviceId, usize>>>,
    hasher: RandomState,
}

impl<T: Send + 'static> Lanes<T> {
    /// `handle` does the work. One that panics costs its message, is logged, and the lane goes on: a
    /// device must not be able to stop the controller.
    pub(super) fn start<F, R>(handle: F) -> Self
    where
        F: Fn(DeviceId, T) -> R + Clone + Send + 'static,
        R: Future<Output = ()> + Send,
    {
        let waiting = Arc::new(Mutex::new(HashMap::<DeviceId, usize>::new()));
        let mut tasks = JoinSet::new();
        let lanes = (0..LANES).map(|_| {
            // Bounded by the semaphore that every item holds a part of.
            let (sender, mut items) = mpsc::unbounded_channel::<Item<T>>();
            let (handle, waiting) = (handle.clone(), waiting.clone());
            tasks.spawn(async move {
                while let Some(Item { device, work, _bytes }) = items.recv().await {
                    let done = AssertUnwindSafe(handle(device.clone(), work)).catch_unwind().await;
                    if done.is_err() {
                        tracing::error!(%device, "a message made its handler panic; it was dropped");
                    }
                    let mut waiting = waiting.lock();
                    if let Some(count) = waiting.get_mut(&device) {
                        *count -= 1;
                        if *count == 0 {
                            waiting.remove(&device);
                        }
                    }
                }
            });
            sender
        });
        let lanes = lanes.collect();
        let bytes = Arc::new(Semaphore::new(MAX_WAITING_BYTES));
        Self { lanes, tasks, bytes, waiting, hasher: RandomState::new() }
    }

    /// Queues work of `bytes` for `device`; waits while too much waits in all. False if too much of this
    /// device's own waits: then it was dropped.
    pub(super) async fn put(&self, device: DeviceId, work: T, bytes: usize) -> bool {
        if self.waiting.lock().get(&device).is_some_and(|count| *count >= PER_DEVICE) {
            return false;
        }
        self.queue(device, work, bytes).await
    }

    /// The same for what must not be lost: what the broker itself says of a device, not the device.
    pub(super) async fn put_always(&self, device: DeviceId, work: T) {
        self.queue(device, work, 0).await;
    }

    async fn queue(&self, device: DeviceId, work: T, bytes: usize) -> bool {
        *self.waiting.lock().entry(device.clone()).or_default() += 1;
        let cost = (bytes + OVERHEAD).min(MAX_WAITING_BYTES) as u32;
        // Neither is ever closed while this lives.
        let Ok(_bytes) = self.bytes.clone().acquire_many_owned(cost).await else { return false };
        let lane = self.hasher.hash_one(&device) as usize % self.lanes.len();
        self.lanes[lane].send(Item { device, work, _bytes }).is_ok()
    }

    /// Ends when everything that waits is done.
    pub(super) async fn finish(self) {
        let Self { lanes, mut tasks, .. } = self;
        drop(lanes);
        while tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Notify;

    fn device(n: usize) -> DeviceId {
        format!("dev-{n}").parse().unwrap()
    }

    #[tokio::test]
    async fn a_device_that_waits_or_floods_delays_no_other_and_each_ones_order_is_kept() {
        let (seen, go) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let lanes = {
            let (seen, go) = (seen.clone(), go.clone());
            Lanes::start(move |device: DeviceId, n: usize| {
                let (seen, go) = (seen.clone(), go.clone());
                async move {
                    if device.as_str() == "dev-0" && n == 0 {
                        go.notified().await;
                    }
                    seen.lock().push((device, n));
                }
            })
        };
        // The flooder blocks its lane; at most its own share is queued.
        let taken = {
            let mut taken = 0;
            for n in 0..1_000 {
                taken += usize::from(lanes.put(device(0), n, 100).await);
            }
            taken
        };
        assert_eq!(taken, PER_DEVICE);
        let other = (1..100).map(device).find(|other| {
            lanes.hasher.hash_one(other) as usize % LANES != lanes.hasher.hash_one(device(0)) as usize % LANES
        });
        let other = other.unwrap();
        for n in 0..50 {
            assert!(lanes.put(other.clone(), n, 100).await);
        }
        let arrived = async {
            while seen.lock().len() < 50 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), arrived).await.unwrap();
        assert!(seen.lock().iter().map(|(_, n)| *n).eq(0..50));
        go.notify_one();
        lanes.finish().await;
        let own: Vec<_> = seen.lock().iter().filter(|(d, _)| *d == device(0)).map(|(_, n)| *n).collect();
        assert!(own.into_iter().eq(0..PER_DEVICE));
    }

    #[tokio::test]
    async fn a_message_that_makes_its_handler_panic_costs_only_itself() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let lanes = {
            let seen = seen.clone();
            Lanes::start(move |_, n: usize| {
                let seen = seen.clone();
                async move {
                    assert_ne!(n, 1, "as a hostile message might");
                    seen.lock().push(n);
                }
            })
        };
        for n in 0..3 {
            assert!(lanes.put(device(0), n, 0).await);
        }
        lanes.finish().await;
        assert_eq!(*seen.lock(), [0, 2]);
    }
}
