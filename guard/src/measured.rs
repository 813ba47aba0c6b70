//! The marks around what is measured.

use std::hint::black_box;

/// A hot path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// Bytes of INSTRUCT frames to batches for INSTRUCTIONS.
    GatewayInbound,
    /// Batches of EVENTS to bytes for watchers and senders.
    GatewayOutbound,
    /// Batches of INSTRUCTIONS to batches of EVENTS, and these read back.
    Processor,
    /// Batches of EVENTS to commits of LMDB, as they come.
    StorerLive,
    /// The same from a log that is there already, in the largest commits.
    StorerRebuild,
}

/// All paths, in the order of an instruction's life.
const PATHS: [Path; 5] =
    [Path::GatewayInbound, Path::Processor, Path::GatewayOutbound, Path::StorerLive, Path::StorerRebuild];

impl Path {
    /// Its name in figures; that of its function below, too.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Path::GatewayInbound => "gateway_inbound",
            Path::GatewayOutbound => "gateway_outbound",
            Path::Processor => "processor",
            Path::StorerLive => "storer_live",
            Path::StorerRebuild => "storer_rebuild",
        }
    }
}

/// What was allocated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Allocations, and buffers that grew.
    pub(crate) allocations: u64,
    /// Bytes of them; of a buffer that grew, those it grew by.
    pub(crate) allocated_bytes: u64,
}

/// Sums what each path costs.
#[derive(Debug)]
pub(crate) struct Tally {
    /// What the process has allocated so far.
    count: fn() -> Cost,
    costs: [Cost; PATHS.len()],
    /// Off while everything warms up: what is paid once is not what each instruction pays.
    is_on: bool,
}

impl Tally {
    /// A tally that is off. `count` says what the process has allocated so far.
    pub(crate) fn new(count: fn() -> Cost) -> Tally {
        Tally { count, costs: [Cost::default(); PATHS.len()], is_on: false }
    }

    /// Counts from now on.
    pub(crate) fn switch_on(&mut self) {
        self.is_on = true;
    }

    /// Does something, and counts what it costs.
    pub(crate) fn measure<R>(&mut self, path: Path, work: impl FnOnce() -> R) -> R {
        if !self.is_on {
            return work();
        }
        let (mut work, mut result) = (Some(work), None);
        let mut once = || result = work.take().map(|work| work());
        let before = (self.count)();
        match path {
            Path::GatewayInbound => gateway_inbound(&mut once),
            Path::GatewayOutbound => gateway_outbound(&mut once),
            Path::Processor => processor(&mut once),
            Path::StorerLive => storer_live(&mut once),
            Path::StorerRebuild => storer_rebuild(&mut once),
        }
        let after = (self.count)();
        let cost = &mut self.costs[path as usize];
        cost.allocations += after.allocations - before.allocations;
        cost.allocated_bytes += after.allocated_bytes - before.allocated_bytes;
        #[allow(clippy::unwrap_used, reason = "it was called once, right above")]
        result.unwrap()
    }

    /// The costs of all paths, in the order of an instruction's life.
    pub(crate) fn costs(&self) -> impl Iterator<Item = (Path, Cost)> {
        PATHS.into_iter().map(|path| (path, self.costs[path as usize]))
    }
}

// Callgrind counts from where one of these is entered to where it is left, and tells them apart by
// name. Each says its name, so that the compiler does not make one function of all.

#[inline(never)]
fn gateway_inbound(work: &mut dyn FnMut()) {
    black_box(Path::GatewayInbound.name());
    work();
}

#[inline(never)]
fn gateway_outbound(work: &mut dyn FnMut()) {
    black_box(Path::GatewayOutbound.name());
    work();
}

#[inline(never)]
fn processor(work: &mut dyn FnMut()) {
    black_box(Path::Processor.name());
    work();
}

#[inline(never)]
fn storer_live(work: &mut dyn FnMut()) {
    black_box(Path::StorerLive.name());
    work();
}

#[inline(never)]
fn storer_rebuild(work: &mut dyn FnMut()) {
    black_box(Path::StorerRebuild.name());
    work();
}
