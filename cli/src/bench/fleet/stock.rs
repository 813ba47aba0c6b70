//! Documents that are there before anything is measured: each is put once, as fast as the server
//! takes them, and nobody watches them.

use super::{AckLevel, Client, Content, Fleet, FromClient, Instruct, Label, OUTBOX_BYTES_MAX};

/// Which step their texts are of: none that a run has.
const STEP: u16 = u16::MAX;

impl Fleet {
    /// Has the clients put so many documents, in turn; they count as stored at `ack`.
    pub(in crate::bench) fn begin_stock(&mut self, documents: u32, ack: AckLevel) {
        self.stock_ack = Some(ack);
        let clients = self.clients.len();
        for i in 0..clients {
            self.clients[i].begin();
            self.clients[i].due = (documents as usize + clients - 1 - i).div_euclid(clients) as u32;
            self.list(i);
        }
    }

    /// How many of them are still to be acknowledged.
    pub(in crate::bench) fn stock_missing(&self) -> u64 {
        let missing = |client: &Client| u64::from(client.due - client.sent) + client.window.unresolved();
        self.clients.iter().map(missing).sum()
    }

    /// All of them are there.
    pub(in crate::bench) fn end_stock(&mut self) {
        self.stock_ack = None;
        self.clients.iter_mut().for_each(Client::begin);
    }

    /// Puts as many as a client may into its outbox.
    pub(super) fn put_stock(&mut self, i: usize, ack: AckLevel, now_ns: u64) {
        let client = &mut self.clients[i];
        while client.may_send(now_ns) && client.outbox.pending().len() < OUTBOX_BYTES_MAX {
            let index = self.common.layout.index(i, client.sent);
            client.sent += 1;
            let (number, settled) = client.window.take_uncounted();
            self.operation.clear();
            self.payloads.write_operation(Label { step: STEP, index }, &mut self.operation);
            let document = format!("{}stock/{index}", self.common.document_prefix);
            let content = Content { document: &document, if_revision: None, operation: &self.operation };
            let instruct = Instruct { number, settled, resent: false, ack, traced: false, content };
            FromClient::Instruct(instruct).encode(&mut client.outbox.bytes);
            client.sent_ns = now_ns;
        }
    }
}
