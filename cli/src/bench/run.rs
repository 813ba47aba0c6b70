//! A run: connect, then one rate after the other.

use super::args::BenchArgs;
use super::figures::{Circumstances, Figures, Head, rounded};
use super::fleet::Fleet;
use super::layout::Layout;
use super::process::{Processes, Used};
use super::shell::{Clock, SharedFleet, Shell};
use super::step::{Pace, Step};
use crate::exit::{Exit, Failure};
use fieldstream_shared::outcome::AckLevel;

/// Time between the connecting and a look at the memory of idle connections.
const SETTLE_NS: u64 = 500_000_000;

/// Time between the beginning of a step and its first instruction.
const LEAD_NS: u64 = 50_000_000;

/// When nothing came for so long, nothing more will.
const QUIET_NS: u64 = 3_000_000_000;

/// A run with its connections.
pub(super) struct Run<'a> {
    pub(super) args: &'a BenchArgs,
    pub(super) layout: Layout,
    pub(super) fleet: SharedFleet,
    pub(super) shell: Box<dyn Shell>,
    pub(super) clock: Clock,
    pub(super) processes: Processes,
    pub(super) steps_done: u16,
}

impl Run<'_> {
    /// Connects all clients, and notes in `head` what that took.
    ///
    /// # Errors
    /// Why one of them could not.
    pub(super) fn connect(&mut self, head: &mut Head) -> Result<(), Failure> {
        let rss_before_kb = self.processes.rss_kb();
        let begun_ns = self.clock.now_ns();
        self.connect_all()?;
        head.connect_s = rounded((self.clock.now_ns() - begun_ns) as f64 / 1e9, 3);
        self.idle(SETTLE_NS)?;
        if !self.processes.is_empty() {
            let grown_kb = self.processes.rss_kb() as f64 - rss_before_kb as f64;
            head.rss_per_conn_kb = Some(rounded(grown_kb / self.layout.clients as f64, 1));
        }
        Ok(())
    }

    fn connect_all(&mut self) -> Result<(), Failure> {
        let patience_ns = u64::try_from(self.args.server.timeout.as_nanos()).unwrap_or(u64::MAX);
        let (mut last, mut progress_ns, mut timed_out) = (0, self.clock.now_ns(), false);
        let clients = self.layout.clients;
        self.drive(&mut |fleet, now_ns| {
            if fleet.ready() > last {
                (last, progress_ns) = (fleet.ready(), now_ns);
            }
            timed_out = now_ns.saturating_sub(progress_ns) > patience_ns;
            fleet.ready() == clients || fleet.dead() > 0 || timed_out
        })?;
        let fleet = self.fleet.borrow();
        let (ready, url) = (fleet.ready(), &self.args.server.server);
        if let Some(error) = fleet.first_error().filter(|_| fleet.dead() > 0) {
            let message = format!("{url}: {ready} of {clients} clients are connected, then: {error}");
            return Err(Failure::new(Exit::Unavailable, message));
        }
        if timed_out {
            let message = format!("{url}: {ready} of {clients} clients are connected, and no further one gets there");
            return Err(Failure::new(Exit::TimedOut, message).help("wait longer for each with --timeout"));
        }
        Ok(())
    }

    /// Puts so many documents, as fast as the server takes them, and waits until they are stored.
    ///
    /// # Errors
    /// Why they are not.
    pub(super) fn stock(&mut self, documents: usize) -> Result<(), Failure> {
        let patience_ns = u64::try_from(self.args.server.timeout.as_nanos()).unwrap_or(u64::MAX);
        self.fleet.borrow_mut().begin_stock(u32::try_from(documents).unwrap_or(u32::MAX), AckLevel::Stored);
        let (mut least, mut progress_ns, mut timed_out) = (u64::MAX, self.clock.now_ns(), false);
        self.drive(&mut |fleet, now_ns| {
            let missing = fleet.stock_missing();
            if missing < least {
                (least, progress_ns) = (missing, now_ns);
            }
            timed_out = now_ns.saturating_sub(progress_ns) > patience_ns;
            missing == 0 || fleet.first_error().is_some() || timed_out
        })?;
        let mut fleet = self.fleet.borrow_mut();
        let missing = fleet.stock_missing();
        fleet.end_stock();
        match (fleet.first_error(), timed_out) {
            (Some(error), _) => Err(Failure::failed(format_args!("--fill: {missing} documents are missing: {error}"))),
            (None, true) => Err(Failure::new(
                Exit::TimedOut,
                format!("--fill: {missing} documents are missing, and no further comes"),
            )),
            (None, false) => Ok(()),
        }
    }

    /// Runs one rate. Clients that an earlier one has worn out are connected anew before.
    ///
    /// # Errors
    /// What makes the whole run useless.
    pub(super) fn step(&mut self, rate: f64) -> Result<Figures, Failure> {
        let worn = self.fleet.borrow_mut().renew();
        if !worn.is_empty() {
            worn.into_iter().for_each(|client| self.shell.close(client));
            self.connect_all()?;
            self.idle(SETTLE_NS)?;
        }
        self.steps_done += 1;
        let start_ns = self.clock.now_ns() + LEAD_NS;
        let (warmup_s, seconds) = (self.args.warmup, self.args.seconds);
        let pace = Pace { label: self.steps_done, rate, warmup_s, seconds, start_ns };
        let step = Step::new(pace, self.layout).ok_or_else(|| Failure::failed("there is no room for the figures"))?;
        self.fleet.borrow_mut().begin(step);
        let measured_ns = pace.measured_ns();
        self.until(measured_ns.start)?;
        let before = self.processes.usage(self.clock.now_ns());
        self.until(measured_ns.end)?;
        let used = before.until(&self.processes.usage(self.clock.now_ns()));
        let drained = self.drain(measured_ns.end)?;
        let drain_s = self.clock.now_ns().saturating_sub(measured_ns.end) as f64 / 1e9;
        self.figures(used, drained, drain_s)
    }

    /// Waits for what is under way. Whether nothing more will come.
    fn drain(&mut self, end_ns: u64) -> Result<bool, Failure> {
        let patience_ns = (self.args.drain * 1e9) as u64;
        let mut drained = false;
        self.drive(&mut |fleet, now_ns| {
            let quiet_ns = fleet.step().map_or(0, |step| now_ns.saturating_sub(step.progress_ns.max(end_ns)));
            drained = fleet.step().is_none_or(Step::is_complete) || quiet_ns > QUIET_NS;
            drained || now_ns.saturating_sub(end_ns) > patience_ns
        })?;
        Ok(drained)
    }

    fn figures(&mut self, used: Used, drained: bool, drain_s: f64) -> Result<Figures, Failure> {
        let mut fleet = self.fleet.borrow_mut();
        let (dead, error) = (fleet.dead(), fleet.first_error().map(str::to_owned));
        let (step, missing) = fleet.end().ok_or_else(|| Failure::failed("the step is gone"))?;
        let rss_kb = (!self.processes.is_empty()).then(|| self.processes.rss_kb());
        let layout = self.layout;
        Ok(Figures::of(&step, Circumstances { layout, missing, used, rss_kb, dead, drain_s, drained, error }))
    }

    fn idle(&mut self, wait_ns: u64) -> Result<(), Failure> {
        self.until(self.clock.now_ns() + wait_ns)
    }

    fn until(&mut self, at_ns: u64) -> Result<(), Failure> {
        self.drive(&mut |_, now_ns| now_ns >= at_ns)
    }

    fn drive(&mut self, done: &mut dyn FnMut(&Fleet, u64) -> bool) -> Result<(), Failure> {
        let driven = self.shell.drive(&self.fleet, done);
        driven.map_err(|error| Failure::failed(format_args!("waiting for connections failed: {error}")))
    }
}
