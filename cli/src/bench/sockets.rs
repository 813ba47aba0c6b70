//! TCP and TLS: one thread, one epoll set, edge-triggered; one read per readiness into one buffer,
//! one write per client and turn.

use super::fleet::Fleet;
use super::shell::{Clock, SharedFleet, Shell, TURN_NS};
use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustls::pki_types::ServerName;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Read at once; a client that has more is read again in the same turn.
const READ_BYTES: usize = 256 * 1024;

/// Connections looked at in one turn: what is due must not wait for thousands of reads.
const EVENTS_MAX: usize = 256;

/// The timer's place among the clients.
const TIMER: u64 = u64::MAX;

/// How to speak TLS to a server.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) config: Arc<rustls::ClientConfig>,
    pub(super) name: ServerName<'static>,
}

struct Link {
    stream: TcpStream,
    is_connected: bool,
    tls: Option<Box<rustls::ClientConnection>>,
}

/// All connections.
pub(super) struct Sockets {
    server: SocketAddr,
    tls: Option<Tls>,
    clock: Clock,
    epoll: OwnedFd,
    timer: OwnedFd,
    /// What the timer is set to.
    timer_due_ns: u64,
    links: Vec<Option<Link>>,
    events: Vec<epoll::Event>,
    listed: Vec<usize>,
    buffer: Vec<u8>,
    /// What TLS made of the buffer.
    plain: Vec<u8>,
}

impl Sockets {
    /// For so many clients of a server.
    ///
    /// # Errors
    /// That of the system.
    pub(super) fn new(server: SocketAddr, tls: Option<Tls>, clients: usize, clock: Clock) -> io::Result<Sockets> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), flags)?;
        Ok(Sockets {
            server,
            plain: vec![0; if tls.is_some() { READ_BYTES } else { 0 }],
            tls,
            clock,
            epoll,
            timer,
            timer_due_ns: 0,
            links: (0..clients).map(|_| None).collect(),
            events: Vec::with_capacity(EVENTS_MAX),
            listed: Vec::new(),
            buffer: vec![0; READ_BYTES],
        })
    }

    fn open(&mut self, client: usize) -> io::Result<()> {
        let family = if self.server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &self.server) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(client as u64), flags)?;
        let tls = match &self.tls {
            None => None,
            Some(tls) => {
                let session = rustls::ClientConnection::new(Arc::clone(&tls.config), tls.name.clone());
                Some(Box::new(session.map_err(io::Error::other)?))
            }
        };
        self.links[client] = Some(Link { stream, is_connected: false, tls });
        Ok(())
    }

    /// One connection has something to say.
    fn ready(&mut self, fleet: &mut Fleet, client: usize, flags: epoll::EventFlags) {
        let Some(link) = &mut self.links[client] else { return };
        let result = (|| {
            if !link.is_connected {
                if let Some(error) = link.stream.take_error()? {
                    return Err(error);
                }
                if !flags.contains(epoll::EventFlags::OUT) {
                    return Ok(());
                }
                link.is_connected = true;
                fleet.opened(client, self.clock.now_ns());
            }
            let closing = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
            let mut more = flags.intersects(closing | epoll::EventFlags::IN);
            while more {
                let bytes = match link.stream.read(&mut self.buffer) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                let now_ns = self.clock.now_ns();
                link.take(fleet, client, &self.buffer[..bytes], &mut self.plain, now_ns)?;
                // Less than there was room for is all there is; whoever closes must be read to the end.
                more = bytes == self.buffer.len() || flags.intersects(closing);
            }
            link.flush(fleet, client)
        })();
        if let Err(error) = result {
            self.links[client] = None;
            fleet.lost(client, explain(&error));
        }
    }

    /// Writes what a client has to send.
    fn send(&mut self, fleet: &mut Fleet, client: usize, now_ns: u64) {
        fleet.fill(client, now_ns);
        let Some(link) = self.links[client].as_mut().filter(|link| link.is_connected) else { return };
        if let Err(error) = link.flush(fleet, client) {
            self.links[client] = None;
            fleet.lost(client, explain(&error));
        }
    }

    /// Connects whom the fleet wants connected.
    fn connect(&mut self, fleet: &mut Fleet) {
        while let Some(client) = fleet.next_to_open() {
            if let Err(error) = self.open(client) {
                fleet.lost(client, explain(&error));
            }
        }
    }

    /// Waits for connections that have something to say, or until something is due.
    fn wait(&mut self, due_ns: u64) -> io::Result<()> {
        let wait_ns = due_ns.saturating_sub(self.clock.now_ns());
        // epoll's own timeout knows only milliseconds on older systems.
        if wait_ns > 0 && wait_ns < TURN_NS && self.timer_due_ns != due_ns {
            let once = Itimerspec { it_interval: timespec(0), it_value: timespec(wait_ns) };
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
            self.timer_due_ns = due_ns;
        }
        let timeout = timespec(if wait_ns == 0 { 0 } else { TURN_NS });
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Shell for Sockets {
    fn drive(&mut self, fleet: &SharedFleet, done: &mut dyn FnMut(&Fleet, u64) -> bool) -> io::Result<()> {
        let fleet = &mut *fleet.borrow_mut();
        loop {
            let now_ns = self.clock.now_ns();
            fleet.turn(now_ns);
            self.connect(fleet);
            let mut listed = std::mem::take(&mut self.listed);
            fleet.take_listed(&mut listed);
            listed.drain(..).for_each(|client| self.send(fleet, client, now_ns));
            self.listed = listed;
            if done(fleet, now_ns) {
                return Ok(());
            }
            self.clock.nap(now_ns + fleet.turn_min_ns());
            self.wait(fleet.next_due_ns())?;
            let events = std::mem::take(&mut self.events);
            for event in events.iter().filter(|event| event.data.u64() != TIMER) {
                self.ready(fleet, event.data.u64() as usize, event.flags);
            }
            self.events = events;
        }
    }

    fn close(&mut self, client: usize) {
        self.links[client] = None;
    }

    fn end(&mut self) {
        self.links.fill_with(|| None);
    }
}

impl Link {
    /// Hands bytes from the server to the fleet, decrypted if need be.
    fn take(
        &mut self,
        fleet: &mut Fleet,
        client: usize,
        mut bytes: &[u8],
        plain: &mut [u8],
        now_ns: u64,
    ) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return fleet.received(client, bytes, now_ns).map_err(io::Error::other) };
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes)?;
            tls.process_new_packets().map_err(io::Error::other)?;
            loop {
                match tls.reader().read(plain) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => fleet.received(client, &plain[..n], now_ns).map_err(io::Error::other)?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Writes as much as the connection takes.
    fn flush(&mut self, fleet: &mut Fleet, client: usize) -> io::Result<()> {
        let outbox = fleet.outbox(client);
        let Some(tls) = &mut self.tls else {
            while !outbox.pending().is_empty() {
                match self.stream.write(outbox.pending()) {
                    Ok(bytes) => outbox.wrote(bytes),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            return Ok(());
        };
        loop {
            // What TLS holds is bounded by itself: it takes no more than it can.
            if !outbox.pending().is_empty() {
                let bytes = tls.writer().write(outbox.pending())?;
                outbox.wrote(bytes);
            }
            if !tls.wants_write() {
                return Ok(());
            }
            match tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn timespec(ns: u64) -> Timespec {
    Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed the connection without a word".to_owned(),
        _ => error.to_string(),
    }
}
