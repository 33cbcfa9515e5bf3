//! Answers to inputs that came before. Off unless asked for: it is worth its memory where clients repeat
//! themselves, and right only for models that give the same input the same answer.

use bytes::Bytes;
use edgefleet_shared::{
    digest::{BundleDigest, DigestHasher},
    tensor::Tensor,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};

/// What an entry costs beside its bytes, roughly: key, maps, tensors' heads.
const OVERHEAD: usize = 512;
/// An answer larger than this share of the cache is not worth pushing the others out.
const LARGEST_SHARE: usize = 4;

/// Which bundle was asked what.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// Other inputs or another bundle have another key, as far as SHA-256 tells them apart.
    pub(super) fn of(bundle: &BundleDigest, inputs: &[Tensor]) -> Self {
        let mut hash = DigestHasher::new();
        let mut part = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(bundle.to_string().as_bytes());
        // In any order the same request.
        let mut inputs: Vec<&Tensor> = inputs.iter().collect();
        inputs.sort_by_key(|tensor| tensor.name());
        for tensor in inputs {
            part(tensor.name().as_bytes());
            part(tensor.datatype().as_str().as_bytes());
            tensor.shape().iter().for_each(|dim| part(&(*dim as u64).to_le_bytes()));
            part(tensor.data());
        }
        Self(hash.finish())
    }
}

/// The answers used last, up to so many bytes.
pub(super) struct Cache {
    most: usize,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<Key, Entry>,
    by_use: BTreeMap<u64, Key>,
    uses: u64,
    bytes: usize,
}

struct Entry {
    outputs: Vec<Tensor>,
    bytes: usize,
    used: u64,
}

impl Cache {
    /// `None` for no bytes.
    pub(super) fn new(most: usize) -> Option<Self> {
        (most > 0).then(|| Self { most, entries: Mutex::default() })
    }

    pub(super) fn get(&self, key: &Key) -> Option<Vec<Tensor>> {
        let mut entries = self.entries.lock();
        entries.uses += 1;
        let now = entries.uses;
        let entry = entries.by_key.get_mut(key)?;
        let before = std::mem::replace(&mut entry.used, now);
        let outputs = entry.outputs.clone();
        entries.by_use.remove(&before);
        entries.by_use.insert(now, *key);
        Some(outputs)
    }

    pub(super) fn put(&self, key: Key, outputs: &[Tensor]) {
        let bytes = OVERHEAD + outputs.iter().map(|tensor| tensor.data().len()).sum::<usize>();
        if bytes > self.most / LARGEST_SHARE {
            return;
        }
        // A tensor may be a slice of something larger that it would keep in memory.
        let copy = |tensor: &Tensor| {
            let data = Bytes::copy_from_slice(tensor.data());
            Tensor::new(tensor.name(), tensor.datatype(), tensor.shape().to_vec(), data).ok()
        };
        let Some(outputs) = outputs.iter().map(copy).collect() else { return };
        let mut entries = self.entries.lock();
        entries.remove(&key);
        while entries.bytes + bytes > self.most {
            let Some((_, oldest)) = entries.by_use.pop_first() else { break };
            entries.remove(&oldest);
        }
        entries.uses += 1;
        let used = entries.uses;
        entries.bytes += bytes;
        entries.by_use.insert(used, key);
        entries.by_key.insert(key, Entry { outputs, bytes, used });
    }
}

impl Entries {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.by_key.remove(key) {
            self.bytes -= entry.bytes;
            self.by_use.remove(&entry.used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::tensor::Datatype;

    fn tensor(name: &str, shape: Vec<usize>, byte: u8) -> Tensor {
        let bytes = shape.iter().product();
        Tensor::new(name, Datatype::Uint8, shape, vec![byte; bytes].into()).unwrap()
    }
    fn bundle(name: &str) -> BundleDigest {
        BundleDigest::of(name.as_bytes())
    }

    #[test]
    fn a_key_tells_bundles_names_shapes_and_values_apart_but_not_the_order_of_inputs() {
        let (a, b) = (tensor("a", vec![2, 3], 1), tensor("b", vec![1], 1));
        let key = Key::of(&bundle("one"), &[a.clone(), b.clone()]);
        assert!(key == Key::of(&bundle("one"), &[b.clone(), a.clone()]));
        for other in [
            Key::of(&bundle("two"), &[a.clone(), b.clone()]),
            Key::of(&bundle("one"), &[tensor("a", vec![3, 2], 1), b.clone()]),
            Key::of(&bundle("one"), &[tensor("a", vec![2, 3], 2), b.clone()]),
            Key::of(&bundle("one"), &[tensor("c", vec![2, 3], 1), b]),
            Key::of(&bundle("one"), &[a]),
        ] {
            assert!(key != other);
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_the_large_never_come_in() {
        assert!(Cache::new(0).is_none());
        let cache = Cache::new(4 * (OVERHEAD + 100)).unwrap();
        let key = |n: u8| Key::of(&bundle("one"), &[tensor("a", vec![1], n)]);
        let answer = |n: u8| vec![tensor("y", vec![100], n)];
        (0..4).for_each(|n| cache.put(key(n), &answer(n)));
        assert_eq!(cache.get(&key(0)), Some(answer(0)));
        cache.put(key(2), &answer(7));
        cache.put(key(4), &answer(4));
        assert_eq!(cache.get(&key(1)), None);
        for (n, found) in [(0, 0), (2, 7), (3, 3), (4, 4)] {
            assert_eq!(cache.get(&key(n)), Some(answer(found)), "{n}");
        }
        cache.put(key(9), &[tensor("y", vec![1_000], 9)]);
        assert_eq!(cache.get(&key(9)), None);
        let entries = cache.entries.lock();
        assert_eq!((entries.by_key.len(), entries.by_use.len()), (4, 4));
        assert_eq!(entries.bytes, 4 * (OVERHEAD + 100));
    }
}
