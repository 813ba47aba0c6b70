//! What must hold: at every moment, and at the end.

use super::*;
use fieldstream_client::ClientError;

impl World {
    /// What a device was told and shown must be true at this moment.
    pub(super) fn look(&mut self, i: usize) -> Result<(), String> {
        let (client, epoch) = (self.units[i].name.to_string(), self.units[i].core.epoch());
        for (tag, result) in self.units[i].core.results() {
            let Some(sent) = self.sent.get_mut(&tag) else { return Err(format!("{tag} was never sent")) };
            match result {
                Ok(receipt) => {
                    let key = (client.clone(), epoch, receipt.number);
                    if !self.truth.logged.contains(&key) {
                        return Err(format!("{key:?} is told as {:?} and is not in the log", receipt.level));
                    }
                    if let Some(revision) = receipt.revision {
                        let truth = self.truth.outcomes.get(&key);
                        if truth != Some(&Outcome::Applied { revision }) {
                            return Err(format!("{key:?} is told as revision {revision}, the log says {truth:?}"));
                        }
                    }
                    if receipt.level == AckLevel::Stored {
                        let at = self.truth.decided_at.get(&key).copied().unwrap_or(u64::MAX);
                        if self.storers.iter().all(|s| s.disk.checkpoint.events_sequence < at) {
                            return Err(format!("{key:?} is told as stored and no storer has it"));
                        }
                    }
                    let logged = Told::Logged(epoch, receipt.number);
                    sent.told = Some(if receipt.level == AckLevel::Logged { logged } else { Told::Applied });
                }
                Err(ClientError::Refused(_)) => sent.told = Some(Told::Refused),
                Err(ClientError::OutcomeUnknown) => sent.told = Some(Told::Unknown),
                Err(error) => return Err(format!("{tag} ends with {error}")),
            }
        }
        for late in self.units[i].core.late_refusals() {
            let told = Some(Told::Logged(late.epoch, late.number));
            let Some(sent) = self.sent.values_mut().find(|sent| sent.unit == i && sent.told == told) else {
                return Err(format!("{client} is told of {late:?} and does not wait for it"));
            };
            sent.told = Some(Told::LateRefused(late.code));
        }
        for document in self.units[i].core.watched() {
            for shown in self.units[i].core.shown(&document) {
                let before = self.shown.insert((i, document.to_string()), shown.revision).unwrap_or(0);
                if shown.revision < before {
                    return Err(format!("{client} is shown {document} at {}, after {before}", shown.revision));
                }
                if let Some(hash) = shown.state_hash.filter(|_| shown.revision > 0)
                    && !self.truth.states.contains(&(document.to_string(), shown.revision, hash))
                {
                    return Err(format!("{client} is shown a state of {document} that never was"));
                }
            }
        }
        Ok(())
    }

    /// No more faults: everything must come to rest within bounded time.
    pub(super) fn drain(&mut self) -> Result<(), String> {
        self.note("calm", &[]);
        self.calm = true;
        for i in 0..self.workers.len() {
            let owned = if i == 0 { PartitionSet::ALL } else { PartitionSet::EMPTY };
            self.workers[i].1.core.handle_owned(owned);
        }
        let mut was_quiet = false;
        for round in 0..DRAIN_ROUNDS {
            self.now += 20;
            for _ in 0..3 {
                self.deliver()?;
            }
            for i in 0..self.storers.len() {
                self.storer(i)?;
            }
            for _ in 0..4 {
                self.work(0)?;
            }
            for i in 1..self.workers.len() {
                self.work(i)?;
            }
            for i in 0..self.desks.len() {
                self.serve(i)?;
            }
            for i in 0..self.units.len() {
                self.device(i)?;
            }
            if round % 16 == 0 {
                // Once more: what nobody waits for may still be on its way to a device.
                if std::mem::replace(&mut was_quiet, self.is_quiet()) && was_quiet {
                    return Ok(());
                }
            }
        }
        let open: Vec<usize> = self.units.iter().map(|u| u.core.open()).collect();
        Err(format!("it does not come to rest: open instructions {open:?}, behind: {}", self.behind()))
    }

    pub(super) fn behind(&self) -> u64 {
        let done = self.truth.cursors.iter().map(|(position, _)| position.sequence).min().unwrap_or(0);
        self.instructions.last().saturating_sub(done)
    }

    pub(super) fn is_quiet(&self) -> bool {
        let replicas = self.units.iter().all(|unit| {
            let same = |id: &DocumentId| {
                unit.core.document(id).revision == self.truth.revisions.get(id.as_str()).copied().unwrap_or(0)
            };
            unit.wire.is_some() && unit.core.open() == 0 && unit.core.watched().iter().all(same)
        });
        replicas
            && self.flights.is_empty()
            && self.behind() == 0
            && self.desks.iter().all(|(_, d)| d.core.is_idle() && d.core.sequence() == self.events.last())
            && self.storers.iter().all(|s| s.disk.checkpoint.events_sequence == self.events.last())
    }

    /// Whether nobody needs to tell any more what became of what was logged: its device has started
    /// anew, or a gateway has, behind the verdict.
    fn may_be_forgotten(&self, sent: &Sent) -> bool {
        let (Some(unit), Some(Told::Logged(epoch, number))) = (self.units.get(sent.unit), sent.told) else {
            return true;
        };
        let key = (unit.name.to_string(), epoch, number);
        self.truth.decided_at.get(&key).is_some_and(|at| *at <= self.forgotten_upto)
    }

    /// The end: everybody agrees with the truth.
    pub(super) fn check(&mut self) -> Result<Report, String> {
        let naive: BTreeMap<&String, &String> = self
            .truth
            .naive
            .iter()
            .filter(|(_, (_, text))| !text.is_empty())
            .map(|(id, (_, text))| (id, text))
            .collect();
        let folded: BTreeMap<&String, &String> = self.truth.texts.iter().collect();
        if naive != folded {
            return Err(format!("INSTRUCTIONS say {naive:?}, EVENTS say {folded:?}"));
        }
        for (i, storer) in self.storers.iter().enumerate() {
            for (p, (position, set_by)) in self.truth.cursors.iter().enumerate() {
                let cursor = storer.disk.checkpoint.cursors.get(Partition(p as u8));
                if (cursor.position, cursor.set_by) != (*position, *set_by) {
                    return Err(format!("storer {i} accepted other parts of partition {p}"));
                }
            }
            let texts = storer.disk.documents.iter().filter_map(|(id, row)| match &row.document.body {
                Body::Text(text) => Some((id, text)),
                Body::Absent | Body::Structured(_) => None,
            });
            if texts.collect::<BTreeMap<_, _>>() != folded {
                return Err(format!("storer {i} has other texts than the log"));
            }
        }
        for (i, (_, desk)) in self.desks.iter().enumerate() {
            if *desk.core.cursors() != self.storers[0].disk.checkpoint.cursors {
                return Err(format!("gateway {i} accepted other parts than the storers"));
            }
        }
        let mut last: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let mut seen: BTreeMap<u64, &str> = BTreeMap::new();
        for (document, text) in &self.truth.texts {
            for tag in text.split_terminator(';').map(|tag| tag.parse::<u64>().unwrap_or(0)) {
                let Some(sent) = self.sent.get(&tag).filter(|s| s.document == *document) else {
                    return Err(format!("{tag} in {document} was never sent there"));
                };
                if seen.insert(tag, document).is_some() {
                    return Err(format!("{tag} was applied twice"));
                }
                if let Some(unit) = self.units.get(sent.unit)
                    && last.insert((&unit.name, document), tag).is_some_and(|before| before > tag)
                {
                    return Err(format!("{tag} of {} came into {document} out of order", unit.name));
                }
            }
        }
        for (tag, sent) in &self.sent {
            let is_applied = seen.contains_key(tag);
            match sent.told {
                Some(Told::Applied) if !is_applied => return Err(format!("{tag} was acknowledged and is lost")),
                Some(Told::Logged(..)) if !is_applied && !self.may_be_forgotten(sent) => {
                    return Err(format!("{tag} was logged, and what became of it is not told"));
                }
                // A copy of what was applied may be refused for its epoch.
                Some(Told::LateRefused(code)) if is_applied && code != Code::STALE_EPOCH => {
                    return Err(format!("{tag} was refused late and is applied"));
                }
                Some(Told::Refused) if is_applied => return Err(format!("{tag} was refused and is applied")),
                None if sent.unit != usize::MAX => return Err(format!("{tag} was never resolved")),
                _ => {}
            }
        }
        let resolved = self.sent.values().filter(|sent| sent.told.is_some()).count();
        let messages = self.instructions.last() + self.events.last();
        Ok(Report { trace: self.trace, submitted: self.sent.len(), resolved, messages, virtual_ms: self.now })
    }
}
