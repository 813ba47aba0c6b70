//! The tasks that put questions to the storers: loads of watched documents, GET and SYNC.

use crate::hub::Load;
use crate::mailbox::{Mailbox, frame};
use crate::shared::{Lane, Shared};
use bytes::Bytes;
use fieldstream_nats::{Log, ReadError, last_sequence};
use fieldstream_shared::code::Code;
use fieldstream_shared::frame::{FromServer, encode_document};
use fieldstream_shared::ids::DocumentId;
use fieldstream_shared::read::{Answer, AnswerBody, Query, Request};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// Documents in one question; keeps one answer to some MiB even if each is large.
const LOADS_PER_REQUEST: usize = 64;
/// Questions of one lane at once.
const REQUESTS_AT_ONCE: usize = 4;
/// How often SYNCs that have waited too long are looked for.
const EXPIRE_EVERY: Duration = Duration::from_millis(500);
/// After the answer of a storer that is behind.
const BEHIND_RETRY: Duration = Duration::from_millis(20);
/// After a question without answer.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Loads what a lane's hub wants, until the gateway stops. Like every writer, it collects while
/// questions are open: a storm of watches becomes few questions.
pub(crate) async fn load_lane(shared: Arc<Shared>, lane: u16) {
    let places = Arc::new(Semaphore::new(REQUESTS_AT_ONCE));
    let work = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let mut loads = shared.lanes[usize::from(lane)].take_loads(LOADS_PER_REQUEST);
            if loads.is_empty() {
                drop(place);
                shared.lanes[usize::from(lane)].loads_wanted.notified().await;
                continue;
            }
            let histories: Vec<Load> = loads.extract_if(.., |load| load.history.is_some()).collect();
            let shared = Arc::clone(&shared);
            let tasks = shared.tasks.clone();
            tasks.spawn(async move {
                let _place = place;
                let stopped = shared.stopped.clone();
                let answered = async {
                    load_documents(&shared, lane, loads).await;
                    for load in histories {
                        load_history(&shared, lane, load).await;
                    }
                };
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = answered => {}
                }
            });
        }
    };
    tokio::select! {
        () = shared.stopped.cancelled() => {}
        () = work => {}
    }
}

async fn load_documents(shared: &Shared, lane: u16, mut loads: Vec<Load>) {
    let this = &shared.lanes[usize::from(lane)];
    this.step(|hub, _| loads.retain(|load| hub.is_wanted(load)));
    let Some(min_sequence) = loads.iter().map(|load| load.min_sequence).max() else { return };
    let documents = loads.iter().map(|load| load.document.clone()).collect();
    let query = Query::GetMany { documents, marks: Vec::new() };
    match ask(shared, lane, min_sequence, query).await {
        Ok(Answer { sequence, body: AnswerBody::Values { documents, .. } }) if !documents.is_empty() => {
            // A long answer is cut short: the rest is asked for again.
            let rest = loads.split_off(documents.len().min(loads.len()));
            this.step(|hub, effects| {
                for (load, document) in loads.iter().zip(documents) {
                    hub.loaded(load.key, sequence, document, effects);
                }
            });
            this.ask(rest);
        }
        other => {
            // Whoever watches waits until a storer is there again.
            tracing::debug!(lane, answer = ?other.map(|a| a.sequence), "watched documents are not loaded yet");
            sleep(RETRY_AFTER).await;
            this.ask(loads);
        }
    }
}

async fn load_history(shared: &Shared, lane: u16, load: Load) {
    let Some((session, from)) = load.history else { return };
    // Its watcher may have left, or wished otherwise.
    if !shared.lanes[usize::from(lane)].step(|hub, _| hub.is_wanted(&load)) {
        return;
    }
    let bytes_max = shared.limits.history_bytes_max as u64;
    let query = Query::History { document: load.document.clone(), from, bytes_max };
    let entries = match ask(shared, lane, load.min_sequence, query).await {
        Ok(Answer { body: AnswerBody::History(entries), .. }) => entries,
        // Then a snapshot it is: the document itself is at hand.
        _ => Vec::new(),
    };
    shared.lanes[usize::from(lane)].step(|hub, effects| hub.history(load.key, session, &entries, effects));
}

pub(crate) async fn ask(shared: &Shared, lane: u16, min_sequence: u64, query: Query) -> Result<Answer, ReadError> {
    let request = Request { lane, min_sequence, query };
    let until = Instant::now() + shared.limits.read_timeout;
    loop {
        let answer = shared.reads.request(&request, until.saturating_duration_since(Instant::now())).await?;
        if answer.body != AnswerBody::Behind || Instant::now() + BEHIND_RETRY >= until {
            return Ok(answer);
        }
        // Another storer may be further, or have a file of this log at all.
        sleep(BEHIND_RETRY).await;
    }
}

/// Answers GET: from the hub if the document is at hand there, else by asking a storer.
pub(crate) fn get(shared: &Arc<Shared>, mailbox: &Arc<Mailbox>, request: u64, document: DocumentId) {
    let lane = shared.lane_of(&document);
    let (at_hand, min_sequence) = lane.step(|hub, _| {
        let frames = hub.document(&document).map(|found| {
            let mut out = Vec::new();
            encode_document(Some(request), &document, found, &mut out);
            Bytes::from(out)
        });
        (frames, hub.sequence())
    });
    if let Some(frames) = at_hand {
        mailbox.post(|inbound| inbound.outbox.keep(frames));
        return;
    }
    answer_later(shared, mailbox, move |shared| async move {
        let lane = fieldstream_shared::partition::Partition::of(&document).lane(shared.topology.lanes);
        let query = Query::GetMany { documents: vec![document.clone()], marks: Vec::new() };
        match ask(&shared, lane, min_sequence, query).await {
            Ok(Answer { body: AnswerBody::Values { documents, .. }, .. }) if documents.len() == 1 => {
                let mut out = Vec::new();
                documents.iter().for_each(|found| encode_document(Some(request), &document, found, &mut out));
                Bytes::from(out)
            }
            _ => frame(&FromServer::Refused { request, document: &document, code: Code::UNAVAILABLE }),
        }
    });
}

/// Answers a request of a session from a task of its own. The session reads no further frames
/// while too many of these are open.
pub(crate) fn answer_later<F>(shared: &Arc<Shared>, mailbox: &Arc<Mailbox>, answer: impl FnOnce(Arc<Shared>) -> F)
where
    F: Future<Output = Bytes> + Send + 'static,
{
    mailbox.lock().requests_open += 1;
    let (mailbox, stopped) = (Arc::clone(mailbox), shared.stopped.clone());
    let answer = answer(Arc::clone(shared));
    shared.tasks.spawn(async move {
        tokio::select! {
            () = stopped.cancelled() => {}
            frames = answer => mailbox.post(|inbound| {
                inbound.outbox.keep(frames);
                inbound.requests_open = inbound.requests_open.saturating_sub(1);
            }),
        }
    });
}

/// Places SYNCs until the gateway stops: each waits, lane by lane, until the storers have
/// everything the log had when it was asked. The log itself is asked, because what the client was
/// told through another gateway may be ahead of what this one has read.
pub(crate) async fn place_syncs(shared: Arc<Shared>) {
    let work = async {
        loop {
            let waits = shared.take_syncs();
            if waits.is_empty() {
                shared.syncs_wanted.notified().await;
                continue;
            }
            for (lane, this) in (0..).zip(&shared.lanes) {
                let sequence = last_event(&shared, lane, this).await;
                this.step(|hub, effects| {
                    waits.iter().for_each(|wait| hub.wait_stored(sequence, Arc::clone(wait), effects));
                });
            }
        }
    };
    tokio::select! {
        () = shared.stopped.cancelled() => {}
        () = work => {}
    }
}

/// Answers SYNCs that storers or the log let wait too long, until the gateway stops.
pub(crate) async fn expire_syncs(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(EXPIRE_EVERY);
    while shared.stopped.run_until_cancelled(interval.tick()).await.is_some() {
        shared.expire_syncs(shared.now_ms());
    }
}

async fn last_event(shared: &Shared, lane: u16, this: &Lane) -> u64 {
    loop {
        match last_sequence(&shared.consuming, Log::Events, lane).await {
            Ok(last) => return last.max(this.step(|hub, _| hub.sequence())),
            Err(error) => tracing::debug!(lane, %error, "the end of the events log is not known yet"),
        }
        sleep(RETRY_AFTER).await;
    }
}
