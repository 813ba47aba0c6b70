//! The devices: the bytes they send, and whether what comes back is all that is due.

use crate::pipeline::Plan;
use fieldstream_shared::frame::{Attempt, Deframer, FromClient, Hello, Instruct, PROTOCOL_VERSION, Watch, WatchMode};
use fieldstream_shared::instruction::{Content, Operation};
use fieldstream_shared::limits::FRAME_BYTES_MAX;
use fieldstream_shared::outcome::AckLevel;

/// Bytes of each text, as in the benchmarks.
const TEXT_BYTES: usize = 500;

/// Any epoch as long as a real one, which is the wall clock in microseconds.
const EPOCH: u64 = 1_800_000_000_000_000;

/// The fleet: client i watches document i mod D and writes to it.
pub(crate) struct Devices {
    documents: usize,
    clients: usize,
    /// Highest number each client has sent.
    numbers: Vec<u64>,
    deframers: Vec<Deframer>,
    random: u64,
}

impl Devices {
    pub(crate) fn new(plan: &Plan) -> Devices {
        Devices {
            documents: plan.documents,
            clients: plan.documents * plan.watchers,
            numbers: vec![0; plan.documents * plan.watchers],
            deframers: (0..plan.documents * plan.watchers).map(|_| Deframer::default()).collect(),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    pub(crate) fn clients(&self) -> usize {
        self.clients
    }

    /// Those who watch the document a client writes to, itself among them.
    pub(crate) fn watchers_of(&self, client: usize) -> impl Iterator<Item = usize> + use<> {
        (client % self.documents..self.clients).step_by(self.documents)
    }

    /// What a client says first.
    pub(crate) fn hello(&self, client: usize) -> Vec<u8> {
        let (name, document) = (format!("client-{client:05}"), self.document(client));
        let watch = Watch { document: &document, revision: 0, state_hash: 0, mode: WatchMode::Changes };
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            client: &name,
            token: None,
            epoch: EPOCH,
            sent_upto: 0,
            watches: vec![watch],
            attempt: Attempt { instance: client as u64 + 1, number: 1 },
        };
        let mut out = Vec::new();
        FromClient::Hello(hello).encode(&mut out);
        out
    }

    /// A client's next instruction. All before it are resolved.
    pub(crate) fn instruct(&mut self, client: usize) -> Vec<u8> {
        self.numbers[client] += 1;
        let (number, document) = (self.numbers[client], self.document(client));
        let mut operation = Vec::new();
        Operation::PutText(self.text()).write(&mut operation);
        let content = Content { document: &document, if_revision: None, operation: &operation };
        let instruct =
            Instruct { number, settled: number, resent: false, ack: AckLevel::Applied, traced: false, content };
        let mut out = Vec::new();
        FromClient::Instruct(instruct).encode(&mut out);
        out
    }

    /// Takes bytes for a client, and tells how many frames came with them.
    ///
    /// # Panics
    /// If they are no frames.
    pub(crate) fn take(&mut self, client: usize, bytes: &[u8]) -> usize {
        let deframer = &mut self.deframers[client];
        deframer.push(bytes);
        let mut frames = 0;
        while deframer.next(FRAME_BYTES_MAX).expect("frames").is_some() {
            frames += 1;
        }
        assert!(!deframer.is_partial(), "half a frame for client {client}");
        frames
    }

    fn document(&self, client: usize) -> String {
        format!("guard/1a2b3c4d5e/{}", client % self.documents)
    }

    /// Texts that all differ, the same in every run.
    fn text(&mut self) -> String {
        (0..TEXT_BYTES)
            .map(|_| {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                char::from(b'a' + (self.random >> 32) as u8 % 26)
            })
            .collect()
    }
}
