//! The handle programs hold.

use crate::driver::{Driver, Shared, Wish, wall_us};
use crate::error::ClientError;
use crate::journal_writer::keep_journal;
use crate::options::{ClientOptions, How, LateRefusal, Receipt, Status};
use crate::session::Session;
use crate::session::numbers::{Instruction, Numbers, Restored};
use crate::session::requests::{Answer, Request};
use crate::state_file::StateFile;
use crate::transport::Connector;
use crate::watch::Watch;
use fieldstream_shared::code::Code;
use fieldstream_shared::document::Document;
use fieldstream_shared::frame::WatchMode;
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::instruction::{Content, Operation};
use fieldstream_shared::limits::{DOCUMENT_ID_BYTES_MAX, INSTRUCTION_BYTES_MAX, LIST_PAGE_MAX, TOKEN_BYTES_MAX};
use fieldstream_shared::outcome::AckLevel;
use fieldstream_shared::read::Listed;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// A client of a Fieldstream server: one persistent connection that is made again whenever it
/// breaks. Cheap to clone; the connection ends when the last clone, [`Watch`] and [`Pending`] are
/// gone.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

/// Ends the driver when nobody holds the client any more.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    id: ClientId,
    tasks: Tasks,
}

/// The client's tasks that have not been seen to end.
#[derive(Debug, Default)]
struct Tasks(tokio::sync::Mutex<Vec<JoinHandle<()>>>);

impl Tasks {
    /// Waits until all have ended, whoever else waits for them. They end by themselves, within their
    /// own time limits, once the driver has stopped.
    async fn ended(&self) {
        let mut tasks = self.0.lock().await;
        while let Some(task) = tasks.last_mut() {
            let _ = task.await;
            tasks.pop();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.wish(Wish::Stop);
    }
}

impl Client {
    /// Connects to `quic://host:port`, `tls://host:port` or `tcp://host:port`. Tries once; after
    /// that the client keeps connected by itself. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Whatever keeps the first session from beginning, in words a person can act on.
    pub async fn connect(url: &str, options: ClientOptions) -> Result<Client, ClientError> {
        let fresh = format!("anon-{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
        let asked = options.client_id.as_deref().map(ClientId::new).transpose()?;
        let fresh = ClientId::new(&fresh)?;
        let token_bytes = options.token.as_ref().map_or(0, String::len);
        if token_bytes > TOKEN_BYTES_MAX {
            let reason = format!("the token has {token_bytes} bytes, more than {TOKEN_BYTES_MAX}");
            return Err(ClientError::Closed { code: Code::UNAUTHORIZED, reason });
        }
        let connector = Connector::new(url, options.ca_file.as_deref(), options.quic_socket)?;
        let (file, id, restored) = match options.state_file {
            Some(path) => {
                let opening =
                    tokio::task::spawn_blocking(move || StateFile::open(&path, asked.as_ref(), &fresh, wall_us()));
                let (file, id, restored) = opening.await.map_err(|_| ClientError::Ended)??;
                (Some(file), id, restored)
            }
            None => (None, asked.unwrap_or(fresh), Restored { epoch: wall_us(), ..Restored::default() }),
        };
        let numbers = Numbers::new(restored, file.is_some());
        let session = Session::new(id.clone(), options.token, rand::random(), numbers, Instant::now().into_std());
        let shared = Arc::new(Shared::new(session));
        let journal = file.map(|file| tokio::spawn(keep_journal(Arc::clone(&shared), file)));
        let driver = Driver {
            shared: Arc::clone(&shared),
            connector,
            connect_timeout: options.connect_timeout,
            reconnect: options.reconnect,
        };
        let (started, starting) = oneshot::channel();
        let driver = tokio::spawn(driver.run(started));
        let tasks = Tasks(tokio::sync::Mutex::new(journal.into_iter().chain([driver]).collect()));
        let inner = Inner { shared, id, tasks };
        if let Err(error) = starting.await.unwrap_or(Err(ClientError::Ended)) {
            // Who tries again with the same state file must find it free.
            inner.tasks.ended().await;
            return Err(error);
        }
        Ok(Client { inner: Arc::new(inner) })
    }

    /// The client's id.
    pub fn id(&self) -> &ClientId {
        &self.inner.id
    }

    /// Has an instruction carried out and waits until it is applied.
    ///
    /// # Errors
    /// [`ClientError::Refused`] and [`ClientError::Dead`] are final outcomes; on others the outcome
    /// is not known.
    ///
    /// # Cancel safety
    /// Dropped before it is sent, nothing happens; dropped later, the instruction goes on.
    pub async fn instruct(&self, document: &str, operation: Operation) -> Result<Receipt, ClientError> {
        self.instruct_with(document, operation, How::default()).await
    }

    /// Has an instruction carried out under a condition, and waits for the level asked for.
    ///
    /// # Errors
    /// As [`Client::instruct`].
    pub async fn instruct_with(&self, document: &str, operation: Operation, how: How) -> Result<Receipt, ClientError> {
        self.submit(document, operation, how).await?.await
    }

    /// Waits for a place in the window, numbers the instruction and sends it, or keeps it for the
    /// next connection. Instructions are numbered in the order of the calls. The outcome is in the
    /// [`Pending`]; dropping that does not take the instruction back.
    ///
    /// # Errors
    /// A refusal that needs no server (form, size, id), or the end of the client.
    pub async fn submit(&self, document: &str, operation: Operation, how: How) -> Result<Pending, ClientError> {
        self.submit_as(document, operation, how, false).await
    }

    /// As [`Client::submit`], and asks all hops to note when they had it.
    pub(crate) async fn submit_traced(
        &self,
        document: &str,
        operation: Operation,
        how: How,
    ) -> Result<Pending, ClientError> {
        self.inner.shared.with(|session| {
            session.traces(Instant::now().into_std(), wall_us());
        });
        self.submit_as(document, operation, how, true).await
    }

    async fn submit_as(
        &self,
        document: &str,
        operation: Operation,
        how: How,
        traced: bool,
    ) -> Result<Pending, ClientError> {
        let document = DocumentId::new(document)?;
        let operation = encode(&document, &how, &operation)?;
        let instruction = Instruction { document, if_revision: how.if_revision, operation, ack: how.ack, traced };
        let (mut waiter, receiver) = oneshot::channel();
        let shared = &self.inner.shared;
        let turn = shared.line.lock().await;
        loop {
            match shared.with(|session| session.submit(&instruction, waiter))? {
                None => break,
                Some(back) => waiter = back,
            }
            shared.room.notified().await;
        }
        drop(turn);
        shared.journal.notify_one();
        shared.work.notify_one();
        Ok(Pending { receiver, _client: Arc::clone(&self.inner) })
    }

    /// Refusals that nobody waits for (see [`LateRefusal`]): for the first caller those since the
    /// client began, among them those of what a state file brought, for later ones from now on.
    pub fn late_refusals(&self) -> LateRefusals {
        let (early, receiver) = self.inner.shared.with(|session| session.late.subscribe());
        LateRefusals { early, receiver }
    }

    /// Watches a document: keeps a replica of it and tells of every change.
    ///
    /// # Errors
    /// [`ClientError::Refused`] without the right to read it.
    pub async fn watch(&self, document: &str) -> Result<Watch, ClientError> {
        self.watch_with(document, WatchMode::Changes).await
    }

    /// Watches a document, asking for changes or for the whole document at every change. Waits
    /// until the first state is here.
    ///
    /// # Errors
    /// As [`Client::watch`].
    pub async fn watch_with(&self, document: &str, mode: WatchMode) -> Result<Watch, ClientError> {
        let document = DocumentId::new(document)?;
        let opening = self.inner.shared.with(|session| session.watch(&document, mode))?;
        let watch = Watch::new(Arc::clone(&self.inner), document, opening.handle, opening.wake);
        self.inner.shared.work.notify_one();
        if let Some(opened) = opening.opened {
            opened.await.map_err(|_| ClientError::Ended)??;
        }
        Ok(watch)
    }

    /// Reads a document; one that never was has revision 0 and an absent body.
    ///
    /// # Errors
    /// [`ClientError::Refused`] without the right to read it.
    pub async fn get(&self, document: &str) -> Result<Document, ClientError> {
        let document = DocumentId::new(document)?;
        self.ask(|answer| Request::Get { document, answer }).await
    }

    /// Lists the documents whose ids begin with `prefix`, in order of their ids, page by page.
    ///
    /// # Errors
    /// [`ClientError::Refused`] without the right to list them.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>, ClientError> {
        if prefix.len() > DOCUMENT_ID_BYTES_MAX {
            // No id is that long.
            return Ok(Vec::new());
        }
        let mut listed: Vec<Listed> = Vec::new();
        loop {
            let after = listed.last().map_or_else(String::new, |last| last.document.as_str().to_owned());
            let prefix = prefix.to_owned();
            let page = self.ask(|answer| Request::List { prefix, after: after.clone(), answer }).await?;
            if page.first().is_some_and(|first| !after.is_empty() && first.document.as_str() <= after.as_str()) {
                return Err(ClientError::Protocol("a page of a listing that does not go on".into()));
            }
            let last_page = page.len() < LIST_PAGE_MAX;
            listed.extend(page);
            if last_page {
                return Ok(listed);
            }
        }
    }

    /// Waits until everything of this client that was applied is stored.
    ///
    /// # Errors
    /// The end of the client.
    pub async fn sync(&self) -> Result<(), ClientError> {
        self.ask(|answer| Request::Sync { answer }).await
    }

    /// Waits until everything of this client is resolved and stored, then ends it, for all clones.
    /// Whatever comes of it, the state file, if there is one, is free for the next client then.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`] if that took too long: what is unresolved then has an unknown
    /// outcome, unless a state file keeps it.
    pub async fn close(self, deadline: Duration) -> Result<(), ClientError> {
        let result = timeout(deadline, async {
            self.quiet().await?;
            self.pass_logged().await?;
            self.sync().await
        })
        .await
        .unwrap_or(Err(ClientError::TimedOut));
        self.inner.shared.wish(Wish::Stop);
        self.inner.tasks.ended().await;
        result
    }

    /// Drops the connection as a network failure would. The client connects again and resumes.
    pub fn interrupt(&self) {
        self.inner.shared.wish(Wish::Interrupt);
    }

    /// The client's state now.
    pub fn status(&self) -> Status {
        self.inner.shared.with(|session| session.status())
    }

    async fn quiet(&self) -> Result<(), ClientError> {
        let shared = &self.inner.shared;
        loop {
            let mut quiet = std::pin::pin!(shared.quiet.notified());
            quiet.as_mut().enable();
            let done = shared.with(|session| match session.failed() {
                Some(error) => Some(Err(error.clone())),
                None => session.numbers.is_quiet().then_some(Ok(())),
            });
            match done {
                Some(result) => return result,
                None => quiet.await,
            }
        }
    }

    /// Waits until what was resolved as logged is applied: a partition carries instructions out in
    /// order, so one behind them that changes nothing tells.
    async fn pass_logged(&self) -> Result<(), ClientError> {
        let mut passing = Vec::new();
        for document in self.inner.shared.with(|session| session.numbers.take_only_logged()) {
            // No document is ever at this revision.
            let how = How { if_revision: Some(u64::MAX), ack: AckLevel::Applied };
            passing.push(self.submit(&document, Operation::Delete, how).await?);
        }
        for pending in passing {
            match pending.await {
                Ok(_) | Err(ClientError::Refused(_) | ClientError::Dead(_) | ClientError::OutcomeUnknown) => {}
                Err(error) => return Err(error),
            }
        }
        self.quiet().await
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, ClientError> {
        let (answer, receiver) = oneshot::channel();
        let number = self.inner.shared.with(|session| session.ask(request(answer)));
        let _cancelled = Cancel { shared: &self.inner.shared, number };
        self.inner.shared.work.notify_one();
        receiver.await.map_err(|_| ClientError::Ended)?
    }
}

/// Forgets a request that nobody waits for any more.
struct Cancel<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        self.shared.with(|session| session.cancel(self.number));
    }
}

/// Encodes an operation. What every server would refuse for its form is refused here: some of it,
/// such as too deep nesting, would cost the connection.
fn encode(document: &DocumentId, how: &How, operation: &Operation) -> Result<Box<[u8]>, ClientError> {
    let mut bytes = Vec::new();
    operation.write(&mut bytes);
    let content = Content { document, if_revision: how.if_revision, operation: &bytes };
    match operation {
        Operation::PutText(_) | Operation::Append(_) | Operation::Delete => {
            if content.encoded_bytes() > INSTRUCTION_BYTES_MAX {
                return Err(ClientError::Refused(Code::TOO_LARGE));
            }
        }
        Operation::PutMap(_)
        | Operation::Splice(_)
        | Operation::Merge(_)
        | Operation::Add(..)
        | Operation::Custom(..) => {
            content.check().map_err(ClientError::Refused)?;
        }
    }
    Ok(bytes.into())
}

/// An instruction under way; resolves with its outcome.
#[derive(Debug)]
#[must_use = "the outcome is lost if nobody awaits it"]
pub struct Pending {
    receiver: oneshot::Receiver<Result<Receipt, ClientError>>,
    _client: Arc<Inner>,
}

impl Future for Pending {
    type Output = Result<Receipt, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(cx).map(|result| result.unwrap_or(Err(ClientError::Ended)))
    }
}

/// Receives [`LateRefusal`]s. One that falls far behind loses the oldest.
#[derive(Debug)]
pub struct LateRefusals {
    early: VecDeque<LateRefusal>,
    receiver: broadcast::Receiver<LateRefusal>,
}

impl LateRefusals {
    /// The next one; `None` after the client's end.
    ///
    /// # Cancel safety
    /// Nothing is lost if it is dropped.
    pub async fn next(&mut self) -> Option<LateRefusal> {
        if let Some(early) = self.early.pop_front() {
            return Some(early);
        }
        loop {
            match self.receiver.recv().await {
                Ok(refusal) => return Some(refusal),
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "late refusals were lost because nobody took them");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
