//! Publishes on their way to the log, and acknowledgements on theirs back.

use super::*;
use fieldstream_shared::record::{BatchBuilder, encode_forget};

impl World {
    /// Sends one attempt of a batch, or gives up the one under way when its time is over. Whether
    /// an attempt failed.
    pub(super) fn publish(&mut self, writer: Writer, log: Log, sending: &mut Sending) -> bool {
        let mut failed = false;
        if let Some((_, until)) = sending.attempt {
            if self.now < until {
                return false;
            }
            failed = true;
        }
        self.attempts += 1;
        let attempt = self.attempts;
        sending.attempt = Some((attempt, self.now + ATTEMPT_MS));
        let fate = if self.calm { 100 } else { self.rng.random_range(0..100) };
        let (copies, acked) = match fate {
            0..7 => (0, false),
            7..14 => (1, false),
            14..20 => (2, true),
            _ => (1, true),
        };
        let late = if !self.calm && self.rng.random_bool(0.05) { 3_000 } else { 12 };
        let due = self.now + self.rng.random_range(0..late);
        self.flights.push(Flight { due, attempt, writer, log, message: sending.message.clone(), copies, acked });
        failed
    }

    /// Delivers what is due, in any order.
    pub(super) fn deliver(&mut self) -> Result<(), String> {
        let due: Vec<usize> = (0..self.flights.len()).filter(|i| self.flights[*i].due <= self.now).collect();
        if due.is_empty() {
            return Ok(());
        }
        let flight = self.flights.swap_remove(due[self.rng.random_range(0..due.len())]);
        for _ in 0..flight.copies {
            let message = flight.message.clone();
            if flight.log == Log::Instructions {
                self.log(message)?;
            } else {
                let sequence = self.events.append(message.clone()).map_err(|_| "the log is full")?;
                self.note("EVENTS grows", &message);
                self.truth.events(sequence, &message)?;
            }
        }
        if flight.acked {
            self.acknowledge(&flight);
        }
        Ok(())
    }

    fn log(&mut self, message: Bytes) -> Result<(), String> {
        self.truth.instructions(&message)?;
        self.note("INSTRUCTIONS grows", &message);
        self.instructions.append(message).map_err(|_| "the log is full")?;
        Ok(())
    }

    /// A storer asks to forget all marks, by the highest number it knows: `behind` less than there is.
    pub(super) fn ask_to_forget(&mut self, behind: u64) -> Result<(), String> {
        let mut records = BatchBuilder::default();
        for ((partition, client), (epoch, highest)) in &self.truth.newest {
            let document = (0..DOCUMENTS).map(|n| format!("d{n}")).find(|id| Partition::of(id).0 == *partition);
            if let Some(document) = document
                && *highest > behind
            {
                records.push(&encode_forget(client, (*epoch, highest - behind), &document, self.now * 1_000));
            }
        }
        if records.is_empty() { Ok(()) } else { self.log(records.finish().into()) }
    }

    pub(super) fn acknowledge(&mut self, flight: &Flight) {
        let is_this = |sending: &Option<Sending>| {
            sending.as_ref().is_some_and(|s| s.attempt.is_some_and(|(attempt, _)| attempt == flight.attempt))
        };
        match flight.writer {
            Writer::Gateway(i, start) => {
                let (now_start, desk) = &mut self.desks[i];
                if *now_start == start && is_this(&desk.sending) {
                    desk.sending = None;
                    desk.core.acknowledged();
                }
            }
            Writer::Processor(i, start) => {
                let (now_start, worker) = &mut self.workers[i];
                if *now_start == start && is_this(&worker.sending) {
                    worker.sending = None;
                }
            }
        }
    }
}
