//! Several processors, some of them zombies, on one simulated log, against a naive model.

use super::*;
use fieldstream_shared::document::{Body, Document};
use fieldstream_shared::event::{Event, EventBody};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::instruction::{Content, Operation};
use fieldstream_shared::marks::Mark;
use fieldstream_shared::outcome::Outcome;
use fieldstream_shared::read::{AnswerBody, Query};
use fieldstream_shared::record::NewRecord;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A storer: what a reader of EVENTS knows at a sequence.
#[derive(Default)]
struct Storer {
    sequence: u64,
    cursors: Cursors,
    documents: HashMap<DocumentId, Document>,
    marks: HashMap<(Partition, ClientId), Mark>,
    outcomes: HashMap<(String, u64), Vec<Outcome>>,
}

impl Storer {
    fn read(&mut self, message: &[u8]) {
        self.sequence += 1;
        let batch = EventBatch::decode(message).unwrap();
        let accepted = self.cursors.accept(batch.id, &batch.parts);
        for event in batch.events.iter().map(|e| Event::decode(e).unwrap()).filter(|e| accepted.contains(e.partition)) {
            let Some(origin) = &event.origin else { continue };
            event.fold_into(self.marks.entry((event.partition, origin.client.clone())).or_default());
            if let EventBody::Updated { version, change } = &event.body {
                self.documents.entry(origin.document.clone()).or_default().apply(change, *version).unwrap();
            }
            let told = self.outcomes.entry((origin.client.to_string(), origin.arrival.number)).or_default();
            told.push(event.body.outcome());
        }
    }

    /// Answers with all marks and the first documents: answers may be cut short.
    fn answer(&self, request: &Request, documents_max: usize) -> Option<Answer> {
        let Query::GetMany { documents, marks } = &request.query else { panic!("not asked by a lane") };
        let documents = documents.iter().take(documents_max);
        (self.sequence >= request.min_sequence).then(|| Answer {
            sequence: self.sequence,
            body: AnswerBody::Values {
                documents: documents.map(|d| self.documents.get(d).cloned().unwrap_or_default()).collect(),
                marks: marks.iter().map(|m| self.marks.get(m).cloned().unwrap_or_default()).collect(),
            },
        })
    }
}

/// A processor: a core, how far it has read both logs, and a batch it has not published yet.
struct Processor {
    core: Lane,
    read_instructions: usize,
    read_events: usize,
    unpublished: Option<Bytes>,
    loads: Vec<Load>,
}

struct World {
    rng: StdRng,
    instructions: Vec<Bytes>,
    events: Vec<Bytes>,
    storer: Storer,
    processors: Vec<Processor>,
    now_ms: u64,
    sent: Vec<(String, u64, String)>,
}

impl World {
    fn processor(&mut self) -> Processor {
        let core = Lane::new(LaneOptions {
            lane: 0,
            lanes: 1,
            incarnation: self.rng.random(),
            registry: Registry::default(),
            cache_bytes_max: 2000,
            pinned_bytes_max: 1 << 20,
            events_sequence: self.storer.sequence,
            cursors: self.storer.cursors.clone(),
            catch_up_to: 0,
        });
        let read_events = self.storer.sequence as usize;
        Processor { core, read_instructions: 0, read_events, unpublished: None, loads: Vec::new() }
    }

    fn send(&mut self, resend: bool) {
        let (client, number, document) = if resend && !self.sent.is_empty() {
            let at = self.sent.len() - 1 - self.rng.random_range(0..self.sent.len().min(6));
            self.sent[at].clone()
        } else {
            let client = format!("c{}", self.rng.random_range(0..3));
            let number = 1 + self.sent.iter().filter(|(c, ..)| *c == client).map(|(_, n, _)| *n).max().unwrap_or(0);
            let sent = (client, number, format!("d{}", self.rng.random_range(0..6)));
            self.sent.push(sent.clone());
            sent
        };
        let mut operation = Vec::new();
        Operation::Append(format!("{client}:{number};")).write(&mut operation);
        let content = Content { document: &document, if_revision: None, operation: &operation };
        let settled = number.saturating_sub(20).max(1);
        let record = NewRecord {
            client: &client,
            epoch: 1,
            number,
            settled,
            resent: resend,
            received_at_us: 1,
            content,
            refuse: None,
            trace: None,
        };
        let mut batch = BatchBuilder::default();
        batch.push(&record.encode());
        if self.rng.random_bool(0.02) {
            batch.push(b"garbage");
        }
        self.instructions.push(batch.finish().into());
    }

    fn step(&mut self, i: usize) {
        self.now_ms += 700;
        let choice = self.rng.random_range(0..6);
        let p = &mut self.processors[i];
        if let Some(from) = p.core.poll_read_from() {
            p.read_instructions = from as usize - 1;
        }
        match choice {
            0 | 1 if p.read_instructions < self.instructions.len() => {
                p.read_instructions += 1;
                let payload = &self.instructions[p.read_instructions - 1];
                p.core.handle_instructions(p.read_instructions as u64, payload, 0).unwrap();
            }
            2 if p.read_events < self.events.len() => {
                p.read_events += 1;
                p.core.handle_events(p.read_events as u64, &self.events[p.read_events - 1]).unwrap();
            }
            3 => {
                p.loads.extend(p.core.poll_load());
                if let Some(load) = p.loads.pop() {
                    let documents_max = if self.rng.random_bool(0.3) { self.rng.random_range(1..4) } else { 1_000 };
                    match self.storer.answer(&load.request, documents_max) {
                        Some(answer) => p.core.handle_loaded(load.id, answer),
                        None => p.core.handle_load_failed(load.id),
                    }
                }
            }
            4 if p.unpublished.is_none() => p.unpublished = p.core.poll_batch(self.now_ms).unwrap().map(|b| b.message),
            5 => {
                p.core.handle_progress(self.storer.sequence);
                if let Some(message) = p.unpublished.clone() {
                    self.events.push(message);
                    // Sometimes the acknowledgement is lost and the batch is published again.
                    if self.rng.random_bool(0.85) {
                        self.processors[i].unpublished = None;
                    }
                }
            }
            _ => {}
        }
    }

    fn owned(&mut self) -> PartitionSet {
        Partition::all().filter(|_| self.rng.random_bool(0.6)).collect()
    }
}

fn run(seed: u64) {
    let rng = StdRng::seed_from_u64(seed);
    let (instructions, events, sent) = (Vec::new(), Vec::new(), Vec::new());
    let mut world =
        World { rng, instructions, events, storer: Storer::default(), processors: Vec::new(), now_ms: 0, sent };
    for _ in 0..3 {
        let mut p = world.processor();
        p.core.handle_owned(world.owned());
        world.processors.push(p);
    }
    for _ in 0..1500 {
        match world.rng.random_range(0..100) {
            0..8 => world.send(false),
            8..11 => world.send(true),
            11..20 if (world.storer.sequence as usize) < world.events.len() => {
                let message = world.events[world.storer.sequence as usize].clone();
                world.storer.read(&message);
            }
            20 => {
                // Ownership moves without anybody asking the others: two may own a partition.
                let (i, owned) = (world.rng.random_range(0..3), world.owned());
                world.processors[i].core.handle_owned(owned);
            }
            21 if world.rng.random_bool(0.3) => {
                let i = world.rng.random_range(0..3);
                let mut p = world.processor();
                p.core.handle_owned(world.owned());
                world.processors[i] = p;
            }
            _ => {
                let i = world.rng.random_range(0..3);
                world.step(i);
            }
        }
    }
    // Zombies publish what they still hold; then one processor owns everything.
    for i in 0..3 {
        world.events.extend(world.processors[i].unpublished.take());
        world.processors[i].core.handle_owned(PartitionSet::EMPTY);
    }
    world.processors[0].core.handle_owned(PartitionSet::ALL);
    for _ in 0..20_000 {
        world.step(0);
        while (world.storer.sequence as usize) < world.events.len() {
            let message = world.events[world.storer.sequence as usize].clone();
            world.storer.read(&message);
        }
    }
    check(&world, seed);
}

fn check(world: &World, seed: u64) {
    let end = world.storer.cursors.lowest(&PartitionSet::ALL).unwrap();
    assert_eq!(end.sequence as usize, world.instructions.len(), "seed {seed}: not drained");
    // The naive model: each number once, in the order of the log.
    let (mut expect, mut seen, mut highest) = (HashMap::<String, String>::new(), HashSet::new(), HashMap::new());
    for message in &world.instructions {
        for record in decode_batch(message).unwrap().into_iter().filter_map(|r| Record::decode(r).ok()) {
            let (client, number) = (record.number.client.to_string(), record.number.number);
            let top = highest.entry((Partition::of(&record.document), client.clone())).or_insert(0);
            if number > *top && seen.insert((client.clone(), number)) {
                *top = number;
                expect.entry(record.document.to_string()).or_default().push_str(&format!("{client}:{number};"));
            }
        }
    }
    let got: HashMap<String, String> = world
        .storer
        .documents
        .iter()
        .filter_map(|(id, d)| match &d.body {
            Body::Text(text) => Some((id.to_string(), text.clone())),
            Body::Absent | Body::Structured(_) => None,
        })
        .collect();
    assert_eq!(got, expect, "seed {seed}");
    for ((client, number), outcomes) in &world.storer.outcomes {
        assert!(outcomes.iter().all(|o| o == &outcomes[0]), "seed {seed}: {client} {number} {outcomes:?}");
    }
    for (client, number, _) in &world.sent {
        assert!(world.storer.outcomes.contains_key(&(client.clone(), *number)), "seed {seed}: no outcome");
    }
}

#[test]
fn whoever_owns_what_every_instruction_is_applied_once_and_in_order() {
    for seed in 0..60 {
        run(seed);
    }
}
