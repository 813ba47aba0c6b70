//! Values from storers: which to ask for, and when an answer may be used.

use super::{Lane, Load};
use crate::cache::{Key, Value};
use fieldstream_shared::defect::{self, Defect};
use fieldstream_shared::limits::READ_ITEMS_MAX;
use fieldstream_shared::read::{Answer, AnswerBody, Query, Request};

/// Loads in flight at a time.
const LOADS_MAX: usize = 4;
/// Values asked for ahead.
const WANTED_MAX: usize = 16 * READ_ITEMS_MAX;

impl Lane {
    /// Asks for a value ahead of its use, unless it is there or asked for.
    pub(super) fn want(&mut self, key: Key) {
        // Only a hint: what is not asked for ahead is asked for when its record's turn comes.
        let has_room = self.wanted.len() < WANTED_MAX;
        if has_room && !self.cache.contains(&key) && self.loading.insert(key.clone()) {
            self.wanted.push_back(key);
        }
    }

    /// The next values to ask storers for.
    pub fn poll_load(&mut self) -> Option<Load> {
        // Before the log was caught up with, no answer could be used.
        if self.loads.len() + self.early.len() >= LOADS_MAX || self.events_sequence < self.catch_up_to {
            return None;
        }
        let keys = self.next_keys();
        if keys.is_empty() {
            return None;
        }
        Some(self.load(keys))
    }

    /// What records wait for, then what is wanted ahead while the cache has room for it.
    fn next_keys(&mut self) -> Vec<Key> {
        let mut keys = Vec::new();
        for key in std::mem::take(&mut self.needed) {
            if keys.len() < READ_ITEMS_MAX && self.is_to_load(&key) {
                self.loading.insert(key.clone());
                self.in_flight.insert(key.clone());
                keys.push(key);
            }
        }
        while keys.len() < READ_ITEMS_MAX
            && !self.cache.is_over()
            && let Some(key) = self.wanted.pop_front()
        {
            if self.is_to_load(&key) {
                self.in_flight.insert(key.clone());
                keys.push(key);
            } else if !self.in_flight.contains(&key) {
                self.loading.remove(&key);
            }
        }
        keys
    }

    fn is_to_load(&self, key: &Key) -> bool {
        self.owned.contains(key.partition()) && !self.cache.contains(key) && !self.in_flight.contains(key)
    }

    fn load(&mut self, mut keys: Vec<Key>) -> Load {
        let (mut documents, mut marks, mut min_sequence) = (Vec::new(), Vec::new(), 0);
        // Documents first: answers come in the order of the request.
        keys.sort_by_key(|key| matches!(key, Key::Mark(..)));
        for key in &keys {
            min_sequence = min_sequence.max(self.floor[key.partition().index()]);
            match key {
                Key::Document(id) => documents.push(id.clone()),
                Key::Mark(p, client) => marks.push((*p, client.clone())),
            }
        }
        self.next_load += 1;
        self.loads.insert(self.next_load, keys);
        let query = Query::GetMany { documents, marks };
        Load { id: self.next_load, request: Request { lane: self.lane, min_sequence, query } }
    }

    /// A load failed: its values are asked for again.
    pub fn handle_load_failed(&mut self, id: u64) {
        let keys = self.loads.remove(&id).unwrap_or_default();
        self.want_again(keys);
    }

    fn want_again(&mut self, keys: Vec<Key>) {
        keys.iter().for_each(|key| {
            self.in_flight.remove(key);
        });
        self.wanted.extend(keys);
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
            if self.early[i].1.sequence <= self.events_sequence || defect::active(Defect::AnswerAheadOfReading) {
                let (keys, answer) = self.early.swap_remove(i);
                self.use_answer(keys, answer);
            } else {
                i += 1;
            }
        }
    }

    fn use_answer(&mut self, keys: Vec<Key>, answer: Answer) {
        let AnswerBody::Values { documents, marks } = answer.body else {
            self.want_again(keys);
            return;
        };
        // Either list may be cut short where an answer would grow too large: what is missing is
        // asked for again.
        let (mut documents, mut marks) = (documents.into_iter(), marks.into_iter());
        for key in keys {
            let p = key.partition();
            let value = match &key {
                Key::Document(_) => documents.next().map(|document| Value::Document(Box::new(document))),
                Key::Mark(..) => marks.next().map(Value::Mark),
            };
            self.in_flight.remove(&key);
            match value {
                _ if !self.owned.contains(p) => {
                    self.loading.remove(&key);
                }
                Some(value) if answer.sequence >= self.floor[p.index()] || defect::active(Defect::AnswerBelowFloor) => {
                    self.loading.remove(&key);
                    self.cache.insert(key, value);
                }
                _ => self.wanted.push_back(key),
            }
        }
    }
}
