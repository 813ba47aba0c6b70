//! One lane from devices to devices and into a file, turn by turn.

use crate::devices::Devices;
use crate::measured::{Path, Tally};
use crate::storers::{LOG_ID, Storer};
use bytes::Bytes;
use fieldstream_gateway::cores::{Gateway, Setup};
use fieldstream_processor::lane::{Lane, LaneOptions, Load};
use fieldstream_shared::cursor::Cursors;
use fieldstream_shared::partition::PartitionSet;
use fieldstream_shared::read::{Answer, AnswerBody, Query, Request};
use fieldstream_shared::registry::Registry;
use std::collections::VecDeque;

/// Events of a commit when a log is read that is there already, as the storer has it.
const REBUILD_COMMIT_EVENTS: usize = 16 * 1024;
/// What a connection takes from its outbox at once.
const TAKE_BYTES: usize = 64 * 1024;
/// Time between two turns.
const TURN_US: u64 = 7_000;
/// Wall time of the beginning.
const BEGUN_US: u64 = 1_800_000_000_000_000;

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Documents.
    pub(crate) documents: usize,
    /// Watchers of each, the only ones who write to it.
    pub(crate) watchers: usize,
    /// Instructions of a batch.
    pub(crate) batch: usize,
    /// Batches of a commit.
    pub(crate) commit: usize,
    /// Turns, of a batch each, before anything is counted.
    pub(crate) warm_up_turns: usize,
    /// Turns that are counted.
    pub(crate) turns: usize,
}

impl Default for Plan {
    /// What 15,000 instructions per second make of batches (every 7 ms) and commits (every 70 ms); in
    /// the warm-up everybody writes twice, so that nothing is new any more.
    fn default() -> Plan {
        Plan { documents: 300, watchers: 3, batch: 100, commit: 10, warm_up_turns: 20, turns: 100 }
    }
}

impl Plan {
    /// Instructions that are counted.
    pub(crate) fn instructions(&self) -> usize {
        self.batch * self.turns
    }
}

struct Pipeline {
    devices: Devices,
    gateway: Gateway,
    processor: Lane,
    storer: Storer,
    /// Every message of EVENTS.
    events: Vec<Bytes>,
    instructions_sequence: u64,
    /// Session of each client.
    sessions: Vec<u64>,
    /// Time since the beginning.
    since_us: u64,
    next_client: usize,
}

/// Runs the plan; files go into the folder.
///
/// # Panics
/// If a core does not do what it should: the figures would be of something else.
pub(crate) fn run(plan: &Plan, directory: &std::path::Path, tally: &mut Tally) {
    let mut pipeline = Pipeline::new(plan, directory);
    for turn in 0..plan.warm_up_turns + plan.turns {
        if turn == plan.warm_up_turns {
            tally.switch_on();
        }
        pipeline.turn(plan.batch, (turn + 1) % plan.commit == 0, tally);
    }
    pipeline.rebuild(plan, directory, tally);
}

impl Pipeline {
    fn new(plan: &Plan, directory: &std::path::Path) -> Pipeline {
        let setup = Setup {
            log_id: LOG_ID,
            cursors: Cursors::default(),
            sequence: 0,
            outbox_bytes_max: 1 << 20,
            queue_bytes_max: 64 << 20,
            recent_bytes_max: 16 << 20,
            stored_copies: 1,
        };
        let options = LaneOptions {
            lane: 0,
            lanes: 1,
            incarnation: 0x1234_5678_9abc_def0,
            registry: Registry::default(),
            cache_bytes_max: 256 << 20,
            pinned_bytes_max: 256 << 20,
            events_sequence: 0,
            cursors: Cursors::default(),
            catch_up_to: 0,
        };
        let mut pipeline = Pipeline {
            devices: Devices::new(plan),
            gateway: Gateway::new(setup),
            processor: Lane::new(options),
            storer: Storer::new(&directory.join("live")),
            events: Vec::new(),
            instructions_sequence: 0,
            sessions: Vec::new(),
            since_us: 0,
            next_client: 0,
        };
        pipeline.processor.handle_owned(PartitionSet::ALL);
        pipeline.processor.poll_read_from();
        pipeline.connect();
        pipeline
    }

    fn now_ms(&self) -> u64 {
        self.since_us / 1_000
    }

    fn wall_us(&self) -> u64 {
        BEGUN_US + self.since_us
    }

    fn connect(&mut self) {
        for client in 0..self.devices.clients() {
            let session = self.gateway.connect(self.now_ms(), true);
            self.sessions.push(session);
            self.gateway.bytes(session, self.now_ms(), &self.devices.hello(client));
            self.gateway.turn(session, self.now_ms(), self.wall_us());
        }
        while let Some((id, request)) = self.gateway.poll_load() {
            self.gateway.handle_loaded(id, Some(nothing_yet(&request, 0)));
        }
        for client in 0..self.devices.clients() {
            assert!(self.drain(client) >= 2, "client {client} was not welcomed or not shown its document");
        }
    }

    /// One batch from devices to devices.
    fn turn(&mut self, batch: usize, commits: bool, tally: &mut Tally) {
        self.since_us += TURN_US;
        let senders: Vec<usize> =
            (self.next_client..self.next_client + batch).map(|n| n % self.sessions.len()).collect();
        self.next_client += batch;
        let message = self.inbound(&senders, tally);
        let event_message = self.process(&message, batch, tally);
        self.events.push(event_message);
        self.outbound(&senders, tally);
        self.store(commits, tally);
    }

    fn inbound(&mut self, senders: &[usize], tally: &mut Tally) -> Bytes {
        let frames: Vec<(u64, Vec<u8>)> =
            senders.iter().map(|client| (self.sessions[*client], self.devices.instruct(*client))).collect();
        let (now_ms, wall_us) = (self.now_ms(), self.wall_us());
        let gateway = &mut self.gateway;
        tally.measure(Path::GatewayInbound, || {
            for (session, bytes) in &frames {
                gateway.bytes(*session, now_ms, bytes);
                gateway.turn(*session, now_ms, wall_us);
            }
            let message = gateway.take_batch(now_ms).expect("a batch");
            gateway.acknowledged();
            message
        })
    }

    fn process(&mut self, message: &Bytes, batch: usize, tally: &mut Tally) -> Bytes {
        self.instructions_sequence += 1;
        let (sequence, now_ms) = (self.instructions_sequence, self.now_ms());
        let next = self.events.len() as u64 + 1;
        let processor = &mut self.processor;
        let built = tally.measure(Path::Processor, || {
            processor.handle_instructions(sequence, message, 0).expect("instructions");
            while let Some(Load { id, request }) = processor.poll_load() {
                processor.handle_loaded(id, nothing_yet(&request, next - 1));
            }
            let built = processor.poll_batch(now_ms).expect("a batch").expect("something to say");
            processor.handle_events(next, &built.message).expect("events");
            built
        });
        assert_eq!(built.events, batch, "events of message {next}");
        built.message
    }

    fn outbound(&mut self, senders: &[usize], tally: &mut Tally) {
        let sequence = self.events.len() as u64;
        let mut watchers: Vec<usize> = senders.iter().flat_map(|client| self.devices.watchers_of(*client)).collect();
        watchers.sort_unstable();
        watchers.dedup();
        let mut written: Vec<(usize, Vec<u8>)> =
            watchers.iter().map(|client| (*client, Vec::with_capacity(TAKE_BYTES))).collect();
        let (gateway, sessions) = (&mut self.gateway, &self.sessions);
        let message = &self.events[self.events.len() - 1];
        let mut writing = VecDeque::with_capacity(64);
        tally.measure(Path::GatewayOutbound, || {
            gateway.handle_events(sequence, message).expect("events");
            for (client, out) in &mut written {
                gateway.take_output(sessions[*client], TAKE_BYTES, &mut writing);
                // Frames are joined for the socket.
                writing.drain(..).for_each(|frames: Bytes| out.extend_from_slice(&frames));
            }
        });
        let frames: usize = written.iter().map(|(client, bytes)| self.devices.take(*client, bytes)).sum();
        let deliveries: usize = senders.iter().map(|client| self.devices.watchers_of(*client).count()).sum();
        assert_eq!(frames, deliveries + senders.len(), "updates and outcomes of message {sequence}");
    }

    fn store(&mut self, commits: bool, tally: &mut Tally) {
        let sequence = self.events.len() as u64;
        let (storer, message) = (&mut self.storer, &self.events[self.events.len() - 1]);
        let progress = tally.measure(Path::StorerLive, || {
            storer.take_in(sequence, message);
            commits.then(|| storer.commit())
        });
        let Some(progress) = progress else { return };
        let (gateway, processor) = (&mut self.gateway, &mut self.processor);
        tally.measure(Path::GatewayOutbound, || gateway.handle_progress(&progress));
        tally.measure(Path::Processor, || processor.handle_progress(progress.sequence));
    }

    /// Takes the whole log in anew; of it as many messages are counted as of everything else.
    fn rebuild(&mut self, plan: &Plan, directory: &std::path::Path, tally: &mut Tally) {
        let mut storer = Storer::new(&directory.join("rebuilt"));
        let counted = self.events.len() - plan.turns;
        let messages = (1..).zip(&self.events);
        let (before, after) = (messages.clone().take(counted), messages.skip(counted));
        before.for_each(|(sequence, message)| storer.take_in(sequence, message));
        storer.commit();
        tally.measure(Path::StorerRebuild, || {
            for (sequence, message) in after {
                storer.take_in(sequence, message);
                if storer.events() >= REBUILD_COMMIT_EVENTS {
                    storer.commit();
                }
            }
            storer.commit();
        });
    }

    /// Takes what waits for a client, and tells how many frames that was.
    fn drain(&mut self, client: usize) -> usize {
        let mut writing = VecDeque::new();
        self.gateway.take_output(self.sessions[client], usize::MAX, &mut writing);
        let bytes: Vec<u8> = writing.iter().flat_map(|frames| frames.iter().copied()).collect();
        self.devices.take(client, &bytes)
    }
}

/// A storer's answer while none of these values was ever written.
fn nothing_yet(request: &Request, sequence: u64) -> Answer {
    let Query::GetMany { documents, marks } = &request.query else { panic!("only values are asked for") };
    let (documents, marks) = (vec![Default::default(); documents.len()], vec![Default::default(); marks.len()]);
    Answer { sequence, body: AnswerBody::Values { documents, marks } }
}
