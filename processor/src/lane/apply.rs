//! Applying one record: from a pending instruction to its event.

use super::pending::{Asked, Pending, Said};
use super::{Lane, LaneError, Work};
use crate::cache::{Key, Value};
use fieldstream_shared::change::{Change, Version};
use fieldstream_shared::code::Code;
use fieldstream_shared::event::{Event, EventBody, Origin};
use fieldstream_shared::instruction::{Content, decide};
use fieldstream_shared::limits::{DEAD_RAW_BYTES_MAX, REASON_BYTES_MAX};
use fieldstream_shared::marks::Verdict;
use std::panic::{AssertUnwindSafe, catch_unwind};

impl Lane {
    /// Applies a record and adds its event to the batch. `false` if a value is missing: it was
    /// asked for, and the partition waits.
    ///
    /// # Errors
    /// [`LaneError::Contradiction`].
    pub(super) fn apply(
        &mut self,
        pending: &Pending,
        sequence: u64,
        index: u32,
        work: &mut Work,
    ) -> Result<bool, LaneError> {
        let Some(record) = &pending.said else {
            let body = dead(Code::UNDECODABLE, "the record is not of a known form", &pending.bytes);
            let event = Event {
                partition: pending.partition,
                sequence,
                index,
                origin: None,
                received_at_us: 0,
                body,
                trace: None,
            };
            work.events.push(&event.encode());
            return Ok(true);
        };
        let mark_key = Key::Mark(pending.partition, record.number.client.clone());
        let document_key = Key::Document(record.document.clone());
        if !self.cache.contains(&mark_key) || !self.cache.contains(&document_key) {
            work.needed.extend([mark_key, document_key]);
            return Ok(false);
        }
        let body = self.event_body(record, &mark_key, &document_key, &pending.bytes)?;
        if matches!(body, EventBody::Updated { .. }) && self.cache.is_first_touch(&document_key) {
            work.touched.push(document_key);
        }
        let origin =
            Origin { client: record.number.client.clone(), arrival: record.arrival, document: record.document.clone() };
        let (received_at_us, trace) = (record.received_at_us, record.trace);
        work.timing.applied(received_at_us);
        if let Some(gateway) = trace {
            work.timing.trace(gateway, record.number.clone());
        }
        let event =
            Event { partition: pending.partition, sequence, index, origin: Some(origin), received_at_us, body, trace };
        self.cache.change(&mark_key, |value| {
            if let Value::Mark(mark) = value {
                event.fold_into(mark);
            }
        });
        if self.cache.is_first_touch(&mark_key) {
            work.touched.push(mark_key);
        }
        work.events.push(&event.encode());
        Ok(true)
    }

    fn event_body(
        &mut self,
        record: &Said,
        mark_key: &Key,
        document_key: &Key,
        raw: &[u8],
    ) -> Result<EventBody, LaneError> {
        let Some(Value::Mark(mark)) = self.cache.get(mark_key) else {
            return Err(LaneError::Contradiction("a client's mark is not in the cache"));
        };
        let verdict = mark.judge(&record.arrival);
        let is_last = (mark.epoch, mark.highest) == (record.arrival.epoch, record.arrival.number);
        Ok(match (verdict, &record.action) {
            (_, Asked::Forget) => EventBody::Forgotten(is_last),
            (Verdict::Repeated(outcome), _) => EventBody::Repeated(outcome),
            (Verdict::Refused(code), _) => EventBody::Refused(code),
            (Verdict::Fresh, Asked::Refuse(code)) => EventBody::Refused(*code),
            (Verdict::Fresh, Asked::Instruct { if_revision, operation }) => {
                let content = Content { document: &record.document, if_revision: *if_revision, operation };
                match self.decide(&content, document_key)? {
                    Decision::Change(change) => self.update(document_key, change, record.received_at_us)?,
                    Decision::Refuse(code) => EventBody::Refused(code),
                    Decision::Panicked(reason) => dead(Code::HANDLER_PANICKED, &reason, raw),
                }
            }
        })
    }

    fn decide(&mut self, content: &Content<'_>, document_key: &Key) -> Result<Decision, LaneError> {
        let operation = match content.check() {
            Ok(operation) => operation,
            Err(code) => return Ok(Decision::Refuse(code)),
        };
        let Some(Value::Document(document)) = self.cache.get(document_key) else {
            return Err(LaneError::Contradiction("a document is not in the cache"));
        };
        let registry = &self.registry;
        let decided = catch_unwind(AssertUnwindSafe(|| decide(document, content.if_revision, operation, registry)));
        Ok(match decided {
            Ok(Ok(change)) => Decision::Change(change),
            Ok(Err(code)) => Decision::Refuse(code),
            Err(panic) => Decision::Panicked(panic_text(panic)),
        })
    }

    fn update(&mut self, document_key: &Key, change: Change, received_at_us: u64) -> Result<EventBody, LaneError> {
        let updated = self.cache.change(document_key, |value| {
            let Value::Document(document) = value else { return None };
            for primitive in &change {
                // `decide` has made sure that it applies.
                primitive.apply(&mut document.body).ok()?;
            }
            document.revision += 1;
            document.time_us = document.time_us.max(received_at_us);
            Some(Version { revision: document.revision, state_hash: document.hash(), time_us: document.time_us })
        });
        match updated.flatten() {
            Some(version) => Ok(EventBody::Updated { version, change }),
            None => Err(LaneError::Contradiction("a change does not fit the document it was decided on")),
        }
    }
}

/// What is decided about an instruction.
enum Decision {
    Change(Change),
    Refuse(Code),
    /// Its handler panicked.
    Panicked(String),
}

fn dead(code: Code, reason: &str, raw: &[u8]) -> EventBody {
    let reason =
        reason.char_indices().take_while(|(i, c)| i + c.len_utf8() <= REASON_BYTES_MAX).map(|(_, c)| c).collect();
    EventBody::Dead { code, reason, raw: raw[..raw.len().min(DEAD_RAW_BYTES_MAX)].to_vec() }
}

fn panic_text(panic: Box<dyn std::any::Any + Send>) -> String {
    let text =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the handler panicked: {}", text.unwrap_or_else(|| "no message".into()))
}
