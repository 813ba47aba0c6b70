//! The core of a processor: one lane's partitions, as a state machine without sockets and clocks.
//!
//! Inputs are `handle_*`: messages of both logs, storers' answers and progress, ownership. Outputs
//! are `poll_*`: the next event batch to publish, values to load, where to read instructions from.

mod apply;
mod loads;
mod pending;
mod status;
mod timing;

pub use status::LaneStatus;
pub use timing::{Timing, Traced};

use crate::cache::{Cache, Key};
use bytes::Bytes;
use fieldstream_shared::cursor::{BatchId, Cursor, Cursors, Part, Position};
use fieldstream_shared::defect::{self, Defect};
use fieldstream_shared::event::{EventBatch, encode_event_batch};
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::partition::{PARTITIONS, Partition, PartitionSet};
use fieldstream_shared::read::{Answer, Request};
use fieldstream_shared::record::{BatchBuilder, Record, decode_batch};
use fieldstream_shared::registry::Registry;
use pending::{Pending, Said};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Own batches that may be out without having been read back.
const UNREAD_BATCHES_MAX: usize = 8;
/// Instruction bytes kept until their events are accepted; beyond, reading pauses.
const BUFFER_BYTES_MAX: usize = 64 << 20;
/// Cursors of idle partitions are moved along alone this often, if INSTRUCTIONS has moved.
const IDLE_MOVE_MS: u64 = 3_000;

/// Why a processor must leave: it must not guess what the log says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// An event batch that cannot be read.
    #[error(
        "message {sequence} of EVENTS_{lane} cannot be read ({source}); a newer program wrote it, or the log is damaged"
    )]
    Events {
        /// The lane.
        lane: u16,
        /// The message.
        sequence: u64,
        /// Why.
        source: DecodeError,
    },
    /// An instruction batch of a version this program does not know.
    #[error(
        "message {sequence} of INSTRUCTIONS_{lane} has version {version}, which this program does not know; use a newer one"
    )]
    Version {
        /// The lane.
        lane: u16,
        /// The message.
        sequence: u64,
        /// Its version.
        version: u64,
    },
    /// This program is at odds with itself. Nothing of the batch in the making is published.
    #[error("defect in this program: {0}; the partition's next owner goes on from the log")]
    Contradiction(&'static str),
}

/// What a lane's core is made with.
#[derive(Debug, Clone)]
pub struct LaneOptions {
    /// The lane.
    pub lane: u16,
    /// Number of lanes.
    pub lanes: u16,
    /// Drawn at random for every start.
    pub incarnation: u64,
    /// Custom instructions.
    pub registry: Registry,
    /// Bytes of cached values.
    pub cache_bytes_max: usize,
    /// Bytes of values that storers do not have yet; beyond, applying pauses.
    pub pinned_bytes_max: usize,
    /// EVENTS up to here are accounted for by `cursors`.
    pub events_sequence: u64,
    /// Where the partitions stood there.
    pub cursors: Cursors,
    /// Nothing is built before EVENTS was read up to here.
    pub catch_up_to: u64,
}

/// A message of INSTRUCTIONS, kept until every owned partition's cursor is behind it.
#[derive(Debug)]
struct Message {
    sequence: u64,
    /// When it was read.
    read_us: u64,
    bytes: usize,
    records: Vec<Pending>,
}

/// An own batch that was not read back yet.
#[derive(Debug)]
struct Own {
    touched: Vec<Key>,
    partitions: Vec<(Partition, u32)>,
}

/// An event batch to publish.
#[derive(Debug, Clone)]
pub struct Built {
    /// Its identity.
    pub id: BatchId,
    /// The message.
    pub message: Bytes,
    /// Events in it.
    pub events: usize,
    /// When what it is made of came.
    pub timing: Timing,
}

/// Values to ask storers for.
#[derive(Debug, Clone)]
pub struct Load {
    /// Given back with the answer.
    pub id: u64,
    /// The request.
    pub request: Request,
}

/// One lane's state machine.
#[derive(Debug)]
pub struct Lane {
    lane: u16,
    lanes: u16,
    incarnation: u64,
    counter: u64,
    registry: Registry,
    pinned_bytes_max: usize,
    catch_up_to: u64,
    owned: PartitionSet,
    /// As read from EVENTS.
    accepted: Cursors,
    /// Where this processor's own batches lead, read back or not.
    ahead: Cursors,
    events_sequence: u64,
    /// EVENTS sequence of the last accepted part of each partition.
    last_accepted: Box<[u64; PARTITIONS]>,
    /// Answers older than this are too old for the partition.
    floor: Box<[u64; PARTITIONS]>,
    /// Counts rollbacks, so that a batch built before one is known.
    generation: Box<[u32; PARTITIONS]>,
    messages: VecDeque<Message>,
    messages_bytes: usize,
    /// Last message of INSTRUCTIONS taken.
    instructions_sequence: u64,
    read_from: Option<u64>,
    cache: Cache,
    unread: BTreeMap<u64, Own>,
    /// Values confirmed at a sequence that storers have not reached.
    unstored: VecDeque<(u64, Vec<Key>)>,
    progress: u64,
    wanted: VecDeque<Key>,
    /// Wanted or in flight.
    loading: HashSet<Key>,
    /// What the records in front waited for when they were last tried.
    needed: Vec<Key>,
    in_flight: HashSet<Key>,
    loads: HashMap<u64, Vec<Key>>,
    next_load: u64,
    /// Answers ahead of this processor's own reading.
    early: Vec<(Vec<Key>, Answer)>,
    built_at_ms: u64,
}

impl Lane {
    /// A core that owns nothing yet.
    pub fn new(options: LaneOptions) -> Lane {
        Lane {
            lane: options.lane,
            lanes: options.lanes,
            incarnation: options.incarnation,
            counter: 0,
            registry: options.registry,
            pinned_bytes_max: options.pinned_bytes_max,
            catch_up_to: options.catch_up_to,
            owned: PartitionSet::EMPTY,
            ahead: options.cursors.clone(),
            accepted: options.cursors,
            events_sequence: options.events_sequence,
            last_accepted: Box::new([options.events_sequence; PARTITIONS]),
            floor: Box::new([0; PARTITIONS]),
            generation: Box::new([0; PARTITIONS]),
            messages: VecDeque::new(),
            messages_bytes: 0,
            instructions_sequence: 0,
            read_from: None,
            cache: Cache::new(options.cache_bytes_max),
            unread: BTreeMap::new(),
            unstored: VecDeque::new(),
            progress: 0,
            wanted: VecDeque::new(),
            loading: HashSet::new(),
            needed: Vec::new(),
            in_flight: HashSet::new(),
            loads: HashMap::new(),
            next_load: 0,
            early: Vec::new(),
            built_at_ms: 0,
        }
    }

    /// Takes and gives up partitions. What was built for partitions given up stays in the log's
    /// hands: it counts or does not, like everything.
    pub fn handle_owned(&mut self, owned: PartitionSet) {
        let owned = owned.on_lane(self.lane, self.lanes);
        let changed: PartitionSet =
            Partition::all().filter(|p| owned.contains(*p) != self.owned.contains(*p)).collect();
        if changed.is_empty() {
            return;
        }
        self.owned = owned;
        for p in changed.iter() {
            self.roll_back(p, self.last_accepted[p.index()]);
        }
        self.cache.drop_partitions(|p| changed.contains(p));
        // Newly owned partitions may stand before what is buffered. From the *accepted* cursors on:
        // what this processor has built ahead of them may still be lost.
        self.messages.clear();
        self.messages_bytes = 0;
        self.read_from = self.accepted.lowest(&self.owned).map(|position| position.sequence.max(1));
        self.instructions_sequence = self.read_from.map_or(0, |from| from - 1);
    }

    /// The stream sequence from which INSTRUCTIONS must be read anew, once after it changed.
    pub fn poll_read_from(&mut self) -> Option<u64> {
        self.read_from.take()
    }

    /// Whether another instruction message can be taken.
    pub fn wants_instructions(&self) -> bool {
        self.messages_bytes < BUFFER_BYTES_MAX
    }

    /// Takes the next message of INSTRUCTIONS. `read_us` is when it came, by the clock that stamps are
    /// by.
    ///
    /// # Errors
    /// [`LaneError::Version`].
    pub fn handle_instructions(&mut self, sequence: u64, payload: &Bytes, read_us: u64) -> Result<(), LaneError> {
        let first = Partition(u8::try_from(self.lane).unwrap_or(u8::MAX));
        let records = match decode_batch(payload) {
            Ok(records) => records.into_iter().map(|record| self.pending(first, payload.slice_ref(record))).collect(),
            Err(DecodeError::UnknownVersion(version)) => {
                return Err(LaneError::Version { lane: self.lane, sequence, version });
            }
            // Not a batch at all: one dead letter, so that the lane goes on.
            Err(_) => vec![Pending { partition: first, bytes: payload.clone(), said: None }],
        };
        self.instructions_sequence = sequence;
        self.messages_bytes += payload.len();
        self.messages.push_back(Message { sequence, read_us, bytes: payload.len(), records });
        self.trim();
        Ok(())
    }

    /// Finds a record's partition, and asks for the values it will need.
    fn pending(&mut self, first: Partition, bytes: Bytes) -> Pending {
        let said = Record::decode(&bytes).ok().map(|record| Said::of(record, &bytes));
        let placed = said.map(|said| (Partition::of(&said.document), said));
        let Some((partition, said)) = placed.filter(|(p, _)| p.lane(self.lanes) == self.lane) else {
            return Pending { partition: first, bytes, said: None };
        };
        if self.owned.contains(partition) {
            self.want(Key::Mark(partition, said.number.client.clone()));
            self.want(Key::Document(said.document.clone()));
        }
        Pending { partition, bytes, said: Some(said) }
    }

    /// Takes the next message of EVENTS: moves cursors, confirms own batches, drops what was built
    /// on parts that do not count.
    ///
    /// # Errors
    /// [`LaneError::Events`].
    pub fn handle_events(&mut self, sequence: u64, payload: &[u8]) -> Result<(), LaneError> {
        let lane = self.lane;
        let batch = EventBatch::decode(payload).map_err(|source| LaneError::Events { lane, sequence, source })?;
        let accepted = self.accepted.accept(batch.id, &batch.parts);
        self.events_sequence = sequence;
        accepted.iter().for_each(|p| self.last_accepted[p.index()] = sequence);
        let own = if batch.id.incarnation == self.incarnation { self.unread.remove(&batch.id.counter) } else { None };
        match own {
            Some(own) => self.read_back(own, accepted, sequence),
            // Somebody else decided: what this processor has of those partitions is not the log's.
            None => self.lose(accepted.iter().filter(|p| self.owned.contains(*p)).collect(), sequence),
        }
        self.trim();
        self.use_early_answers();
        Ok(())
    }

    fn read_back(&mut self, own: Own, accepted: PartitionSet, sequence: u64) {
        let mut lost = PartitionSet::EMPTY;
        let mut kept = PartitionSet::EMPTY;
        for (p, generation) in own.partitions {
            let current = generation == self.generation[p.index()];
            match (accepted.contains(p), current) {
                (true, true) => kept.insert(p),
                (false, false) => {}
                // Not accepted, or accepted although it was given up: start again from the cursor.
                _ => lost.insert(p),
            }
        }
        self.lose(lost, sequence);
        let touched: Vec<Key> = own.touched.into_iter().filter(|key| kept.contains(key.partition())).collect();
        touched.iter().for_each(|key| self.cache.confirm(key, sequence));
        self.unstored.push_back((sequence, touched));
        self.release();
    }

    fn lose(&mut self, lost: PartitionSet, sequence: u64) {
        if lost.is_empty() {
            return;
        }
        lost.iter().for_each(|p| self.roll_back(p, sequence));
        self.cache.drop_partitions(|p| lost.contains(p));
    }

    /// Forgets what was built for a partition; it goes on from its accepted cursor.
    fn roll_back(&mut self, p: Partition, sequence: u64) {
        self.ahead.set(p, self.accepted.get(p));
        self.generation[p.index()] += 1;
        if !defect::active(Defect::FloorNotRaised) {
            self.floor[p.index()] = self.floor[p.index()].max(sequence);
        }
    }

    /// Storers have everything up to this EVENTS sequence.
    pub fn handle_progress(&mut self, sequence: u64) {
        self.progress = self.progress.max(sequence);
        self.release();
    }

    fn release(&mut self) {
        while let Some((sequence, _)) = self.unstored.front()
            && *sequence <= self.progress
            && let Some((_, keys)) = self.unstored.pop_front()
        {
            keys.iter().for_each(|key| self.cache.release(key, self.progress));
        }
    }

    /// Called behind applying only, and spares what a record is still waiting with: values must
    /// not push each other out before they were used, however small the cache is.
    fn evict(&mut self, needed: &HashSet<&Key>) {
        let floor = &mut self.floor;
        let evicted = |p: Partition, last_event| floor[p.index()] = floor[p.index()].max(last_event);
        self.cache.evict(|key| needed.contains(key), evicted);
    }

    /// The next event batch, if there is something to say. `now_ms` is a monotonic clock. The
    /// caller publishes it, again and again until it is in, before it polls for the next one.
    ///
    /// # Errors
    /// [`LaneError::Contradiction`].
    pub fn poll_batch(&mut self, now_ms: u64) -> Result<Option<Built>, LaneError> {
        if self.events_sequence < self.catch_up_to
            || self.unread.len() >= UNREAD_BATCHES_MAX
            || self.cache.dirty_bytes() > self.pinned_bytes_max
        {
            return Ok(None);
        }
        let mut work = Work::default();
        self.cache.begin_batch();
        self.apply_messages(&mut work)?;
        self.evict(&work.needed.iter().collect());
        self.needed = std::mem::take(&mut work.needed);
        let idle = now_ms.saturating_sub(self.built_at_ms) >= IDLE_MOVE_MS && self.lags();
        if work.events.is_empty() && !idle {
            return Ok(None);
        }
        self.built_at_ms = now_ms;
        self.counter += 1;
        let id = BatchId { incarnation: self.incarnation, counter: self.counter };
        let parts = self.take_steps(id, &work);
        if parts.is_empty() {
            return Ok(None);
        }
        let message = encode_event_batch(id, &parts, &work.events).into();
        let partitions = parts.iter().flat_map(|part| part.partitions.iter().collect::<Vec<_>>());
        let partitions = partitions.map(|p| (p, self.generation[p.index()])).collect();
        work.touched.iter().for_each(|key| self.cache.hold(key));
        self.unread.insert(self.counter, Own { touched: work.touched, partitions });
        Ok(Some(Built { id, message, events: work.events.len(), timing: work.timing }))
    }

    /// Applies what is buffered, until the batch is full. A partition whose values are missing
    /// waits at its record; the others go on.
    fn apply_messages(&mut self, work: &mut Work) -> Result<(), LaneError> {
        let Some(lowest) = self.ahead_lowest() else { return Ok(()) };
        let Some(front) = self.messages.front().map(|m| m.sequence) else { return Ok(()) };
        let begin = usize::try_from(lowest.sequence.saturating_sub(front)).unwrap_or(usize::MAX);
        for m in begin..self.messages.len() {
            let sequence = self.messages[m].sequence;
            work.timing.at_message(self.messages[m].read_us);
            // Put back below: nobody else looks at them meanwhile.
            let records = std::mem::take(&mut self.messages[m].records);
            let full_at = self.apply_records(&records, sequence, work);
            let all = records.len() as u32;
            self.messages[m].records = records;
            let full_at = full_at?;
            work.upto = Position { sequence, records: full_at.unwrap_or(all) };
            if full_at.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Applies a message's records; the number of those done where the batch became full.
    fn apply_records(&mut self, records: &[Pending], sequence: u64, work: &mut Work) -> Result<Option<u32>, LaneError> {
        for (pending, index) in records.iter().zip(0_u32..) {
            let p = pending.partition;
            if !self.owned.contains(p)
                || work.blocked.contains_key(&p)
                || self.ahead.get(p).position.covers(sequence, index)
            {
                continue;
            }
            if !self.apply(pending, sequence, index, work)? {
                let claimed = if defect::active(Defect::CursorTooHigh) { index + 1 } else { index };
                work.blocked.insert(p, Position { sequence, records: claimed });
            } else if work.events.is_full() {
                return Ok(Some(index + 1));
            }
        }
        Ok(None)
    }

    /// Moves the owned partitions' cursors ahead; partitions that step alike share a part.
    fn take_steps(&mut self, id: BatchId, work: &Work) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for p in self.owned.iter() {
            let after: Cursor = self.ahead.get(p);
            let upto = work.blocked.get(&p).copied().unwrap_or(work.upto);
            if upto <= after.position {
                continue;
            }
            match parts.iter_mut().find(|part| part.after == after && part.upto == upto) {
                Some(part) => part.partitions.insert(p),
                None => parts.push(Part { partitions: [p].into_iter().collect(), after, upto }),
            }
            self.ahead.set(p, Cursor { position: upto, set_by: Some(id) });
        }
        parts
    }

    fn ahead_lowest(&self) -> Option<Position> {
        self.ahead.lowest(&self.owned)
    }

    /// Whether a partition's cursor is behind the messages read.
    fn lags(&self) -> bool {
        let last = self.messages.back().map(|m| Position { sequence: m.sequence, records: m.records.len() as u32 });
        self.ahead_lowest() < last
    }

    /// Drops messages behind which every owned partition stands, by the log's word.
    fn trim(&mut self) {
        let Some(lowest) = self.accepted.lowest(&self.owned) else { return };
        while let Some(message) = self.messages.front() {
            if lowest < (Position { sequence: message.sequence, records: message.records.len() as u32 }) {
                return;
            }
            self.messages_bytes -= message.bytes;
            self.messages.pop_front();
        }
    }

    /// Messages of INSTRUCTIONS that are read and not decided yet.
    pub fn backlog(&self) -> usize {
        self.messages.len()
    }

    /// Last EVENTS sequence read.
    pub fn events_sequence(&self) -> u64 {
        self.events_sequence
    }
}

/// A batch in the making.
#[derive(Debug, Default)]
struct Work {
    events: BatchBuilder,
    /// Each once.
    touched: Vec<Key>,
    upto: Position,
    blocked: HashMap<Partition, Position>,
    /// The values that the blocked records need, there or not.
    needed: Vec<Key>,
    timing: Timing,
}

#[cfg(test)]
mod tests;
