//! Documents and client marks in memory, written back by way of the log.
//!
//! A value changed here is *dirty* until storers have it: it cannot be loaded again as it is, so
//! it is pinned. Clean values are evicted, the longest unused first, when the cache is full.

use fieldstream_shared::defect::{self, Defect};
use fieldstream_shared::document::Document;
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::marks::Mark;
use fieldstream_shared::partition::Partition;
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};

/// What names a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// A document.
    Document(DocumentId),
    /// What a partition remembers of a client.
    Mark(Partition, ClientId),
}

impl Key {
    /// The partition the value belongs to.
    pub fn partition(&self) -> Partition {
        match self {
            Key::Document(id) => Partition::of(id),
            Key::Mark(p, _) => *p,
        }
    }
}

/// A cached value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A document.
    Document(Box<Document>),
    /// A client's mark.
    Mark(Mark),
}

impl Value {
    /// About how much memory the value takes.
    fn bytes(&self) -> usize {
        match self {
            Value::Document(document) => 192 + document.body.memory_bytes(),
            Value::Mark(mark) => 192 + 48 * mark.window.len(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    value: Value,
    bytes: usize,
    /// EVENTS sequence of the last change that was read back; 0 if unchanged since it was loaded.
    last_event: u64,
    /// Own batches in flight that changed it.
    unconfirmed: u32,
    dirty: bool,
    used: u64,
    /// The batch in which it was last asked whether it was touched.
    touched_in: u64,
}

/// A bounded cache of one lane's values.
#[derive(Debug, Default)]
pub struct Cache {
    /// Looked into a dozen times per instruction. Its hash is seeded at random, and nobody outside sees
    /// the order of what is in here.
    entries: HashMap<Key, Entry, RandomState>,
    /// Keys by last use, lazily: an entry used since is moved to the end when it comes up.
    order: VecDeque<(Key, u64)>,
    clock: u64,
    batch: u64,
    bytes: usize,
    dirty_bytes: usize,
    bytes_max: usize,
}

impl Cache {
    /// A cache of so many bytes. Dirty values stay even beyond.
    pub fn new(bytes_max: usize) -> Cache {
        Cache { bytes_max, ..Cache::default() }
    }

    /// Whether a value is there.
    pub fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    /// Bytes of values that cannot be evicted.
    pub fn dirty_bytes(&self) -> usize {
        self.dirty_bytes
    }

    /// Whether it holds more than it should. Eviction ends that, unless too much is dirty.
    pub fn is_over(&self) -> bool {
        self.bytes > self.bytes_max
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts in a value as loaded. One that is there already is newer and stays.
    pub fn insert(&mut self, key: Key, value: Value) {
        if self.contains(&key) {
            return;
        }
        self.clock += 1;
        let bytes = value.bytes();
        self.bytes += bytes;
        self.order.push_back((key.clone(), self.clock));
        self.entries.insert(
            key,
            Entry { value, bytes, last_event: 0, unconfirmed: 0, dirty: false, used: self.clock, touched_in: 0 },
        );
    }

    /// A value, to read.
    pub fn get(&mut self, key: &Key) -> Option<&Value> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(&entry.value)
    }

    /// Changes a value; it is dirty from now on, and unconfirmed until [`Cache::confirm`].
    pub fn change<T>(&mut self, key: &Key, change: impl FnOnce(&mut Value) -> T) -> Option<T> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        let result = change(&mut entry.value);
        let bytes = entry.value.bytes();
        self.bytes = self.bytes - entry.bytes + bytes;
        self.dirty_bytes = self.dirty_bytes + bytes - if entry.dirty { entry.bytes } else { 0 };
        (entry.bytes, entry.dirty) = (bytes, true);
        Some(result)
    }

    /// A batch begins: from now on every value is touched for the first time again.
    pub fn begin_batch(&mut self) {
        self.batch += 1;
    }

    /// Whether a value that is there is touched for the first time in this batch; it is then no more.
    pub fn is_first_touch(&mut self, key: &Key) -> bool {
        let batch = self.batch;
        self.entries.get_mut(key).is_some_and(|entry| std::mem::replace(&mut entry.touched_in, batch) != batch)
    }

    /// Counts one own batch in flight for a changed value.
    pub fn hold(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.unconfirmed += 1;
        }
    }

    /// An own batch that changed the value was read back at this EVENTS sequence.
    pub fn confirm(&mut self, key: &Key, sequence: u64) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.unconfirmed = entry.unconfirmed.saturating_sub(1);
            entry.last_event = entry.last_event.max(sequence);
        }
    }

    /// Storers have everything up to this EVENTS sequence: the value may be clean again.
    pub fn release(&mut self, key: &Key, progress: u64) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.dirty
            && entry.unconfirmed == 0
            && entry.last_event <= progress
        {
            entry.dirty = false;
            self.dirty_bytes -= entry.bytes;
        }
    }

    /// Drops every value of some partitions.
    pub fn drop_partitions(&mut self, gone: impl Fn(Partition) -> bool) {
        let (mut bytes, mut dirty_bytes) = (self.bytes, self.dirty_bytes);
        self.entries.retain(|key, entry| {
            let keep = !gone(key.partition());
            if !keep {
                bytes -= entry.bytes;
                dirty_bytes -= if entry.dirty { entry.bytes } else { 0 };
            }
            keep
        });
        (self.bytes, self.dirty_bytes) = (bytes, dirty_bytes);
    }

    /// Evicts clean values until the cache is within its bound, but none that `is_needed`. `evicted`
    /// is told the partition and the last event of each: an answer older than that must not be
    /// used any more.
    pub fn evict(&mut self, is_needed: impl Fn(&Key) -> bool, mut evicted: impl FnMut(Partition, u64)) {
        let mut looks = self.order.len();
        while self.bytes > self.bytes_max && looks > 0 {
            looks -= 1;
            let Some((key, used)) = self.order.pop_front() else { return };
            let Some(entry) = self.entries.get(&key) else { continue };
            let is_pinned = entry.dirty && !defect::active(Defect::DirtyEvicted);
            if entry.used != used || is_pinned || is_needed(&key) {
                let used = entry.used;
                self.order.push_back((key, used));
                continue;
            }
            evicted(key.partition(), entry.last_event);
            self.bytes -= entry.bytes;
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::document::Body;

    fn key(n: usize) -> Key {
        Key::Document(DocumentId::new(&format!("d{n}")).unwrap())
    }

    fn text(bytes: usize) -> Value {
        Value::Document(Box::new(Document { revision: 1, time_us: 0, body: Body::Text("x".repeat(bytes)) }))
    }

    #[test]
    fn the_longest_unused_clean_value_goes_first_and_dirty_ones_stay() {
        let mut cache = Cache::new(3000);
        for n in 0..3 {
            cache.insert(key(n), text(1000));
        }
        cache.get(&key(0));
        cache.change(&key(1), |_| ()).unwrap();
        cache.hold(&key(1));
        let mut gone = Vec::new();
        cache.evict(|_| false, |p, last| gone.push((p, last)));
        assert_eq!(gone, [(key(2).partition(), 0)]);
        assert!(cache.contains(&key(0)) && cache.contains(&key(1)));

        cache.insert(key(3), text(2000));
        cache.confirm(&key(1), 40);
        cache.release(&key(1), 39);
        assert!(cache.dirty_bytes() > 0);
        cache.release(&key(1), 40);
        assert_eq!(cache.dirty_bytes(), 0);
        gone.clear();
        cache.evict(|_| false, |p, last| gone.push((p, last)));
        assert!(gone.contains(&(key(1).partition(), 40)), "the floor learns of the last event");
    }

    #[test]
    fn bytes_are_counted_exactly() {
        let mut cache = Cache::new(0);
        cache.insert(key(1), text(10));
        cache.insert(key(2), text(10));
        cache.change(&key(1), |v| *v = text(500)).unwrap();
        assert_eq!((cache.bytes(), cache.dirty_bytes()), (2 * 192 + 510, 692));
        cache.drop_partitions(|p| p == key(1).partition());
        assert_eq!((cache.bytes(), cache.dirty_bytes()), (202, 0));
        cache.evict(|_| false, |_, _| ());
        assert_eq!(cache.bytes(), 0);
    }
}
