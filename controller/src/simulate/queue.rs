//! Virtual time: what happens next.

use std::{cmp::Ordering, collections::BinaryHeap};

/// What happens at a time, to whom. Devices are numbers of the virtual fleet.
#[derive(Debug)]
pub(super) enum Item {
    /// [`Rollout::wake`](crate::rollout::Rollout).
    Wake,
    /// [`Attempt::deadline`](crate::rollout::Attempt) of the member.
    Deadline { member: u32 },
    /// The device reads its newest desired state.
    Desired { device: u32 },
    /// The device goes on with what it does; `epoch` makes steps of what it has dropped harmless.
    Step { device: u32, epoch: u16 },
    /// A telemetry window of the device is over.
    Window { device: u32 },
    /// What a device said arrives.
    Deliver { device: u32, said: Box<crate::rollout::DeviceSaid> },
    /// Somebody looks at the numbers.
    Look,
    /// A person who may act passes by.
    Person,
    /// An entry of the calendar of troubles.
    Trouble { number: u32 },
}

struct Entry {
    at: u64,
    /// Of two things at the same time the one that was planned first.
    order: u64,
    item: Item,
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest: turned round.
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}

#[derive(Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Entry>,
    order: u64,
}

impl Queue {
    /// `at`: milliseconds since 1970.
    pub(super) fn push(&mut self, at: u64, item: Item) {
        self.order += 1;
        self.heap.push(Entry { at, order: self.order, item });
    }
    pub(super) fn pop(&mut self) -> Option<(u64, Item)> {
        self.heap.pop().map(|entry| (entry.at, entry.item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_happen_in_the_order_of_time_and_then_of_planning() {
        let mut queue = Queue::default();
        for (at, device) in [(5, 1), (3, 2), (5, 3), (1, 4)] {
            queue.push(at, Item::Desired { device });
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop())
            .map(|(at, item)| match item {
                Item::Desired { device } => (at, device),
                other => unreachable!("{other:?}"),
            })
            .collect();
        assert_eq!(order, [(1, 4), (3, 2), (5, 1), (5, 3)]);
    }
}
