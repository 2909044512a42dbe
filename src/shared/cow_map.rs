//! A hash map that is cheap to clone and to change a little: clones share everything, and a change
//! copies one small bucket and the list of buckets.
//!
//! With 100,000 entries a clone with one change copies about 6,000 pointers and 16 entries, where a
//! `HashMap` would copy all. Once in a doubling of its size the whole is spread anew.

use std::{
    borrow::Borrow,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::Arc,
};

/// See the module.
#[derive(Clone)]
pub struct CowMap<K, V> {
    /// None, or a power of two.
    buckets: Vec<Arc<Vec<Slot<K, V>>>>,
    len: usize,
    hasher: RandomState,
}

#[derive(Clone)]
struct Slot<K, V> {
    hash: u64,
    key: K,
    value: V,
}

/// How many entries a bucket holds on average at most.
const FILL: usize = 16;

impl<K: Clone + Eq + Hash, V: Clone> CowMap<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(key);
        let bucket = self.buckets.get(self.bucket(hash))?;
        let position = position(bucket, hash, key)?;
        bucket.get(position).map(|slot| &slot.value)
    }

    /// The value of a key, to be changed; what shares it keeps the former one.
    pub fn get_mut<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(key);
        let index = self.bucket(hash);
        let bucket = self.buckets.get_mut(index)?;
        let position = position(bucket, hash, key)?;
        let slot = Arc::make_mut(bucket).get_mut(position)?;
        Some(&mut slot.value)
    }

    /// Sets the value of a key and answers the former one.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(former) = self.get_mut(&key) {
            return Some(std::mem::replace(former, value));
        }
        self.entry(key, || value);
        None
    }

    /// The value of a key, made where it is missing.
    pub fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if self.len >= self.buckets.len() * FILL {
            self.grow();
        }
        let hash = self.hasher.hash_one(&key);
        let index = self.bucket(hash);
        let bucket = Arc::make_mut(&mut self.buckets[index]);
        let position = position(bucket, hash, &key).unwrap_or_else(|| {
            let value = make();
            bucket.push(Slot { hash, key, value });
            self.len += 1;
            bucket.len() - 1
        });
        &mut bucket[position].value
    }

    /// Takes a key out and answers its value.
    pub fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(key);
        let index = self.bucket(hash);
        let bucket = self.buckets.get_mut(index)?;
        let position = position(bucket, hash, key)?;
        self.len -= 1;
        Some(Arc::make_mut(bucket).swap_remove(position).value)
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        let buckets = self.buckets.iter();
        buckets.flat_map(|bucket| bucket.iter().map(|slot| &slot.value))
    }

    fn bucket(&self, hash: u64) -> usize {
        // The length is a power of two; the map is far smaller than 2^32 buckets.
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits count")]
        let low = hash as usize;
        low & self.buckets.len().wrapping_sub(1)
    }

    fn grow(&mut self) {
        let count = (self.buckets.len() * 2).max(1);
        let former = std::mem::take(&mut self.buckets);
        self.buckets = vec![Arc::default(); count];
        for bucket in former {
            for slot in Arc::unwrap_or_clone(bucket) {
                let index = self.bucket(slot.hash);
                Arc::make_mut(&mut self.buckets[index]).push(slot);
            }
        }
    }
}

fn position<K: Borrow<Q>, V, Q: Eq + ?Sized>(
    bucket: &[Slot<K, V>],
    hash: u64,
    key: &Q,
) -> Option<usize> {
    bucket
        .iter()
        .position(|slot| slot.hash == hash && slot.key.borrow() == key)
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        Self {
            buckets: Vec::new(),
            len: 0,
            hasher: RandomState::new(),
        }
    }
}

impl<K, V> fmt::Debug for CowMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CowMap")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn content(map: &CowMap<u16, u8>) -> HashMap<u16, u8> {
        let slots = map.buckets.iter().flat_map(|bucket| bucket.iter());
        slots.map(|slot| (slot.key, slot.value)).collect()
    }

    proptest! {
        #[test]
        fn it_does_what_a_hash_map_does_and_clones_do_not_change(
            steps in prop::collection::vec((0_u16..200, any::<Option<u8>>()), 0..600)
        ) {
            let (mut map, mut model) = (CowMap::default(), HashMap::new());
            let mut kept = Vec::new();
            for (number, (key, value)) in steps.into_iter().enumerate() {
                if number % 50 == 0 {
                    kept.push((map.clone(), model.clone()));
                }
                let (found, expected) = match value {
                    Some(value) => (map.insert(key, value), model.insert(key, value)),
                    None => (map.remove(&key), model.remove(&key)),
                };
                prop_assert_eq!(found, expected);
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
            }
            kept.push((map, model));
            for (map, model) in kept {
                prop_assert_eq!(content(&map), model);
            }
        }
    }
}
