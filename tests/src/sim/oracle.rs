//! What must be true, by own means: a fold over EVENTS with an acceptance rule of its own, written
//! down a second time, and a naive reading of INSTRUCTIONS that knows no batches and no cursors.

use fieldstream_shared::change::Primitive;
use fieldstream_shared::code::Code;
use fieldstream_shared::cursor::{BatchId, Position};
use fieldstream_shared::document::Body;
use fieldstream_shared::event::{Event, EventBatch, EventBody};
use fieldstream_shared::outcome::Outcome;
use fieldstream_shared::partition::{PARTITIONS, Partition};
use fieldstream_shared::record::{Action, Record, decode_batch};
use std::collections::{BTreeMap, BTreeSet};

/// A fold over what both streams hold, message by message.
pub struct Truth {
    /// Position and batch of each partition.
    pub cursors: Vec<(Position, Option<BatchId>)>,
    /// Texts by document.
    pub texts: BTreeMap<String, String>,
    /// Revisions by document.
    pub revisions: BTreeMap<String, u64>,
    /// State hash of every revision there was.
    pub states: BTreeSet<(String, u64, u64)>,
    /// The first outcome of a number: client, epoch, number.
    pub outcomes: BTreeMap<(String, u64, u64), Outcome>,
    /// EVENTS sequence at which it was decided.
    pub decided_at: BTreeMap<(String, u64, u64), u64>,
    /// Numbers in INSTRUCTIONS.
    pub logged: BTreeSet<(String, u64, u64)>,
    /// The highest number that was decided for itself, of each partition and client.
    pub newest: BTreeMap<(u8, String), (u64, u64)>,
    naive_marks: BTreeMap<(u8, String), (u64, u64)>,
    /// What a naive reading of INSTRUCTIONS makes of the documents.
    pub naive: BTreeMap<String, (u64, String)>,
}

impl Default for Truth {
    fn default() -> Truth {
        Truth {
            cursors: vec![(Position::default(), None); PARTITIONS],
            texts: BTreeMap::new(),
            revisions: BTreeMap::new(),
            states: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            decided_at: BTreeMap::new(),
            logged: BTreeSet::new(),
            newest: BTreeMap::new(),
            naive_marks: BTreeMap::new(),
            naive: BTreeMap::new(),
        }
    }
}

impl Truth {
    /// A message was stored in INSTRUCTIONS.
    ///
    /// # Errors
    /// What is wrong.
    pub fn instructions(&mut self, message: &[u8]) -> Result<(), String> {
        for bytes in decode_batch(message).map_err(|e| format!("undecodable instructions: {e}"))? {
            let record = Record::decode(bytes).map_err(|e| format!("undecodable record: {e}"))?;
            let (client, epoch, number) = (record.number.client.to_string(), record.number.epoch, record.number.number);
            let of = (Partition::of(&record.document).0, client.clone());
            if matches!(record.action, Action::Forget) {
                if self.naive_marks.get(&of) == Some(&(epoch, number)) {
                    self.naive_marks.remove(&of);
                }
                continue;
            }
            let mark = self.naive_marks.entry(of).or_default();
            self.logged.insert((client, epoch, number));
            if (epoch, number) <= *mark {
                continue;
            }
            *mark = (epoch, number);
            if let Action::Instruct { if_revision, operation } = record.action {
                let entry = self.naive.entry(record.document.to_string()).or_default();
                if if_revision.is_none_or(|wanted| wanted == entry.0) {
                    entry.0 += 1;
                    // A fixed array head, a fixed tag, and the text: the only operation in use.
                    let text = fieldstream_shared::msgpack::decode(operation, |r| {
                        r.array()?;
                        r.u64()?;
                        r.str().map(str::to_owned)
                    });
                    entry.1.push_str(&text.map_err(|e| format!("undecodable operation: {e}"))?);
                }
            }
        }
        Ok(())
    }

    /// A message was stored in EVENTS.
    ///
    /// # Errors
    /// What is wrong.
    pub fn events(&mut self, sequence: u64, message: &[u8]) -> Result<(), String> {
        let batch = EventBatch::decode(message).map_err(|e| format!("undecodable events: {e}"))?;
        let mut accepted = BTreeSet::new();
        for part in &batch.parts {
            for p in part.partitions.iter() {
                let cursor = &mut self.cursors[p.index()];
                if cursor.0 == part.after.position && cursor.1 == part.after.set_by && part.after.position < part.upto {
                    *cursor = (part.upto, Some(batch.id));
                    accepted.insert(p);
                }
            }
        }
        for bytes in &batch.events {
            let event = Event::decode(bytes).map_err(|e| format!("undecodable event: {e}"))?;
            if accepted.contains(&event.partition) {
                self.take(sequence, &event)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, sequence: u64, event: &Event) -> Result<(), String> {
        let Some(origin) = &event.origin else { return Err("a dead letter nobody sent".into()) };
        let (client, document) = (origin.client.to_string(), origin.document.to_string());
        let key = (client.clone(), origin.arrival.epoch, origin.arrival.number);
        if let EventBody::Forgotten(gone) = event.body {
            let of = (event.partition.0, client);
            let is_highest = self.newest.get(&of) == Some(&(key.1, key.2));
            if gone != is_highest {
                return Err(format!("{key:?} is asked to be forgotten: {gone}, it is the highest: {is_highest}"));
            }
            if gone {
                self.newest.remove(&of);
            }
            return Ok(());
        }
        let outcome = event.body.outcome();
        let first = *self.outcomes.entry(key.clone()).or_insert(outcome);
        self.decided_at.entry(key.clone()).or_insert(sequence);
        if let EventBody::Repeated(told) = &event.body
            && *told != first
        {
            return Err(format!("{key:?} had {first:?} and is repeated as {told:?}"));
        }
        let newest = self.newest.entry((event.partition.0, client)).or_default();
        let arrived = (key.1, key.2);
        let is_just = match (&event.body, outcome) {
            (EventBody::Repeated(_), _) => arrived.0 == newest.0 && arrived.1 <= newest.1,
            (_, Outcome::Refused(Code::STALE_EPOCH)) => arrived.0 < newest.0,
            (_, Outcome::Refused(Code::SKIPPED | Code::NUMBER_REUSED)) => {
                arrived.0 == newest.0 && arrived.1 <= newest.1
            }
            _ => arrived > std::mem::replace(newest, arrived.max(*newest)),
        };
        if !is_just {
            return Err(format!("{key:?} ends with {outcome:?} behind {newest:?}: twice, out of order or not at all"));
        }
        let EventBody::Updated { version, change } = &event.body else { return Ok(()) };
        let text = self.texts.entry(document.clone()).or_default();
        for primitive in change {
            match primitive {
                Primitive::Append(more) => text.push_str(more),
                Primitive::SetText(whole) => whole.clone_into(text),
                other => return Err(format!("a change nobody asked for: {other:?}")),
            }
        }
        let revision = self.revisions.entry(document.clone()).or_default();
        *revision += 1;
        let state_hash = Body::Text(text.clone()).hash();
        if (version.revision, version.state_hash) != (*revision, state_hash) {
            return Err(format!("{document}: the event leads to {version:?}, the fold to revision {revision}"));
        }
        self.states.insert((document, *revision, state_hash));
        Ok(())
    }
}
