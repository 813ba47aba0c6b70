//! Times: when instructions were sent, and how long things took.

use fieldstream_client::ClientId;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// When each instruction was handed to the SDK.
#[derive(Debug)]
pub(super) struct Sent {
    client: ClientId,
    /// The number of the first instruction; the others follow one by one.
    first_number: u64,
    times: Vec<OnceLock<Instant>>,
}

impl Sent {
    /// Nothing sent yet of so many instructions.
    pub(super) fn new(client: ClientId, first_number: u64, instructions: usize) -> Sent {
        Sent { client, first_number, times: (0..instructions).map(|_| OnceLock::new()).collect() }
    }

    /// Notes that an instruction is sent now.
    pub(super) fn now(&self, index: usize) -> Instant {
        let now = Instant::now();
        if let Some(time) = self.times.get(index) {
            let _ = time.set(now);
        }
        now
    }

    /// How long ago the instruction of this client and number was sent; `None` if it is not ours.
    pub(super) fn age(&self, client: &ClientId, number: u64) -> Option<Duration> {
        let index = usize::try_from(number.checked_sub(self.first_number)?).ok()?;
        let time = self.times.get(index).filter(|_| *client == self.client)?;
        time.get().map(Instant::elapsed)
    }
}

/// Durations, all of them kept: their quantiles are exact.
#[derive(Debug, Default, Clone)]
pub(super) struct Latencies(Vec<u64>);

impl Latencies {
    /// Adds one duration.
    pub(super) fn push(&mut self, latency: Duration) {
        self.0.push(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// Adds others.
    pub(super) fn add(&mut self, others: &Latencies) {
        self.0.extend_from_slice(&others.0);
    }

    /// The least duration in milliseconds that this share of all does not exceed; `None` of none.
    pub(super) fn quantile_ms(&self, share: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        let rank = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, last + 1) - 1;
        sorted.get(rank).map(|us| (*us as f64) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_list() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile_ms(0.5), None);
        (1..=100).rev().for_each(|ms| latencies.push(Duration::from_millis(ms)));
        assert_eq!(latencies.quantile_ms(0.5), Some(50.0));
        assert_eq!(latencies.quantile_ms(0.99), Some(99.0));
        assert_eq!(latencies.quantile_ms(1.0), Some(100.0));
    }

    #[test]
    fn only_our_own_instructions_have_an_age() {
        let (me, other) = (ClientId::new("me").unwrap(), ClientId::new("other").unwrap());
        let sent = Sent::new(me.clone(), 5, 2);
        sent.now(0);
        assert!(sent.age(&me, 5).is_some());
        assert_eq!(
            (sent.age(&me, 6), sent.age(&me, 4), sent.age(&me, 7), sent.age(&other, 5)),
            (None, None, None, None)
        );
    }
}
