//! Going through a file page by page.

use super::activity::Counting;
use super::tally::{Tally, Top};
use super::{
    Busy, ChangeFacts, ClientFacts, DeadLetterFacts, DocumentFacts, Facts, FactsOptions, FileFacts, HistoryFacts,
    Largest, LastDeadLetter, LongHistory, Silent, SizeClass, prefix_of,
};
use crate::report::open::File;
use crate::report::{PAGE, ReportError, Reports};
use crate::rows::{
    DeadLetterKey, DeadLetterRow, DocumentHead, HistoryKey, HistoryRow, decode_mark, parse_by_time_key,
    parse_client_key,
};
use crate::tables::{PageLimit, Paged, ReadTables, Stretch, TableError};
use fieldstream_shared::code::Code;
use fieldstream_shared::document::Kind;
use fieldstream_shared::ids::ClientId;
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::outcome::Outcome;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Upper bounds of the classes of sizes; one more class has what is larger.
const SIZE_CLASSES: [u64; 8] = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
const DAY_US: u64 = 86_400_000_000;

/// What is being looked at, for a line of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Documents.
    Documents,
    /// Changes.
    Changes,
    /// Histories.
    Histories,
    /// Clients.
    Clients,
    /// Dead letters.
    DeadLetters,
}

impl Part {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Part::Documents => "documents",
            Part::Changes => "changes",
            Part::Histories => "rows of history",
            Part::Clients => "marks of clients",
            Part::DeadLetters => "dead letters",
        }
    }
}

impl Facts {
    pub(in crate::report) fn gather(
        reports: &mut Reports,
        options: &FactsOptions,
        now_us: u64,
        progress: impl FnMut(Part, u64),
    ) -> Result<Facts, ReportError> {
        let as_of = reports.as_of()?;
        let mut pages = Pages { file: &mut reports.file, progress };
        let file = pages.file()?;
        let documents = pages.documents(options)?;
        let mut changes = pages.changes(options, file.by_time_rows.is_some())?;
        let histories = pages.histories(options)?;
        let clients = pages.clients(now_us, &mut changes.clients)?;
        let dead_letters = pages.dead_letters(options)?;
        Ok(Facts { as_of, read_at_us: now_us, file, documents, changes, clients, dead_letters, histories })
    }
}

fn file_facts(tables: &ReadTables) -> Result<FileFacts, TableError> {
    let missing = TableError::Row { database: "meta", error: DecodeError::Expected("a format row") };
    let format = tables.format()?.ok_or(missing)?;
    let mut oldest_change_us = None;
    let all = Stretch { start: Bound::Unbounded, end: Bound::Unbounded };
    tables.page(Paged::ByTime, &all, PageLimit { rows_max: 1, ..PAGE }, |key, _| {
        oldest_change_us = Some(parse_by_time_key(key)?.0);
        Ok(false)
    })?;
    let counts = tables.row_counts()?;
    let (client_rows, dead_letters) = tables.rest_counts()?;
    Ok(FileFacts {
        storer: format.storer,
        created_at_us: format.created_at_us,
        file_bytes: tables.file_bytes()?,
        used_bytes: counts.used_bytes,
        documents: counts.documents,
        history_rows: counts.history,
        by_time_rows: counts.by_time,
        client_rows,
        dead_letters,
        oldest_change_us,
    })
}

struct Pages<'a, P> {
    file: &'a mut File,
    progress: P,
}

/// In which order rows are walked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Forwards,
    Backwards,
}

/// What is done with a row: the transaction of its page, key, value.
type Each<'a> = &'a mut dyn FnMut(&ReadTables, &[u8], &[u8]) -> Result<(), TableError>;

impl<P: FnMut(Part, u64)> Pages<'_, P> {
    fn file(&mut self) -> Result<FileFacts, ReportError> {
        let tables = self.file.read()?;
        file_facts(&tables).map_err(|error| self.file.explain(error))
    }

    /// Hands at most so many rows to `each`; gives back how many, and whether there are more.
    fn walk(
        &mut self,
        part: Part,
        (paged, order): (Paged, Order),
        rows_max: u64,
        each: Each<'_>,
    ) -> Result<(u64, bool), ReportError> {
        let (mut behind, mut done, mut is_more) = (Bound::Unbounded, 0, false);
        loop {
            let tables = self.file.read()?;
            let mut failed = None;
            let take = |key: &[u8], value: &[u8]| {
                is_more = done == rows_max;
                if !is_more {
                    done += 1;
                    failed = each(&tables, key, value).err();
                }
                Ok(!is_more && failed.is_none())
            };
            let next = match order {
                Order::Forwards => tables.page(paged, &Stretch { start: behind, end: Bound::Unbounded }, PAGE, take),
                Order::Backwards => {
                    tables.page_back(paged, &Stretch { start: Bound::Unbounded, end: behind }, PAGE, take)
                }
            };
            let next = failed.map_or(next, Err).map_err(|error| self.file.explain(error))?;
            drop(tables);
            (self.progress)(part, done);
            match next {
                Some(key) => behind = Bound::Excluded(key),
                None => return Ok((done, is_more)),
            }
        }
    }

    fn documents(&mut self, options: &FactsOptions) -> Result<DocumentFacts, ReportError> {
        let mut facts = DocumentFacts::default();
        let class = |upto_bytes| SizeClass { upto_bytes, texts: 0, structured: 0 };
        facts.sizes = SIZE_CLASSES.into_iter().chain([u64::MAX]).map(class).collect();
        let (mut silent, mut largest) = (Top::new(options.listed_max), Top::new(options.listed_max));
        self.walk(Part::Documents, (Paged::Documents, Order::Forwards), u64::MAX, &mut |_, key, value| {
            let (head, body_bytes) = of("documents", DocumentHead::decode(value))?;
            let id = text("documents", key)?;
            let size = facts.sizes.iter_mut().find(|class| body_bytes <= class.upto_bytes);
            let (all, of_size) = match head.kind {
                Kind::Absent => {
                    facts.absent += 1;
                    return Ok(());
                }
                Kind::Text => (&mut facts.texts, size.map(|class| &mut class.texts)),
                Kind::Structured => (&mut facts.structured, size.map(|class| &mut class.structured)),
            };
            *all += 1;
            of_size.into_iter().for_each(|count| *count += 1);
            facts.body_bytes += body_bytes;
            silent.offer(u64::MAX - head.time_us, id, || head.revision);
            largest.offer(body_bytes, id, || head.revision);
            Ok(())
        })?;
        let silent = silent.sorted().into_iter();
        facts.silent = silent
            .map(|(rank, document, revision)| Silent { document, last_change_us: u64::MAX - rank, revision })
            .collect();
        let largest = largest.sorted().into_iter();
        facts.largest =
            largest.map(|(body_bytes, document, revision)| Largest { document, body_bytes, revision }).collect();
        Ok(facts)
    }

    /// The newest changes as `by_time` has them; without it, those that come first in `history`.
    fn changes(&mut self, options: &FactsOptions, has_by_time: bool) -> Result<ChangeFacts, ReportError> {
        let mut counting = Changes::new(options);
        let max = options.changes_max;
        let (counted, is_cut) = if has_by_time {
            self.walk(Part::Changes, (Paged::ByTime, Order::Backwards), max, &mut |tables, key, _| {
                let (time_us, change) = of("by_time", parse_by_time_key(key))?;
                let value = tables.change_value(&change.document, change.revision)?;
                let client = value.map(|value| of("history", HistoryRow::decode_for_watchers(value))).transpose()?;
                counting.add(time_us, &change.document, client.map(|(_, client, ..)| client));
                Ok(())
            })?
        } else {
            self.walk(Part::Changes, (Paged::History, Order::Forwards), max, &mut |_, key, value| {
                let change = of("history", HistoryKey::decode(key))?;
                let (version, client, ..) = of("history", HistoryRow::decode_for_watchers(value))?;
                counting.add(version.time_us, &change.document, Some(client));
                Ok(())
            })?
        };
        Ok(counting.done(options, counted, is_cut))
    }

    fn histories(&mut self, options: &FactsOptions) -> Result<HistoryFacts, ReportError> {
        let mut facts = HistoryFacts::default();
        let mut largest = Top::new(options.listed_max);
        let mut current = LongHistory { document: String::new(), rows: 0, bytes: 0 };
        (facts.counted, facts.is_cut) = self.walk(
            Part::Histories,
            (Paged::History, Order::Forwards),
            options.history_rows_max,
            &mut |_, key, value| {
                let bytes = (key.len() + value.len()) as u64;
                let id = key.len().checked_sub(9).and_then(|id_bytes| key.get(..id_bytes));
                let id = text("history", of("history", id.ok_or(DecodeError::Truncated))?)?;
                if id != current.document {
                    largest.offer(current.bytes, &current.document, || current.rows);
                    current = LongHistory { document: id.to_owned(), rows: 0, bytes: 0 };
                }
                current.rows += 1;
                current.bytes += bytes;
                facts.bytes += bytes;
                Ok(())
            },
        )?;
        if current.rows > 0 {
            largest.offer(current.bytes, &current.document, || current.rows);
        }
        let largest = largest.sorted().into_iter().filter(|(_, _, rows)| *rows > 0);
        facts.largest = largest.map(|(bytes, document, rows)| LongHistory { document, rows, bytes }).collect();
        Ok(facts)
    }

    /// Rows of a client follow each other, so one client is remembered at a time. Tells those listed
    /// when they were last heard of.
    fn clients(&mut self, now_us: u64, listed: &mut [Busy]) -> Result<ClientFacts, ReportError> {
        let (mut facts, mut refused) = (ClientFacts::default(), BTreeMap::<Code, u64>::new());
        let (mut current, mut is_of_last_day) = (None::<ClientId>, false);
        self.walk(Part::Clients, (Paged::Clients, Order::Forwards), u64::MAX, &mut |_, key, value| {
            let (client, _) = of("clients", parse_client_key(key))?;
            let row = of("clients", decode_mark(value))?;
            if current.as_ref() != Some(&client) {
                facts.clients += 1;
                is_of_last_day = false;
            }
            if !is_of_last_day && row.seen_at_us > now_us.saturating_sub(DAY_US) {
                facts.of_last_day += 1;
                is_of_last_day = true;
            }
            for busy in listed.iter_mut().filter(|busy| busy.id == client.as_str()) {
                busy.last_us = busy.last_us.max(row.seen_at_us);
            }
            for (_, outcome) in row.mark.window.values() {
                if let Outcome::Refused(code) = outcome {
                    *refused.entry(*code).or_default() += 1;
                }
            }
            current = Some(client);
            Ok(())
        })?;
        facts.refused = most_first(refused);
        Ok(facts)
    }

    fn dead_letters(&mut self, options: &FactsOptions) -> Result<DeadLetterFacts, ReportError> {
        let (mut by_code, mut last) = (BTreeMap::<Code, u64>::new(), Top::new(options.listed_max));
        // A record that could not be decoded may not tell when it was received; its lane's order does.
        let mut newest = (0, 0);
        self.walk(Part::DeadLetters, (Paged::DeadLetters, Order::Forwards), u64::MAX, &mut |_, key, value| {
            let key = of("dead_letters", DeadLetterKey::decode(key))?;
            let row = of("dead_letters", DeadLetterRow::decode(value))?;
            *by_code.entry(row.code).or_default() += 1;
            // Of one time the last of a lane comes first.
            let name = format!("{:05}{:020}{:010}", key.lane, u64::MAX - key.sequence, u32::MAX - key.event_index);
            newest =
                (key.lane, if newest.0 == key.lane { newest.1.max(row.received_at_us) } else { row.received_at_us });
            last.offer(newest.1, &name, || LastDeadLetter {
                received_at_us: row.received_at_us,
                id: (key.lane, key.sequence, key.event_index),
                code: row.code,
                reason: row.reason,
                origin: row.origin.map(|origin| (origin.client.to_string(), origin.document.to_string())),
            });
            Ok(())
        })?;
        let last = last.sorted().into_iter().map(|(_, _, letter)| letter).collect();
        Ok(DeadLetterFacts { by_code: most_first(by_code), last })
    }
}

/// Counts changes, in whatever order they come.
struct Changes {
    activity: Counting,
    documents: Tally,
    clients: Tally,
    bounds_us: Option<(u64, u64)>,
    by_nobody_known: u64,
}

impl Changes {
    fn new(options: &FactsOptions) -> Changes {
        Changes {
            activity: Counting::new(),
            documents: Tally::new(options.names_max),
            clients: Tally::new(options.names_max),
            bounds_us: None,
            by_nobody_known: 0,
        }
    }

    fn add(&mut self, time_us: u64, document: &str, client: Option<ClientId>) {
        let (first, last) = self.bounds_us.unwrap_or((time_us, time_us));
        self.bounds_us = Some((first.min(time_us), last.max(time_us)));
        self.activity.add(time_us, prefix_of(document));
        self.documents.add(document, time_us);
        match client {
            Some(client) => self.clients.add(&client, time_us),
            None => self.by_nobody_known += 1,
        }
    }

    fn done(self, options: &FactsOptions, counted: u64, is_cut: bool) -> ChangeFacts {
        let listed = |tally: &Tally| {
            let top = tally.top(options.listed_max).into_iter();
            top.map(|(changes, id, last_us)| Busy { id, changes, last_us }).collect()
        };
        ChangeFacts {
            counted,
            is_cut,
            bounds_us: self.bounds_us,
            activity: self.activity.done(options.prefixes_max),
            busiest: listed(&self.documents),
            busiest_missed_max: self.documents.missed_max(),
            clients: listed(&self.clients),
            clients_missed_max: self.clients.missed_max(),
            by_nobody_known: self.by_nobody_known,
        }
    }
}

fn of<T>(database: &'static str, decoded: Result<T, DecodeError>) -> Result<T, TableError> {
    decoded.map_err(|error| TableError::Row { database, error })
}

fn text<'a>(database: &'static str, bytes: &'a [u8]) -> Result<&'a str, TableError> {
    of(database, std::str::from_utf8(bytes).map_err(|_| DecodeError::InvalidUtf8))
}

fn most_first(counts: BTreeMap<Code, u64>) -> Vec<(Code, u64)> {
    let mut counts: Vec<(Code, u64)> = counts.into_iter().collect();
    counts.sort_by_key(|(code, count)| (std::cmp::Reverse(*count), *code));
    counts
}
