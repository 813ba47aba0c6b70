//! QUIC: one task per client on one thread, and one for the schedule. Costs more than [`Sockets`]
//! does, nearly all of it in QUIC itself.
//!
//! [`Sockets`]: super::sockets::Sockets

use super::fleet::Fleet;
use super::shell::{Clock, SharedFleet, Shell, TURN_NS};
use fieldstream_client::wire::{Wire, WireLink};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::ReadBuf;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, LocalSet};

/// Read at once.
const READ_BYTES: usize = 64 * 1024;

/// Time given to the packets that close the connections.
const LINGER: Duration = Duration::from_millis(200);

/// What the tasks of a run share.
struct Common {
    fleet: SharedFleet,
    clock: Clock,
    wakers: RefCell<Vec<Option<Waker>>>,
    listed: RefCell<Vec<usize>>,
    buffer: RefCell<Vec<u8>>,
}

/// All connections.
pub(super) struct Quic {
    runtime: Runtime,
    tasks: LocalSet,
    /// One per UDP socket; clients share them in turn.
    wires: Vec<Rc<Wire>>,
    common: Rc<Common>,
    clients: Vec<Option<JoinHandle<()>>>,
}

impl Quic {
    /// For the clients of a fleet. The sockets of `wires` belong to `runtime`.
    pub(super) fn new(runtime: Runtime, wires: Vec<Wire>, fleet: SharedFleet, clients: usize, clock: Clock) -> Quic {
        let common = Common {
            fleet,
            clock,
            wakers: RefCell::new(vec![None; clients]),
            listed: RefCell::default(),
            buffer: RefCell::new(vec![0; READ_BYTES]),
        };
        Quic {
            runtime,
            tasks: LocalSet::new(),
            wires: wires.into_iter().map(Rc::new).collect(),
            common: Rc::new(common),
            clients: (0..clients).map(|_| None).collect(),
        }
    }
}

impl Shell for Quic {
    fn drive(&mut self, fleet: &SharedFleet, done: &mut dyn FnMut(&Fleet, u64) -> bool) -> io::Result<()> {
        let Quic { runtime, tasks, wires, common, clients } = self;
        tasks.block_on(runtime, async {
            let timer = Timer::new()?;
            loop {
                let begun_ns = common.clock.now_ns();
                let due_ns = turn(&mut fleet.borrow_mut(), wires, common, clients, done);
                let Some(due_ns) = due_ns else { return Ok(()) };
                common.clock.nap(begun_ns + fleet.borrow().turn_min_ns());
                let wait_ns = due_ns.saturating_sub(common.clock.now_ns()).min(TURN_NS);
                timer.wait(wait_ns).await?;
            }
        })
    }

    fn close(&mut self, client: usize) {
        if let Some(task) = self.clients[client].take() {
            task.abort();
        }
        self.common.wakers.borrow_mut()[client] = None;
    }

    fn end(&mut self) {
        (0..self.clients.len()).for_each(|client| self.close(client));
        self.tasks.block_on(&self.runtime, async { tokio::time::sleep(LINGER).await });
    }
}

/// One turn of the schedule: when the next has something to do, or nothing if it was the last.
fn turn(
    fleet: &mut Fleet,
    wires: &[Rc<Wire>],
    common: &Rc<Common>,
    clients: &mut [Option<JoinHandle<()>>],
    done: &mut dyn FnMut(&Fleet, u64) -> bool,
) -> Option<u64> {
    let now_ns = common.clock.now_ns();
    fleet.turn(now_ns);
    while let Some(client) = fleet.next_to_open() {
        let wire = Rc::clone(&wires[client % wires.len()]);
        clients[client] = Some(tokio::task::spawn_local(live(client, wire, Rc::clone(common))));
    }
    let mut listed = common.listed.borrow_mut();
    fleet.take_listed(&mut listed);
    let wakers = common.wakers.borrow();
    listed.drain(..).filter_map(|client| wakers[client].as_ref()).for_each(Waker::wake_by_ref);
    (!done(fleet, now_ns)).then(|| fleet.next_due_ns())
}

/// One client's connection, from connecting to its end.
async fn live(client: usize, wire: Rc<Wire>, common: Rc<Common>) {
    let why = match wire.open().await {
        Err(error) => error.to_string(),
        Ok(mut link) => {
            common.fleet.borrow_mut().opened(client, common.clock.now_ns());
            poll_fn(|cx| exchange(client, &mut link, &common, cx)).await
        }
    };
    common.fleet.borrow_mut().lost(client, why);
}

/// Moves bytes until nothing moves. Ready with the reason if the connection is over.
fn exchange(client: usize, link: &mut WireLink, common: &Common, cx: &mut Context<'_>) -> Poll<String> {
    let mut fleet = common.fleet.borrow_mut();
    match &mut common.wakers.borrow_mut()[client] {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        waker => *waker = Some(cx.waker().clone()),
    }
    let mut buffer = common.buffer.borrow_mut();
    loop {
        let mut buffer = ReadBuf::new(&mut buffer);
        match link.poll_read(cx, &mut buffer) {
            Poll::Pending => break,
            Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                return Poll::Ready("the server closed the connection without a word".to_owned());
            }
            Poll::Ready(Ok(())) => {
                if let Err(why) = fleet.received(client, buffer.filled(), common.clock.now_ns()) {
                    return Poll::Ready(why);
                }
            }
        }
    }
    fleet.fill(client, common.clock.now_ns());
    let outbox = fleet.outbox(client);
    while !outbox.pending().is_empty() {
        match link.poll_write(cx, outbox.pending()) {
            Poll::Pending => break,
            Poll::Ready(Ok(bytes)) => outbox.wrote(bytes),
            Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
        }
    }
    Poll::Pending
}

/// A timer finer than tokio's, which knows only milliseconds.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    fn new() -> io::Result<Timer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: an `OwnedFd` is open and the same file for as long as it lives, and it lives in here.
        Ok(Timer(unsafe { AsyncFd::register_with_interest(timer, tokio::io::Interest::READABLE) }?))
    }

    async fn wait(&self, wait_ns: u64) -> io::Result<()> {
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Nothing at all would switch it off.
        let at = Timespec { tv_sec: 0, tv_nsec: wait_ns.max(1) as i64 };
        let once = Itimerspec { it_interval: never, it_value: at };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        // Setting it again makes it unreadable, so that the next expiry is news.
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}
