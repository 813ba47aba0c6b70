//! One turn of each role.

use super::*;

impl World {
    pub(super) fn storer(&mut self, i: usize) -> Result<(), String> {
        if !self.calm && self.storers[i].paused_until > self.now {
            return Ok(());
        }
        for _ in 0..self.rng.random_range(1..4) {
            self.storers[i].read(&self.events)?;
        }
        if self.rng.random_bool(0.6) {
            self.storers[i].commit();
        }
        let sequence = self.storers[i].disk.checkpoint.events_sequence;
        let progress = Progress { storer: i as u64, log_id: LOG_ID, lane: 0, sequence };
        for (_, desk) in &mut self.desks {
            desk.core.handle_progress(&progress);
        }
        for (_, worker) in &mut self.workers {
            worker.progress.push_back(sequence);
        }
        Ok(())
    }

    /// Moves one question one step: to a storer's answer, then back.
    pub(super) fn answer(&mut self, asked: &mut Vec<Asked>) -> Option<(u64, Option<fieldstream_shared::read::Answer>)> {
        if asked.is_empty() {
            return None;
        }
        let at = self.rng.random_range(0..asked.len());
        if asked[at].answer.is_some() {
            let Asked { id, answer, .. } = asked.swap_remove(at);
            return Some((id, answer.flatten()));
        }
        let i = self.rng.random_range(0..self.storers.len());
        let documents_max = if self.rng.random_bool(0.2) { 1 } else { usize::MAX };
        let lost = !self.calm && self.rng.random_bool(0.05);
        let answer = self.storers[i].disk.answer(&asked[at].request, documents_max);
        asked[at].answer = Some(answer.filter(|_| !lost));
        None
    }

    pub(super) fn work(&mut self, i: usize) -> Result<(), String> {
        let (start, worker) = &mut self.workers[i];
        let start = *start;
        if !self.calm && worker.paused_until > self.now {
            return Ok(());
        }
        if let Some(from) = worker.core.poll_read_from() {
            worker.instructions = Reader::behind(from - 1, None);
        }
        match self.rng.random_range(0..5) {
            0 if worker.core.wants_instructions() => {
                let next = worker.instructions.next(&self.instructions);
                if let Some((sequence, message)) = next.map_err(|e| format!("a processor finds damage: {e:?}"))? {
                    worker.core.handle_instructions(sequence, &message, 0).map_err(|e| e.to_string())?;
                }
            }
            // In some worlds processors lag far behind the storers that answer them.
            1 if self.calm || !self.lagging || (self.now / 400).is_multiple_of(3) => {
                let next = worker.events.next(&self.events);
                if let Some((sequence, message)) = next.map_err(|e| format!("a processor finds damage: {e:?}"))? {
                    worker.core.handle_events(sequence, &message).map_err(|e| e.to_string())?;
                }
            }
            2 => {
                if let Some(sequence) = worker.progress.pop_front() {
                    worker.core.handle_progress(sequence);
                }
                worker.ask();
                let mut asked = std::mem::take(&mut worker.asked);
                let answer = self.answer(&mut asked);
                let worker = &mut self.workers[i].1;
                worker.asked = asked;
                match answer {
                    Some((id, Some(answer))) => worker.core.handle_loaded(id, answer),
                    Some((id, None)) => worker.core.handle_load_failed(id),
                    None => {}
                }
            }
            _ => {
                if worker.sending.is_none() {
                    let built = worker.core.poll_batch(self.now).map_err(|e| e.to_string())?;
                    worker.sending = built.map(|b| Sending { message: b.message, attempt: None });
                }
                worker.ask();
                if let Some(mut sending) = worker.sending.take() {
                    self.publish(Writer::Processor(i, start), Log::Events, &mut sending);
                    self.workers[i].1.sending = Some(sending);
                }
            }
        }
        Ok(())
    }

    pub(super) fn serve(&mut self, i: usize) -> Result<(), String> {
        let (start, desk) = &mut self.desks[i];
        let start = *start;
        if !self.calm && desk.paused_until > self.now {
            return Ok(());
        }
        for _ in 0..2 {
            let next = desk.events.next(&self.events);
            if let Some((sequence, message)) = next.map_err(|e| format!("a gateway finds damage: {e:?}"))? {
                desk.core.handle_events(sequence, &message).map_err(|e| e.to_string())?;
            }
        }
        self.arrive_late(i);
        let desk = &mut self.desks[i].1;
        while let Some((id, request)) = desk.core.poll_load() {
            desk.asked.push(Asked { id, request, answer: None });
        }
        if desk.sending.is_none() {
            desk.sending = desk.core.take_batch(self.now).map(|message| Sending { message, attempt: None });
        }
        if let Some(mut sending) = desk.sending.take() {
            let failed = self.publish(Writer::Gateway(i, start), Log::Instructions, &mut sending);
            let desk = &mut self.desks[i].1;
            let again = !failed || desk.core.failed(self.now);
            desk.sending = Some(sending).filter(|_| again);
        }
        let mut asked = std::mem::take(&mut self.desks[i].1.asked);
        let answer = self.answer(&mut asked);
        let desk = &mut self.desks[i].1;
        desk.asked = asked;
        if let Some((id, answer)) = answer {
            desk.core.handle_loaded(id, answer);
        }
        Ok(())
    }

    pub(super) fn device(&mut self, i: usize) -> Result<(), String> {
        let (now, wall_us) = (self.instant(), 1_000_000 + self.now * 1_000);
        if self.units[i].wire.is_none() {
            if self.now < self.units[i].connect_at {
                return Ok(());
            }
            let gateway = self.rng.random_range(0..self.desks.len());
            // One gateway may know of rights that another does not know of yet.
            let may_write = self.calm || self.rng.random_bool(0.9);
            let (start, desk) = &mut self.desks[gateway];
            let session = desk.core.connect(self.now, may_write);
            let (up, down) = (VecDeque::new(), VecDeque::new());
            self.units[i].wire = Some(Wire { gateway, start: *start, session, up, down, closes: false });
            // A gateway that lags may give an older state than the one before did; within one
            // connection revisions never go back.
            self.shown.retain(|(unit, _), _| *unit != i);
            self.units[i].core.connected(now, now + Duration::from_secs(10));
        }
        let n = if self.calm { 1 << 20 } else { self.rng.random_range(1..400) };
        let unit = &mut self.units[i];
        let Some(wire) = &mut unit.wire else { return Ok(()) };
        let (start, desk) = &mut self.desks[wire.gateway];
        if *start != wire.start {
            self.cut(i);
            return Ok(());
        }
        let mut ended = match unit.core.poll(now) {
            Ok(bytes) => {
                wire.up.extend(bytes);
                None
            }
            Err(ended) => Some(ended),
        };
        if self.calm || desk.paused_until <= self.now {
            let bytes: Vec<u8> = wire.up.drain(..n.min(wire.up.len())).collect();
            if !bytes.is_empty() {
                desk.core.bytes(wire.session, self.now, &bytes);
            }
            desk.core.turn(wire.session, self.now, wall_us);
            if wire.down.len() < 500 && !wire.closes {
                let (bytes, closes) = desk.core.output(wire.session, 300);
                wire.down.extend(bytes);
                wire.closes = closes;
            }
        }
        let bytes: Vec<u8> = wire.down.drain(..n.min(wire.down.len())).collect();
        if ended.is_none() && !bytes.is_empty() {
            ended = unit.core.handle_bytes(now, &bytes).err();
        }
        let closed = wire.closes && wire.down.is_empty();
        match ended {
            Some(Ended::NewEpoch) => {
                self.cut(i);
                self.units[i].core.take_epoch(wall_us);
                self.epochs.insert((i, self.units[i].core.epoch()));
            }
            Some(Ended::Again(_)) => self.cut(i),
            // There is one device of each name, and what it left does not take over from it.
            Some(Ended::Final(reason)) => {
                return Err(format!("{} is sent away for good: {reason}", self.units[i].name));
            }
            None if closed => self.cut(i),
            None => {}
        }
        self.look(i)
    }
}
