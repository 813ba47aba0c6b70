//! Starting and stopping.

use crate::error::GatewayError;
use crate::hub::{Beginning, LaneHub, Limits};
use crate::lane::{LaneQueue, QueueLimits};
use crate::listen::{self, Bound};
use crate::mailbox::Closing;
use crate::options::{Addresses, GatewayLimits, GatewayOptions};
use crate::reader::{self, ReadFrom};
use crate::shared::{Lane, Shared};
use crate::takeover;
use crate::traces;
use crate::{reads, writer};
use fieldstream_nats::{
    Connection, GatewayLane, GatewayStatus, Health, Log, LogReader, Member, ProgressReader, ReadClient, RoleStatus,
    SessionNotes, Topology, last_sequence, serve_status,
};
use fieldstream_shared::code::Code;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// What a stopping gateway waits for is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Of the time to stop, so much at most for outcomes that are still on their way.
const OUTCOMES_WAIT_MAX: Duration = Duration::from_secs(2);
/// Clients of a fleet above this size are asked to come back spread over [`RETURN_SPREAD_MS`].
const RETURN_AT_ONCE_MAX: usize = 100;
const RETURN_SPREAD_MS: u64 = 5_000;

/// A running gateway.
///
/// | phase | what goes on |
/// | --- | --- |
/// | running | everything |
/// | draining | no new connections, nothing is read; queues are written, outcomes delivered |
/// | closing | clients are told `shutting_down` |
/// | stopped | – |
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    addresses: Addresses,
    endpoint: Option<quinn::Endpoint>,
    fatal: mpsc::Receiver<GatewayError>,
    health: Health,
}

impl Gateway {
    /// Starts a gateway: binds its addresses, finds its place in the log, catches up, and lets
    /// clients in.
    ///
    /// # Errors
    /// [`GatewayError`], a message that says what to do.
    pub async fn start(options: GatewayOptions) -> Result<Gateway, GatewayError> {
        let GatewayOptions { nats, tcp, tls, tokens, stored_copies, limits, health } = options;
        let bound = listen::bind(tcp, tls.as_ref(), &limits).await?;
        let consuming = Connection::connect(&nats, "fieldstream-gateway-read").await?;
        let publishing = Connection::connect(&nats, "fieldstream-gateway-write").await?;
        let topology = Topology::load(&consuming).await?;
        let reads = ReadClient::new(&consuming).await?;
        let progress = ProgressReader::subscribe(&consuming).await?;
        let (mut lanes, mut readers) = (Vec::new(), Vec::new());
        for lane in 0..topology.lanes {
            let ReadFrom { start, cursors } = reader::read_from((&reads, &consuming), &topology, lane, &health).await?;
            readers.push(LogReader::open(&consuming, Log::Events, lane, start).await?);
            let beginning = Beginning {
                lane,
                lanes: topology.lanes,
                log_id: topology.log_id,
                stored_copies,
                limits: Limits {
                    held_bytes_max: limits.held_bytes_max,
                    recent_bytes_max: limits.recent_bytes_max,
                    documents_bytes_max: limits.documents_bytes_max / usize::from(topology.lanes),
                },
                cursors,
                sequence: start.sequence,
            };
            let hub = LaneHub::new(beginning);
            if let Err(reason) = writer::look(&consuming, lane, hub.highest_cursor()).await? {
                tracing::warn!(lane, reason, "the instructions log could not be looked at yet");
            }
            lanes.push(Lane::new(hub, LaneQueue::new(queue_limits(&limits))));
        }
        let (fatal_sender, fatal) = mpsc::channel(8);
        let connections = (reads, consuming);
        let (came, came_here) = mpsc::channel(takeover::NOTES_MAX);
        let shared = Shared::new(limits, tokens, topology, lanes, connections, (fatal_sender, health.clone()), came);
        let shared = Arc::new(shared);
        let gateway = Gateway { addresses: Addresses::default(), endpoint: None, fatal, shared, health };
        let notes = SessionNotes::subscribe(&gateway.shared.consuming).await?;
        let (stopped, shared) = (gateway.shared.stopped.clone(), Arc::clone(&gateway.shared));
        gateway.shared.tasks.spawn(takeover::hear(Arc::clone(&shared), notes));
        gateway.shared.tasks.spawn(traces::hear(Arc::clone(&shared)));
        gateway.shared.tasks.spawn(async move {
            let _ = stopped.run_until_cancelled(takeover::tell(shared, came_here)).await;
        });
        gateway.begin(bound, publishing, readers, progress).await
    }

    async fn begin(
        mut self,
        bound: Bound,
        publishing: Connection,
        readers: Vec<LogReader>,
        progress: ProgressReader,
    ) -> Result<Gateway, GatewayError> {
        let shared = &Arc::clone(&self.shared);
        let tasks = &shared.tasks;
        for (lane, reader) in (0..).zip(readers) {
            tasks.spawn(reader::read_lane(Arc::clone(shared), lane, reader));
            tasks.spawn(writer::write_lane(Arc::clone(shared), lane, publishing.clone()));
            tasks.spawn(reads::load_lane(Arc::clone(shared), lane));
        }
        tasks.spawn(reader::read_progress(Arc::clone(shared), progress));
        tasks.spawn(reads::place_syncs(Arc::clone(shared)));
        tasks.spawn(reads::expire_syncs(Arc::clone(shared)));
        tasks.spawn(answer_for_status(Arc::clone(shared), self.health.clone()));
        self.catch_up().await?;
        let Bound { plain, secure } = bound;
        if let Some(listener) = plain {
            self.addresses.tcp = Some(local(listener.local_addr(), "TCP")?);
            tasks.spawn(listen::accept_plain(Arc::clone(shared), listener));
        }
        if let Some((tcp, udp, secure)) = secure {
            let address = local(tcp.local_addr(), "TLS")?;
            let endpoint = secure.endpoint(udp, address)?;
            (self.addresses.tls, self.addresses.quic) = (Some(address), Some(address));
            tasks.spawn(listen::accept_tls(Arc::clone(shared), tcp, secure.tls()));
            tasks.spawn(listen::accept_quic(Arc::clone(shared), endpoint.clone()));
            self.endpoint = Some(endpoint);
        }
        let text = |address: Option<SocketAddr>| address.map_or_else(|| "off".to_owned(), |a| a.to_string());
        let (tcp, tls) = (text(self.addresses.tcp), text(self.addresses.tls));
        tracing::info!(%tcp, %tls, "the gateway takes connections");
        self.health.set_ready(true);
        Ok(self)
    }

    /// Reads what EVENTS has by now before clients are let in: their outcomes would come late.
    async fn catch_up(&mut self) -> Result<(), GatewayError> {
        let deadline = Instant::now() + self.shared.limits.catch_up;
        for (number, lane) in (0..).zip(&self.shared.lanes) {
            let last = last_sequence(&self.shared.consuming, Log::Events, number).await?;
            while lane.step(|hub, _| hub.sequence()) < last {
                if let Ok(error) = self.fatal.try_recv() {
                    return Err(error);
                }
                if Instant::now() > deadline {
                    tracing::warn!(lane = number, last, "still behind the events log; outcomes will come late");
                    return Ok(());
                }
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Pends until something happens after which the gateway must be stopped.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failed(&mut self) -> GatewayError {
        self.fatal.recv().await.unwrap_or(GatewayError::Ended("the gateway"))
    }

    /// Stops: takes no more connections, reads nothing more, writes what was read to the log,
    /// delivers what comes back soon, and tells the clients to connect again.
    pub async fn stop(self, deadline: Duration) {
        let shared = &self.shared;
        let until = Instant::now() + deadline;
        self.health.set_ready(false);
        shared.closed.cancel();
        shared.drain();
        let sessions = shared.sessions();
        for session in &sessions {
            session.post(|inbound| inbound.draining = true);
        }
        let flushed = wait_until(until, || shared.lanes.iter().all(|lane| lane.queue().is_idle())).await;
        let outcomes_until = until.min(Instant::now() + OUTCOMES_WAIT_MAX.min(deadline / 2));
        let delivered =
            wait_until(outcomes_until, || sessions.iter().all(|session| session.lock().numbers.is_empty())).await;
        if !flushed || !delivered {
            tracing::warn!(flushed, delivered, "stopping with work in flight; clients send it again");
        }
        let sessions = shared.sessions();
        let is_fleet = sessions.len() > RETURN_AT_ONCE_MAX;
        for session in sessions {
            let mut closing = Closing::new(Code::SHUTTING_DOWN, "the server is stopping");
            closing.retry_after_ms = if is_fleet { rand::random_range(0..RETURN_SPREAD_MS) } else { 0 };
            session.post(|inbound| inbound.close(closing));
        }
        wait_until(until, || shared.sessions().is_empty()).await;
        shared.stopped.cancel();
        shared.tasks.close();
        // At least a moment, also with a deadline that has passed: the tasks only have to see it.
        let rest = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(200));
        if timeout(rest, shared.tasks.wait()).await.is_err() {
            tracing::debug!("some connections did not close in time");
        }
        if let Some(endpoint) = &self.endpoint {
            endpoint.close(0_u8.into(), b"");
            let _ = timeout(Duration::from_millis(500), endpoint.wait_idle()).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.closed.cancel();
        self.shared.stopped.cancel();
    }
}

async fn answer_for_status(shared: Arc<Shared>, health: Health) {
    let member = Member::new("gateway", env!("CARGO_PKG_VERSION"), health.clone());
    let (answering, stopped) = (shared.consuming.clone(), shared.stopped.clone());
    let said = move || RoleStatus { gateway: Some(status(&shared)), ..member.status() };
    let _ = stopped.run_until_cancelled(serve_status(answering, health, said)).await;
}

fn status(shared: &Shared) -> GatewayStatus {
    let lane = |lane: &Lane| {
        let events_sequence = lane.step(|hub, _| hub.sequence());
        let queue = lane.queue();
        GatewayLane {
            events_sequence,
            queue_bytes: queue.bytes() as u64,
            outage: queue.outage().is_some(),
            logged_records: queue.logged_records(),
        }
    };
    GatewayStatus { connections: shared.session_count() as u64, lanes: shared.lanes.iter().map(lane).collect() }
}

async fn wait_until(deadline: Instant, is_done: impl Fn() -> bool) -> bool {
    while !is_done() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
    true
}

fn local(address: std::io::Result<SocketAddr>, transport: &'static str) -> Result<SocketAddr, GatewayError> {
    address.map_err(|reason| {
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        GatewayError::Listen { address, transport, reason }
    })
}

fn queue_limits(limits: &GatewayLimits) -> QueueLimits {
    QueueLimits {
        bytes_max: limits.queue_bytes_max,
        outage_after_ms: limits.outage_after.as_millis() as u64,
        batch_age_max_ms: limits.batch_age_max.as_millis() as u64,
        retry_after_ms: limits.retry_after.as_millis() as u64,
    }
}
