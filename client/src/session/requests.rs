//! Requests that wait for an answer: GET, LIST, SYNC. Asked again on every new connection.

use super::assembly::{Assembled, Assembly};
use crate::error::ClientError;
use fieldstream_shared::code::Code;
use fieldstream_shared::document::Document;
use fieldstream_shared::frame::{FromClient, Snapshot};
use fieldstream_shared::ids::DocumentId;
use fieldstream_shared::limits::LIST_PAGE_MAX;
use fieldstream_shared::read::Listed;
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// Where an answer goes.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, ClientError>>;

/// A request and where its answer goes.
#[derive(Debug)]
pub(crate) enum Request {
    Get { document: DocumentId, answer: Answer<Document> },
    List { prefix: String, after: String, answer: Answer<Vec<Listed>> },
    Sync { answer: Answer<()> },
}

#[derive(Debug)]
struct Asked {
    request: Request,
    assembly: Assembly,
}

/// Requests without an answer, by number.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    asked: BTreeMap<u64, Asked>,
    last: u64,
}

impl Requests {
    /// Takes a request and returns its number. `out` takes the frame; `None` without a connection.
    pub(crate) fn ask(&mut self, request: Request, out: Option<&mut Vec<u8>>) -> u64 {
        self.last += 1;
        let asked = Asked { request, assembly: Assembly::default() };
        if let Some(out) = out {
            asked.request.encode(self.last, out);
        }
        self.asked.insert(self.last, asked);
        self.last
    }

    /// Whether nothing is asked.
    pub(crate) fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Nobody waits any more.
    pub(crate) fn cancel(&mut self, number: u64) {
        self.asked.remove(&number);
    }

    /// Asks everything again.
    pub(crate) fn ask_all(&mut self, out: &mut Vec<u8>) {
        for (number, asked) in &mut self.asked {
            asked.assembly = Assembly::default();
            asked.request.encode(*number, out);
        }
    }

    /// Asks one thing again.
    pub(crate) fn ask_again(&mut self, number: u64, out: &mut Vec<u8>) {
        if let Some(asked) = self.asked.get(&number) {
            asked.request.encode(number, out);
        }
    }

    /// GOT: a document, or a piece of one.
    pub(crate) fn got(&mut self, number: u64, piece: &Snapshot<'_>) {
        let Some(asked) = self.asked.get_mut(&number) else { return };
        let result = match asked.assembly.take(piece) {
            Assembled::Partial => return,
            Assembled::Whole(document, _) => Ok(document),
            Assembled::Misfit => Err(ClientError::Protocol("a document that does not fit its hash or length".into())),
        };
        match self.asked.remove(&number).map(|asked| asked.request) {
            Some(Request::Get { answer, .. }) => drop(answer.send(result)),
            Some(other) => other.fail(ClientError::Protocol("a document for another request".into())),
            None => {}
        }
    }

    /// LISTED: a page.
    pub(crate) fn listed(&mut self, number: u64, documents: Vec<Listed>) {
        match self.asked.remove(&number).map(|asked| asked.request) {
            Some(Request::List { answer, .. }) => drop(answer.send(Ok(documents))),
            Some(other) => other.fail(ClientError::Protocol("a listing for another request".into())),
            None => {}
        }
    }

    /// SYNCED.
    pub(crate) fn synced(&mut self, number: u64) {
        match self.asked.remove(&number).map(|asked| asked.request) {
            Some(Request::Sync { answer }) => drop(answer.send(Ok(()))),
            Some(other) => other.fail(ClientError::Protocol("synced for another request".into())),
            None => {}
        }
    }

    /// REFUSED. Returns whether to ask again later.
    pub(crate) fn refused(&mut self, number: u64, code: Code) -> bool {
        if code == Code::UNAVAILABLE {
            return self.asked.contains_key(&number);
        }
        if let Some(asked) = self.asked.remove(&number) {
            asked.request.fail(ClientError::Refused(code));
        }
        false
    }

    /// There will be no answers.
    pub(crate) fn fail(&mut self, error: &ClientError) {
        for asked in std::mem::take(&mut self.asked).into_values() {
            asked.request.fail(error.clone());
        }
    }
}

impl Request {
    fn encode(&self, request: u64, out: &mut Vec<u8>) {
        match self {
            Request::Get { document, .. } => FromClient::Get { request, document }.encode(out),
            Request::List { prefix, after, .. } => {
                FromClient::List { request, prefix, after, limit: LIST_PAGE_MAX as u64 }.encode(out);
            }
            Request::Sync { .. } => FromClient::Sync { request }.encode(out),
        }
    }

    /// Tells who waits that there will be no answer.
    pub(crate) fn fail(self, error: ClientError) {
        match self {
            Request::Get { answer, .. } => drop(answer.send(Err(error))),
            Request::List { answer, .. } => drop(answer.send(Err(error))),
            Request::Sync { answer } => drop(answer.send(Err(error))),
        }
    }
}
