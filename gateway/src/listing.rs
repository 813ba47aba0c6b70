//! LIST: pages of what the client may read, put together from the storers' pages.

use crate::mailbox::{Mailbox, frame};
use crate::reads::{answer_later, ask};
use crate::shared::Shared;
use crate::tokens::Rights;
use fieldstream_nats::ReadError;
use fieldstream_shared::code::Code;
use fieldstream_shared::frame::FromServer;
use fieldstream_shared::limits::{DOCUMENT_ID_BYTES_MAX, FRAME_BYTES_MAX, LIST_PAGE_MAX};
use fieldstream_shared::partition::Partition;
use fieldstream_shared::read::{Answer, AnswerBody, Listed, Query};
use std::sync::Arc;

// A page must fit a frame, and the storers answer for pages of at most this.
const LINE_BYTES_MAX: usize = DOCUMENT_ID_BYTES_MAX + 48;
const _: () = assert!(LIST_PAGE_MAX * LINE_BYTES_MAX < FRAME_BYTES_MAX);

/// A LIST as the client asked it.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) request: u64,
    pub(crate) prefix: String,
    pub(crate) after: String,
    pub(crate) limit: usize,
}

/// Whom the pages are asked of.
trait Pages: Sync {
    /// A storer's page that includes what a lane has.
    fn ask(&self, lane: u16, query: Query) -> impl Future<Output = Result<Answer, ReadError>> + Send;
}

/// The storers, asked for a session.
struct Storers {
    shared: Arc<Shared>,
    session: Arc<Mailbox>,
    /// What the client was told through this gateway is in the answers. Taken once: a log that grows
    /// all the time must not be run after.
    sequences: Vec<u64>,
}

impl Pages for Storers {
    async fn ask(&self, lane: u16, query: Query) -> Result<Answer, ReadError> {
        // Much may have to be looked through for few documents, but not for nobody.
        if !self.shared.is_here(&self.session) {
            return Err(ReadError::NoStorer);
        }
        let min_sequence = self.sequences.get(usize::from(lane)).copied().unwrap_or_default();
        ask(&self.shared, lane, min_sequence, query).await
    }
}

/// Answers LIST with what the client may read.
pub(crate) fn list(shared: &Arc<Shared>, mailbox: &Arc<Mailbox>, rights: Rights, listing: Listing) {
    let session = Arc::clone(mailbox);
    answer_later(shared, mailbox, move |shared| async move {
        let (request, lanes) = (listing.request, shared.topology.lanes);
        let sequences = shared.lanes.iter().map(|lane| lane.step(|hub, _| hub.sequence())).collect();
        let storers = Storers { shared, session, sequences };
        match list_readable(lanes, &rights, listing, &storers).await {
            Ok(documents) => frame(&FromServer::Listed { request, documents }),
            Err(_) => frame(&FromServer::Refused { request, document: "", code: Code::UNAVAILABLE }),
        }
    });
}

async fn list_readable(
    lanes: u16,
    rights: &Rights,
    listing: Listing,
    storers: &impl Pages,
) -> Result<Vec<Listed>, ReadError> {
    let limit = listing.limit.min(LIST_PAGE_MAX);
    let mut documents: Vec<Listed> = Vec::new();
    for prefix in rights.readable_below(&listing.prefix) {
        let mut after = listing.after.clone();
        // Where a page was not enough, most of what is there may not be read: then pages are long.
        let mut page_limit = limit;
        while documents.len() < limit {
            let page = page(lanes, (&prefix, &after, page_limit), storers).await?;
            documents.extend(page.documents.into_iter().filter(|listed| rights.may_read(&listed.document)));
            match page.upto {
                Some(upto) => after = upto,
                None => break,
            }
            page_limit = LIST_PAGE_MAX;
        }
    }
    documents.truncate(limit);
    Ok(documents)
}

/// What there is behind an id, in order.
struct Page {
    documents: Vec<Listed>,
    /// There may be more behind this id.
    upto: Option<String>,
}

/// Each lane is asked for its own documents: any storer may answer, and one that has everything of a
/// lane may be behind with others. A storer lists the documents of all lanes.
async fn page(
    lanes: u16,
    (prefix, after, limit): (&str, &str, usize),
    storers: &impl Pages,
) -> Result<Page, ReadError> {
    let mut page = Page { documents: Vec::new(), upto: None };
    for lane in 0..lanes {
        let query = Query::List { prefix: prefix.to_owned(), after: after.to_owned(), limit: limit as u64 };
        let Answer { body: AnswerBody::List(found), .. } = storers.ask(lane, query).await? else {
            return Err(ReadError::NoStorer);
        };
        if found.len() >= limit
            && let Some(last) = found.last().map(|listed| listed.document.as_str())
            && page.upto.as_deref().is_none_or(|upto| last < upto)
        {
            page.upto = Some(last.to_owned());
        }
        page.documents.extend(found.into_iter().filter(|l| Partition::of(&l.document).lane(lanes) == lane));
    }
    if let Some(upto) = &page.upto {
        page.documents.retain(|listed| listed.document.as_str() <= upto.as_str());
    }
    page.documents.sort_unstable_by(|a, b| a.document.cmp(&b.document));
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::document::Kind;
    use fieldstream_shared::ids::DocumentId;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LANES: u16 = 2;

    fn listed(document: &str) -> Listed {
        Listed { document: DocumentId::new(document).unwrap(), revision: 1, kind: Kind::Text, bytes: 1, time_us: 1 }
    }

    /// Storers of which each has the documents of one lane only.
    struct Apart {
        documents: Vec<String>,
        questions: AtomicUsize,
    }

    impl Pages for Apart {
        async fn ask(&self, lane: u16, query: Query) -> Result<Answer, ReadError> {
            let Query::List { prefix, after, limit } = query else { panic!("{query:?}") };
            self.questions.fetch_add(1, Ordering::Relaxed);
            let is_wanted = |d: &&String| d.starts_with(&prefix) && **d > after && Partition::of(d).lane(LANES) == lane;
            let found = self.documents.iter().filter(is_wanted).take(limit as usize).map(|d| listed(d));
            Ok(Answer { sequence: 1, body: AnswerBody::List(found.collect()) })
        }
    }

    impl Apart {
        fn new(documents: impl Iterator<Item = String>) -> Apart {
            Apart { documents: documents.collect(), questions: AtomicUsize::new(0) }
        }

        async fn list(&self, rights: &Rights, after: &str, limit: usize) -> Vec<String> {
            let listing = Listing { request: 1, prefix: String::new(), after: after.to_owned(), limit };
            let found = list_readable(LANES, rights, listing, self).await.unwrap();
            found.iter().map(|l| l.document.to_string()).collect()
        }
    }

    #[tokio::test]
    async fn pages_have_everything_in_order_whatever_lane_it_is_of() {
        let storers = Apart::new((100..200).map(|n| format!("d{n}")));
        let rights = Rights::everything();
        for limit in [1, 7, 100, 1_000] {
            let (mut all, mut after) = (Vec::new(), String::new());
            loop {
                let page = storers.list(&rights, &after, limit).await;
                all.extend(page.iter().cloned());
                if page.len() < limit {
                    break;
                }
                after = page.last().unwrap().clone();
            }
            assert_eq!(all, storers.documents, "by {limit}");
        }
    }

    #[tokio::test]
    async fn what_may_not_be_read_is_passed_over_in_long_pages() {
        let storers = Apart::new((10_000..20_000).map(|n| format!("a/{n}/x")).chain(["a/z/mine".into()]));
        assert_eq!(storers.list(&Rights::reads(&["a/*/mine"]), "", 1).await, ["a/z/mine"]);
        let questions = storers.questions.into_inner();
        assert!(questions < 30, "{questions}");
    }
}
