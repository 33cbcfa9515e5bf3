//! The documents of the rollout: in memory for speed, or as a store keeps them, with revisions, so that stale
//! drivers lose and crashed ones begin anew.

use super::{device::Wanted, settings::StoreKind};
use crate::rollout::{Attempt, Rollout};
use edgefleet_shared::desired::Assigned;

/// What one transaction has overwritten.
#[derive(Default)]
struct Undo {
    attempts: Vec<(u32, Option<Box<Attempt>>)>,
    wanted: Vec<(u32, Wanted)>,
}

/// A driver's copy of the rollout.
#[derive(Clone)]
struct Copy {
    rollout: Rollout,
    revision: u64,
}

pub(super) struct Documents {
    /// The acting driver's rollout.
    pub rollout: Rollout,
    attempts: Vec<Option<Box<Attempt>>>,
    undo: Option<Undo>,
    store: Option<Store>,
}

struct Store {
    kind: (u32, f64),
    /// The document as it was written last; who reads it, reads JSON.
    written: Rollout,
    revision: u64,
    copies: Vec<Copy>,
    acting: usize,
}

/// One in so many commits writes its attempts as JSON and reads them back.
const THROUGH_JSON: u64 = 8;

/// What came of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commit {
    Done,
    /// Another driver was faster: nothing is written, the driver has read again.
    Conflict,
}

impl Documents {
    pub(super) fn new(rollout: Rollout, kind: StoreKind) -> Self {
        let store = match kind {
            StoreKind::Memory => None,
            StoreKind::Documents { drivers, crashes } => Some(Store {
                kind: (drivers.max(1), crashes),
                written: rollout.clone(),
                revision: 1,
                copies: vec![Copy { rollout: rollout.clone(), revision: 1 }; drivers.max(1) as usize],
                acting: 0,
            }),
        };
        Self { rollout, attempts: Vec::new(), undo: None, store }
    }

    pub(super) fn is_plain(&self) -> bool {
        self.store.is_none()
    }
    pub(super) fn drivers(&self) -> u32 {
        self.store.as_ref().map_or(1, |store| store.kind.0)
    }
    pub(super) fn crash_chance(&self) -> f64 {
        self.store.as_ref().map_or(0.0, |store| store.kind.1)
    }

    pub(super) fn reserve(&mut self, members: u32) {
        if self.attempts.len() < members as usize {
            self.attempts.resize_with(members as usize, || None);
        }
    }
    pub(super) fn attempt(&self, member: u32) -> Option<&Attempt> {
        self.attempts.get(member as usize)?.as_deref()
    }
    pub(super) fn take(&mut self, member: u32) -> Option<Box<Attempt>> {
        let attempt = self.attempts[member as usize].take();
        if let Some(undo) = &mut self.undo {
            undo.attempts.push((member, attempt.clone()));
        }
        attempt
    }
    pub(super) fn put(&mut self, member: u32, attempt: Box<Attempt>) {
        self.attempts[member as usize] = Some(attempt);
    }
    pub(super) fn note_wanted(&mut self, device: u32, old: Wanted) {
        if let Some(undo) = &mut self.undo {
            undo.wanted.push((device, old));
        }
    }

    /// A driver begins a transaction on its own copy, however old that is.
    pub(super) fn begin(&mut self, driver: u32) {
        if let Some(store) = &mut self.store {
            store.acting = driver as usize % store.copies.len();
            self.rollout = store.copies[store.acting].rollout.clone();
            self.undo = Some(Undo::default());
        }
    }

    /// Writes everything in one go, or nothing.
    pub(super) fn commit(&mut self, wanted: &mut [Wanted]) -> Commit {
        let (Some(store), Some(undo)) = (&mut self.store, self.undo.take()) else { return Commit::Done };
        let copy = &mut store.copies[store.acting];
        if copy.revision == store.revision {
            store.revision += 1;
            // Every change goes through the store now and then, not each time: that would be most of the work.
            if store.revision.is_multiple_of(THROUGH_JSON) {
                for (member, _) in undo.attempts {
                    let Some(attempt) = &mut self.attempts[member as usize] else { continue };
                    **attempt = read(&json(&**attempt));
                }
            }
            store.written = self.rollout.clone();
            *copy = Copy { rollout: self.rollout.clone(), revision: store.revision };
            return Commit::Done;
        }
        for (member, old) in undo.attempts.into_iter().rev() {
            self.attempts[member as usize] = old;
        }
        for (device, old) in undo.wanted.into_iter().rev() {
            wanted[device as usize] = old;
        }
        *copy = Copy { rollout: read(&json(&store.written)), revision: store.revision };
        self.rollout = copy.rollout.clone();
        Commit::Conflict
    }

    /// The acting driver dies; the next one reads what lies on disk.
    pub(super) fn restart(&mut self) {
        if let Some(store) = &mut self.store {
            store.copies[store.acting] =
                Copy { rollout: read(&json(&store.written)), revision: store.revision };
            self.rollout = store.copies[store.acting].rollout.clone();
        }
    }

    /// Size of the rollout's document as JSON, bytes.
    pub(super) fn size(&self) -> usize {
        json(&self.rollout).len()
    }
}

// Documents that cannot be written or read back are a bug of their types, which is what is tested here.
fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| panic!("a document cannot be written: {error}"))
}
fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> T {
    serde_json::from_slice(json).unwrap_or_else(|error| {
        panic!("a document cannot be read back: {error}\n{}", String::from_utf8_lossy(json))
    })
}

/// The bundle a device is to have again.
pub(super) fn give_back(before: &Assigned) -> Option<Assigned> {
    Some(before.clone())
}
