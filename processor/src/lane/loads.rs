//! Values from storers: which to ask for, and when an answer may be used.

use super::{Lane, Load};
use crate::cache::{Key, Value};
use fieldstream_shared::limits::READ_ITEMS_MAX;
use fieldstream_shared::read::{Answer, AnswerBody, Query, Request};

/// Loads in flight at a time.
const LOADS_MAX: usize = 4;

impl Lane {
    /// Asks for a value, unless it is there or asked for.
    pub(super) fn want(&mut self, key: Key) {
        if !self.cache.contains(&key) && self.loading.insert(key.clone()) {
            self.wanted.push_back(key);
        }
    }

    /// The next values to ask storers for.
    pub fn poll_load(&mut self) -> Option<Load> {
        if self.loads.len() >= LOADS_MAX || self.wanted.is_empty() {
            return None;
        }
        let (mut keys, mut documents, mut marks, mut min_sequence) = (Vec::new(), Vec::new(), Vec::new(), 0);
        while keys.len() < READ_ITEMS_MAX
            && let Some(key) = self.wanted.pop_front()
        {
            let p = key.partition();
            if self.cache.contains(&key) || !self.owned.contains(p) {
                self.loading.remove(&key);
                continue;
            }
            min_sequence = min_sequence.max(self.floor[p.index()]);
            keys.push(key);
        }
        if keys.is_empty() {
            return None;
        }
        // Documents first: answers come in the order of the request.
        keys.sort_by_key(|key| matches!(key, Key::Mark(..)));
        for key in &keys {
            match key {
                Key::Document(id) => documents.push(id.clone()),
                Key::Mark(p, client) => marks.push((*p, client.clone())),
            }
        }
        self.next_load += 1;
        self.loads.insert(self.next_load, keys);
        let query = Query::GetMany { documents, marks };
        Some(Load { id: self.next_load, request: Request { lane: self.lane, min_sequence, query } })
    }

    /// A load failed: its values are asked for again.
    pub fn handle_load_failed(&mut self, id: u64) {
        self.wanted.extend(self.loads.remove(&id).unwrap_or_default());
    }

    /// A load's answer came.
    pub fn handle_loaded(&mut self, id: u64, answer: Answer) {
        let Some(keys) = self.loads.remove(&id) else { return };
        self.early.push((keys, answer));
        self.use_early_answers();
    }

    /// Uses answers that this processor's own reading has reached. Before, they may hold foreign
    /// events it does not know of yet.
    pub(super) fn use_early_answers(&mut self) {
        let mut i = 0;
        while i < self.early.len() {
            if self.early[i].1.sequence <= self.events_sequence {
                let (keys, answer) = self.early.swap_remove(i);
                self.use_answer(keys, answer);
            } else {
                i += 1;
            }
        }
    }

    fn use_answer(&mut self, keys: Vec<Key>, answer: Answer) {
        let AnswerBody::Values { documents, marks } = answer.body else {
            self.wanted.extend(keys);
            return;
        };
        let values =
            documents.into_iter().map(|d| Value::Document(Box::new(d))).chain(marks.into_iter().map(Value::Mark));
        let mut values = values.fuse();
        for key in keys {
            let p = key.partition();
            match values.next() {
                _ if !self.owned.contains(p) => {
                    self.loading.remove(&key);
                }
                Some(value) if answer.sequence >= self.floor[p.index()] => {
                    self.loading.remove(&key);
                    self.cache.insert(key, value);
                }
                _ => self.wanted.push_back(key),
            }
        }
    }
}
