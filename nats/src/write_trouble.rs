//! What an operator is told while a stream takes nothing.

use crate::batch_writer::{BatchWriter, WriteError};
use crate::connection::NatsError;
use crate::health::{Finding, Health, Severity};
use crate::log_reader::LogError;
use crate::register;
use crate::repair::LogNow;
use crate::topology::Log;

/// A failed attempt or two are a server that starts again.
const FAILURES_TOLD: u32 = 3;
/// Begins the code of the finding that a server answers, but acknowledges nothing.
const UNACKNOWLEDGED: &str = "not-acknowledged";

/// Begins the code of the finding that a stream takes nothing for another reason.
const NOT_LOGGED: &str = "not-logged";

/// Whether a finding is of a writer.
pub(crate) fn is_write_trouble(code: &str) -> bool {
    code.starts_with(NOT_LOGGED) || is_unacknowledged(code)
}

/// Whether a finding says that a server acknowledges nothing.
pub(crate) fn is_unacknowledged(code: &str) -> bool {
    code.starts_with(UNACKNOWLEDGED)
}

/// Counts failed attempts of one writer, and raises and clears its finding, which goes with it.
#[derive(Debug)]
pub struct WriteTrouble {
    health: Health,
    stream: String,
    severity: Severity,
    failures: u32,
    timeouts: u32,
    /// Attempts in a row that found nobody who takes messages.
    unanswered: u32,
}

impl WriteTrouble {
    /// No failure yet.
    pub fn new(health: &Health, log: Log, lane: u16) -> WriteTrouble {
        WriteTrouble::of(health, log.stream(lane), Severity::Blocking)
    }

    /// Of a storer that renews its entry in the register. It goes on storing without.
    pub fn of_register(health: &Health) -> WriteTrouble {
        WriteTrouble::of(health, format!("KV_{}", register::BUCKET), Severity::Warning)
    }

    fn of(health: &Health, stream: String, severity: Severity) -> WriteTrouble {
        WriteTrouble { health: health.clone(), stream, severity, failures: 0, timeouts: 0, unanswered: 0 }
    }

    /// Another attempt failed.
    pub fn failed(&mut self, error: &WriteError) {
        let is_full = matches!(error, WriteError::StreamFull(_));
        self.unanswered = if *error == WriteError::Disconnected { self.unanswered + 1 } else { 0 };
        self.count(*error == WriteError::TimedOut, is_full, error);
    }

    /// Another attempt to write an entry failed.
    pub fn not_put(&mut self, error: &NatsError) {
        self.count(matches!(error, NatsError::Unacknowledged { .. }), false, error);
    }

    fn count(&mut self, is_timeout: bool, is_certain: bool, error: &dyn std::fmt::Display) {
        self.failures += 1;
        self.timeouts = if is_timeout { self.timeouts + 1 } else { 0 };
        if self.timeouts >= FAILURES_TOLD {
            self.health.clear(&self.code(false));
            let message = format!("{} is not acknowledged: {error}", self.stream);
            let mend = "a nats-server whose disk was full has to be started again once there is room, which \
                        `fieldstream up` does; else see that it gets on: all goes on by itself then";
            self.health.raise(Finding::new(&self.code(true), self.severity, message, mend));
        } else if self.failures >= FAILURES_TOLD || is_certain {
            self.health.clear(&self.code(true));
            let message = format!("{} takes nothing: {error}", self.stream);
            let mend = "see that nats-server runs, answers and has room; all goes on by itself then";
            self.health.raise(Finding::new(&self.code(false), self.severity, message, mend));
        }
    }

    /// Whether nobody takes messages because a repair has closed the stream: that is not over by itself
    /// if the repair was killed, and who writes here need not have noticed any damage.
    ///
    /// # Errors
    /// [`LogError::Unfinished`] if it is so.
    pub async fn look(&self, writer: &BatchWriter) -> Result<(), LogError> {
        if self.unanswered < FAILURES_TOLD || !writer.connection().is_connected() {
            return Ok(());
        }
        match LogNow::load(writer.connection()).await {
            Ok(now) => now.must_be_open().map(|_| ()),
            Err(error) => {
                tracing::debug!(%error, "whether the log is being repaired could not be looked at");
                Ok(())
            }
        }
    }

    /// An attempt succeeded.
    pub fn over(&mut self) {
        (self.failures, self.timeouts, self.unanswered) = (0, 0, 0);
        self.health.clear(&self.code(false));
        self.health.clear(&self.code(true));
    }

    fn code(&self, is_unacknowledged: bool) -> String {
        let stream = self.stream.to_lowercase().replace('_', "-");
        format!("{}-{stream}", if is_unacknowledged { UNACKNOWLEDGED } else { NOT_LOGGED })
    }
}

impl Drop for WriteTrouble {
    /// Who does not write any more, because it gave up or was stopped, has no trouble either.
    fn drop(&mut self) {
        self.over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_acknowledges_nothing_is_told_apart_from_one_that_is_away() {
        let health = Health::new();
        let mut trouble = WriteTrouble::new(&health, Log::Events, 0);
        let codes = || health.findings().into_iter().map(|finding| finding.code).collect::<Vec<_>>();
        for error in [WriteError::Disconnected, WriteError::TimedOut] {
            trouble.failed(&error);
            assert_eq!(codes(), [""; 0]);
        }
        trouble.failed(&WriteError::TimedOut);
        assert_eq!(codes(), ["not-logged-events-0"]);
        trouble.failed(&WriteError::TimedOut);
        assert_eq!(codes(), ["not-acknowledged-events-0"]);
        assert!(is_unacknowledged(&codes()[0]));
        trouble.failed(&WriteError::Disconnected);
        assert_eq!(codes(), ["not-logged-events-0"]);
        trouble.over();
        assert_eq!(codes(), [""; 0]);
        trouble.failed(&WriteError::StreamFull("maximum bytes exceeded".into()));
        assert_eq!(codes(), ["not-logged-events-0"], "a full stream is said at once");
    }

    #[test]
    fn a_register_that_acknowledges_nothing_is_a_case_for_a_restart_too() {
        let health = Health::new();
        let mut trouble = WriteTrouble::of_register(&health);
        let error = NatsError::Unacknowledged { url: "nats://h".into(), what: "registering a storer".into() };
        (0..FAILURES_TOLD).for_each(|_| trouble.not_put(&error));
        let findings = health.findings();
        assert_eq!(findings[0].code, "not-acknowledged-kv-fieldstream-storers");
        assert!(is_unacknowledged(&findings[0].code) && findings[0].severity == Severity::Warning);
        trouble.over();
        assert_eq!(health.findings(), []);
    }
}
