//! Numbering: which instruction has which number, what is unresolved, what may be sent now.
//!
//! A number stands for one instruction for ever. Unresolved ones are sent again on every new
//! connection, in order and marked, before anything new. The epoch changes only when everything
//! under the old one is resolved: a frame carries no epoch of its own, so an old number could not
//! be asked about any more.
//!
//! A number that was sent on this connection only and is refused for its stale epoch was not carried
//! out: its instruction is numbered anew. Of one that was sent on connections before, that is true of
//! the last copy only; what became of the first nobody can tell any more, because the client's newer
//! epoch, of another process or machine, replaced what was remembered of it.
//!
//! A stale epoch is replaced by the present, as this machine or the server has it, whichever is
//! later. That does not help if the client once ran with a clock in the future: when the epoch after
//! that is stale, too, the next ones go up by 1 s, 2 s, 4 s and so on, until what was refused gets
//! another answer. However far away the future was, 46 of them reach it.

use super::journal::Journal;
use super::verdicts::Verdicts;
use crate::error::ClientError;
use crate::options::{LateRefusal, Receipt};
use fieldstream_shared::code::Code;
use fieldstream_shared::frame::{FromClient, Instruct};
use fieldstream_shared::ids::DocumentId;
use fieldstream_shared::instruction::Content;
use fieldstream_shared::limits::NUMBER_WINDOW;
use fieldstream_shared::outcome::{AckLevel, Outcome};
use fieldstream_shared::partition::Partition;
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// Where the result of an instruction goes.
pub(crate) type Waiter = oneshot::Sender<Result<Receipt, ClientError>>;

/// The first step to a higher epoch when the present is stale, in microseconds.
const EPOCH_STEP_US: u64 = 1_000_000;

/// An instruction as it waits for its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) document: DocumentId,
    pub(crate) if_revision: Option<u64>,
    pub(crate) operation: Box<[u8]>,
    pub(crate) ack: AckLevel,
    /// Hops are asked to note when they had it. Not kept in a state file: who would collect that is gone.
    pub(crate) traced: bool,
}

impl Instruction {
    pub(crate) fn content(&self) -> Content<'_> {
        Content { document: &self.document, if_revision: self.if_revision, operation: &self.operation }
    }
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) instruction: Instruction,
    waiter: Option<Waiter>,
    /// Was refused because of an epoch, this one or an earlier one.
    was_stale: bool,
}

/// What a client that starts knows about its numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Restored {
    pub(crate) epoch: u64,
    pub(crate) next: u64,
    pub(crate) unresolved: BTreeMap<u64, Instruction>,
}

/// The numbers of one client.
#[derive(Debug)]
pub(crate) struct Numbers {
    epoch: u64,
    next: u64,
    sent_upto: u64,
    /// Numbers up to here were sent on connections before this one, too.
    resent_upto: u64,
    window: u64,
    /// The next number to write on this connection; `None` without one.
    cursor: Option<u64>,
    unresolved: BTreeMap<u64, Entry>,
    /// Refused because the epoch is stale, and sent once: certainly not applied, to be numbered anew.
    stale: BTreeMap<u64, Entry>,
    /// The epoch is stale: nothing new until all of it is resolved.
    draining: bool,
    /// Epochs taken since something was last answered that had been refused as stale.
    stale_epochs: u32,
    verdicts: Verdicts,
    /// Per partition, a document with an instruction that was resolved as logged: it may not be
    /// applied yet.
    only_logged: BTreeMap<Partition, DocumentId>,
    /// Records for the state file, if there is one.
    pub(crate) journal: Option<Journal>,
    /// Whether there may be room or quiet that was not there before.
    pub(crate) moved: bool,
    /// Traced numbers that were written since somebody looked.
    pub(crate) sent_traced: Vec<u64>,
}

impl Numbers {
    /// Starts an epoch, or goes on with what was restored. Restored instructions count as sent.
    pub(crate) fn new(restored: Restored, journal: bool) -> Numbers {
        let next = restored.next.max(1);
        let entry = |(number, instruction)| (number, Entry { instruction, waiter: None, was_stale: false });
        let mut numbers = Numbers {
            epoch: restored.epoch,
            next,
            sent_upto: next - 1,
            resent_upto: next - 1,
            window: NUMBER_WINDOW,
            cursor: None,
            unresolved: restored.unresolved.into_iter().map(entry).collect(),
            stale: BTreeMap::new(),
            draining: false,
            stale_epochs: 0,
            verdicts: Verdicts::new(restored.epoch),
            only_logged: BTreeMap::new(),
            journal: None,
            moved: false,
            sent_traced: Vec::new(),
        };
        numbers.journal = journal.then(|| Journal::new(next, numbers.lowest()));
        numbers
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn sent_upto(&self) -> u64 {
        self.sent_upto
    }

    /// Instructions without an outcome.
    pub(crate) fn open(&self) -> usize {
        self.unresolved.len() + self.stale.len()
    }

    /// Whether everything is resolved, and the state file, if any, knows it.
    pub(crate) fn is_quiet(&self) -> bool {
        let written = self.journal.as_ref().is_none_or(|j| j.next() == self.next && j.settled() == self.next);
        self.open() == 0 && written
    }

    /// The lowest unresolved number, the next one if there is none.
    fn lowest(&self) -> u64 {
        let lowest = |map: &BTreeMap<u64, Entry>| map.first_key_value().map_or(self.next, |(n, _)| *n);
        lowest(&self.unresolved).min(lowest(&self.stale))
    }

    /// What servers are told is settled. With a state file only what the file knows counts: after
    /// a restart, a number that the file still holds as unresolved must be answered again.
    fn settled(&self) -> u64 {
        self.journal.as_ref().map_or(self.lowest(), |journal| journal.settled().min(self.lowest()))
    }

    /// Whether another instruction may be numbered now.
    pub(crate) fn has_room(&self) -> bool {
        !self.draining && self.next < self.settled().saturating_add(self.window)
    }

    /// Numbers an instruction. Only while there is room.
    pub(crate) fn submit(&mut self, instruction: Instruction, waiter: Option<Waiter>) -> u64 {
        let number = self.next;
        self.next += 1;
        if let Some(journal) = &mut self.journal {
            journal.instruction(number, &instruction);
        }
        self.unresolved.insert(number, Entry { instruction, waiter, was_stale: false });
        number
    }

    /// A session began: everything unresolved goes out again.
    pub(crate) fn connected(&mut self, window: u64) {
        self.window = window.clamp(1, NUMBER_WINDOW);
        self.resent_upto = self.sent_upto;
        self.cursor = Some(self.unresolved.first_key_value().map_or(self.next, |(n, _)| *n));
        self.moved = true;
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self) {
        self.cursor = None;
    }

    /// Appends the frames that may be sent now, until `out` holds `bytes_max`.
    pub(crate) fn write_frames(&mut self, hold_new: bool, out: &mut Vec<u8>, bytes_max: usize) {
        let Some(cursor) = self.cursor else { return };
        let settled = self.settled();
        let durable = self.journal.as_ref().map_or(u64::MAX, Journal::next);
        let mut reached = cursor;
        for (&number, entry) in self.unresolved.range(cursor..) {
            let resent = number <= self.sent_upto;
            // Also one sent before, if this server's window is narrower than the one before.
            let outside = number >= settled.saturating_add(self.window);
            let held = !resent && (hold_new || self.draining);
            if out.len() >= bytes_max || number >= durable || outside || held {
                break;
            }
            let content = entry.instruction.content();
            let Instruction { ack, traced, .. } = entry.instruction;
            FromClient::Instruct(Instruct { number, settled, resent, traced, ack, content }).encode(out);
            if traced {
                self.sent_traced.push(number);
            }
            self.sent_upto = self.sent_upto.max(number);
            reached = number + 1;
        }
        self.cursor = Some(reached);
    }

    /// Takes an outcome. Returns a refusal that nobody waits for.
    pub(crate) fn outcome(
        &mut self,
        epoch: u64,
        number: u64,
        level: AckLevel,
        outcome: Option<Outcome>,
    ) -> Option<LateRefusal> {
        if epoch != self.epoch {
            let late = late_refusal(epoch, number, outcome)?;
            return self.verdicts.learn(epoch, number).then_some(late);
        }
        if number == 0 || number >= self.next {
            return None;
        }
        let is_stale = matches!(outcome, Some(Outcome::Refused(Code::STALE_EPOCH)));
        // Behind the highest epoch there is none to take: then it is a refusal as any other.
        if is_stale && epoch < u64::MAX {
            self.drain();
            if number > self.resent_upto
                && let Some(entry) = self.unresolved.remove(&number)
            {
                self.stale.insert(number, Entry { was_stale: true, ..entry });
            }
            if self.stale.contains_key(&number) {
                return None;
            }
        }
        let result = match outcome {
            Some(Outcome::Refused(_)) if is_stale && number <= self.resent_upto => Err(ClientError::OutcomeUnknown),
            Some(Outcome::Refused(code)) => Err(ClientError::Refused(code)),
            Some(Outcome::Dead(code)) => Err(ClientError::Dead(code)),
            Some(Outcome::Applied { revision }) => Ok(Receipt { number, level, revision: Some(revision) }),
            None => Ok(Receipt { number, level, revision: None }),
        };
        let open = self.unresolved.get(&number);
        if result.is_ok() && open.is_none_or(|entry| level < entry.instruction.ack) {
            return None;
        }
        let is_news = outcome.is_none() || self.verdicts.learn(epoch, number);
        let late = late_refusal(epoch, number, outcome);
        if late.is_some() && !is_news {
            return None;
        }
        let Some(entry) = self.unresolved.remove(&number) else { return late };
        self.moved = true;
        // The client's marks differ from partition to partition: one that takes the epoch says
        // nothing about another that did not.
        if entry.was_stale && !self.unresolved.values().chain(self.stale.values()).any(|other| other.was_stale) {
            self.stale_epochs = 0;
        }
        if let Some(journal) = &mut self.journal {
            journal.resolved(number);
        }
        if outcome.is_none() {
            let document = entry.instruction.document;
            self.only_logged.insert(Partition::of(&document), document);
        }
        let told = entry.waiter.is_some_and(|waiter| waiter.send(result).is_ok());
        late.filter(|_| !told)
    }

    /// One document of every partition where something was logged and may not be applied yet.
    pub(crate) fn take_only_logged(&mut self) -> Vec<DocumentId> {
        std::mem::take(&mut self.only_logged).into_values().collect()
    }

    /// The epoch is stale. What was never sent cannot have been applied: it need not be asked.
    fn drain(&mut self) {
        self.draining = true;
        let mut unsent = self.unresolved.split_off(&(self.sent_upto + 1));
        self.stale.append(&mut unsent);
    }

    /// Whether the epoch is stale and everything under it is resolved.
    pub(crate) fn wants_epoch(&self) -> bool {
        self.draining && self.unresolved.is_empty()
    }

    /// Takes a higher epoch (see above for which) and numbers what was refused anew, in its old
    /// order. Needs a new connection afterwards, at once only if this returns true: the present was
    /// not tried yet.
    pub(crate) fn take_epoch(&mut self, now_us: u64) -> bool {
        let step_us = match self.stale_epochs {
            0 => 1,
            steps => EPOCH_STEP_US.saturating_mul(1u64.checked_shl(steps - 1).unwrap_or(u64::MAX)),
        };
        let stale = std::mem::take(&mut self.stale);
        for number in stale.keys() {
            self.verdicts.learn(self.epoch, *number);
        }
        self.epoch = now_us.max(self.epoch.saturating_add(step_us));
        self.verdicts.begin(self.epoch, self.sent_upto);
        self.stale_epochs = self.stale_epochs.saturating_add(1);
        self.unresolved = (1..).zip(stale.into_values()).collect();
        self.next = self.unresolved.len() as u64 + 1;
        (self.sent_upto, self.resent_upto) = (0, 0);
        (self.cursor, self.draining, self.moved) = (None, false, true);
        if let Some(journal) = &mut self.journal {
            journal.start_over();
        }
        self.stale_epochs == 1
    }

    /// The next write to the state file: what became known since the last one.
    pub(crate) fn take_journal(&mut self) -> Option<super::journal::Batch> {
        let (epoch, next, lowest) = (self.epoch, self.next, self.lowest());
        let journal = self.journal.as_mut()?;
        let open = self.stale.iter().chain(&self.unresolved).map(|(number, entry)| (*number, &entry.instruction));
        journal.take(epoch, next, lowest, open)
    }

    /// A write to the state file is durable.
    pub(crate) fn journal_written(&mut self, batch: &super::journal::Batch) {
        if let Some(journal) = &mut self.journal {
            journal.written(batch);
            self.moved = true;
        }
    }

    /// Nothing will be resolved any more: everybody who waits is told why.
    pub(crate) fn fail(&mut self, error: &ClientError) {
        // What is unresolved stays so in the file.
        self.journal = None;
        let open = std::mem::take(&mut self.stale).into_values();
        for entry in open.chain(std::mem::take(&mut self.unresolved).into_values()) {
            if let Some(waiter) = entry.waiter {
                let _ = waiter.send(Err(error.clone()));
            }
        }
        self.moved = true;
    }
}

fn late_refusal(epoch: u64, number: u64, outcome: Option<Outcome>) -> Option<LateRefusal> {
    match outcome {
        Some(Outcome::Refused(code)) => Some(LateRefusal { epoch, number, code, dead: false }),
        Some(Outcome::Dead(code)) => Some(LateRefusal { epoch, number, code, dead: true }),
        Some(Outcome::Applied { .. }) | None => None,
    }
}

#[cfg(test)]
#[path = "numbers_tests.rs"]
mod tests;
