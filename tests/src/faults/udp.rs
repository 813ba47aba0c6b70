//! A UDP proxy that can lose, repeat, delay and so reorder datagrams, in both directions.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;

/// Of all datagrams of a bad line these shares are lost, come twice, and come late.
const LOST: f64 = 0.05;
const TWICE: f64 = 0.02;
const LATE: f64 = 0.1;
/// So late, in milliseconds: many others overtake it.
const LATE_MS: std::ops::Range<u64> = 5..60;
const DATAGRAM_BYTES: usize = 64 << 10;

/// What the proxy does at present. Clones are the same.
#[derive(Debug, Clone)]
pub struct UdpProxy {
    state: Arc<State>,
    /// Where it listens.
    pub address: SocketAddr,
}

#[derive(Debug)]
struct State {
    rng: Mutex<StdRng>,
    is_bad: AtomicBool,
    is_silent: AtomicBool,
    lost: AtomicU64,
}

impl State {
    /// When to pass a datagram on: not at all, once, or twice.
    fn fate(&self) -> Vec<Duration> {
        if self.is_silent.load(Ordering::SeqCst) {
            return Vec::new();
        }
        if !self.is_bad.load(Ordering::SeqCst) {
            return vec![Duration::ZERO];
        }
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        if rng.random_bool(LOST) {
            self.lost.fetch_add(1, Ordering::SeqCst);
            return Vec::new();
        }
        let copies = if rng.random_bool(TWICE) { 2 } else { 1 };
        let mut late = || if rng.random_bool(LATE) { rng.random_range(LATE_MS) } else { 0 };
        (0..copies).map(|_| Duration::from_millis(late())).collect()
    }

    fn pass(&self, datagram: &[u8], by: &Arc<UdpSocket>, to: SocketAddr) {
        for late in self.fate() {
            if late.is_zero() {
                let _ = by.try_send_to(datagram, to);
                continue;
            }
            let (by, datagram) = (Arc::clone(by), datagram.to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(late).await;
                let _ = by.try_send_to(&datagram, to);
            });
        }
    }
}

impl UdpProxy {
    /// Begins to forward to an address; the seed decides what becomes of a datagram.
    ///
    /// # Panics
    /// If there is no free port.
    pub async fn start(upstream: SocketAddr, seed: u64) -> UdpProxy {
        let listening = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a free port"));
        let address = listening.local_addr().expect("an address");
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        let state = Arc::new(State {
            rng,
            is_bad: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
            lost: AtomicU64::new(0),
        });
        tokio::spawn(forward(listening, upstream, Arc::clone(&state)));
        UdpProxy { state, address }
    }

    /// Makes the line bad, or good again.
    pub fn spoil(&self, bad: bool) {
        self.state.is_bad.store(bad, Ordering::SeqCst);
    }

    /// Lets nothing through, or everything again.
    pub fn silence(&self, silent: bool) {
        self.state.is_silent.store(silent, Ordering::SeqCst);
    }

    /// Datagrams lost so far.
    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::SeqCst)
    }
}

async fn forward(listening: Arc<UdpSocket>, upstream: SocketAddr, state: Arc<State>) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        // An error is of one earlier datagram: nobody listens there at present.
        let Ok((n, client)) = listening.recv_from(&mut buffer).await else { continue };
        let by = match clients.get(&client) {
            Some(by) => Arc::clone(by),
            None => {
                let by = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a free port"));
                tokio::spawn(back(Arc::clone(&by), Arc::clone(&listening), client, Arc::clone(&state)));
                clients.insert(client, Arc::clone(&by));
                by
            }
        };
        state.pass(&buffer[..n], &by, upstream);
    }
}

async fn back(by: Arc<UdpSocket>, listening: Arc<UdpSocket>, client: SocketAddr, state: Arc<State>) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        if let Ok((n, _)) = by.recv_from(&mut buffer).await {
            state.pass(&buffer[..n], &listening, client);
        }
    }
}
