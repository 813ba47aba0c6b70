//! Stamps of traced instructions and the clocks they are by, over plain NATS beside the log
//! (`docs/TRACING.md`).
//!
//! A role notes and goes on: notes wait in a short queue, and what does not fit is dropped. The
//! gateway an instruction came through hears the notes of its own subject, and only while it has
//! sessions that trace.

use crate::connection::{Connection, NatsError};
use async_nats::Subscriber;
use fieldstream_shared::ids::Number;
use fieldstream_shared::msgpack::{DecodeError, Reader, Write, decode};
use fieldstream_shared::trace::clock::ClockSample;
use fieldstream_shared::trace::{Stamp, StampNote, Stamps};
use futures::StreamExt;
use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Plain NATS subject of questions what the clocks of processors and storers show.
const CLOCKS: &str = "fieldstream.clock";
/// Notes that wait to be sent; beyond, they are dropped.
const NOTES_MAX: usize = 1024;
/// Questions whose answers still count.
const ASKED_MAX: usize = 16;
/// The subscription is made anew after this long if the connection was not there.
const RETRY: Duration = Duration::from_secs(1);

/// The clock a process stamps by: wall time when it was first asked, and steady from there. One for
/// all roles of a process, so that their stamps need no alignment.
#[derive(Debug, Clone, Copy)]
pub struct TraceClock {
    id: u64,
    wall_us: u64,
    begun: Instant,
}

impl TraceClock {
    /// This process' clock.
    pub fn of_process() -> TraceClock {
        static CLOCK: OnceLock<TraceClock> = OnceLock::new();
        *CLOCK.get_or_init(|| {
            let wall_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
            TraceClock { id: rand::random(), wall_us, begun: Instant::now() }
        })
    }

    /// Tells it from other processes' clocks.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Microseconds, close to those since the Unix epoch; never goes back.
    pub fn now_us(&self) -> u64 {
        self.wall_us + self.begun.elapsed().as_micros() as u64
    }
}

fn subject(gateway: u64) -> String {
    format!("fieldstream.trace.{gateway:016x}")
}

/// Takes a role's notes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TraceDesk {
    notes: mpsc::Sender<(u64, StampNote)>,
    member: u64,
    clock: TraceClock,
}

impl TraceDesk {
    /// A desk for one role, and what carries its notes out. `member` tells roles of one kind apart.
    pub fn open(connection: &Connection, member: u64) -> (TraceDesk, TraceService) {
        let (notes, waiting) = mpsc::channel(NOTES_MAX);
        let clock = TraceClock::of_process();
        (TraceDesk { notes, member, clock }, TraceService { connection: connection.clone(), waiting, clock })
    }

    /// The time, for stamps.
    pub fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// Sends what was noted to the instruction's gateway; never waits.
    pub fn note(&self, gateway: u64, number: Number, stamps: Vec<Stamp>) {
        let stamps = Stamps { member: self.member, clock: self.clock.id, stamps };
        // A trace with a gap is worth more than a role that waits.
        let _ = self.notes.try_send((gateway, StampNote { number, stamps }));
    }
}

/// Carries a role's notes out and says what its clock shows.
#[derive(Debug)]
pub struct TraceService {
    connection: Connection,
    waiting: mpsc::Receiver<(u64, StampNote)>,
    clock: TraceClock,
}

impl TraceService {
    /// Runs until it is dropped, or the desk is closed.
    pub async fn run(mut self) {
        let clock = self.clock;
        let connection = self.connection.clone();
        tokio::select! {
            () = self.carry() => {}
            () = tell_time(connection, clock) => {}
        }
    }

    async fn carry(&mut self) {
        while let Some((gateway, note)) = self.waiting.recv().await {
            // Never later: by then nobody waits for it.
            if self.connection.is_connected()
                && let Err(error) = self.connection.client.publish(subject(gateway), note.encode().into()).await
            {
                tracing::debug!(%error, "sending stamps of a traced instruction");
            }
        }
    }
}

async fn tell_time(connection: Connection, clock: TraceClock) {
    loop {
        match connection.client.subscribe(CLOCKS).await {
            Ok(mut questions) => {
                while let Some(question) = questions.next().await {
                    let Some(reply) = question.reply else { continue };
                    let mut answer = Vec::with_capacity(24);
                    answer.array(2);
                    answer.u64(clock.id);
                    answer.u64(clock.now_us());
                    if let Err(error) = connection.client.publish(reply, answer.into()).await {
                        tracing::debug!(%error, "saying what the clock shows");
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "listening for questions about the clock"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What a gateway hears.
#[derive(Debug)]
pub enum Heard {
    /// A role had one of its instructions.
    Note(StampNote),
    /// What a clock shows.
    Clock {
        /// The clock.
        clock: u64,
        /// Question and answer.
        sample: ClockSample,
    },
}

/// A gateway's ear for notes and clocks. Ends when dropped.
#[derive(Debug)]
pub struct TraceEar {
    connection: Connection,
    clock: TraceClock,
    notes: Subscriber,
    answers: Subscriber,
    inbox: String,
    asked: u64,
    /// When the latest questions were asked, in order of their numbers.
    sent: VecDeque<(u64, u64)>,
}

impl TraceEar {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`NatsError`] if the connection is closed.
    pub async fn open(connection: &Connection, gateway: u64) -> Result<TraceEar, NatsError> {
        let failed = |e: &dyn std::fmt::Display| connection.request_error("listening for stamps", e);
        let inbox = connection.client.new_inbox();
        let notes = connection.client.subscribe(subject(gateway)).await.map_err(|e| failed(&e))?;
        let answers = connection.client.subscribe(format!("{inbox}.*")).await.map_err(|e| failed(&e))?;
        let clock = TraceClock::of_process();
        let connection = connection.clone();
        Ok(TraceEar { connection, clock, notes, answers, inbox, asked: 0, sent: VecDeque::new() })
    }

    /// Asks all processors and storers what their clocks show.
    pub async fn ask(&mut self) {
        self.asked += 1;
        let reply = format!("{}.{}", self.inbox, self.asked);
        if self.sent.len() == ASKED_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.asked, self.clock.now_us()));
        if let Err(error) = self.connection.client.publish_with_reply(CLOCKS, reply, "".into()).await {
            tracing::debug!(%error, "asking what the clocks show");
        }
    }

    /// The next thing heard; `None` when the connection is closed for good.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            tokio::select! {
                note = self.notes.next() => match StampNote::decode(&note?.payload) {
                    Ok(note) => return Some(Heard::Note(note)),
                    Err(error) => tracing::debug!(%error, "stamps that cannot be read"),
                },
                answer = self.answers.next() => {
                    let (answer, received_us) = (answer?, self.clock.now_us());
                    if let Some(heard) = self.heard(answer.subject.as_str(), &answer.payload, received_us) {
                        return Some(heard);
                    }
                }
            }
        }
    }

    fn heard(&self, subject: &str, payload: &[u8], received_us: u64) -> Option<Heard> {
        let question = subject.rsplit('.').next()?.parse::<u64>().ok()?;
        let (_, sent_us) = *self.sent.iter().find(|(number, _)| *number == question)?;
        let read = |r: &mut Reader<'_>| r.record(2, |r| Ok::<_, DecodeError>((r.u64()?, r.u64()?)));
        let (clock, other_us) = decode(payload, read).ok()?;
        Some(Heard::Clock { clock, sample: ClockSample { sent_us, other_us, received_us } })
    }
}
