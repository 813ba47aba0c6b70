//! One run: who acts next, what goes wrong, and what must hold afterwards.

mod faults;
mod network;
mod turns;
mod verdict;

use super::log::{Reader, Stream};
use super::oracle::Truth;
use super::roles::{Asked, Desk, Disk, LOG_ID, Sending, Storer, Unit, Wire, Worker};
use bytes::Bytes;
use fieldstream_client::cores::{Device, Ended};
use fieldstream_gateway::cores::{Gateway, Setup};
use fieldstream_processor::lane::{Lane, LaneOptions};
use fieldstream_shared::code::Code;
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
    told: Option<Told>,
}

/// What a device was told of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It is in the log, under this epoch and number.
    Logged(u64, u64),
    Applied,
    Refused,
    /// First that it is in the log, then that it was refused.
    LateRefused(Code),
    Unknown,
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
    /// Connections that a device has left without its gateway having noticed.
    left: Vec<(usize, Wire)>,
    truth: Truth,
    sent: BTreeMap<u64, Sent>,
    shown: BTreeMap<(usize, String), u64>,
    starts: u64,
    epochs: BTreeSet<(usize, u64)>,
    /// Gateways have begun behind EVENTS sequences up to here, and know nothing of what is before.
    forgotten_upto: u64,
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
            left: Vec::new(),
            truth: Truth::default(),
            sent: BTreeMap::new(),
            shown: BTreeMap::new(),
            starts: 0,
            epochs: BTreeSet::new(),
            forgotten_upto: 0,
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
        self.forgotten_upto = self.forgotten_upto.max(at);
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
        self.starts += 1;
        let core = Device::new(name.clone(), epoch, self.starts, self.base + Duration::from_millis(self.now));
        Unit { name, core, wire: None, connect_at: self.now }
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
                150..153 => self.ask_to_forget(1)?,
                153..350 => self.deliver()?,
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
        // Long after anybody could still hold a batch all marks go, and everybody comes back.
        self.ask_to_forget(0)?;
        self.drain()?;
        if !self.truth.newest.is_empty() {
            return Err(format!("marks stay behind: {:?}", self.truth.newest));
        }
        for _ in 0..8 {
            self.submit();
        }
        self.drain()?;
        self.check()
    }
}
