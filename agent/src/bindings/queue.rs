//! Inputs that wait for the model: few, bounded in bytes too; the oldest goes when a newer one needs its place.

use crate::serving::local::Body;
use parking_lot::Mutex;
use std::collections::VecDeque;
use tokio::sync::Notify;

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Names it in the answer, where its source has a name for it.
    pub(super) id: Option<String>,
    pub(super) body: Body,
}

/// For one taker.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    came: Notify,
    left: Notify,
    places: usize,
    bytes: usize,
}

#[derive(Default)]
struct Inner {
    items: VecDeque<Item>,
    bytes: usize,
    closed: bool,
}

impl Inner {
    fn take(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.bytes -= item.body.len();
        Some(item)
    }
    fn add(&mut self, item: Item) {
        self.bytes += item.body.len();
        self.items.push_back(item);
    }
}

impl Queue {
    /// At most `places` items of together `bytes`; a single item may be larger.
    pub(super) fn new(places: usize, bytes: usize) -> Self {
        Self {
            inner: Mutex::default(),
            came: Notify::new(),
            left: Notify::new(),
            places: places.max(1),
            bytes,
        }
    }

    fn has_room(&self, inner: &Inner, item: &Item) -> bool {
        let fits = inner.bytes.saturating_add(item.body.len()) <= self.bytes;
        inner.items.is_empty() || inner.items.len() < self.places && fits
    }

    /// Drops the oldest. Whether there was one.
    pub(super) fn drop_oldest(&self) -> bool {
        self.inner.lock().take().is_some()
    }

    /// Adds an item; returns how many older ones had to go.
    pub(super) fn push(&self, item: Item) -> u64 {
        let mut dropped = 0;
        {
            let mut inner = self.inner.lock();
            while !self.has_room(&inner, &item) {
                inner.take();
                dropped += 1;
            }
            inner.add(item);
        }
        self.came.notify_one();
        dropped
    }

    /// Adds an item once there is room: for sources that can wait.
    pub(super) async fn push_patiently(&self, item: Item) {
        loop {
            {
                let mut inner = self.inner.lock();
                if self.has_room(&inner, &item) {
                    inner.add(item);
                    break;
                }
            }
            self.left.notified().await;
        }
        self.came.notify_one();
    }

    /// No more will come.
    pub(super) fn close(&self) {
        self.inner.lock().closed = true;
        self.came.notify_one();
    }

    /// The oldest; `None` once closed and empty.
    pub(super) async fn pop(&self) -> Option<Item> {
        loop {
            {
                let mut inner = self.inner.lock();
                if let Some(item) = inner.take() {
                    self.left.notify_one();
                    return Some(item);
                }
                if inner.closed {
                    return None;
                }
            }
            self.came.notified().await;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.inner.lock().items.len()
    }

    /// Whether one more would push another out.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::FutureExt;

    fn item(id: usize, bytes: usize) -> Item {
        Item { id: Some(id.to_string()), body: Body::Raw(Bytes::from(vec![0; bytes])) }
    }

    fn ids(queue: &Queue) -> String {
        let mut all = String::new();
        while let Some(Some(item)) = queue.pop().now_or_never() {
            all.push_str(&item.id.unwrap());
        }
        all
    }

    #[test]
    fn the_oldest_goes_for_places_and_for_bytes() {
        for (places, bytes, sizes, kept, dropped) in [
            (3, 100, vec![1, 1, 1, 1, 1], "234", vec![0, 0, 0, 1, 1]),
            (8, 10, vec![4, 4, 4, 10, 1], "4", vec![0, 0, 1, 2, 1]),
            (8, 10, vec![4, 99, 4], "2", vec![0, 1, 1]),
            (0, 10, vec![1, 1], "1", vec![0, 1]),
        ] {
            let queue = Queue::new(places, bytes);
            let found: Vec<u64> =
                sizes.iter().enumerate().map(|(id, size)| queue.push(item(id, *size))).collect();
            assert_eq!((ids(&queue).as_str(), &found), (kept, &dropped), "{places} {bytes} {sizes:?}");
        }
    }

    #[tokio::test]
    async fn who_can_wait_loses_nothing_and_a_closed_queue_is_emptied_first() {
        let queue = Queue::new(2, 100);
        let fill = async {
            for id in 0..9 {
                queue.push_patiently(item(id, 1)).await;
                assert!(queue.len() <= 2);
            }
            queue.close();
        };
        let empty = async {
            let mut all = String::new();
            while let Some(item) = queue.pop().await {
                all.push_str(&item.id.unwrap());
            }
            all
        };
        assert_eq!(tokio::join!(fill, empty).1, "012345678");
    }
}
