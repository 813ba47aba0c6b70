//! A real nats-server, a gateway, plain clients, and a stand-in for processor and storer: one task
//! that applies what is in INSTRUCTIONS and publishes event batches, and answers as a storer would.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

use bytes::Bytes;
use fieldstream_gateway::{Gateway, GatewayLimits, GatewayOptions, TlsOptions, TokenPolicy};
use fieldstream_nats::{
    BatchWriter, ChildOptions, Connection, Health, Log, LogReader, NatsChild, Profile, ReadServer, Server, Start,
    Topology, TopologyOptions, publish_progress,
};
use fieldstream_shared::change::{Version, write_change};
use fieldstream_shared::cursor::{BatchId, Cursor, Cursors, Part, Position};
use fieldstream_shared::document::Document;
use fieldstream_shared::event::{Event, EventBody, Origin, encode_event_batch};
use fieldstream_shared::frame::{Attempt, Deframer, FromClient, FromServer, Hello, Instruct, Watch};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::instruction::{Content, Operation, decide};
use fieldstream_shared::marks::{Mark, Verdict};
use fieldstream_shared::msgpack::decode;
use fieldstream_shared::outcome::{AckLevel, Outcome};
use fieldstream_shared::partition::{Partition, PartitionSet};
use fieldstream_shared::read::{Answer, AnswerBody, Checkpoint, HistoryEntry, Listed, Progress, Query};
use fieldstream_shared::record::{Action, BatchBuilder, Record, decode_batch};
use fieldstream_shared::registry::Registry;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub const WAIT: Duration = Duration::from_secs(20);

#[derive(Default)]
pub struct Stored {
    pub documents: BTreeMap<DocumentId, Document>,
    pub history: HashMap<DocumentId, Vec<HistoryEntry>>,
    pub sequence: u64,
    pub cursors: Cursors,
    pub counter: u64,
    pub marks: HashMap<(Partition, ClientId), Mark>,
    /// Offer a checkpoint whose cursors name this INSTRUCTIONS message; none without.
    pub announce_checkpoint_at: Option<u64>,
}

pub struct World {
    pub nats: NatsChild,
    pub connection: Connection,
    pub topology: Topology,
    pub stored: Arc<Mutex<Stored>>,
    /// Whether the stand-in announces progress and answers reads.
    pub storer_on: Arc<AtomicBool>,
    pub processor_on: Arc<AtomicBool>,
    directory: TempDir,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

pub fn nats_binary() -> PathBuf {
    let named = std::env::var_os("FIELDSTREAM_NATS_SERVER").map(PathBuf::from);
    let cached = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.cache/nats-server");
    named.unwrap_or_else(|| if cached.exists() { cached } else { PathBuf::from("nats-server") })
}

impl World {
    pub async fn start() -> World {
        let directory = tempfile::tempdir().unwrap();
        let child =
            ChildOptions { binary: nats_binary(), directory: directory.path().join("nats"), profile: Profile::Fast };
        let nats = NatsChild::start(child).await.unwrap();
        let connection = Connection::connect(nats.server(), "stand-in").await.unwrap();
        let topology = Topology::create(
            &connection,
            &TopologyOptions { lanes: Some(1), max_bytes_total: Some(256 << 20), ..Default::default() },
        )
        .await
        .unwrap();
        let mut world = World {
            nats,
            connection,
            topology,
            stored: Arc::default(),
            storer_on: Arc::new(AtomicBool::new(true)),
            processor_on: Arc::new(AtomicBool::new(true)),
            directory,
            tasks: Vec::new(),
        };
        world.tasks.push(tokio::spawn(process(
            world.connection.clone(),
            Arc::clone(&world.stored),
            Arc::clone(&world.processor_on),
        )));
        world.tasks.push(tokio::spawn(answer(
            world.connection.clone(),
            topology,
            Arc::clone(&world.stored),
            Arc::clone(&world.storer_on),
        )));
        world.tasks.push(tokio::spawn(announce(
            world.connection.clone(),
            topology,
            Arc::clone(&world.stored),
            Arc::clone(&world.storer_on),
        )));
        world
    }

    pub fn server(&self) -> &Server {
        self.nats.server()
    }

    pub fn options(&self) -> GatewayOptions {
        GatewayOptions {
            nats: self.server().clone(),
            tcp: Some("127.0.0.1:0".parse().unwrap()),
            tls: None,
            tokens: TokenPolicy::loopback_open(),
            stored_copies: 1,
            limits: GatewayLimits::default(),
            health: Health::new(),
        }
    }

    pub async fn gateway(&self) -> Gateway {
        Gateway::start(self.options()).await.unwrap()
    }

    /// A certificate for localhost, for TLS and QUIC.
    pub fn tls(&self) -> (TlsOptions, rustls::pki_types::CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (certificate_file, key_file) =
            (self.directory.path().join("certificate.pem"), self.directory.path().join("key.pem"));
        std::fs::write(&certificate_file, made.cert.pem()).unwrap();
        std::fs::write(&key_file, made.signing_key.serialize_pem()).unwrap();
        let options = TlsOptions { listen: "127.0.0.1:0".parse().unwrap(), certificate_file, key_file };
        (options, made.cert.der().clone())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

async fn process(connection: Connection, stored: Arc<Mutex<Stored>>, on: Arc<AtomicBool>) {
    let start = Start { sequence: 0, hash: None };
    let mut reader = LogReader::open(&connection, Log::Instructions, 0, start).await.unwrap();
    let writer = BatchWriter::new(&connection, Log::Events, 0);
    loop {
        let message = match reader.next().await {
            Ok(message) => message,
            Err(error) => {
                // Nothing more is applied; tests that wait for it say so.
                eprintln!("the processor of this test has ended: {error}");
                return;
            }
        };
        while !on.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (batch, after) = {
            let mut stored = stored.lock().unwrap();
            apply(&mut stored, message.sequence, &message.payload)
        };
        let sequence = loop {
            match writer.append(batch.clone()).await {
                Ok(sequence) => break sequence,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let mut stored = stored.lock().unwrap();
        stored.sequence = sequence;
        stored.cursors = after;
    }
}

fn apply(stored: &mut Stored, sequence: u64, payload: &[u8]) -> (Bytes, Cursors) {
    stored.counter += 1;
    let id = BatchId { incarnation: 1, counter: stored.counter };
    let records = decode_batch(payload).unwrap();
    let upto = Position { sequence, records: records.len() as u32 };
    let mut by_cursor: HashMap<_, PartitionSet> = HashMap::new();
    for p in Partition::all() {
        by_cursor.entry(stored.cursors.get(p)).or_default().insert(p);
    }
    let parts: Vec<Part> = by_cursor.into_iter().map(|(after, partitions)| Part { partitions, after, upto }).collect();
    let mut events = BatchBuilder::default();
    for (index, bytes) in (0..).zip(records) {
        let record = Record::decode(bytes).unwrap();
        let partition = Partition::of(&record.document);
        let client = record.number.client.clone();
        let mark = stored.marks.entry((partition, client.clone())).or_default();
        let body = match (mark.judge(&record.arrival), record.action) {
            (_, Action::Forget) => EventBody::Forgotten(false),
            (Verdict::Repeated(outcome), _) => EventBody::Repeated(outcome),
            (Verdict::Refused(code), _) | (Verdict::Fresh, Action::Refuse(code)) => EventBody::Refused(code),
            (Verdict::Fresh, Action::Instruct { if_revision, operation }) => {
                let document = stored.documents.entry(record.document.clone()).or_default();
                let operation = decode(operation, Operation::read).unwrap();
                match decide(document, if_revision, operation, &Registry::default()) {
                    Err(code) => EventBody::Refused(code),
                    Ok(change) => {
                        change.iter().for_each(|p| p.apply(&mut document.body).unwrap());
                        document.revision += 1;
                        document.time_us = record.received_at_us;
                        let version = Version {
                            revision: document.revision,
                            state_hash: document.hash(),
                            time_us: document.time_us,
                        };
                        let mut encoded = Vec::new();
                        write_change(&change, &mut encoded);
                        let number = record.arrival.number;
                        let entry = HistoryEntry { version, client: client.clone(), number, change: encoded };
                        stored.history.entry(record.document.clone()).or_default().push(entry);
                        EventBody::Updated { version, change }
                    }
                }
            }
        };
        let origin = Some(Origin { client, arrival: record.arrival, document: record.document });
        let event = Event {
            partition,
            sequence,
            index,
            origin,
            received_at_us: record.received_at_us,
            body,
            trace: record.trace,
        };
        event.fold_into(mark);
        events.push(&event.encode());
    }
    let mut after = stored.cursors.clone();
    after.accept(id, &parts);
    (Bytes::from(encode_event_batch(id, &parts, &events)), after)
}

async fn answer(connection: Connection, topology: Topology, stored: Arc<Mutex<Stored>>, on: Arc<AtomicBool>) {
    let mut server = ReadServer::subscribe(&connection).await.unwrap();
    while let Some(call) = server.next().await {
        while !on.load(Ordering::Relaxed) || stored.lock().unwrap().sequence < call.request.min_sequence {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let answer = {
            let stored = stored.lock().unwrap();
            let body = match &call.request.query {
                Query::GetMany { documents, .. } => AnswerBody::Values {
                    documents: documents.iter().map(|d| stored.documents.get(d).cloned().unwrap_or_default()).collect(),
                    marks: Vec::new(),
                },
                Query::History { document, from, .. } => {
                    let entries = stored.history.get(document).cloned().unwrap_or_default();
                    AnswerBody::History(entries.into_iter().filter(|e| e.version.revision >= *from).collect())
                }
                Query::List { prefix, after, limit } => AnswerBody::List(
                    (stored.documents.iter())
                        .filter(|(id, d)| id.starts_with(prefix.as_str()) && id.as_str() > after.as_str() && d.exists())
                        .take(*limit as usize)
                        .map(|(id, d)| Listed {
                            document: id.clone(),
                            revision: d.revision,
                            kind: d.body.kind(),
                            bytes: d.body.encoded_bytes() as u64,
                            time_us: d.time_us,
                        })
                        .collect(),
                ),
                // Without a checkpoint gateways read from the beginning.
                Query::DeadLetters { .. } => AnswerBody::DeadLetters(Vec::new()),
                Query::Checkpoint => match stored.announce_checkpoint_at {
                    None => AnswerBody::Behind,
                    Some(sequence) => {
                        let mut cursors = Cursors::default();
                        let position = Position { sequence, records: 1 };
                        cursors.set(Partition(0), Cursor { position, set_by: None });
                        let (log_id, lanes) = (topology.log_id, topology.lanes);
                        let (events_sequence, events_hash) = (0, 0);
                        AnswerBody::Checkpoint(Box::new(Checkpoint {
                            log_id,
                            lanes,
                            events_sequence,
                            events_hash,
                            cursors,
                        }))
                    }
                },
            };
            Answer { sequence: stored.sequence, body }
        };
        call.respond(&answer).await;
    }
}

async fn announce(connection: Connection, topology: Topology, stored: Arc<Mutex<Stored>>, on: Arc<AtomicBool>) {
    loop {
        if on.load(Ordering::Relaxed) {
            let sequence = stored.lock().unwrap().sequence;
            let progress = Progress { storer: 1, log_id: topology.log_id, lane: 0, sequence };
            publish_progress(&connection, &progress).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for S {}

/// A client that speaks frames.
pub struct Client {
    pub stream: Box<dyn Wire>,
    deframer: Deframer,
    pub number: u64,
    pub epoch: u64,
}

pub fn put(text: &str) -> Operation {
    Operation::PutText(text.into())
}

pub fn append(text: &str) -> Operation {
    Operation::Append(text.into())
}

impl Client {
    pub fn over(stream: impl Wire + 'static) -> Client {
        Client { stream: Box::new(stream), deframer: Deframer::default(), number: 0, epoch: 5 }
    }

    pub async fn raw(address: SocketAddr) -> Client {
        Client::over(TcpStream::connect(address).await.unwrap())
    }

    pub async fn connect(address: SocketAddr, id: &str, watches: Vec<Watch<'_>>) -> Client {
        let mut client = Client::raw(address).await;
        client.hello(id, None, watches).await;
        client.expect_welcome().await;
        client
    }

    pub async fn hello(&mut self, id: &str, token: Option<&str>, watches: Vec<Watch<'_>>) {
        let epoch = self.epoch;
        let sent_upto = self.number;
        let attempt = Attempt::default();
        let hello = Hello { protocol: 1, client: id, token, epoch, sent_upto, watches, attempt };
        self.send(&FromClient::Hello(hello)).await;
    }

    pub async fn expect_welcome(&mut self) {
        let payload = self.next().await;
        assert!(matches!(FromServer::decode(&payload), Ok(FromServer::Welcome(_))), "{payload:?}");
    }

    pub async fn send(&mut self, frame: &FromClient<'_>) {
        let mut out = Vec::new();
        frame.encode(&mut out);
        self.stream.write_all(&out).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub async fn instruct(&mut self, document: &str, operation: &Operation, ack: AckLevel) -> u64 {
        self.number += 1;
        self.send_number(self.number, document, operation, ack, false).await;
        self.number
    }

    pub async fn send_number(
        &mut self,
        number: u64,
        document: &str,
        operation: &Operation,
        ack: AckLevel,
        resent: bool,
    ) {
        let mut bytes = Vec::new();
        operation.write(&mut bytes);
        let content = Content { document, if_revision: None, operation: &bytes };
        let settled = number.saturating_sub(31).max(1);
        self.send(&FromClient::Instruct(Instruct { number, settled, resent, traced: false, ack, content })).await;
    }

    /// The next payload, `None` at the end of the stream.
    pub async fn try_next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(payload) = self.deframer.next(1 << 20).unwrap() {
                return Some(payload.to_vec());
            }
            let mut bytes = vec![0; 65_536];
            let n = timeout(WAIT, self.stream.read(&mut bytes)).await.expect("nothing came").unwrap_or(0);
            if n == 0 {
                return None;
            }
            self.deframer.push(&bytes[..n]);
        }
    }

    pub async fn next(&mut self) -> Vec<u8> {
        self.try_next().await.expect("the stream ended")
    }

    pub async fn outcome(&mut self) -> (u64, AckLevel, Option<Outcome>) {
        loop {
            let payload = self.next().await;
            if let Ok(FromServer::Outcome { number, level, outcome, .. }) = FromServer::decode(&payload) {
                return (number, level, outcome);
            }
        }
    }

    pub async fn put(&mut self, document: &str, text: &str) -> (u64, AckLevel, Option<Outcome>) {
        self.instruct(document, &put(text), AckLevel::Applied).await;
        self.outcome().await
    }

    /// Reads until CLOSE; its code.
    pub async fn close_code(&mut self) -> (fieldstream_shared::code::Code, u64) {
        loop {
            let payload = self.next().await;
            if let Ok(FromServer::Close { code, retry_after_ms, .. }) = FromServer::decode(&payload) {
                return (code, retry_after_ms);
            }
        }
    }
}
