//! What devices do, and what goes wrong.

use super::*;

impl World {
    pub(super) fn document(&mut self) -> DocumentId {
        // The first one is hot.
        let n = if self.rng.random_bool(0.4) { 0 } else { self.rng.random_range(0..DOCUMENTS) };
        DocumentId::new(&format!("d{n}")).expect("a good id")
    }

    pub(super) fn submit(&mut self) {
        let i = self.rng.random_range(0..self.units.len());
        let document = self.document();
        let tag = self.sent.len() as u64 + 1;
        let ack = [AckLevel::Logged, AckLevel::Applied, AckLevel::Stored][self.rng.random_range(0..3)];
        let if_revision = self.rng.random_bool(0.05).then_some(0);
        let operation = Operation::Append(format!("{tag};"));
        if self.units[i].core.submit(tag, &document, if_revision, &operation, ack) {
            self.sent.insert(tag, Sent { unit: i, document: document.to_string(), told: None });
        }
        let watched = self.document();
        self.units[i].core.watch(&watched);
    }

    pub(super) fn crash_something(&mut self) {
        match self.rng.random_range(0..3) {
            0 => {
                let i = self.rng.random_range(0..self.workers.len());
                self.note("a processor crashes", &[]);
                self.workers[i] = self.worker();
                self.own(i);
            }
            1 => {
                let i = self.rng.random_range(0..self.desks.len());
                self.note("a gateway crashes", &[]);
                self.desks[i] = self.desk();
            }
            _ => {
                let i = self.rng.random_range(0..self.storers.len());
                self.note("a storer crashes", &[]);
                self.storers[i] = Storer::new(self.storers[i].disk.clone());
            }
        }
    }

    pub(super) fn pause_something(&mut self) {
        let until = self.now + self.rng.random_range(100..2_500);
        match self.rng.random_range(0..3) {
            0 => {
                let i = self.rng.random_range(0..self.workers.len());
                self.workers[i].1.paused_until = until;
            }
            1 => {
                let i = self.rng.random_range(0..self.desks.len());
                self.desks[i].1.paused_until = until;
            }
            _ => {
                let i = self.rng.random_range(0..self.storers.len());
                self.storers[i].paused_until = until;
            }
        }
    }

    /// A device forgets everything and starts with another epoch, sometimes with a clock that went
    /// back.
    pub(super) fn restart_unit(&mut self) {
        let i = self.rng.random_range(0..self.units.len());
        self.cut(i);
        let before = self.units[i].core.epoch();
        let epoch = if self.rng.random_bool(0.4) { before.saturating_sub(500) } else { before + 1_000 };
        // Whatever its clock says, a device must not draw an epoch twice.
        let epoch = (epoch.max(1)..).find(|epoch| !self.epochs.contains(&(i, *epoch))).unwrap_or(epoch);
        self.units[i] = self.unit(i, epoch);
        self.note("a device restarts", &[]);
        self.shown.retain(|(unit, _), _| *unit != i);
        // No gateway could tell its connections from those of another device with the same name.
        self.left.retain(|(unit, _)| *unit != i);
        // What it had under way is in nobody's hands any more.
        self.sent.values_mut().filter(|sent| sent.unit == i).for_each(|sent| sent.unit = usize::MAX);
    }

    pub(super) fn cut(&mut self, i: usize) {
        if let Some(wire) = self.units[i].wire.take() {
            self.units[i].core.disconnected();
            // Sometimes the gateway does not notice at once.
            let desk = &mut self.desks[wire.gateway];
            if desk.0 == wire.start && self.rng.random_bool(0.7) {
                desk.1.core.disconnect(wire.session);
            } else {
                self.left.push((i, wire));
            }
        }
        self.units[i].connect_at = self.now + if self.calm { 20 } else { self.rng.random_range(0..400) };
    }

    /// What was under way on connections that devices have left arrives at a gateway, late.
    pub(super) fn arrive_late(&mut self, i: usize) {
        let (start, desk) = (self.desks[i].0, &mut self.desks[i].1);
        self.left.retain(|(_, wire)| wire.gateway != i || wire.start == start);
        for (_, wire) in self.left.iter_mut().filter(|(_, wire)| wire.gateway == i) {
            let n = if self.calm { usize::MAX } else { self.rng.random_range(0..200) };
            let bytes: Vec<u8> = wire.up.drain(..n.min(wire.up.len())).collect();
            desk.core.bytes(wire.session, self.now, &bytes);
            desk.core.turn(wire.session, self.now, 1_000_000 + self.now * 1_000);
            if wire.up.is_empty() && (self.calm || self.rng.random_bool(0.1)) {
                desk.core.disconnect(wire.session);
                wire.closes = true;
            }
        }
        self.left.retain(|(_, wire)| wire.gateway != i || !wire.up.is_empty() || !wire.closes);
    }
}
