//! A TCP proxy that can cut connections, stop forwarding, leave connections half open, let bytes
//! through slowly, and, in front of NATS, swallow acknowledgements of publishes.

use bytes::BytesMut;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A slow connection lets so many bytes through, so often.
const SLOW_BYTES: usize = 48;
const SLOW_EVERY: Duration = Duration::from_millis(20);

/// What the proxy does at present. Clones are the same.
#[derive(Debug, Clone)]
pub struct Proxy {
    state: Arc<State>,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From who connects here.
    Up,
    /// From the server.
    Down,
}

#[derive(Debug)]
struct State {
    frozen: watch::Sender<bool>,
    /// Nothing passes in this direction, while everything does in the other.
    one_way: watch::Sender<Option<Direction>>,
    cuts: watch::Sender<u64>,
    /// How often connections were left half open: those made before stay so.
    stalls: AtomicU64,
    slow: AtomicBool,
    swallowing: AtomicBool,
    swallowed: AtomicU64,
    connections: AtomicU64,
}

impl Proxy {
    /// Begins to forward to an address.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start(upstream: SocketAddr) -> Proxy {
        Proxy::in_front_of(upstream, true).await
    }

    /// Begins to forward bytes of any protocol.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn of_bytes(upstream: SocketAddr) -> Proxy {
        Proxy::in_front_of(upstream, false).await
    }

    async fn in_front_of(upstream: SocketAddr, is_nats: bool) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State {
            frozen: watch::Sender::new(false),
            one_way: watch::Sender::new(None),
            cuts: watch::Sender::new(0),
            stalls: AtomicU64::new(0),
            slow: AtomicBool::new(false),
            swallowing: AtomicBool::new(false),
            swallowed: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, upstream, is_nats, Arc::clone(&shared)));
            }
        });
        Proxy { state, address }
    }

    /// Cuts all connections; gives back how many there were.
    pub fn cut(&self) -> u64 {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Stops or resumes forwarding, in both directions; connections stay open.
    pub fn freeze(&self, frozen: bool) {
        self.state.frozen.send_replace(frozen);
    }

    /// Stops forwarding in one direction, or resumes it.
    pub fn stop_one_way(&self, direction: Option<Direction>) {
        self.state.one_way.send_replace(direction);
    }

    /// Leaves all present connections half open: nothing passes any more, and nobody is told. Gives
    /// back how many there were.
    pub fn stall(&self) -> u64 {
        self.state.stalls.fetch_add(1, Ordering::SeqCst);
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Lets a few bytes through at a time, or everything again.
    pub fn slow_down(&self, slow: bool) {
        self.state.slow.store(slow, Ordering::SeqCst);
    }

    /// Begins or ends swallowing every other acknowledgement of a publish.
    pub fn swallow(&self, swallowing: bool) {
        self.state.swallowing.store(swallowing, Ordering::SeqCst);
    }

    /// Acknowledgements swallowed so far.
    pub fn swallowed(&self) -> u64 {
        self.state.swallowed.load(Ordering::SeqCst)
    }
}

async fn forward(client: TcpStream, upstream: SocketAddr, is_nats: bool, state: Arc<State>) {
    let mut cuts = state.cuts.subscribe();
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    state.connections.fetch_add(1, Ordering::SeqCst);
    let back = async {
        match is_nats {
            true => pass_answers(from_server, to_client, &state).await,
            false => pass(Direction::Down, from_server, to_client, &state).await,
        }
    };
    tokio::select! {
        () = pass(Direction::Up, from_client, to_server, &state) => {}
        () = back => {}
        _ = cuts.changed() => {}
    }
    state.connections.fetch_sub(1, Ordering::SeqCst);
}

async fn thawed(state: &State, direction: Direction) {
    let _ = state.frozen.subscribe().wait_for(|frozen| !frozen).await;
    let _ = state.one_way.subscribe().wait_for(|stopped| *stopped != Some(direction)).await;
}

async fn pass(direction: Direction, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State) {
    let mut buffer = vec![0; 64 << 10];
    let stalls = state.stalls.load(Ordering::SeqCst);
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        thawed(state, direction).await;
        if state.stalls.load(Ordering::SeqCst) != stalls {
            std::future::pending::<()>().await;
        }
        let slow = state.slow.load(Ordering::SeqCst);
        for piece in buffer[..n].chunks(if slow { SLOW_BYTES } else { n }) {
            if to.write_all(piece).await.is_err() {
                return;
            }
            if state.slow.load(Ordering::SeqCst) {
                tokio::time::sleep(SLOW_EVERY).await;
            }
        }
    }
}

/// Passes on what the server says, message by message, but for acknowledgements to be swallowed.
async fn pass_answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State) {
    let mut buffer = BytesMut::with_capacity(64 << 10);
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        thawed(state, Direction::Down).await;
        while let Some(length) = frame_length(&buffer) {
            let frame = buffer.split_to(length);
            if state.swallowing.load(Ordering::SeqCst) && is_publish_ack(&frame) {
                // Every other one, so that publishers get on.
                if state.swallowed.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                    continue;
                }
            }
            if to.write_all(&frame).await.is_err() {
                return;
            }
        }
    }
}

/// Length of the first protocol line with its payload, if all of it is there.
fn frame_length(buffer: &[u8]) -> Option<usize> {
    let line = buffer.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let text = std::str::from_utf8(&buffer[..line - 2]).unwrap_or_default();
    let has_payload = text.starts_with("MSG ") || text.starts_with("HMSG ");
    let payload = match text.rsplit(' ').next().and_then(|bytes| bytes.parse::<usize>().ok()) {
        Some(bytes) if has_payload => bytes + 2,
        _ => 0,
    };
    (buffer.len() >= line + payload).then_some(line + payload)
}

fn is_publish_ack(frame: &[u8]) -> bool {
    let Some(line) = frame.windows(2).position(|pair| pair == b"\r\n") else { return false };
    let payload = &frame[line + 2..];
    frame.starts_with(b"MSG ")
        && (payload.starts_with(b"{\"stream\":\"INSTRUCTIONS_") || payload.starts_with(b"{\"stream\":\"EVENTS_"))
        && payload.windows(6).any(|part| part == b"\"seq\":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_apart() {
        let ack = b"MSG _INBOX.a.1 1 30\r\n{\"stream\":\"EVENTS_0\", \"seq\":7}\r\n";
        assert_eq!(frame_length(&ack[..30]), None);
        assert_eq!(frame_length(&[&ack[..], b"PING\r\n"].concat()), Some(ack.len()));
        assert!(is_publish_ack(ack));
        assert_eq!(frame_length(b"PING\r\n"), Some(6));
        assert!(!is_publish_ack(b"MSG a 1 4\r\n1234\r\n"));
    }
}
