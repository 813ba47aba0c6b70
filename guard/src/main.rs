//! What the hot paths cost per instruction, told without a clock: allocations and instructions of
//! the processor, which are the same on a loaded machine and an idle one.
//!
//! `fieldstream-guard [TURNS]` drives the shipped cores through the load of the benchmarks (texts of
//! 500 bytes, three watchers for each document) on one thread, with fixed content, and prints a line
//! for each path: its name, the instructions it was driven with, allocations, bytes allocated.
//! [`measured`] marks where each path begins and ends, for the allocator here and for callgrind.
//! `scripts/guard` compares what comes of it with `guard/baseline.tsv`.
#![allow(clippy::expect_used, reason = "a core that does not do what it should makes the figures worthless")]

mod devices;
mod measured;
mod pipeline;
mod storers;

use measured::{Cost, Tally};
use pipeline::Plan;
use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED_BYTES: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counted.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    fn count(bytes: usize) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        ALLOCATED_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Counting::count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Counting::count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        Counting::count(new_bytes.saturating_sub(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, new_bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn allocated() -> Cost {
    Cost { allocations: ALLOCATIONS.load(Ordering::Relaxed), allocated_bytes: ALLOCATED_BYTES.load(Ordering::Relaxed) }
}

fn main() -> ExitCode {
    let mut plan = Plan::default();
    if let Some(turns) = std::env::args().nth(1) {
        let Ok(turns) = turns.parse() else {
            eprintln!("usage: fieldstream-guard [TURNS]");
            return ExitCode::from(2);
        };
        plan.turns = turns;
    }
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let mut tally = Tally::new(allocated);
    pipeline::run(&plan, folder.path(), &mut tally);
    for (path, cost) in tally.costs() {
        println!("{}\t{}\t{}\t{}", path.name(), plan.instructions(), cost.allocations, cost.allocated_bytes);
    }
    ExitCode::SUCCESS
}
