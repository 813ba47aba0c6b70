//! How far a long report is, on a terminal.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// What takes no longer says nothing.
const PATIENCE: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(200);

/// A line on stderr that tells how many rows were read.
pub(super) struct Progress {
    begun: Instant,
    told: Option<Instant>,
    rows: u64,
    is_shown: bool,
}

impl Progress {
    /// Shown on a terminal, unless rows go to that terminal meanwhile.
    pub(super) fn new(rows_are_shown: bool) -> Progress {
        let is_shown = !rows_are_shown && io::stderr().is_terminal();
        Progress { begun: Instant::now(), told: None, rows: 0, is_shown }
    }

    /// Tells of further rows.
    pub(super) fn add(&mut self, rows: usize) {
        self.rows += rows as u64;
        let now = Instant::now();
        let took = now - self.begun;
        if !self.is_shown || took < PATIENCE || self.told.is_some_and(|told| now - told < EVERY) {
            return;
        }
        self.told = Some(now);
        let rate = self.rows as f64 / took.as_secs_f64();
        let _ = write!(io::stderr(), "\r\x1b[K{} rows, {rate:.0} rows/s", self.rows);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.told.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
