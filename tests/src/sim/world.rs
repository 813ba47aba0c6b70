//! One run: who acts next, what goes wrong, and what must hold afterwards.

use super::log::{Reader, Stream};
use super::oracle::Truth;
use super::roles::{Asked, Desk, Disk, LOG_ID, Sending, Storer, Unit, Wire, Worker};
use bytes::Bytes;
use fieldstream_client::cores::{Device, Ended};
use fieldstream_gateway::cores::{Gateway, Setup};
use fieldstream_processor::lane::{Lane, LaneOptions};
use fieldstream_shared::document::Body;
use fieldstream_shared::event::message_hash;
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::instruction::Operation;
use fieldstream_shared::outcome::{AckLevel, Outcome};
use fieldstream_shared::partition::{Partition, PartitionSet};
use fieldstream_shared::read::Progress;
use fieldstream_shared::registry::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

const STEPS: u32 = 2_500;
const DRAIN_ROUNDS: u32 = 6_000;
const DOCUMENTS: usize = 6;
const ATTEMPT_MS: u64 = 300;

/// What a run found wrong, with the seed that shows it.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The seed.
    pub seed: u64,
    /// Virtual time.
    pub at_ms: u64,
    /// What is wrong.
    pub what: String,
}

/// A clean run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Hash of everything that was stored, in order, and of when: equal for equal seeds.
    pub trace: u64,
    /// Instructions submitted.
    pub submitted: usize,
    /// Instructions resolved.
    pub resolved: usize,
    /// Messages of both streams.
    pub messages: u64,
    /// Virtual milliseconds.
    pub virtual_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Log {
    Instructions,
    Events,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    Gateway(usize, u64),
    Processor(usize, u64),
}

/// A publish under way: it may arrive long after its writer is gone.
struct Flight {
    due: u64,
    attempt: u64,
    writer: Writer,
    log: Log,
    message: Bytes,
    copies: u32,
    acked: bool,
}

struct Sent {
    unit: usize,
    document: String,
    told: Option<(AckLevel, bool)>,
}

struct World {
    rng: StdRng,
    base: Instant,
    now: u64,
    calm: bool,
    lagging: bool,
    verbose: bool,
    trace: u64,
    instructions: Stream,
    events: Stream,
    flights: Vec<Flight>,
    attempts: u64,
    storers: Vec<Storer>,
    workers: Vec<(u64, Worker)>,
    desks: Vec<(u64, Desk)>,
    units: Vec<Unit>,
    truth: Truth,
    sent: BTreeMap<u64, Sent>,
    shown: BTreeMap<(usize, String), u64>,
    starts: u64,
    epochs: BTreeSet<(usize, u64)>,
}

/// Plays one seed. With `verbose`, every stored message and every crash is printed.
///
/// # Errors
/// The first thing found wrong.
pub fn run(seed: u64, verbose: bool) -> Result<Report, Finding> {
    let mut world = World::new(seed, verbose);
    let result = world.play();
    result.map_err(|what| Finding { seed, at_ms: world.now, what })
}

impl World {
    fn new(seed: u64, verbose: bool) -> World {
        let mut world = World {
            rng: StdRng::seed_from_u64(seed),
            base: Instant::now(),
            now: 0,
            calm: false,
            lagging: seed % 3 == 1,
            verbose,
            trace: seed,
            instructions: Stream::default(),
            events: Stream::default(),
            flights: Vec::new(),
            attempts: 0,
            storers: (0..2).map(|_| Storer::new(Disk::new())).collect(),
            workers: Vec::new(),
            desks: Vec::new(),
            units: Vec::new(),
            truth: Truth::default(),
            sent: BTreeMap::new(),
            shown: BTreeMap::new(),
            starts: 0,
            epochs: BTreeSet::new(),
        };
        for i in 0..3 {
            let worker = world.worker();
            world.workers.push(worker);
            world.own(i);
        }
        for _ in 0..2 {
            let desk = world.desk();
            world.desks.push(desk);
        }
        for i in 0..4 {
            let unit = world.unit(i, 1_000);
            world.units.push(unit);
        }
        world
    }

    fn note(&mut self, what: &str, payload: &[u8]) {
        let mut bytes = self.trace.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.now.to_be_bytes());
        bytes.extend_from_slice(what.as_bytes());
        bytes.extend_from_slice(payload);
        self.trace = message_hash(&bytes);
        if self.verbose {
            eprintln!("{:>8} ms  {what}", self.now);
        }
    }

    fn disk(&mut self) -> Disk {
        let i = self.rng.random_range(0..self.storers.len());
        self.storers[i].disk.clone()
    }

    fn worker(&mut self) -> (u64, Worker) {
        self.starts += 1;
        let checkpoint = self.disk().checkpoint;
        let at = checkpoint.events_sequence;
        let mut core = Lane::new(LaneOptions {
            lane: 0,
            lanes: 1,
            incarnation: self.rng.random(),
            registry: Registry::default(),
            cache_bytes_max: 1_500,
            pinned_bytes_max: 1 << 20,
            events_sequence: at,
            cursors: checkpoint.cursors,
            catch_up_to: self.events.last(),
        });
        core.handle_progress(at);
        let events = Reader::behind(at, (at > 0).then_some(checkpoint.events_hash));
        let (sending, asked, progress) = (None, Vec::new(), VecDeque::new());
        let worker =
            Worker { core, instructions: Reader::default(), events, sending, asked, progress, paused_until: 0 };
        (self.starts, worker)
    }

    fn own(&mut self, i: usize) {
        let owned: PartitionSet = Partition::all().filter(|_| self.rng.random_bool(0.6)).collect();
        self.workers[i].1.core.handle_owned(owned);
    }

    fn desk(&mut self) -> (u64, Desk) {
        self.starts += 1;
        let checkpoint = self.disk().checkpoint;
        let at = checkpoint.events_sequence;
        let core = Gateway::new(Setup {
            log_id: LOG_ID,
            cursors: checkpoint.cursors,
            sequence: at,
            outbox_bytes_max: 700,
            queue_bytes_max: 2_000,
            recent_bytes_max: 400,
            stored_copies: 1,
        });
        let events = Reader::behind(at, (at > 0).then_some(checkpoint.events_hash));
        (self.starts, Desk { core, events, sending: None, asked: Vec::new(), paused_until: 0 })
    }

    fn unit(&mut self, i: usize, epoch: u64) -> Unit {
        self.epochs.insert((i, epoch));
        let name = ClientId::new(&format!("unit-{i}")).expect("a good id");
        let core = Device::new(name.clone(), epoch, self.base + Duration::from_millis(self.now));
        Unit { name, core, wire: None, is_final: false, connect_at: self.now }
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_millis(self.now)
    }

    fn play(&mut self) -> Result<Report, String> {
        for _ in 0..STEPS {
            self.now += self.rng.random_range(0..8);
            match self.rng.random_range(0..1_000) {
                0..110 => self.submit(),
                110..113 => self.crash_something(),
                113..120 => self.pause_something(),
                120..128 => {
                    let i = self.rng.random_range(0..self.workers.len());
                    self.own(i);
                }
                128..140 => {
                    let i = self.rng.random_range(0..self.units.len());
                    self.cut(i);
                }
                140..143 => self.restart_unit(),
                143..150 => {
                    let i = self.rng.random_range(0..self.units.len());
                    let document = self.document();
                    self.units[i].core.unwatch(&document);
                    self.shown.remove(&(i, document.to_string()));
                }
                150..350 => self.deliver()?,
                350..500 => {
                    let i = self.rng.random_range(0..self.storers.len());
                    self.storer(i)?;
                }
                500..700 => {
                    let i = self.rng.random_range(0..self.workers.len());
                    self.work(i)?;
                }
                700..830 => {
                    let i = self.rng.random_range(0..self.desks.len());
                    self.serve(i)?;
                }
                _ => {
                    let i = self.rng.random_range(0..self.units.len());
                    self.device(i)?;
                }
            }
        }
        self.drain()?;
        self.check()
    }

    fn document(&mut self) -> DocumentId {
        // The first one is hot.
        let n = if self.rng.random_bool(0.4) { 0 } else { self.rng.random_range(0..DOCUMENTS) };
        DocumentId::new(&format!("d{n}")).expect("a good id")
    }

    fn submit(&mut self) {
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

    fn crash_something(&mut self) {
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

    fn pause_something(&mut self) {
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
    fn restart_unit(&mut self) {
        let i = self.rng.random_range(0..self.units.len());
        self.cut(i);
        let before = self.units[i].core.epoch();
        let epoch = if self.rng.random_bool(0.4) { before.saturating_sub(500) } else { before + 1_000 };
        // Whatever its clock says, a device must not draw an epoch twice.
        let epoch = (epoch.max(1)..).find(|epoch| !self.epochs.contains(&(i, *epoch))).unwrap_or(epoch);
        self.units[i] = self.unit(i, epoch);
        self.note("a device restarts", &[]);
        self.shown.retain(|(unit, _), _| *unit != i);
        // What it had under way is in nobody's hands any more.
        self.sent.values_mut().filter(|sent| sent.unit == i).for_each(|sent| sent.unit = usize::MAX);
    }

    fn cut(&mut self, i: usize) {
        if let Some(wire) = self.units[i].wire.take() {
            self.units[i].core.disconnected();
            // Sometimes the gateway does not notice at once.
            let desk = &mut self.desks[wire.gateway];
            if desk.0 == wire.start && self.rng.random_bool(0.7) {
                desk.1.core.disconnect(wire.session);
            }
        }
        self.units[i].connect_at = self.now + if self.calm { 20 } else { self.rng.random_range(0..400) };
    }

    /// Sends one attempt of a batch, or gives up the one under way when its time is over. Whether
    /// an attempt failed.
    fn publish(&mut self, writer: Writer, log: Log, sending: &mut Sending) -> bool {
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
    fn deliver(&mut self) -> Result<(), String> {
        let due: Vec<usize> = (0..self.flights.len()).filter(|i| self.flights[*i].due <= self.now).collect();
        if due.is_empty() {
            return Ok(());
        }
        let flight = self.flights.swap_remove(due[self.rng.random_range(0..due.len())]);
        for _ in 0..flight.copies {
            let message = flight.message.clone();
            if flight.log == Log::Instructions {
                self.truth.instructions(&message)?;
                self.note("INSTRUCTIONS grows", &message);
                self.instructions.append(message).map_err(|_| "the log is full")?;
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

    fn acknowledge(&mut self, flight: &Flight) {
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

    fn storer(&mut self, i: usize) -> Result<(), String> {
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
    fn answer(&mut self, asked: &mut Vec<Asked>) -> Option<(u64, Option<fieldstream_shared::read::Answer>)> {
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

    fn work(&mut self, i: usize) -> Result<(), String> {
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
                    worker.core.handle_instructions(sequence, &message).map_err(|e| e.to_string())?;
                }
            }
            // In some worlds processors lag far behind the storers that answer them.
            1 if self.calm || !self.lagging || self.now / 400 % 3 == 0 => {
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

    fn serve(&mut self, i: usize) -> Result<(), String> {
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

    fn device(&mut self, i: usize) -> Result<(), String> {
        let (now, wall_us) = (self.instant(), 1_000_000 + self.now * 1_000);
        if self.units[i].wire.is_none() {
            if self.units[i].is_final || self.now < self.units[i].connect_at {
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
            Some(Ended::Final(reason)) => {
                // Its former connection was taken over by its own new one.
                if !reason.contains("took over") {
                    return Err(format!("{} is sent away for good: {reason}", self.units[i].name));
                }
                self.cut(i);
            }
            None if closed => self.cut(i),
            None => {}
        }
        self.look(i)
    }

    /// What a device was told and shown must be true at this moment.
    fn look(&mut self, i: usize) -> Result<(), String> {
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
                    sent.told = Some((receipt.level, true));
                }
                Err(fieldstream_client::ClientError::Refused(_)) => sent.told = Some((AckLevel::Applied, false)),
                Err(error) => return Err(format!("{tag} ends with {error}")),
            }
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
    fn drain(&mut self) -> Result<(), String> {
        self.note("calm", &[]);
        self.calm = true;
        for i in 0..self.workers.len() {
            let owned = if i == 0 { PartitionSet::ALL } else { PartitionSet::EMPTY };
            self.workers[i].1.core.handle_owned(owned);
        }
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
            if round % 16 == 0 && self.is_quiet() {
                return Ok(());
            }
        }
        let open: Vec<usize> = self.units.iter().map(|u| u.core.open()).collect();
        Err(format!("it does not come to rest: open instructions {open:?}, behind: {}", self.behind()))
    }

    fn behind(&self) -> u64 {
        let done = self.truth.cursors.iter().map(|(position, _)| position.sequence).min().unwrap_or(0);
        self.instructions.last().saturating_sub(done)
    }

    fn is_quiet(&self) -> bool {
        let replicas = self.units.iter().all(|unit| {
            let same = |id: &DocumentId| {
                unit.core.document(id).revision == self.truth.revisions.get(id.as_str()).copied().unwrap_or(0)
            };
            unit.core.open() == 0 && unit.core.watched().iter().all(same)
        });
        replicas
            && self.flights.is_empty()
            && self.behind() == 0
            && self.desks.iter().all(|(_, d)| d.core.is_idle() && d.core.sequence() == self.events.last())
            && self.storers.iter().all(|s| s.disk.checkpoint.events_sequence == self.events.last())
    }

    /// The end: everybody agrees with the truth.
    fn check(&mut self) -> Result<Report, String> {
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
            match sent.told {
                Some((AckLevel::Applied | AckLevel::Stored, true)) if !seen.contains_key(tag) => {
                    return Err(format!("{tag} was acknowledged and is lost"));
                }
                Some((_, false)) if seen.contains_key(tag) => return Err(format!("{tag} was refused and is applied")),
                None if sent.unit != usize::MAX => return Err(format!("{tag} was never resolved")),
                _ => {}
            }
        }
        let resolved = self.sent.values().filter(|sent| sent.told.is_some()).count();
        let messages = self.instructions.last() + self.events.last();
        Ok(Report { trace: self.trace, submitted: self.sent.len(), resolved, messages, virtual_ms: self.now })
    }
}
