//! When to connect again.

use std::time::Duration;

/// The first delay is at most this.
const BASE: Duration = Duration::from_millis(500);

/// No delay by itself is longer than this.
const CAP: Duration = Duration::from_secs(60);

/// Nor than this while something is waited for.
const CAP_WAITING: Duration = Duration::from_secs(10);

/// Nor than this behind a session that was welcomed, however short it was: the server is there.
const CAP_WELCOMED: Duration = Duration::from_secs(5);

/// A session that lasted this long was a success: the next failure starts from the beginning. A
/// server that accepts and closes at once must not be asked twice a second for ever.
const STEADY: Duration = Duration::from_secs(5);

/// Exponential backoff with full jitter.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempt: u32,
}

impl Backoff {
    /// The delay before the next attempt: the server's wish, and a random part on top, so that
    /// many clients told the same do not come back at once. `lasted` is how long the session was
    /// welcomed, zero if it was not; `random` is in `0.0..1.0`.
    pub(crate) fn delay(&mut self, lasted: Duration, is_waiting: bool, retry_after: Duration, random: f64) -> Duration {
        if lasted >= STEADY {
            self.attempt = 0;
        }
        let cap = match (lasted.is_zero(), is_waiting) {
            (false, _) => CAP_WELCOMED,
            (true, true) => CAP_WAITING,
            (true, false) => CAP,
        };
        let range = BASE.saturating_mul(1 << self.attempt.min(16)).min(cap);
        self.attempt = self.attempt.saturating_add(1);
        retry_after.saturating_add(range.mul_f64(random.clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_keep_to_the_servers_wish() {
        let mut backoff = Backoff::default();
        let most: Vec<f64> =
            (0..10).map(|_| backoff.delay(Duration::ZERO, false, Duration::ZERO, 1.0).as_secs_f64()).collect();
        assert_eq!(most, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]);
        assert_eq!(backoff.delay(Duration::ZERO, false, Duration::ZERO, 0.0), Duration::ZERO);
        let wished = backoff.delay(Duration::ZERO, false, Duration::from_secs(7), 0.5);
        assert_eq!(wished, Duration::from_secs(37));
        assert_eq!(backoff.delay(STEADY, false, Duration::ZERO, 1.0), BASE, "a steady session starts over");
        for _ in 0..100 {
            assert!(backoff.delay(Duration::ZERO, false, Duration::ZERO, 0.999) <= CAP);
        }
    }

    #[test]
    fn who_waits_or_was_welcomed_comes_back_sooner() {
        let mut backoff = Backoff { attempt: 16 };
        assert_eq!(backoff.delay(Duration::ZERO, true, Duration::ZERO, 1.0), CAP_WAITING);
        assert_eq!(backoff.delay(Duration::from_secs(1), false, Duration::ZERO, 1.0), CAP_WELCOMED);
        assert_eq!(backoff.delay(Duration::ZERO, false, Duration::ZERO, 1.0), CAP);
    }
}
